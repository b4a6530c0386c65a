"""Single decisions of a forwarder: batches, marks, receipts, retries, refusals."""

from __future__ import annotations

import pytest

from relay.forwarding import model
from relay.forwarding.model import (
    CLOSED_S,
    FIRST_PAUSE_S,
    MAX_ASKED_PAUSE_S,
    MAX_PAUSE_S,
    ForwardItem,
    ForwardWindow,
    is_redelivered,
)
from relay.protocol.errors import ErrorCode, Refusal
from relay.protocol.frames import DeliverItem, Rejection
from relay.protocol.ids import Eid, Epoch, Seq
from relay.protocol.receipts import Receipt, ReceiptItem
from tests.unit.builders import ALICE, BOB, RELAY

HERE, THERE = RELAY.did, BOB.did


def loaded(*seqs: int, marked: bool = False, durability: str = "fsync") -> ForwardWindow:
    load = ForwardWindow(durability, sender_of=lambda wire: int(wire) % 2)
    load.add([DeliverItem(Seq(seq), marked, b"%d" % seq) for seq in seqs])
    return load


def item(custody: str = "inbox") -> ReceiptItem:
    return ReceiptItem(Eid("e"), ALICE.did, Epoch("e1"), "p", 1, custody=custody)


def receipt(durability: str = "fsync") -> Receipt:
    return Receipt(HERE, 1, durability, ())


def no(code: ErrorCode, **values) -> Rejection:
    return Rejection("r", 0, code, Refusal(code).stored, **values)


def seqs(items: list[ForwardItem]) -> list[int]:
    return [one.seq for one in items]


def test_one_batch_is_under_way_at_a_time_in_order():
    load = loaded(1, 2, 3)
    assert seqs(load.next_batch(2, 1000)) == [1, 2]
    assert load.next_batch(2, 1000) == []
    load.on_answer(HERE, receipt(), [item(), item()])
    assert seqs(load.next_batch(2, 1000)) == [3]


def test_a_batch_is_bounded_in_bytes_and_one_envelope_always_fits():
    load = ForwardWindow("fsync")
    load.add([DeliverItem(Seq(n), False, bytes(100)) for n in (1, 2, 3)])
    assert seqs(load.next_batch(9, 250)) == [1, 2]
    load.on_answer(HERE, receipt(), [item(), item()])
    assert seqs(load.next_batch(9, 1)) == [3]


def test_what_has_a_receipt_is_taken_over_and_nothing_is_left():
    load = loaded(1, 2)
    load.next_batch(9, 1000)
    answer = load.on_answer(HERE, receipt(), [item(), item()])
    assert (answer.forwarded, answer.refused, answer.wait_s) == ((1, 2), (), None)
    assert len(load) == 0


@pytest.mark.parametrize("code", sorted(model.PERMANENT))
def test_a_permanent_no_ends_that_envelope_alone(code):
    load = loaded(1, 2, 3)
    load.next_batch(9, 1000)
    answer = load.on_answer(HERE, receipt(), [item(), no(code), item()])
    assert (answer.forwarded, answer.refused, answer.wait_s) == ((1, 3), ((2, code),), None)


@pytest.mark.parametrize("code", sorted(set(ErrorCode) - model.PERMANENT))
def test_any_other_no_is_tried_again_later_and_ends_nothing(code):
    load = loaded(1, 2)
    load.next_batch(9, 1000)
    answer = load.on_answer(HERE, receipt(), [no(code, retry_after=7), item()])
    assert (answer.forwarded, answer.refused) == ((2,), ())
    assert answer.wait_s == (CLOSED_S if code in model.CLOSING else 7)
    assert seqs(load.next_batch(9, 1000)) == [1]


@pytest.mark.parametrize("code", sorted(model.CLOSING))
def test_a_full_or_unknown_inbox_closes_the_queue_for_a_while(code):
    load = loaded(1)
    load.next_batch(9, 1000)
    answer = load.on_answer(HERE, None, [no(code)])
    assert answer.closed is not None
    assert (answer.closed.code, answer.closed.retry_after) == (code, CLOSED_S)
    assert answer.wait_s == CLOSED_S
    load.next_batch(9, 1000)
    assert load.on_answer(HERE, None, [no(code, retry_after=99)]).closed.retry_after == 99


@pytest.mark.parametrize("code", sorted(model.OF_SENDER))
def test_who_is_refused_for_now_keeps_nobody_else_waiting_and_its_order_is_kept(code):
    load = loaded(1, 2, 3, 4, 5, 6)  # odd ones are of one sender, even ones of another
    assert seqs(load.next_batch(1, 1000)) == [1]
    answer = load.on_answer(HERE, None, [no(code, retry_after=7)])
    assert answer.wait_s is None, "there are others'"
    assert len(load) == 6
    assert seqs(load.next_batch(2, 1000)) == [2, 4]
    assert load.on_answer(HERE, receipt(), [item(), item()]).forwarded == (2, 4)
    load.add([DeliverItem(Seq(7), False, b"7")])
    assert seqs(load.next_batch(2, 1000)) == [6]
    last = load.on_answer(HERE, receipt(), [item()])
    assert (last.forwarded, last.wait_s) == ((6,), 7)
    assert seqs(load.next_batch(9, 1000)) == [1, 3, 5, 7]


@pytest.mark.parametrize("code", [ErrorCode.OVERLOADED, ErrorCode.INBOX_FULL])
def test_no_relay_can_ask_for_a_pause_without_end(code):
    load = loaded(1)
    load.next_batch(9, 1000)
    answer = load.on_answer(HERE, None, [no(code, retry_after=2**53 - 1)])
    assert answer.wait_s == MAX_ASKED_PAUSE_S
    if answer.closed is not None:
        assert answer.closed.retry_after == MAX_ASKED_PAUSE_S


def test_a_moved_agent_is_followed_at_once():
    load = loaded(1)
    load.next_batch(9, 1000)
    answer = load.on_answer(HERE, None, [no(ErrorCode.MOVED, record="r")])
    assert (answer.wait_s, answer.record) == (0.0, "r")


def test_who_says_moved_again_and_again_is_not_asked_again_and_again_at_once():
    load = loaded(1)
    waits = []
    for _ in range(8):
        load.next_batch(9, 1000)
        waits.append(load.on_answer(HERE, None, [no(ErrorCode.MOVED, record="r")]).wait_s)
    assert waits[0] == 0.0
    assert waits[1] >= FIRST_PAUSE_S
    assert waits[1:] == sorted(waits[1:])
    assert waits[-1] == MAX_PAUSE_S


@pytest.mark.parametrize("durability", ["unverified", "memory"])
def test_a_receipt_that_promises_less_than_ours_does_not_end_custody(durability):
    load = loaded(1)
    load.next_batch(9, 1000)
    answer = load.on_answer(HERE, receipt(durability), [item()])
    assert answer.forwarded == ()
    assert answer.wait_s is not None
    assert len(load) == 1


def test_a_relay_with_a_weaker_store_may_hand_on_to_a_stronger_one():
    load = loaded(1, durability="memory")
    load.next_batch(9, 1000)
    assert load.on_answer(HERE, receipt(), [item()]).forwarded == (1,)


def test_a_receipt_of_an_outbox_does_not_end_custody():
    load = loaded(1)
    load.next_batch(9, 1000)
    assert load.on_answer(HERE, receipt(), [item("outbox")]).forwarded == ()


def test_what_may_be_at_one_relay_is_marked_for_another_only():
    load = loaded(1)
    load.next_batch(9, 1000)
    load.on_no_answer(HERE)
    [again] = load.next_batch(9, 1000)
    assert not is_redelivered(again, HERE)
    assert is_redelivered(again, THERE)
    assert load.maybe_sent_upto() == 1


def test_what_a_relay_may_have_had_is_refused_only_once_the_bounce_can_say_so():
    load = loaded(1, 2)
    load.next_batch(1, 1000)
    load.on_no_answer(HERE)
    load.next_batch(9, 1000)
    answer = load.on_answer(HERE, receipt(), [no(ErrorCode.STALE_ID), no(ErrorCode.STALE_ID)])
    assert answer.refused == ((2, ErrorCode.STALE_ID),), "number 2 never left before"
    assert answer.must_reopen
    assert load.maybe_sent_upto() >= 1
    marked = loaded(1, marked=True)
    marked.next_batch(1, 1000)
    marked.on_no_answer(HERE)
    marked.next_batch(1, 1000)
    assert marked.on_answer(HERE, None, [no(ErrorCode.STALE_ID)]).refused


def test_what_another_relay_took_is_doubtful_until_that_is_durable_here():
    load = loaded(1, 2, 3)
    load.next_batch(2, 1000)
    load.on_answer(HERE, receipt(), [item(), no(ErrorCode.BLOCKED)])
    assert load.maybe_sent_upto() == 2
    load.on_acked([Seq(2)])
    assert load.maybe_sent_upto() == 1
    load.on_acked([Seq(1)])
    assert load.maybe_sent_upto() == 0


def test_what_never_left_is_marked_for_nobody():
    load = loaded(1)
    load.next_batch(9, 1000)
    load.on_not_sent()
    [again] = load.next_batch(9, 1000)
    assert not is_redelivered(again, THERE)


def test_what_an_agent_was_handed_before_is_marked_for_all():
    [one] = loaded(1, marked=True).next_batch(9, 1000)
    assert is_redelivered(one, HERE)


def test_an_unknown_outcome_marks_as_a_lost_answer_does():
    load = loaded(1)
    load.next_batch(9, 1000)
    load.on_answer(HERE, None, [no(ErrorCode.STORAGE_UNAVAILABLE)])
    assert is_redelivered(load.next_batch(9, 1000)[0], THERE)


def test_pauses_grow_to_a_bound_and_shrink_after_a_success():
    load = loaded(1, 2)
    pauses = []
    for _ in range(12):
        load.next_batch(1, 1000)
        pauses.append(load.on_not_sent())
    assert pauses == sorted(pauses)
    assert pauses[-1] == MAX_PAUSE_S
    load.next_batch(1, 1000)
    load.on_answer(HERE, receipt(), [item()])
    load.next_batch(1, 1000)
    assert load.on_not_sent() == pauses[0]
