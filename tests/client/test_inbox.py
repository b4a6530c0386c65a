"""The SDK's inbox by itself: cumulative acks, refusals, adrift messages."""

from __future__ import annotations

import asyncio

import pytest

from relay.client.errors import InboxResetError, SupersededError, UnreachableError, make_error
from relay.client.inbox.inbox import Inbox
from relay.client.inbox.opener import EnvelopeOpener
from relay.client.inbox.relay_inbox import ACK_TIMEOUT_S, RelayInbox
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.frames import Acked, Gap
from relay.protocol.ids import Epoch, Seq, Timestamp
from relay.protocol.types import Range, Reason
from tests.client.scripted_relay import deliver, envelope_of, new_key, welcome

ME, SENDER, RELAY = new_key(), new_key(), new_key()
NOW = Timestamp(1000.0)
E1 = Epoch("e1")


def opened_inbox(inbox: RelayInbox | None = None, **values) -> RelayInbox:
    box = RelayInbox(inbox or Inbox(EnvelopeOpener(ME, lambda _: None)), lambda: None)
    box.connected(RELAY.did, welcome(**values), was_reset=False)
    return box


def mail(count: int) -> list[bytes]:
    return [envelope_of(SENDER, ME.did, b"%d" % n).wire for n in range(count)]


async def give(box: RelayInbox, *wires: bytes, first: int = 1, epoch: str = "e1") -> None:
    await box.delivered(deliver(*enumerate(wires, first), epoch=epoch))


async def shown(box: RelayInbox, count: int):
    return [await box._inbox.next() for _ in range(count)]


async def test_an_ack_names_what_is_above_the_first_unfinished_seq_and_covers_the_rest():
    box = opened_inbox(head=3)
    await give(box, *mail(3))
    one, two, three = await shown(box, 3)
    await three.ack(wait=False)
    frame = box.next_ack(NOW)
    assert (frame.upto, frame.seqs) == (0, (3,))
    assert box.next_ack(NOW) is None
    await one.ack(wait=False)
    frame = box.next_ack(NOW)
    assert (frame.upto, frame.seqs) == (1, ())
    await two.ack(wait=False)
    assert box.next_ack(NOW).upto == 3


async def test_a_cumulative_ack_never_overtakes_a_refusal_that_is_not_durable():
    box = opened_inbox(head=2)
    await give(box, *mail(2))
    one, two = await shown(box, 2)
    await one.refuse("unsupported", wait=False)
    await two.ack(wait=False)
    frame = box.next_ack(NOW)
    assert (frame.upto, frame.seqs, frame.refuse) == (0, (2,), ((1, "unsupported"),))
    box.acked(Acked(E1, Seq(0), (Seq(2),), (Seq(1),)))
    assert box.next_ack(NOW).upto == 2


async def test_a_gap_is_passed_without_any_message():
    box = opened_inbox(cursor=4, head=9)
    box.gap(Gap(E1, (Range(Seq(5), Seq(9), Reason.EXPIRED),)))
    assert box.next_ack(NOW).upto == 9


async def test_a_message_taken_away_while_it_waited_is_not_shown():
    box = opened_inbox(head=2)
    await give(box, *mail(2))
    box.gap(Gap(E1, (Range(Seq(1), Seq(1), Reason.CORRUPT),)))
    [message] = await shown(box, 1)
    assert message.body == b"1"


async def test_what_was_not_shown_is_forgotten_with_the_connection():
    box = opened_inbox(head=1)
    [wire] = mail(1)
    await give(box, wire)
    box.disconnected()
    box.connected(RELAY.did, welcome(head=1), was_reset=False)
    await give(box, wire)
    assert [m.body for m in await shown(box, 1)] == [b"0"]


async def test_the_same_envelope_twice_in_one_session_is_shown_once_and_both_are_ended():
    box = opened_inbox(head=2)
    [wire] = mail(1)
    await give(box, wire)
    [message] = await shown(box, 1)
    await give(box, wire, first=2)
    await message.ack(wait=False)
    box.next_ack(NOW)
    box.acked(Acked(E1, Seq(1)))
    # the second place is answered when it comes again: its eid is known as done
    box.disconnected()
    box.connected(RELAY.did, welcome(cursor=1, head=2), was_reset=False)
    await give(box, wire, first=2)
    assert box.next_ack(NOW).upto == 2


async def test_an_ack_repeated_after_it_is_durable_changes_nothing():
    box = opened_inbox(head=1)
    await give(box, *mail(1))
    [message] = await shown(box, 1)
    acking = [asyncio.ensure_future(message.ack()) for _ in range(2)]
    await asyncio.sleep(0)
    box.next_ack(NOW)
    box.acked(Acked(E1, Seq(1)))
    await asyncio.gather(*acking)
    await message.ack()
    assert box.next_ack(NOW) is None


async def test_a_relay_cannot_ack_for_the_program():
    box = opened_inbox(head=2)
    await give(box, *mail(2))
    one, _ = await shown(box, 2)
    acking = asyncio.ensure_future(one.ack())
    await asyncio.sleep(0)
    box.acked(Acked(E1, Seq(2)))  # before anything was said
    await asyncio.sleep(0)
    assert not acking.done()
    box.next_ack(NOW)
    box.acked(Acked(E1, Seq(1)))
    await acking


async def test_a_reset_ends_the_answers_that_were_not_durable_and_keeps_what_was_processed():
    box = opened_inbox(head=2)
    wires = mail(2)
    await give(box, *wires)
    one, two = await shown(box, 2)
    acking = asyncio.ensure_future(one.ack())
    await asyncio.sleep(0)
    box.disconnected()
    box.connected(RELAY.did, welcome(epoch="e2", head=2), was_reset=True)
    with pytest.raises(InboxResetError):
        await acking
    with pytest.raises(InboxResetError):
        await two.ack()
    with pytest.raises(InboxResetError):
        await box._inbox.next()
    # both come again and neither is shown again
    await give(box, *wires, epoch="e2")
    assert box.next_ack(NOW).upto == 2


async def test_another_epoch_than_the_sessions_is_a_broken_conversation():
    box = opened_inbox()
    with pytest.raises(ProtocolError):
        await give(box, *mail(1), epoch="e9")
    with pytest.raises(ProtocolError):
        box.gap(Gap(Epoch("e9"), (Range(Seq(1), Seq(1), Reason.ACKED),)))
    box.acked(Acked(Epoch("e9"), Seq(9)))


async def test_the_end_reaches_everybody_who_waits():
    box = opened_inbox(head=1)
    await give(box, *mail(1))
    [message] = await shown(box, 1)
    waiting = [asyncio.ensure_future(message.ack()), asyncio.ensure_future(box._inbox.next())]
    await asyncio.sleep(0)
    box._inbox.end(make_error(ErrorCode.SUPERSEDED, "gone"))
    for task in waiting:
        with pytest.raises(SupersededError):
            await task
    with pytest.raises(SupersededError):
        await box._inbox.next()


async def test_a_flush_ends_in_time_and_keeps_no_failure():
    box = opened_inbox(head=1)
    await give(box, *mail(1))
    [message] = await shown(box, 1)
    await message.ack(wait=False)
    await box._inbox.flush(0.05)
    flushing = asyncio.ensure_future(box._inbox.flush(5))
    await asyncio.sleep(0)
    box._inbox.end(make_error(ErrorCode.SUPERSEDED, "gone"))
    await flushing


# ---------------------------------------------------------------- several homes


async def at_two_homes(*wires: bytes) -> tuple[RelayInbox, RelayInbox]:
    one = opened_inbox(head=len(wires))
    two = RelayInbox(one._inbox, lambda: None)
    two.connected(SENDER.did, welcome(head=len(wires)), was_reset=False)
    for box in (one, two):
        await give(box, *wires)
    return one, two


async def test_one_that_two_homes_hold_is_shown_once_and_acked_at_both():
    one, two = await at_two_homes(*mail(1))
    [message] = await shown(one, 1)
    acking = asyncio.ensure_future(message.ack())
    await asyncio.sleep(0)
    assert [box.next_ack(NOW).upto for box in (one, two)] == [1, 1]
    one.acked(Acked(E1, Seq(1)))
    await asyncio.sleep(0)
    assert not acking.done()
    two.acked(Acked(E1, Seq(1)))
    await acking
    assert one._inbox._next_shown() is None


async def test_one_that_two_homes_hold_is_refused_at_one_and_acked_at_the_other():
    one, two = await at_two_homes(*mail(1))
    [message] = await shown(one, 1)
    await message.refuse("unsupported", wait=False)
    assert one.next_ack(NOW).refuse == ((1, "unsupported"),)
    assert two.next_ack(NOW) is None
    one.acked(Acked(E1, Seq(0), (), (Seq(1),)))
    frame = two.next_ack(NOW)
    assert (frame.upto, frame.refuse) == (1, ())


@pytest.mark.parametrize("is_said", [True, False])
async def test_a_refusal_that_a_lost_home_may_not_have_heard_is_said_at_the_other(is_said):
    one, two = await at_two_homes(*mail(1))
    [message] = await shown(one, 1)
    await message.refuse("unsupported", wait=False)
    if is_said:
        one.next_ack(NOW)
    one.disconnected()
    assert two.next_ack(NOW).refuse == ((1, "unsupported"),)


async def test_what_one_home_has_made_durable_is_durable_when_the_other_is_lost():
    [wire] = mail(1)
    one, two = await at_two_homes(wire)
    [message] = await shown(one, 1)
    acking = asyncio.ensure_future(message.ack())
    await asyncio.sleep(0)
    one.next_ack(NOW)
    one.acked(Acked(E1, Seq(1)))
    two.disconnected()
    await acking
    # it comes again at the lost one, and is acked unseen
    two.connected(SENDER.did, welcome(head=1), was_reset=False)
    await give(two, wire)
    assert one._inbox._next_shown() is None
    assert two.next_ack(NOW).upto == 1


async def test_one_that_was_shown_from_one_home_and_let_go_comes_marked_from_the_other():
    inbox = Inbox(EnvelopeOpener(ME, lambda _: None))
    one = opened_inbox(inbox, head=1)
    two = RelayInbox(inbox, lambda: None)
    two.connected(SENDER.did, welcome(head=1), was_reset=False)
    [wire] = mail(1)
    await give(one, wire)
    [message] = await shown(one, 1)
    assert not message.redelivered
    del message
    await give(two, wire)
    [message] = await shown(two, 1)
    assert message.redelivered


async def test_what_still_waits_at_one_home_is_not_lost_with_the_other():
    one, two = await at_two_homes(*mail(2))
    one.disconnected()
    assert [m.body for m in await shown(two, 2)] == [b"0", b"1"]


@pytest.mark.parametrize("marked", [(False, True), (True, False), (False, False)])
async def test_one_that_waits_to_be_shown_has_the_marks_of_every_home(marked):
    inbox = Inbox(EnvelopeOpener(ME, lambda _: None))
    one = opened_inbox(inbox, head=1)
    two = RelayInbox(inbox, lambda: None)
    two.connected(SENDER.did, welcome(head=1), was_reset=False)
    [wire] = mail(1)
    for box, redelivered in zip((one, two), marked, strict=True):
        await box.delivered(deliver((1, wire), redelivered=redelivered))
    [message] = await shown(one, 1)
    assert message.redelivered == any(marked)


async def test_an_ack_without_an_answer_is_noticed_and_one_with_an_answer_is_not():
    box = opened_inbox(head=2)
    await give(box, *mail(2))
    for message in await shown(box, 2):
        await message.ack(wait=False)
    assert box.next_timer() is None
    assert box.next_ack(NOW).upto == 2
    assert box.next_timer() == NOW + ACK_TIMEOUT_S
    box.acked(Acked(E1, Seq(1)))
    box.check_answers(Timestamp(NOW + ACK_TIMEOUT_S - 0.1))
    with pytest.raises(UnreachableError):
        box.check_answers(Timestamp(NOW + ACK_TIMEOUT_S))
    box.acked(Acked(E1, Seq(2)))
    box.check_answers(Timestamp(NOW + ACK_TIMEOUT_S))
    assert box.next_timer() is None


async def test_a_refusal_at_two_seqs_of_one_relay_is_not_sent_on_its_next_connection():
    box = opened_inbox(head=2)
    [wire] = mail(1)
    await give(box, wire, wire)
    [message] = await shown(box, 1)
    await message.refuse("unsupported", wait=False)
    box.disconnected()
    box.connected(RELAY.did, welcome(head=2), was_reset=False)
    assert box.next_ack(NOW) is None
    await give(box, wire, wire)
    assert box.next_ack(NOW).refuse == ((1, "unsupported"),)
