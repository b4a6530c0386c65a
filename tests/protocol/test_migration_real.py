"""The real code of a hand-off, driven through every order of steps, crashes and messages.

The code under test is ``relay/migration/model/machine.py``; the promises and the broken rules are
those of the models. ``migration_world.py`` is the world around it and ``model_inbox.py`` the inbox;
``test_migration_inbox.py`` takes the real inbox instead.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from relay.migration.model import machine
from relay.migration.model.state import Transition
from relay.protocol.errors import Refusal
from relay.protocol.ids import Timestamp
from tests.protocol.exploration import Found, explore
from tests.protocol.migration_world import (
    DENIED,
    DUPLICATE,
    LOST,
    STUCK,
    Moves,
    Rules,
    after,
    start,
)
from tests.support.broken_rules import each

pytestmark = pytest.mark.timeout(180)  # a busy machine is no bug


def search(rules: Rules, told: tuple[str, ...] = (), limit: int = 10_000_000) -> Found[Any]:
    """The intact code plays the story; the mutant plays only what follows."""
    moves = Moves(rules)
    begin = after(replace(rules, mutant=""), *told)
    return explore(begin, moves, moves.is_good, limit)


def verdict(found: Found[Any]) -> str | None:
    return found.broken or (STUCK if found.stuck else None)


def digested(source: int, target: int, order: int) -> tuple[str, ...]:
    """An order, up to where its digest has come."""
    return (
        f"order {order}: R{source} to R{target}",
        f"R{target} prepares",
        f"R{source} freezes",
        f"R{source} to R{target}: digest 1/1 of o{order}",
        f"R{target} gets from R{source}: digest 1/1 of o{order}, and crashes",
    )


def moved(source: int, target: int, order: int) -> tuple[str, ...]:
    """An order from beginning to end; its copy has arrived, and the answer is under way."""
    return (
        *digested(source, target, order),
        f"published: R{target}",
        f"R{source} hears of the record",
        f"R{source} sends a courier",
        f"R{source} to R{target}: m0 of o{order}",
        f"R{target} gets from R{source}: m0 of o{order}, and crashes",
        f"R{target} gets from R{source}: m0 of o{order}",
    )


THERE = ("m0 to R0", *moved(0, 1, 1))
LET_GO = "R0 gets from R1: m0 is here"
# m0 was handed over, no receipt reached its sender; m1 is acked: a digest of two pages.
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
    "receipts that nobody hears": (Rules(unheard=1), (), None),
    "a network that loses": (Rules(lossy=True), (), None),
    "a record before it is acted upon": (Rules(unheard=1, gap=True, queues=True), (), None),
    "a source out of reach": (Rules(unreachable=1, unheard=1), (), None),
    "an agent that changes its mind": (Rules(returns=1, restarts=1, gap=True), (), None),
    "a record that names its home again": (Rules(renewals=1, unreachable=1, gap=True), (), 15_000),
    "a target that dies": (Rules(deaths=1, returns=1), (), None),
    "a target that waits in vain": (Rules(waits=1, returns=1), (), None),
    "an envelope that expires": (Rules(expiry=True, restarts=1), (), None),
    "a source that forgets": (Rules(forgets=1, unheard=1), (), 15_000),
    "a source that lies": (Rules(liar=True, queues=True), (), 15_000),
    "three relays": (Rules(relays=3, orders=2, unreachable=1), (), 15_000),
    "three relays, and couriers for others": (Rules(relays=3, orders=2, queues=True), (), 15_000),
    "there and back and there": (Rules(orders=3, restarts=1), (*THERE, LET_GO), 15_000),
    "there, and its answer is under way": (Rules(orders=3, restarts=1), THERE, 15_000),
    "a digest of two pages": (Rules(envelopes=2, unheard=1), TWO_PAGES, None),
}
# What is broken, the promise that breaks by it, what may happen, how the story begins.
MUTANTS: list[tuple[str, str, Rules, tuple[str, ...]]] = [
    ("publish before digest", DUPLICATE, Rules(unheard=1), ()),
    ("delete before receipt", LOST, Rules(lossy=True), ()),
    ("dedupe survives the hand-off", LOST, Rules(orders=2), ()),
    ("nothing is marked when it freezes", DUPLICATE, Rules(), ()),
    ("frames of a closed session", DUPLICATE, Rules(), ()),
    ("deliver while frozen", DUPLICATE, Rules(unheard=1), ()),
    ("one page is a digest", DUPLICATE, Rules(envelopes=2, unheard=1), TWO_PAGES),
    ("an old session's receipt counts", LOST, Rules(orders=3), THERE),
    ("a relay's word ends any mail", LOST, Rules(liar=True), ()),
    ("another's ids are not remembered", DUPLICATE, Rules(unheard=1), ()),
    ("what waits is not marked", DUPLICATE, Rules(unheard=1), ()),
    ("a doubtful home marks nothing", DUPLICATE, Rules(unheard=1, unreachable=1), ()),
    (
        "another's floor refuses",
        DENIED,
        Rules(relays=3, liar=True, queues=True),
        ("R2 hears of the record", "m0 to R2", "order 1: R0 to R1", "R1 prepares", "R0 freezes"),
    ),
    ("the floor holds for what moves", DENIED, Rules(orders=2, forgets=1), (*THERE, LET_GO)),
    (
        "what is missing is not passed on",
        DUPLICATE,
        Rules(relays=3, orders=2, unreachable=1, unheard=1),
        (
            "a session at R0",
            "m0 to R0, no receipt is heard",
            "R0 reads m0",
            "the agent gets m0",
            "order 1: R0 to R1",
            "R1 prepares",
            "published, source unreachable: R1",
            "order 2: R1 to R2",
            "R2 prepares",
        ),
    ),
    ("what went is no doubt when it is told of", DUPLICATE, Rules(orders=3), (*THERE, LET_GO)),
    ("any hand-off will do", DUPLICATE, Rules(orders=3), THERE),
]
HARMLESS = "marks are not copied"
"""Alone: the digest has told of every mark before, and until it has come all is marked."""


@pytest.mark.parametrize("story", SPACES)
def test_nothing_is_lost_or_twice_or_stuck(story: str):
    rules, told, limit = SPACES[story]
    found = search(rules, told, limit or 10_000_000)
    assert verdict(found) is None, found
    assert found.whole is (limit is None)
    assert found.worlds > 2_500  # a world in which nothing happens proves nothing


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("story", [story for story, (*_, limit) in SPACES.items() if limit])
def test_so_it_is_far_further_out(story: str):
    rules, told, _ = SPACES[story]
    found = search(rules, told, 300_000)
    assert verdict(found) is None, found


@each("hand-off, the real code", ("mutant", "promise", "rules", "told"), MUTANTS)
def test_broken_on_purpose_a_promise_breaks(
    mutant: str, promise: str, rules: Rules, told: tuple[str, ...]
):
    found = search(replace(rules, mutant=mutant), told)
    assert verdict(found) == promise, found


@pytest.mark.parametrize(
    ("rules", "told"), [(rules, told) for _, _, rules, told in MUTANTS if told]
)
def test_from_where_it_breaks_the_real_code_keeps_them(rules: Rules, told: tuple[str, ...]):
    found = search(rules, told, 8_000)
    assert verdict(found) is None, found


@pytest.mark.parametrize("rules", [Rules(unheard=1), Rules(queues=True, restarts=1)])
def test_a_second_line_of_defence_changes_nothing_alone(rules: Rules):
    found = search(replace(rules, mutant=HARMLESS))
    assert found.whole
    assert verdict(found) is None, found


ALL = Rules(
    relays=3,
    envelopes=3,
    orders=4,
    unheard=2,
    unreachable=1,
    returns=1,
    renewals=1,
    deaths=1,
    waits=1,
    restarts=2,
    forgets=1,
    gap=True,
    queues=True,
)


def walk(rules: Rules, seed: int, steps: int) -> tuple[str | None, list[str]]:
    """Walk one long story of many; return the promise that broke in it."""
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
    for seed in range(30):
        broken, told = walk(replace(ALL, **change), seed, 200)
        assert broken is None, f"seed {seed}: {broken}: {' > '.join(told)}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("change", [{}, {"expiry": True}, {"liar": True}, {"lossy": True}])
def test_nor_do_far_more_of_them(change: dict[str, bool]):
    for seed in range(30, 1_000):
        broken, told = walk(replace(ALL, **change), seed, 200)
        assert broken is None, f"seed {seed}: {broken}: {' > '.join(told)}"


def test_long_stories_find_a_lie():
    lies = replace(ALL, mutant="delete before receipt")
    assert LOST in {walk(lies, seed, 200)[0] for seed in range(300)}


@pytest.mark.parametrize("rules", [Rules(), Rules(returns=1), Rules(orders=2, unreachable=1)])
def test_every_step_may_be_taken_twice(rules: Rules):
    moves = Moves(rules)
    explore(start(rules), moves, limit=5_000)
    for (side, _, said, now), step in moves.taken.items():
        if isinstance(step, Refusal):
            continue
        again = machine.step(step.side._replace(since=side.since), said, Timestamp(now))
        if isinstance(again, Transition):
            assert again.side._replace(since=0) == step.side._replace(since=0), said
