"""The inbox of the reference: single steps of storing, reading, acking and ending."""

from __future__ import annotations

from typing import Any

import pytest

from relay.inbox.model.types import (
    Accepted,
    AckResult,
    Disposition,
    InboxAck,
    InboxLimits,
    LiveSession,
    OpenedSession,
    Page,
    PendingBounce,
)
from relay.protocol.errors import ErrorCode, Refusal
from relay.protocol.ids import AgentKey, Epoch, Fence, NodeId, Seq, Timestamp
from relay.protocol.types import DedupKey, Range, Reason, Window
from relay.reference.inbox import Inbox
from tests.unit.builders import entry

ME, E1, E2 = AgentKey("key:me"), Epoch("e1"), Epoch("e2")
A, B = NodeId("a"), NodeId("b")
T = Timestamp(1_000_000)
EXPIRES = 2_000
WIDE = Window(64, 10_000)
LIMITS = InboxLimits()


def inbox(count: int = 0, **entries: Any) -> Inbox:
    made = Inbox(ME, E1)
    for n in range(1, count + 1):
        accepted(made, n, **entries)
    return made


def accepted(box: Inbox, n: int, now: float = 0, **changes: Any) -> Accepted:
    result = box.accept(entry(n, **changes), LIMITS, Timestamp(now))
    assert isinstance(result, Accepted), result
    return result


def code(result: object) -> ErrorCode:
    assert isinstance(result, Refusal), result
    return result.code


def page(
    box: Inbox, opened: OpenedSession, after: int = 0, window: Window = WIDE, now: float = 0
) -> Page:
    result = box.read(opened.fence, Seq(after), window, Timestamp(now))
    assert isinstance(result, Page), result
    return result


def taken(box: Inbox, opened: OpenedSession, window: Window = WIDE, now: float = 0) -> Page:
    session = LiveSession(opened.fence, A, 9_999_999_999)
    result = box.take(session, window, Timestamp(now))
    assert isinstance(result, Page), result
    return result


def shown(found: Page) -> list[tuple[int, bool]]:
    return [(item.seq, item.redelivered) for item in found.items]


def ack(
    opened: OpenedSession, *seqs: int, upto: int = 0, refuse: tuple = (), epoch: Epoch = E1
) -> InboxAck:
    return InboxAck(opened.fence, epoch, tuple(map(Seq, seqs)), Seq(upto), refuse)


def done(result: object) -> tuple[AckResult, list[PendingBounce]]:
    assert not isinstance(result, Refusal), result
    return result


# ---------------------------------------------------------------- accept


def test_seqs_are_given_one_after_another_and_a_duplicate_gets_its_own_again():
    box = inbox(2)
    again = box.accept(entry(1), LIMITS, Timestamp(0))
    assert again == Accepted(Seq(1), E1, dup=True, session=None)
    assert accepted(box, 3).seq == 3
    assert box.pending().count == 3


def test_an_id_that_was_used_for_another_envelope_is_replayed_whatever_became_of_it():
    box = inbox(1)
    opened = box.open_session(A, WIDE)
    other = entry(2)
    clash = other._replace(dedupe_key=entry(1).dedupe_key)
    assert code(box.accept(clash, LIMITS, Timestamp(0))) == ErrorCode.REPLAYED
    box.ack(ack(opened, 1), T)
    assert code(box.accept(clash, LIMITS, Timestamp(0))) == ErrorCode.REPLAYED


def test_an_acked_envelope_is_answered_as_a_duplicate_and_never_stored_again():
    box = inbox(1)
    box.ack(ack(box.open_session(A, WIDE), 1, upto=1), T)
    assert accepted(box, 1).dup
    assert box.pending().count == 0


def test_the_memory_is_asked_before_the_clock():
    box = inbox(1, expires=EXPIRES)
    assert accepted(box, 1, now=EXPIRES + 1).dup
    assert code(box.accept(entry(2, expires=EXPIRES), LIMITS, Timestamp(EXPIRES))) == (
        ErrorCode.EXPIRED
    )


def test_a_clock_in_doubt_never_says_expired():
    box = inbox()
    late = box.accept(entry(1, expires=EXPIRES), LIMITS, Timestamp(EXPIRES), clock_ok=False)
    assert isinstance(late, Refusal)
    assert (late.code, late.stored) == (ErrorCode.STORAGE_UNAVAILABLE, "unknown")
    accepted(box, 2, expires=EXPIRES)
    opened = box.open_session(A, WIDE)
    found = box.read(opened.fence, Seq(0), WIDE, Timestamp(EXPIRES + 999), clock_ok=False)
    assert isinstance(found, Page)
    assert shown(found) == [(1, False)]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (InboxLimits(max_count=2), ErrorCode.INBOX_FULL),
        (InboxLimits(max_bytes=29), ErrorCode.INBOX_FULL),
        (InboxLimits(sender_count=2), ErrorCode.SENDER_QUOTA),
        (InboxLimits(sender_bytes=29), ErrorCode.SENDER_QUOTA),
    ],
    ids=str,
)
def test_a_full_inbox_refuses_counts_it_and_leaves_nothing_behind(limits, expected):
    box = inbox(2)
    for now in (7.0, 9.0):
        assert code(box.accept(entry(3), limits, Timestamp(now))) == expected
    assert (box.last, box.bytes, len(box.dedupe)) == (2, 20, 2)
    told = box.pending().refused
    assert (told.count, told.first_at, told.last_at) == (2, 7, 9)
    box.ack(ack(box.open_session(A, WIDE), 1), T)
    assert isinstance(box.accept(entry(3), limits, Timestamp(9)), Accepted)


def test_one_sender_cannot_fill_the_share_of_another():
    box = inbox(2)
    limits = InboxLimits(sender_count=2)
    assert code(box.accept(entry(3), limits, Timestamp(0))) == ErrorCode.SENDER_QUOTA
    assert isinstance(box.accept(entry(3, sender="other"), limits, Timestamp(0)), Accepted)


def knowing() -> Inbox:
    """An inbox that knows the sender of every entry."""
    box = inbox()
    box.rules.allow.add(entry(1).sender)
    return box


def test_a_full_memory_drops_its_oldest_hour_and_refuses_what_is_that_old():
    limits, box = InboxLimits(dedupe_entries=3), knowing()
    for hour in (10, 11, 12):
        assert isinstance(box.accept(entry(hour, hour=hour), limits, Timestamp(0)), Accepted)
    assert isinstance(box.accept(entry(99, hour=12), limits, Timestamp(0)), Accepted)
    for n, hour in ((10, 10), (50, 10), (51, 3)):
        no = box.accept(entry(n, hour=hour), limits, Timestamp(0))
        assert isinstance(no, Refusal)
        assert (no.code, no.stored) == (ErrorCode.STALE_ID, "unknown")


def test_with_only_the_newest_two_hours_left_a_full_memory_is_overloaded():
    limits, box = InboxLimits(dedupe_entries=2), knowing()
    for hour in (10, 11):
        box.accept(entry(hour, hour=hour), limits, Timestamp(0))
    assert code(box.accept(entry(12, hour=12), limits, Timestamp(0))) == ErrorCode.OVERLOADED
    assert len(box.dedupe) == 2


def test_what_the_store_has_lost_is_no_duplicate_but_kept_anew_and_marked():
    box = inbox(2)
    del box.live[Seq(1)]  # an entry that a broken disk ate; its id is still remembered
    again = box.accept(entry(1), LIMITS, Timestamp(0))
    assert again == Accepted(Seq(3), E1, dup=False, session=None, stranger=True)
    assert box.live[Seq(3)].marked
    assert accepted(box, 1).dup


# ---------------------------------------------------------------- sessions and marks


def test_only_the_newest_session_reads_acks_and_closes():
    box = inbox(1)
    first = box.open_session(A, WIDE)
    second = box.open_session(B, WIDE)
    assert second.fence > first.fence
    assert second.previous == LiveSession(first.fence, A)
    assert code(box.read(first.fence, Seq(0), WIDE, T)) == ErrorCode.SUPERSEDED
    assert code(box.ack(ack(first, 1), T)) == ErrorCode.SUPERSEDED
    assert code(box.take(LiveSession(first.fence, A), WIDE, T)) == ErrorCode.SUPERSEDED
    assert code(box.take_ack(ack(first, upto=1), T)) == ErrorCode.SUPERSEDED
    assert not box.close_session(first.fence, Seq(1))
    assert box.pending().count == 1
    assert shown(page(box, second))


def test_a_closed_session_reads_nothing_more():
    box = inbox(1)
    opened = box.open_session(A, WIDE)
    assert box.close_session(opened.fence, Seq(0))
    assert not box.close_session(opened.fence, Seq(1))
    assert code(box.read(opened.fence, Seq(0), WIDE, T)) == ErrorCode.SUPERSEDED


def test_what_was_never_handed_over_is_not_marked():
    box = inbox(3)
    assert shown(page(box, box.open_session(A, WIDE))) == [(1, False), (2, False), (3, False)]


def test_after_a_clean_end_exactly_what_was_handed_over_is_marked():
    box = inbox(3)
    box.close_session(box.open_session(A, WIDE).fence, Seq(2))
    assert shown(page(box, box.open_session(A, WIDE))) == [(1, True), (2, True), (3, False)]


def test_after_an_unclean_end_one_window_is_marked():
    box = inbox(4)
    box.open_session(A, Window(2, 10_000))
    assert shown(page(box, box.open_session(A, WIDE))) == [
        (1, True), (2, True), (3, False), (4, False),
    ]  # fmt: skip


def test_the_window_of_the_ended_session_counts_and_not_that_of_the_new_one():
    box = inbox(3)
    box.open_session(A, Window(1, 10_000))
    box.open_session(A, Window(3, 10_000))
    assert [marked for _, marked in shown(page(box, box.open_session(A, WIDE)))] == [True] * 3


@pytest.mark.parametrize(
    ("sizes", "window", "marked"),
    [
        ([10, 10, 10], Window(9, 20), 2),
        ([10, 10, 10], Window(9, 29), 2),
        ([50, 10, 10], Window(9, 20), 1),  # one always fits
        ([10, 50, 10], Window(9, 20), 1),
        ([10, 10, 10], Window(2, 999), 2),
    ],
)
def test_the_marked_window_is_what_the_session_could_have_held(sizes, window, marked):
    box = inbox()
    for n, size in enumerate(sizes):
        accepted(box, n, size=size)
    box.open_session(A, window)
    assert sum(flag for _, flag in shown(page(box, box.open_session(A, WIDE)))) == marked


def test_the_window_begins_after_what_was_acked():
    box = inbox(4)
    opened = box.open_session(A, Window(2, 10_000))
    box.ack(ack(opened, 1, 2, upto=2), T)
    assert shown(page(box, box.open_session(A, WIDE), after=2)) == [(3, True), (4, True)]


def test_an_entry_that_came_marked_stays_marked_and_is_not_handed_over_from_memory():
    box = inbox()
    box.open_session(A, WIDE)
    result = accepted(box, 1, marked=True)
    assert result.session is None
    assert accepted(box, 2).session == LiveSession(Fence(1), A)
    assert shown(page(box, box.open_session(A, Window(9, 9)))) == [(1, True), (2, True)]


# ---------------------------------------------------------------- read


def test_a_page_ends_at_its_window_and_one_envelope_always_fits():
    box = inbox(3, size=40)
    opened = box.open_session(A, WIDE)
    found = page(box, opened, window=Window(9, 80))
    assert (shown(found), found.upto, found.head) == ([(1, False), (2, False)], 2, 3)
    assert shown(page(box, opened, after=2, window=Window(9, 1))) == [(3, False)]
    assert page(box, opened, window=Window(1, 999)).upto == 1
    assert page(box, opened, after=3).upto == 3


def test_a_page_explains_what_is_not_there():
    box = inbox(5)
    opened = box.open_session(A, WIDE)
    box.ack(ack(opened, 2, refuse=((Seq(4), "ugly"),)), T)
    found = page(box, opened)
    assert [seq for seq, _ in shown(found)] == [1, 3, 5]
    assert found.gaps == (
        Range(Seq(2), Seq(2), Reason.ACKED),
        Range(Seq(4), Seq(4), Reason.REFUSED),
    )


def test_a_hole_is_never_passed_over():
    box = inbox(3)
    opened = box.open_session(A, WIDE)
    del box.live[Seq(2)]
    assert code(box.read(opened.fence, Seq(0), WIDE, T)) == ErrorCode.INBOX_RESET
    found = page(box, opened, after=2)
    assert shown(found) == [(3, False)]


def test_a_lost_tail_is_a_hole_too():
    box = inbox(2)
    opened = box.open_session(A, WIDE)
    del box.live[Seq(2)]
    assert code(box.read(opened.fence, Seq(1), WIDE, T)) == ErrorCode.INBOX_RESET


def test_a_reader_behind_the_cursor_finds_no_hole():
    """An ack of what was not handed over yet moves the cursor past the session's position."""
    box = inbox(3)
    opened = box.open_session(A, WIDE)
    assert done(box.ack(ack(opened, 1, 2), T))[0].cursor == 2
    found = page(box, opened, after=0)
    assert (shown(found), found.gaps, found.upto) == ([(3, False)], (), 3)


def test_a_page_stops_before_the_first_expired_entry_and_names_it():
    box = inbox(1)
    accepted(box, 2, expires=EXPIRES)
    accepted(box, 3, expires=EXPIRES)
    accepted(box, 4)
    opened = box.open_session(A, WIDE)
    found = page(box, opened, now=EXPIRES)
    assert (shown(found), found.upto, found.expired) == ([(1, False)], 1, (2, 3))
    box.conclude(found.expired, Reason.EXPIRED, Timestamp(EXPIRES))
    rest = page(box, opened, after=1, now=EXPIRES)
    assert (shown(rest), rest.gaps) == (
        [(4, False)],
        (Range(Seq(2), Seq(3), Reason.EXPIRED),),
    )


# ---------------------------------------------------------------- ack


def test_an_ack_deletes_exactly_what_it_names_and_moves_the_cursor_over_it():
    box = inbox(4)
    opened = box.open_session(A, WIDE)
    first, _ = done(box.ack(ack(opened, 3), T))
    assert (first.cursor, list(box.live)) == (0, [1, 2, 4])
    second, _ = done(box.ack(ack(opened, 1, 2, upto=2), T))
    assert (second.cursor, list(box.live)) == (3, [4])
    assert done(box.ack(ack(opened, 1, 2, 3, upto=3), T))[0].cursor == 3  # repeating is harmless


def test_upto_alone_deletes_nothing():
    box = inbox(3)
    opened = box.open_session(A, WIDE)
    assert done(box.ack(ack(opened, upto=3), T))[0].cursor == 0
    assert len(box.live) == 3


def test_an_ack_of_another_epoch_changes_nothing():
    box = inbox(1)
    opened = box.open_session(A, WIDE)
    assert code(box.ack(ack(opened, 1, epoch=E2), T)) == ErrorCode.INBOX_RESET
    assert code(box.take_ack(ack(opened, 1, upto=9, epoch=E2), T)) == ErrorCode.INBOX_RESET
    assert len(box.live) == 1


def test_a_refused_envelope_is_removed_and_bounces_once():
    box = inbox(2)
    opened = box.open_session(A, WIDE)
    refuse = ((Seq(2), "ugly"), (Seq(2), "again"), (Seq(9), "never"))
    _, intents = done(box.ack(ack(opened, refuse=refuse), T))
    assert intents == [PendingBounce(AgentKey("key:s"), entry(2).eid, ME, "ugly", True, int(T))]
    assert done(box.ack(ack(opened, refuse=refuse), T))[1] == []


def test_a_bounce_never_bounces():
    box = inbox(2, bounces=False, expires=EXPIRES)
    opened = box.open_session(A, WIDE)
    assert done(box.ack(ack(opened, refuse=((Seq(1), "x"),)), T))[1] == []
    assert box.conclude([Seq(2)], Reason.EXPIRED, Timestamp(EXPIRES)) == []
    assert len(box.live) == 0


# ---------------------------------------------------------------- sessions without a connection


def test_what_is_taken_twice_is_marked_the_second_time():
    box = inbox(3)
    opened = box.open_session(A, WIDE, until=99)
    assert shown(taken(box, opened, Window(2, 999))) == [(1, False), (2, False)]
    assert shown(taken(box, opened)) == [(1, True), (2, True), (3, False)]
    assert shown(page(box, box.open_session(B, WIDE))) == [(1, True), (2, True), (3, True)]


def test_a_cumulative_ack_covers_what_was_taken_and_no_more():
    box = inbox(3)
    opened = box.open_session(A, WIDE, until=99)
    taken(box, opened, Window(2, 999))
    assert code(box.take_ack(ack(opened, upto=3), T)) == ErrorCode.BAD_FRAME
    assert len(box.live) == 3
    assert done(box.take_ack(ack(opened, upto=2), T))[0].cursor == 2
    assert list(box.live) == [3]


def test_a_cumulative_ack_covers_gaps_that_were_told():
    box = inbox(2, expires=EXPIRES)
    box.conclude([Seq(1), Seq(2)], Reason.EXPIRED, Timestamp(EXPIRES))
    opened = box.open_session(A, WIDE, until=99)
    assert taken(box, opened, now=EXPIRES).upto == 2
    assert done(box.take_ack(ack(opened, upto=2), T))[0].cursor == 2


def test_what_was_taken_is_in_flight_and_is_not_called_expired_by_the_next_read():
    box = inbox(2, expires=EXPIRES)
    opened = box.open_session(A, WIDE, until=99_999)
    taken(box, opened, Window(1, 999), now=EXPIRES - 1)
    again = taken(box, opened, now=EXPIRES)
    assert (shown(again), again.expired) == ([(1, True)], (2,))


# ---------------------------------------------------------------- expiry


def test_a_sweep_waits_300_seconds_and_leaves_what_a_live_session_may_hold():
    box = inbox(3, expires=EXPIRES)
    box.open_session(A, Window(2, 999))
    assert box.sweep(Timestamp(EXPIRES + 299), {A}) == []
    (only,) = box.sweep(Timestamp(EXPIRES + 300), {A})
    assert only.eid == entry(3).eid
    assert list(box.live) == [1, 2]
    assert len(box.sweep(Timestamp(EXPIRES + 300), {B})) == 2  # its node is gone
    assert box.pending().count == 0


def test_a_session_without_a_connection_holds_nothing_after_its_end():
    box = inbox(1, expires=EXPIRES)
    box.open_session(A, WIDE, until=EXPIRES + 400)
    assert box.sweep(Timestamp(EXPIRES + 399), {A}) == []
    assert len(box.sweep(Timestamp(EXPIRES + 400), {A})) == 1


def test_a_bounce_for_expiry_is_due_300_seconds_after_it_and_says_if_it_may_have_arrived():
    box = inbox(3, expires=EXPIRES)
    box.close_session(box.open_session(A, WIDE).fence, Seq(1))
    intents = box.conclude(map(Seq, (1, 2)), Reason.EXPIRED, Timestamp(EXPIRES))
    assert [(one.due_at, one.maybe_delivered) for one in intents] == [
        (EXPIRES + 300, True), (EXPIRES + 300, False),
    ]  # fmt: skip
    (late,) = box.conclude([Seq(3)], Reason.EXPIRED, Timestamp(EXPIRES + 900))
    assert late.due_at == EXPIRES + 900


def test_nothing_is_concluded_as_expired_before_its_time_or_by_a_clock_in_doubt():
    box = inbox(1, expires=EXPIRES)
    assert box.conclude([Seq(1)], Reason.EXPIRED, Timestamp(EXPIRES - 1)) == []
    assert box.conclude([Seq(1)], Reason.EXPIRED, Timestamp(EXPIRES), clock_ok=False) == []
    assert box.conclude([Seq(7)], Reason.EXPIRED, Timestamp(EXPIRES)) == []
    assert len(box.live) == 1
    (corrupt,) = box.conclude([Seq(1)], Reason.CORRUPT, Timestamp(5))
    assert (corrupt.reason, corrupt.due_at) == ("corrupt", 5)


# ---------------------------------------------------------------- troubles


def test_a_reset_marks_all_explains_the_holes_and_ends_the_session_by_name():
    box = inbox(3)
    opened = box.open_session(A, WIDE)
    del box.live[Seq(2)]
    box.reset(E2, mark_before=5_000)
    assert code(box.read(opened.fence, Seq(0), WIDE, T)) == ErrorCode.INBOX_RESET
    assert code(box.ack(ack(opened, 1), T)) == ErrorCode.INBOX_RESET
    assert code(box.ack(ack(opened, 1, epoch=E2), T)) == ErrorCode.INBOX_RESET
    accepted(box, 8, created=4_999)
    accepted(box, 9, created=5_000)
    again = box.open_session(A, WIDE)
    assert (again.epoch, again.previous) == (E2, None)
    found = page(box, again)
    assert shown(found) == [(1, True), (3, True), (4, True), (5, False)]
    assert found.gaps == (Range(Seq(2), Seq(2), Reason.CORRUPT),)


def test_a_session_opened_after_a_reset_is_superseded_as_any_other():
    box = inbox(1)
    box.reset(E2, mark_before=0)
    first = box.open_session(A, WIDE)
    box.open_session(B, WIDE)
    assert code(box.read(first.fence, Seq(0), WIDE, T)) == ErrorCode.SUPERSEDED


def test_status_says_what_became_of_an_id_as_long_as_it_is_remembered():
    box = inbox(4, expires=EXPIRES)
    opened = box.open_session(A, WIDE)
    box.ack(ack(opened, 1, refuse=((Seq(2), "x"),)), T)
    box.conclude([Seq(3)], Reason.EXPIRED, Timestamp(EXPIRES))
    asked = [DedupKey(entry(n).dedupe_key, entry(n).hour) for n in (1, 2, 3, 4, 5)]
    answers = box.status(asked)
    assert [answer[0] if answer else None for answer in answers] == [
        Disposition.ACKED, Disposition.REFUSED, Disposition.EXPIRED, Disposition.STORED, None,
    ]  # fmt: skip


def test_pending_shows_the_oldest_entry_that_waits():
    box = inbox()
    assert box.pending().oldest_at is None
    accepted(box, 1, created=5)
    accepted(box, 2, created=3)
    assert (box.pending().count, box.pending().bytes, box.pending().oldest_at) == (2, 20, 5)
