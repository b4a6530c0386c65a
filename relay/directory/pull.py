"""Pulling: the directory is compared with one peer's, and what it holds more of is fetched (§5.10).

Rules of the file: ``directory/model/anti_entropy.py`` decides what is asked; a pull has a bound
in questions
and in time, and what ends one early is made up for by the next.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from itertools import count
from typing import Final

from relay import clock, log, metrics
from relay.directory.gossip import Hearing
from relay.directory.model.anti_entropy import (
    Index,
    Pull,
    Question,
)
from relay.directory.model.index import TOP_BITS
from relay.peering.ports import PeerLink
from relay.protocol import frames
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
    RelayError,
    UnavailableError,
)
from relay.protocol.ids import Did
from relay.protocol.peer_session import Answer

PULL_S: Final = 60.0
"""A slow peer holds up nobody for longer; what it did bring is kept."""
MOST_REFUSED: Final = 8

_Answered = tuple[str, Answer | RelayError]


@dataclass(slots=True)
class Puller:
    """Runs one pull at a time over a link."""

    index: Index
    hearing: Hearing

    async def __call__(self, link: PeerLink) -> int:
        """Compare and fetch; gives how many records were news. Never raises a named error."""
        began = clock.monotonic()
        run = _Run(link, self.index, self.hearing)
        try:
            async with asyncio.timeout(PULL_S):
                await run()
        except TimeoutError:
            why: RelayError = UnavailableError(ErrorCode.PEER_UNREACHABLE, "it took too long")
        except RelayError as exc:
            why = exc
        else:
            self._note("ok", link.peer, run, began)
            return run.news
        log.event("pull_failed", peer=link.peer, code=why.code, detail=why.detail)
        self._note(why.code, link.peer, run, began)
        return run.news

    @staticmethod
    def _note(outcome: str, peer: Did, run: _Run, began: float) -> None:
        metrics.PULLS.labels(outcome).inc()
        if run.pull.received:
            log.event(
                "pulled",
                peer=peer,
                records=run.pull.received,
                kept=run.news,
                seconds=clock.monotonic() - began,
            )


class _Run:
    """One pull: several questions under way, each answer taken in turn."""

    def __init__(self, link: PeerLink, index: Index, hearing: Hearing) -> None:
        names = count(1)
        first = int(clock.share() * 2**TOP_BITS)
        self.pull = Pull(index, lambda: str(next(names)), first=first)
        self.news = 0
        self._refusals = 0
        self._link = link
        self._hearing = hearing

    async def __call__(self) -> None:
        """Ask until there is nothing more to ask.

        Raises:
            RelayError: the link, the peer's refusal, or an answer that is wrong.
        """
        asked: set[asyncio.Task[_Answered]] = set()
        async with asyncio.TaskGroup() as tasks:
            try:
                asked |= {tasks.create_task(self._ask(one)) for one in self.pull.start()}
                while asked:
                    done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        more = await self._take(*task.result())
                        asked |= {tasks.create_task(self._ask(one)) for one in more}
            except RelayError as exc:
                failure: RelayError | None = exc
            else:
                failure = self.pull.error
            for task in asked:
                task.cancel()
        if failure is not None:
            raise failure

    async def _ask(self, question: Question) -> _Answered:
        """Ask under a name of the link's own; the answer is for the pull's question again."""
        try:
            answer = await self._link.ask(lambda ref: replace(question, ref=ref))
        except RelayError as exc:
            return question.ref, exc
        return question.ref, answer

    async def _take(self, ref: str, answer: Answer | RelayError) -> list[Question]:
        match answer:
            case RelayError():
                return self._refused(ref, answer)
            case frames.Gossip():
                agents = self.pull.agents_asked(ref)
                news = await self._hearing.fetched(self._link.peer, answer, agents)
                self.news += news
                return self.pull.receive(replace(answer, ref=ref), kept=news)
            case frames.Digests(bits=bits, items=[_, *_] as items):
                for _ in self.pull.index.prepare(bits, [item.bucket for item in items]):
                    await asyncio.sleep(0)
                return self.pull.receive(replace(answer, ref=ref))
            case frames.Digests() | frames.Have():
                return self.pull.receive(replace(answer, ref=ref))
            case _:
                raise ProtocolError(ErrorCode.BAD_FRAME, "an answer to another question")

    def _refused(self, ref: str, no: RelayError) -> list[Question]:
        """Go on without it, a few times."""
        self._refusals += 1
        if no.code is ErrorCode.PEER_UNREACHABLE or self._refusals > MOST_REFUSED:
            raise no
        return self.pull.skip(ref)
