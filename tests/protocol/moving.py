"""The real code of a hand-off in a world of relays, an agent, a sender and a bad network.

One move is one durable step of one relay, one message, or one act of the agent. A relay that
crashes is one whose step was not taken yet, or whose step was taken and what it then had to say was
not said: both are moves here, for every step. Messages stay in the network when they have arrived,
so each of them is delayed and repeated in every way; ``lossy`` takes them away instead.

::

    sender ──submit──▶ Side ◀──prepare, freeze, record── agent ◀──read, then write── Side
                         └──digest, copy──▶ network ──▶ Side ──receipts──▶ network ──┘
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from relay.core import handover, migration
from relay.core.errors import Refusal
from relay.core.handover import Step
from relay.core.ids import Did, Eid, Timestamp
from relay.core.migration_values import (
    Acked,
    Answer,
    Bounce,
    Closed,
    CopyPage,
    CopyReceipt,
    DigestPage,
    DigestReceipt,
    End,
    Expired,
    Forget,
    Freeze,
    Heard,
    Held,
    Input,
    Keep,
    Learned,
    Mark,
    Message,
    Mode,
    OrderRef,
    Prepare,
    Receipt,
    RecordRef,
    Side,
    Submitted,
    Ticked,
)

NOW = Timestamp(0)
LATER = 1_000_000
LOST = "lost"
DUPLICATE = "unmarked duplicate"
TWICE = "bounced twice"
UNTRUE = "a bounce that denies a delivery"
STUCK = "stuck"
STORE = "the store does not follow"


@dataclass(frozen=True)
class Rules:
    """What the world may do, and which parts of the code are broken on purpose."""

    relays: int = 2
    envelopes: int = 1
    orders: int = 1
    unheard: int = 0
    """Receipts that no sender hears."""
    unreachable: int = 0
    """Records published without waiting for the digest."""
    returns: int = 0
    """Times that the agent names the frozen source again."""
    deaths: int = 0
    """Relays that are gone for good; never one that a record names."""
    waits: int = 0
    """Times that an unnamed target waits for 24 h."""
    expiry: bool = False
    lossy: bool = False
    liar: bool = False
    """Relay 0 may say that all is finished."""
    mutant: str = ""


class World(NamedTuple):
    """All that there is.

    Args:
        sides: the inbox at each relay, as its store has it; None: gone for good.
        net: (from, to, message) that may arrive.
        records: all that the agent has published, oldest first.
        order: what it is about.
        seq: of its newest order or record.
        at: where its session is.
        reads: what was read for the session, and is to be written to it.
        given: by relay, what its newest session may have been handed, unless marked since.
        receipted: what some sender has a receipt for.
        own: (relay, envelope) whose receipt is that relay's.
        done: what the agent acked; ``seen`` what its handler got.
        bounced: what its sender was told.
    """

    sides: tuple[Side | None, ...]
    net: frozenset[tuple[int, int, Message]]
    records: tuple[RecordRef, ...]
    order: OrderRef | None
    seq: int
    at: int | None
    reads: frozenset[Held]
    given: tuple[frozenset[Eid], ...]
    receipted: frozenset[Eid]
    own: frozenset[tuple[int, Eid]]
    done: frozenset[Eid]
    seen: tuple[Eid, ...]
    late: frozenset[Eid]
    bounced: frozenset[Eid]
    orders: int
    unheard: int
    unreachable: int
    returns: int
    deaths: int
    waits: int


Move = tuple[str, World, str | None]


def name(relay: int) -> Did:
    return Did(f"R{relay}")


def record(seq: int, relay: int) -> RecordRef:
    return RecordRef((1, seq, b""), (name(relay),))


def start(rules: Rules) -> World:
    first = record(0, 0)
    homes = (Side(name(0), Mode.ACTIVE, first),)
    nothing: frozenset[Any] = frozenset()
    return World(
        sides=(*homes, *(Side(name(n)) for n in range(1, rules.relays))),
        net=nothing,
        records=(first,),
        order=None,
        seq=0,
        at=None,
        reads=nothing,
        given=(nothing,) * rules.relays,
        receipted=nothing,
        own=nothing,
        done=nothing,
        seen=(),
        late=nothing,
        bounced=nothing,
        orders=rules.orders,
        unheard=rules.unheard,
        unreachable=rules.unreachable,
        returns=rules.returns,
        deaths=rules.deaths,
        waits=rules.waits,
    )


def with_(row: tuple[Any, ...], place: int, value: object) -> tuple[Any, ...]:
    return (*row[:place], value, *row[place + 1 :])


def home_of(world: World) -> int:
    return int(world.records[-1].homes[0][1:])


def shelf(side: Side) -> dict[Eid, bool]:
    return {held.eid: held.marked for held in side.live}


def follows(before: Side, step: Step) -> bool:
    """Whether a store that carries out the effects has what the new side says it has."""
    kept = shelf(before)
    for effect in step.effects:
        match effect:
            case Keep():
                kept[effect.eid] = effect.marked
            case Mark():
                kept.update(dict.fromkeys(effect.eids, True))
            case End():
                for eid in effect.eids:
                    del kept[eid]
            case Forget() if effect.eids & kept.keys():
                return False
            case _:
                pass
    emptied = step.side.mode is Mode.NONE and before.mode is not Mode.NONE
    return kept == shelf(step.side) or emptied


def after(rules: Rules, *told: str) -> World:
    """The world in which a story ends."""
    world = start(rules)
    for what in told:
        world = next(then for said, then, _ in Moves(rules)(world) if said == what)
    return world


class Moves:
    """Everything that may happen next in one world."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.eids = [Eid(f"m{n}") for n in range(rules.envelopes)]
        self.taken: dict[tuple[Any, ...], Step | Refusal] = {}

    def __call__(self, world: World) -> Iterator[Move]:
        for what, after, broken in self._all(world):
            yield what, after, broken or self._lost(after)

    def _all(self, world: World) -> Iterator[Move]:
        yield from self.agent(world)
        yield from self.session(world)
        yield from self.network(world)
        for relay, side in enumerate(world.sides):
            if side is not None:
                yield from self.senders(world, relay)
                yield from self.records(world, relay, side)
                yield from self.mover(world, relay, side)
                yield from self.time(world, relay, side)
                yield from self.death(world, relay, side)

    def _lost(self, world: World) -> str | None:
        there = {held.eid for side in world.sides if side for held in side.live}
        for eid in world.receipted - world.done - world.bounced - there:
            # a source may always lose what it alone gave a receipt for: it need not even lie
            if not self.rules.liar or any((n, eid) in world.own for n in range(1, 9)):
                return LOST
        return None

    def is_good(self, world: World) -> bool:
        """Every receipt has come to its end."""
        return all(
            eid in world.done | world.bounced
            or (self.rules.liar and not any((n, eid) in world.own for n in range(1, 9)))
            for eid in world.receipted
        )

    # ------------------------------------------------------------ one step of a relay

    def take(self, side: Side, said: Input, now: float = 0) -> Step | Refusal:
        """A step; the same question has the same answer, so it is asked once."""
        asked = (side, type(said), said, now)
        if asked not in self.taken:
            self.taken[asked] = self._take(side, said, now)
        return self.taken[asked]

    def _take(self, side: Side, said: Input, now: float) -> Step | Refusal:
        mutant = self.rules.mutant
        if mutant == "a relay's word ends any mail" and isinstance(said, Heard):
            lies = {held._replace(brought_by=said.peer) for held in side.live}
            side = side._replace(live=frozenset(lies))
        if mutant == "marks are not copied" and isinstance(said, Heard):
            return self._unmarked(side, said)
        step = migration.step(side, said, Timestamp(now))
        if mutant == "dedupe survives the hand-off" and isinstance(step, Step):
            kept = [e.eids for e in step.effects if isinstance(e, Forget)]
            finished = step.side.finished.union(*kept)
            return step._replace(side=step.side._replace(finished=finished))
        return step

    @staticmethod
    def _unmarked(side: Side, said: Heard) -> Step | Refusal:
        copy = said.message
        if not isinstance(copy, CopyPage):
            return migration.step(side, said, NOW)
        bare = copy._replace(items=tuple((eid, False) for eid, _ in copy.items))
        step = migration.step(side, said._replace(message=bare), NOW)
        if isinstance(step, Refusal):
            return step
        answer = Answer(CopyReceipt(copy.handoff, copy.items))
        return step._replace(effects=(*step.effects[:-1], answer))

    def apply(
        self, world: World, relay: int, said: Input, now: float = 0
    ) -> tuple[World, Step, str | None] | None:
        """The durable part of a step; None where it is refused."""
        side = world.sides[relay]
        assert side is not None
        step = self.take(side, said, now)
        if isinstance(step, Refusal):
            return None
        broken = None if follows(side, step) else STORE
        for effect in step.effects:
            if isinstance(effect, Bounce):
                world, untrue = self._bounce(world, relay, effect)
                broken = broken or untrue
        after = world._replace(sides=with_(world.sides, relay, step.side._replace(since=0)))
        return after, step, broken

    def _bounce(self, world: World, relay: int, bounce: Bounce) -> tuple[World, str | None]:
        side = world.sides[relay]
        assert side is not None
        # a relay that cannot know what became of it elsewhere bounces: better than never
        knows = relay == home_of(world) and not side.missing
        broken = TWICE if knows and bounce.eids & world.bounced else None
        if knows and not bounce.maybe_delivered and bounce.eids & set(world.seen):
            broken = UNTRUE
        return world._replace(bounced=world.bounced | bounce.eids), broken

    def _let_go(self, world: World, relay: int, gone: frozenset[Eid], peer: int) -> World:
        """A relay that hands over is bound no more; the one that took it is, unless a liar gave."""
        mine = frozenset((relay, eid) for eid in gone)
        theirs = frozenset((peer, eid) for eid in gone if relay or not self.rules.liar)
        return world._replace(own=(world.own - mine) | theirs)

    def one(self, world: World, relay: int, said: Input, what: str, now: float = 0) -> list[Move]:
        """A step without anything to say, if it changes anything."""
        done = self.apply(world, relay, said, now)
        if done is None or (done[0] == world and done[2] is None):
            return []
        return [(what, done[0], done[2])]

    # ------------------------------------------------------------ senders

    def senders(self, world: World, relay: int) -> Iterator[Move]:
        for eid in self.eids:
            if eid in world.receipted or eid in world.late:
                continue
            done = self.apply(world, relay, Submitted(eid))
            if done is None:
                continue
            after, step, broken = done
            assert any(isinstance(effect, Receipt) for effect in step.effects)
            heard = after._replace(
                receipted=after.receipted | {eid}, own=after.own | {(relay, eid)}
            )
            yield f"{eid} to R{relay}", heard, broken
            if world.unheard and after != world:
                lost = after._replace(unheard=world.unheard - 1)
                yield f"{eid} to R{relay}, no receipt is heard", lost, broken

    # ------------------------------------------------------------ the agent moves

    def agent(self, world: World) -> Iterator[Move]:
        if world.orders:
            for target in range(self.rules.relays):
                if target != home_of(world) and world.sides[target] is not None:
                    yield self._order(world, target)
        if world.order is not None:
            yield from self._go_on(world, world.order)
        home = home_of(world)
        side = world.sides[home]
        if world.returns and side is not None and side.mode is Mode.FROZEN and world.at is None:
            yield from self._publish(
                world._replace(seq=world.seq + 1, order=None, returns=world.returns - 1),
                record(world.seq + 1, home),
                home,
                f"the agent stays at R{home}",
            )

    def _order(self, world: World, target: int) -> Move:
        seq = world.seq + 1
        home = home_of(world)
        order = OrderRef(f"o{seq}", seq, name(home), name(target), record(seq, target), LATER)
        after = world._replace(order=order, seq=seq, orders=world.orders - 1)
        return f"order {seq}: R{home} to R{target}", after, None

    def _go_on(self, world: World, order: OrderRef) -> Iterator[Move]:
        source, target = int(order.source[1:]), int(order.target[1:])
        old, new = world.sides[source], world.sides[target]
        if new is None:
            return
        is_ready = new.mode is Mode.INCOMING and new.handoff == (order.id, order.source)
        if not is_ready:
            yield from self._prepare(world, target, order)
            return
        if old is not None and old.handoff != (order.id, order.target):
            yield from self._freeze(world, source, order)
        if new.digested:
            yield from self._publish(
                world._replace(order=None), order.record, target, f"published: R{target}"
            )
        elif world.unreachable:
            yield from self._publish(
                world._replace(order=None, unreachable=world.unreachable - 1),
                order.record,
                target,
                f"published, source unreachable: R{target}",
            )

    def _prepare(self, world: World, target: int, order: OrderRef) -> Iterator[Move]:
        """The agent brings its newest record when it logs in."""
        login = self.apply(world, target, self._learned(world, target, world.records[-1]))
        assert login is not None
        yield from self.one(login[0], target, Prepare(order), f"R{target} prepares")

    def _freeze(self, world: World, source: int, order: OrderRef) -> Iterator[Move]:
        """The agent closes its session first."""
        closed = self._leave(world)
        in_flight = self._in_flight(world, source)
        for what, after, broken in self.one(
            closed, source, Freeze(order, in_flight), f"R{source} freezes"
        ):
            yield what, after._replace(given=with_(after.given, source, frozenset())), broken

    def _publish(self, world: World, newest: RecordRef, relay: int, what: str) -> Iterator[Move]:
        world = self._leave(world)._replace(records=(*world.records, newest))
        done = self.apply(world, relay, self._learned(world, relay, newest))
        assert done is not None
        after = done[0]
        if self.rules.mutant == "publish before digest":
            side = after.sides[relay]
            assert side is not None
            after = after._replace(
                sides=with_(after.sides, relay, side._replace(missing=frozenset()))
            )
        yield what, after, done[2]

    def _leave(self, world: World) -> World:
        """What a closed session still brings never reaches the handler."""
        late = self.rules.mutant == "frames of a closed session"
        return world._replace(at=None) if late else _gone(world)

    def _in_flight(self, world: World, relay: int) -> frozenset[Eid]:
        if self.rules.mutant == "nothing is marked when it freezes":
            return frozenset()
        return world.given[relay]

    # ------------------------------------------------------------ records spread

    def _learned(self, world: World, relay: int, newest: RecordRef) -> Learned:
        return Learned(newest, self._in_flight(world, relay))

    def records(self, world: World, relay: int, side: Side) -> Iterator[Move]:
        newest = world.records[-1]
        if side.record != newest:
            yield from self.one(
                world, relay, self._learned(world, relay, newest), f"R{relay} hears of the record"
            )

    # ------------------------------------------------------------ the agent's session

    def session(self, world: World) -> Iterator[Move]:
        home = home_of(world)
        side = world.sides[home]
        frozen = self.rules.mutant == "deliver while frozen" and side and side.mode is Mode.FROZEN
        if side is not None and world.at is None and (side.delivers or frozen):
            done = self.apply(world, home, Closed(world.given[home]))
            assert done is not None
            after = done[0]._replace(at=home, given=with_(world.given, home, frozenset()))
            yield f"a session at R{home}", after, done[2]
        if world.at is not None:
            here = world.sides[world.at]
            yield from self._write(world)
            if here is not None:
                yield from self._read_and_ack(world, world.at, here)
            yield f"the session at R{world.at} is lost", _gone(world), None

    def _read_and_ack(self, world: World, relay: int, side: Side) -> Iterator[Move]:
        frozen = self.rules.mutant == "deliver while frozen" and side.mode is Mode.FROZEN
        for held in side.live:
            if not (side.delivers or frozen):
                return
            if held.eid not in world.given[relay] and held.eid not in world.late:
                marked = held._replace(marked=side.is_marked(held))
                given = with_(world.given, relay, world.given[relay] | {held.eid})
                after = world._replace(reads=world.reads | {marked}, given=given)
                yield f"R{relay} reads {held.eid}{' marked' * marked.marked}", after, None
            if held.eid in world.seen:
                done = self.apply(world, relay, Acked(frozenset({held.eid})))
                if done is None:
                    continue
                after = done[0]._replace(done=world.done | {held.eid})
                yield f"{held.eid} is acked at R{relay}", after, done[2]

    def _write(self, world: World) -> Iterator[Move]:
        for held in world.reads:
            seen = world.seen.count(held.eid)
            if seen == 2:
                continue
            after = world._replace(
                reads=world.reads - {held}, seen=tuple(sorted((*world.seen, held.eid)))
            )
            broken = DUPLICATE if seen and not held.marked else None
            yield f"the agent gets {held.eid}{' marked' * held.marked}", after, broken

    # ------------------------------------------------------------ between relays

    def mover(self, world: World, relay: int, side: Side) -> Iterator[Move]:
        """What a frozen side may say; more than it must (:func:`migration.due`)."""
        if side.handoff is None or side.mode is not Mode.FROZEN:
            return
        peer = int(side.handoff.peer[1:])
        said: list[Message] = [*handover.digest_pages(side, 1)]
        if self.rules.lossy:
            said = [*migration.due(side)]
        else:
            said += handover.copy_pages(side, 1)
        if self.rules.liar and relay == 0:
            said += [DigestPage(side.handoff.id, b"", 0, 1, frozenset(self.eids), frozenset(),
                                frozenset())]  # fmt: skip
        for message in said:
            if (relay, peer, message) not in world.net and world.sides[peer] is not None:
                after = world._replace(net=world.net | {(relay, peer, message)})
                yield f"R{relay} to R{peer}: {_short(message)}", after, None

    def network(self, world: World) -> Iterator[Move]:
        for source, target, message in world.net:
            here = world.sides[target]
            packet = (source, target, message)
            net = world.net - {packet} if self.rules.lossy else world.net
            if self.rules.lossy:
                yield f"{_short(message)} is lost", world._replace(net=net), None
            if here is not None:
                yield from self._arrive(world._replace(net=net), source, target, message)

    def _arrive(self, world: World, source: int, target: int, message: Message) -> Iterator[Move]:
        # between relays that the agent never named there is no link in this world
        said = Heard(name(source), self._bent(world, target, message), named=True)
        done = self.apply(world, target, said)
        what = f"R{target} gets from R{source}: {_short(message)}"
        if done is None:
            return
        after, step, broken = done
        for effect in step.effects:
            if isinstance(effect, Forget):
                after = self._let_go(after, target, effect.eids, source)
        answers = [effect.message for effect in step.effects if isinstance(effect, Answer)]
        net = after.net | {(target, source, answer) for answer in answers}
        if self.rules.mutant == "delete before receipt":
            yield f"{what}, answers, and crashes", world._replace(net=net), None
        if after != world:
            yield f"{what}, and crashes", after, broken
        if net != after.net:
            yield what, after._replace(net=net), broken

    def _bent(self, world: World, target: int, message: Message) -> Message:
        """A mutant's message."""
        side = world.sides[target]
        if self.rules.mutant == "one page is a digest" and isinstance(message, DigestPage):
            return message._replace(number=0, total=1)
        if (
            self.rules.mutant == "any hand-off will do"
            and side is not None
            and side.handoff is not None
        ):
            return message._replace(handoff=side.handoff.id)
        if self.rules.mutant == "a receipt for any mark" and isinstance(message, CopyReceipt):
            marks = shelf(side) if side else {}
            items = tuple((eid, marks.get(eid, mark)) for eid, mark in message.items)
            return message._replace(items=items)
        return message

    # ------------------------------------------------------------ time, and the end of relays

    def time(self, world: World, relay: int, side: Side) -> Iterator[Move]:
        if side.mode is Mode.INCOMING and world.waits:
            waited = world._replace(waits=world.waits - 1)
            now = migration.UNNAMED_S
            yield from self.one(waited, relay, Ticked(), f"R{relay} was not named for 24 h", now)
        if side.mode is Mode.FROZEN:
            yield from self.one(world, relay, Ticked(), f"R{relay} is done", migration.GRACE_S)
        if not self.rules.expiry:
            return
        for held in side.live:
            if held.eid not in world.late and held.eid in world.receipted:
                yield f"{held.eid} expires", world._replace(late=world.late | {held.eid}), None
            in_flight = world.at == relay and held.eid in world.given[relay]
            if held.eid in world.late and not in_flight:
                gone = Expired(frozenset({held.eid}))
                closed = self.apply(world, relay, Closed(world.given[relay]))
                assert closed is not None
                yield from self.one(closed[0], relay, gone, f"R{relay} sweeps {held.eid}")

    def death(self, world: World, relay: int, side: Side) -> Iterator[Move]:
        """For good, and with all it had; what no record ever named may die without any loss."""
        is_named = any(name(relay) in ref.homes for ref in world.records)
        alone = {held.eid for held in side.live} & {eid for n, eid in world.own if n == relay}
        if world.deaths and not is_named and side.mode is not Mode.NONE and not alone:
            after = world._replace(sides=with_(world.sides, relay, None), deaths=world.deaths - 1)
            yield f"R{relay} is gone for good", after, None


def _gone(world: World) -> World:
    return world._replace(at=None, reads=frozenset())


def _short(message: Message) -> str:
    match message:
        case DigestPage():
            return f"digest {message.number + 1}/{message.total} of {message.handoff}"
        case CopyPage():
            return f"copy {[eid for eid, _ in message.items]} of {message.handoff}"
        case DigestReceipt():
            return f"digest is here, {message.handoff}"
        case CopyReceipt():
            return f"copy is here {[eid for eid, _ in message.items]}, {message.handoff}"
