"""One inbox, two nodes of one relay, sessions with fences: every interleaving, as a model.

The rules are those of ``inbox/model/delivery.py`` and ``reference/inbox.py`` in their smallest
form, so that
each can be switched off. The intact rules have no counterexample; without any one of them there is
one, and its name is written beside the mutant. One transition is one step of the store or one write
to a socket; nothing else is atomic.

::

    commit ──▶ store ──hint, perhaps from memory──▶ conversation at a node ──▶ socket ──▶ agent
                 ▲─────────read, then the page arrives───────┘                              │
                 └──────────────────────────────ack──────────────────────────────────────────┘
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import pytest

from tests.support.broken_rules import each

pytestmark = pytest.mark.timeout(120)  # a busy machine is no bug

NODES = (0, 1)
NOBODY = 99


@dataclass(frozen=True)
class Rules:
    """What keeps the promises R1, R2 and R4; each may be switched off. Below, how far to look."""

    next_in_line: bool = True
    """From memory only what follows the last seq handed over."""
    memory_fence: bool = True
    """From memory only to the session that the commit found."""
    quiet_while_reading: bool = True
    """Nothing from memory while a page is under way."""
    read_fence: bool = True
    """The store answers a read of the newest session alone."""
    ack_fence: bool = True
    """The store takes an ack of the newest session alone."""
    close_fence: bool = True
    """The store takes a clean end of the newest session alone."""
    ack_what_was_handed: bool = True
    """A cumulative ack ends what this session handed over, not all that is below."""
    skip_what_was_acked: bool = True
    """What was acked while a page was under way is not handed over from it."""
    window: bool = True
    """No more is handed over and not durably acked than the window."""
    mark_the_window: bool = True
    """Opening after an unclean end marks the first window of live entries."""
    exact_end: bool = True
    """A clean end marks all that was handed over."""

    messages: int = 3
    sessions: int = 2
    size: int = 1
    """Of the window."""


class Talk(NamedTuple):
    """A conversation at a node. ``handed`` is what its agent got over this socket."""

    fence: int
    position: int
    page: tuple[tuple[int, bool], ...]
    page_upto: int
    reading: bool
    memory: tuple[tuple[int, int], ...]
    handed: frozenset[int]
    unacked: frozenset[int]
    acked: frozenset[int]


class World(NamedTuple):
    """The store, the two nodes, and what the agent has seen.

    ``marks[seq-1]`` is (lowest fence that was handed it, highest that was handed it unmarked).
    The nodes are alike, so conversations stand in the order of their fences.
    """

    last: int
    gone: frozenset[int]
    fence: int
    is_open: bool
    marked_upto: int
    talks: tuple[Talk | None, ...]
    marks: tuple[tuple[int, int], ...]

    def live(self) -> list[int]:
        return [seq for seq in range(1, self.last + 1) if seq not in self.gone]

    def with_talk(self, node: int, talk: Talk | None) -> World:
        both = (*self.talks[:node], talk, *self.talks[node + 1 :])
        return self._replace(talks=tuple(sorted(both, key=lambda one: one.fence if one else 0)))


Move = tuple[str, World, str | None]
START = World(0, frozenset(), 0, False, 0, (None, None), ())


def cursor(world: World) -> int:
    return next((seq - 1 for seq in world.live()), world.last)


def commit(world: World, node: int, rules: Rules) -> Iterator[Move]:
    """A node stores the next envelope; if it holds a session, it may hand it over from memory."""
    if world.last == rules.messages:
        return
    seq = world.last + 1
    after = world._replace(last=seq, marks=(*world.marks, (NOBODY, 0)))
    talk = world.talks[node]
    if talk and world.is_open:
        after = after.with_talk(node, talk._replace(memory=(*talk.memory, (seq, world.fence))))
    where = f"the node of session {talk.fence}" if talk else "a node"
    yield f"{where} commits {seq}", after, None


def open_session(world: World, node: int, rules: Rules) -> Iterator[Move]:
    if world.fence == rules.sessions or world.talks[node]:
        return
    marked = world.marked_upto
    if world.is_open and rules.mark_the_window:
        marked = max([marked, *world.live()[: rules.size]])
    nothing: frozenset[int] = frozenset()
    start = cursor(world)
    talk = Talk(world.fence + 1, start, (), 0, False, (), nothing, nothing, nothing)
    after = world._replace(fence=talk.fence, is_open=True, marked_upto=marked)
    yield f"session {talk.fence} opens", after.with_talk(node, talk), None


def read(world: World, node: int, talk: Talk, rules: Rules) -> Iterator[Move]:
    """The store makes a page; it arrives later."""
    may = talk.fence == world.fence and world.is_open
    room = rules.size - len(talk.unacked) if rules.window else rules.messages
    if talk.reading or room <= 0 or (rules.read_fence and not may):
        return
    live = [seq for seq in world.live() if seq > talk.position]
    page = tuple((seq, seq <= world.marked_upto) for seq in live[:room])
    upto = live[room] - 1 if len(live) > room else world.last
    if upto > talk.position:
        after = talk._replace(reading=True, page=page, page_upto=upto)
        yield f"session {talk.fence} reads {page}", world.with_talk(node, after), None


def handed_over(world: World, node: int, talk: Talk, seq: int, *, marked: bool) -> Move:
    """Write one envelope to the socket, and see whether a promise broke."""
    lowest, unmarked = world.marks[seq - 1]
    broken = None
    if unmarked > talk.fence or (not marked and lowest <= talk.fence):
        broken = "unmarked duplicate"
    elif seq in world.gone and talk.fence == world.fence:
        broken = "acked and delivered again"
    elif lowest == NOBODY and any(world.marks[n - 1][0] == NOBODY for n in world.live() if n < seq):
        broken = "out of order"
    mark = (min(lowest, talk.fence), unmarked if marked else max(unmarked, talk.fence))
    after = talk._replace(
        position=max(talk.position, seq),
        handed=talk.handed | {seq},
        unacked=talk.unacked | {seq},
    )
    marks = (*world.marks[: seq - 1], mark, *world.marks[seq:])
    what = f"session {talk.fence} hands over {seq}{' marked' if marked else ''}"
    return what, world._replace(marks=marks).with_talk(node, after), broken


def page_arrives(world: World, node: int, talk: Talk, rules: Rules) -> Iterator[Move]:
    if not talk.reading:
        return
    if not talk.page:
        upto = max(talk.position, talk.page_upto)
        after = talk._replace(reading=False, position=upto, acked=frozenset())
        yield f"session {talk.fence} is at {after.position}", world.with_talk(node, after), None
        return
    (seq, marked), *rest = talk.page
    talk = talk._replace(page=tuple(rest))
    if rules.skip_what_was_acked and seq in talk.acked:
        after = talk._replace(position=max(talk.position, seq))
        yield f"session {talk.fence} leaves out {seq}", world.with_talk(node, after), None
    else:
        yield handed_over(world, node, talk, seq, marked=marked)


def from_memory(world: World, node: int, talk: Talk, rules: Rules) -> Iterator[Move]:
    if not talk.memory:
        return
    (seq, fence), *rest = talk.memory
    talk = talk._replace(memory=tuple(rest))
    yield f"session {talk.fence} leaves {seq} to a read", world.with_talk(node, talk), None
    in_line = seq == talk.position + 1 or (not rules.next_in_line and seq > talk.position)
    has_room = len(talk.unacked) < rules.size or not rules.window
    is_quiet = not talk.reading or not rules.quiet_while_reading
    is_mine = fence == talk.fence or not rules.memory_fence
    if in_line and has_room and is_quiet and is_mine:
        yield handed_over(world, node, talk, seq, marked=False)


def ack(world: World, node: int, talk: Talk, rules: Rules) -> Iterator[Move]:
    """The agent acks, cumulatively, up to the highest seq that it got over this socket."""
    may = talk.fence == world.fence and world.is_open
    if not talk.unacked or (rules.ack_fence and not may):
        return
    upto = max(talk.handed)
    named = talk.unacked if rules.ack_what_was_handed else frozenset(range(1, upto + 1))
    ended = named - world.gone
    after = world._replace(gone=world.gone | ended)
    broken = None
    if any(world.marks[seq - 1][0] == NOBODY for seq in ended):
        broken = "acked and never delivered"
    elif ended and not may:
        broken = "a superseded session changed the inbox"
    done = talk._replace(unacked=frozenset())
    yield f"session {talk.fence} acks up to {upto}", after.with_talk(node, done), broken


def ack_from_journal(world: World, node: int, talk: Talk) -> Iterator[Move]:
    """The agent acks by name what an earlier session had brought it."""
    if talk.fence != world.fence or not world.is_open:
        return
    for seq in world.live():
        if world.marks[seq - 1][0] < talk.fence and seq not in talk.handed:
            after = world._replace(gone=world.gone | {seq})
            known = talk._replace(acked=talk.acked | {seq}) if talk.reading else talk
            yield f"session {talk.fence} acks {seq} by name", after.with_talk(node, known), None


def end(world: World, node: int, talk: Talk, rules: Rules) -> Iterator[Move]:
    """The socket goes: cleanly, so that the store is told, or with the node."""
    gone = world.with_talk(node, None)
    yield f"session {talk.fence} is lost with its node", gone, None
    if not world.is_open or (rules.close_fence and talk.fence != world.fence):
        return
    marked = max([world.marked_upto, *talk.handed]) if rules.exact_end else world.marked_upto
    broken = None if talk.fence == world.fence else "a superseded session changed the inbox"
    after = gone._replace(is_open=False, marked_upto=marked)
    yield f"session {talk.fence} ends cleanly", after, broken


def moves(world: World, rules: Rules) -> Iterator[Move]:
    for node in NODES:
        yield from commit(world, node, rules)
        yield from open_session(world, node, rules)
        talk = world.talks[node]
        if talk:
            yield from read(world, node, talk, rules)
            yield from page_arrives(world, node, talk, rules)
            yield from from_memory(world, node, talk, rules)
            yield from ack(world, node, talk, rules)
            yield from ack_from_journal(world, node, talk)
            yield from end(world, node, talk, rules)


def explore(rules: Rules, until: str | None = None) -> tuple[int, str | None, list[str]]:
    """Visit every world that can be; gives how many, and a broken promise with its story.

    The search ends at the first broken promise, or at the first that is ``until``.
    """
    came_from: dict[World, tuple[World, str] | None] = {START: None}
    waiting = deque([START])
    while waiting:
        world = waiting.popleft()
        for what, after, broken in moves(world, rules):
            if broken and until in {None, broken}:
                return len(came_from), broken, [*story(came_from, world), what]
            if after not in came_from:
                came_from[after] = (world, what)
                waiting.append(after)
    return len(came_from), None, []


def story(came_from: dict[World, tuple[World, str] | None], world: World) -> list[str]:
    told: list[str] = []
    step = came_from[world]
    while step:
        told.append(step[1])
        step = came_from[step[0]]
    return told[::-1]


LOST = "acked and never delivered"
MUTANTS = [
    ("next_in_line", "out of order"),
    ("next_in_line", "unmarked duplicate"),
    ("memory_fence", "unmarked duplicate"),
    ("quiet_while_reading", "unmarked duplicate"),
    ("read_fence", "unmarked duplicate"),
    ("ack_fence", "a superseded session changed the inbox"),
    ("close_fence", "a superseded session changed the inbox"),
    ("close_fence", "unmarked duplicate"),
    ("next_in_line ack_what_was_handed", LOST),
    ("skip_what_was_acked", "acked and delivered again"),
    ("window", "unmarked duplicate"),
    ("mark_the_window", "unmarked duplicate"),
    ("exact_end", "unmarked duplicate"),
]


@pytest.mark.parametrize(
    ("rules", "at_least"),
    [
        (Rules(sessions=3), 60_000),
        (Rules(size=2), 20_000),
        (Rules(messages=2, size=2, sessions=3), 5_000),
        pytest.param(Rules(sessions=3, size=2), 150_000, marks=pytest.mark.slow),
    ],
)
def test_with_all_rules_no_interleaving_breaks_a_promise(rules: Rules, at_least: int):
    worlds, broken, told = explore(rules)
    assert broken is None, "\n".join(told)
    assert worlds > at_least  # a model that goes nowhere proves nothing


@each("two nodes, the model", ("off", "promise"), MUTANTS)
def test_without_a_rule_a_promise_breaks(off: str, promise: str):
    sessions = 3 if off == "close_fence" else 2
    mutant = replace(Rules(sessions=sessions), **dict.fromkeys(off.split(), False))
    worlds, broken, told = explore(mutant, until=promise)
    assert broken == promise, f"{worlds} worlds and nothing broke"
    assert told


def test_every_rule_has_a_mutant():
    rules = {field.name for field in fields(Rules) if field.type == "bool"}
    assert {one for off, _ in MUTANTS for one in off.split()} == rules


def test_translating_a_cumulative_ack_is_the_second_of_two_lines_of_defence():
    """Alone it changes nothing: the first line is that only the next in line comes from memory."""
    assert explore(replace(Rules(), ack_what_was_handed=False))[1] is None
