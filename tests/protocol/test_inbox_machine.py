"""The inbox against bookkeeping that is too simple to be wrong, under any sequence of steps."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay.inbox.model.types import (
    Accepted,
    Disposition,
    InboxAck,
    InboxLimits,
    LiveSession,
    Page,
    PageItem,
    PendingBounce,
    RememberedId,
)
from relay.protocol.envelope import StoredEnvelope
from relay.protocol.errors import ErrorCode, Refusal
from relay.protocol.ids import AgentKey, Epoch, Fence, NodeId, Seq, Timestamp
from relay.protocol.types import DedupKey, Reason, Window
from relay.reference.inbox import BOUNCE_GRACE_S, Inbox
from relay.reference.ranges import holes
from tests.support.broken_rules import each
from tests.unit.builders import entry

pytestmark = pytest.mark.timeout(120)  # a busy machine is no bug

NODES = [NodeId("a"), NodeId("b")]
LIMITS = InboxLimits(
    max_count=12, max_bytes=400, sender_count=6, sender_bytes=200, dedupe_entries=25
)
WINDOWS = [Window(1, 1_000), Window(3, 60), Window(5, 1_000)]
entries = st.tuples(
    st.integers(1, 30),
    st.sampled_from("st"),
    st.sampled_from([0, 100, 400, 5_000, 5_000]),
    st.booleans(),
    st.sampled_from([False] * 7 + [True]),
)
TROUBLES = [
    "ack_as_somebody_else", "clock_is_doubted_or_believed", "disk_eats_one", "reuse_an_id",
    "roll_back",
]  # fmt: skip
some = st.lists(st.integers(0, 8), max_size=2)
picks = st.integers(0, 30)
nodes = st.sampled_from(NODES)
windows = st.sampled_from(WINDOWS)


@dataclass
class Known:
    """The outside's knowledge of one stored envelope."""

    item: StoredEnvelope
    seq: int
    ended: Reason | None = None


class InboxMachine(RuleBasedStateMachine):
    """Every rule is one atomic step of a store; the invariants hold between any two."""

    inbox_class = Inbox

    def __init__(self) -> None:
        super().__init__()
        self.inbox = self.inbox_class(AgentKey("key:me"), Epoch("e0"))
        self.now = 1_000
        self.clock_ok = True
        self.known: dict[bytes, Known] = {}
        self.first_seq: dict[bytes, int] = {}
        self.bounces: list[PendingBounce] = []
        self.position = 0
        self.given: set[int] = set()
        self.shown: set[str] = set()
        self.made = 0
        self.epochs = 0

    # ------------------------------------------------------------ steps

    @rule(batch=st.lists(entries, min_size=1, max_size=4))
    def accept(self, batch: list[tuple[int, str, int, bool, bool]]) -> None:
        for size, sender, life, bounces, marked in batch:
            self.made += 1
            hour = self.now // 600  # "hours" of ten minutes, so that some are left behind
            expires = self.now + life
            self._accept(
                entry(
                    self.made, size, sender, expires, hour, self.now, bounces=bounces, marked=marked
                )
            )

    @precondition(lambda self: self.known)
    @rule(pick=picks)
    def resend(self, pick: int) -> None:
        self._accept(self._pick(pick).item)

    def _pick(self, pick: int) -> Known:
        return self.known[sorted(self.known)[-1 - pick % len(self.known)]]

    @rule(what=st.sampled_from(TROUBLES), pick=picks)
    def trouble(self, what: str, pick: int) -> None:
        getattr(self, what)(pick)

    def reuse_an_id(self, pick: int) -> None:
        if not self.known:
            return
        item = self._pick(pick).item
        self.made += 1
        other = entry(self.made, 10, "s", self.now + 50, item.hour)
        clash = other._replace(dedupe_key=item.dedupe_key)
        remembered = self.inbox.dedupe.find(item.hour, item.dedupe_key)
        if remembered is not None:
            result = self.inbox.accept(clash, LIMITS, Timestamp(self.now))
            assert isinstance(result, Refusal)
            assert result.code is ErrorCode.REPLAYED

    def _accept(self, item: StoredEnvelope) -> None:
        known = self.known.get(item.dedupe_key)
        turned_away = self.inbox.refused.count
        before = (self.inbox.last, len(self.inbox.live), self.inbox.bytes)
        result = self.inbox.accept(item, LIMITS, Timestamp(self.now), clock_ok=self.clock_ok)
        if isinstance(result, Refusal):
            assert (self.inbox.last, len(self.inbox.live), self.inbox.bytes) == before
            quota = result.code in {ErrorCode.INBOX_FULL, ErrorCode.SENDER_QUOTA}
            assert self.inbox.refused.count == turned_away + quota
            # what was stored is never answered with a definite "not stored" while it can be resent
            assert not known or result.stored == "unknown" or item.expires_at <= self.now
            return
        assert isinstance(result, Accepted)
        if result.dup:
            assert known
            assert result.seq == self.first_seq[item.dedupe_key]
            assert result.session is None
            assert (self.inbox.last, len(self.inbox.live), self.inbox.bytes) == before
            return
        assert not known, "stored twice"
        assert result.seq == before[0] + 1
        self.known[item.dedupe_key] = Known(item, result.seq)
        self.first_seq[item.dedupe_key] = result.seq

    @rule(node=nodes, window=windows, until=st.sampled_from([0, 500]))
    def open(self, node: NodeId, window: Window, until: int) -> None:
        before = self.inbox.fence
        opened = self.inbox.open_session(node, window, until=until and self.now + until)
        assert opened.fence > before
        assert (opened.cursor, opened.head) == (self.inbox.cursor, self.inbox.last)
        self.position, self.given = self.inbox.cursor, set()

    @precondition(lambda self: self.inbox.session)
    @rule()
    def close(self) -> None:
        assert not self.inbox.close_session(Fence(self.inbox.fence - 1), Seq(99))
        assert self.inbox.close_session(self.inbox.fence, Seq(max(self.given, default=0)))
        self.given = set()

    @precondition(lambda self: self.inbox.session)
    @rule(node=nodes)
    def read_on(self, node: NodeId) -> None:
        session = self.inbox.session
        assert session
        if session.until:
            self.take(node)
        else:
            self.read()

    def read(self) -> None:
        live = self.inbox.live
        held = [seq for seq in self.given if seq in live]
        window = self.inbox.window
        room = window.bytes - sum(live[Seq(seq)].size for seq in held)
        if len(held) == window.count or (held and room <= 0):
            return
        page = self.inbox.read(
            self.inbox.fence,
            Seq(self.position),
            Window(window.count - len(held), max(room, 1)),
            Timestamp(self.now),
            clock_ok=self.clock_ok,
        )
        assert isinstance(page, Page)
        self._check(page, self.position)
        # one envelope always fits, but only into an empty window
        items = [item for item in page.items if not held or len(item.wire) <= room]
        cut = page.items[len(items)].seq - 1 if len(items) < len(page.items) else page.upto
        self._give(items)
        self.position = max(self.position, cut)
        self._end(page.expired, Reason.EXPIRED)

    def take(self, node: NodeId) -> None:
        session = LiveSession(self.inbox.fence, node, self.inbox.session.until)
        page = self.inbox.take(
            session, self.inbox.window, Timestamp(self.now), clock_ok=self.clock_ok
        )
        assert isinstance(page, Page)
        self._check(page, self.inbox.cursor)
        assert not self.given & set(page.expired), "in flight and called expired"
        self._give(page.items)
        self._end(page.expired, Reason.EXPIRED)

    def _give(self, items: Sequence[PageItem]) -> None:
        for item in items:
            assert item.redelivered or item.eid not in self.shown, "shown again and not marked"
            self.shown.add(item.eid)
            self.given.add(int(item.seq))

    def _check(self, page: Page, after: int) -> None:
        seqs = [item.seq for item in page.items]
        assert seqs == sorted(seqs)
        after = max(after, self.inbox.cursor)
        assert holes(seqs, page.gaps, Seq(after), page.upto) == []
        assert all(after < seq <= page.upto for seq in seqs)
        assert page.head == self.inbox.last
        if page.expired:
            assert page.expired[0] == page.upto + 1
            assert all(self.inbox.live[seq].expires_at <= self.now for seq in page.expired)
        for item in page.items:
            assert item.wire == self.inbox.live[item.seq].wire
            assert not self.inbox.live[item.seq].marked or item.redelivered

    @precondition(lambda self: self.inbox.session)
    @rule(back=st.integers(0, 3), named=some, refuse=some)
    def ack(self, back: int, named: list[int], refuse: list[int]) -> None:
        """Up to some way back from what was given, and a few by name, counted from the cursor."""
        named, refuse = ([self.inbox.cursor + n for n in some] for some in (named, refuse))
        upto = max(0, self.position - back)
        covered = [seq for seq in self.given if seq <= upto]
        refused = [(Seq(seq), "ugly") for seq in refuse if seq not in {*named, *covered}]
        ack = InboxAck(
            self.inbox.fence,
            self.inbox.epoch,
            tuple(map(Seq, (*covered, *named))),
            Seq(upto),
            tuple(refused),
        )
        was = self.inbox.cursor
        done = self.inbox.ack(ack, Timestamp(self.now))
        assert not isinstance(done, Refusal)
        acked, intents = done
        assert acked.cursor == self.inbox.cursor >= was
        self._told(was, upto)
        self._count(ack.seqs, Reason.ACKED)
        ended = self._count([seq for seq, _ in refused], Reason.REFUSED)
        self._bounced(ended, intents, "ugly")

    def _told(self, was: int, upto: int) -> None:
        """The inbox forgets what others ended only after the agent knows of it."""
        for known in self.known.values():
            if was < known.seq <= self.inbox.cursor and known.ended in {
                Reason.EXPIRED,
                Reason.CORRUPT,
            }:
                assert known.seq <= upto, "forgotten and never told"

    @precondition(lambda self: self.inbox.session and self.inbox.session.until)
    @rule(upto=st.integers(0, 4))
    def take_ack(self, upto: int) -> None:
        upto += max(0, self.inbox.taken - 2)
        ack = InboxAck(self.inbox.fence, self.inbox.epoch, (), Seq(upto))
        before = set(self.inbox.live)
        allowed = upto <= max(self.inbox.taken, self.inbox.cursor)
        done = self.inbox.take_ack(ack, Timestamp(self.now))
        ended = before - set(self.inbox.live)
        if allowed:
            assert ended == {seq for seq in before if seq <= upto}
            assert ended <= self.given, "acked and never shown"
            self._count(sorted(ended), Reason.ACKED)
        else:
            assert isinstance(done, Refusal)
            assert done.code is ErrorCode.BAD_FRAME
            assert not ended

    def ack_as_somebody_else(self, pick: int) -> None:
        before, seqs = dict(self.inbox.live), list(self.inbox.live)[:2]
        older = Fence(self.inbox.fence - 1 - pick % 3)
        for ack in (
            InboxAck(older, self.inbox.epoch, tuple(map(Seq, seqs)), Seq(60)),
            InboxAck(self.inbox.fence, Epoch("other"), tuple(map(Seq, seqs)), Seq(60)),
        ):
            for step in (self.inbox.ack, self.inbox.take_ack):
                no = step(ack, Timestamp(self.now))
                assert isinstance(no, Refusal)
                assert no.code in {ErrorCode.SUPERSEDED, ErrorCode.INBOX_RESET}
        assert self.inbox.live == before

    @rule(seconds=st.sampled_from([1, 50, 299, 700]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    def clock_is_doubted_or_believed(self, _: int) -> None:
        self.clock_ok = not self.clock_ok

    @precondition(lambda self: self.clock_ok)
    @rule(alive=st.sets(nodes))
    def sweep(self, alive: set[NodeId]) -> None:
        session = self.inbox.session
        holds = session and session.node in alive and (
            not session.until or self.now < session.until
        )  # fmt: skip
        before = dict(self.inbox.live)
        intents = self.inbox.sweep(Timestamp(self.now), alive)
        gone = set(before) - set(self.inbox.live)
        assert not (holds and gone & self.given), "in flight and swept"
        assert all(before[seq].expires_at + BOUNCE_GRACE_S <= self.now for seq in gone)
        self._bounced(self._count(sorted(gone), Reason.EXPIRED), intents, "expired")

    def disk_eats_one(self, pick: int) -> None:
        """The eid check on read finds an entry corrupt: it is never handed over."""
        seqs = sorted(set(self.inbox.live) - self.given)
        if seqs:
            self._end([seqs[pick % len(seqs)]], Reason.CORRUPT)

    def roll_back(self, _: int) -> None:
        fence, self.epochs = self.inbox.fence, self.epochs + 1
        self.inbox.reset(Epoch(f"e{self.epochs}"), self.now)
        no = self.inbox.read(fence, Seq(0), WINDOWS[0], Timestamp(self.now))
        assert isinstance(no, Refusal)
        assert no.code is ErrorCode.INBOX_RESET
        self.given = set()

    # ------------------------------------------------------------ bookkeeping

    def _end(self, seqs: object, reason: Reason) -> None:
        intents = self.inbox.conclude(seqs, reason, Timestamp(self.now), clock_ok=self.clock_ok)
        self._bounced(self._count(seqs, reason), intents, reason.value)

    def _count(self, seqs: object, reason: Reason) -> list[Known]:
        ended = []
        for seq in dict.fromkeys(seqs):
            for known in self.known.values():
                if known.seq == seq and known.ended is None and seq not in self.inbox.live:
                    known.ended = reason
                    ended.append(known)
        return ended

    def _bounced(self, ended: list[Known], intents: list[PendingBounce], reason: str) -> None:
        """Exactly one bounce per entry that ended without an ack, and none for a bounce."""
        assert [one.eid for one in intents] == [one.item.eid for one in ended if one.item.bounces]
        assert {one.reason for one in intents} <= {reason}
        for intent, known in zip(intents, [one for one in ended if one.item.bounces], strict=True):
            assert intent.sender == known.item.sender
            assert intent.due_at >= self.now
            if reason == "expired":
                assert intent.due_at >= known.item.expires_at + BOUNCE_GRACE_S
            assert intent.maybe_delivered or known.seq not in self.given
        self.bounces += intents

    # ------------------------------------------------------------ what always holds

    @invariant()
    def accepted_minus_ended_is_what_is_live(self) -> None:
        live = {known.seq: known.item for known in self.known.values() if known.ended is None}
        assert dict(self.inbox.live) == live
        assert self.inbox.last == len(self.known)

    @invariant()
    def live_and_ranges_cover_everything_after_the_cursor(self) -> None:
        inbox = self.inbox
        assert holes(inbox.live, inbox.ranges, inbox.cursor, inbox.last) == []
        explained = {n: item.reason for item in inbox.ranges
                     for n in range(item.start, item.end + 1)}  # fmt: skip
        for known in self.known.values():
            if known.seq > inbox.cursor:
                assert explained.get(known.seq) == known.ended
            else:
                assert known.ended

    @invariant()
    def quotas_add_up(self) -> None:
        inbox = self.inbox
        assert inbox.bytes == sum(item.size for item in inbox.live.values())
        assert inbox.bytes <= LIMITS.max_bytes
        counted: Counter[AgentKey] = Counter(item.sender for item in inbox.live.values())
        assert {sender: count for sender, (count, _) in inbox.senders.items()} == counted
        assert sum(size for _, size in inbox.senders.values()) == inbox.bytes
        assert inbox.pending().count == len(inbox.live) <= LIMITS.max_count

    @invariant()
    def the_memory_is_bounded_and_knows_what_became_of_everything_it_holds(self) -> None:
        assert len(self.inbox.dedupe) <= LIMITS.dedupe_entries
        fates = {
            None: Disposition.STORED,
            Reason.ACKED: Disposition.ACKED,
            Reason.REFUSED: Disposition.REFUSED,
            Reason.EXPIRED: Disposition.EXPIRED,
            Reason.CORRUPT: Disposition.CORRUPT,
        }
        for known in self.known.values():
            question = DedupKey(known.item.dedupe_key, known.item.hour)
            (answer,) = self.inbox.status([question])
            assert answer in {None, RememberedId(fates[known.ended], known.item.eid)}

    @invariant()
    def nobody_bounces_twice(self) -> None:
        with contextlib.suppress(IndexError):
            assert Counter(one.eid for one in self.bounces).most_common(1)[0][1] == 1


TestInbox = InboxMachine.TestCase
TestInbox.settings = settings(max_examples=100, stateful_step_count=40)


# ---------------------------------------------------------------- negative controls


class Forgetful(Inbox):
    """Remembers no id."""

    def accept(self, item, limits, now, *, clock_ok=True):
        result = super().accept(item, limits, now, clock_ok=clock_ok)
        self.dedupe.hours.clear()
        return result


class Careless(Inbox):
    """Marks nothing after an unclean end."""

    def _window_end(self):
        return self.cursor


class Vague(Inbox):
    """Marks nothing after a clean end."""

    def close_session(self, fence, delivered_upto):
        return super().close_session(fence, Seq(0 * delivered_upto))


class Hasty(Inbox):
    """Calls expired what a session without a connection holds."""

    def take(self, session, window, now, *, clock_ok=True):
        held, self.taken = self.taken, Seq(0)
        page = super().take(session, window, now, clock_ok=clock_ok)
        self.taken = max(self.taken, held)
        return page


class Ruthless(Inbox):
    """Sweeps what is in flight."""

    def sweep(self, now, live_nodes):
        del live_nodes
        return super().sweep(now, ())


class Chatty(Inbox):
    """Bounces every refusal twice."""

    def ack(self, ack, now):
        done = super().ack(ack, now)
        return done if isinstance(done, Refusal) else (done[0], done[1] * 2)


class Miserly(Inbox):
    """Returns no quota."""

    def _count(self, item, sign):
        super()._count(item, abs(sign))


class Credulous(Inbox):
    """Takes an ack from any session."""

    def _fenced(self, fence):
        return super()._fenced(max(fence, self.fence))


class Impatient(Inbox):
    """Lets the cursor pass what the agent does not know of."""

    def ack(self, ack, now):
        return super().ack(replace(ack, upto=self.last), now)


class Leaky(Inbox):
    """Drops an entry without a range."""

    def _end(self, seq, reason):
        del reason
        item = self.live.pop(seq, None)
        if item is not None:
            self._count(item, -1)
        return item


MUTANTS = [
    Forgetful, Careless, Vague, Hasty, Ruthless, Chatty, Miserly, Credulous, Impatient, Leaky,
]  # fmt: skip


def few(dice: Random) -> list[int]:
    return [dice.randint(0, 8) for _ in range(dice.choice([0, 0, 1, 2]))]


def batch(dice: Random) -> list[tuple[int, str, int, bool, bool]]:
    return [
        (
            dice.randint(1, 30),
            dice.choice("st"),
            dice.choice([0, 100, 400, 400, 5_000]),
            dice.random() < 0.7,
            dice.random() < 0.1,
        )
        for _ in range(dice.randint(1, 3))
    ]


STEPS: list[tuple[float, str, Callable[[Random], tuple]]] = [
    (6, "accept", lambda dice: (batch(dice),)),
    (1, "resend", lambda dice: (dice.randint(0, 30),)),
    (
        2,
        "open",
        lambda dice: (dice.choice(NODES), dice.choice(WINDOWS), dice.choice([0, 0, 5_000])),
    ),
    (1, "close", lambda _: ()),
    (7, "read_on", lambda dice: (dice.choice(NODES),)),
    (3, "ack", lambda dice: (dice.randint(0, 3), few(dice), few(dice))),
    (2, "take_ack", lambda dice: (dice.randint(0, 4),)),
    (3, "time_passes", lambda dice: (dice.choice([1, 100, 299, 701]),)),
    (3, "sweep", lambda dice: (set(dice.sample(NODES, dice.randint(1, 2))),)),
    (1, "trouble", lambda dice: (dice.choice(TROUBLES[:-1]), dice.randint(0, 30))),
    (0.1, "trouble", lambda _: ("roll_back", 0)),
]
ALWAYS = [
    "accepted_minus_ended_is_what_is_live",
    "live_and_ranges_cover_everything_after_the_cursor",
    "quotas_add_up",
    "the_memory_is_bounded_and_knows_what_became_of_everything_it_holds",
    "nobody_bounces_twice",
]
NEEDS = {
    "resend": lambda machine: machine.known,
    "close": lambda machine: machine.inbox.session,
    "read_on": lambda machine: machine.inbox.session,
    "ack": lambda machine: machine.inbox.session,
    "take_ack": lambda machine: machine.inbox.session and machine.inbox.session.until,
    "sweep": lambda machine: machine.clock_ok,
}


def walk(inbox_class: type[Inbox], seed: int, steps: int = 60) -> None:
    """The same steps as the machine's, by weighted dice: faster, and the same for one seed."""
    dice = Random(seed)  # noqa: S311  not a secret
    machine = type("Walk", (InboxMachine,), {"inbox_class": inbox_class})()
    for _ in range(steps):
        ((_, name, arguments),) = dice.choices(STEPS, [weight for weight, _, _ in STEPS])
        if NEEDS.get(name, bool)(machine):
            getattr(machine, name)(*arguments(dice))
        for always in ALWAYS:
            getattr(machine, always)()


def walks(inbox_class: type[Inbox]) -> None:
    for seed in range(60):
        walk(inbox_class, seed)


def test_the_inbox_keeps_its_books_on_long_walks():
    walks(Inbox)


@each("inbox (reference)", "mutant", MUTANTS)
def test_an_inbox_with_one_rule_broken_is_caught(mutant: type[Inbox]):
    with pytest.raises((AssertionError, KeyError)):
        walks(mutant)
