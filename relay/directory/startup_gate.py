"""Returning: a node that starts asks its peers first where the agents live whose inboxes are here.

A relay that was away for long, or whose store was restored from an old backup, takes agents for its
own that have moved. Their newest records say so; peers hold them (GUARANTEES.md §3).

::

    digest of the directory ─▶ where that differs: want the agents that have an inbox here
    one peer has told, and two more, or they had their time ─▶ agents are let in

Rules of the file: until a peer has told, no agent gets a session; submits are taken all the while,
since what is for an agent that has moved follows it. A peer can withhold and be slow, no more: what
it tells is signed, and the wait has an end. Whoever is let in unasked is asked about later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from relay import clock, log, metrics
from relay.directory.mesh import Mesh
from relay.directory.model.anti_entropy import differing
from relay.directory.model.index import (
    TOP_BITS,
    place,
)
from relay.inbox.ports import Store
from relay.isolation import guarded
from relay.peering.ports import PeerLink
from relay.protocol import frames
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
    RelayError,
    UnavailableError,
)
from relay.protocol.ids import (
    AgentKey,
    Did,
)
from relay.protocol.peer_session import Answer

ENOUGH: Final = 3
"""One honest peer is enough, unless it was away, too, or was cut off from the rest."""
GRACE_S: Final = 2.0
"""So long the others have, once one has told."""
HOLD_S: Final = 3.0
"""An agent's login is held for so long: mostly it is over by then."""
LOOK_S: Final = 0.05
AGAIN_S: Final = 1.0
ASKING_S: Final = 60.0
PER_QUESTION: Final = 250
"""So many records of the largest size fit into one answer."""
PAGE: Final = 1_000


class Returning:
    """The gate before agents' sessions, and what opens it.

    Args:
        mesh: the peers.
        store: whose inboxes are here.
        wait_s: after so many seconds without an answer agents are let in all the same.
    """

    def __init__(self, mesh: Mesh, store: Store, wait_s: float) -> None:
        self._mesh = mesh
        self._store = store
        self._wait_s = wait_s
        self._is_open = asyncio.Event()
        self._has_begun = asyncio.Event()
        self._is_open.set()
        self._owners: dict[int, list[AgentKey]] | None = None
        self._asked: dict[Did, float] = {}
        self._told: dict[Did, int] = {}
        self._began_at = self._told_at = 0.0

    # ------------------------------------------------------------ the gate

    @property
    def is_over(self) -> bool:
        """Whether agents are let in."""
        return self._is_open.is_set()

    async def admit(self) -> None:
        """Let an agent in; holds it for a moment.

        Raises:
            UnavailableError: ``draining``.
        """
        try:
            async with asyncio.timeout(HOLD_S):
                await self._is_open.wait()
        except TimeoutError:
            self.check()

    def check(self) -> None:
        """Whether an agent may be let in now.

        Raises:
            UnavailableError: ``draining``.
        """
        if not self.is_over:
            detail = "this node has just started and asks other relays where its agents live now"
            raise UnavailableError(ErrorCode.DRAINING, detail, retry_after=1)

    # ------------------------------------------------------------ its beginning

    async def begin(self) -> None:
        """The node starts: nobody is let in where there are inboxes, and peers to be asked.

        Raises:
            UnavailableError: the store.
        """
        self.renewed()
        if not self.is_over:
            await self._look()

    def renewed(self) -> None:
        """The store has gone back in time, perhaps, and what it held of records with it."""
        if not self._mesh.chosen():
            return
        self._owners, self._asked, self._told = None, {}, {}
        self._began_at = clock.monotonic()
        self._is_open.clear()
        self._has_begun.set()
        metrics.RETURNING.set(1)

    async def _look(self) -> None:
        """Whose inboxes are here, by buckets of the directory."""
        owners: dict[int, list[AgentKey]] = {}
        cursor, is_last = "", False
        while not is_last:
            page = await self._store.inboxes(cursor, PAGE)
            for owner in page.owners:
                owners.setdefault(place(owner.encode(), TOP_BITS), []).append(owner)
            cursor, is_last = page.cursor, not page.cursor
        self._owners = owners
        if owners:
            log.event(
                "returning", inboxes=sum(map(len, owners.values())), peers=len(self._mesh.chosen())
            )
        else:
            self._end()

    # ------------------------------------------------------------ asking

    async def __call__(self) -> None:
        """Wait for a beginning; then ask until somebody has told.

        Raises:
            UnavailableError: the store; to be repeated.
        """
        await self._has_begun.wait()
        if self._owners is None:
            await self._look()
        async with asyncio.TaskGroup() as tasks:
            asking: list[asyncio.Task[None]] = []
            # another beginning looks anew whose inboxes are here
            while self._has_begun.is_set() and self._owners is not None:
                for link in self._to_ask():
                    self._asked[link.peer] = clock.monotonic() + ASKING_S
                    asking.append(tasks.create_task(guarded("return", self._ask(link))))
                await asyncio.sleep(LOOK_S)
                self._decide()
            for task in asking:
                # who is slower than the others is compared with by the next pull
                task.cancel()

    def _to_ask(self) -> list[PeerLink]:
        """Who has not told yet; one that failed has a rest."""
        now = clock.monotonic()
        able = [
            link
            for link in self._mesh.able()
            if link.peer not in self._told and now >= self._asked.get(link.peer, 0.0)
        ]
        under_way = sum(at > now for at in self._asked.values())
        return able[: max(0, ENOUGH - len(self._told) - under_way)]

    async def _ask(self, link: PeerLink) -> None:
        began_at = self._began_at
        try:
            async with asyncio.timeout(ASKING_S):
                news = await self._compare(link)
        except TimeoutError:
            log.event(
                "pull_failed",
                peer=link.peer,
                code=ErrorCode.PEER_UNREACHABLE,
                detail="it took too long",
            )
        except RelayError as exc:
            log.event("pull_failed", peer=link.peer, code=exc.code, detail=exc.detail)
        else:
            if began_at == self._began_at:
                self._told_at = self._told_at if self._told else clock.monotonic()
                self._told[link.peer] = news
        finally:
            self._asked[link.peer] = clock.monotonic() + AGAIN_S

    async def _compare(self, link: PeerLink) -> int:
        """Hear from one peer what it knows of the agents here; gives how much was news.

        Raises:
            RelayError: the link, an answer that is wrong, or the store.
        """
        await self._mesh.following()
        index = self._mesh.following.index
        said = await link.ask(lambda ref: frames.Digest(ref, TOP_BITS))
        if not isinstance(said, frames.Digests) or said.bits != TOP_BITS:
            raise _wrong()
        for _ in index.prepare(TOP_BITS):
            await asyncio.sleep(0)
        news = 0
        concerned = [
            owner for at in differing(index, said) for owner in (self._owners or {}).get(at, ())
        ]
        for start in range(0, len(concerned), PER_QUESTION):
            some = tuple(concerned[start : start + PER_QUESTION])
            answer = await link.ask(partial(frames.Want, agents=some))
            news += await self._take(link.peer, answer, some)
        return news

    async def _take(self, peer: Did, answer: Answer, asked: Sequence[AgentKey]) -> int:
        if not isinstance(answer, frames.Gossip) or len(answer.records) > len(asked):
            raise _wrong()
        # most are known word for word: nothing is to be read in them
        held = {row.compact for row in await self._store.records(asked) if row is not None}
        others = tuple(record for record in answer.records if record not in held)
        if not others:
            return 0
        return await self._mesh.hearing.fetched(peer, replace(answer, records=others), asked)

    # ------------------------------------------------------------ its end

    def _decide(self) -> None:
        now = clock.monotonic()
        if self._told:
            enough = min(ENOUGH, max(1, len(self._mesh.chosen())))
            if len(self._told) >= enough or now >= self._told_at + GRACE_S:
                self._end()
        elif not self.is_over and now >= self._began_at + self._wait_s:
            log.event("let_in_unasked", seconds=now - self._began_at)
            metrics.UNASKED.set(1)
            self._let_in()

    def _end(self) -> None:
        if self._told:
            took_s = clock.monotonic() - self._began_at
            log.event(
                "returned", peers=len(self._told), news=sum(self._told.values()), seconds=took_s
            )
        metrics.UNASKED.set(0)
        self._owners = None
        self._has_begun.clear()
        self._let_in()

    def _let_in(self) -> None:
        metrics.RETURNING.set(0)
        self._is_open.set()


def _wrong() -> ProtocolError:
    return ProtocolError(ErrorCode.BAD_FRAME, "an answer to another question")
