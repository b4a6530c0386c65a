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
    """Rows of other relays."""

    async def peers(self) -> list[PeerRow]:
        """Return all rows."""
        ...

    async def put_peer(self, row: PeerRow) -> None:
        """Store a row in place of the current one of its DID."""
        ...

    async def replace_peer(self, held: PeerRow | None, row: PeerRow) -> bool:
        """Store a row if the current one is ``held``; return False if it is not."""
        ...

    async def remove_peer(self, did: Did) -> bool:
        """Remove a row; return False if there was none."""
        ...
