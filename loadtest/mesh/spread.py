"""How long until a fresh record is everywhere: 20 relays on one machine.

Rules of the file: the clock of a record starts when its home has answered that it is kept; a relay
has it when it lies in that relay's store. What counts is pairs of a record and a relay.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from loadtest.mesh import crowd, relays
from loadtest.process import RelayFailedError, RelayProcess
from relay.protocol.endpoint_record import Home
from relay.protocol.ids import AgentKey
from relay.store.redis import RedisStore
from relay.tasks import side_by_side

RELAYS: Final = 20
RECORDS: Final = 30
PAUSE_S: Final = 0.3
LOOK_S: Final = 0.05
WARM_S: Final = 90.0
QUICK_S: Final = 3.0
LONGEST_S: Final = 60.0
FIRST_NUMBER: Final = 10_000_000
"""Of agents that are in no crowd."""


@dataclass(slots=True)
class Spread:
    """What was found.

    Args:
        relays: how many.
        took_s: of each pair that was seen, from the publication.
        missing: pairs that never were.
        ready_s: until the relays were there and knew each other.
    """

    relays: int
    took_s: list[float] = field(default_factory=list)
    missing: int = 0
    ready_s: float = 0.0

    def percentile(self, share: float) -> float:
        """Seconds in which so large a share of all pairs was there; infinite if it never was."""
        times = sorted(self.took_s) + [math.inf] * self.missing
        return times[max(0, math.ceil(share * len(times)) - 1)]


async def measure(directory: Path, count: int = RELAYS) -> Spread:
    """Start ``count`` relays, publish records at all of them in turn, look where they arrive."""
    found = Spread(count)
    began = time.perf_counter()
    where = relays.places(count, directory)
    async with relays.peered(where) as running, contextlib.AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(relays.store_of(relay, place.directory))
            for relay, place in zip(running, where, strict=True)
        ]
        await _warm(running[0], stores)
        found.ready_s = time.perf_counter() - began
        await _Watch(stores, found).follow(running)
    return found


async def _warm(relay: RelayProcess, stores: Sequence[RedisStore]) -> None:
    """Return when all relays know each other: when a fresh record is quickly everywhere."""
    until = time.perf_counter() + WARM_S
    number = FIRST_NUMBER + RECORDS
    while time.perf_counter() < until:
        number += 1
        probe = await _publish(relay, number)
        with contextlib.suppress(RelayFailedError):
            await relays.until(partial(_is_everywhere, probe, stores), QUICK_S, "it is everywhere")
            return
    raise RelayFailedError(f"the relays did not find each other within {WARM_S:.0f} s")


async def _is_everywhere(agent: AgentKey, stores: Sequence[RedisStore]) -> bool:
    held = [await store.records.get_many([agent]) for store in stores]
    return all(row is not None for [row] in held)


@dataclass(slots=True)
class _Watch:
    """Which relay still lacks which record."""

    stores: Sequence[RedisStore]
    found: Spread
    born: dict[AgentKey, float] = field(default_factory=dict)
    missing: list[set[AgentKey]] = field(default_factory=list)

    async def follow(self, running: Sequence[RelayProcess]) -> None:
        """Publish one after the other, look until all are everywhere or time is up."""
        self.missing = [set() for _ in self.stores]
        until = time.perf_counter() + RECORDS * PAUSE_S + LONGEST_S
        async with asyncio.TaskGroup() as tasks:
            publishing = tasks.create_task(self._publish(running))
            while time.perf_counter() < until:
                if publishing.done() and not any(self.missing):
                    break
                await side_by_side(map(self._look, self.stores, self.missing))
                await asyncio.sleep(LOOK_S)
        self.found.missing = sum(map(len, self.missing))

    async def _publish(self, running: Sequence[RelayProcess]) -> None:
        for number in range(RECORDS):
            agent = await _publish(running[number % len(running)], FIRST_NUMBER + 1 + number)
            self.born[agent] = time.perf_counter()
            for lacking in self.missing:
                lacking.add(agent)
            await asyncio.sleep(PAUSE_S)

    async def _look(self, store: RedisStore, lacking: set[AgentKey]) -> None:
        wanted = sorted(lacking)
        if not wanted:
            return
        rows = await store.records.get_many(wanted)
        now = time.perf_counter()
        for agent, row in zip(wanted, rows, strict=True):
            if row is not None:
                lacking.discard(agent)
                self.found.took_s.append(now - self.born[agent])


async def _publish(relay: RelayProcess, number: int) -> AgentKey:
    key = crowd.key_of(number)
    compact = crowd.sign(number, now=time.time(), home=Home(relay.did, relay.url))
    await relays.publish(relay, key.did, compact)
    return key.agent_key
