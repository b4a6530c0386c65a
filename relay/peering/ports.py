"""The store of peering: the relays that this one knows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from relay.protocol.ids import AgentKey, Did

WaitingMail = Callable[[], Awaitable[list[tuple[AgentKey, int, int]]]]
"""Return (peer, envelopes, wire bytes) of all mail that waits for peers."""


@dataclass(frozen=True, slots=True)
class PeerRow:
    """A relay that this one knows.

    Args:
        did: its identity.
        url: its origin.
        standing: ``added`` or ``blocked`` by the operator, or ``learned`` from others.
        since: Unix seconds.
        info: its newest signed relay information.
    """

    did: Did
    url: str
    standing: Literal["added", "learned", "blocked"]
    since: int
    info: str | None = None


class PeerRowStore(Protocol):
    """Other relays that this one knows."""

    async def all(self) -> list[PeerRow]:
        """Return all known relays."""
        ...

    async def put(self, row: PeerRow) -> None:
        """Store a row, in the place of the former one of this DID."""
        ...

    async def replace(self, expected: PeerRow | None, row: PeerRow) -> bool:
        """Store a row if the store still has ``expected``; return False otherwise."""
        ...

    async def remove(self, did: Did) -> bool:
        """Forget a relay; return False if it was not known."""
        ...
