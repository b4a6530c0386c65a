"""The three phases. Each gives figures; what went wrong is in the ledger.

Rules of the file: what is measured is bracketed by two :func:`take` calls, with the same load
before the first and after the second; signing ahead, the ledger and the signature checks that the
ratio divides by happen between load slices, so that a drift of the machine hits both.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from loadtest import probes
from loadtest.agents import Agent
from loadtest.fleet import PAIRS, Fleet, Latencies
from loadtest.process import RelayProcess
from loadtest.schedule import Schedule, ticking
from relay.protocol.did import SigningKey
from relay.tasks import side_by_side

IN_FLIGHT: Final = 32
SLICES: Final = 6
WARM_UP_S: Final = 0.5
CALIBRATION_PER_SENDER: Final = 1000
CALIBRATION_S: Final = 2.0
VERIFY_SLICE_S: Final = 0.25
UNDER_LOAD_EVERY_S: Final = 0.1
UNDER_LOAD_BURST: Final = 8
DIALLED_AT_ONCE: Final = 32
FIRST_IDLE: Final = 32
SETTLE_S: Final = 1.0


class RestlessError(RuntimeError):
    """Something that was sent never came to its end: the ledger says what."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters at one moment."""

    at: float
    delivered: int
    node_s: float
    store_s: float
    children_s: float
    driver_s: float
    machine: probes.MachineTime
    far_s: float = 0.0


def take(fleet: Fleet) -> Reading:
    """Read all counters."""
    store = fleet.relay.store_pid
    return Reading(
        at=time.perf_counter(),
        delivered=fleet.delivered,
        node_s=probes.cpu_s(fleet.relay.pid),
        store_s=probes.cpu_s(store),
        children_s=probes.children_cpu_s(store),
        driver_s=time.process_time(),
        machine=probes.machine_time(),
        far_s=probes.cpu_s(fleet.far.pid) if fleet.far is not None else 0.0,
    )


@dataclass(frozen=True, slots=True)
class Slice:
    """What one measured interval gave; CPU in microseconds an envelope.

    Args:
        seconds: how long it was.
        envelopes_per_s: handed to recipients.
        node_cpu_us: of the relay node.
        store_cpu_us: of its embedded store.
        store_children_cpu_us: of what the store forks to rewrite its log, once it has ended.
        driver_cpu_us: of this driver.
        other_cores: cores kept busy by other programs, the hypervisor's steal included.
        far_cpu_us: of the node where the recipients live, if that is another relay.
    """

    seconds: float
    envelopes_per_s: float
    node_cpu_us: float
    store_cpu_us: float
    store_children_cpu_us: float
    driver_cpu_us: float
    other_cores: float
    far_cpu_us: float = 0.0

    @staticmethod
    def between(before: Reading, after: Reading) -> Slice:
        """The interval between two readings."""
        seconds, count = after.at - before.at, max(after.delivered - before.delivered, 1)
        node, store = after.node_s - before.node_s, after.store_s - before.store_s
        driver, children = after.driver_s - before.driver_s, after.children_s - before.children_s
        machine = after.machine.busy - before.machine.busy
        stolen = after.machine.stolen - before.machine.stolen
        return Slice(
            seconds=seconds,
            envelopes_per_s=count / seconds,
            node_cpu_us=node / count * 1e6,
            store_cpu_us=store / count * 1e6,
            store_children_cpu_us=children / count * 1e6,
            driver_cpu_us=driver / count * 1e6,
            other_cores=max(0.0, machine - node - store - driver + stolen) / seconds,
            far_cpu_us=(after.far_s - before.far_s) / count * 1e6,
        )


def middle(slices: list[Slice], figure: str) -> float:
    """Median of one figure."""
    values: list[float] = [getattr(one, figure) for one in slices]
    return statistics.median(values)


# ---------------------------------------------------------------- phase 1


@dataclass(slots=True)
class Closed:
    """Phase 1.

    Args:
        slices: the measured intervals.
        verify_us: one signature check, in each slice between the load.
        verify_under_load_us: the same while each slice ran, a few checks at a time: what the
            machine's neighbours do to the node, they do to these.
        commit_size: envelopes a commit.
    """

    slices: list[Slice] = field(default_factory=list)
    verify_us: list[float] = field(default_factory=list)
    verify_under_load_us: list[float] = field(default_factory=list)
    commit_size: float = 0.0


async def closed_loop(fleet: Fleet, seconds: float) -> Closed:
    """As fast as 32 envelopes in flight a sender go, in slices."""
    found = Closed()
    length = seconds / SLICES
    fastest = await _calibrate(fleet)
    verifier = probes.Verifier(fleet.signed_bytes())
    before = _commits(fleet)
    while len(found.slices) < SLICES:
        await fleet.sign(int(fastest * 1.25 * (length + WARM_UP_S) / PAIRS) + IN_FLIGHT)
        found.verify_us.append(verifier.slice_us(VERIFY_SLICE_S))
        checks = [verifier.burst_us(UNDER_LOAD_BURST)]
        sampling = asyncio.create_task(_check_now_and_then(verifier, checks))
        measured = await _slice(fleet, length)
        sampling.cancel()
        if measured.seconds < length / 2:
            fastest *= 1.5  # the stock ran out
            continue
        found.slices.append(measured)
        found.verify_under_load_us.append(statistics.median(checks))
        fastest = max(fastest, measured.envelopes_per_s)
    found.verify_us.append(verifier.slice_us(VERIFY_SLICE_S))
    found.commit_size = _commit_size(before, _commits(fleet))
    return found


async def _calibrate(fleet: Fleet) -> float:
    """Warm everything up; gives about how many envelopes a second it can do."""
    # the second stock stays for the first slice: it is not to run out here
    await fleet.sign(2 * CALIBRATION_PER_SENDER)
    began, was = time.perf_counter(), fleet.delivered
    _let_go(fleet)
    wanted = was + CALIBRATION_PER_SENDER * PAIRS
    await fleet.run_until(lambda: fleet.delivered >= wanted, began + CALIBRATION_S)
    speed = (fleet.delivered - was) / (time.perf_counter() - began)
    await _hold(fleet)
    return speed


async def _slice(fleet: Fleet, length: float) -> Slice:
    def is_over() -> bool:
        return any(sender.is_out_of_stock for sender in fleet.senders)

    _let_go(fleet)
    await fleet.run_until(is_over, time.perf_counter() + WARM_UP_S)
    before = take(fleet)
    await fleet.run_until(is_over, before.at + length)
    after = take(fleet)
    await _hold(fleet)
    return Slice.between(before, after)


def _let_go(fleet: Fleet) -> None:
    for sender in fleet.senders:
        sender.depth, sender.is_out_of_stock = IN_FLIGHT, False
        sender.fill()


async def _hold(fleet: Fleet) -> None:
    for sender in fleet.senders:
        sender.depth = 0
    await _rest(fleet)


async def _check_now_and_then(verifier: probes.Verifier, found: list[float]) -> None:
    while True:
        await asyncio.sleep(UNDER_LOAD_EVERY_S)
        found.append(verifier.burst_us(UNDER_LOAD_BURST))


async def _rest(
    fleet: Fleet, latencies: Latencies | None = None, due: Callable[[int], float] | None = None
) -> None:
    rests = await fleet.come_to_rest()
    fleet.settle(latencies, due)
    if not rests:
        raise RestlessError


def _commits(fleet: Fleet) -> tuple[float, float]:
    metric = fleet.relay.metric
    return metric("relay_envelopes_accepted_total"), metric("relay_commits_total")


def _commit_size(before: tuple[float, float], after: tuple[float, float]) -> float:
    return (after[0] - before[0]) / max(after[1] - before[1], 1)


# ---------------------------------------------------------------- phase 2


@dataclass(frozen=True, slots=True)
class Open:
    """Phase 2, at one rate.

    Args:
        rate: envelopes a second, as planned.
        slice: what it cost.
        latencies: from the planned time of sending.
        commit_size: envelopes a commit.
    """

    rate: float
    slice: Slice
    latencies: Latencies
    commit_size: float


async def open_loop(fleet: Fleet, rate: float, seconds: float) -> Open:
    """Send at a constant rate, whether or not the relay keeps up."""
    warm_up = min(1.0, seconds / 4)
    count = int(rate * (seconds + warm_up)) // PAIRS * PAIRS
    await fleet.sign(count // PAIRS)
    commits = _commits(fleet)
    plan = Schedule(time.perf_counter() + 0.05, rate, count)
    sent = 0

    def send_due() -> None:
        nonlocal sent
        wanted = plan.due_by(time.perf_counter())
        while sent < wanted:
            fleet.senders[sent % PAIRS].send(1)
            sent += 1

    with ticking(asyncio.get_running_loop(), plan.tick_s, send_due):
        await fleet.run_until(bool, plan.start + warm_up)
        before = take(fleet)
        await fleet.run_until(bool, plan.end)
        after = take(fleet)
        await fleet.run_until(lambda: sent == count, plan.end + 60)
    latencies = Latencies(counted_from=plan.start + warm_up)
    await _rest(fleet, latencies, plan.due)
    size = _commit_size(commits, _commits(fleet))
    return Open(rate, Slice.between(before, after), latencies, size)


# ---------------------------------------------------------------- phase 3


@dataclass(frozen=True, slots=True)
class Idle:
    """Phase 3; kilobytes of resident memory a socket."""

    sockets: int
    node_rss_kb: float
    store_rss_kb: float
    logins_per_s: float


async def idle_sockets(relay: RelayProcess, count: int) -> Idle:
    """Log agents in that then say nothing; a few before, so that what is made once is not counted.

    ``relay`` should be fresh: memory that an earlier load has freed would be used again.
    """
    agents = await _log_in(relay, FIRST_IDLE)
    await asyncio.sleep(SETTLE_S)
    pids = (relay.pid, relay.store_pid)
    before = [probes.rss_kb(pid) for pid in pids]
    began = time.perf_counter()
    agents += await _log_in(relay, count)
    took = time.perf_counter() - began
    await asyncio.sleep(SETTLE_S)
    node, store = (
        (probes.rss_kb(pid) - was) / count for pid, was in zip(pids, before, strict=True)
    )
    failed = [agent.failure for agent in agents if agent.failure is not None]
    if failed:
        raise RestlessError(failed[0])
    await side_by_side(agent.close() for agent in agents)
    return Idle(count, node, store, count / took)


async def _log_in(relay: RelayProcess, count: int) -> list[Agent]:
    room = asyncio.Semaphore(DIALLED_AT_ONCE)

    async def one() -> Agent:
        async with room:
            agent = Agent(SigningKey(os.urandom(32)), relay.url)
            await agent.open()
            return agent

    return await side_by_side(one() for _ in range(count))
