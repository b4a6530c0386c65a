"""Find the relay to which an agent's mail goes (PROTOCOL.md §5.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from relay import clock
from relay.directory.resolve import RecordResolver
from relay.limits import BoundedTtl
from relay.peering.links import Links
from relay.protocol.did import parse_did
from relay.protocol.endpoint_record import Home
from relay.protocol.errors import ErrorCode, error
from relay.protocol.ids import AgentKey, Did

CACHED_S: Final = 60.0
MAX_CACHED: Final = 100_000


@dataclass(slots=True)
class Routing:
    """Chooses among the homes of an agent.

    Args:
        resolver: finds the agent's record.
        links: decides with whom this relay federates.
    """

    resolver: RecordResolver
    links: Links
    _cache: BoundedTtl[AgentKey, AgentKey] = field(default_factory=lambda: BoundedTtl(MAX_CACHED))

    def known(self, inbox: AgentKey) -> AgentKey | None:
        """Return a recent result of :meth:`find`; only the store knows if it still holds."""
        return self._cache.get(inbox, clock.monotonic())

    async def find(self, did: Did) -> AgentKey:
        """Return the key of the relay to which mail for an agent goes first.

        Raises:
            RelayError: ``unknown_inbox``: nobody knows it; ``peer_unreachable``: nobody can tell
                now; ``not_federated``: it lives where this relay sends nothing.
        """
        found = await self.resolver.resolve(did, around=True)
        if found.state == "unreadable":
            detail = "where the recipient lives cannot be found out just now"
            raise error(ErrorCode.PEER_UNREACHABLE, detail, retry_after=2)
        homes = self.resolver.homes(found)
        if not homes:
            raise error(ErrorCode.UNKNOWN_INBOX, "no relay is known where the recipient lives")
        allowed = [home for home in homes if self.links.allows(home.did)]
        if not allowed:
            detail = "the recipient lives at a relay that this one does not federate with"
            raise error(ErrorCode.NOT_FEDERATED, detail)
        peer = parse_did(allowed[0].did).agent_key
        self._cache.put(parse_did(did).agent_key, peer, clock.monotonic() + CACHED_S)
        return peer

    async def all(self, did: Did) -> Sequence[Home]:
        """Return the homes of an agent that this relay may dial, the preferred one first.

        Raises:
            UnavailableError: ``storage_unavailable``: nobody can tell now.
        """
        found = await self.resolver.resolve(did)
        if found.state == "unreadable":
            raise error(ErrorCode.STORAGE_UNAVAILABLE, "the directory cannot be read just now")
        return [home for home in self.resolver.homes(found) if self.links.allows(home.did)]
