"""The real code of a hand-off, driven through every order of steps, crashes and messages.

What ``test_migration_model.py`` and ``test_migration_network.py`` say of rules is said of
``relay/core/migration.py`` here: the same promises, broken by the same lies. ``moving.py`` is the
world around it. Beside the promises it checks that a store which does nothing but carry out the
effects always has what the state says.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from relay.core import migration
from relay.core.errors import Refusal
from relay.core.handover import Step
from relay.core.ids import Timestamp
from tests.protocol.moving import (
    DUPLICATE,
    LOST,
    STUCK,
    Moves,
    Rules,
    after,
    start,
)
from tests.protocol.spaces import Found, explore

pytestmark = pytest.mark.timeout(180)  # a busy machine is no bug


def search(rules: Rules, told: tuple[str, ...] = (), most: int = 10_000_000) -> Found[Any]:
    """The story is told by the intact code; only what follows is by a mutant."""
    moves = Moves(rules)
    begin = after(replace(rules, mutant=""), *told)
    return explore(begin, moves, moves.is_good, most)


def verdict(found: Found[Any]) -> str | None:
    return found.broken or (STUCK if found.stuck else None)


def moved(source: int, target: int, order: int, record: int) -> tuple[str, ...]:
    """An order from beginning to end; its copy has arrived, and the answer is under way."""
    return (
        f"order {order}: R{source} to R{target}",
        f"R{target} prepares",
        f"R{source} freezes",
        f"R{source} to R{target}: digest 1/1 of o{order}",
        f"R{target} gets from R{source}: digest 1/1 of o{order}, and crashes",
        f"published: R{target}",
        f"R{source} hears of the record",
        f"R{source} to R{target}: copy ['m0'] of record:1:{record}:",
        f"R{target} gets from R{source}: copy ['m0'] of record:1:{record}:",
    )


# m0 has been there and is back; the receipt of its way out is still under way.
THERE_AND_BACK = (
    "m0 to R0",
    *moved(0, 1, 1, 1),
    *moved(1, 0, 2, 2),
    "R1 gets from R0: copy is here ['m0'], record:1:2:, and crashes",
)
# m0 was handed over, its sender heard nothing; m1 is acked: a digest of two pages.
TWO_PAGES = (
    "m1 to R0",
    "a session at R0",
    "m0 to R0, no receipt is heard",
    "R0 reads m0",
    "the agent gets m0",
    "R0 reads m1",
    "the agent gets m1",
    "m1 is acked at R0",
    "order 1: R0 to R1",
    "R1 prepares",
)

# What may happen, how the story begins, how many worlds are visited at most (None: every one).
SPACES: dict[str, tuple[Rules, tuple[str, ...], int | None]] = {
    "one order": (Rules(), (), None),
    "a network that loses": (Rules(lossy=True), (), None),
    "receipts that nobody hears": (Rules(unheard=1), (), 12_000),
    "a source out of reach": (Rules(unreachable=1, unheard=1), (), 12_000),
    "an agent that changes its mind": (Rules(returns=1), (), None),
    "a target that dies": (Rules(deaths=1, returns=1), (), None),
    "a target that waits in vain": (Rules(waits=1, returns=1), (), 12_000),
    "an envelope that expires": (Rules(expiry=True), (), None),
    "a source that lies": (Rules(liar=True), (), 12_000),
    "three relays": (Rules(relays=3, orders=2, unreachable=1), (), 12_000),
    "there and back and there": (Rules(orders=3), THERE_AND_BACK, 12_000),
    "a digest of two pages": (Rules(envelopes=2, unheard=1), TWO_PAGES, 12_000),
}
# What is broken, the promise that breaks by it, what may happen, how the story begins.
MUTANTS: list[tuple[str, str, Rules, tuple[str, ...]]] = [
    ("publish before digest", DUPLICATE, Rules(unheard=1, unreachable=1), ()),
    ("delete before receipt", LOST, Rules(), ()),
    ("dedupe survives the hand-off", LOST, Rules(), ()),
    ("nothing is marked when it freezes", DUPLICATE, Rules(), ()),
    ("frames of a closed session", DUPLICATE, Rules(), ()),
    ("deliver while frozen", DUPLICATE, Rules(), ()),
    ("one page is a digest", DUPLICATE, Rules(envelopes=2, unheard=1), TWO_PAGES),
    ("any hand-off will do", LOST, Rules(orders=3), THERE_AND_BACK),
    ("a relay's word ends any mail", LOST, Rules(liar=True), ()),
]
HARMLESS = ("marks are not copied", "a receipt for any mark")
"""Alone: the digest has told of every mark before, and until it has come all is marked."""


@pytest.mark.parametrize("story", SPACES)
def test_nothing_is_lost_or_twice_or_stuck(story: str):
    rules, told, most = SPACES[story]
    found = search(rules, told, most or 10_000_000)
    assert verdict(found) is None, found
    assert found.whole is (most is None)
    assert found.worlds > 5_000  # a world in which nothing happens proves nothing


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("story", [story for story, (*_, most) in SPACES.items() if most])
def test_so_it_is_far_further_out(story: str):
    rules, told, _ = SPACES[story]
    found = search(rules, told, 300_000)
    assert verdict(found) is None, found


@pytest.mark.parametrize(("mutant", "promise", "rules", "told"), MUTANTS)
def test_broken_on_purpose_a_promise_breaks(
    mutant: str, promise: str, rules: Rules, told: tuple[str, ...]
):
    found = search(replace(rules, mutant=mutant), told)
    assert verdict(found) == promise, found


@pytest.mark.parametrize("mutant", HARMLESS)
def test_a_second_line_of_defence_changes_nothing_alone(mutant: str):
    found = search(Rules(mutant=mutant))
    assert found.whole
    assert verdict(found) is None, found


ALL = Rules(
    relays=3, envelopes=3, orders=4, unheard=2, unreachable=1, returns=1, deaths=1, waits=1
)  # fmt: skip


def walk(rules: Rules, seed: int, steps: int) -> tuple[str | None, list[str]]:
    """One long story of many; gives the promise that broke in it."""
    choose = random.Random(seed)  # noqa: S311  a seed repeats its story
    moves, world = Moves(rules), start(rules)
    told: list[str] = []
    for _ in range(steps):
        may = list(moves(world))
        if not may:
            break
        what, world, broken = choose.choice(may)
        told.append(what)
        if broken:
            return broken, told
    return None, told


@pytest.mark.parametrize("change", [{}, {"expiry": True}, {"liar": True}, {"lossy": True}])
def test_long_stories_in_which_all_of_it_happens_break_no_promise(change: dict[str, bool]):
    for seed in range(100):
        broken, told = walk(replace(ALL, **change), seed, 200)
        assert broken is None, f"seed {seed}: {broken}: {' > '.join(told)}"


def test_long_stories_find_a_lie():
    lies = replace(ALL, mutant="delete before receipt")
    assert LOST in {walk(lies, seed, 200)[0] for seed in range(300)}


@pytest.mark.parametrize("rules", [Rules(), Rules(returns=1), Rules(expiry=True)])
def test_every_step_may_be_taken_twice(rules: Rules):
    moves = Moves(rules)
    explore(start(rules), moves, most=12_000)
    for (side, _, said, now), step in moves.taken.items():
        if isinstance(step, Refusal):
            continue
        again = migration.step(step.side._replace(since=side.since), said, Timestamp(now))
        if isinstance(again, Step):
            assert again.side._replace(since=0) == step.side._replace(since=0), said
