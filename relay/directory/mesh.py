"""The mesh, as one node takes part in it: links, news, comparisons, answers (PROTOCOL.md §5.10).

Rules of the file: a turn of each loop is a method, which ends; ``relay.node`` repeats them. What
this relay passes on, it has checked and kept before. It tells only of relays that it has reached.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Final

from relay import clock, log, metrics
from relay.directory.change_log import Following
from relay.directory.gossip import Hearing
from relay.directory.model import anti_entropy
from relay.directory.model.rumors import (
    FANOUT,
    pack_records,
)
from relay.directory.publish import Directory
from relay.directory.pull import Puller
from relay.isolation import guarded
from relay.peering.model.reputation import (
    Allowance,
)
from relay.peering.peers import (
    Peers,
    SeenBy,
)
from relay.peering.ports import (
    PeerLink,
    PeerLinks,
    RecordStore,
)
from relay.protocol import frames
from relay.protocol.errors import RelayError
from relay.protocol.ids import Did

PULL_S: Final = 30.0
PULL_SPREAD_S: Final = 10.0
REPEAT_S: Final = 60.0
"""A peer that always has more gives way to the others after so long; it is asked again later."""
TELL_S: Final = 3600.0
ASKED_PER_S: Final = 200.0
WAIT_S: Final = 0.02
PER_QUESTION: Final = 64
"""A long answer counts as several questions."""


def _size(answer: frames.Frame) -> int:
    match answer:
        case frames.Digests(items=items) | frames.Have(items=items):
            return len(items)
        case frames.Gossip(records=records, relays=relays):
            return len(records) + len(relays)
        case _:
            return 0


class Mesh:
    """Meets the port ``LinkListener``.

    Args:
        peers: whom this relay knows.
        links: of this node.
        store: of records.
        directory: judges and keeps them.
        own_info: this relay's signed information, made anew.
    """

    def __init__(
        self,
        peers: Peers,
        links: PeerLinks,
        store: RecordStore,
        directory: Directory,
        own_info: Callable[[], str],
    ) -> None:
        self.peers = peers
        self.links = links
        self.following = Following(store)
        self.hearing = Hearing(directory, self.following.index, peers)
        self._store = store
        self._own_info = own_info
        self._puller = Puller(self.following.index, self.hearing)
        self._questions = Allowance(ASKED_PER_S)
        self._fresh: dict[Did, None] = {}
        self._heal = asyncio.Event()
        self._told_at = clock.monotonic()
        self._asked: dict[Did, float] = {}
        directory.listeners.append(self.hearing.published)

    # ------------------------------------------------------------ links

    def chosen(self) -> list[tuple[Did, str]]:
        """To whom links are kept."""
        return self.peers.chosen()

    def due(self, linked: Collection[Did]) -> list[tuple[Did, str]]:
        """Whom to dial now."""
        return self.peers.due(linked)

    def came(self, link: PeerLink) -> None:
        """A link stands: say who this relay is, and compare directories at once."""
        self.introduce(link.peer)
        if not self.peers.is_full(link.peer):
            return
        link.push(frames.Gossip(relays=(self._own_info(),)))
        self._fresh[link.peer] = None
        self._heal.set()

    def introduce(self, relay: Did) -> None:
        """A link to a peer stands: from the first one on others are told of it."""
        if self.peers.reached(relay):
            self.hearing.pass_on(self.peers.rows[relay].info)

    def missed(self, relay: Did, url: str, why: RelayError) -> float | None:
        """A dial failed."""
        return self.peers.missed(relay, why, url)

    def went(self, relay: Did, why: RelayError) -> float | None:
        """A link has ended."""
        return self.peers.missed(relay, why)

    def arrived(self, relay: Did, dismiss: Callable[[], None]) -> None:
        """A relay has logged in here, so it is alive: one that is waited for is dialled now."""
        self.peers.arrived(relay, dismiss)
        row = self.peers.rows.get(relay)
        # only where the operator says who that is: others could have any address dialled so
        if row is not None and row.standing == "added":
            self.links.retry(relay, row.url)

    def link_to(self, relay: Did) -> PeerLink | None:
        """The link to a relay, if one stands."""
        return next((link for link in self.links.live() if link.peer == relay), None)

    # ------------------------------------------------------------ what peers say and ask

    async def hear(self, peer: Did, said: frames.Gossip) -> None:
        """A peer pushes.

        Raises:
            UnavailableError: the store.
        """
        await self.hearing.pushed(peer, said)

    async def answer(self, peer: Did, question: frames.Digest | frames.Want) -> frames.Frame:
        """Answer a peer from the own store; who asks fast waits.

        Raises:
            RelayError: ``bad_frame`` or ``storage_unavailable``.
        """
        while not self._questions.take(peer, 1, clock.monotonic()):  # noqa: ASYNC110  a rate
            await asyncio.sleep(WAIT_S)
        told = await self._told(peer, question)
        self._questions.charge(peer, _size(told) // PER_QUESTION, clock.monotonic())
        return told

    async def _told(self, peer: Did, question: frames.Digest | frames.Want) -> frames.Frame:
        if not self.following.is_current:
            # a node that has just started must not say that it holds nothing
            await self.following()
        match question:
            case frames.Want(ref=ref, view=True):
                return self.peers.view_of(peer, ref)
            case frames.Want(ref=ref, relays=True):
                return frames.Gossip(relays=self._known_relays(peer), ref=ref)
            case frames.Want(ref=ref, agents=agents) if agents:
                rows = await self._store.records(agents)
                found = pack_records([row.compact for row in rows if row is not None], ref)
                told = found[0] if found else frames.Gossip(ref=ref)
                metrics.GOSSIP.labels("out", "asked").inc(len(told.records))
                return told
            case frames.Digest(bits=bits, buckets=buckets):
                for _ in self.following.index.prepare(bits, buckets):
                    await asyncio.sleep(0)
                return anti_entropy.answer(self.following.index, question)
            case _:
                return anti_entropy.answer(self.following.index, question)

    def _known_relays(self, asker: Did) -> tuple[str, ...]:
        rows = [row for did, row in self.peers.rows.items() if self.peers.is_proved(did)]
        infos = [row.info for row in rows if row.info and row.did != asker]
        return (self._own_info(), *clock.pick(infos, frames.MAX_RELAYS - 1))

    # ------------------------------------------------------------ turns of the loops

    async def push(self) -> None:
        """Tell three peers each what is news."""
        links = {link.peer: link for link in self.links.live()}
        for peer, frame in self.hearing.rumors.pop_frames(list(links), clock.pick):
            if links[peer].push(frame):
                metrics.GOSSIP.labels("out", "pushed").inc(len(frame.records))
        infos, self.hearing.relays = self.hearing.relays, []
        is_due = clock.monotonic() - self._told_at > TELL_S
        if is_due:
            self._told_at = clock.monotonic()
            infos.append(self._own_info())
        if not infos:
            return
        told = list(links) if is_due else clock.pick(list(links), FANOUT)
        for at in range(0, len(infos), frames.MAX_RELAYS):
            for peer in told:
                links[peer].push(frames.Gossip(relays=tuple(infos[at : at + frames.MAX_RELAYS])))

    async def pull(self) -> None:
        """Wait for half a minute or a new link, then compare for as long as that brings news.

        Whoever comes back meanwhile is asked at once: a slow peer holds up no other.
        """
        pause_s = PULL_S + (2 * clock.share() - 1) * PULL_SPREAD_S
        try:
            async with asyncio.timeout(0 if self._fresh else pause_s):
                await self._heal.wait()
        except TimeoutError:
            pass
        await self.following()
        async with asyncio.TaskGroup() as tasks:
            partners = self._back() or clock.pick(self.able(), 1)
            asked: set[asyncio.Task[None]] = set()
            while partners or asked:
                parts = (guarded("pull", self._pull_from(link)) for link in partners)
                asked |= {tasks.create_task(part) for part in parts}
                come = tasks.create_task(self._heal.wait())
                await asyncio.wait({*asked, come}, return_when=asyncio.FIRST_COMPLETED)
                come.cancel()
                asked = {task for task in asked if not task.done()}
                partners = self._back()

    async def _pull_from(self, link: PeerLink) -> None:
        began = clock.monotonic()
        while await self._puller(link) and clock.monotonic() - began < REPEAT_S:
            await self.following()

    def able(self) -> list[PeerLink]:
        """Whose word on records is asked for."""
        live = self.links.live()
        return [link for link in live if not self.peers.reputation(link.peer).is_blocked]

    def _back(self) -> list[PeerLink]:
        """Who has come back, and was not asked yet."""
        self._heal.clear()
        fresh, self._fresh = self._fresh, {}
        return [link for link in self.able() if link.peer in fresh]

    async def meet(self, anew: Did | None = None) -> None:
        """Ask peers whom they know and how they see this relay, now and then.

        Args:
            anew: ask this one, although it was asked a moment ago.
        """
        now = clock.monotonic()
        live = {link.peer: link for link in self.links.live()}
        self._asked = {did: at for did, at in self._asked.items() if did in live}
        async with asyncio.TaskGroup() as tasks:
            for did, link in live.items():
                if did == anew or now - self._asked.get(did, -PULL_S) >= PULL_S:
                    self._asked[did] = now
                    tasks.create_task(guarded("meet", self._ask_around(link)))

    async def _ask_around(self, link: PeerLink) -> None:
        try:
            view = await link.ask(lambda ref: frames.Want(ref, view=True))
            told = await link.ask(lambda ref: frames.Want(ref, relays=True))
        except RelayError as exc:
            # the link has ended, or the peer does not know this question
            log.event("pull_failed", peer=link.peer, code=exc.code, detail=exc.detail)
            return
        if isinstance(view, frames.View):
            self.peers.views[link.peer] = SeenBy(view, int(clock.now()))
        if isinstance(told, frames.Gossip):
            await self.hearing.told_of_relays(link.peer, told.relays)
