"""The ports of forwarding: its store, and the migration feature, which lies above it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from relay.inbox.ports import InboxStore
from relay.protocol.endpoint_record import Home
from relay.protocol.errors import Refusal
from relay.protocol.ids import AgentKey, Fence, NodeId


@dataclass(frozen=True, slots=True)
class DueOutbox:
    """An inbox whose agent lives elsewhere, with mail that is due for a forwarder."""

    inbox: AgentKey
    peer: AgentKey | None


class OutboxStore(Protocol):
    """Inboxes whose agents live elsewhere: a forwarder submits their mail to the agent's home.

    The mail waits in an inbox like any other, under the bounds of an outbox. A forwarder's session
    (:class:`OpenRequest`) takes the place of the agent's: with the same seqs, ids, fences, expiry
    and bounces. If the agent comes home, that session ends, and the mail is the agent's.
    """

    async def due_outboxes(self, node: NodeId, *, most: int, lease_s: float) -> list[DueOutbox]:
        """Return outboxes with due mail, each leased to ``node`` for ``lease_s``."""
        ...

    async def defer_outbox(
        self,
        inbox: AgentKey,
        fence: Fence,
        wait_s: float,
        *,
        peer: AgentKey | None = None,
        closed: Refusal | None = None,
    ) -> bool:
        """Make an outbox due again in ``wait_s``; return False if the session is fenced off.

        Args:
            inbox: the outbox.
            fence: of the forwarder's session.
            wait_s: seconds; an empty outbox is not due before mail arrives.
            peer: the relay that it waits for from now on; its bounds count there.
            closed: until then the store refuses new envelopes for it, as the peer refused.
        """
        ...

    async def outboxes(self) -> list[tuple[AgentKey, int, int]]:
        """Return (peer, envelopes, wire bytes) of all mail that waits for peers."""
        ...


class ForwardingStore(InboxStore, OutboxStore, Protocol):
    """Inboxes, and those whose agents live elsewhere."""


class ForwardDecision(NamedTuple):
    """The decision about one inbox; ``handoff`` is the id of its hand-off, "" = none."""

    may_forward: bool
    handoff: str = ""


class HandoffGate(Protocol):
    """Decides about inboxes that move: no mail leaves before the digest (GUARANTEES.md §3)."""

    async def prepare_forward(self, inbox: AgentKey) -> ForwardDecision:
        """Apply the newest record and send the digest if it is due; then decide."""
        ...

    async def homes(self, inbox: AgentKey, handoff: str) -> Sequence[Home]:
        """Return the target of a hand-off; nothing if another hand-off is the current one."""
        ...

    async def on_unknown_handoff(self, inbox: AgentKey, handoff: str) -> None:
        """Note that the target does not know a hand-off: the digest must be sent again."""
        ...
