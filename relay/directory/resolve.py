"""Find an agent's newest record: in the own store, at its known homes, then at peers (§7.6).

Found, absent and unreadable stay three answers. Only a session of this relay, or the relay itself,
makes it ask others: at most three relays a question, one question per DID at a time, and so many
questions in all. Records that others return are verified and stored like gossip.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from relay import clock
from relay.directory.publish import Directory, RecordLookup
from relay.directory.remote_handles import RemoteHandles
from relay.limits import BoundedTtl, TokenBuckets
from relay.peering.link import Link
from relay.peering.links import Links
from relay.peering.model.reputation import MAX_PEERS
from relay.protocol import endpoint_record, frames, handles
from relay.protocol.endpoint_record import Home
from relay.protocol.errors import ErrorCode, RelayError, error
from relay.protocol.ids import Did
from relay.tasks import side_by_side

ASK_S: Final = 3.0
MAX_ASKED: Final = 3
QUESTIONS_PER_S: Final = 50.0
"""Questions that go to other relays; more are answered from the own store."""
QUESTIONS_BURST: Final = 200.0
ASKER_PER_S: Final = 5.0
"""The part of one asker, so that nobody takes all: keys are free, connections are not."""
ASKER_BURST: Final = 50.0
ABSENT_S: Final = 5.0
"""How long the relay remembers that nobody has a record."""
MAX_ABSENT: Final = 10_000

OnRecordReply = Callable[[str, Did], Awaitable[object]]
"""Verify and store a record that a peer returned."""


@dataclass(slots=True)
class RecordResolver:
    """Finds records, as far as this relay and those it asks know them.

    Args:
        relay: this one.
        directory: the own store.
        links: other relays.
        on_record_reply: takes a record that a peer returned.
        handles: resolves handles to DIDs.
    """

    relay: Did
    directory: Directory
    links: Links
    on_record_reply: OnRecordReply
    handles: RemoteHandles
    _all: TokenBuckets[None] = field(
        default_factory=lambda: TokenBuckets(QUESTIONS_PER_S, QUESTIONS_BURST)
    )
    _askers: TokenBuckets[Did] = field(
        default_factory=lambda: TokenBuckets(ASKER_PER_S, ASKER_BURST, MAX_PEERS)
    )
    _asking: dict[str, asyncio.Future[RecordLookup]] = field(default_factory=dict)
    _absent: BoundedTtl[str, RecordLookup] = field(default_factory=lambda: BoundedTtl(MAX_ABSENT))

    async def resolve(
        self, did: str, *, around: bool = False, asker: Did | None = None
    ) -> RecordLookup:
        """Return the newest record of an agent.

        Args:
            did: the agent.
            around: ask other relays if the own store has no record, or a stale one.
            asker: the agent that asks; None: this relay itself.

        Raises:
            ProtocolError: ``bad_frame`` or ``unsupported``: not a DID that can be resolved.
        """
        found = await self.directory.resolve(did)
        if not around or (found.state == "found" and not found.stale):
            return found
        absent = self._absent.get(did, clock.monotonic())
        if absent is not None:
            return found if found.record is not None else absent
        return await self._ask_once(did, found, asker)

    async def resolve_handle(self, text: str, asker: Did) -> RecordLookup:
        """Return the newest record of the agent to which a handle leads.

        The asker checks whether the record lists the handle, too (PROTOCOL.md §7.5).

        Raises:
            ProtocolError: ``bad_frame``: no handle.
        """
        try:
            handle = handles.parse(text)
        except ValueError as exc:
            raise error(ErrorCode.BAD_FRAME, f"handle: {exc}") from exc
        answer = await self.handles.resolve(handle)
        if answer.did is None:
            return RecordLookup(answer.state)
        return await self.resolve(answer.did, around=True, asker=asker)

    def homes(self, found: RecordLookup) -> list[Home]:
        """Return the other relays that a record names, the preferred one first."""
        if found.record is None:
            return []
        record = endpoint_record.parse(found.record)
        others = (home for home in record.relays if home.did != self.relay)
        return sorted(others, key=lambda home: home.prio)

    async def _ask_once(self, did: str, found: RecordLookup, asker: Did | None) -> RecordLookup:
        """Ask around, or wait for the question that is under way for this DID."""
        asking = self._asking.get(did)
        if asking is not None:
            return await asyncio.shield(asking)
        if not self._may_ask(asker):
            return found if found.record is not None else RecordLookup("unreadable")
        answer: asyncio.Future[RecordLookup] = asyncio.get_running_loop().create_future()
        self._asking[did] = answer
        result = RecordLookup("unreadable")
        try:
            result = await self._ask_around(did, found)
        finally:
            del self._asking[did]
            answer.set_result(result)
        return result

    def _may_ask(self, asker: Did | None) -> bool:
        now = clock.monotonic()
        # an asker's own tokens are not spent on what is not asked
        if self._all.wait_s(None, now):
            return False
        if asker is not None and self._askers.try_acquire(asker, now):
            return False
        return not self._all.try_acquire(None, now)

    async def _ask_around(self, did: str, found: RecordLookup) -> RecordLookup:
        answers = await side_by_side(self._ask(reach, did) for reach in self._sources(found))
        stored = await self.directory.resolve(did)
        if stored.record is not None:
            return stored
        nobody_answered = all(one is None for one in answers)
        nobody_answered &= bool(answers or self.links.wanted())
        # somebody has a record, but the directory is full
        if stored.state == "unreadable" or nobody_answered or any(answers):
            return RecordLookup("unreadable")
        result = RecordLookup("absent")
        self._absent.put(did, result, clock.monotonic() + ABSENT_S)
        return result

    def _sources(self, found: RecordLookup) -> list[Callable[[], Awaitable[Link]]]:
        """Return ways to the relays to ask: homes that a stale record names, then linked peers."""
        homes = self.homes(found)[:MAX_ASKED]
        sources: list[Callable[[], Awaitable[Link]]] = [
            lambda home=home: self.links.reach(home.did, home.url)  # type: ignore[misc]
            for home in homes
        ]
        named = {home.did for home in homes}
        live = [link for link in self.links.live() if link.peer not in named]
        some = clock.sample(live, MAX_ASKED - len(sources))
        return sources + [lambda link=link: _ready(link) for link in some]

    async def _ask(self, reach: Callable[[], Awaitable[Link]], did: str) -> bool | None:
        """Ask one relay; return True for a record, False if it has none, None for no answer."""
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
            await self.on_record_reply(answer.record, link.peer)
        except (RelayError, TimeoutError):
            return None
        return True


async def _ready(link: Link) -> Link:
    return link
