"""Two inboxes whose agents come and go, over the outboxes of two peers: the accounts balance.

Every rule is one atomic step of a store. An envelope has one end. Only the agent at home ends
anything, or the forwarder while it is away. What waits is counted once, under one peer, and is
always due. No agent is shown unmarked what a session before it was handed.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from relay.inbox.model.types import (
    Accepted,
    Disposition,
    Forwarded,
    InboxAck,
    InboxLimits,
    OpenedSession,
    OutboxLimits,
    Page,
)
from relay.protocol.errors import ErrorCode, Refusal
from relay.protocol.ids import AgentKey, Epoch, NodeId, Seq, Timestamp
from relay.protocol.types import DedupKey, Reason, Window
from relay.reference.forwarding import Outboxes
from relay.reference.inbox import BOUNCE_GRACE_S, Inbox
from relay.reference.quotas import Holdings
from tests.support.broken_rules import each
from tests.unit.builders import entry

pytestmark = pytest.mark.timeout(120)  # a busy machine is no bug
NODE = NodeId("a")
PEERS = [AgentKey("key:p0"), AgentKey("key:p1")]
LIMITS = InboxLimits(dedupe_entries=1_000)
BOUNDS = OutboxLimits(count=12, bytes=300, shares=2)
WINDOW = Window(3, 1_000)
ENDS = {
    "acked": Disposition.ACKED,
    "forwarded": Disposition.FORWARDED,
    "refused": Disposition.REFUSED,
    "expired": Disposition.EXPIRED,
}
who = st.integers(0, 1)


class OutboxMachine(RuleBasedStateMachine):
    """The world outside knows each envelope, who was handed it, and how it ended."""

    inbox_class = Inbox

    def __init__(self) -> None:
        super().__init__()
        self.boxes = [self.inbox_class(AgentKey(f"key:{n}"), Epoch("e")) for n in range(2)]
        self.outboxes = Outboxes(BOUNDS)
        self.now = 1_000
        self.made = 0
        self.items: dict[int, tuple[int, Any]] = {}
        self.ends: dict[int, str] = {}
        self.handed: set[tuple[int, int]] = set()
        self.bounced: Counter[str] = Counter()
        self.sessions: list[tuple[int, bool, OpenedSession]] = []

    # ------------------------------------------------------------ steps

    @rule(at=who, size=st.sampled_from([10, 40]), life=st.sampled_from([50, 5_000]),
          sender=st.sampled_from(["s", "t"]), peer=st.sampled_from(PEERS))  # fmt: skip
    def accept(self, at: int, size: int, life: int, sender: str, peer: AgentKey) -> None:
        self.made += 1
        item = entry(self.made, size, sender, self.now + life)._replace(peer=peer)
        box = self.boxes[at]
        result = box.accept(item, LIMITS, Timestamp(self.now), outboxes=self.outboxes)
        if isinstance(result, Refusal):
            assert not box.home
            codes = {ErrorCode.OVERLOADED, ErrorCode.SENDER_QUOTA, ErrorCode.INBOX_FULL}
            assert result.code in codes
            return
        assert result.away == (not box.home)
        self.items[self.made] = (at, item)

    @precondition(lambda self: self.items)
    @rule(pick=st.integers(0, 99))
    def resend(self, pick: int) -> None:
        n = sorted(self.items)[pick % len(self.items)]
        at, item = self.items[n]
        box = self.boxes[at]
        result = box.accept(item, LIMITS, Timestamp(self.now), outboxes=self.outboxes)
        if isinstance(result, Refusal):
            assert result.code is ErrorCode.EXPIRED, "forgotten and not even too late"
            # what a session has in hand long after that is forgotten, and this is the truth
            is_in_hand = any(one.eid == item.eid for one in box.live.values())
            assert n in self.ends or (is_in_hand and box.session is not None)
            return
        if box.home and self.ends.get(n) == "forwarded":
            # nobody knows here where it is: stored again, perhaps shown there
            assert not result.dup
            self.items[n] = (at, item._replace(marked=True))
            del self.ends[n]
            return
        assert result.dup
        waits = n not in self.ends and not box.home
        assert result.away == (waits or self.ends.get(n) == "forwarded")

    @rule(at=who)
    def move(self, at: int) -> None:
        box = self.boxes[at]
        box.set_home(home=not box.home, now=Timestamp(self.now))
        assert box.session is None

    @rule(at=who)
    def open(self, at: int) -> None:
        box = self.boxes[at]
        self.sessions.append((at, not box.home, box.open_session(NODE, WINDOW)))

    @precondition(lambda self: self.sessions)
    @rule(
        back=st.integers(0, 2),
        take=st.integers(0, 3),
        refuse=st.booleans(),
        end=st.sampled_from(["", "close", "defer", "closed"]),
        peer=st.sampled_from(PEERS),
    )
    def work(self, back: int, take: int, refuse: bool, end: str, peer: AgentKey) -> None:  # noqa: FBT001
        """A session reads a window, ends the first entries of it, perhaps says goodbye."""
        at, is_courier, opened = self.sessions[-1 - back % len(self.sessions)]
        box, now = self.boxes[at], Timestamp(self.now)
        page = box.read(opened.fence, Seq(0), WINDOW, now)
        if isinstance(page, Refusal):
            assert box.session is None or opened.fence != box.fence
            self._over(at, opened, is_courier=is_courier)
            return
        assert is_courier == (not box.home), "a session outlived a move"
        self._hand_over(at, page)
        seqs = [item.seq for item in page.items[:take]]
        self._ack(at, opened, seqs, is_courier=is_courier, refuse=refuse)
        last = max((item.seq for item in page.items), default=Seq(0))
        if is_courier and end in {"defer", "closed"}:
            no = Refusal(ErrorCode.INBOX_FULL) if end == "closed" else None
            assert box.defer(opened.fence, 30, now, self.outboxes.of(peer), no)
        if end in {"close", "defer"}:
            assert box.close_session(opened.fence, last, now)

    @rule(at=who, peer=st.sampled_from(PEERS))
    def die_in_the_middle(self, at: int, peer: AgentKey) -> None:
        """A session that was handed something, and ends nothing of it."""
        self.open(at)
        self.accept(at, 10, 5_000, "s", peer)
        self.work(0, 0, refuse=False, end="", peer=peer)

    def _over(self, at: int, opened: OpenedSession, *, is_courier: bool) -> None:
        """A session that is over changes nothing."""
        box, before = self.boxes[at], dict(self.boxes[at].live)
        forwarded = Forwarded(PEERS[0], b"") if is_courier else None
        ack = InboxAck(opened.fence, opened.epoch, tuple(before), forwarded=forwarded)
        no = box.ack(ack, Timestamp(self.now))
        assert isinstance(no, Refusal)
        assert no.code in {ErrorCode.MOVED, ErrorCode.SUPERSEDED}
        assert not box.defer(opened.fence, 1, Timestamp(self.now))
        assert box.live == before

    def _hand_over(self, at: int, page: Page) -> None:
        session = self.boxes[at].fence
        for item in page.items:
            n = int(item.eid.removeprefix("eid"))
            assert n not in self.ends, "shown after its end"
            known = (n, session)
            others = {one for one, fence in self.handed if one == n and fence != session}
            assert item.redelivered or not others, "shown again and not marked"
            self.handed.add(known)

    def _ack(
        self, at: int, opened: OpenedSession, seqs: list[Seq], *, is_courier: bool, refuse: bool
    ) -> None:
        box = self.boxes[at]
        refused = tuple((seq, "ugly") for seq in seqs[:1]) if refuse else ()
        named = tuple(seqs[len(refused) :])
        items = {seq: box.live[seq] for seq in seqs}
        forwarded = Forwarded(PEERS[0], b"r") if is_courier else None
        ack = InboxAck(opened.fence, opened.epoch, named, refuse=refused, forwarded=forwarded)
        done = box.ack(ack, Timestamp(self.now))
        assert not isinstance(done, Refusal)
        self.bounced.update(one.eid for one in done[1])
        for seq, item in items.items():
            went = "forwarded" if is_courier else "acked"
            self._ended(item, went if seq in named else "refused")

    def _ended(self, item: Any, how: Literal["acked", "forwarded", "refused", "expired"]) -> None:
        n = int(item.eid.removeprefix("eid"))
        assert n not in self.ends, "two ends"
        self.ends[n] = how

    @rule(seconds=st.sampled_from([10, 60, 400]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(lives=st.booleans())
    def sweep(self, lives: bool) -> None:  # noqa: FBT001
        for box in self.boxes:
            before = dict(box.live)
            intents = box.sweep(Timestamp(self.now), {NODE} if lives else set())
            self.bounced.update(one.eid for one in intents)
            for seq in before.keys() - box.live.keys():
                assert before[seq].expires_at + BOUNCE_GRACE_S <= self.now
                self._ended(before[seq], "expired")
            self._concluded_by_reading(box)

    def _concluded_by_reading(self, box: Inbox) -> None:
        gone = [seq for seq, item in box.live.items() if item.expires_at <= self.now]
        if box.session is None:
            items = [box.live[seq] for seq in gone]
            intents = box.conclude(gone, Reason.EXPIRED, Timestamp(self.now))
            self.bounced.update(one.eid for one in intents)
            for item in items:
                self._ended(item, "expired")

    @rule(at=who)
    def lend(self, at: int) -> None:
        box = self.boxes[at]
        was_due = box.away.due_at is not None and box.away.due_at <= self.now
        assert box.lend(Timestamp(self.now), 30) == (
            was_due and (box.move.has_work or bool(box.live))
        )

    # ------------------------------------------------------------ what always holds

    @invariant()
    def what_waits_is_counted_once_under_one_peer(self) -> None:
        for outbox in self.outboxes.peers.values():
            boxes = [box for box in self.boxes if box.away.outbox is outbox]
            waiting = [item for box in boxes for item in box.live.values()]
            assert outbox.count == len(waiting)
            assert outbox.bytes == sum(item.size for item in waiting)
            counted = {sender: count for sender, (count, _) in outbox.senders.items()}
            assert counted == Counter(item.sender for item in waiting)
        assert all(box.away.outbox is None for box in self.boxes if box.home)

    @invariant()
    def what_waits_is_due_and_nothing_else_is(self) -> None:
        for box in self.boxes:
            if box.home:
                assert box.away.due_at is None or box.move.has_work
            elif box.live:
                latest = max(self.now + 30, box.away.deferred_until)
                assert box.away.due_at is not None, "nobody will ever carry it"
                assert box.away.due_at <= latest

    @invariant()
    def every_envelope_is_there_or_has_its_one_end(self) -> None:
        for n, (at, item) in self.items.items():
            box, end = self.boxes[at], self.ends.get(n)
            assert (item in box.live.values()) == (end is None)
            assert self.bounced[item.eid] == (end in {"refused", "expired"})
            (answer,) = box.status([DedupKey(item.dedupe_key, item.hour)])
            if answer is not None:
                assert answer.disposition is (ENDS[end] if end else Disposition.STORED)
                assert (answer.forwarded is not None) == (end == "forwarded")


TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = settings(stateful_step_count=30, deadline=None)


def walk(machine: type[OutboxMachine], examples: int, **more: Any) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=60, deadline=None, database=None,
            suppress_health_check=list(HealthCheck), report_multiple_bugs=False, **more,
        ),
    )  # fmt: skip


def test_what_waits_keeps_its_books_on_long_walks() -> None:
    walk(OutboxMachine, 150)


# ---------------------------------------------------------------- broken ones are caught


class KeepsSessions(Inbox):
    """A session goes on although its agent has moved."""

    def set_home(self, *, home: bool, now: Timestamp) -> None:
        session, fence = self.session, self.fence
        super().set_home(home=home, now=now)
        self.session, self.fence = session, fence


class NeverDue(Inbox):
    """Nobody looks after what begins to wait."""

    def _join(self, outbox: Any, now: Timestamp) -> None:
        super()._join(outbox, now)
        self.away.due_at = None


class CountsTwice(Inbox):
    """Counts envelopes that wait for another peer where they were before."""

    def _wait_for(self, outbox: Any) -> None:
        self.away.outbox = None
        super()._wait_for(outbox)


class Unmarked(Inbox):
    """Shows the next session, as new, what the one before was handed."""

    def end_session(self) -> Any:
        handed = self.handed
        previous = super().end_session()
        self.handed = handed
        return previous


class ForgetsWho(Inbox):
    """A forwarded envelope looks like an acked one."""

    def _end(self, seq: Seq, reason: Any, forwarded: Any = None) -> Any:
        del forwarded
        return super()._end(seq, reason)


class SaysItIsHere(Inbox):
    """A receipt for what waits for elsewhere says that this inbox has it."""

    def has_gone(self, disposition: Disposition) -> bool:
        return disposition is Disposition.FORWARDED and Holdings.has_gone(self, disposition)


class ConfirmsWhatWentOn(Inbox):
    """Home again, it confirms what is elsewhere, and keeps it not."""

    def answer(self, item: Any) -> Any:
        seen = self.dedupe.find(item.hour, item.dedupe_key)
        if seen is not None and seen.disposition is Disposition.FORWARDED:
            return Accepted(seen.seq, self.epoch, True, None, away=True)
        return super().answer(item)


@each(
    "forwarding inboxes (reference)",
    "broken",
    [
        KeepsSessions,
        NeverDue,
        CountsTwice,
        Unmarked,
        ForgetsWho,
        SaysItIsHere,
        ConfirmsWhatWentOn,
    ],
)
def test_an_outbox_with_one_rule_broken_is_caught(broken: type[Inbox]) -> None:
    machine = type("Broken", (OutboxMachine,), {"inbox_class": broken})
    with pytest.raises(AssertionError):
        # it ends with the first one; a search that is by chance has to be long enough
        walk(machine, 8_000, phases=[Phase.generate])
