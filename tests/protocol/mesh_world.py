"""Small worlds of relays for tests: real gossip, anti-entropy and roster on a virtual clock.

The World itself is ``loadtest.mesh_sim``, which runs it with a thousand relays.
"""

from __future__ import annotations

from loadtest.mesh_sim.light import Light, light
from loadtest.mesh_sim.relays import Habits
from loadtest.mesh_sim.world import World

HOUR_S = 3600.0
USUAL = Habits()


def linked(count: int, seed: int = 1, *, habits: Habits = USUAL, **more: object) -> World:
    """Relays whose links are up."""
    world = World(count, seed, habits=habits, **more)  # type: ignore[arg-type]
    world.know_each_other()
    world.run(40, until_agreed=False)
    return world


def publish(world: World, count: int, *, seq: int = 1, start: int = 0) -> list[Light]:
    """Agents at the honest relays publish, now."""
    records = [light(number, seq) for number in range(start, start + count)]
    world.exist(records)
    homes = world.honest()
    for number, record in enumerate(records):
        homes[number % len(homes)].publish(record)
    return records


def holes(world: World) -> int:
    """Newest records that honest relays lack: counted here, not by the world's own count."""
    return sum(
        relay.index.version(agent) != record.order
        for relay in world.honest()
        for agent, record in world.catalogue.newest.items()
    )
