"""Pulling: the directory is compared with one peer's, and what it holds more of is fetched (§5.10).

Rules of the file: ``core/antientropy.py`` decides what is asked; a pull has a bound in questions
and in time, and what ends one early is made up for by the next.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from itertools import count
from typing import Final

from relay import clock, log, metrics
from relay.core.antientropy import Index, Pull, Question
from relay.core.errors import ErrorCode, ProtocolError, RelayError, UnavailableError
from relay.core.frames import Digests, Gossip, Have
from relay.core.ids import Did
from relay.core.peering import Answer
from relay.ports_mesh import PeerLink
from relay.service.hearing import Hearing

PULL_S: Final = 60.0
"""A slow peer holds up nobody for longer; what it did bring is kept."""
RETRIES: Final = 5

Told = Digests | Have | Gossip


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
        log.pull_failed(link.peer, why.code, why.detail)
        self._note(why.code, link.peer, run, began)
        return run.news

    @staticmethod
    def _note(outcome: str, peer: Did, run: _Run, began: float) -> None:
        metrics.PULLS.labels(outcome).inc()
        if run.pull.received:
            log.pulled(peer, run.pull.received, run.news, clock.monotonic() - began)


class _Run:
    """One pull: several questions under way, each answer taken in turn."""

    def __init__(self, link: PeerLink, index: Index, hearing: Hearing) -> None:
        names = count(1)
        self.pull = Pull(index, lambda: str(next(names)))
        self.news = 0
        self._link = link
        self._hearing = hearing

    async def __call__(self) -> None:
        """Ask until there is nothing more to ask.

        Raises:
            RelayError: the link, the peer's refusal, or an answer that is wrong.
        """
        asked: set[asyncio.Task[Told | RelayError]] = set()
        async with asyncio.TaskGroup() as tasks:
            try:
                asked |= {tasks.create_task(self._ask(one)) for one in self.pull.start()}
                while asked:
                    done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        more = await self._take(task.result())
                        asked |= {tasks.create_task(self._ask(one)) for one in more}
            except RelayError as exc:
                failure: RelayError | None = exc
            else:
                failure = self.pull.error
            for task in asked:
                task.cancel()
        if failure is not None:
            raise failure

    async def _ask(self, question: Question) -> Told | RelayError:
        try:
            answer = await self._link.ask(lambda ref: replace(question, ref=ref))
        except RelayError as exc:
            return exc
        return _named(answer, question.ref)

    async def _take(self, told: Told | RelayError) -> list[Question]:
        if isinstance(told, RelayError):
            raise told
        if isinstance(told, Gossip):
            agents = self.pull.agents_asked(told.ref)
            self.news += await self._hearing.fetched(self._link.peer, told, agents)
        return self.pull.receive(told)


def _named(answer: Answer, ref: str) -> Told | RelayError:
    """The answer under the name of the pull's question: the link has names of its own."""
    if isinstance(answer, Digests | Have | Gossip):
        return replace(answer, ref=ref)
    return ProtocolError(ErrorCode.BAD_FRAME, "an answer to another question")
