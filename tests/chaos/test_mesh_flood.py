"""A flood of forged or stale records: none is stored, and honest agents hardly notice it.

One run measures latency before and during the flood, with the same load. The flood comes from
another process, as fast as the relay reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from loadtest.mesh import crowd
from relay.client import Agent
from relay.protocol.did import SigningKey
from relay.protocol.ids import AgentKey
from relay.store.redis import RedisStore
from tests.chaos.restarting_relay import (
    REPOSITORY,
    SERVE,
)
from tests.support.mesh import MeshRelay, mesh
from tests.support.nodes import new_key
from tests.support.patience import wait_until

T = TypeVar("T")
RATE = 60.0
QUIET_S = 2.0
TURNS = 4
FACTOR = 2.0
STALE = 500
PAGE = 5_000


@dataclass(frozen=True, slots=True)
class Flow:
    """So many records at so many a second; 0: as fast as the relay reads."""

    count: int
    rate: float


QUICK = Flow(20_000, 2_500.0)
LONG = Flow(1_000_000, 0.0)


@dataclass(slots=True)
class Honest:
    """Alice writes to Bob at a constant rate; how long until he has it.

    Args:
        relay: where both live.
    """

    relay: MeshRelay
    alice: SigningKey = field(default_factory=new_key)
    bob: SigningKey = field(default_factory=new_key)
    late_s: list[float] = field(default_factory=list)

    async def run(self) -> None:
        """Until cancelled."""
        async with (
            Agent.open(self.bob, self.relay.url) as bob,
            Agent.open(self.alice, self.relay.url) as alice,
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(self._receive(bob))
            began, count = time.monotonic(), 0
            while True:
                due = began + count / RATE
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                tasks.create_task(alice.send(self.bob.did, repr(due), seal=False))
                count += 1

    async def _receive(self, bob: Agent) -> None:
        async for message in bob.inbox():
            self.late_s.append(time.monotonic() - float(message.text()))
            await message.ack()

    async def during(self, work: Awaitable[T]) -> tuple[T, list[float]]:
        """Return the result of some work, and the delays of what arrived meanwhile."""
        self.late_s.clear()
        done = await work
        return done, list(self.late_s)


async def kept(store: RedisStore) -> dict[AgentKey, tuple[int, int, bytes]]:
    """The orders of all records in a store."""
    found: dict[AgentKey, tuple[int, int, bytes]] = {}
    cursor, more = "", True
    while more:
        page = await store.records.changes(cursor, PAGE)
        found.update(page.items)
        cursor, more = page.cursor, page.more
    return found


@contextlib.asynccontextmanager
async def liar(
    relay: MeshRelay, kind: str, flow: Flow, stale: Path
) -> AsyncIterator[Callable[[], Awaitable[dict[str, int]]]]:
    """A liar that is ready; lets it push its share, and gives what it says of all it has done."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.chaos.lying_relay"),
        *(relay.url, relay.did, kind, str(flow.rate), str(stale)),
        cwd=REPOSITORY,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout is not None
    assert process.stdin is not None

    async def lie() -> dict[str, int]:
        process.stdin.write(b"%d\n" % (flow.count // TURNS))
        counts: dict[str, int] = json.loads(await process.stdout.readline())
        return counts

    try:
        assert await process.stdout.readline() == b"ready\n"
        yield lie
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a flood."""

    counts: dict[str, int]
    stored: int
    before_s: float
    while_s: float

    def __str__(self) -> str:
        return (
            f"{self.counts}; {self.stored} stored; "
            f"honest p99 {self.before_s * 1000:.0f} ms before, "
            f"{self.while_s * 1000:.0f} ms while"
        )


def p99(late_s: Sequence[float]) -> float:
    assert len(late_s) >= 200, f"only {len(late_s)} were measured"
    return sorted(late_s)[int(len(late_s) * 0.99)]


async def flooded(
    kind: str, flow: Flow, directory: Path, arguments: Sequence[str] = SERVE
) -> Found:
    """Let honest agents write, first in peace, then while a liar pushes."""
    stale = directory / "stale"
    old, newer = (crowd.signed(range(STALE), now=time.time() - ago) for ago in (60, 0))
    stale.write_text("\n".join(old))
    async with mesh(1, directory, federation="open", arguments={0: arguments}) as made:
        await made.start()
        async with (
            liar(made[0], kind, flow, stale) as lie,
            made[0].store() as store,
            asyncio.TaskGroup() as tasks,
        ):
            await store.records.merge(list(crowd.rows(newer)))
            honest = Honest(made[0])
            working = tasks.create_task(honest.run())
            await wait_until(lambda: len(honest.late_s) >= RATE, 20, "honest agents write")
            known = await kept(store)
            counts: dict[str, int] = {}
            quiet, noisy = [], []
            # in turns: whatever else the machine does, it does to both
            for _ in range(TURNS):
                quiet += (await honest.during(asyncio.sleep(QUIET_S)))[1]
                counts, late = await honest.during(lie())
                noisy += late
            after = await kept(store)
            working.cancel()
    stored = sum(known.get(agent) != order for agent, order in after.items())
    found = Found(counts, stored, p99(quiet), p99(noisy))
    print(found)
    return found


@pytest.mark.alone
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["forged", "stale"])
async def test_of_20_000_lies_none_is_kept_and_honest_agents_go_on(
    tmp_path: Path, kind: str
) -> None:
    """The long form measures how late their mail is: seconds say little about latency."""
    found = await flooded(kind, QUICK, tmp_path)
    assert found.counts["pushed"] == 20_000
    assert found.stored == 0


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("kind", ["forged", "stale"])
async def test_nor_of_a_million(tmp_path: Path, kind: str) -> None:
    found = await flooded(kind, LONG, tmp_path)
    assert found.counts["pushed"] == 1_000_000
    assert found.stored == 0
    assert found.while_s <= FACTOR * found.before_s, str(found)


@pytest.mark.breaks("mesh under faults", "no-signatures")
@pytest.mark.timeout(120)
async def test_a_relay_that_does_not_look_at_signatures_is_found_to_keep_lies(
    tmp_path: Path,
) -> None:
    """Negative control."""
    mutant = ("-m", "tests.chaos.mesh_mutants", "no-signatures")
    found = await flooded("forged", QUICK, tmp_path, mutant)
    assert found.stored > 0


@pytest.mark.breaks("mesh under faults", "any-order")
@pytest.mark.timeout(120)
async def test_a_relay_that_takes_any_order_is_found_to_go_back(tmp_path: Path) -> None:
    """Negative control."""
    mutant = ("-m", "tests.chaos.mesh_mutants", "any-order")
    found = await flooded("stale", QUICK, tmp_path, mutant)
    assert found.stored > 0
