"""The kill matrix of moving house: whoever is killed, and when, nothing is lost and all ends by itself.

``CHAOS_SEED=... pytest tests/chaos/test_migration.py`` repeats the choices of a run; what an
operating system makes of them is a matter of chance.
"""  # noqa: E501  a sentence

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.chaos.checker import Verdict
from tests.chaos.kill_points import (
    STORE,
    Cut,
)
from tests.chaos.kill_points_relay import SOURCE as AT_SOURCE
from tests.chaos.kill_points_relay import TARGET as AT_TARGET
from tests.chaos.migration_run import (
    ENDS_S,
    MOVER,
    PARTIES,
    SOURCE,
    TARGET,
    MovePlan,
    MoveRun,
    Round,
)
from tests.chaos.moving_agent_files import STEPS
from tests.chaos.test_kill import seed

WHEN = ("before", "after")
POINTS = [
    (where, f"{when} {name}")
    for where, names in ((MOVER, STEPS), (SOURCE, AT_SOURCE), (TARGET, AT_TARGET))
    for name in names
    for when in WHEN
]
SHORT = ("short-leases",)
"""What a dead node has lent is free after 3 s and not after 15: more cuts fit into a minute."""
ALLOWED = {"reordered", "acked_again"}
"""Who submits at two relays has no order to rely on, and what was acked at one of them may be shown
once more, since no relay's word ends anything; then it is marked, or it is found to be unmarked."""


async def carried_out(plan: MovePlan, directory: Path) -> tuple[MoveRun, Verdict]:
    run = MoveRun(plan, directory)
    try:
        verdict = await run()
    except BaseException:
        print(run.logs)
        raise
    finally:
        print(run.summary())
    return run, verdict


async def nothing_is_lost(plan: MovePlan, directory: Path) -> MoveRun:
    run, verdict = await carried_out(plan, directory)
    report = f"{run.summary()}\n{verdict}\n{run.logs}"
    assert not verdict.kinds - ALLOWED, report
    assert not run.late, f"{report}\n{run.late}"
    assert not run.missed, f"{report}\nnobody came to {run.missed}"
    assert all(one.hit for one in run.happened), f"{report}\n{run.happened}"
    # the longest back-off of anybody: GUARANTEES.md §3 promises that no operator is needed
    assert max(run.ended_s) <= ENDS_S, report
    # else the run has not looked at what it is about
    assert run.repeated, report
    return run


def everybody_at_every_step() -> list[Round]:
    """Each of the five is killed while one agent is behind each step."""
    return [Round((Cut(MOVER, "after prepare", party),)) for party in PARTIES]


def everybody_at_home() -> list[Round]:
    """At each point within a relay its node is killed, or its store."""
    inside = [point for point in POINTS if point[0] != MOVER]
    return [
        Round((Cut(where, point, where + STORE * (number % 2)),))
        for number, (where, point) in enumerate(inside)
    ]


def everything() -> list[Round]:
    """Each of the five at each point."""
    return [Round((Cut(where, point, party),)) for where, point in POINTS for party in PARTIES]


def pairs(count: int, rng: Random) -> list[Round]:
    """Two cuts of one move: the second wherever somebody comes after the first."""

    def cut() -> Cut:
        where, point = rng.choice(POINTS)
        return Cut(where, point, rng.choice(PARTIES), nth=rng.choice((1, 1, 2)))

    return [Round((cut(), cut()), stops=bool(number % 4)) for number in range(count)]


@pytest.mark.alone  # it measures how soon all ends after each cut
@pytest.mark.timeout(240)
async def test_whoever_is_killed_at_whatever_step_nothing_is_lost_and_it_ends_by_itself(
    tmp_path: Path,
) -> None:
    rounds = [*everybody_at_every_step(), *everybody_at_home()]
    await nothing_is_lost(MovePlan(seed(), rounds, mutants=SHORT), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
async def test_each_of_five_parties_at_each_point(tmp_path: Path) -> None:
    await nothing_is_lost(MovePlan(seed(), everything(), stale=50, rate=1.0), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(7_200)
async def test_any_two_cuts_of_one_move(tmp_path: Path) -> None:
    rng = Random(seed())  # noqa: S311  whims, no keys
    plan = MovePlan(seed(), pairs(500, rng), stale=50, rate=1.0, mutants=SHORT)
    run, verdict = await carried_out(plan, tmp_path)
    report = f"{run.summary()}\n{verdict}\n{run.logs}"
    # the second of two may be one that nobody comes to any more
    assert not verdict.kinds - ALLOWED, report
    assert not run.late, f"{report}\n{run.late}"
    assert len(run.happened) >= 500, report


# ---------------------------------------------------------------- negative controls


FREELY = Round(stops=False)


def small(*mutants: str, rounds: Sequence[Round] = (FREELY,) * 4) -> MovePlan:
    return MovePlan(
        seed(), rounds, stale=2, others=0, rate=20.0, repeats=30, mutants=mutants,
    )  # fmt: skip


def losing(*mutants: str, **values: object) -> MovePlan:
    """The same, of relays after whose lies nobody need wait for the end."""
    return replace(small(*mutants, **values), ends_s=12.0)


@pytest.mark.breaks("migration under kills and lies", "publishes-before-the-digest")
@pytest.mark.timeout(90)
async def test_publishing_before_the_digest_is_found_to_show_again_without_a_mark(
    tmp_path: Path,
) -> None:
    _, found = await carried_out(losing("publishes-before-the-digest"), tmp_path)
    assert found.unmarked
    assert not found.kinds & {"lost", "wrong", "phantom"}


@pytest.mark.timeout(90)
async def test_without_a_digest_an_honest_target_marks(tmp_path: Path) -> None:
    """The control of that control: the same source, and a target that doubts."""
    _, found = await carried_out(small("drops-the-digest"), tmp_path)
    assert not found.kinds - ALLOWED, str(found)


@pytest.mark.timeout(90)
async def test_an_agent_that_does_not_wait_for_the_digest_is_shown_nothing_unmarked(
    tmp_path: Path,
) -> None:
    """And of that one: it publishes at once, and both relays are honest."""
    _, found = await carried_out(replace(small(), hasty=True), tmp_path)
    assert not found.kinds - ALLOWED, str(found)


@pytest.mark.breaks("migration under kills and lies", "ack-before-receipt")
@pytest.mark.timeout(90)
async def test_letting_go_before_the_receipt_is_found_to_lose_envelopes(tmp_path: Path) -> None:
    rounds = [Round((Cut(TARGET, "before keep", TARGET),), stops=False), FREELY]
    _, found = await carried_out(losing("ack-before-receipt", *SHORT, rounds=rounds), tmp_path)
    assert found.lost
    assert not found.kinds & {"wrong", "phantom", "unmarked"}


@pytest.mark.breaks("migration under kills and lies", "remembers-what-it-handed-over")
@pytest.mark.timeout(90)
async def test_a_memory_that_survives_the_hand_off_is_found_to_lose_what_comes_back(
    tmp_path: Path,
) -> None:
    # whoever takes nothing on the way brings all of it back
    plan = replace(losing("remembers-what-it-handed-over"), takes=0)
    _, found = await carried_out(plan, tmp_path)
    assert found.lost
    assert not found.kinds & {"wrong", "phantom", "unmarked"}


@pytest.mark.timeout(90)
async def test_the_same_small_run_of_real_relays_is_clean(tmp_path: Path) -> None:
    _, found = await carried_out(small(), tmp_path)
    assert not found.kinds - ALLOWED, str(found)
