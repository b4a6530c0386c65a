"""The real code of a hand-off in a world of relays, an agent, senders and a bad network.

One move is one durable step of one relay, one message, or one act of the agent. A relay that
crashes is one whose step was not taken yet, or whose step was taken and what it then had to say was
not said: both are moves here, for every step. Messages stay in the network when they have arrived,
so each of them is delayed and repeated in every way; ``lossy`` takes them away instead.

The side is the real one (:mod:`relay.migration.model.machine`); the inbox beside it is that of
``model_inbox.py``.

::

    sender ──submit──▶ inbox ◀──prepare, freeze, record── agent ◀──read, then write── inbox
                         └──digest, copy──▶ network ──▶ inbox ──receipts──▶ network ──┘
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from relay.inbox.model.types import Disposition, InboxRole
from relay.migration.model import machine
from relay.migration.model.state import (
    DigestPage,
    DigestReceipt,
    Event,
    Freeze,
    MigrationSide,
    OrderRef,
    PeerMessage,
    Prepare,
    RecordObserved,
    RecordRef,
    TimePassed,
    Transition,
)
from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.errors import Refusal
from relay.protocol.ids import Did, Eid, Timestamp
from relay.protocol.types import Mode
from tests.protocol import real_inbox
from tests.protocol.model_inbox import (
    DUP,
    HOMES,
    HOUR,
    LATE,
    STALE,
    STORED,
    Box,
    Item,
    Outcome,
    packed,
)
from tests.protocol.real_inbox import RealBox

NOW = HOUR * 3600
LATER = NOW + 24 * 3600
LIE = b"a lie about "
LOST = "lost"
DUPLICATE = "unmarked duplicate"
TWICE = "bounced twice by one relay"
UNTRUE = "a bounce that denies a delivery"
DENIED = "a relay's word ends another's mail"
STUCK = "stuck"


@dataclass(frozen=True)
class Rules:
    """The events of a world, and the parts of the code that are broken on purpose."""

    relays: int = 2
    envelopes: int = 1
    orders: int = 1
    unheard: int = 0
    """Receipts that no sender hears."""
    unreachable: int = 0
    """Records published without waiting for the digest."""
    returns: int = 0
    """Times that the agent names the frozen source again."""
    renewals: int = 0
    """Records that name the home of now again."""
    deaths: int = 0
    """Relays that are gone for good; never one that a record names."""
    waits: int = 0
    """Times that an unnamed target waits for 24 h."""
    restarts: int = 0
    """Couriers that begin anew though nothing was decided; where messages are lost, all may."""
    forgets: int = 0
    """Memories that are over their budget."""
    gap: bool = False
    """A record is held before it is acted upon."""
    queues: bool = False
    """Relays that are no home take mail, too, and carry it on."""
    expiry: bool = False
    lossy: bool = False
    liar: bool = False
    """Relay 0 may say that all was seen, and that it has forgotten the rest."""
    is_real: bool = False
    """Inboxes are those of the store (``real_inbox.py``)."""
    mutant: str = ""


class Relay(NamedTuple):
    """The content of one relay's store.

    Args:
        side: as it was last written; None: never.
        box: its inbox.
        held: the newest record.
        former: the one before, when it last changed whether this relay is named.
        has_left: it was a home, and its record named others.
    """

    box: Box | RealBox
    side: MigrationSide | None = None
    held: RecordRef | None = None
    former: RecordRef | None = None
    has_left: bool = False


class Copy(NamedTuple):
    """An envelope that a forwarder carries; ``bound``: its session goes on, so an answer counts."""

    handoff: str
    eid: Eid
    marked: bool
    bound: bool = True


class Taken(NamedTuple):
    """A peer's answer to a forwarder; not ``kept``: never; ``denied``: a forbidden answer."""

    eid: Eid
    kept: bool
    denied: bool = False


Message = DigestPage | DigestReceipt | Copy | Taken
Packet = tuple[int, int, Message]


class World(NamedTuple):
    """All that there is.

    Args:
        relays: None: gone for good.
        net: (from, to, message) that may arrive.
        records: all that the agent has published, oldest first.
        order: what it is about.
        seq: of its newest order or record.
        at: where its session is, as it believes.
        reads: what was read for the session, and whether marked; to be written to it.
        receipted: what some sender has a receipt for.
        own: (relay, envelope): who is bound by a receipt now.
        done: what the agent acked; ``seen`` what its handler got.
        late: what has expired.
        bounced: (relay, envelope): what a sender was told.
        left: how often each of what is bounded may still happen.
    """

    relays: tuple[Relay | None, ...]
    net: frozenset[Packet]
    records: tuple[RecordRef, ...]
    order: OrderRef | None
    seq: int
    at: int | None
    reads: frozenset[tuple[Eid, bool]]
    receipted: frozenset[Eid]
    own: frozenset[tuple[int, Eid]]
    done: frozenset[Eid]
    seen: tuple[Eid, ...]
    late: frozenset[Eid]
    bounced: frozenset[tuple[int, Eid]]
    left: tuple[int, ...]


BOUNDED = (
    "orders", "unheard", "unreachable", "returns", "renewals", "deaths", "waits", "restarts",
    "forgets",
)  # fmt: skip

OVER = frozenset(
    {Disposition.ACKED, Disposition.REFUSED, Disposition.EXPIRED, Disposition.FORWARDED}
)
"""A relay that remembers an id so is not bound by its receipt any more."""

Move = tuple[str, World, str | None]


def name(relay: int) -> Did:
    return Did(f"R{relay}")


def number(relay: Did) -> int:
    return int(relay[1:])


def record(seq: int, relay: int) -> RecordRef:
    return RecordRef(RecordVersion(1, seq, b""), (name(relay),))


def start(rules: Rules) -> World:
    first = record(0, 0)
    none = Relay(RealBox() if rules.is_real else Box())
    home = Relay(real_inbox.home() if rules.is_real else Box(InboxRole.HOME), held=first)
    nothing: frozenset[Any] = frozenset()
    return World(
        relays=(home, *((none,) * (rules.relays - 1))),
        net=nothing,
        records=(first,),
        order=None,
        seq=0,
        at=None,
        reads=nothing,
        receipted=nothing,
        own=nothing,
        done=nothing,
        seen=(),
        late=nothing,
        bounced=nothing,
        left=tuple(getattr(rules, what) for what in BOUNDED),
    )


def with_(row: tuple[Any, ...], place: int, value: object) -> tuple[Any, ...]:
    return (*row[:place], value, *row[place + 1 :])


def home_of(world: World) -> int:
    return number(world.records[-1].homes[0])


def spent(world: World, what: str) -> World | None:
    """The world with one of these less; None: there is none left."""
    at = BOUNDED.index(what)
    return (
        world._replace(left=with_(world.left, at, world.left[at] - 1)) if world.left[at] else None
    )


def after(rules: Rules, *told: str) -> World:
    """The world in which a story ends."""
    world = start(rules)
    for what in told:
        may = {said: then for said, then, _ in Moves(rules)(world)}
        assert what in may, f"{what} is none of {sorted(may)}"
        world = may[what]
    return world


def _gone(world: World) -> World:
    return world._replace(at=None, reads=frozenset())


class Moves:
    """Everything that may happen next in one world."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.eids = [Eid(f"m{n}") for n in range(rules.envelopes)]
        self.taken: dict[tuple[Any, ...], Transition | Refusal] = {}

    def __call__(self, world: World) -> Iterator[Move]:
        for what, then, broken in self._all(world):
            yield what, then, broken or self._lost(then)

    def _all(self, world: World) -> Iterator[Move]:
        yield from self.agent(world)
        yield from self.session(world)
        yield from self.network(world)
        for place, relay in enumerate(world.relays):
            if relay is not None:
                yield from self.senders(world, place, relay)
                yield from self.records(world, place, relay)
                yield from self.mover(world, place, relay)
                yield from self.courier(world, place, relay)
                yield from self.time(world, place, relay)
                yield from self.death(world, place, relay)

    def _owed(self, world: World) -> frozenset[Eid]:
        """A liar may always lose what it alone receipted: it need not even lie."""
        if not self.rules.liar:
            return world.receipted
        return frozenset(eid for place, eid in world.own if place) & world.receipted

    def _lost(self, world: World) -> str | None:
        there = {eid for relay in world.relays if relay for eid in relay.box.eids}
        told = {eid for _, eid in world.bounced}
        return LOST if self._owed(world) - world.done - told - there else None

    def is_good(self, world: World) -> bool:
        """Every receipt has come to its end."""
        return self._owed(world) <= world.done | {eid for _, eid in world.bounced}

    def is_mutant(self, mutant: str) -> bool:
        return self.rules.mutant == mutant

    # ------------------------------------------------------------ one step of a relay

    def take(self, side: MigrationSide, said: Event, now: float = NOW) -> Transition | Refusal:
        """A step; the same question has the same answer, so it is asked once."""
        asked = (side, type(said), said, now)
        if asked not in self.taken:
            self.taken[asked] = machine.step(side, said, Timestamp(now))
        return self.taken[asked]

    def put(self, world: World, place: int, relay: Relay) -> World:
        """A relay writes. Nobody answers what an ended session of a forwarder asked for."""
        before = world.relays[place]
        world = world._replace(relays=with_(world.relays, place, relay))
        if before is None or before.box.session != "courier" or relay.box.session == "courier":
            return world
        return self.unbound(world, place)

    def unbound(self, world: World, place: int) -> World:
        if self.is_mutant("an old session's receipt counts"):
            return world
        packets: set[Packet] = set()
        for source, target, said in world.net:
            if source == place and isinstance(said, Copy):
                packets.add((source, target, said._replace(bound=False)))
            elif target != place or not isinstance(said, Taken):
                packets.add((source, target, said))
        return world._replace(net=frozenset(packets))

    def side_of(self, place: int, relay: Relay) -> MigrationSide:
        """As it is written, or as an inbox begins and acts upon its record."""
        if relay.side is not None:
            return relay.side
        side = _begin(place, relay)
        if relay.held is None:
            return side
        step = self.take(side, RecordObserved(relay.held, relay.former))
        assert isinstance(step, Transition)
        return step.side._replace(since=0)

    def apply(
        self, world: World, place: int, said: Event, now: float = NOW
    ) -> tuple[World, Transition] | None:
        """The durable part of a step, and the step; None where it is refused."""
        world = self.settled(world, place, always=True)
        relay = world.relays[place]
        assert relay is not None
        side = self.side_of(place, relay)
        step = self.take(side, said, now)
        if isinstance(step, Refusal):
            return None
        return self.put(world, place, self.written(relay, side, step)), step

    def written(self, relay: Relay, side: MigrationSide, step: Transition) -> Relay:
        changed = step.side._replace(since=0)
        if self.is_mutant("publish before digest") and changed.mode is Mode.ACTIVE:
            changed = changed._replace(awaiting_digests=frozenset())
        before = side if relay.side is not None else side._replace(handoff=None)
        step = step._replace(side=changed)
        box = self._change(relay.box, before, step)
        is_plain = changed.mode in {Mode.ACTIVE, Mode.NONE} and not changed.awaiting_digests
        if relay.side is None and is_plain and box == relay.box and not changed.handoff:
            return relay
        return relay._replace(side=changed, box=box)

    def _change(self, box: Box | RealBox, before: MigrationSide, step: Transition) -> Box | RealBox:
        if not self.rules.mutant or isinstance(box, RealBox):
            return box.change(before, step)
        freezes = step.side.mode is Mode.FROZEN
        if freezes and self.is_mutant("nothing is marked when it freezes"):
            box = box._replace(given=frozenset())
        if step.imports is not None and self.is_mutant("another's ids are not remembered"):
            step = step._replace(imports=None)
        if step.imports is not None and self.is_mutant("what went is no doubt when it is told of"):
            went = [one for one in box.fates if one[1] is Disposition.FORWARDED]
            then = box.change(before, step)
            kept = dict(then.fates) | dict(went)
            return then._replace(fates=frozenset(kept.items()))
        if step.imports is not None and self.is_mutant("what waits is not marked"):
            bare = dict(box.live)
            marked = box.change(before, step)
            return marked._replace(live=frozenset((e, bare.get(e, m)) for e, m in marked.live))
        return box.change(before, step)

    def one(
        self, world: World, place: int, said: Event, what: str, now: float = NOW
    ) -> Iterator[Move]:
        """A step without anything to say, if it changes anything."""
        done = self.apply(world, place, said, now)
        if done is not None and done[0].relays != world.relays:
            yield what, done[0], None

    # ------------------------------------------------------------ senders

    def senders(self, world: World, place: int, relay: Relay) -> Iterator[Move]:
        is_queue = relay.box.holding in {None, InboxRole.FORWARDING} and not relay.has_left
        if is_queue and relay.side is None and (not self.rules.queues or relay.held is None):
            return
        box = relay.box
        if box.holding is None:
            if relay.held is None:
                return
            box = box.queue()
        for eid in self.eids:
            if eid in world.receipted or eid in world.late:
                continue
            done = self._accept(box, Item(eid))
            if done is None or done[1] not in {STORED, DUP}:
                continue
            stored = self.put(world, place, relay._replace(box=done[0]))
            ended = box.disposition(eid) in OVER
            heard = stored._replace(
                receipted=stored.receipted | {eid},
                own=stored.own | (set() if ended else {(place, eid)}),
            )
            yield f"{eid} to R{place}", heard, None
            lost = spent(stored, "unheard")
            if lost is not None and done[0] != relay.box:
                yield f"{eid} to R{place}, no receipt is heard", lost, None

    def _accept(
        self, box: Box | RealBox, item: Item, *, late: bool = False
    ) -> tuple[Box | RealBox, Outcome] | None:
        if not self.rules.mutant or isinstance(box, RealBox):
            return box.accept(item, late=late)
        disposition = box.disposition(item.eid)
        if self.is_mutant("dedupe survives the hand-off") and disposition is Disposition.FORWARDED:
            return box, DUP
        if self.is_mutant("a relay's word ends any mail") and disposition is Disposition.MAYBE_SEEN:
            return box, DUP
        if self.is_mutant("the floor holds for what moves") and box.floor and disposition is None:
            return box, STALE
        is_new = disposition is None and not item.moving and box.holding in HOMES
        if self.is_mutant("another's floor refuses") and box.doubt and is_new:
            return box, STALE
        return box.accept(item, late=late)

    # ------------------------------------------------------------ the agent moves

    def agent(self, world: World) -> Iterator[Move]:
        less = spent(world, "orders")
        if less is not None:
            for target in range(self.rules.relays):
                if target != home_of(world) and world.relays[target] is not None:
                    yield self._order(less, target)
        if world.order is not None:
            yield from self._go_on(world, world.order)
        home = home_of(world)
        renewed = spent(world, "renewals")
        if renewed is not None and world.order is None and world.relays[home] is not None:
            newest = record(world.seq + 1, home)
            then = renewed._replace(seq=world.seq + 1, records=(*world.records, newest))
            settle = not self.rules.gap
            yield f"R{home} is named again", self.merged(then, home, newest, settle=settle), None
        relay = world.relays[home]
        back = spent(world, "returns")
        if back is not None and relay is not None and world.at is None:
            side = self.side_of(home, relay)
            if side.mode is Mode.FROZEN:
                newest = record(world.seq + 1, home)
                then = back._replace(seq=world.seq + 1, order=None)
                yield from self._publish(then, newest, home, f"the agent stays at R{home}")

    def _order(self, world: World, target: int) -> Move:
        seq = world.seq + 1
        home = home_of(world)
        order = OrderRef(f"o{seq}", seq, name(home), name(target), record(seq, target), LATER)
        return f"order {seq}: R{home} to R{target}", world._replace(order=order, seq=seq), None

    def _go_on(self, world: World, order: OrderRef) -> Iterator[Move]:
        source, target = number(order.source), number(order.target)
        old, new = world.relays[source], world.relays[target]
        if new is None:
            return
        there = self.side_of(target, new)
        if not (there.mode is Mode.INCOMING and there.handoff == (order.id, order.source)):
            brought = self.merged(world, target, world.records[-1], settle=True)
            yield from self.one(brought, target, Prepare(order), f"R{target} prepares")
            return
        if old is not None and self.side_of(source, old).handoff != (order.id, order.target):
            yield from self.one(self._leave(world), source, Freeze(order), f"R{source} freezes")
        done = world._replace(order=None)
        early = spent(done, "unreachable")
        if there.digest_received or self.is_mutant("publish before digest"):
            yield from self._publish(done, order.record, target, f"published: R{target}")
        elif early is not None:
            what = f"published, source unreachable: R{target}"
            yield from self._publish(early, order.record, target, what)

    def _publish(self, world: World, newest: RecordRef, place: int, what: str) -> Iterator[Move]:
        world = self._leave(world)._replace(records=(*world.records, newest))
        yield what, self.merged(world, place, newest, settle=not self.rules.gap), None

    def _leave(self, world: World) -> World:
        """Return what a closed session still brings never reaches the handler."""
        late = self.is_mutant("frames of a closed session")
        return world._replace(at=None) if late else _gone(world)

    # ------------------------------------------------------------ records spread

    def merged(self, world: World, place: int, newest: RecordRef, *, settle: bool) -> World:
        """The record is held; without a side it decides the mode at once."""
        relay = world.relays[place]
        assert relay is not None
        if relay.held is None or newest.version > relay.held.version:
            world = self.put(world, place, self._merge(place, relay, newest))
        return self.settled(world, place) if settle else world

    @staticmethod
    def _merge(place: int, relay: Relay, newest: RecordRef) -> Relay:
        held = relay.held
        names_us = name(place) in newest.homes
        turns = held is not None and (name(place) in held.homes) is not names_us
        relay = relay._replace(held=newest, former=held if turns else relay.former)
        if relay.side is not None:
            return relay
        if names_us and relay.box.holding not in HOMES:
            holding = InboxRole.UNCERTAIN if relay.former else InboxRole.HOME
            return relay._replace(box=relay.box.hold(holding))
        if not names_us and relay.box.holding in HOMES:
            return relay._replace(box=relay.box.hold(InboxRole.FORWARDING), has_left=True)
        return relay

    def settled(self, world: World, place: int, *, always: bool = False) -> World:
        """The newest record is acted upon; ``always``: even where nothing of it is here."""
        relay = world.relays[place]
        assert relay is not None
        if relay.held is None:
            return world
        side = relay.side or _begin(place, relay)
        queue = relay.box.holding in {None, InboxRole.FORWARDING} and not relay.has_left
        if relay.side is None and queue and not always:
            return world
        step = self.take(side, RecordObserved(relay.held, relay.former))
        assert isinstance(step, Transition)
        return self.put(world, place, self.written(relay, side, step))

    def records(self, world: World, place: int, relay: Relay) -> Iterator[Move]:
        newest = world.records[-1]
        if relay.held != newest:
            then = self.merged(world, place, newest, settle=not self.rules.gap)
            yield f"R{place} hears of the record", then, None
        then = self.settled(world, place)
        if then != world:
            yield f"R{place} acts upon its record", then, None

    # ------------------------------------------------------------ the agent's session

    def _serves(self, relay: Relay) -> bool:
        frozen = relay.side is not None and relay.side.mode is Mode.FROZEN
        is_odd = self.is_mutant("deliver while frozen") and frozen
        return relay.box.holding in HOMES or is_odd

    def session(self, world: World) -> Iterator[Move]:
        home = home_of(world)
        relay = world.relays[home]
        is_newest = relay is not None and relay.held == world.records[-1]
        if relay is not None and world.at is None and is_newest and self._serves(relay):
            then = self.put(world, home, relay._replace(box=relay.box.open("agent")))
            yield f"a session at R{home}", then._replace(at=home), None
        if world.at is not None:
            here = world.relays[world.at]
            yield from self._write(world)
            if here is not None and here.box.session == "agent" and self._serves(here):
                yield from self._read_and_ack(world, world.at, here)
            yield f"the session at R{world.at} is lost", _gone(world), None

    def _read_and_ack(self, world: World, place: int, relay: Relay) -> Iterator[Move]:
        box = relay.box
        may = box.readable()
        for eid in sorted(box.eids):
            if eid in may and eid not in world.late:
                mark = may[eid]
                if self.is_mutant("a doubtful home marks nothing"):
                    mark = (eid, True) in box.live
                then = self.put(world, place, relay._replace(box=box.give(eid)))
                then = then._replace(reads=world.reads | {(eid, mark)})
                yield f"R{place} reads {eid}{' marked' * mark}", then, None
            if eid in world.seen:
                then = self.put(world, place, relay._replace(box=box.end(eid, Disposition.ACKED)))
                yield f"{eid} is acked at R{place}", then._replace(done=world.done | {eid}), None

    def _write(self, world: World) -> Iterator[Move]:
        for eid, mark in world.reads:
            seen = world.seen.count(eid)
            if seen == 2:
                continue
            then = world._replace(
                reads=world.reads - {(eid, mark)}, seen=tuple(sorted((*world.seen, eid)))
            )
            yield (
                f"the agent gets {eid}{' marked' * mark}",
                then,
                (DUPLICATE if seen and not mark else None),
            )

    # ------------------------------------------------------------ what a relay says to another

    def mover(self, world: World, place: int, relay: Relay) -> Iterator[Move]:
        """A frozen side says what its agent has seen. The pages are all of one moment."""
        side = relay.side
        if side is None or side.handoff is None or not machine.has_work(side):
            return
        peer = number(side.handoff.peer)
        pages = digest(side, relay.box)
        if self.is_mutant("what is missing is not passed on"):
            pages = tuple(page._replace(awaiting_digests=frozenset()) for page in pages)
        if self.rules.liar and place == 0:
            everything = b"".join(packed(eid) for eid in self.eids)
            others = b"".join(packed(eid, Eid("another")) for eid in self.eids)
            for whole, floor, ids in ((b"all", -1, everything), (b"floor", HOUR, b""),
                                      (b"other", -1, others)):  # fmt: skip
                lie = LIE + whole
                pages += (DigestPage(side.handoff.id, lie, 0, 1, frozenset(), floor, ids),)
        for page in pages:
            if (place, peer, page) not in world.net and world.relays[peer] is not None:
                then = world._replace(net=world.net | {(place, peer, page)})
                yield f"R{place} to R{peer}: {short(page)}", then, None

    def courier(self, world: World, place: int, relay: Relay) -> Iterator[Move]:
        """Return what waits at a relay that is no home goes to the one that is."""
        box, peer = relay.box, self._goes_to(relay)
        if box.holding is not InboxRole.FORWARDING or peer is None or not box.live:
            return
        if box.session != "courier":
            opened = self.put(world, place, relay._replace(box=box.open("courier")))
            yield f"R{place} sends a courier", opened, None
            return
        # nothing is under way to the home of now: it was turned away, or that has moved
        is_idle = not any(
            one == place and two == number(peer) and isinstance(said, Copy) and said.bound
            for one, two, said in world.net
        )
        again = world if self.rules.lossy or is_idle else spent(world, "restarts")
        if again is not None and box.given:
            anew = self.put(again, place, relay._replace(box=box.open("courier")))
            yield f"R{place} sends its courier again", self.unbound(anew, place), None
        side = relay.side
        handoff = side.handoff.id if side is not None and side.handoff is not None else ""
        for eid, is_marked in sorted(box.readable().items()):
            mark = is_marked and not self.is_mutant("marks are not copied")
            packet = (place, number(peer), Copy(handoff, eid, mark))
            gone = box.give(eid)
            if self.is_mutant("delete before receipt"):
                gone = box.end(eid, Disposition.FORWARDED)
            then = self.put(world, place, relay._replace(box=gone))
            yield (
                f"R{place} to R{packet[1]}: {short(packet[2])}",
                then._replace(net=then.net | {packet}),
                None,
            )

    @staticmethod
    def _goes_to(relay: Relay) -> Did | None:
        """A side that is written says so itself, so that all goes under its hand-off."""
        side = relay.side
        if side is not None and side.mode is Mode.FROZEN:
            return side.handoff.peer if side.handoff and side.names_target else None
        return relay.held.home if relay.held else None

    def network(self, world: World) -> Iterator[Move]:
        for source, target, message in world.net:
            here = world.relays[target]
            net = world.net
            if self.rules.lossy:
                net = world.net - {(source, target, message)}
                yield f"{short(message)} is lost", world._replace(net=net), None
            if here is not None:
                then = world._replace(net=net)
                match message:
                    case Copy():
                        yield from self._copied(then, source, target, message)
                    case Taken():
                        yield from self._taken(then, source, target, message)
                    case _:
                        yield from self._told(then, source, target, message)

    def _told(
        self, world: World, source: int, target: int, message: DigestPage | DigestReceipt
    ) -> Iterator[Move]:
        here = world.relays[target]
        assert here is not None
        side = self.side_of(target, here)
        if self.is_mutant("one page is a digest") and isinstance(message, DigestPage):
            message = message._replace(number=0, total=1)
        if self.is_mutant("any hand-off will do") and side.handoff is not None:
            message = message._replace(handoff=side.handoff.id)
        # between relays that the agent never named there is no link in this world
        done = self.apply(world, target, PeerMessage(name(source), message, named=True))
        if done is None:
            return
        then, step = done
        what = f"R{target} gets from R{source}: {short(message)}"
        net = then.net
        if step.answer is not None and isinstance(message, DigestPage):
            # two digest senders agree on the next page; a side learns only that all have come
            whole = step.answer.next == message.total
            net |= {(target, source, step.answer)} if whole else set()
        if then.relays != world.relays:
            yield f"{what}, and crashes", then, None
        if net != then.net:
            yield what, then._replace(net=net), None

    def _copied(self, world: World, source: int, target: int, copy: Copy) -> Iterator[Move]:
        here = world.relays[target]
        assert here is not None
        moving = bool(copy.handoff) and self.side_of(target, here).accepts_handoff_from(
            name(source)
        )
        item = Item(copy.eid, copy.marked, via=True, moving=moving)
        done = self._accept(here.box, item, late=copy.eid in world.late)
        if done is None:
            return
        box, outcome = done
        counts = copy.bound and (moving or not copy.handoff)
        # a relay may have forgotten by itself; then only what moves is taken all the same
        is_own = here.box.floor and not moving
        denied = outcome is STALE and not is_own
        then = self.put(world, target, here._replace(box=box))
        if copy.eid in box.eids:
            then = then._replace(own=then.own | {(target, copy.eid)})
        what = f"R{target} gets from R{source}: {short(copy)}"
        if then != world:
            yield f"{what}, and crashes", then, None
        answer = (target, source, Taken(copy.eid, outcome not in {LATE, STALE}, denied))
        if counts and answer not in then.net:
            yield what, then._replace(net=then.net | {answer}), None

    def _taken(self, world: World, source: int, target: int, taken: Taken) -> Iterator[Move]:
        here = world.relays[target]
        assert here is not None
        box = here.box
        old = self.is_mutant("an old session's receipt counts")
        if taken.eid not in box.eids or (box.session != "courier" and not old):
            return
        disposition = Disposition.FORWARDED if taken.kept else Disposition.REFUSED
        then = self.put(world, target, here._replace(box=box.end(taken.eid, disposition)))
        then = then._replace(own=then.own - {(target, taken.eid)})
        broken = None
        if not taken.kept:
            maybe = (taken.eid, True) in box.live
            then, broken = self._bounce(then, target, taken.eid, maybe=maybe)
            broken = DENIED if taken.denied else broken
        yield f"R{target} gets from R{source}: {short(taken)}", then, broken

    def _bounce(
        self, world: World, place: int, eid: Eid, *, maybe: bool
    ) -> tuple[World, str | None]:
        relay = world.relays[place]
        # one that has forgotten an id may be brought its envelope a second time
        forgot = relay is not None and relay.box.floor
        broken = TWICE if (place, eid) in world.bounced and not forgot else None
        # one that waits for another's word cannot know; one that is no home is not asked to
        knows = relay is not None and relay.box.holding is InboxRole.HOME
        if knows and not maybe and eid in world.seen:
            broken = UNTRUE
        return world._replace(bounced=world.bounced | {(place, eid)}), broken

    # ------------------------------------------------------------ time, and the end of relays

    def time(self, world: World, place: int, relay: Relay) -> Iterator[Move]:
        waited = spent(world, "waits")
        if waited is not None and relay.side and relay.side.mode is Mode.INCOMING:
            what = f"R{place} was not named for 24 h"
            yield from self.one(waited, place, TimePassed(), what, machine.MAX_UNNAMED_S)
        forgot = spent(world, "forgets")
        if forgot is not None and relay.box.fates:
            then = self.put(forgot, place, relay._replace(box=relay.box.forget()))
            yield f"R{place} forgets", then, None
        if self.rules.expiry:
            yield from self._expire(world, place, relay)

    def _expire(self, world: World, place: int, relay: Relay) -> Iterator[Move]:
        box = relay.box
        for eid in sorted(box.eids & world.receipted):
            if eid not in world.late:
                yield f"{eid} expires", world._replace(late=world.late | {eid}), None
            elif box.holding is not InboxRole.PAUSED and eid not in box.given:
                ended = self.put(
                    world, place, relay._replace(box=box.end(eid, Disposition.EXPIRED))
                )
                then, broken = self._bounce(ended, place, eid, maybe=box.is_marked(eid))
                yield f"R{place} sweeps {eid}", then, broken

    def death(self, world: World, place: int, relay: Relay) -> Iterator[Move]:
        """For good, and with all it had; what no record ever named may die without any loss."""
        is_named = any(name(place) in ref.homes for ref in world.records)
        alone = relay.box.eids & {eid for n, eid in world.own if n == place}
        less = spent(world, "deaths")
        if less is not None and not is_named and relay.box.holding is not None and not alone:
            then = less._replace(relays=with_(less.relays, place, None))
            yield f"R{place} is gone for good", then, None


def _begin(place: int, relay: Relay) -> MigrationSide:
    holding, former = relay.box.holding, relay.former
    return machine.initial_side(name(place), holding, former, has_left=relay.has_left)


def digest(side: MigrationSide, box: Box | RealBox) -> tuple[DigestPage, ...]:
    """Return the pages of a digest, one id each."""
    assert side.handoff is not None
    ids, floor = box.doubts()
    parts = ids or [b""]
    about = repr((parts, floor, sorted(side.awaiting_digests)))
    whole = hashlib.sha256(about.encode()).digest()[:4]
    return tuple(
        DigestPage(side.handoff.id, whole, at, len(parts), side.awaiting_digests, floor, part)
        for at, part in enumerate(parts)
    )


def short(message: Message) -> str:
    match message:
        case DigestPage():
            lie = f"{message.digest_id.decode()} " if message.digest_id.startswith(LIE) else ""
            return f"{lie}digest {message.number + 1}/{message.total} of {message.handoff}"
        case Copy():
            mark, old = " marked" * message.marked, " of an old session" * (not message.bound)
            return f"{message.eid}{mark} of {message.handoff or 'a queue'}{old}"
        case DigestReceipt():
            return f"{message.next} pages are here, {message.handoff}"
        case Taken():
            return f"{message.eid} is {'here' if message.kept else 'refused'}"
