"""Relays come to agree whatever the network does, and each rule that makes them is needed."""

from __future__ import annotations

import pytest

from loadtest.mesh_sim import plot, report, scenes
from loadtest.mesh_sim.liars import Flooder, Replayer, Withholder, every_fifth
from loadtest.mesh_sim.light import light, size_of
from loadtest.mesh_sim.relays import Habits, Relay
from loadtest.mesh_sim.scenes import Mesh
from loadtest.mesh_sim.world import World
from relay.directory.model.anti_entropy import Index, answer
from relay.directory.model.rumors import MAX_DESIRED_LINKS
from relay.peering.model.membership import MAX_BACKOFF_S
from relay.protocol import frames
from relay.protocol.frames import Digest, Gossip, Want
from tests.protocol.mesh_world import HOUR_S, holes, linked, publish

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize("seed", range(3))
def test_all_relays_come_to_agree(seed):
    world = linked(8, seed)
    publish(world, 200)
    assert world.run(HOUR_S) is not None
    assert (holes(world), world.missing, world.share) == (0, 0, 1.0)


@pytest.mark.parametrize("seed", range(3))
def test_they_agree_though_frames_are_lost_late_and_repeated(seed):
    world = linked(8, seed, loss=0.3, repeats=0.2)
    publish(world, 200)
    assert world.run(HOUR_S) is not None
    assert holes(world) == 0
    assert world.network.traffic.lost > 0


@pytest.mark.breaks("mesh", "relays pull what was lost")
def test_without_pulls_what_was_lost_stays_lost():
    world = linked(8, habits=Habits(pulls=False), loss=0.3)
    publish(world, 200)
    assert world.run(HOUR_S) is None
    assert holes(world) == world.missing > 0


@pytest.mark.breaks("mesh", "relays push news")
def test_without_pushes_news_is_slow():
    def seconds(habits: Habits) -> float:
        world = linked(8, habits=habits)
        publish(world, 1)
        found: list[tuple[float, float]] = []
        world.sample(found, 0.1)
        world.run(1000, until_agreed=False)
        return next(at for at, share in found if share >= 0.8)

    assert seconds(Habits()) < 3
    assert seconds(Habits(pushes=False)) > 10


@pytest.mark.breaks("mesh", "relays pass news on")
def test_without_passing_on_news_goes_no_further_than_the_links_of_where_it_began():
    def reached(habits: Habits) -> int:
        world = linked(30, habits=habits)
        publish(world, 1)
        world.run(5, until_agreed=False)
        return 30 - world.missing

    assert reached(Habits(passes_on=False, pulls=False)) == 1 + MAX_DESIRED_LINKS
    assert reached(Habits(pulls=False)) > 25


def test_a_change_made_while_another_is_under_way_wins_everywhere():
    world = linked(8)
    publish(world, 50)
    world.run(0.3, until_agreed=False)
    publish(world, 50, seq=2)
    assert world.run(HOUR_S) is not None
    agents = [light(number, 2).agent for number in range(50)]
    assert all(relay.index.version(agent)[1] == 2 for relay in world.relays for agent in agents)
    assert holes(world) == 0


def test_the_same_seed_makes_the_same_run():
    def run(seed: int) -> tuple[float | None, int, int]:
        world = linked(6, seed, loss=0.2)
        publish(world, 60)
        return world.run(HOUR_S), world.network.traffic.bytes, world.network.traffic.frames

    assert run(1) == run(1)
    assert run(1) != run(2)


# ---------------------------------------------------------------- partitions


def parted(count: int = 6) -> World:
    world = linked(count)
    publish(world, 40)
    assert world.run(HOUR_S) is not None
    world.part(lambda number: number % 2)
    return world


def test_each_side_of_a_partition_agrees_within_itself_and_with_the_other_afterwards():
    world = parted()
    publish(world, 40, start=100)
    assert world.run(600) is None
    assert world.share == pytest.approx(0.75)
    world.heal()
    assert world.run(2 * MAX_BACKOFF_S) is not None
    assert holes(world) == 0


def test_while_a_partition_lasts_nothing_comes_through():
    world = parted()
    publish(world, 40, start=100)
    for _ in range(5):
        assert world.run(600) is None
        assert world.share == pytest.approx(0.75)


def test_after_an_hour_apart_they_find_each_other_within_one_back_off():
    world = parted(40)
    publish(world, 40, start=100)
    world.run(600)
    world.pass_an_hour()
    world.heal()
    assert world.run(2 * MAX_BACKOFF_S) is not None


# ---------------------------------------------------------------- liars


@pytest.mark.parametrize("kind", [Withholder, Replayer, Flooder])
def test_relays_that_lie_cost_others_time_and_nothing_else(kind):
    world = World(10, 1, kinds=lambda number: kind if number in {3, 7} else Relay)
    world.know_each_other()
    publish(world, 100)
    world.run(60, until_agreed=False)
    publish(world, 100, seq=2)
    assert world.run(HOUR_S) is not None
    assert holes(world) == 0


def test_who_floods_with_forged_records_is_out_and_honest_relays_are_not():
    world = World(10, 1, kinds=lambda number: Flooder if number == 4 else Relay)
    world.know_each_other()
    publish(world, 50)
    world.run(60, until_agreed=False)
    now = world.relays[0].now
    out = {
        other.did
        for relay in world.honest()
        for other in world.relays
        if relay.strikes.reputation(other.did, now).strikes
    }
    assert out == {world.relays[4].did}
    assert all(len(relay.index) == 50 for relay in world.honest())


def test_if_all_others_withhold_the_holes_show():
    world = World(4, 1, kinds=lambda number: Relay if number in {0, 3} else Withholder)
    world.know_each_other()
    world.run(5, until_agreed=False)
    for relay, other in ((0, 3), (3, 0)):
        world.relays[relay].links.discard(world.relays[other].did)
        world.relays[relay].members.remove(world.relays[other].did)
    publish(world, 10)
    assert world.run(600) is None
    assert holes(world) == 10


def test_every_fifth_relay_lies_in_the_scene_of_liars():
    kinds = [every_fifth(number) for number in range(20)]
    assert sum(kind is not Relay for kind in kinds) == 4
    assert {kind for kind in kinds if kind is not Relay} == {Withholder, Replayer, Flooder}


# ---------------------------------------------------------------- what is measured


def test_a_frame_is_taken_for_about_as_long_as_it_is():
    index = Index()
    records = [light(number, 1_700_000_000_000 + number) for number in range(3000)]
    for record in records:
        index.put(record.agent, record.order)
    digests = answer(index, Digest("q1", 10))
    have = answer(index, Want("q1", bits=10, bucket=digests.items[0].bucket))
    for frame in (
        digests, have, Digest("q1", 16, tuple(range(64))),
        Gossip(tuple(record.text for record in records[:100])),
        Want("q1", agents=tuple(record.agent for record in records[:100])),
    ):  # fmt: skip
        assert size_of(frame) == pytest.approx(len(frames.encode(frame)), rel=0.05, abs=40)


@pytest.mark.parametrize("trouble", scenes.TROUBLES)
def test_every_scene_ends_in_agreement(trouble):
    run = scenes.run(trouble, Mesh(5, 200))
    assert run.seconds is not None
    assert 0 < (run.settled_s or 0) <= run.seconds
    assert run.bytes_per_record > 500
    assert run.curve[-1][1] == 1.0


def test_the_table_and_the_picture_show_every_run_and_mark_what_was_not_simulated():
    sizes = ((20, 100_000), (20, 2_000), (100, 2_000))
    runs = [
        scenes.Found("plain", relays, records, float(relays), 5.0, 2.0, 3.0, 900.0,
                     curve=[(0.0, 0.1), (float(relays), 1.0)])
        for relays, records in sizes
    ]  # fmt: skip
    lines = list(report.table(runs))
    assert len(lines) == 2 + 4
    assert lines[-1].startswith("| 100 | 100,000 | plain | ≈ 5 | ≈ 100 |")
    assert sum("≈" in line for line in lines) == 1
    reply = report.as_json(runs, {}, 1)
    assert (len(reply["runs"]), len(reply["extrapolated"])) == (3, 1)
    assert report.from_json(reply) == runs
    picture = plot.draw(runs, "a & b")
    assert picture.count("<circle") == 3
    assert "a &amp; b" in picture
