"""An inbox moves between two relays and back: every order of steps, as a model.

The rules are those of ``docs/GUARANTEES.md`` on migration in their smallest form, so that each can
be switched off. With all of them there is no counterexample; without any one that is marked harmful
there is one. Two are harmless here: they are second lines of defence, and asserted as such.

One move is one durable step of one relay. A crash, a partition or a lost answer is a step that is
not taken, or whose answer nobody hears, so every point at which something can fall is here. What is
delayed and repeated on the way between relays is the business of ``test_migration_network.py``.

::

    source  ACTIVE ──freeze──▶ FROZEN ──digest, copy, delete──▶ TOMBSTONE
    target  NONE ──prepare──▶ INCOMING ──────publish──▶ ACTIVE
    agent   closes its session before the freeze, opens one at the newest record's home
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import pytest

from tests.protocol.exploration import explore
from tests.support.broken_rules import each

pytestmark = pytest.mark.timeout(180)  # a busy machine is no bug

NONE, ACTIVE, INCOMING, FROZEN, TOMBSTONE = "none", "active", "incoming", "frozen", "tombstone"
RELAYS = (0, 1)
PAGES = frozenset({"finished", "in flight"})
LOST = "lost"
DUPLICATE = "unmarked duplicate"
STUCK = "stuck"

Entry = tuple[int, bool]
"""(envelope, mark)."""


@dataclass(frozen=True)
class Rules:
    """The rules that keep the promises; each may be switched off. Below, how far to look."""

    delete_after_receipt: bool = True
    """The source deletes what the target has."""
    take_once: bool = True
    """The target takes no copy of an id that it has seen."""
    copy_the_mark: bool = True
    """A mark travels with its envelope."""
    merge_the_mark: bool = True
    """A marked copy marks what the target already has."""
    digest_before_publish: bool = True
    """A target that was published without a digest marks everything."""
    digest_is_acked: bool = True
    """The digest names what the agent acked, not all that was seen."""
    digest_is_explicit: bool = True
    """What was acked is a set of its own, not what was seen and is gone. Harmless here."""
    digest_has_in_flight: bool = True
    """The digest also names what may have been handed over."""
    whole_digest: bool = True
    """A digest has come when all of its pages have."""
    one_snapshot: bool = True
    """All pages of a digest tell of one moment. Harmless alone: nothing may change while frozen."""
    frozen_delivers_nothing: bool = True
    frozen_refuses_acks: bool = True
    """Harmless alone: such an ack ends what the agent is done with, and the digest has it either
    as acked or as in flight. In a digest whose pages tell of two moments it would be in neither."""
    mark_when_it_ends: bool = True
    """What a session may have been handed is marked when it ends, or is frozen out."""
    close_before_freeze: bool = True
    """What still comes over a closed session never reaches the handler."""
    forget_what_moved: bool = True
    """An id that was handed over is not remembered as seen."""
    tombstone_refuses: bool = True

    envelopes: int = 1
    moves: int = 1
    unheard: int = 1
    """Receipts that no sender hears."""
    source_dies: bool = False
    """A record may be published although the source cannot be reached."""


HARMLESS = {"digest_is_explicit", "frozen_refuses_acks", "one_snapshot"}


class Relay(NamedTuple):
    """One relay's store.

    Args:
        mode: what the inbox is here.
        box: what waits, in its order.
        seen: ids that are not taken again.
        finished: what the agent acked here, or elsewhere as far as is known here.
        marks: what may have been handed over elsewhere.
        pages: pages of the source's digest that have come; all of them, where there is none.
        told: what the digest says that is arriving: what is finished, what is in flight.
        given: what the newest session was given and is not marked yet.
    """

    mode: str
    box: tuple[Entry, ...] = ()
    seen: frozenset[int] = frozenset()
    finished: frozenset[int] = frozenset()
    marks: frozenset[int] = frozenset()
    pages: frozenset[str] = frozenset()
    told: tuple[frozenset[int], frozenset[int]] | None = None
    given: frozenset[int] = frozenset()

    def mark(self, envelopes: frozenset[int]) -> Relay:
        return self._replace(box=tuple((m, flag or m in envelopes) for m, flag in self.box))

    def ends_session(self, rules: Rules) -> Relay:
        marked = self.mark(self.given) if rules.mark_when_it_ends else self
        return marked._replace(given=frozenset())

    def has(self, envelope: int) -> bool:
        return any(m == envelope for m, _ in self.box)


class World(NamedTuple):
    """Both relays, and what agent and senders know.

    Args:
        relays: their stores.
        home: the relay that the newest record names.
        at: where the agent's session is; ``reads`` is what is on its way to the handler.
        receipted: what some sender has a receipt for.
        done: what the agent acked.
        got: how often each envelope reached the handler.
    """

    relays: tuple[Relay, Relay]
    home: int
    at: int | None
    reads: frozenset[Entry]
    receipted: frozenset[int]
    done: frozenset[int]
    got: tuple[int, ...]
    moves: int
    unheard: int

    def with_relay(self, place: int, relay: Relay) -> World:
        both = (relay, self.relays[1]) if place == 0 else (self.relays[0], relay)
        return self._replace(relays=both)


Move = tuple[str, World, str | None]


def start(rules: Rules) -> World:
    nothing: frozenset[Any] = frozenset()
    first = Relay(ACTIVE, pages=PAGES)
    return World(
        relays=(first, Relay(NONE)),
        home=0,
        at=None,
        reads=nothing,
        receipted=nothing,
        done=nothing,
        got=(0,) * rules.envelopes,
        moves=rules.moves,
        unheard=rules.unheard,
    )


def send(world: World, place: int, rules: Rules) -> Iterator[Move]:
    """A sender, perhaps with an old record, asks until it hears a receipt."""
    relay = world.relays[place]
    refuses = relay.mode == NONE or (relay.mode == TOMBSTONE and rules.tombstone_refuses)
    if refuses:
        return
    for m in range(rules.envelopes):
        if m in world.receipted:
            continue
        kept = relay
        if m not in relay.seen:
            box = (*relay.box, (m, m in relay.marks))
            kept = relay._replace(box=box, seen=relay.seen | {m})
        stored = world.with_relay(place, kept)
        heard = stored._replace(receipted=world.receipted | {m})
        yield f"{m} to {place}", heard, None
        if world.unheard:
            yield f"{m} to {place}, unheard", stored._replace(unheard=world.unheard - 1), None


# ---------------------------------------------------------------- the agent moves


def move(world: World, rules: Rules) -> Iterator[Move]:
    """The agent prepares the target, freezes the source, publishes."""
    source, target = world.home, 1 - world.home
    old, new = world.relays[source], world.relays[target]
    if not world.moves:
        return
    if old.mode == ACTIVE and new.mode in {NONE, TOMBSTONE}:
        ready = new._replace(mode=INCOMING, pages=frozenset())
        yield f"{target} prepares", world.with_relay(target, ready), None
    if new.mode != INCOMING:
        return
    if old.mode == ACTIVE:
        frozen = old.ends_session(rules)._replace(mode=FROZEN)
        closed = world._replace(at=None)
        if rules.close_before_freeze:
            closed = closed._replace(reads=frozenset())
        yield f"{source} freezes", closed.with_relay(source, frozen), None
    yield from publish(world, target, rules)


def publish(world: World, target: int, rules: Rules) -> Iterator[Move]:
    new = world.relays[target]
    old = world.relays[1 - target]
    active = new._replace(mode=ACTIVE)
    named = world._replace(home=target, moves=world.moves - 1, at=None)
    if rules.close_before_freeze:
        named = named._replace(reads=frozenset())
    has_digest = bool(new.pages) if not rules.whole_digest else new.pages == PAGES
    if old.mode == FROZEN and has_digest:
        whole = active._replace(pages=PAGES)
        yield f"{target} is published", named.with_relay(target, whole), None
    elif old.mode == FROZEN and not rules.digest_before_publish:
        unasked = active._replace(pages=PAGES)
        yield f"{target} is published too early", named.with_relay(target, unasked), None
    elif rules.source_dies and old.mode == ACTIVE:
        yield f"{target} is published, source dead", named.with_relay(target, active), None


def learn(world: World, place: int, rules: Rules) -> Iterator[Move]:
    """A relay that is not named any more finds out."""
    relay = world.relays[place]
    if world.home != place and relay.mode == ACTIVE:
        frozen = relay.ends_session(rules)._replace(mode=FROZEN)
        yield f"{place} learns the record", world.with_relay(place, frozen), None


# ---------------------------------------------------------------- between the relays


def digest(world: World, source: int, rules: Rules) -> Iterator[Move]:
    """A frozen source tells what its agent is done with, and what it may have had, page by page."""
    target = 1 - source
    old, new = world.relays[source], world.relays[target]
    done, in_flight = new.told or (finished(old, rules), may_be_in_flight(old, rules))
    for page in PAGES - new.pages:
        if page == "in flight":
            heard = new.mark(in_flight)._replace(marks=new.marks | in_flight)
        else:
            heard = new._replace(
                box=tuple((m, flag) for m, flag in new.box if m not in done),
                seen=new.seen | done,
                finished=new.finished | done,
            )
        pages = new.pages | {page}
        told = (done, in_flight) if rules.one_snapshot and pages != PAGES else None
        heard = heard._replace(pages=pages, told=told)
        yield f"digest page of what is {page} to {target}", world.with_relay(target, heard), None


def may_be_in_flight(relay: Relay, rules: Rules) -> frozenset[int]:
    marked = frozenset(m for m, flag in relay.box if flag) | relay.marks
    return marked if rules.digest_has_in_flight else frozenset()


def finished(relay: Relay, rules: Rules) -> frozenset[int]:
    if not rules.digest_is_acked:
        return relay.seen
    if not rules.digest_is_explicit:
        return relay.seen - {m for m, _ in relay.box}
    return relay.finished


def copy(world: World, source: int, rules: Rules) -> Iterator[Move]:
    """The first envelope that waits at the source is copied, then deleted there."""
    target = 1 - source
    old, new = world.relays[source], world.relays[target]
    if not old.box:
        return
    (m, flag), *rest = old.box
    flag = flag and rules.copy_the_mark
    is_there = m in new.seen if rules.take_once else new.has(m)
    merges = flag and rules.merge_the_mark and (m, False) in new.box
    if not is_there:
        taken = new._replace(box=(*new.box, (m, flag or m in new.marks)), seen=new.seen | {m})
        yield f"{m} is copied to {target}", world.with_relay(target, taken), None
    elif merges:
        yield f"{m} is marked at {target}", world.with_relay(target, new.mark({m})), None
    if (m in new.seen and not merges) or not rules.delete_after_receipt:
        seen = (old.seen - {m}) | old.finished if rules.forget_what_moved else old.seen
        freed = old._replace(box=tuple(rest), seen=seen)
        yield f"{m} is deleted at {source}", world.with_relay(source, freed), None


def hand_over(world: World, source: int, rules: Rules) -> Iterator[Move]:
    old, new = world.relays[source], world.relays[1 - source]
    if old.mode != FROZEN:
        return
    if new.mode in {INCOMING, ACTIVE}:
        yield from digest(world, source, rules)
        yield from copy(world, source, rules)
    if not old.box and world.home != source and new.pages == PAGES:
        buried = old._replace(mode=TOMBSTONE)
        yield f"{source} is a tombstone", world.with_relay(source, buried), None


# ---------------------------------------------------------------- the agent reads and acks


def may_deliver(world: World, place: int, rules: Rules) -> bool:
    mode = world.relays[place].mode
    return (mode == ACTIVE and world.home == place) or (
        mode == FROZEN and not rules.frozen_delivers_nothing
    )


def session(world: World, place: int, rules: Rules) -> Iterator[Move]:
    """The agent has one session; what the relay reads for it is written later, or never."""
    relay = world.relays[place]
    if world.at is None and may_deliver(world, place, rules):
        opened = world._replace(at=place).with_relay(place, relay.ends_session(rules))
        yield f"a session at {place}", opened, None
    if world.at != place:
        return
    yield f"the session at {place} is lost", world._replace(at=None, reads=frozenset()), None
    for m, flag in relay.box:
        if may_deliver(world, place, rules) and m not in relay.given and world.got[m] < 3:
            marked = flag or relay.pages != PAGES
            read = world._replace(reads=world.reads | {(m, marked)})
            given = relay._replace(given=relay.given | {m})
            yield f"{place} reads {m}{' marked' * marked}", read.with_relay(place, given), None


def write(world: World) -> Iterator[Move]:
    """Only to an agent with a session; of an earlier one nothing comes, unless a rule is off."""
    for m, marked in world.reads if world.at is not None else ():
        got = (*world.got[:m], min(3, world.got[m] + 1), *world.got[m + 1 :])
        after = world._replace(reads=world.reads - {(m, marked)}, got=got)
        broken = DUPLICATE if world.got[m] and not marked else None
        yield f"the agent gets {m}{' marked' * marked}", after, broken


def ack(world: World, place: int, rules: Rules) -> Iterator[Move]:
    relay = world.relays[place]
    may = relay.mode == ACTIVE and world.home == place
    if not may and (rules.frozen_refuses_acks or relay.mode != FROZEN):
        return
    for m, flag in relay.box:
        if world.got[m]:
            left = tuple(entry for entry in relay.box if entry != (m, flag))
            ended = relay._replace(box=left, finished=relay.finished | {m})
            after = world._replace(done=world.done | {m}).with_relay(place, ended)
            yield f"{m} is acked at {place}", after, None


def all_moves(world: World, rules: Rules) -> Iterator[Move]:
    yield from move(world, rules)
    yield from write(world)
    for place in RELAYS:
        yield from send(world, place, rules)
        yield from learn(world, place, rules)
        yield from hand_over(world, place, rules)
        yield from session(world, place, rules)
        yield from ack(world, place, rules)


def moves(rules: Rules):
    def judged(world: World) -> Iterator[Move]:
        for what, after, broken in all_moves(world, rules):
            left = after.receipted - after.done
            gone = any(not after.relays[0].has(m) and not after.relays[1].has(m) for m in left)
            yield what, after, broken or (LOST if gone else None)

    return judged


def is_good(world: World) -> bool:
    """Everything that a sender has a receipt for was acked."""
    return world.receipted <= world.done


def search(rules: Rules) -> Any:
    return explore(start(rules), moves(rules), is_good)


# ---------------------------------------------------------------- the proof

SPACES = [
    (Rules(moves=2), 2_000),
    (Rules(moves=2, unheard=2, source_dies=True), 5_000),
    (Rules(envelopes=2), 20_000),
    pytest.param(Rules(envelopes=2, source_dies=True), 50_000, marks=pytest.mark.slow),
    pytest.param(Rules(envelopes=2, moves=2), 100_000, marks=pytest.mark.slow),
]
MUTANTS = [
    ("delete_after_receipt", LOST),
    ("take_once", DUPLICATE),
    ("copy_the_mark", DUPLICATE),
    ("merge_the_mark", DUPLICATE),
    ("frozen_refuses_acks one_snapshot", DUPLICATE),
    ("digest_before_publish", DUPLICATE),
    ("digest_is_acked", LOST),
    ("digest_has_in_flight", DUPLICATE),
    ("whole_digest", DUPLICATE),
    ("frozen_delivers_nothing", DUPLICATE),
    ("mark_when_it_ends", DUPLICATE),
    ("close_before_freeze", DUPLICATE),
    ("forget_what_moved", LOST),
    ("tombstone_refuses", STUCK),
]


@pytest.mark.parametrize(("rules", "at_least"), SPACES)
def test_with_all_rules_nothing_is_lost_or_twice_or_stuck(rules: Rules, at_least: int):
    found = search(rules)
    assert found.whole
    assert not found.broken, found
    assert not found.stuck, found
    assert found.worlds > at_least  # a model that goes nowhere proves nothing


@each("hand-off, the small model", ("off", "promise"), MUTANTS)
def test_without_a_rule_a_promise_breaks(off: str, promise: str):
    found = search(replace(Rules(moves=2), **dict.fromkeys(off.split(), False)))
    assert (found.broken or (STUCK if found.stuck else None)) == promise, found


@pytest.mark.parametrize("off", sorted(HARMLESS))
def test_a_second_line_of_defence_changes_nothing_alone(off: str):
    for rules in (Rules(moves=2), Rules(envelopes=2, unheard=0)):
        found = search(replace(rules, **{off: False}))
        assert not found.broken, found
        assert not found.stuck, found


def test_every_rule_has_a_mutant():
    rules = {field.name for field in fields(Rules) if field.type == "bool"} - {"source_dies"}
    assert {one for off, _ in MUTANTS for one in off.split()} | HARMLESS == rules
