"""Outbox, questions and progress by themselves: what no relay does often enough to be seen."""

from __future__ import annotations

import pytest

from relay.client.errors import BadFrameError, InboxFullError, UnreachableError, make_error
from relay.client.inbox.relay_inbox import AckTracker
from relay.client.outbox.queue import ANSWER_S, MAX_IN_FLIGHT, Outbox
from relay.client.outbox.submission import MAX_SUBMIT_BYTES
from relay.client.session import requests
from relay.client.session.requests import MAX_UNDER_WAY, PendingRequests
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.frames import (
    Rejection,
    Resolve,
    Resolved,
    Rules,
    Status,
    Statuses,
    StatusItem,
    Submitted,
)
from relay.protocol.ids import Did, Epoch, MessageId, Seq, Timestamp
from relay.protocol.jws import loads
from relay.protocol.receipts import ReceiptItem, sign_receipt
from tests.client.scripted_relay import envelope_of, new_key

ALICE, BOB, RELAY = new_key(), new_key(), new_key()
NOW = Timestamp(1000.0)


def envelope(body: bytes = b"x"):
    return envelope_of(ALICE, BOB.did, body)


def receipt(*envelopes, dup: bool = False) -> str:
    items = [ReceiptItem(e.eid, e.to, Epoch("e"), "p", e.expires_at, dup) for e in envelopes]
    return sign_receipt(RELAY, items, durability="fsync", now=NOW)


def wires(submit) -> list[bytes]:
    return list(submit.envelopes)


async def test_a_submit_takes_all_that_waits_but_no_more_than_a_frame_holds():
    box = Outbox()
    small = [envelope() for _ in range(300)]
    for item in small:
        box.add(item)
    assert len(box.next_submit(NOW).envelopes) == 256
    assert len(box.next_submit(NOW, 10).envelopes) == 10
    big = [envelope(b"y" * 250_000) for _ in range(6)]
    for item in big:
        box.add(item)
    frames = []
    while (frame := box.next_submit(NOW)) is not None:
        frames.append(frame)
    assert sum(len(frame.envelopes) for frame in frames) == 34 + 6
    assert all(sum(len(w) for w in wires(frame)) <= MAX_SUBMIT_BYTES for frame in frames)


async def test_no_more_is_in_flight_than_the_limit():
    box = Outbox()
    for _ in range(MAX_IN_FLIGHT + 50):
        box.add(envelope())
    frames = []
    while (frame := box.next_submit(NOW)) is not None:
        frames.append(frame)
    assert sum(len(frame.envelopes) for frame in frames) == MAX_IN_FLIGHT


async def test_one_answer_to_several_submits_is_matched_in_their_order():
    box = Outbox()
    first, second, third = envelope(), envelope(), envelope()
    waiting = [box.add(first)]
    one = box.next_submit(NOW)
    waiting += [box.add(second), box.add(third)]
    two = box.next_submit(NOW)
    no = Rejection(two.ref, 0, ErrorCode.INBOX_FULL, "no")
    box.answered(Submitted((one.ref, two.ref), receipt(first, third), (no,)), RELAY.did, NOW)
    assert waiting[0].answer.result().eid == first.eid
    assert waiting[2].answer.result().eid == third.eid
    assert isinstance(waiting[1].answer.exception(), InboxFullError)


async def test_after_a_loss_the_old_order_is_kept_and_the_bytes_are_the_same():
    box = Outbox()
    first, second = envelope(), envelope()
    box.add(first)
    before = wires(box.next_submit(NOW))
    box.add(second)
    box.lost()
    assert wires(box.next_submit(NOW)) == [*before, second.wire]


async def test_what_nobody_waits_for_is_not_submitted_again():
    box = Outbox()
    waiting = box.add(envelope())
    box.next_submit(NOW)
    waiting.forget()
    box.lost()
    assert box.next_submit(NOW) is None


async def test_a_definite_no_after_a_lost_answer_says_unknown():
    box = Outbox()
    waiting = box.add(envelope())
    box.next_submit(NOW)
    box.lost()
    frame = box.next_submit(NOW)
    no = Rejection(frame.ref, 0, ErrorCode.BLOCKED, "no")
    box.answered(Submitted((frame.ref,), None, (no,)), RELAY.did, NOW)
    assert waiting.answer.exception().stored == "unknown"


async def test_retry_after_is_kept_to():
    box = Outbox()
    box.add(envelope())
    frame = box.next_submit(NOW)
    no = Rejection(frame.ref, 0, ErrorCode.DRAINING, "no", "", 7)
    box.answered(Submitted((frame.ref,), None, (no,)), RELAY.did, NOW)
    assert box.next_submit(Timestamp(NOW + 6.9)) is None
    assert box.next_timer() == NOW + 7
    assert box.next_submit(Timestamp(NOW + 7)) is not None


async def test_a_wrong_answer_changes_nothing():
    box = Outbox()
    mine, other = envelope(), envelope()
    waiting = box.add(mine)
    frame = box.next_submit(NOW)
    wrong = [
        Submitted((frame.ref,), receipt(other)),
        Submitted((frame.ref,), None),
        Submitted((frame.ref, frame.ref), receipt(mine, mine)),
        Submitted((frame.ref, "9"), receipt(mine)),
        Submitted((frame.ref,), receipt(mine), (Rejection("9", 0, ErrorCode.BLOCKED, "no"),)),
    ]
    for answer in wrong:
        with pytest.raises(ProtocolError):
            box.answered(answer, RELAY.did, NOW)
    with pytest.raises(ProtocolError):
        box.answered(Submitted((frame.ref,), receipt(mine)), BOB.did, NOW)
    assert not waiting.answer.done()
    box.answered(Submitted((frame.ref,), receipt(mine)), RELAY.did, NOW)
    assert waiting.answer.result().eid == mine.eid
    assert box.custody.relay_of(mine.eid) == RELAY.did


async def test_a_relay_that_stops_answering_submits_is_noticed():
    box = Outbox()
    box.add(envelope())
    box.next_submit(NOW)
    assert box.next_timer() == NOW + ANSWER_S
    box.check_answers(Timestamp(NOW + ANSWER_S - 0.1))
    with pytest.raises(Exception, match="does not answer"):
        box.check_answers(Timestamp(NOW + ANSWER_S))


async def test_the_end_tells_each_waiting_task_what_is_known_of_its_envelope():
    box = Outbox()
    sent = box.add(envelope())
    box.next_submit(NOW)
    unsent = box.add(envelope())
    box.end(make_error(ErrorCode.SUPERSEDED, "gone"))
    assert (sent.answer.exception().stored, unsent.answer.exception().stored) == ("unknown", "no")
    assert sent.answer.exception().envelope == sent.envelope


# ---------------------------------------------------------------- progress


def test_progress_goes_up_to_the_first_seq_that_is_not_finished():
    progress = AckTracker(Seq(3))
    progress.add(Seq(5), Seq(5))
    assert not progress.has_moved
    progress.add(Seq(1), Seq(4))
    assert progress.has_moved
    assert progress.take() == 5
    progress.add(Seq(7), Seq(90))
    progress.add(Seq(6), Seq(6))
    assert progress.take() == 90
    progress.add(Seq(90), Seq(90))
    assert not progress.has_moved


# ---------------------------------------------------------------- questions


async def test_questions_are_asked_a_few_at_a_time_and_again_after_a_loss():
    box = PendingRequests()
    answers = [box.add(lambda ref: Resolve(ref, BOB.did)) for _ in range(10)]
    said = []
    while (frame := box.next_request(NOW)) is not None:
        said.append(frame)
    assert len(said) == 8
    box.answered(Resolved(said[0].ref, "absent"))
    assert answers[0].result().state == "absent"
    box.lost()
    again = [box.next_request(NOW).ref for _ in range(8)]
    assert again == [frame.ref for frame in said[1:]] + [again[-1]]


async def test_an_answer_of_another_kind_or_to_nobody_is_a_broken_conversation():
    box = PendingRequests()
    answer = box.add(lambda ref: Status(ref, (StatusItem(Did("did:x"), MessageId("id")),)))
    ref = box.next_request(NOW).ref
    with pytest.raises(ProtocolError):
        box.answered(Resolved(ref, "absent"))
    with pytest.raises(BadFrameError):
        await answer
    with pytest.raises(ProtocolError):
        box.answered(Statuses(ref, ()))
    with pytest.raises(ProtocolError):
        box.failed("never", make_error(ErrorCode.OVERLOADED))


@pytest.mark.parametrize(
    "question",
    [
        lambda ref: Resolve(ref, Did("did:key:\ud800")),
        lambda ref: Resolve(ref, Did("d" * 600)),
        lambda ref: Status(ref, ()),
        lambda ref: Rules(ref, None, (Did(""),)),
    ],
)
async def test_a_question_that_no_relay_could_read_is_never_asked(question):
    box = PendingRequests()
    with pytest.raises(BadFrameError):
        box.add(question)
    assert box.next_request(NOW) is None


async def test_a_relay_that_answers_no_question_is_noticed_though_nobody_waits_any_more():
    box = PendingRequests()
    for _ in range(MAX_UNDER_WAY):
        box.add(lambda ref: Resolve(ref, BOB.did)).cancel()
    assert box.next_timer() is None
    box.add(lambda ref: Resolve(ref, BOB.did))
    assert box.next_request(NOW) is not None
    due = box.next_timer()
    assert due == NOW + requests.RESPONSE_TIMEOUT_S
    box.check_answers(Timestamp(due - 1))
    with pytest.raises(UnreachableError):
        box.check_answers(due)
    box.lost()
    assert box.next_timer() is None


def test_an_envelope_is_one_json_object_on_the_wire():
    assert set(loads(envelope().wire)) == {"jws", "body"}


# ---------------------------------------------------------------- strays


def refuse_all(box: Outbox, code: ErrorCode, line: str = "") -> None:
    frame = box.next_submit(NOW, channel_id=line)
    no = [Rejection(frame.ref, i, code, "no") for i in range(len(frame.envelopes))]
    box.answered(Submitted((frame.ref,), None, tuple(no)), RELAY.did, NOW, line)


async def test_only_the_line_that_was_asked_can_answer_and_lose_a_submit():
    box = Outbox()
    mine = envelope()
    waiting = box.add(mine)
    frame = box.next_submit(NOW, channel_id="one")
    with pytest.raises(ProtocolError):
        box.answered(Submitted((frame.ref,), receipt(mine)), RELAY.did, NOW, "two")
    assert not box.failed(frame.ref, make_error(ErrorCode.OVERLOADED), NOW, "two")
    box.lost("two")
    assert waiting.in_flight
    box.check_answers(Timestamp(NOW + ANSWER_S), "two")
    box.lost("one")
    assert wires(box.next_submit(NOW, channel_id="two")) == [mine.wire]


async def test_what_is_not_carried_strays_and_is_refused_after_all_when_there_is_no_way():
    told: list[bool] = []
    box = Outbox(on_direct=lambda: told.append(True))
    waiting = box.add(envelope())
    refuse_all(box, ErrorCode.UNKNOWN_INBOX, "one")
    assert (told, box.direct_recipients(), waiting.refused_by) == ([True], [BOB.did], "one")
    items = box.take_direct(BOB.did)
    assert box.direct_recipients() == []
    box.return_direct(items, NOW, try_again=False)
    assert waiting.answer.exception().code == "unknown_inbox"


async def test_without_detours_a_refusal_is_what_it_is():
    box = Outbox()
    waiting = box.add(envelope())
    refuse_all(box, ErrorCode.UNKNOWN_INBOX)
    assert waiting.answer.exception().stored == "no"


async def test_a_direct_submit_without_an_answer_is_unknown_and_tried_again():
    box = Outbox(on_direct=lambda: None)
    waiting = box.add(envelope())
    refuse_all(box, ErrorCode.NOT_FEDERATED)
    items = box.take_direct(BOB.did)
    submit = box.submit_direct(items, NOW, "direct")
    assert box.next_submit(NOW) is None
    box.unanswered(submit.ref, maybe_stored=True)
    box.return_direct(items, NOW, try_again=True)
    assert waiting.is_unknown
    assert wires(box.next_submit(Timestamp(NOW + 6))) == wires(submit)


async def test_what_found_no_way_while_no_relay_was_there_goes_out_at_once_when_one_is_back():
    box = Outbox(on_direct=lambda: None)
    first, second = envelope(), envelope()
    waiting = [box.add(first), box.add(second)]
    box.route_all_direct(NOW)
    items = box.take_direct(BOB.did)
    assert items == waiting
    box.return_direct(items, NOW, try_again=False)
    # not again in a moment, but no relay has to wait for it
    box.route_all_direct(NOW)
    assert box.direct_recipients() == []
    assert wires(box.next_submit(NOW)) == [first.wire, second.wire]


async def test_the_end_reaches_what_a_detour_has_in_hand():
    box = Outbox(on_direct=lambda: None)
    waiting = box.add(envelope())
    refuse_all(box, ErrorCode.NOT_FEDERATED)
    items = box.take_direct(BOB.did)
    submit = box.submit_direct(items, NOW, "direct")
    gone = make_error(ErrorCode.WRONG_STATE, "gone")
    box.end(gone)
    # the detour is cancelled a moment later, and looks after what it had
    box.unanswered(submit.ref, maybe_stored=True)
    box.return_direct(items, NOW, try_again=True)
    assert waiting.answer.exception().stored == "unknown"
    assert box.next_submit(Timestamp(NOW + 60)) is None


async def test_questions_that_nobody_waits_for_do_not_pile_up_at_a_relay_that_answers_none():
    box = PendingRequests()
    for _ in range(100):
        answer = box.add(lambda ref: Resolve(ref, BOB.did))
        box.next_request(NOW)
        answer.cancel()
    waiting = box.add(lambda ref: Resolve(ref, BOB.did))
    assert len(box._pending) == MAX_UNDER_WAY + 1
    box.lost()
    assert box.next_request(NOW).ref == f"q{101}"
    assert not waiting.done()


async def test_an_envelope_is_tried_on_however_often_it_was_refused_for_now():
    box, now = Outbox(), NOW
    waiting = box.add(envelope())
    for _ in range(1_100):
        submit = box.next_submit(now)
        no = Rejection(submit.ref, 0, ErrorCode.STORAGE_UNAVAILABLE, "no")
        box.answered(Submitted((submit.ref,), None, (no,)), RELAY.did, now)
        now = Timestamp(now + 60)
    assert not waiting.answer.done()
    assert box.next_submit(now) is not None
