"""The ports of forwarding: its store, and the migration feature, which lies above it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from relay.protocol.endpoint_record import Home
from relay.protocol.errors import Refusal
from relay.protocol.ids import AgentKey, Fence, NodeId


@dataclass(frozen=True, slots=True)
class DueOutbox:
    """An inbox whose agent lives elsewhere, with mail that is due for a forwarder."""

    inbox: AgentKey
    peer: AgentKey | None


class OutboxStore(Protocol):
    """Inboxes whose agents live elsewhere: a forwarder sends their mail to the agents' homes.

    Such an inbox has the limits of an outbox, and a forwarder has its session instead of the agent.
    Seqs, ids, fences, expiry and bounces are the same. If the agent comes home, the forwarder's
    session ends, and the agent reads what waits.
    """

    async def due(self, node: NodeId, *, limit: int, lease_s: float) -> list[DueOutbox]:
        """Return outboxes in which something waits and is due, each leased to ``node``."""
        ...

    async def defer(
        self,
        inbox: AgentKey,
        fence: Fence,
        wait_s: float,
        *,
        peer: AgentKey | None = None,
        closed: Refusal | None = None,
    ) -> bool:
        """Record how a forwarder leaves an inbox: due again in ``wait_s``; False if fenced off.

        Args:
            inbox: its owner.
            fence: of the forwarder's session.
            wait_s: seconds; an inbox in which nothing waits is not due until something does.
            peer: the relay that it waits for from now on; its bounds count there.
            closed: until then the store refuses new envelopes for it, as the peer did.
        """
        ...

    async def totals(self) -> list[tuple[AgentKey, int, int]]:
        """Return (peer, envelopes, wire bytes) of all that waits for peers."""
        ...


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
