"""Ask the relay that took an envelope over what became of it (PROTOCOL.md §5 ``status``)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from relay.forwarding.routing import Routing
from relay.peering.link import Link
from relay.peering.links import Links
from relay.protocol import frames
from relay.protocol.errors import RelayError
from relay.protocol.ids import Did

ANSWER_TIMEOUT_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class RemoteStatus:
    """Queries peers for the senders of this relay.

    Args:
        links: to peers.
        routing: where recipients live.
    """

    links: Links
    routing: Routing

    async def __call__(
        self, peer: Did, sender: Did, items: Sequence[frames.StatusItem]
    ) -> Sequence[frames.State]:
        """Return a state for each item; nothing if the peer does not answer just that."""
        named = tuple(frames.StatusItem(item.to, item.id, sender) for item in items)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                link = await self._link(peer, items)
                answer = await link.ask(lambda ref: frames.Status(ref, named)) if link else None
        except (RelayError, TimeoutError):
            return []
        if not isinstance(answer, frames.Statuses):
            return []
        pairs = [(one.to, one.id) for one in answer.items]
        is_answer = pairs == [(item.to, item.id) for item in items]
        return [one.state for one in answer.items] if is_answer else []

    async def _link(self, peer: Did, items: Sequence[frames.StatusItem]) -> Link | None:
        """Return a link to the peer: one that is up, or one to a home in a recipient's record."""
        for link in self.links.live():
            if link.peer == peer:
                return link
        for item in items:
            for home in await self.routing.all(item.to):
                if home.did == peer:
                    return await self.links.reach(home.did, home.url)
        return None
