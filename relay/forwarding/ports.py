"""The ports of forwarding: its store, and the migration feature, which lies above it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from relay.inbox.ports import InboxStore
from relay.peering.ports import OutboxStore
from relay.protocol.endpoint_record import Home
from relay.protocol.ids import AgentKey


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
