"""Two relays hold a large directory, lose each other, learn different things, and meet again.

Rules of the file: records are put into the stores as a node would put them; what the two relays
tell each other afterwards is verified by them, record by record. Equal means: each holds the same
order for each agent, looked up in both stores.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from loadtest import probes
from loadtest.mesh import crowd, relays
from loadtest.mesh.relays import Place
from loadtest.process import RelayProcess
from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.ids import AgentKey
from relay.store.redis import RedisStore
from relay.tasks import side_by_side
from tests.support.fault_proxy import FaultProxy
from tests.support.link_faults import Faults

RECORDS: Final = 100_000
CHANGED: Final = 10_000
"""By each side while they are apart."""
APART_S: Final = 20.0
AT_ONCE: Final = 256
PAGE: Final = 2_000
SETTLE_S: Final = 3.0
STILL_KB: Final = 256
LONGEST_S: Final = 180.0


@dataclass(slots=True)
class Heal:
    """What was found.

    Args:
        records: in each directory.
        changed: on each side, while they were apart.
        apart_s: how long they were.
        heal_s: from the end of the partition until both were equal.
        node_mb: resident memory of a node that holds them; ``empty_mb`` before.
        store_mb: the same of its store.
        node_cpu_s: of both nodes, over ``heal_s``.
    """

    records: int
    changed: int
    apart_s: float = 0.0
    heal_s: float | None = None
    empty_mb: float = 0.0
    empty_store_mb: float = 0.0
    node_mb: float = 0.0
    store_mb: float = 0.0
    node_cpu_s: list[float] = field(default_factory=list)


@dataclass(slots=True)
class View:
    """The orders in one store, kept up to date by its changes."""

    store: RedisStore
    orders: dict[AgentKey, RecordVersion] = field(default_factory=dict)
    _cursor: str = ""

    async def update(self) -> None:
        """Read what has changed."""
        while True:
            page = await self.store.records.changes(self._cursor, PAGE)
            if page.restarted:
                self.orders.clear()
            self.orders.update(page.items)
            self._cursor = page.cursor
            if not page.more:
                return


async def measure(directory: Path, count: int = RECORDS, changed: int = CHANGED) -> Heal:
    """Fill two relays, part them, change both, heal."""
    found = Heal(count, changed)
    compacts = await asyncio.to_thread(crowd.crowd, count)
    newer = await asyncio.to_thread(crowd.signed, range(2 * changed), now=time.time() + 1)
    async with _apart(directory) as (running, stores, faults):
        pids = [one.pid for one in running]
        found.empty_mb, found.empty_store_mb = _memory(running[0])
        for store in stores:
            await _put(store, compacts)
        await _rest(pids)
        found.node_mb, found.store_mb = _memory(running[0])
        faults.part("a", "b")
        # whoever dialled before the names were known, too
        faults.reset("a")
        faults.reset("b")
        began = time.perf_counter()
        await _put(stores[0], newer[:changed])
        await _put(stores[1], newer[changed:])
        await asyncio.sleep(max(0.0, APART_S - (time.perf_counter() - began)))
        found.apart_s = time.perf_counter() - began
        before = [probes.cpu_s(pid) for pid in pids]
        faults.heal()
        found.heal_s = await _until_equal(stores)
        found.node_cpu_s = [probes.cpu_s(pid) - was for pid, was in zip(pids, before, strict=True)]
    return found


@contextlib.asynccontextmanager
async def _apart(
    directory: Path,
) -> AsyncIterator[tuple[list[RelayProcess], list[RedisStore], Faults]]:
    """Two relays, each behind a proxy that can part them."""
    faults = Faults(Random(0))  # noqa: S311  nothing is drawn: a cut is a cut
    pids: dict[str, int] = {}
    async with contextlib.AsyncExitStack() as stack:
        where: list[Place] = []
        for name, place in zip("ab", relays.places(2, directory), strict=True):
            proxy = FaultProxy(name, place.port, faults, lambda: pids)
            url = (await stack.enter_async_context(proxy.running())).url
            where.append(dataclasses.replace(place, url=url))
        running = await stack.enter_async_context(relays.peered(where))
        pids.update(zip("ab", (one.pid for one in running), strict=True))
        stores = [
            await stack.enter_async_context(relays.store_of(relay, place.directory))
            for relay, place in zip(running, where, strict=True)
        ]
        yield running, stores, faults


async def _put(store: RedisStore, compacts: Sequence[str]) -> None:
    rows = list(crowd.rows(compacts))
    for at in range(0, len(rows), AT_ONCE):
        await store.records.merge(rows[at : at + AT_ONCE])


async def _rest(pids: Sequence[int]) -> None:
    """Wait until the nodes have read all of it: their memory does not grow any more."""
    until, seen = time.perf_counter() + LONGEST_S, [0 for _ in pids]
    while time.perf_counter() < until:
        now = [probes.rss_kb(pid) for pid in pids]
        if all(abs(one - was) < STILL_KB for one, was in zip(now, seen, strict=True)):
            return
        seen = now
        await asyncio.sleep(SETTLE_S)


def _memory(relay: RelayProcess) -> tuple[float, float]:
    return probes.rss_kb(relay.pid) / 1024, probes.rss_kb(relay.store_pid) / 1024


async def _until_equal(stores: Sequence[RedisStore]) -> float:
    one, other = (View(store) for store in stores)

    async def are_equal() -> bool:
        await side_by_side([one.update(), other.update()])
        return one.orders == other.orders

    return await relays.until(are_equal, LONGEST_S, "both directories are equal")
