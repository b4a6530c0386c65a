"""Single steps of a hand-off. That they hold together is shown in tests/protocol."""

from __future__ import annotations

from typing import Any

import pytest

from relay.core import handover, migration
from relay.core.errors import ErrorCode, Refusal
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
    EndSession,
    Expired,
    Forget,
    Freeze,
    Handoff,
    Heard,
    Held,
    Input,
    Keep,
    Learned,
    Mark,
    Mode,
    OrderRef,
    Prepare,
    Receipt,
    RecordRef,
    Side,
    Submitted,
    Ticked,
    Told,
)

A, B, C = Did("A"), Did("B"), Did("C")
ONE, TWO, THREE = Eid("one"), Eid("two"), Eid("three")
NOW = 1_000
DAY = 24 * 3600


def record(seq: int, *homes: Did, digest: bytes = b"") -> RecordRef:
    return RecordRef((1, seq, digest), homes)


def order(seq: int = 5, source: Did = A, target: Did = B, **changes: Any) -> OrderRef:
    made = OrderRef(f"mig{seq}", seq, source, target, record(seq, target), NOW + DAY)
    return made._replace(**changes)


def home(*live: Held, **changes: Any) -> Side:
    return Side(A, Mode.ACTIVE, record(1, A), live=frozenset(live))._replace(**changes)


def frozen(*live: Held, **changes: Any) -> Side:
    side = home(*live, mode=Mode.FROZEN, handoff=Handoff("mig5", B), order_seq=5, since=NOW)
    return side._replace(**changes)


def incoming(*live: Held, **changes: Any) -> Side:
    side = took(Side(B, record=record(1, A)), Prepare(order())).side
    return side._replace(live=frozenset(live), **changes)


def published(side: Side) -> Side:
    """The record of the order is known."""
    return took(side, Learned(order().record)).side


def took(side: Side, said: Input, now: float = NOW) -> Step:
    step = migration.step(side, said, Timestamp(now))
    assert isinstance(step, Step), step
    return step


def refused(side: Side, said: Input, now: float = NOW) -> ErrorCode:
    no = migration.step(side, said, Timestamp(now))
    assert isinstance(no, Refusal), no
    return no.code


def eids(*names: Eid) -> frozenset[Eid]:
    return frozenset(names)


def digest(side: Side, most: int = 4096) -> tuple[DigestPage, ...]:
    return handover.digest_pages(side, most)


# ---------------------------------------------------------------- orders


def test_a_target_that_is_ready_takes_mail_and_delivers_nothing():
    side = incoming()
    assert (side.mode, side.handoff, side.missing) == (Mode.INCOMING, Handoff("mig5", A), {A})
    assert side.accepts
    assert not side.delivers
    assert took(side, Submitted(ONE)).effects == (Keep(ONE, False), Receipt(ONE, False, False))


def test_a_source_that_freezes_marks_what_may_be_in_flight_and_ends_the_session():
    step = took(home(Held(ONE), Held(TWO)), Freeze(order(), eids(ONE, THREE)))
    assert step.effects == (Mark(eids(ONE)), EndSession(ErrorCode.MIGRATING))
    assert step.side.live == {Held(ONE, True), Held(TWO)}
    assert step.side.handoff == Handoff("mig5", B)
    assert not step.side.delivers


@pytest.mark.parametrize(
    ("side", "said", "code"),
    [
        (Side(C), Prepare(order()), ErrorCode.WRONG_RELAY),
        (home()._replace(me=C), Freeze(order()), ErrorCode.WRONG_RELAY),
        (home(me=B, record=record(1, B)), Prepare(order()), ErrorCode.WRONG_STATE),
        (Side(A), Freeze(order()), ErrorCode.WRONG_STATE),
        (Side(A, Mode.TOMBSTONE, record(1, B)), Freeze(order()), ErrorCode.WRONG_STATE),
        (frozen(record=record(2, C)), Freeze(order(6)), ErrorCode.WRONG_STATE),
        (Side(B, order_seq=6), Prepare(order(5)), ErrorCode.STALE_RECORD),
        (Side(B, order_seq=5), Prepare(order(5)), ErrorCode.STALE_RECORD),
        (home(order_seq=6), Freeze(order(5)), ErrorCode.STALE_RECORD),
        (Side(B, record=record(5, A)), Prepare(order(5)), ErrorCode.STALE_RECORD),
        (Side(B), Prepare(order(expires_at=NOW)), ErrorCode.EXPIRED),
        (home(), Freeze(order(expires_at=NOW)), ErrorCode.EXPIRED),
    ],
)
def test_an_order_that_is_not_for_this_side_now_changes_nothing(
    side: Side, said: Input, code: ErrorCode
):
    assert refused(side, said) is code


def test_an_order_may_be_repeated_even_when_it_has_expired():
    late = NOW + 2 * DAY
    assert took(incoming(), Prepare(order()), late) == Step(incoming())
    assert took(published(incoming()), Prepare(order()), late).effects == ()
    assert took(frozen(), Freeze(order()), late) == Step(frozen())


def test_a_newer_order_turns_the_source_and_it_goes_on_missing_the_old_target():
    side = took(frozen(), Freeze(order(6, target=C))).side
    assert (side.handoff, side.missing, side.since) == (Handoff("mig6", C), {B}, NOW)
    assert took(side, Freeze(order(7, target=C))).side.missing == {B}


def test_a_target_that_gets_ready_for_another_source_asks_that_one():
    side = took(incoming(digested=True), Prepare(order(6, source=C))).side
    assert (side.missing, side.digested) == ({C}, False)
    back = frozen(missing=frozenset({C}), record=record(2, B))
    side = took(back, Prepare(order(6, source=B, target=A))).side
    assert side.missing == {B, C}


# ---------------------------------------------------------------- records


def test_its_own_record_makes_a_target_the_home():
    told = took(incoming(), Heard(A, digest(frozen())[0])).side
    side = took(told, Learned(order().record)).side
    assert (side.mode, side.missing, side.delivers) == (Mode.ACTIVE, frozenset(), True)


def test_a_home_without_the_digest_marks_everything_until_it_comes():
    side = published(incoming(Held(ONE)))
    assert side.missing == {A}
    assert side.is_marked(Held(ONE))
    late = frozen(record=order().record, handoff=Handoff(order().record.handoff, B))
    side = took(side, Heard(A, digest(late)[0], named=True)).side
    assert not side.is_marked(Held(ONE))


@pytest.mark.parametrize(
    ("side", "missing"),
    [
        (Side(B), set()),
        (Side(B, record=record(1, A)), {A}),
        (Side(B, Mode.TOMBSTONE, record(1, A), handoff=Handoff("x", C)), {A, C}),
        (Side(B, Mode.INCOMING, record(1, A), handoff=Handoff("x", C)), {A, C}),
    ],
)
def test_a_record_without_its_order_is_a_dead_source_publish(side: Side, missing: set[Did]):
    step = took(side, Learned(record(9, B)))
    assert step.side.mode is Mode.ACTIVE
    assert step.side.missing == missing


def test_a_home_that_is_not_named_any_more_freezes_and_hands_over():
    step = took(home(Held(ONE)), Learned(record(2, C), eids(ONE)))
    assert step.effects == (Mark(eids(ONE)), EndSession(ErrorCode.MOVED))
    assert step.side.handoff == Handoff(record(2, C).handoff, C)
    assert step.side.mode is Mode.FROZEN


def test_the_way_back_marks_everything_and_misses_the_target():
    step = took(frozen(Held(ONE), Held(TWO, True)), Learned(record(9, A)))
    assert step.effects == (Mark(eids(ONE)),)
    assert (step.side.mode, step.side.missing) == (Mode.ACTIVE, {B})
    assert step.side.live == {Held(ONE, True), Held(TWO, True)}


def test_a_target_waits_for_its_own_record_and_gives_way_to_a_newer_one():
    waits = took(incoming(), Learned(record(4, A))).side
    assert (waits.mode, waits.record) == (Mode.INCOMING, record(4, A))
    gives_way = took(incoming(), Learned(record(6, C))).side
    assert (gives_way.mode, gives_way.handoff) == (Mode.FROZEN, Handoff(record(6, C).handoff, C))


def test_an_older_record_and_one_that_names_nobody_move_nothing():
    assert took(home(), Learned(record(0, C))) == Step(home())
    parked = took(home(), Learned(record(2))).side
    assert (parked.mode, parked.record) == (Mode.ACTIVE, record(2))
    assert took(home(), Learned(record(2, A))).side.mode is Mode.ACTIVE
    assert took(Side(C), Learned(record(2, A))).side == Side(C, record=record(2, A))


def test_of_two_records_of_one_seq_the_losers_home_is_missing():
    mine, theirs = record(5, B, digest=b"2"), record(5, C, digest=b"1")
    wins = took(published(incoming())._replace(record=mine), Learned(theirs))
    assert (wins.side.record, wins.side.missing) == (mine, {A, C})
    loses = took(home(me=C, record=theirs), Learned(mine)).side
    assert (loses.mode, loses.missing) == (Mode.FROZEN, frozenset())


# ---------------------------------------------------------------- the digest


def test_a_digest_tells_what_was_acked_and_what_may_have_been_seen():
    told = frozenset({Told(C, THREE)})
    side = frozen(Held(ONE), Held(TWO, True), finished=eids(Eid("x")), told=told)
    (page,) = digest(side._replace(missing=frozenset({C})))
    assert page.finished == {"x"}
    assert page.maybe == {TWO, THREE}
    assert page.missing == {C}
    assert digest(home()) == ()


def test_a_digest_has_come_when_all_pages_of_one_digest_have():
    first, second = digest(frozen(Held(ONE, True), finished=eids(TWO)), 1)
    other, _ = digest(frozen(Held(ONE, True), finished=eids(THREE)), 1)
    side = took(incoming(), Heard(A, second)).side
    assert not side.digested
    side = took(side, Heard(A, other)).side
    assert not side.digested
    side = took(took(side, Heard(A, second)).side, Heard(A, first)).side
    assert side.digested
    assert side.missing == frozenset()


def test_the_last_page_is_answered_and_the_source_notes_it():
    side = frozen()
    (page,) = migration.due(side)
    assert isinstance(page, DigestPage)
    step = took(incoming(), Heard(A, page))
    assert step.effects == (Answer(DigestReceipt("mig5", page.whole)),)
    noted = took(side, Heard(B, DigestReceipt("mig5", page.whole))).side
    assert migration.due(noted) == ()


def test_what_a_source_says_is_finished_ends_only_what_it_brought():
    (page,) = digest(frozen(finished=eids(ONE, TWO, THREE)))
    side = incoming(Held(ONE, brought_by=A), Held(TWO, brought_by=C), Held(THREE))
    step = took(side, Heard(A, page))
    assert step.effects[:2] == (End(eids(ONE), "moved"), Mark(eids(TWO, THREE)))
    assert step.side.live == {Held(TWO, True, C), Held(THREE, True)}


def test_what_was_finished_elsewhere_is_kept_with_a_mark_when_a_sender_brings_it():
    (page,) = digest(frozen(finished=eids(ONE)))
    told = took(incoming(), Heard(A, page)).side
    assert took(told, Submitted(ONE)).effects[0] == Keep(ONE, True)
    assert took(told, Heard(A, CopyPage("mig5", ((ONE, False),)))).side.live == frozenset()


@pytest.mark.parametrize("change", [{"number": 1}, {"number": -1}, {"total": 0}])
def test_a_page_that_cannot_be_is_refused(change: dict[str, int]):
    page = digest(frozen())[0]._replace(**change)
    assert refused(incoming(), Heard(A, page)) is ErrorCode.BAD_FRAME


def test_a_digest_has_its_bounds():
    many = frozenset(Eid(str(n)) for n in range(4097))
    page = digest(frozen())[0]
    assert refused(incoming(), Heard(A, page._replace(maybe=many))) is ErrorCode.TOO_LARGE
    assert refused(incoming(), Heard(A, page._replace(total=65))) is ErrorCode.TOO_LARGE
    assert len(digest(frozen(finished=many))) == 2


# ---------------------------------------------------------------- copies


def test_a_copy_is_kept_once_with_its_mark_and_answered():
    page = CopyPage("mig5", ((ONE, True), (TWO, False), (THREE, False)))
    side = incoming(Held(ONE), finished=eids(THREE))
    step = took(side, Heard(A, page))
    assert step.effects == (
        Mark(eids(ONE)),
        Keep(TWO, False),
        Answer(CopyReceipt("mig5", page.items)),
    )
    assert took(step.side, Heard(A, page)).side == step.side


def test_what_a_sender_brings_after_a_copy_is_this_relays_own():
    side = took(incoming(), Heard(A, CopyPage("mig5", ((ONE, False),)))).side
    assert side.held(ONE) == Held(ONE, False, A)
    step = took(side, Submitted(ONE))
    assert step.effects == (Receipt(ONE, True, False),)
    assert step.side.held(ONE) == Held(ONE)


def test_what_two_relays_brought_is_ended_by_the_word_of_neither():
    page = CopyPage(record(1, A).handoff, ((ONE, False),))
    side = took(home(), Heard(B, page, named=True)).side
    assert took(side, Heard(B, page, named=True)).side.held(ONE) == Held(ONE, False, B)
    assert took(side, Heard(C, page, named=True)).side.held(ONE) == Held(ONE)


def test_the_source_lets_go_of_what_the_target_has_and_forgets_it():
    side = frozen(Held(ONE), Held(TWO, True), record=order().record)
    step = took(side, Heard(B, CopyReceipt("mig5", ((ONE, False), (TWO, False)))))
    assert step.effects == (End(eids(ONE), "moved"), Forget(eids(ONE)))
    assert step.side.live == {Held(TWO, True)}, "its mark has not arrived yet"


def test_the_source_lets_go_of_nothing_before_a_record_names_the_target():
    receipt = Heard(B, CopyReceipt("mig5", ((ONE, False),)))
    assert refused(frozen(Held(ONE)), receipt) is ErrorCode.WRONG_STATE
    assert migration.due(_told(frozen(Held(ONE)))) == ()
    named = _told(frozen(Held(ONE), record=order().record))
    assert migration.due(named) == (CopyPage("mig5", ((ONE, False),)),)


def _told(side: Side) -> Side:
    return side._replace(handed=digest(side)[0].whole)


def test_what_the_target_never_takes_ends_with_one_bounce():
    no = ((ONE, ErrorCode.TOO_LARGE),)
    page = Heard(A, CopyPage("mig5", ((ONE, True),)), refused=no)
    (answer,) = took(incoming(), page).effects
    assert answer == Answer(CopyReceipt("mig5", (), no))
    side = frozen(Held(ONE, True), record=order().record)
    step = took(side, Heard(B, answer.message))
    assert step.effects == (End(eids(ONE), "refused"), Bounce(eids(ONE), "too_large", True))
    assert step.side.finished == {ONE}
    assert took(step.side, Heard(B, answer.message)).effects == ()


@pytest.mark.parametrize(
    ("side", "heard", "code"),
    [
        (incoming(), Heard(C, CopyPage("mig5", ())), ErrorCode.WRONG_STATE),
        (incoming(), Heard(A, CopyPage("mig4", ())), ErrorCode.WRONG_STATE),
        (home(), Heard(B, CopyPage(record(1, A).handoff, ())), ErrorCode.WRONG_STATE),
        (frozen(), Heard(B, CopyPage("mig5", ())), ErrorCode.WRONG_STATE),
        (frozen(record=record(5, B)), Heard(B, CopyPage("mig5", ())), ErrorCode.MOVED),
        (frozen(), Heard(C, CopyReceipt("mig5", ())), ErrorCode.WRONG_STATE),
        (frozen(), Heard(B, CopyReceipt("mig4", ())), ErrorCode.WRONG_STATE),
        (home(), Heard(B, DigestReceipt("mig5", b"")), ErrorCode.WRONG_STATE),
    ],
)
def test_what_is_not_of_the_current_hand_off_changes_nothing(
    side: Side, heard: Heard, code: ErrorCode
):
    assert refused(side, heard) is code


def test_a_relay_that_an_earlier_record_named_hands_over_to_the_home():
    page = Heard(B, CopyPage(record(1, A).handoff, ((ONE, False),)), named=True)
    assert took(home(), page).side.held(ONE) == Held(ONE, False, B)
    assert took(frozen(), page).side.held(ONE) == Held(ONE, False, B)


# ---------------------------------------------------------------- an inbox's own life


def test_only_a_home_takes_acks_and_lets_envelopes_expire():
    ack, sweep = Acked(eids(ONE)), Expired(eids(ONE))
    assert refused(frozen(Held(ONE)), ack) is ErrorCode.MIGRATING
    assert refused(incoming(Held(ONE)), ack) is ErrorCode.SUPERSEDED
    assert refused(frozen(Held(ONE)), sweep) is ErrorCode.WRONG_STATE
    step = took(home(Held(ONE)), ack)
    assert (step.effects, step.side.finished) == ((End(eids(ONE), "acked"),), {ONE})
    assert took(home(), ack).effects == ()


def test_what_expires_bounces_once_and_says_whether_it_may_have_been_seen():
    side = home(Held(ONE), Held(TWO, True), Held(THREE), told=frozenset({Told(B, THREE)}))
    step = took(side, Expired(eids(ONE, TWO, THREE)))
    assert step.effects == (
        End(eids(ONE, TWO, THREE), "expired"),
        Bounce(eids(ONE), "expired", False),
        Bounce(eids(TWO), "expired", True),
    )
    assert took(step.side, Expired(eids(ONE))).effects == ()


def test_late_mail_is_taken_with_a_hint_and_none_by_a_tombstone():
    moved = frozen(record=order().record)
    assert took(moved, Submitted(ONE)).effects[-1] == Receipt(ONE, False, True)
    buried = Side(A, Mode.TOMBSTONE, order().record)
    assert refused(buried, Submitted(ONE)) is ErrorCode.MOVED
    assert refused(Side(A), Submitted(ONE)) is ErrorCode.UNKNOWN_INBOX
    assert took(home(finished=eids(ONE)), Submitted(ONE)).effects == (Receipt(ONE, True, False),)


def test_a_session_that_ended_uncleanly_leaves_marks():
    assert took(home(Held(ONE)), Closed(eids(ONE))).effects == (Mark(eids(ONE)),)


# ---------------------------------------------------------------- long waits


def test_a_target_that_is_not_named_for_a_day_is_dropped_unless_it_holds_something():
    end = NOW + migration.UNNAMED_S
    assert took(incoming(), Ticked(), end - 1).side.mode is Mode.INCOMING
    dropped = took(incoming(), Ticked(), end).side
    assert (dropped.mode, dropped.order_seq) == (Mode.NONE, 5)
    kept = took(incoming(digested=True), Ticked(), end).side
    assert kept.handoff == Handoff(record(1, A).handoff, A)
    holds = incoming(Held(ONE))
    assert took(holds, Ticked(), end).side.mode is Mode.FROZEN
    unsure = holds._replace(record=None)
    assert took(unsure, Ticked(), end).side == unsure


def test_a_source_is_buried_when_all_is_handed_over_and_its_grace_is_over():
    end = NOW + migration.GRACE_S
    done = _told(frozen(record=order().record))
    assert took(done, Ticked(), end - 1).side.mode is Mode.FROZEN
    assert took(done, Ticked(), end).side.mode is Mode.TOMBSTONE
    for not_done in (
        done._replace(live=frozenset({Held(ONE)})),
        done._replace(record=record(1, A)),
        done._replace(finished=eids(ONE)),
    ):
        assert took(not_done, Ticked(), end).side.mode is Mode.FROZEN


def test_a_tombstone_goes_in_the_end_and_nobody_turns_its_order_back():
    side = Side(A, Mode.TOMBSTONE, order().record, 5, since=NOW, finished=eids(ONE))
    gone = took(side, Ticked(), NOW + migration.TOMBSTONE_S).side
    assert gone == Side(A, Mode.NONE, order().record, 5, since=NOW + migration.TOMBSTONE_S)
    assert took(home(), Ticked(), 10 * NOW) == Step(home())
