"""Two state machines, a bad link, a slow store, nodes that die: the promises hold all the same."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from relay.inbox.model import effects as effects_
from relay.inbox.model.conversation import ConversationPhase as Phase
from relay.inbox.model.delivery import InboxDelivery
from relay.inbox.model.permissions import Identity
from relay.inbox.model.types import AckResult as InboxAcked
from relay.inbox.model.types import InboxAck, Page, PageItem
from relay.protocol import frames
from relay.protocol.client_session import ClientPhase as AgentPhase
from relay.protocol.client_session import ClientSession, LoginOptions, Send
from relay.protocol.errors import ErrorCode, Refusal, error
from relay.protocol.frames import Frame
from relay.protocol.ids import Eid, Epoch, Fence, Seq, Timestamp
from relay.reference.inbox import Inbox
from tests.protocol.session_pair import ME, URL, WINDOW, BrokenPromiseError, SessionPair, World
from tests.support.broken_rules import each
from tests.support.relay_side import RelaySide
from tests.unit.frame_strategies import from_agent, from_relay

pytestmark = pytest.mark.timeout(120)  # a busy machine is no bug

BY_NAME = ["all", "some", "name", "name", "name", "both", "refuse"]
ACKS = ["all", "some", "name", "both", "refuse", "beyond", "of nothing", "foreign"]
SIZES = [10, 10, 60, 300]
LIVES = [100_000, 100_000, 50]
picks = st.integers(0, 40)
nodes = st.integers(0, 1)


class PairMachine(RuleBasedStateMachine):
    """Hypothesis chooses what happens next; the world checks every promise as it happens."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(node=nodes, size=st.sampled_from(SIZES), life=st.sampled_from(LIVES))
    def commit(self, node: int, size: int, life: int) -> None:
        self.world.commit(node, size, life)

    @rule(node=nodes)
    def open(self, node: int) -> None:
        self.world.open(node)

    @rule(chosen=st.lists(picks, min_size=1, max_size=6))
    def step(self, chosen: list[int]) -> None:
        for pick in chosen:
            self.world.step(pick)

    @rule(pick=picks)
    def fault(self, pick: int) -> None:
        self.world.fault(pick)

    @precondition(lambda self: self.world.mine)
    @rule(kind=st.sampled_from(ACKS), pick=picks)
    def ack(self, kind: str, pick: int) -> None:
        self.world.ack(kind, pick)

    @rule(node=nodes)
    def crash(self, node: int) -> None:
        self.world.crash(node)

    @rule(seconds=st.sampled_from([1, 60, 400]))
    def time_passes(self, seconds: int) -> None:
        self.world.now += seconds
        self.world.sweep()

    @rule()
    def timers(self) -> None:
        self.world.fire_timers()

    @rule()
    def settle(self) -> None:
        self.world.settle()

    @rule()
    def poll(self) -> None:
        self.world.poll()
        self.world.settle()

    def teardown(self) -> None:
        self.world.heal()


TestPair = PairMachine.TestCase
TestPair.settings = settings(max_examples=60, stateful_step_count=40)


# ---------------------------------------------------------------- the same by dice


STEPS: list[tuple[float, Any]] = [
    (5, lambda w, d: w.commit(d.randint(0, 1), d.choice(SIZES), d.choice(LIVES))),
    (2, lambda w, d: w.open(d.randint(0, 1))),
    (25, lambda w, d: w.step(d.randint(0, 99))),
    (1, lambda w, d: w.fault(d.randint(0, 99))),
    (7, lambda w, d: w.ack(d.choice(BY_NAME), d.randint(0, 9))),
    (0.2, lambda w, d: w.ack(d.choice(ACKS), d.randint(0, 9))),
    (0.3, lambda w, d: w.crash(d.randint(0, 1))),
    (0.7, lambda w, d: (setattr(w, "now", w.now + d.choice([1, 60, 400])), w.sweep())),
    (0.5, lambda w, _: w.fire_timers()),
    (2, lambda w, _: w.settle()),
    (0.5, lambda w, _: (w.poll(), w.settle())),
]


def walk(world: World, seed: int, steps: int = 100) -> None:
    dice = Random(seed)  # noqa: S311  not a secret
    for _ in range(steps):
        ((_, step),) = dice.choices(STEPS, [weight for weight, _ in STEPS])
        step(world, dice)
    world.heal()


def test_the_promises_hold_on_long_walks():
    for seed in range(100):
        walk(World(), seed)


# ---------------------------------------------------------------- negative controls


class AnyOrder(InboxDelivery):
    """From memory whatever comes."""

    def _next_in_line(self, items):
        return [item for item in self._fitting(items) if item.seq > self._position]


class AnyFence(InboxDelivery):
    """From memory to whatever session is here."""

    def on_stored(self, fence, items):
        return super().on_stored(self.fence if self.is_open else fence, items)


class Restless(InboxDelivery):
    """From memory while a page is under way."""

    def on_stored(self, fence, items):
        was, self._reading = self._reading, False
        effects = super().on_stored(fence, items)
        self._reading = self._reading or was
        return effects


class Endless(InboxDelivery):
    """No window."""

    def _pump(self):
        held, self._outstanding = self._outstanding, {}
        room, self._room = self._room, 10_000
        effects = super()._pump()
        self._outstanding, self._room = held, room
        return effects

    def _fitting(self, items):
        return list(items)


class Eager(InboxDelivery):
    """The window opens when an ack is asked for, not when it is durable."""

    def ack(self, frame):
        effects = super().ack(frame)
        for effect in effects:
            if isinstance(effect, effects_.AckRequest):
                for seq in effect.ack.seqs:
                    self._room += self._outstanding.pop(seq, 0)
        return [*effects, *self._pump()]


class Deaf(InboxDelivery):
    """A hint that comes during a read is forgotten."""

    def on_wakeup(self):
        return [] if self._reading else super().on_wakeup()

    def _nothing_new(self, page, now):
        return self._retry(now) if page.head > page.upto else []


class Repeating(InboxDelivery):
    """Hands over what was acked while it was being read."""

    def on_page(self, page, now):
        self._ended_while_reading = set()
        return super().on_page(page, now)


class Trusting(InboxDelivery):
    """A cumulative ack covers all that is below, handed over or not."""

    def _next_in_line(self, items):
        return [item for item in self._fitting(items) if item.seq > self._position]

    def ack(self, frame):
        effects = super().ack(frame)
        for at, effect in enumerate(effects):
            if isinstance(effect, effects_.AckRequest):
                ack = effect.ack
                all_below = tuple(Seq(n) for n in range(1, ack.upto + 1))
                wide = type(ack)(ack.fence, ack.epoch, (*ack.seqs, *all_below), ack.upto)
                effects[at] = effects_.AckRequest(effect.inbox, wide)
        return effects


class Vague(InboxDelivery):
    """Does not say at its end what it had handed over."""

    def close(self):
        self._delivered_upto = Seq(0)
        return super().close()


class Stubborn(InboxDelivery):
    """Stays where it is when the cursor moves on."""

    def on_acked(self, asked, result):
        position = self._position
        effects = super().on_acked(asked, result)
        self._position = position
        return effects


class Unmarked(Inbox):
    """Marks nothing after an unclean end."""

    def _window_end(self):
        return self.cursor


class Unfenced(Inbox):
    """Answers any session."""

    def _fenced(self, fence):
        del fence


class Strict(Inbox):
    """Sees a hole below the cursor."""

    def read(self, fence, after, window, now, *, clock_ok=True):
        if after < self.cursor and fence == self.fence:
            return Refusal(ErrorCode.INBOX_RESET)
        return super().read(fence, after, window, now, clock_ok=clock_ok)


MUTANTS: list[tuple[type, str, int]] = [
    (AnyOrder, "R4 first deliveries in order", 0),
    (AnyFence, "R1 unmarked duplicate", 100),
    (Restless, "R4 ascending within a session", 0),
    (Endless, "no more than one window", 0),
    (Eager, "no more than one window", 0),
    (Deaf, "nothing is stuck", 20),
    (Repeating, "R2 acked and handed over again", 60),
    (Trusting, "R2 acked and never delivered", 0),
    (Vague, "R1 unmarked duplicate", 0),
    (Unmarked, "R1 unmarked duplicate", 0),
    (Unfenced, "a superseded session changes nothing", 0),
    (Strict, "R5 no false alarm", 130),
]
"""Each with the promise that it breaks, and with the seed to begin at: some stories are rare."""


def breaks(mutant: type, promise: str, first: int) -> bool:
    kind = "delivery_class" if issubclass(mutant, InboxDelivery) else "inbox_class"
    mutated = type("Mutated", (World,), {kind: mutant, "watched": promise})
    for seed in range(first, first + 500):
        try:
            walk(mutated(), seed)
        except BrokenPromiseError:
            return True
    return False


@each("session over a bad link", ("mutant", "promise", "first"), MUTANTS)
def test_without_a_rule_a_promise_breaks(mutant: type, promise: str, first: int):
    assert breaks(mutant, promise, first)


# ---------------------------------------------------------------- nothing is ever raised

T = Timestamp(1_000)
RELAY_PHASES = ["hello", "opening", "reading", "caught up", "full", "closed"]
AGENT_PHASES = ["start", "proving", "open", "closed"]


def at_phase(phase: str) -> tuple[World, SessionPair]:
    """A conversation that has come so far."""
    world = World()
    for _ in range(5 if phase == "full" else 1):
        world.commit(0)
    if phase in {"hello", "start"}:
        hello = frames.Hello(world.open(0).relay.conversation._hello.relay, "u", "n", {}, 0)
        pair = SessionPair(
            world.nodes[0],
            RelaySide(hello, WINDOW, T),
            ClientSession(ME, LoginOptions(URL), world.entropy),
        )
        return world, pair
    pair = world.open(0)
    if phase not in {"opening", "proving"}:
        world.execute(pair, 0)
        world.result(pair, 0)
    if phase in {"caught up", "full", "open"}:
        world.settle()
    if phase == "closed":
        pair.relay.lost()
        pair.agent.receive(frames.Bye(ErrorCode.DRAINING), T)
    return world, pair


def check_said(effects: Sequence[Any]) -> None:
    """Each end can read every frame of the other, and an end is sent once."""
    for effect in effects:
        if isinstance(effect, Send):
            frames.parse(frames.encode(effect.frame), "relay")
    assert sum(isinstance(effect, effects_.Close) for effect in effects) <= 1


@pytest.mark.parametrize("phase", RELAY_PHASES)
@given(frame=from_agent | from_relay)
@settings(max_examples=40)
def test_no_frame_at_any_time_makes_the_relays_side_raise(phase: str, frame: Frame):
    _, pair = at_phase(phase)
    check_said(pair.relay.receive(frame, T))
    if pair.relay.phase is Phase.CLOSED:
        assert pair.relay.receive(frame, T) == []


@pytest.mark.parametrize("phase", AGENT_PHASES)
@given(frame=from_agent | from_relay)
@settings(max_examples=40)
def test_no_frame_at_any_time_makes_the_agents_side_raise(phase: str, frame: Frame):
    _, pair = at_phase(phase)
    pair.agent.receive(frame, T)
    if pair.agent.phase is AgentPhase.CLOSED:
        assert pair.agent.receive(frame, T) == []


NOTHING = InboxAck(Fence(1), Epoch("e0"), ())
INPUTS: list[Any] = [
    lambda relay: relay.opened(Identity(ME.did, ME.agent_key, Fence(9)), WELCOME),
    lambda relay: relay.opened(Identity(ME.did, ME.agent_key, None), WELCOME),
    lambda relay: relay.refused(error(ErrorCode.NOT_ADMITTED)),
    lambda relay: relay.on_page(Page((), (), Seq(0), Seq(0)), T),
    lambda relay: relay.on_page(Page((ITEM,), (), Seq(7), Seq(9)), T),
    lambda relay: relay.on_page(Refusal(ErrorCode.INBOX_RESET), T),
    lambda relay: relay.on_page(Refusal(ErrorCode.STORAGE_UNAVAILABLE), T),
    lambda relay: relay.on_page(Refusal(ErrorCode.INTERNAL), T),
    lambda relay: relay.on_stored(Fence(1), [ITEM]),
    lambda relay: relay.on_stored(Fence(2), [ITEM]),
    lambda relay: relay.on_wakeup(),
    lambda relay: relay.on_acked(NOTHING, Refusal(ErrorCode.MOVED)),
    lambda relay: relay.on_acked(
        InboxAck(Fence(1), Epoch("e0"), ()), InboxAcked(Seq(0), (), ()), T
    ),
    lambda relay: relay.on_timer(Timestamp(0)),
    lambda relay: relay.on_timer(Timestamp(10**9)),
    lambda relay: relay.conversation.fail(ErrorCode.SLOW_READER, "too slow"),
    lambda relay: relay.conversation.fail(ErrorCode.STORAGE_FULL, "no number of its own"),
    lambda relay: relay.drain(),
    lambda relay: relay.lost(),
]
ITEM = PageItem(Seq(7), False, Eid("e7"), b'{"jws":"x","body":""}')
WELCOME = frames.Welcome(
    inbox=True,
    session=Fence(9),
    epoch=Epoch("e0"),
    cursor=Seq(0),
    head=Seq(0),
    pending=frames.WelcomePending(),
    window_count=1,
    window_bytes=1,
    proof="p",
)


@pytest.mark.parametrize("phase", RELAY_PHASES)
def test_no_two_inputs_in_any_order_make_the_relays_side_raise(phase: str):
    for first, second in product(INPUTS, repeat=2):
        _, pair = at_phase(phase)
        relay = pair.relay
        said = [*first(relay), *second(relay)]
        check_said(said)
        if relay.phase is Phase.CLOSED:
            assert relay.next_timer() is None
            assert (
                relay.receive(frames.Ack(Epoch("e0")), T) == relay.on_wakeup() == relay.lost() == []
            )
