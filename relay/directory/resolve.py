"""Resolving: an agent's newest record: own store, then its known homes, then peers (§7.6).

Rules of the file: found, absent and unreadable stay three answers. Only a session of this relay, or
the relay itself, makes it ask around: at most three relays a question, one question a DID at a
time, so many in all; what others say is verified and kept like gossip.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from relay import clock
from relay.directory.publish import (
    Directory,
    Found,
)
from relay.peering.model.reputation import Allowance
from relay.peering.ports import (
    Names,
    PeerLink,
    PeerLinks,
)
from relay.protocol import (
    endpoint_record,
    frames,
    handles,
)
from relay.protocol.did import parse_did
from relay.protocol.endpoint_record import (
    EndpointRecord,
    Home,
)
from relay.protocol.errors import (
    ErrorCode,
    RelayError,
    error,
)
from relay.protocol.ids import (
    AgentKey,
    Did,
)
from relay.tasks import side_by_side

ASK_S: Final = 3.0
MOST_ASKED: Final = 3
RATE: Final = 50.0
"""Questions a second that may go around; more are answered from the own store."""
BURST: Final = 200.0
EACH: Final = 5.0
"""Of them for one asker, so that nobody takes all: keys are free, connections are not."""
EACH_BURST_S: Final = 10.0
NEGATIVE_S: Final = 5.0
MOST_NEGATIVE: Final = 10_000
KNOWN_S: Final = 60.0
MOST_KNOWN: Final = 100_000

Keep = Callable[[str, Did], Awaitable[object]]
"""Verify and keep one record that a peer told."""


@dataclass(slots=True)
class Resolving:
    """Where agents live, as far as this relay and those it asks know.

    Args:
        relay: this one.
        directory: the own store.
        links: other relays.
        keep: takes a record that a peer told.
        names: where handles lead.
    """

    relay: Did
    directory: Directory
    links: PeerLinks
    keep: Keep
    names: Names
    _tokens: float = BURST
    _at: float = field(default_factory=clock.monotonic)
    _each: Allowance = field(default_factory=lambda: Allowance(EACH, EACH_BURST_S))
    _asking: dict[str, asyncio.Future[Found]] = field(default_factory=dict)
    _negative: dict[str, tuple[float, Found]] = field(default_factory=dict)

    async def __call__(self, did: str, *, around: bool = False, asker: Did | None = None) -> Found:
        """The newest record of an agent.

        Args:
            did: whose.
            around: ask other relays where the own store has none, or a stale one.
            asker: the agent whose question it is; None: the relay's own.

        Raises:
            ProtocolError: ``bad_frame`` or ``unsupported``: not a DID that can be resolved.
        """
        found = await self.directory.resolve(did)
        if not around or (found.state == "found" and not found.stale):
            return found
        known = self._negative.get(did)
        if known is not None and known[0] > clock.monotonic():
            return found if found.record is not None else known[1]
        return await self._once(did, found, asker)

    async def by_handle(self, text: str, asker: Did) -> Found:
        """The newest record of the agent to which a handle leads.

        Whether the record lists the handle, too, is there for the asker to see (PROTOCOL.md §7.5).

        Raises:
            ProtocolError: ``bad_frame``: no handle.
        """
        try:
            handle = handles.parse(text)
        except ValueError as exc:
            raise error(ErrorCode.BAD_FRAME, f"handle: {exc}") from exc
        heard = await self.names.resolve(handle)
        if heard.did is None:
            return Found(heard.state)
        return await self(heard.did, around=True, asker=asker)

    async def _once(self, did: str, found: Found, asker: Did | None) -> Found:
        """Ask around, unless somebody already does so for this DID."""
        asking = self._asking.get(did)
        if asking is not None:
            return await asyncio.shield(asking)
        if not self._may_ask(asker):
            return found if found.record is not None else Found("unreadable")
        answer: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._asking[did] = answer
        result = Found("unreadable")
        try:
            result = await self._around(did, found)
        finally:
            del self._asking[did]
            answer.set_result(result)
        return result

    def _may_ask(self, asker: Did | None) -> bool:
        now = clock.monotonic()
        self._tokens = min(BURST, self._tokens + (now - self._at) * RATE)
        self._at = now
        # an asker's own allowance is not spent on what is not asked
        if self._tokens < 1 or (asker is not None and not self._each.take(asker, 1, now)):
            return False
        self._tokens -= 1
        return True

    async def _around(self, did: str, found: Found) -> Found:
        askers = self._askers(found)
        said = await side_by_side(self._ask(asker, did) for asker in askers)
        now_held = await self.directory.resolve(did)
        if now_held.record is not None:
            return now_held
        nobody_said = all(one is None for one in said) and bool(said or self.links.wanted())
        # somebody has one, but it could not be kept here: the directory is full
        if now_held.state == "unreadable" or nobody_said or any(said):
            return Found("unreadable")
        result = Found("absent")
        self._remember(did, result)
        return result

    def _remember(self, did: str, result: Found) -> None:
        while len(self._negative) >= MOST_NEGATIVE:
            del self._negative[next(iter(self._negative))]
        self._negative[did] = (clock.monotonic() + NEGATIVE_S, result)

    def _askers(self, found: Found) -> list[Callable[[], Awaitable[PeerLink]]]:
        """Whom to ask: the homes that a stale record names, then any peers that are up."""
        homes = self.homes(found)[:MOST_ASKED]
        askers: list[Callable[[], Awaitable[PeerLink]]] = [
            lambda home=home: self.links.reach(home.did, home.url)  # type: ignore[misc]
            for home in homes
        ]
        named = {home.did for home in homes}
        live = [link for link in self.links.live() if link.peer not in named]
        start = int.from_bytes(clock.entropy(4)) % len(live) if live else 0
        some = [*live[start:], *live[:start]][: MOST_ASKED - len(askers)]
        askers += [lambda link=link: _now(link) for link in some]  # type: ignore[misc]
        return askers

    def homes(self, found: Found) -> list[Home]:
        """The other relays that a record names, the preferred one first."""
        if found.record is None:
            return []
        return homes_of(endpoint_record.parse(found.record), self.relay)

    async def _ask(self, reach: Callable[[], Awaitable[PeerLink]], did: str) -> bool | None:
        """Ask one relay: True = it told a record, False = it has none, None = no answer."""
        try:
            async with asyncio.timeout(ASK_S):
                link = await reach()
                answer = await link.ask(lambda ref: frames.Resolve(ref, Did(did)))
            if not isinstance(answer, frames.Resolved) or answer.state == "unreadable":
                return None
            if answer.record is None:
                return False
            if endpoint_record.parse(answer.record).did != did:
                return None
            await self.keep(answer.record, link.peer)
        except (RelayError, TimeoutError):
            return None
        return True


async def _now(link: PeerLink) -> PeerLink:
    return link


def homes_of(record: EndpointRecord, but: Did) -> list[Home]:
    """The relays of a record but one, the preferred one first."""
    others = (home for home in record.relays if home.did != but)
    return sorted(others, key=lambda home: home.prio)


@dataclass(slots=True)
class Routing:
    """Which relay an envelope may wait for (PROTOCOL.md §5.2).

    Args:
        resolving: finds the recipient's record.
        links: says with whom this relay federates.
    """

    resolving: Resolving
    links: PeerLinks
    _known: dict[AgentKey, tuple[float, AgentKey]] = field(default_factory=dict)

    def known(self, inbox: AgentKey) -> AgentKey | None:
        """What :meth:`find` found lately; the store alone decides whether it is still so."""
        found = self._known.get(inbox)
        return found[1] if found is not None and found[0] > clock.monotonic() else None

    async def find(self, did: Did) -> AgentKey:
        """The relay to which mail for an agent should go first, by its key.

        Raises:
            RelayError: ``unknown_inbox``: nobody knows it; ``peer_unreachable``: nobody can tell
                now; ``not_federated``: it lives where this relay sends nothing.
        """
        found = await self.resolving(did, around=True)
        if found.state == "unreadable":
            detail = "where the recipient lives cannot be found out just now"
            raise error(ErrorCode.PEER_UNREACHABLE, detail, retry_after=2)
        homes = self.resolving.homes(found)
        if not homes:
            raise error(ErrorCode.UNKNOWN_INBOX, "no relay is known where the recipient lives")
        allowed = [home for home in homes if self.links.allows(home.did)]
        if not allowed:
            detail = "the recipient lives at a relay that this one does not federate with"
            raise error(ErrorCode.NOT_FEDERATED, detail)
        peer = parse_did(allowed[0].did).agent_key
        while len(self._known) >= MOST_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[parse_did(did).agent_key] = (clock.monotonic() + KNOWN_S, peer)
        return peer

    async def all(self, did: Did) -> Sequence[Home]:
        """All homes that this relay may dial for an agent, the preferred one first.

        Raises:
            UnavailableError: ``storage_unavailable``: nobody can tell now.
        """
        found = await self.resolving(did)
        if found.state == "unreadable":
            raise error(ErrorCode.STORAGE_UNAVAILABLE, "the directory cannot be read just now")
        return [home for home in self.resolving.homes(found) if self.links.allows(home.did)]
