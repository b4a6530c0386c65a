"""Compare the directory with those of peers, and fetch what is newer there (PROTOCOL.md §5.10).

``directory/model/anti_entropy.py`` decides what to ask. A pull is bounded in questions and in time;
the next pull makes up for one that ended early.

Entry points: ``relay.node`` repeats :meth:`PullLoop.pull`; :class:`PullRunner` is one pull.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from itertools import count
from typing import Final

from relay import clock, log, metrics
from relay.directory.gossip import RecordGossip
from relay.directory.model.anti_entropy import Pull
from relay.directory.model.index import TOP_BITS, bad_frame
from relay.peering.link import Link
from relay.protocol import frames
from relay.protocol.client_session import PeerAnswer
from relay.protocol.errors import ErrorCode, RelayError, unreachable
from relay.tasks import guarded

PULL_INTERVAL_S: Final = 30.0
PULL_SPREAD_S: Final = 10.0
MAX_PULL_S: Final = 60.0
"""A slow peer delays nobody for longer; the records that it did send stay."""
MAX_REPEAT_S: Final = 60.0
"""A peer that always has more gives way to the others after this time."""
MAX_REFUSED: Final = 8

_Answered = tuple[str, PeerAnswer | RelayError]


@dataclass(slots=True)
class PullLoop:
    """Pulls from a random peer every half minute, and from each new link at once."""

    gossip: RecordGossip

    async def pull(self) -> None:
        """Wait for the interval or a new link, then pull for as long as that brings new records.

        Peers whose link comes up meanwhile are asked at once: a slow peer delays no other.
        """
        exchange = self.gossip.exchange
        pause_s = PULL_INTERVAL_S + (2 * clock.random_fraction() - 1) * PULL_SPREAD_S
        try:
            async with asyncio.timeout(0 if exchange.new_links else pause_s):
                await exchange.on_new_link.wait()
        except TimeoutError:
            pass
        await self.gossip.changes.read()
        async with asyncio.TaskGroup() as tasks:
            peers = self._reconnected() or clock.sample(self.gossip.trusted_links(), 1)
            running: set[asyncio.Task[None]] = set()
            while peers or running:
                parts = (guarded("pull", self._pull_from(link)) for link in peers)
                running |= {tasks.create_task(part) for part in parts}
                new_link = tasks.create_task(exchange.on_new_link.wait())
                await asyncio.wait({*running, new_link}, return_when=asyncio.FIRST_COMPLETED)
                new_link.cancel()
                running = {task for task in running if not task.done()}
                peers = self._reconnected()

    async def _pull_from(self, link: Link) -> None:
        began = clock.monotonic()
        while (
            await PullRunner(link, self.gossip).run() and clock.monotonic() - began < MAX_REPEAT_S
        ):
            await self.gossip.changes.read()

    def _reconnected(self) -> list[Link]:
        """Return the peers that were not asked since their link came up."""
        exchange = self.gossip.exchange
        exchange.on_new_link.clear()
        new, exchange.new_links = exchange.new_links, {}
        return [link for link in self.gossip.trusted_links() if link.peer in new]


class PullRunner:
    """One pull: several questions under way, their answers merged one by one."""

    def __init__(self, link: Link, gossip: RecordGossip) -> None:
        refs = count(1)
        first = int(clock.random_fraction() * 2**TOP_BITS)
        self._pull = Pull(gossip.changes.index, lambda: str(next(refs)), first=first)
        self._new = 0
        self._refusals = 0
        self._link = link
        self._gossip = gossip

    async def run(self) -> int:
        """Compare and fetch; return the number of new records. Never raise a named error."""
        began = clock.monotonic()
        try:
            async with asyncio.timeout(MAX_PULL_S):
                await self._run()
        except TimeoutError:
            exc: RelayError = unreachable("it took too long")
        except RelayError as caught:
            exc = caught
        else:
            self._count("ok", began)
            return self._new
        log.event("pull_failed", peer=self._link.peer, code=exc.code, detail=exc.detail)
        self._count(exc.code, began)
        return self._new

    def _count(self, outcome: str, began: float) -> None:
        metrics.PULLS.labels(outcome).inc()
        if received := self._pull.received:
            log.event(
                "pulled", peer=self._link.peer, records=received, kept=self._new,
                seconds=clock.monotonic() - began,
            )  # fmt: skip

    async def _run(self) -> None:
        running: set[asyncio.Task[_Answered]] = set()
        async with asyncio.TaskGroup() as tasks:
            try:
                running |= {tasks.create_task(self._ask(one)) for one in self._pull.start()}
                while running:
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        questions = await self._on_answer(*task.result())
                        running |= {tasks.create_task(self._ask(one)) for one in questions}
            except RelayError as exc:
                failure: RelayError | None = exc
            else:
                failure = self._pull.error
            for task in running:
                task.cancel()
        if failure is not None:
            raise failure

    async def _ask(self, question: frames.Digest | frames.Want) -> _Answered:
        """Ask with a ref of the link, and return the pull's own ref with the answer."""
        try:
            answer = await self._link.ask(lambda ref: replace(question, ref=ref))
        except RelayError as exc:
            return question.ref, exc
        return question.ref, answer

    async def _on_answer(
        self, ref: str, answer: PeerAnswer | RelayError
    ) -> list[frames.Digest | frames.Want]:
        match answer:
            case RelayError():
                return self._on_refusal(ref, answer)
            case frames.Gossip():
                agents = self._pull.agents_asked(ref)
                new = await self._gossip.merge_fetched(self._link.peer, answer, agents)
                self._new += new
                return self._pull.receive(replace(answer, ref=ref), gained=new)
            case frames.Digests(bits=bits, items=[_, *_] as items):
                for _ in self._pull.index.prepare(bits, [item.bucket for item in items]):
                    await asyncio.sleep(0)
                return self._pull.receive(replace(answer, ref=ref))
            case frames.Digests() | frames.Have():
                return self._pull.receive(replace(answer, ref=ref))
            case _:
                raise bad_frame("an answer to another question")

    def _on_refusal(self, ref: str, refusal: RelayError) -> list[frames.Digest | frames.Want]:
        """Go on without the answer, a few times."""
        self._refusals += 1
        if refusal.code is ErrorCode.PEER_UNREACHABLE or self._refusals > MAX_REFUSED:
            raise refusal
        return self._pull.skip(ref)
