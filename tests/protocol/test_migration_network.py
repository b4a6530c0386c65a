"""An inbox moves over a network that delays and repeats: three relays, every order, as a model.

What ``test_migration_model.py`` does in one step takes messages here: pages of a digest, copies and
their receipts. Each may arrive late, again, or under an order that has been given up since. Relays
die, sources lie, envelopes expire, agents change their mind. Each rule can be switched off; for
each there is a story in which that breaks a promise.

Here a source may even end what it alone brought. The real code takes its word for less: it only
marks (docs/adr/0023), which ``test_migration_real.py`` shows to be enough.

::

    source                      network                        target
      │ digest, two pages ─────▶ (stays, arrives often) ────────▶ │ drops what the source brought,
      │ copy ──────────────────▶                        ────────▶ │ keeps and marks its own
      │ deletes ◀──────────────────────────────────────── receipt │
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import pytest

from tests.protocol.exploration import Found, explore
from tests.support.broken_rules import each

pytestmark = pytest.mark.timeout(180)  # a busy machine is no bug

NONE, ACTIVE, INCOMING, FROZEN, TOMBSTONE, DEAD = (
    "none", "active", "incoming", "frozen", "tombstone", "dead",
)  # fmt: skip
PAGES = ("finished", "maybe")
ENVELOPE = 0
"""There is one; what several could do to each other is in the other model."""
LOST, DUPLICATE, STUCK = "lost", "unmarked duplicate", "stuck"
TWICE, UNNAMED = "bounced twice", "deleted for a relay that no record names"


@dataclass(frozen=True)
class Rules:
    """The rules that keep the promises; each may be switched off. Below, the events."""

    bound: bool = True
    """Every page, digest and receipt is of the current hand-off, or changes nothing."""
    delete_when_named: bool = True
    """The source deletes only what the newest record's home has."""
    way_back: bool = True
    """A frozen source that is named again delivers again."""
    turn: bool = True
    """A frozen source hands over to whom the newest record names, whoever was its target."""
    incoming_hands_over: bool = True
    """So does a target that was never named."""
    miss_old_target: bool = True
    """One that turns to another home goes on missing what its old target has to say."""
    pass_on_missing: bool = True
    """A digest tells whose digests its source still misses."""
    keep_own: bool = True
    """A digest ends what its source brought; what this relay receipted itself is kept."""
    whole_digest: bool = True
    """A digest has come when all its pages have."""
    keep_digested: bool = True
    """A target that has imported a digest is never dropped."""
    frozen_keeps_expired: bool = True
    """Only a home bounces; a frozen source hands the expired over."""
    freeze_with_record: bool = True
    """A record that names others freezes in the same durable step."""
    dead_letter: bool = True
    """What the target refuses for good ends at the source, with a bounce."""
    mark_when_it_ends: bool = True
    """What a session may have been handed is marked when it ends, or is frozen out."""
    close_first: bool = True
    """What still comes over a closed session never reaches the handler."""

    relays: int = 2
    orders: int = 1
    replays: int = 0
    """Copies that a third party submits although the sender has a receipt."""
    unreachable: int = 0
    """Records that are published without waiting for the digest."""
    returns: int = 0
    """Times that the agent names the frozen source again."""
    deaths: int = 0
    """Relays that are gone for good, never one that was named."""
    waits: int = 0
    """Times that an unnamed target waits for 24 h."""
    expires: bool = False
    liar: bool = False
    """Relay 0 may say that the agent is done with all."""
    fork: bool = False
    """The agent runs twice and signs two records of one seq."""
    picky: bool = False
    """Relay 1 never takes a copy."""


class Digest(NamedTuple):
    """All that a source says; a page of it tells one half."""

    finished: bool
    maybe: bool
    missing: frozenset[int]


class Message(NamedTuple):
    """A message under way; ``says`` is a digest, or the mark of a copy or receipt."""

    kind: str
    source: int
    target: int
    handoff: str
    says: Digest | bool
    page: str = ""


class Relay(NamedTuple):
    """One relay's store.

    Args:
        mode: what the inbox is here.
        has: whether the envelope waits; ``marked``, and ``by``: whose copy alone brought it.
        finished: its agent acked it here, or it bounced here.
        told: relays that said so of themselves.
        maybe: it may have been handed over elsewhere.
        handoff: the current one and with whom.
        missing: relays whose digest is missing.
        pages: of the digest that is arriving.
        digested: the current hand-off's digest has come.
        record: number of the newest one held.
        given: the newest session was given it, and that is not marked yet.
    """

    mode: str = NONE
    has: bool = False
    marked: bool = False
    by: int | None = None
    finished: bool = False
    told: frozenset[int] = frozenset()
    maybe: bool = False
    handoff: tuple[str, int] = ("", -1)
    missing: frozenset[int] = frozenset()
    pages: frozenset[tuple[str, Digest]] = frozenset()
    digested: bool = False
    record: int = 0
    given: bool = False

    def end(self) -> Relay:
        return self._replace(has=False, marked=False, by=None, given=False)

    def keep(self, *, marked: bool, by: int | None) -> Relay:
        doubtful = marked or self.maybe or bool(self.told)
        return self._replace(has=True, marked=doubtful, by=by)

    def mark(self) -> Relay:
        return self._replace(marked=self.marked or self.has)

    def freeze(self, handoff: tuple[str, int], rules: Rules) -> Relay:
        relay = self.mark() if self.given and rules.mark_when_it_ends else self
        return relay._replace(mode=FROZEN, handoff=handoff, given=False, digested=False,
                              pages=frozenset())  # fmt: skip


class World(NamedTuple):
    """All that there is; ``records[k]`` is the relay that record k names."""

    relays: tuple[Relay, ...]
    net: frozenset[Message]
    records: tuple[int, ...]
    order: tuple[str, int, int] | None
    at: int | None
    reads: frozenset[bool]
    """On their way to the handler: unmarked, marked."""
    receipts: frozenset[int]
    done: bool
    got: int
    late: bool
    bounced: bool
    orders: int
    replays: int
    unreachable: int
    returns: int
    deaths: int
    waits: int

    def put(self, place: int, relay: Relay) -> World:
        return self._replace(relays=(*self.relays[:place], relay, *self.relays[place + 1 :]))

    @property
    def home(self) -> int:
        return self.records[-1]

    def names(self, place: int) -> int:
        """Return whom the newest record that a relay holds names."""
        return self.records[self.relays[place].record]

    def delivers(self, place: int) -> bool:
        return self.relays[place].mode == ACTIVE and self.names(place) == place


Move = tuple[str, World, str | None]


def start(rules: Rules) -> World:
    others = (Relay(),) * (rules.relays - 1)
    return World(
        relays=(Relay(ACTIVE), *others),
        net=frozenset(),
        records=(0,),
        order=None,
        at=None,
        reads=frozenset(),
        receipts=frozenset(),
        done=False,
        got=0,
        late=False,
        bounced=False,
        orders=rules.orders,
        replays=rules.replays,
        unreachable=rules.unreachable,
        returns=rules.returns,
        deaths=rules.deaths,
        waits=rules.waits,
    )


class Moves:
    """Everything that may happen next."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    def __call__(self, world: World) -> Iterator[Move]:
        for what, after, broken in self._all(world):
            yield what, after, broken or self._lost(after)

    def _all(self, world: World) -> Iterator[Move]:
        yield from self.agent(world)
        yield from self.session(world)
        for message in world.net:
            yield from self.arrives(world, message)
        for place, relay in enumerate(world.relays):
            if relay.mode not in {NONE, DEAD}:
                yield from self.send(world, place)
            if relay.mode == FROZEN:
                yield from self.hand_over(world, place)
            if relay.mode != DEAD:
                yield from self.learn(world, place)
                yield from self.time(world, place)
                yield from self.die(world, place)

    def _owed(self, world: World) -> bool:
        """Return True if a receipt binds. A liar may lose what it alone receipted."""
        return bool(world.receipts - ({0} if self.rules.liar else set()))

    def _lost(self, world: World) -> str | None:
        over = world.done or world.bounced or any(relay.has for relay in world.relays)
        return LOST if self._owed(world) and not over else None

    def is_good(self, world: World) -> bool:
        return world.done or world.bounced or not self._owed(world)

    # ------------------------------------------------------------ senders

    def send(self, world: World, place: int) -> Iterator[Move]:
        """Until a sender has a receipt; after that only a third party sends it again."""
        relay = world.relays[place]
        again = bool(world.receipts)
        if relay.mode == TOMBSTONE or world.late or (again and not world.replays):
            return
        kept = relay
        if relay.has:
            kept = relay._replace(by=None)
        elif not relay.finished:
            kept = relay.keep(marked=False, by=None)
        after = world.put(place, kept)._replace(
            receipts=world.receipts | {place}, replays=world.replays - again
        )
        yield f"{'again' if again else 'sent'} to {place}", after, None

    # ------------------------------------------------------------ the agent moves

    def agent(self, world: World) -> Iterator[Move]:
        if world.orders:
            number = len(world.records) * 10 + world.orders
            for target in range(self.rules.relays):
                if target != world.home and world.relays[target].mode != DEAD:
                    order = (f"o{number}", world.home, target)
                    after = world._replace(order=order, orders=world.orders - 1)
                    yield f"order {world.home} to {target}", after, None
        if world.order:
            yield from self.go_on(world, *world.order)
        home = world.relays[world.home]
        if self.rules.way_back and world.returns and home.mode == FROZEN:
            named = home.mark()._replace(mode=ACTIVE, record=len(world.records))
            after = self.leave(world)._replace(order=None, returns=world.returns - 1)
            after = after._replace(records=(*world.records, world.home)).put(world.home, named)
            yield f"the agent stays at {world.home}", after, None

    def go_on(self, world: World, order: str, source: int, target: int) -> Iterator[Move]:
        old, new = world.relays[source], world.relays[target]
        ready = new.mode == INCOMING and new.handoff == (order, source)
        if new.mode in {NONE, TOMBSTONE, FROZEN, INCOMING} and not ready:
            prepared = new._replace(
                mode=INCOMING,
                handoff=(order, source),
                missing=frozenset({source}),
                digested=False,
                pages=frozenset(),
                record=max(new.record, len(world.records) - 1),
            )
            yield f"{target} prepares", world.put(target, prepared), None
        if not ready:
            return
        stale = old.mode == FROZEN and old.handoff != (order, target) and world.home == source
        if old.mode == ACTIVE or stale:
            frozen = old.freeze((order, target), self.rules)
            yield f"{source} freezes", self.leave(world).put(source, frozen), None
        if new.digested:
            published = self.publish(world, target)
            yield f"published: {target}", published, None
            yield from self.publish_twice(published, source, target)
        elif world.unreachable:
            after = world._replace(unreachable=world.unreachable - 1)
            yield f"published, source unreachable: {target}", self.publish(after, target), None

    def publish(self, world: World, target: int) -> World:
        active = world.relays[target]._replace(mode=ACTIVE, record=len(world.records))
        records = (*world.records, target)
        return self.leave(world)._replace(records=records, order=None).put(target, active)

    def publish_twice(self, world: World, source: int, loser: int) -> Iterator[Move]:
        """A clone names another relay in a record of the same seq, which wins by its hash."""
        for winner in range(self.rules.relays) if self.rules.fork else ():
            if winner not in {source, loser} and world.relays[winner].mode in {NONE, INCOMING}:
                ready = world.relays[winner]._replace(missing=frozenset({source}))
                after = self.publish(world.put(winner, ready), winner)
                yield f"published by two: {loser} and {winner}", after, None

    def _is_forked(self, world: World) -> bool:
        """Two relays deliver and cannot know it yet: nobody can promise a mark."""
        active = [relay for relay in world.relays if relay.mode == ACTIVE]
        return self.rules.fork and any(one.record < len(world.records) - 1 for one in active)

    def leave(self, world: World) -> World:
        """The agent closes its session."""
        return world._replace(at=None, reads=frozenset() if self.rules.close_first else world.reads)

    # ------------------------------------------------------------ records spread

    def learn(self, world: World, place: int) -> Iterator[Move]:
        relay, newest = world.relays[place], len(world.records) - 1
        if relay.record == newest:
            return
        knows = relay._replace(record=newest)
        what = f"{place} learns of {world.home}"
        if relay.mode == ACTIVE and not self.rules.freeze_with_record:
            yield f"{what}, and crashes", world.put(place, knows), None
        home, turned = world.home, knows
        if home == place:
            turned = knows._replace(mode=ACTIVE) if relay.mode == INCOMING else knows
        elif self._must_turn(world, place):
            old = relay.handoff[1]
            is_new = relay.mode == FROZEN and old != home and self.rules.miss_old_target
            turned = knows.freeze((f"record {newest}", home), self.rules)
            turned = turned._replace(missing=relay.missing | ({old} - {place} if is_new else set()))
        if self.rules.fork and world.at == place:
            world = world._replace(at=None, reads=frozenset())
        yield what, world.put(place, turned), None

    def _must_turn(self, world: World, place: int) -> bool:
        mode = world.relays[place].mode
        if mode == INCOMING:
            is_target = world.order is not None and world.order[2] == place
            return self.rules.incoming_hands_over and not is_target
        return mode == ACTIVE or (mode == FROZEN and self.rules.turn)

    # ------------------------------------------------------------ frozen

    def hand_over(self, world: World, place: int) -> Iterator[Move]:
        relay = world.relays[place]
        handoff, target = relay.handoff
        if world.relays[target].mode == DEAD:
            return
        doubt = relay.maybe or relay.marked or bool(relay.told)
        digests = [Digest(relay.finished, doubt, relay.missing)]
        if self.rules.liar and place == 0:
            digests.append(Digest(finished=True, maybe=False, missing=frozenset()))
        said = [
            Message("digest", place, target, handoff, digest, page)
            for digest in digests
            for page in PAGES
        ]
        if relay.has:
            said.append(Message("copy", place, target, handoff, relay.marked))
        for message in said:
            if message not in world.net:
                yield short(message), world._replace(net=world.net | {message}), None
        is_told = place not in world.relays[target].missing
        if not relay.has and world.names(place) == target and is_told:
            buried = relay._replace(mode=TOMBSTONE)
            yield f"{place} is a tombstone", world.put(place, buried), None

    # ------------------------------------------------------------ what arrives

    def arrives(self, world: World, message: Message) -> Iterator[Move]:
        here = world.relays[message.target]
        if message.kind in {"receipt", "never"}:
            yield from self.let_go(world, message)
        elif here.mode in {INCOMING, ACTIVE, FROZEN} and self._is_mine(world, message):
            take = self.take_digest if message.kind == "digest" else self.take_copy
            yield from take(world, message)

    def _is_mine(self, world: World, message: Message) -> bool:
        """The hand-off is the current one, or the newest record asks for it."""
        here = world.relays[message.target]
        if not self.rules.bound or here.handoff == (message.handoff, message.source):
            return True
        by_record = message.handoff == f"record {here.record}"
        return by_record and here.mode != INCOMING and world.names(message.target) == message.target

    def take_digest(self, world: World, message: Message) -> Iterator[Move]:
        here, digest = world.relays[message.target], message.says
        assert isinstance(digest, Digest)
        if message.page == "finished" and digest.finished:
            here = here._replace(told=here.told | {message.source})
            brought = here.by == message.source or not self.rules.keep_own
            here = here.end() if here.has and brought else here.mark()
        if message.page == "maybe" and digest.maybe:
            here = here.mark()._replace(maybe=True)
        pages = {(page, one) for page, one in here.pages if one == digest}
        pages |= {(message.page, digest)}
        if len(pages) < len(PAGES) and self.rules.whole_digest:
            here = here._replace(pages=frozenset(pages))
        else:
            passed_on = digest.missing - {message.target}
            still = here.missing - {message.source}
            still = still | passed_on if self.rules.pass_on_missing else frozenset()
            mine = here.handoff[1] == message.source
            here = here._replace(
                pages=frozenset(), missing=still, digested=here.digested or mine
            )  # fmt: skip
        yield f"{short(message)}, arrives", world.put(message.target, here), None

    def take_copy(self, world: World, message: Message) -> Iterator[Move]:
        here, mark = world.relays[message.target], bool(message.says)
        kind = "receipt"
        if self.rules.picky and message.target == 1:
            kind = "never"
        elif here.has:
            by = here.by if here.by == message.source else None
            here = here._replace(by=by, marked=here.marked or mark)
        elif not here.finished and message.source not in here.told:
            here = here.keep(marked=mark, by=message.source)
        answer = Message(kind, message.target, message.source, message.handoff, mark)
        net = world.net | {answer} if kind == "receipt" or self.rules.dead_letter else world.net
        after = world.put(message.target, here)._replace(net=net)
        yield f"{short(message)}, arrives", after, None

    def let_go(self, world: World, message: Message) -> Iterator[Move]:
        here, mark = world.relays[message.target], message.says
        if not here.has or (self.rules.bound and here.marked is not mark):
            return
        current = here.mode == FROZEN and here.handoff == (message.handoff, message.source)
        loose = not self.rules.bound and here.mode in {FROZEN, INCOMING, ACTIVE}
        is_named = world.names(message.target) == message.source
        if not (current or loose) or (self.rules.delete_when_named and not is_named):
            return
        broken = None if is_named else UNNAMED
        ended = here.end()
        after = world
        if message.kind == "never":
            ended = ended._replace(finished=True)
            broken = broken or (TWICE if world.bounced else None)
            after = world._replace(bounced=True)
        yield f"{short(message)}, arrives", after.put(message.target, ended), broken

    # ------------------------------------------------------------ the agent reads and acks

    def session(self, world: World) -> Iterator[Move]:
        """One at a time, where the newest record says; a forked agent's, wherever it may."""
        for place in range(self.rules.relays) if self.rules.fork else (world.home,):
            here = world.relays[place]
            if world.at is None and world.delivers(place):
                given = here.mark() if here.given and self.rules.mark_when_it_ends else here
                opened = world.put(place, given._replace(given=False))
                yield f"a session at {place}", opened._replace(at=place), None
        if world.at is None:
            return
        yield from self.read_and_write(world, world.at)
        gone = world._replace(at=None, reads=frozenset())
        yield f"the session at {world.at} is lost", gone, None

    def read_and_write(self, world: World, place: int) -> Iterator[Move]:
        here = world.relays[place]
        for marked in world.reads if world.got < 2 else ():
            again = world.got and not marked and not self._is_forked(world)
            after = world._replace(reads=world.reads - {marked}, got=world.got + 1)
            yield f"the agent gets it{' marked' * marked}", after, DUPLICATE if again else None
        if not world.delivers(place) or not here.has:
            return
        if not here.given and not world.late:
            marked = here.marked or bool(here.missing)
            after = world.put(place, here._replace(given=True))
            after = after._replace(reads=world.reads | {marked})
            yield f"{place} reads it{' marked' * marked}", after, None
        if world.got:
            acked = here.end()._replace(finished=True)
            yield f"acked at {place}", world.put(place, acked)._replace(done=True), None

    # ------------------------------------------------------------ time, and the end of relays

    def time(self, world: World, place: int) -> Iterator[Move]:
        here = world.relays[place]
        if self.rules.expires and here.has and not world.late and world.receipts:
            yield "it expires", world._replace(late=True), None
        if world.late and here.has and not (world.at == place and here.given):
            yield from self.sweep(world, place)
        if here.mode == INCOMING and world.waits:
            held = here.has or here.finished or here.told or here.maybe or here.pages
            waited = world._replace(waits=world.waits - 1)
            if not here.has and not (self.rules.keep_digested and (here.digested or held)):
                dropped = waited.put(place, Relay(digested=here.digested))
                yield f"{place} was not named and is dropped", dropped, None
        # an agent that saw the digest arrive publishes, whenever it comes back
        if here.mode == NONE and here.digested and world.order and world.order[2] == place:
            yield f"published late: {place}", self.publish(world, place), None

    def sweep(self, world: World, place: int) -> Iterator[Move]:
        """A home lets the expired end, with one bounce in all."""
        here = world.relays[place]
        if not world.delivers(place) and (self.rules.frozen_keeps_expired or here.mode != FROZEN):
            return
        ended = world.put(place, here.end()._replace(finished=True))
        if here.told and self.rules.frozen_keeps_expired:
            yield f"{place} ends it; it ended elsewhere", ended, None
            return
        broken = TWICE if world.bounced else None
        yield f"{place} bounces it", ended._replace(bounced=True), broken

    def die(self, world: World, place: int) -> Iterator[Move]:
        """For good. What a relay receipted that was never named dies with it, and it says so."""
        here = world.relays[place]
        alone = here.has and place in world.receipts
        if world.deaths and here.mode != NONE and place not in world.records and not alone:
            net = frozenset(one for one in world.net if place not in {one.source, one.target})
            dead = world.put(place, Relay(DEAD))._replace(net=net, deaths=world.deaths - 1)
            yield f"{place} is gone for good", dead, None


def short(message: Message) -> str:
    what = f"{message.kind} {message.page}".strip()
    return f"{message.source} to {message.target}: {what} of {message.handoff}"


def after(rules: Rules, *told: str) -> World:
    """The world in which a story ends."""
    world = start(rules)
    for what in told:
        world = next(then for said, then, _ in Moves(rules)(world) if said == what)
    return world


def search(rules: Rules, told: tuple[str, ...] = (), limit: int = 10_000_000) -> Found[Any]:
    moves = Moves(rules)
    return explore(after(rules, *told), moves, moves.is_good, limit)


def verdict(found: Found[Any]) -> str | None:
    return found.broken or (STUCK if found.stuck else None)


# ---------------------------------------------------------------- the proof


def digest(source: int, target: int, order: str) -> tuple[str, ...]:
    """A digest is sent, and arrives."""
    pages = tuple(f"{source} to {target}: digest {page} of {order}" for page in PAGES)
    return (*pages, *(f"{page}, arrives" for page in pages))


FROZEN_SOURCE = ("order 0 to 1", "1 prepares", "sent to 0", "0 freezes")
MOVED = (
    *FROZEN_SOURCE,
    *digest(0, 1, "o12"),
    "0 to 1: copy of o12",
    "0 to 1: copy of o12, arrives",
    "published: 1",
)

# What may happen, and how many worlds are visited at most; None: every one there is.
SPACES = {
    "one order": (Rules(), None),
    "a target that takes nothing": (Rules(picky=True), None),
    "a target that dies": (Rules(deaths=1, returns=1), None),
    "an agent that changes its mind": (Rules(returns=1, replays=1), 40_000),
    "a source out of reach": (Rules(unreachable=1, replays=1), 40_000),
    "a target that waits in vain": (Rules(waits=1, replays=1), 40_000),
    "an envelope that expires": (Rules(expires=True, replays=1), 40_000),
    "a source that lies": (Rules(liar=True, replays=1), 40_000),
    "an agent that runs twice": (Rules(relays=3, fork=True), 40_000),
    "there and back": (Rules(orders=2), 40_000),
    "three relays": (Rules(relays=3, orders=2, unreachable=1), 40_000),
}
# The rule that is off, the promise that breaks, what may happen, and how the story begins.
MUTANTS: list[tuple[str, str, Rules, tuple[str, ...]]] = [
    ("bound", LOST, Rules(orders=2), (*MOVED, "order 1 to 0", "0 prepares", "1 freezes")),
    ("delete_when_named", UNNAMED, Rules(), ()),
    ("way_back", STUCK, Rules(deaths=1, returns=1), ()),
    (
        "turn",
        STUCK,
        Rules(relays=3, orders=2, unreachable=1),
        (*FROZEN_SOURCE, "order 0 to 2", "2 prepares", "published, source unreachable: 2"),
    ),
    (
        "incoming_hands_over",
        STUCK,
        Rules(relays=3, orders=2),
        ("order 0 to 1", "1 prepares", "sent to 1", "order 0 to 2"),
    ),
    ("miss_old_target", DUPLICATE, Rules(relays=3, fork=True), FROZEN_SOURCE),
    (
        "pass_on_missing",
        DUPLICATE,
        Rules(relays=3, orders=2, unreachable=1),
        (
            *MOVED,
            "a session at 1",
            "1 reads it",
            "the agent gets it",
            "order 1 to 2",
            "2 prepares",
        ),
    ),
    ("keep_own", LOST, Rules(liar=True), ()),
    ("whole_digest", DUPLICATE, Rules(replays=1), ()),
    ("keep_digested", DUPLICATE, Rules(waits=1, replays=1), ()),
    ("frozen_keeps_expired", TWICE, Rules(expires=True), ()),
    (
        "freeze_with_record",
        STUCK,
        Rules(unreachable=1),
        ("sent to 0", "order 0 to 1", "1 prepares"),
    ),
    ("dead_letter", STUCK, Rules(picky=True), ()),
    ("mark_when_it_ends", DUPLICATE, Rules(), ()),
    ("close_first", DUPLICATE, Rules(), ()),
]


@pytest.mark.parametrize("story", SPACES)
def test_with_all_rules_nothing_is_lost_or_twice_or_stuck(story: str):
    rules, limit = SPACES[story]
    found = search(rules, limit=limit or 10_000_000)
    assert verdict(found) is None, found
    assert found.whole is (limit is None)
    assert found.worlds > 2_000  # a model that goes nowhere proves nothing


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("story", [story for story, (_, limit) in SPACES.items() if limit])
def test_so_it_is_far_further_out(story: str):
    found = search(SPACES[story][0], limit=1_500_000)
    assert verdict(found) is None, found


@each("hand-off, the model of a network", ("off", "promise", "rules", "told"), MUTANTS)
def test_without_a_rule_a_promise_breaks(
    off: str, promise: str, rules: Rules, told: tuple[str, ...]
):
    found = search(replace(rules, **{off: False}), told)
    assert verdict(found) == promise, found


@pytest.mark.parametrize(
    ("rules", "told"), [(rules, told) for _, _, rules, told in MUTANTS if told]
)
def test_from_where_a_mutant_fails_the_rules_hold(rules: Rules, told: tuple[str, ...]):
    found = search(rules, told, limit=20_000)
    assert verdict(found) is None, found


def test_every_rule_has_a_mutant():
    happens = {"expires", "liar", "picky", "fork"}
    rules = {field.name for field in fields(Rules) if field.type == "bool"} - happens
    assert {off for off, *_ in MUTANTS} == rules
