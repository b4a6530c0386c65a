"""A forwarder's decisions under any sequence of answers, losses, crashes and moves (S1, R1, R6).

The world knows what each relay truly has; the forwarder knows only the answers that reached it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import Phase as HypothesisPhase
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from relay.forwarding.model import ForwardItem, ForwardResult, ForwardWindow, is_redelivered
from relay.inbox.model.delivery import InboxDelivery
from relay.inbox.model.effects import Effect, EndSession, Read
from relay.inbox.model.types import (
    Accepted,
    AckResult,
    Disposition,
    Forwarded,
    InboxAck,
    InboxLimits,
    InboxRole,
    OutboxLimits,
    PendingBounce,
)
from relay.protocol.client_session import Send
from relay.protocol.did import parse_did
from relay.protocol.envelope import StoredEnvelope
from relay.protocol.errors import ErrorCode, Refusal
from relay.protocol.frames import Deliver, Rejection
from relay.protocol.ids import AgentKey, Did, Eid, Epoch, NodeId, Seq, Timestamp
from relay.protocol.receipts import Receipt, ReceiptItem
from relay.protocol.types import DedupKey, Window
from relay.reference.forwarding import Outboxes
from relay.reference.inbox import Inbox
from tests.support.broken_rules import each
from tests.unit.builders import ALICE, BOB, MALLORY, entry

pytestmark = pytest.mark.timeout(120)  # a busy machine is no bug

ME = AgentKey("key:me")
NODE = NodeId("a")
RELAYS = [BOB.did, MALLORY.did]
WINDOW = Window(4, 100)
LIMITS = InboxLimits(max_count=1_000, dedupe_entries=10_000)
EXPIRES = 1_000_000
ANSWERS = ["inbox"] * 4 + ["weak", "outbox", "permanent", "temporary", "unknown", "moved"]


class BrokenPromiseError(AssertionError):
    """A promise of a relay does not hold."""


@dataclass
class Relay:
    """The envelopes that another relay has, and those with a receipt that counts."""

    did: Did
    has: dict[Eid, bool] = field(default_factory=dict)
    receipted: set[Eid] = field(default_factory=set)


@dataclass
class Courier:
    """One forwarder, as ``forwarding/forwarder.py``; the test takes each of its steps."""

    delivery: InboxDelivery
    load: ForwardWindow
    reads: list[Read] = field(default_factory=list)
    acks: list[InboxAck] = field(default_factory=list)
    batch: list[ForwardItem] = field(default_factory=list)
    to: Did = RELAYS[0]
    handed: set[Seq] = field(default_factory=set)
    must_leave: bool = False


class CourierWorld:
    """One forwarding inbox, its forwarder, two relays."""

    waits_for_acks = True
    load_type = ForwardWindow

    def __init__(self) -> None:
        self.inbox = Inbox(ME, Epoch("e1"), InboxRole.FORWARDING)
        self.outboxes = Outboxes(OutboxLimits(100_000, 10**9, 1))
        self.relays = {did: Relay(did) for did in RELAYS}
        self.home = RELAYS[0]
        self.items: dict[Eid, StoredEnvelope] = {}
        self.by_seq: dict[Seq, Eid] = {}
        self.intents: list[PendingBounce] = []
        self.courier: Courier | None = None

    # ------------------------------------------------------------ steps

    def submit(self, size: int) -> None:
        number = len(self.items) + 1
        item = entry(number, size=size, expires=EXPIRES)._replace(
            inbox=ME, peer=parse_did(self.home).agent_key
        )
        result = self.inbox.accept(item, LIMITS, Timestamp(1), outboxes=self.outboxes)
        assert isinstance(result, Accepted), result
        self.items[item.eid] = item
        self.by_seq[result.seq] = item.eid
        if self.courier is not None:
            self.perform(self.courier.delivery.on_wakeup())

    def open(self) -> None:
        opened = self.inbox.open_session(NODE, WINDOW)
        delivery = InboxDelivery(WINDOW)
        self.courier = Courier(
            delivery, self.load_type("fsync", len)
        )  # a sender is known by the size of what it sends
        self.perform(delivery.open(ME, opened.fence, opened.epoch, opened.cursor, opened.head))
        if self.courier is not None:
            self.perform(delivery.on_wakeup())

    def perform(self, effects: list[Effect]) -> None:
        one = self.courier
        assert one is not None
        for effect in effects:
            match effect:
                case Send(Deliver() as frame):
                    one.handed.update(item.seq for item in frame.items)
                    one.load.add(frame.items)
                case Read():
                    one.reads.append(effect)
                case EndSession():
                    self.courier = None

    def read(self) -> None:
        one = self.courier
        assert one is not None
        effect = one.reads.pop(0)
        page = self.inbox.read(effect.fence, effect.after, effect.window, Timestamp(1))
        self.perform(one.delivery.on_page(page, Timestamp(1)))

    def carry(self, limit: int) -> None:
        one = self.courier
        assert one is not None
        one.batch, one.to = one.load.next_batch(limit, 60), self.home
        self.check_batch(one)

    def answer(self, kinds: list[str]) -> None:
        """The relay stores some of it, and says of each what the test chose."""
        one = self.courier
        assert one is not None
        relay = self.relays[one.to]
        outcomes: list[ReceiptItem | Rejection] = []
        weak = "weak" in kinds
        for at, item in enumerate(one.batch):
            eid = self.by_seq[item.seq]
            outcomes.append(self.outcome(relay, item, eid, kinds[at % len(kinds)], weak=weak))
        receipt = Receipt(relay.did, 1, "unverified" if weak else "fsync", ())
        batch, one.batch = one.batch, []
        answer = one.load.on_answer(one.to, receipt, outcomes)
        self.conclude(one, answer, batch)

    def outcome(
        self, relay: Relay, item: ForwardItem, eid: Eid, kind: str, *, weak: bool
    ) -> ReceiptItem | Rejection:
        no = {
            "permanent": ErrorCode.BLOCKED,
            "temporary": ErrorCode.SENDER_QUOTA,
            "unknown": ErrorCode.STORAGE_UNAVAILABLE,
            "moved": ErrorCode.MOVED,
        }.get(kind)
        if no is not None and not (kind == "permanent" and eid in relay.receipted):
            if kind == "unknown":
                self.arrive(relay, item, eid)
            record = "r" if kind == "moved" else None
            return Rejection("r", 0, no, Refusal(no).stored, record=record)
        self.arrive(relay, item, eid)
        custody = "outbox" if kind == "outbox" else "inbox"
        if custody == "inbox" and not weak:
            relay.receipted.add(eid)
        return ReceiptItem(eid, ALICE.did, Epoch("x"), "p", 1, custody=custody)

    def arrive(self, relay: Relay, item: ForwardItem, eid: Eid) -> None:
        """It is stored there; if not marked, no other relay may have it."""
        if eid in relay.has:
            return
        marked = is_redelivered(item, relay.did)
        others = [one.did for one in self.relays.values() if eid in one.has]
        if others and not marked:
            raise BrokenPromiseError(f"{item.seq} is at {others} and comes unmarked to another")
        relay.has[eid] = marked

    def conclude(self, one: Courier, answer: ForwardResult, batch: list[ForwardItem]) -> None:
        assert {*answer.forwarded, *(seq for seq, _ in answer.refused)} <= {i.seq for i in batch}
        if answer.must_reopen:
            one.must_leave = True
        if answer.forwarded or answer.refused:
            proof = Forwarded(parse_did(one.to).agent_key, bytes(32))
            fence, epoch = one.delivery.fence, one.delivery.epoch
            one.acks.append(InboxAck(fence, epoch, answer.forwarded, Seq(0), answer.refused, proof))

    def lose(self, arrives: list[bool]) -> None:
        """The answer is lost; perhaps they are there."""
        one = self.courier
        assert one is not None
        batch, one.batch = one.batch, []
        for at, item in enumerate(batch):
            if arrives[at % len(arrives)]:
                self.arrive(self.relays[one.to], item, self.by_seq[item.seq])
        one.load.on_no_answer(one.to)

    def unsent(self) -> None:
        one = self.courier
        assert one is not None
        one.batch = []
        one.load.on_not_sent()

    def ack(self, *, is_stored: bool, is_told: bool) -> None:
        """The store decides the oldest ack, and says so, or not."""
        one = self.courier
        assert one is not None
        asked = one.acks[0]
        result: AckResult | Refusal = Refusal(ErrorCode.STORAGE_UNAVAILABLE)
        if is_stored:
            result = self.store_ack(asked)
        if not is_told:
            unknown = Refusal(ErrorCode.STORAGE_UNAVAILABLE)
            self.perform(one.delivery.on_acked(asked, unknown))
            return
        one.acks.pop(0)
        if isinstance(result, AckResult):
            one.load.on_acked((*asked.seqs, *(seq for seq, _ in asked.refuse)))
        else:
            one.acks.insert(0, asked)
        self.perform(one.delivery.on_acked(asked, result))

    def store_ack(self, asked: InboxAck) -> AckResult | Refusal:
        result = self.inbox.ack(asked, Timestamp(1))
        if isinstance(result, Refusal):
            return result
        done, intents = result
        for intent in intents:
            self.check_bounce(intent)
        self.intents += intents
        return done

    def leave(self) -> None:
        """Leave as the forwarder does: once all acks are decided, and with exact doubts."""
        one = self.courier
        assert one is not None
        if self.waits_for_acks and one.acks:
            return
        if one.batch:
            return
        doubt = one.load.maybe_sent_upto()
        self.inbox.close_session(one.delivery.fence, doubt)
        self.courier = None

    def crash(self) -> None:
        self.courier = None

    def move(self, relay: Did, *, through_here: bool) -> None:
        """A newer record; perhaps the agent was at home here in between."""
        self.home = relay
        if through_here:
            self.inbox.set_home(home=True, now=Timestamp(1))
        self.inbox.set_home(home=False, now=Timestamp(1))
        if through_here and self.courier is not None:
            self.perform(self.courier.delivery.on_wakeup())

    # ------------------------------------------------------------ promises

    def check_batch(self, one: Courier) -> None:
        seqs = [item.seq for item in one.batch]
        if seqs != sorted(seqs):
            raise BrokenPromiseError("a later one overtakes an earlier one")
        for item in one.batch:
            left = (*one.load._ready, *one.load._deferred)
            if any(o.seq < item.seq and len(o.wire) == len(item.wire) for o in left):
                raise BrokenPromiseError("a later one overtakes an earlier one of its sender")

    def check_bounce(self, intent: PendingBounce) -> None:
        had = [one.did for one in self.relays.values() if intent.eid in one.has]
        if had and not intent.maybe_delivered:
            raise BrokenPromiseError(f"bounced as never delivered, but it is at {had}")

    def disposition(self, eid: Eid) -> Disposition:
        item = self.items[eid]
        [found] = self.inbox.status([DedupKey(item.dedupe_key, item.hour)])
        assert found is not None
        return found.disposition

    def check(self) -> None:
        for seq, eid in self.by_seq.items():
            disposition = self.disposition(eid)
            is_live = seq in self.inbox.live
            assert is_live == (disposition is Disposition.STORED), "an envelope is nowhere"
            if disposition is Disposition.FORWARDED and not any(
                eid in one.receipted for one in self.relays.values()
            ):
                raise BrokenPromiseError("forwarded without a receipt")
        assert len({one.eid for one in self.intents}) == len(self.intents), "bounced twice"
        one = self.courier
        if one is not None:
            load = one.load
            in_hand = {i.seq for i in (*load._ready, *load._in_flight, *load._deferred)}
            asked = {seq for ack in one.acks for seq in _named(ack)}
            lost = {seq for seq in one.handed if seq in self.inbox.live} - in_hand - asked
            if lost:
                raise BrokenPromiseError(f"{lost} were handed over and are in nobody's hands")


def _named(ack: InboxAck) -> tuple[Seq, ...]:
    return (*ack.seqs, *(seq for seq, _ in ack.refuse))


some = st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=4)


class CourierMachine(RuleBasedStateMachine):
    """Hypothesis chooses what happens next; the world checks every promise as it happens."""

    world_type = CourierWorld

    def __init__(self) -> None:
        super().__init__()
        self.world = self.world_type()

    @property
    def one(self) -> Courier | None:
        return self.world.courier

    @rule(sizes=st.lists(st.sampled_from([10, 10, 30, 90]), min_size=1, max_size=3))
    def submit(self, sizes: list[int]) -> None:
        for size in sizes:
            self.world.submit(size)

    @rule()
    def open(self) -> None:
        self.world.open()

    @rule(limit=st.integers(1, 4), kinds=some)
    def exchange(self, limit: int, kinds: list[str]) -> None:
        if self.carry(limit):
            self.world.answer(kinds)

    @rule(
        limit=st.integers(1, 4),
        arrives=st.lists(st.booleans(), min_size=1, max_size=4),
        relay=st.sampled_from(RELAYS),
        leaves=st.booleans(),
    )
    def lose(self, limit: int, arrives: list[bool], relay: Did, leaves: bool) -> None:  # noqa: FBT001
        if self.carry(limit):
            self.world.lose(arrives)
            if leaves:
                self.world.leave()
            self.world.move(relay, through_here=False)

    @rule(limit=st.integers(1, 4))
    def unsent(self, limit: int) -> None:
        if self.carry(limit):
            self.world.unsent()

    @rule(limit=st.integers(1, 4), relay=st.sampled_from(RELAYS), kinds=some)
    def moves_meanwhile(self, limit: int, relay: Did, kinds: list[str]) -> None:
        if self.carry(limit):
            self.world.submit(10)
            self.world.move(relay, through_here=False)
            self.world.answer(kinds)

    def carry(self, limit: int) -> bool:
        world = self.world
        if world.courier is None:
            world.open()
        while world.courier is not None and world.courier.reads:
            world.read()
        if world.courier is None or world.courier.must_leave:
            return False
        world.carry(limit)
        return bool(world.courier.batch)

    @precondition(lambda self: self.one and self.one.acks)
    @rule(
        is_stored=st.sampled_from([True, True, False]), is_told=st.sampled_from([True, True, False])
    )
    def ack(self, is_stored: bool, is_told: bool) -> None:  # noqa: FBT001  drawn by name
        self.world.ack(is_stored=is_stored, is_told=is_told)

    @precondition(lambda self: self.one)
    @rule(relay=st.sampled_from(RELAYS))
    def leave(self, relay: Did) -> None:
        self.world.leave()
        self.world.move(relay, through_here=False)

    @precondition(lambda self: self.one)
    @rule()
    def crash(self) -> None:
        self.world.crash()

    @rule(relay=st.sampled_from(RELAYS), through_here=st.sampled_from([False, False, True]))
    def move(self, relay: Did, through_here: bool) -> None:  # noqa: FBT001  drawn by name
        self.world.move(relay, through_here=through_here)

    @invariant()
    def promises(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        """In the end one relay answers as it should: then everything ends."""
        world = self.world
        world.crash()
        for _ in range(4 * len(world.items) + 4):
            if world.courier is None:
                world.open()
            one = world.courier
            assert one is not None
            if one.reads:
                world.read()
            elif one.acks:
                world.ack(is_stored=True, is_told=True)
            else:
                world.carry(4)
                world.answer(["inbox"])
        world.check()
        assert not world.inbox.live, "something stands still"


TestCourier = CourierMachine.TestCase


# ---------------------------------------------------------------- negative controls


class Credulous(ForwardWindow):
    """Takes any receipt for the end of its custody."""

    def on_answer(self, relay, receipt, outcomes):
        strong = [
            one._replace(custody="inbox") if isinstance(one, ReceiptItem) else one
            for one in outcomes
        ]
        return super().on_answer(relay, receipt and replace(receipt, durability="fsync"), strong)


class Forgetful(ForwardWindow):
    """Does not note who may have what it lost sight of."""

    def on_no_answer(self, relay):
        assert relay
        return self.on_not_sent()


class Sure(ForwardWindow):
    """Has no doubts when it leaves."""

    def maybe_sent_upto(self):
        return Seq(0)


class Quick(ForwardWindow):
    """Believes that what it has sent is written down."""

    def on_answer(self, relay, receipt, outcomes):
        answer = super().on_answer(relay, receipt, outcomes)
        self._ended.clear()
        return answer


class Blunt(ForwardWindow):
    """Refuses for good what a relay may have had, as if it had never left."""

    def on_answer(self, relay, receipt, outcomes):
        self._in_flight = [item._replace(maybe_at=frozenset()) for item in self._in_flight]
        return super().on_answer(relay, receipt, outcomes)


class Jumbled(ForwardWindow):
    """Puts what is left behind what is ready."""

    def _put_back(self, items):
        self._in_flight = []
        self._ready.extend(items)


class Dropping(ForwardWindow):
    """Forgets what a relay refused for now."""

    def _put_back(self, items):
        super()._put_back(items[1:])


BROKEN = [
    (Credulous, "without a receipt"),
    (Forgetful, "unmarked"),
    (Sure, "unmarked"),
    (Blunt, "never delivered|unmarked"),
    (Jumbled, "overtakes"),
    (Dropping, "nobody's hands"),
]


@each("forwarder", ("load_type", "promise"), BROKEN)
def test_a_courier_that_breaks_a_rule_breaks_a_promise(load_type, promise) -> None:
    world = type("World", (CourierWorld,), {"load_type": load_type})
    _breaks(world, promise)


def test_a_courier_that_closes_before_its_acks_are_decided_must_doubt_them() -> None:
    hasty = type("World", (CourierWorld,), {"waits_for_acks": False})
    run_state_machine_as_test(_machine(hasty))
    _breaks(type("World", (hasty,), {"load_type": Quick}), "unmarked")


def _breaks(world: type[CourierWorld], promise: str) -> None:
    with pytest.raises(BrokenPromiseError, match=promise):
        run_state_machine_as_test(
            _machine(world),
            settings=settings(
                max_examples=20_000,
                stateful_step_count=40,
                database=None,
                phases=[HypothesisPhase.generate],
            ),
        )


def _machine(world: type[CourierWorld]) -> type[CourierMachine]:
    return type("Machine", (CourierMachine,), {"world_type": world})
