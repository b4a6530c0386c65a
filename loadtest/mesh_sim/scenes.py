"""Run the simulation: four troubles in meshes of four sizes, and the result of each run."""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from loadtest.mesh_sim.liars import every_fifth
from loadtest.mesh_sim.light import light
from loadtest.mesh_sim.world import World

MAX_S: Final = 4 * 3600.0
WARM_S: Final = 2.0
LOSS: Final = 0.3
SETTLED: Final = 0.99


@dataclass(frozen=True, slots=True)
class Mesh:
    """The size of a mesh.

    Args:
        relays: how many.
        records: of so many agents, evenly spread over the relays.
    """

    relays: int
    records: int


FULL: Final = (
    Mesh(5, 100_000), Mesh(20, 100_000), Mesh(20, 2_000), Mesh(100, 2_000), Mesh(1_000, 2_000),
)  # fmt: skip
QUICK: Final = (Mesh(5, 2_000), Mesh(20, 2_000), Mesh(60, 300))


@dataclass(slots=True)
class Found:
    """The result of one run.

    Args:
        trouble: which.
        relays: in the mesh.
        records: in the directory.
        seconds: until all honest relays held the newest record of every agent; None = never.
        settled_s: until 99 % of all that they should hold was held.
        rounds: pulls that an honest relay began until then, on average.
        mb_sent: what an honest relay sent until then, on average, 10^6 bytes.
        bytes_per_record: what honest relays sent for each record that one of them learnt.
        frames: sent by all.
        lost: of those.
        dropped: news that did not fit in a queue, over all relays.
        curve: (seconds, share held).
        wall_s: how long the simulation took.
    """

    trouble: str
    relays: int
    records: int
    seconds: float | None = None
    settled_s: float | None = None
    rounds: float = 0.0
    mb_sent: float = 0.0
    bytes_per_record: float = 0.0
    frames: int = 0
    lost: int = 0
    dropped: int = 0
    curve: list[tuple[float, float]] = field(default_factory=list)
    wall_s: float = 0.0

    def plain(self) -> dict[str, object]:
        """For JSON."""
        reply = dataclasses.asdict(self)
        reply["curve"] = [[round(at, 1), round(share, 5)] for at, share in thinned(self.curve)]
        return reply


def thinned(curve: list[tuple[float, float]], limit: int = 120) -> list[tuple[float, float]]:
    """Some of the points, the last one too."""
    step = max(1, len(curve) // limit)
    return curve[::step] if (len(curve) - 1) % step == 0 else [*curve[::step], curve[-1]]


def _linked(mesh: Mesh, seed: int, **more: object) -> World:
    """A mesh whose links are up."""
    world = World(mesh.relays, seed, **more)  # type: ignore[arg-type]
    world.know_each_other()
    world.run(WARM_S, until_agreed=False)
    return world


def _publish(world: World, mesh: Mesh, *, seq: int = 1) -> None:
    """Every agent publishes at its relay, now; no agent of these lives at a relay that lies."""
    records = [light(number, seq) for number in range(mesh.records)]
    world.exist(records)
    homes = world.honest()
    for number, record in enumerate(records):
        homes[number % len(homes)].publish(record)


def plain(mesh: Mesh, seed: int) -> World:
    """All records are published in one moment."""
    world = _linked(mesh, seed)
    _publish(world, mesh)
    return world


def loss(mesh: Mesh, seed: int) -> World:
    """The same, and 30 % of all frames never arrive."""
    world = _linked(mesh, seed, loss=LOSS)
    _publish(world, mesh)
    return world


def partition(mesh: Mesh, seed: int) -> World:
    """Two halves were cut off from each other for an hour; each agrees within itself."""
    world = _linked(mesh, seed)
    world.part(lambda number: number % 2)
    records = [light(number, 1) for number in range(mesh.records)]
    world.exist(records)
    for number, record in enumerate(records):
        for relay in world.relays[number % 2 :: 2]:
            relay.take(record)
    world.pass_an_hour()
    world.heal()
    return world


def liars(mesh: Mesh, seed: int) -> World:
    """Every fifth relay lies; all records are newer versions of what everybody holds."""
    world = _linked(mesh, seed, kinds=every_fifth)
    old = [light(number, 1) for number in range(mesh.records)]
    world.exist(old)
    for relay in world.relays:
        for record in old:
            relay.take(record)
    _publish(world, mesh, seq=2)
    return world


TROUBLES: Final[dict[str, Callable[[Mesh, int], World]]] = {
    "plain": plain,
    "30 % loss": loss,
    "after a partition": partition,
    "20 % liars": liars,
}


def run(trouble: str, mesh: Mesh, seed: int = 1) -> Found:
    """Simulate one."""
    began = time.perf_counter()
    gc.disable()  # millions of objects, hardly a cycle: looking for cycles would take half the time
    world = TROUBLES[trouble](mesh, seed)
    found = Found(trouble, mesh.relays, mesh.records)
    lacked = world.missing
    sent_before = {relay.did: world.network.sent[relay.did] for relay in world.relays}
    pulls_before = {relay.did: relay.pulls for relay in world.relays}
    world.sample(found.curve)
    found.seconds = world.run(MAX_S)
    found.curve.append((found.seconds or MAX_S, world.share))
    found.settled_s = next((at for at, share in found.curve if share >= SETTLED), None)
    honest = world.honest()
    found.rounds = statistics.fmean(one.pulls - pulls_before[one.did] for one in honest)
    sent = [world.network.sent[one.did] - sent_before[one.did] for one in honest]
    found.mb_sent = statistics.fmean(sent) / 1e6
    found.bytes_per_record = sum(sent) / max(1, lacked - world.missing)
    found.frames, found.lost = world.network.traffic.frames, world.network.traffic.lost
    found.dropped = sum(relay.rumors.dropped for relay in world.relays)
    gc.enable()
    found.wall_s = time.perf_counter() - began
    return found
