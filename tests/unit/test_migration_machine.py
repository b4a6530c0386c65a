"""Single steps of a hand-off. That they hold together is shown in tests/protocol."""

from __future__ import annotations

from typing import Any

import pytest

from relay.inbox.model.types import InboxRole
from relay.migration.model import machine
from relay.migration.model.state import (
    DigestPage,
    DigestReceipt,
    Event,
    Freeze,
    Handoff,
    MigrationSide,
    OrderRef,
    PartialDigest,
    PeerMessage,
    Prepare,
    RecordObserved,
    RecordRef,
    TimePassed,
    Transition,
)
from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.errors import ErrorCode, Refusal
from relay.protocol.ids import Did, Timestamp
from relay.protocol.types import MAYBE_SEEN_ID_BYTES, Mode

A, B, C = Did("A"), Did("B"), Did("C")
NOW = 1_000_000
DAY = 24 * 3600
WHOLE = b"w" * 32
NOBODY: frozenset[Did] = frozenset()


def record(seq: int, *homes: Did, digest: bytes = b"") -> RecordRef:
    return RecordRef(RecordVersion(1, seq, digest), homes)


def order(seq: int = 5, source: Did = A, target: Did = B, **changes: Any) -> OrderRef:
    made = OrderRef(f"mig{seq}", seq, source, target, record(seq, target), NOW + DAY)
    return made._replace(**changes)


def home(**changes: Any) -> MigrationSide:
    return MigrationSide(A, Mode.ACTIVE, record(1, A))._replace(**changes)


def frozen(**changes: Any) -> MigrationSide:
    side = home(mode=Mode.FROZEN, handoff=Handoff("mig5", B), order_seq=5, since=NOW)
    return side._replace(pending=order().record)._replace(**changes)


def incoming(**changes: Any) -> MigrationSide:
    side = took(MigrationSide(B, record=record(1, A)), Prepare(order())).side
    return side._replace(**changes)


def published(side: MigrationSide) -> MigrationSide:
    """The record of the order is known."""
    return took(side, RecordObserved(order().record)).side


def page(number: int = 0, total: int = 1, **changes: Any) -> DigestPage:
    return DigestPage("mig5", WHOLE, number, total)._replace(**changes)


def took(side: MigrationSide, said: Event, now: float = NOW) -> Transition:
    step = machine.step(side, said, Timestamp(now))
    assert isinstance(step, Transition), step
    return step


def refused(side: MigrationSide, said: Event, now: float = NOW) -> ErrorCode:
    no = machine.step(side, said, Timestamp(now))
    assert isinstance(no, Refusal), no
    return no.code


# ---------------------------------------------------------------- what a store does for an inbox


@pytest.mark.parametrize(
    ("side", "holding"),
    [
        (MigrationSide(A), InboxRole.FORWARDING),
        (home(), InboxRole.HOME),
        (home(awaiting_digests=frozenset({B})), InboxRole.UNCERTAIN),
        (home(record=record(2)), InboxRole.HOME),
        (home(record=None), InboxRole.HOME),
        (incoming(), InboxRole.PAUSED),
        (frozen(), InboxRole.PAUSED),
        (frozen(record=order().record), InboxRole.FORWARDING),
    ],
)
def test_what_a_side_is_says_what_becomes_of_its_inbox(side: MigrationSide, holding: InboxRole):
    assert side.role is holding


@pytest.mark.parametrize(
    ("holding", "has_left", "begins"),
    [
        (None, False, MigrationSide(A, Mode.NONE, record(1, B))),
        (InboxRole.FORWARDING, False, MigrationSide(A, Mode.NONE, record(1, B))),
        (InboxRole.FORWARDING, True, MigrationSide(A, Mode.ACTIVE, record(1, B))),
        (InboxRole.HOME, False, MigrationSide(A, Mode.ACTIVE)),
        (InboxRole.PAUSED, False, MigrationSide(A, Mode.ACTIVE)),
        (InboxRole.UNCERTAIN, False, MigrationSide(A, Mode.NONE, record(1, B))),
    ],
)
def test_a_side_that_was_never_written_follows_from_the_inbox(
    holding: InboxRole | None, has_left: Any, begins: MigrationSide
):
    assert machine.initial_side(A, holding, record(1, B), has_left=has_left) == begins


def test_a_home_that_was_never_moved_does_not_miss_itself():
    side = machine.initial_side(A, InboxRole.HOME, None)
    assert took(side, RecordObserved(record(3, A))).side.role is InboxRole.HOME
    assert took(side, RecordObserved(record(3, A), record(2, B))).side.awaiting_digests == NOBODY


def test_a_home_since_its_record_misses_the_homes_before():
    side = machine.initial_side(A, InboxRole.UNCERTAIN, record(2, B, C))
    step = took(side, RecordObserved(record(3, A, C), record(2, B, C)))
    assert (step.side.mode, step.side.awaiting_digests) == (Mode.ACTIVE, {B})


def test_a_home_that_left_before_any_side_was_written_hands_over():
    side = machine.initial_side(A, InboxRole.FORWARDING, record(1, A), has_left=True)
    step = took(side, RecordObserved(record(2, B), record(1, A)))
    assert (step.side.mode, step.side.role) == (Mode.FROZEN, InboxRole.FORWARDING)
    assert step.side.handoff == Handoff(record(2, B).handoff, B)
    assert machine.has_work(step.side)


def test_partners_are_those_of_this_hand_off_and_never_this_relay():
    side = home(
        awaiting_digests=frozenset({B}),
        digest_sources=frozenset({C, A}),
        handoff=Handoff("x", Did("D")),
    )
    assert side.handoff_peers == {B, C, Did("D")}
    assert home().handoff_peers == NOBODY


def test_mail_is_taken_past_quotas_of_the_source_and_of_who_has_told_its_digest():
    side = incoming(awaiting_digests=frozenset({A, C}))
    assert (side.accepts_handoff_from(A), side.accepts_handoff_from(C)) == (True, False)
    assert incoming(digest_sources=frozenset({C})).accepts_handoff_from(C)
    assert published(incoming()).accepts_handoff_from(A)
    assert not frozen().accepts_handoff_from(B)
    assert not home().accepts_handoff_from(B)


# ---------------------------------------------------------------- orders


def test_a_target_that_is_ready_takes_mail_and_delivers_nothing():
    side = incoming()
    assert (side.mode, side.handoff, side.awaiting_digests) == (
        Mode.INCOMING,
        Handoff("mig5", A),
        {A},
    )
    assert side.role is InboxRole.PAUSED
    assert not side.delivers


def test_a_source_that_freezes_delivers_nothing_and_has_a_digest_to_say():
    step = took(home(), Freeze(order()))
    assert step.side.handoff == Handoff("mig5", B)
    assert (step.side.role, step.side.delivers) == (InboxRole.PAUSED, False)
    assert machine.has_work(step.side)


@pytest.mark.parametrize(
    ("side", "said", "code"),
    [
        (MigrationSide(C), Prepare(order()), ErrorCode.WRONG_RELAY),
        (home()._replace(me=C), Freeze(order()), ErrorCode.WRONG_RELAY),
        (home(me=B, record=record(1, B)), Prepare(order()), ErrorCode.WRONG_STATE),
        (MigrationSide(A), Freeze(order()), ErrorCode.WRONG_STATE),
        (incoming(me=A), Freeze(order()), ErrorCode.WRONG_STATE),
        (frozen(record=record(2, C)), Freeze(order(6)), ErrorCode.WRONG_STATE),
        (MigrationSide(B, order_seq=6), Prepare(order(5)), ErrorCode.STALE_RECORD),
        (MigrationSide(B, order_seq=5), Prepare(order(5)), ErrorCode.STALE_RECORD),
        (home(order_seq=6), Freeze(order(5)), ErrorCode.STALE_RECORD),
        (MigrationSide(B, record=record(5, A)), Prepare(order(5)), ErrorCode.STALE_RECORD),
        (MigrationSide(B), Prepare(order(expires_at=NOW)), ErrorCode.EXPIRED),
        (home(), Freeze(order(expires_at=NOW)), ErrorCode.EXPIRED),
    ],
)
def test_an_order_that_is_not_for_this_side_now_changes_nothing(
    side: MigrationSide, said: Event, code: ErrorCode
):
    assert refused(side, said) is code


def test_an_order_may_be_repeated_even_when_it_has_expired():
    late = NOW + 2 * DAY
    assert took(incoming(), Prepare(order()), late) == Transition(incoming())
    assert took(published(incoming()), Prepare(order()), late) == Transition(published(incoming()))
    assert took(frozen(), Freeze(order()), late) == Transition(frozen())


def test_a_newer_order_turns_the_source_and_it_goes_on_missing_the_old_target():
    side = took(frozen(digest_acked=True), Freeze(order(6, target=C)), NOW + 9).side
    assert (side.handoff, side.awaiting_digests, side.since) == (Handoff("mig6", C), {B}, NOW)
    assert not side.digest_acked
    assert took(side, Freeze(order(7, target=C))).side.awaiting_digests == {B}


def test_a_target_that_gets_ready_for_another_source_asks_that_one():
    learned = took(incoming(digest_received=True), RecordObserved(record(4, C))).side
    side = took(learned._replace(mode=Mode.INCOMING), Prepare(order(6, source=C))).side
    assert (side.awaiting_digests, side.digest_received) == ({C}, False)
    back = frozen(awaiting_digests=frozenset({C}), record=record(2, B))
    side = took(back, Prepare(order(6, source=B, target=A))).side
    assert side.awaiting_digests == {B, C}


def test_a_target_asks_every_home_that_its_agent_has_had_beside_the_source():
    side = took(MigrationSide(B, record=record(1, A, C, B)), Prepare(order())).side
    assert side.awaiting_digests == {A, C}
    told = took(side, PeerMessage(A, page())).side
    assert (told.digest_received, published(told).role) == (True, InboxRole.UNCERTAIN)


# ---------------------------------------------------------------- records


def test_its_own_record_makes_a_target_the_home():
    told = took(incoming(), PeerMessage(A, page())).side
    side = took(told, RecordObserved(order().record)).side
    assert (side.mode, side.awaiting_digests, side.role) == (Mode.ACTIVE, NOBODY, InboxRole.HOME)


def test_a_home_without_the_digest_marks_everything_until_it_comes():
    side = published(incoming())
    assert (side.awaiting_digests, side.role) == ({A}, InboxRole.UNCERTAIN)
    late = page(handoff=order().record.handoff)
    assert took(side, PeerMessage(A, late, named=True)).side.role is InboxRole.HOME


@pytest.mark.parametrize(
    ("side", "former", "awaiting_digests"),
    [
        (MigrationSide(B), None, set()),
        (MigrationSide(B), record(2, C), {C}),
        (MigrationSide(B), record(2, C, B), {C}),
        (MigrationSide(B, record=record(1, A)), None, {A}),
        (MigrationSide(B, Mode.INCOMING, record(1, A), handoff=Handoff("x", C)), None, {A, C}),
    ],
)
def test_a_record_without_its_order_is_a_dead_source_publish(
    side: MigrationSide, former: RecordRef | None, awaiting_digests: set[Did]
):
    step = took(side, RecordObserved(record(9, B), former))
    assert step.side.mode is Mode.ACTIVE
    assert step.side.awaiting_digests == awaiting_digests


def test_who_is_a_home_beside_this_one_hands_nothing_over():
    step = took(
        MigrationSide(B, record=record(1, A)), RecordObserved(record(9, A, B), record(1, A))
    )
    assert (step.side.mode, step.side.awaiting_digests) == (Mode.ACTIVE, NOBODY)
    alone = took(step.side, RecordObserved(record(10, B), record(1, A))).side
    assert (alone.mode, alone.awaiting_digests) == (Mode.ACTIVE, NOBODY)


def test_a_home_that_is_not_named_any_more_freezes_and_hands_over():
    step = took(home(), RecordObserved(record(2, C)))
    assert step.side.handoff == Handoff(record(2, C).handoff, C)
    assert (step.side.mode, step.side.role) == (Mode.FROZEN, InboxRole.FORWARDING)


def test_what_was_said_to_a_target_holds_while_records_name_it():
    side = took(frozen(digest_acked=True), RecordObserved(order().record)).side
    assert (side.handoff, side.digest_acked) == (Handoff("mig5", B), True)
    assert (side.role, side.names_target) == (InboxRole.FORWARDING, True)
    renewed = took(side, RecordObserved(record(6, B))).side
    assert (renewed.handoff, renewed.digest_acked) == (Handoff("mig5", B), True)
    unheard = took(frozen(), RecordObserved(record(6, B))).side
    assert (unheard.handoff, unheard.digest_acked) == (Handoff(record(6, B).handoff, B), False)
    elsewhere = took(frozen(digest_acked=True), RecordObserved(record(6, C))).side
    assert (elsewhere.handoff, elsewhere.digest_acked) == (Handoff(record(6, C).handoff, C), False)


def test_the_way_back_marks_everything_and_misses_the_target():
    step = took(frozen(), RecordObserved(record(9, A)))
    assert step.mark_present
    assert (step.side.mode, step.side.awaiting_digests) == (Mode.ACTIVE, {B})


def test_a_target_waits_for_its_own_record_and_gives_way_to_a_newer_one():
    waits = took(incoming(), RecordObserved(record(4, A))).side
    assert (waits.mode, waits.record) == (Mode.INCOMING, record(4, A))
    gives_way = took(incoming(), RecordObserved(record(6, C))).side
    assert (gives_way.mode, gives_way.handoff) == (Mode.FROZEN, Handoff(record(6, C).handoff, C))


def test_an_older_record_and_one_that_names_nobody_move_nothing():
    assert took(home(), RecordObserved(record(0, C))) == Transition(home())
    parked = took(home(), RecordObserved(record(2))).side
    assert (parked.mode, parked.record) == (Mode.ACTIVE, record(2))
    assert took(home(), RecordObserved(record(2, A))).side.mode is Mode.ACTIVE
    assert took(MigrationSide(C), RecordObserved(record(2, A))).side == MigrationSide(
        C, record=record(2, A)
    )


def test_of_two_records_of_one_seq_the_losers_home_is_missing():
    mine, theirs = record(5, B, digest=b"2"), record(5, C, digest=b"1")
    active = published(incoming())._replace(record=mine)
    wins = took(active, RecordObserved(mine, fork=theirs)).side
    assert (wins.record, wins.awaiting_digests, wins.fork_version) == (mine, {A, C}, theirs.version)
    told = wins._replace(awaiting_digests=NOBODY)
    assert took(told, RecordObserved(mine, fork=theirs)).side == told
    loses = took(home(me=C, record=theirs), RecordObserved(mine, fork=theirs)).side
    assert (loses.mode, loses.awaiting_digests) == (Mode.FROZEN, NOBODY)
    assert took(MigrationSide(A), RecordObserved(mine, fork=theirs)).side.awaiting_digests == NOBODY


# ---------------------------------------------------------------- the digest


def test_pages_are_taken_in_order_and_each_answer_says_which_comes_next():
    step = took(incoming(), PeerMessage(A, page(0, 3)))
    assert (step.answer, step.imports) == (DigestReceipt("mig5", WHOLE, 1), page(0, 3))
    assert step.side.partial_digest == PartialDigest(WHOLE, 1)
    for number in (0, 2):
        again = took(step.side, PeerMessage(A, page(number, 3)))
        assert again == Transition(step.side, answer=DigestReceipt("mig5", WHOLE, 1))
    side = took(step.side, PeerMessage(A, page(1, 3))).side
    assert (side.digest_received, side.awaiting_digests) == (False, {A})
    last = took(side, PeerMessage(A, page(2, 3)))
    assert last.answer == DigestReceipt("mig5", WHOLE, 3)
    assert (last.side.digest_received, last.side.awaiting_digests, last.side.digest_sources) == (
        True,
        NOBODY,
        {A},
    )
    assert last.side.partial_digest is None


def test_pages_of_two_digests_are_never_one():
    side = took(incoming(), PeerMessage(A, page(0, 2))).side
    other = page(1, 2, digest_id=b"x" * 32)
    step = took(side, PeerMessage(A, other))
    assert (step.imports, step.answer) == (None, DigestReceipt("mig5", other.digest_id, 0))
    assert took(
        side, PeerMessage(A, other._replace(number=0))
    ).side.partial_digest == PartialDigest(other.digest_id, 1)


def test_a_digest_adds_those_whom_its_source_still_misses():
    step = took(incoming(), PeerMessage(A, page(awaiting_digests=frozenset({C, B}))))
    assert step.side.awaiting_digests == {C}


def test_one_that_misses_more_than_can_be_kept_goes_on_being_missing():
    many = frozenset(Did(str(n)) for n in range(machine.MAX_AWAITED_DIGESTS + 1))
    step = took(incoming(), PeerMessage(A, page(awaiting_digests=many)))
    assert (step.side.awaiting_digests, step.side.digest_received) == ({A}, True)


def test_what_a_relay_has_forgotten_is_not_of_the_future():
    step = took(incoming(), PeerMessage(A, page(dedup_horizon=2**31)))
    assert step.imports == page(dedup_horizon=NOW // 3600)
    assert took(incoming(), PeerMessage(A, page(dedup_horizon=3))).imports == page(dedup_horizon=3)


def test_what_comes_to_a_frozen_source_is_to_be_said_on():
    told = frozen(digest_acked=True, awaiting_digests=frozenset({C}))
    late = page(handoff=record(1, A).handoff)
    side = took(told, PeerMessage(C, late, named=True)).side
    assert (side.digest_acked, side.awaiting_digests, side.digest_received) == (
        False,
        NOBODY,
        False,
    )


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"number": 1}, ErrorCode.BAD_FRAME),
        ({"number": -1}, ErrorCode.BAD_FRAME),
        ({"total": 0}, ErrorCode.BAD_FRAME),
        ({"total": machine.MAX_DIGEST_PAGES + 1}, ErrorCode.TOO_LARGE),
        (
            {"maybe_seen": bytes(MAYBE_SEEN_ID_BYTES * (machine.MAX_MAYBE_SEEN_IDS + 1))},
            ErrorCode.TOO_LARGE,
        ),
    ],
)
def test_a_page_that_cannot_be_is_refused(change: dict[str, Any], code: ErrorCode):
    assert refused(incoming(), PeerMessage(A, page(**change))) is code


@pytest.mark.parametrize(
    ("side", "heard", "code"),
    [
        (incoming(), PeerMessage(C, page()), ErrorCode.WRONG_STATE),
        (incoming(), PeerMessage(A, page(handoff="mig4")), ErrorCode.WRONG_STATE),
        (home(), PeerMessage(B, page(handoff=record(1, A).handoff)), ErrorCode.WRONG_STATE),
        (frozen(), PeerMessage(B, page()), ErrorCode.WRONG_STATE),
        (frozen(record=record(5, B)), PeerMessage(B, page()), ErrorCode.MOVED),
        (MigrationSide(A), PeerMessage(B, page()), ErrorCode.WRONG_STATE),
        (frozen(), PeerMessage(C, DigestReceipt("mig5", WHOLE, 1)), ErrorCode.WRONG_STATE),
        (frozen(), PeerMessage(B, DigestReceipt("mig4", WHOLE, 1)), ErrorCode.WRONG_STATE),
        (home(), PeerMessage(B, DigestReceipt("mig5", WHOLE, 1)), ErrorCode.WRONG_STATE),
    ],
)
def test_what_is_not_of_the_current_hand_off_changes_nothing(
    side: MigrationSide, heard: PeerMessage, code: ErrorCode
):
    assert refused(side, heard) is code


def test_a_source_notes_that_its_digest_was_heard():
    side = took(frozen(), PeerMessage(B, DigestReceipt("mig5", WHOLE, 1))).side
    assert side.digest_acked
    assert not machine.has_work(side)


def test_a_relay_that_an_earlier_record_named_hands_over_to_the_home():
    heard = PeerMessage(B, page(handoff=record(1, A).handoff), named=True)
    assert took(home(awaiting_digests=frozenset({B})), heard).side.digest_sources == {B}
    assert took(frozen(), heard).side.digest_sources == {B}


# ---------------------------------------------------------------- long waits


def test_a_target_that_is_not_named_for_a_day_hands_over_to_where_the_agent_lives():
    end = NOW + machine.MAX_UNNAMED_S
    assert took(incoming(), TimePassed(), end - 1).side.mode is Mode.INCOMING
    side = took(incoming(), TimePassed(), end).side
    assert (side.mode, side.order_seq) == (Mode.FROZEN, 5)
    assert side.handoff == Handoff(record(1, A).handoff, A)
    unsure = incoming(record=None)
    assert took(unsure, TimePassed(), end).side == unsure


def test_a_doubt_ends_when_no_envelope_of_that_time_lives():
    side = home(awaiting_digests=frozenset({B}), since=NOW)
    end = NOW + machine.DIGEST_WAIT_S
    assert took(side, TimePassed(), end - 1).side == side
    assert took(side, TimePassed(), end).side.role is InboxRole.HOME
    assert took(home(), TimePassed(), end) == Transition(home())


@pytest.mark.parametrize(
    ("side", "waiting", "is_young", "is_old"),
    [
        (MigrationSide(A), 3, False, False),
        (home(since=NOW), 3, False, False),
        (home(since=NOW, awaiting_digests=frozenset({B})), 0, True, True),
        (home(since=NOW, digest_sources=frozenset({B})), 0, True, False),
        (incoming(), 0, True, True),
        (frozen(), 0, True, True),
        (frozen(digest_acked=True), 0, True, True),
        (frozen(digest_acked=True, record=order().record), 0, True, False),
        (frozen(digest_acked=True, record=order().record), 1, True, True),
        (frozen(record=order().record), 0, True, True),
    ],
)
def test_two_relays_go_on_talking_until_all_is_said_and_a_week_longer(
    side: MigrationSide, waiting: int, is_young: Any, is_old: Any
):
    week = Timestamp(NOW + machine.GRACE_S)
    assert machine.is_open(side, Timestamp(week - 1), waiting) is is_young
    assert machine.is_open(side, week, waiting) is is_old


@pytest.mark.parametrize(
    ("side", "has"),
    [(frozen(), True), (frozen(digest_acked=True), False), (home(), False), (incoming(), False)],
)
def test_only_a_source_that_has_not_told_its_digest_has_work(side: MigrationSide, has: Any):
    assert machine.has_work(side) is has


# ---------------------------------------------------------------- what nobody may fill


def test_ids_of_hours_to_come_are_not_taken():
    """They would never be forgotten, and crowd out those of now."""
    hour = NOW // 3600
    ids = [at.to_bytes(4, "big") + bytes(32) for at in (2**32 - 1, hour + 2, hour + 1, hour)]
    assert took(incoming(), PeerMessage(A, page(maybe_seen=b"".join(ids)))).imports == page(
        maybe_seen=b"".join(ids[2:])
    )


def test_of_relays_that_records_name_no_more_are_kept_than_fit():
    side, many = home(), machine.MAX_AWAITED_DIGESTS + 9
    for seq in range(2, many):
        side = took(side, RecordObserved(record(seq, Did(f"R{seq:03}")))).side
    assert len(side.awaiting_digests) == machine.MAX_AWAITED_DIGESTS
    # those that were there first
    assert Did("R002") in side.awaiting_digests


def test_a_source_that_nobody_answers_is_done_when_nothing_lives_that_was_seen_there():
    end = Timestamp(NOW + machine.DIGEST_WAIT_S)
    assert took(frozen(), TimePassed(), end - 1).side == frozen()
    side = took(frozen(), TimePassed(), end).side
    assert (machine.has_work(side), machine.is_open(side, end, 0)) == (False, False)
    assert machine.is_open(side, end, 1)
    assert not machine.is_open(incoming(record=None), end, 0)
