"""The SDK against relays that lie, stall, forge or hang up."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from relay.client import (
    Agent,
    Bounce,
    ExpiredError,
    InboxFullError,
    InboxResetError,
    MovedError,
    OutcomeUnknownError,
    ProtocolError,
    RateLimitedError,
    StorageFullError,
    SupersededError,
    UnreachableError,
    UnsupportedError,
    WrongRelayError,
)
from relay.client.errors import CLASS_OF
from relay.protocol import endpoint_record, frames
from relay.protocol import envelope as envelopes
from relay.protocol.errors import ErrorCode
from relay.protocol.frames import (
    Ack,
    Acked,
    Bye,
    Error,
    Gap,
    Rejection,
    Resolve,
    Resolved,
    Status,
    StatusAnswer,
    Statuses,
    Submitted,
)
from relay.protocol.ids import Epoch, Seq, Timestamp
from relay.protocol.jws import loads
from relay.protocol.receipts import BOUNCE_CONTENT_TYPE, BounceItem, sign_bounce
from relay.protocol.types import Range, Reason
from tests.client.scripted_relay import Talk, deliver, envelope_of, lying_relay, new_key, welcome
from tests.support.patience import wait_until


async def silent(talk: Talk) -> None:
    await talk.socket.wait_closed()


def open_at(relay, key=None, **options):
    return Agent.open(key or new_key(), relay.url, **{"open_timeout_s": 3, **options})


async def must_fail(relay, kind, key=None) -> Exception:
    with pytest.raises(kind) as caught:
        async with open_at(relay, key):
            pass
    return caught.value


# ---------------------------------------------------------------- who is there


async def test_a_relay_that_says_another_url_is_told_nothing():
    async def script(talk: Talk) -> None:
        await talk.log_in(url="https://elsewhere.example")

    async with lying_relay(script) as relay:
        await must_fail(relay, WrongRelayError)
        assert relay.heard == []


async def test_a_proof_by_another_key_is_refused():
    async def script(talk: Talk) -> None:
        await talk.log_in(proven_by=new_key())
        await talk.until_closed()

    async with lying_relay(script) as relay:
        exc = await must_fail(relay, ProtocolError)
        assert exc.code == "bad_signature"
        # it heard the login, but no record and nothing of the inbox
        assert [type(frame).__name__ for frame in relay.heard] == ["Auth"]
        assert relay.heard[0].record is None


async def test_a_relay_that_changes_its_did_is_not_the_one_that_was_pinned():
    async def script(talk: Talk) -> None:
        await talk.log_in(as_relay=keys[talk.number - 1])
        await talk.until_closed()

    keys = [new_key(), new_key()]
    async with lying_relay(script) as relay:
        async with open_at(relay):
            pass
        await must_fail(relay, WrongRelayError)


async def test_a_pin_survives_in_the_state_file(tmp_path, monkeypatch):
    async def script(talk: Talk) -> None:
        await talk.log_in(as_relay=keys[talk.number - 1])
        await talk.until_closed()

    keys, state, me = [new_key(), new_key()], tmp_path / "state", new_key()
    async with lying_relay(script) as relay:
        async with open_at(relay, me, state=state):
            pass
        monkeypatch.setattr(
            "relay.client.state.agent_state._pinned", {}
        )  # as a new process would begin
        with pytest.raises(WrongRelayError):
            async with open_at(relay, me, state=state):
                pass


async def test_a_server_that_is_no_relay_is_unreachable():
    async def garbage(talk: Talk) -> None:
        await talk.socket.send("}{ not a frame")
        await talk.until_closed()

    async with lying_relay(garbage) as relay:
        with pytest.raises(ProtocolError):
            async with open_at(relay, open_timeout_s=0.5):
                pass


async def test_a_frame_before_hello_is_not_believed():
    async def script(talk: Talk) -> None:
        await talk.say(welcome(proof="x"))
        await talk.until_closed()

    async with lying_relay(script) as relay:
        with pytest.raises(ProtocolError):
            async with open_at(relay, open_timeout_s=0.5):
                pass
        assert relay.heard == []


async def test_a_relay_that_never_says_hello_is_unreachable():
    async with lying_relay(silent) as relay:
        with pytest.raises(UnreachableError):
            async with open_at(relay, open_timeout_s=0.3):
                pass


async def test_garbage_in_an_open_conversation_only_costs_the_connection():
    async def script(talk: Talk) -> None:
        await talk.log_in()
        if talk.number == 1:
            await talk.submit()
            await talk.socket.send("}{ not a frame")
            await talk.until_closed()
        await talk.accept()
        await talk.until_closed()

    async with lying_relay(script) as relay, open_at(relay) as me:
        sent = await me.send(me.did, "x", deadline_s=5)
        assert sent.relay == relay.key.did
        assert relay.talks == 2


# ---------------------------------------------------------------- answers to a submit


async def test_no_answer_is_an_unknown_outcome_and_keeps_the_envelope():
    async def script(talk: Talk) -> None:
        await talk.log_in()
        await talk.until_closed()

    async with lying_relay(script) as relay, open_at(relay) as me:
        with pytest.raises(OutcomeUnknownError) as caught:
            await me.send(me.did, "x", deadline_s=0.3)
        assert caught.value.stored == "unknown"
        assert caught.value.envelope is not None


async def test_a_close_in_mid_answer_resends_the_same_bytes_in_the_same_order():
    seen: list[list[str]] = []

    async def script(talk: Talk) -> None:
        await talk.log_in()
        frame, stored = await talk.submit()
        seen.append([str(item) for item in frame.envelopes])
        if talk.number == 1:
            await talk.socket.send('{"t":"submitted","refs":["')
            return
        await talk.say(Submitted((frame.ref,), talk.receipt(stored, dup=True)))
        await talk.until_closed()

    async with lying_relay(script) as relay, open_at(relay) as me:
        sent = await asyncio.gather(*(me.send(me.did, n, deadline_s=5) for n in range(10)))
        assert all(item.dup for item in sent)
        assert seen[0] == seen[1]
        assert len(seen[0]) == 10


@pytest.mark.parametrize("wrong", ["other relay", "other envelope", "too few", "too many", "ref"])
async def test_a_receipt_that_is_not_of_what_was_submitted_is_not_believed(wrong):
    async def script(talk: Talk) -> None:
        await talk.log_in()
        frame, stored = await talk.submit()
        if talk.number == 2:
            await talk.say(Submitted((frame.ref,), talk.receipt(stored)))
            await talk.until_closed()
        other = envelopes.parse(frame_of(envelope_of(new_key(), new_key().did)))
        honest, talk.relay.key = talk.relay.key, talk.relay.key
        if wrong == "other relay":
            talk.relay.key = new_key()
        items = {"other envelope": [other], "too few": [], "too many": [*stored, other]}
        receipt = talk.receipt(items.get(wrong, stored))
        talk.relay.key = honest
        ref = "not asked" if wrong == "ref" else frame.ref
        await talk.say(Submitted((ref,), receipt))
        await talk.until_closed()

    async with lying_relay(script) as relay, open_at(relay) as me:
        sent = await me.send(me.did, "x", deadline_s=5)
        assert relay.talks == 2
        assert sent.relay == relay.key.did


def frame_of(envelope: envelopes.SignedEnvelope) -> object:
    return loads(envelope.wire)


async def rejecting(*codes: ErrorCode, retry_after: int | None = None, accept: bool = False):
    """A script that refuses submit after submit with these codes."""

    async def script(talk: Talk) -> None:
        await talk.log_in()
        for code in codes:
            frame, _ = await talk.submit()
            stored = "unknown" if code == "storage_unavailable" else "no"
            no = Rejection(frame.ref, 0, code, stored, "because", retry_after)
            await talk.say(Submitted((frame.ref,), None, (no,)))
        if accept:
            await talk.accept()
        await talk.until_closed()

    return script


async def test_a_definite_no_is_told_at_once():
    script = await rejecting(ErrorCode.INBOX_FULL, retry_after=30)
    async with lying_relay(script) as relay, open_at(relay) as me:
        with pytest.raises(InboxFullError) as caught:
            await me.send(me.did, "x")
        assert (caught.value.retry_after, caught.value.stored) == (30, "no")


async def test_a_relay_without_its_store_is_asked_again_until_it_has_it():
    script = await rejecting(ErrorCode.STORAGE_UNAVAILABLE, ErrorCode.DRAINING, accept=True)
    async with lying_relay(script) as relay, open_at(relay) as me:
        assert (await me.send(me.did, "x", deadline_s=5)).relay == relay.key.did


async def test_a_full_disk_until_the_deadline_is_a_definite_no():
    script = await rejecting(ErrorCode.STORAGE_FULL, retry_after=60)
    async with lying_relay(script) as relay, open_at(relay) as me:
        with pytest.raises(StorageFullError) as caught:
            await me.send(me.did, "x", deadline_s=0.4)
        assert caught.value.stored == "no"


async def test_too_fast_is_definite_at_first_but_not_after_a_lost_answer():
    script = await rejecting(ErrorCode.RATE_LIMITED)
    async with lying_relay(script) as relay, open_at(relay) as me:
        with pytest.raises(RateLimitedError) as first:
            await me.send(me.did, "x")
        assert first.value.stored == "no"
    # the limit is asked before the inbox's memory: it cannot tell what became of the first try
    lost = await rejecting(ErrorCode.STORAGE_UNAVAILABLE, ErrorCode.RATE_LIMITED, accept=True)
    async with lying_relay(lost) as relay, open_at(relay) as me:
        assert (await me.send(me.did, "x", deadline_s=5)).relay == relay.key.did


async def test_an_error_for_a_whole_submit_is_the_answer_of_each_envelope():
    async def script(talk: Talk) -> None:
        await talk.log_in()
        frame, _ = await talk.submit()
        await talk.say(Error(ErrorCode.BLOCKED, "go away", ref=frame.ref))
        await talk.until_closed()

    async with lying_relay(script) as relay, open_at(relay) as me:
        results = await asyncio.gather(
            *(me.send(me.did, n) for n in range(3)), return_exceptions=True
        )
        assert [result.code for result in results] == ["blocked"] * 3


# ---------------------------------------------------------------- what is delivered


async def acks(talk: Talk) -> Ack:
    while not isinstance(frame := await talk.hear(), Ack):
        pass
    return frame


async def test_forged_altered_and_foreign_envelopes_are_refused_and_the_rest_goes_on():
    me_key, stranger = new_key(), new_key()
    said: list[Ack] = []

    async def script(talk: Talk) -> None:
        await talk.log_in(said=welcome(head=6))
        good = envelope_of(stranger, me_key.did, b"good")
        altered = good.wire.replace(b'"body":"Z29vZA"', b'"body":"Z29vZQ"')
        to_other = envelope_of(stranger, new_key().did)
        bad_seal = envelope_of(
            stranger, me_key.did, b"x" * 80, content_type="application/vnd.agent-relay.sealed"
        )
        forged = good.wire.replace(good.wire[-60:-50], b"AAAAAAAAAA")
        await talk.say(
            deliver(
                (1, altered), (2, to_other.wire), (3, bad_seal.wire), (4, b"{}"), (5, forged),
                (6, good.wire),
            )
        )  # fmt: skip
        while sum(len(frame.refuse) for frame in said) < 5:
            said.append(await acks(talk))
            refused = tuple(seq for seq, _ in said[-1].refuse)
            await talk.say(Acked(Epoch("e1"), Seq(0), (), refused))
        await talk.until_closed()

    async with lying_relay(script) as relay, open_at(relay, me_key) as me:
        message = await anext(me.inbox())
        assert message.body == b"good"
        await wait_until(lambda: len(said) > 0 and me.refused == 5, 3, "five were refused")
        assert {seq for frame in said for seq, _ in frame.refuse} == {1, 2, 3, 4, 5}
        assert relay.talks == 1


async def test_a_second_delivery_is_held_back_and_its_ack_goes_to_the_new_place():
    me_key, envelope = new_key(), None
    acked: list[Ack] = []

    async def script(talk: Talk) -> None:
        await talk.log_in(said=welcome(head=1))
        await talk.say(deliver((1, envelope.wire), redelivered=talk.number > 1))
        if talk.number == 1:
            await talk.until(cut)
            return
        acked.append(await acks(talk))
        await talk.say(Acked(Epoch("e1"), Seq(1)))
        await talk.until_closed()

    envelope, cut = envelope_of(new_key(), me_key.did), asyncio.Event()
    async with lying_relay(script) as relay, open_at(relay, me_key) as me:
        message = await anext(me.inbox())
        cut.set()
        await wait_until(lambda: relay.talks == 2 and me.is_connected, 5, "connected again")
        again = asyncio.ensure_future(anext(me.inbox()))
        await message.ack()
        assert [(frame.upto, frame.seqs) for frame in acked] == [(1, ())]
        assert not again.done()
        again.cancel()


async def test_what_the_program_let_go_is_shown_again_after_a_reconnect():
    me_key = new_key()

    async def script(talk: Talk) -> None:
        await talk.log_in(said=welcome(head=1))
        await talk.say(deliver((1, envelope.wire), redelivered=talk.number > 1))
        if talk.number == 1:
            await talk.until(cut)
            return
        await talk.until_closed()

    envelope, cut = envelope_of(new_key(), me_key.did), asyncio.Event()
    async with lying_relay(script) as relay, open_at(relay, me_key) as me:
        message = await anext(me.inbox())
        assert not message.redelivered
        del message
        cut.set()
        message = await anext(me.inbox())
        assert message.redelivered


async def test_an_ack_that_was_not_confirmed_is_said_again_and_not_shown_again():
    me_key = new_key()
    said: list[Ack] = []

    async def script(talk: Talk) -> None:
        await talk.log_in(said=welcome(head=1))
        await talk.say(deliver((1, envelope.wire), redelivered=talk.number > 1))
        said.append(await acks(talk))
        if talk.number == 1:
            return
        await talk.say(Acked(Epoch("e1"), Seq(1)))
        await talk.until_closed()

    envelope = envelope_of(new_key(), me_key.did)
    async with lying_relay(script) as relay, open_at(relay, me_key) as me:
        await (await anext(me.inbox())).ack()
        assert len(said) == relay.talks == 2


async def test_an_ack_whose_answer_was_lost_is_confirmed_by_the_next_cursor():
    me_key = new_key()

    async def script(talk: Talk) -> None:
        if talk.number == 1:
            await talk.log_in(said=welcome(head=1))
            await talk.say(deliver((1, envelope.wire)))
            await acks(talk)
            return
        await talk.log_in(said=welcome(cursor=1, head=1))
        await talk.until_closed()

    envelope = envelope_of(new_key(), me_key.did)
    async with lying_relay(script) as relay, open_at(relay, me_key) as me:
        await (await anext(me.inbox())).ack()
        assert relay.talks == 2


async def test_an_ack_that_the_store_did_not_take_is_said_again():
    me_key = new_key()
    said: list[Ack] = []

    async def script(talk: Talk) -> None:
        await talk.log_in(said=welcome(head=2))
        await talk.say(deliver(*((seq, e.wire) for seq, e in enumerate(sent, 1))))
        said.append(await acks(talk))
        await talk.say(Error(ErrorCode.STORAGE_UNAVAILABLE, "ack again", 0))
        said.append(await acks(talk))
        await talk.say(Acked(Epoch("e1"), Seq(0), (Seq(2),)))
        await talk.until_closed()

    sent = [envelope_of(new_key(), me_key.did) for _ in range(2)]
    async with lying_relay(script) as relay, open_at(relay, me_key) as me:
        first, second = [await anext(me.inbox()) for _ in range(2)]
        await second.ack()
        assert [frame.seqs for frame in said] == [(2,), (2,)]
        assert first.eid == sent[0].eid


async def test_what_expired_before_its_ack_was_durable_is_told_as_expired():
    me_key = new_key()

    async def script(talk: Talk) -> None:
        await talk.log_in(said=welcome(head=1))
        if talk.number == 1:
            await talk.say(deliver((1, envelope.wire)))
            await acks(talk)
            return
        await talk.say(Gap(Epoch("e1"), (Range(Seq(1), Seq(1), Reason.EXPIRED),)))
        frame = await acks(talk)
        assert (frame.upto, frame.seqs) == (1, ())
        await talk.until_closed()

    envelope = envelope_of(new_key(), me_key.did)
    async with lying_relay(script) as relay, open_at(relay, me_key) as me:
        message = await anext(me.inbox())
        with pytest.raises(ExpiredError):
            await message.ack()


async def test_a_new_epoch_is_told_once_and_then_the_inbox_goes_on():
    me_key = new_key()

    async def script(talk: Talk) -> None:
        await talk.log_in(said=welcome(epoch=f"e{talk.number}", head=1))
        await talk.say(deliver((1, envelope.wire), epoch=f"e{talk.number}", redelivered=True))
        if talk.number == 1:
            await talk.until(cut)
            return
        frame = await acks(talk)
        assert frame.epoch == "e2"
        await talk.say(Acked(Epoch("e2"), Seq(1)))
        await talk.say(deliver((2, later.wire), epoch="e2"))
        await talk.until_closed()

    cut = asyncio.Event()
    envelope, later = [envelope_of(new_key(), me_key.did) for _ in range(2)]
    async with lying_relay(script) as relay, open_at(relay, me_key) as me:
        message = await anext(me.inbox())
        cut.set()
        with pytest.raises(InboxResetError):
            await anext(me.inbox())
        # the same envelope in the new epoch is still in the program's hands: held back, acked there
        await wait_until(lambda: relay.talks == 2 and me.is_connected, 5, "connected again")
        with contextlib.suppress(InboxResetError):  # where the ack comes before the delivery
            await message.ack()
        assert (await anext(me.inbox())).eid == later.eid


async def test_a_head_that_goes_back_in_one_epoch_is_a_reset():
    async def script(talk: Talk) -> None:
        await talk.log_in(said=welcome(head=9 if talk.number == 1 else 8))
        if talk.number > 1:
            await talk.until_closed()

    async with lying_relay(script) as relay, open_at(relay) as me:
        with pytest.raises(InboxResetError):
            await anext(me.inbox())
        assert relay.talks == 2


async def test_an_epoch_that_changed_while_the_agent_was_away_is_told(tmp_path):
    async def script(talk: Talk) -> None:
        await talk.log_in(said=welcome(epoch=f"e{talk.number}"))
        await talk.until_closed()

    key, state = new_key(), tmp_path / "state"
    async with lying_relay(script) as relay:
        async with open_at(relay, key, state=state):
            pass
        async with open_at(relay, key, state=state) as me:
            with pytest.raises(InboxResetError):
                await anext(me.inbox())


async def test_more_than_the_window_costs_the_relay_the_connection():
    me_key = new_key()

    async def script(talk: Talk) -> None:
        await talk.log_in(said=welcome(head=500, window_count=4))
        await talk.until(flood)
        for seq in range(1, 81):
            await talk.say(deliver((seq, envelope_of(stranger, me_key.did).wire)))

    stranger, flood = new_key(), asyncio.Event()
    async with lying_relay(script) as relay, open_at(relay, me_key) as me:
        flood.set()
        await wait_until(lambda: relay.talks > 1, 5, "it was left and dialled again")
        assert me.refused == 0


async def test_a_bounce_is_believed_only_from_a_relay_that_proved_itself():
    me_key = new_key()

    def bounce(signer) -> bytes:
        items = [BounceItem(sent.eid, sent.to, "expired", maybe_delivered=False)]
        body = sign_bounce(signer, items).encode()
        return envelope_of(signer, me_key.did, body, content_type=BOUNCE_CONTENT_TYPE).wire

    async def script(talk: Talk) -> None:
        await talk.log_in(said=welcome(head=2))
        await talk.say(deliver((1, bounce(new_key())), (2, bounce(talk.relay.key))))
        await talk.until_closed()

    sent = envelope_of(me_key, new_key().did)
    async with lying_relay(script) as relay, open_at(relay, me_key) as me:
        message = await anext(me.inbox())
        assert isinstance(message, Bounce)
        assert message.sender == relay.key.did
        assert message.items[0].eid == sent.eid
        assert me.refused == 1


# ---------------------------------------------------------------- ends and questions


async def test_superseded_without_a_bye_is_read_from_the_close_code():
    async def script(talk: Talk) -> None:
        await talk.log_in()
        await talk.socket.close(4001)

    async with lying_relay(script) as relay:
        with pytest.raises(SupersededError):
            async with open_at(relay) as me:
                await anext(me.inbox())
        assert relay.talks == 1


async def test_a_bye_with_a_pause_is_dialled_again_not_earlier():
    times: list[float] = []

    async def script(talk: Talk) -> None:
        times.append(asyncio.get_running_loop().time())
        await talk.log_in()
        if talk.number == 1:
            await talk.say(Bye(ErrorCode.DRAINING, "bye", 1))
            return
        await talk.until_closed()

    async with lying_relay(script) as relay, open_at(relay):
        await wait_until(lambda: relay.talks == 2, 5, "dialled again")
        assert times[1] - times[0] >= 1


async def test_a_send_only_session_sends_and_says_why_it_receives_nothing():
    me_key, elsewhere = new_key(), new_key()

    async def script(talk: Talk) -> None:
        await talk.log_in(said=welcome(inbox=False, session=None, epoch=None))
        record = endpoint_record.sign(
            me_key, [endpoint_record.Home(elsewhere.did, "https://r.example")], now=Timestamp(2**31)
        )
        while True:
            frame = frames.parse(await talk.socket.recv(decode=False), "agent")
            talk.relay.heard.append(frame)
            if isinstance(frame, Resolve):
                await talk.say(Resolved(frame.ref, "found", record))
            else:
                stored = [envelopes.parse(item) for item in frame.envelopes]
                await talk.say(Submitted((frame.ref,), talk.receipt(stored)))

    async with lying_relay(script) as relay, open_at(relay, me_key) as me:
        with pytest.raises(MovedError) as caught:
            await anext(me.inbox())
        assert caught.value.record is not None
        assert (await me.send(me.did, "x")).relay == relay.key.did
        assert {type(frame).__name__ for frame in relay.heard} == {"Auth", "Resolve", "Submit"}


async def test_a_question_is_asked_again_on_the_next_connection():
    async def script(talk: Talk) -> None:
        await talk.log_in()
        while not isinstance(frame := await talk.hear(), Status):
            pass
        if talk.number == 1:
            return
        [item] = frame.items
        await talk.say(Statuses(frame.ref, (StatusAnswer(item.to, item.id, "acked"),)))
        await talk.until_closed()

    async with lying_relay(script) as relay, open_at(relay) as me:
        assert await me.status(me.did, "01a2075f-685f-7a93-b7ef-4e61fc67d08d") == "acked"
        assert relay.talks == 2


async def test_a_record_that_its_agent_did_not_sign_is_unreadable():
    liar, victim = new_key(), new_key()
    home = [endpoint_record.Home(liar.did, "https://liar.example")]

    async def script(talk: Talk) -> None:
        await talk.log_in()
        while True:
            frame = frames.parse(await talk.socket.recv(decode=False), "agent")
            if isinstance(frame, Resolve) and frame.did == victim.did:
                forged = endpoint_record.sign(liar, home, now=Timestamp(1_800_000_000))
                await talk.say(Resolved(frame.ref, "found", forged))
            elif isinstance(frame, Resolve):
                own = endpoint_record.sign(
                    me_key, [endpoint_record.Home(talk.relay.key.did, talk.relay.url)],
                    now=Timestamp(2**31),
                )  # fmt: skip
                await talk.say(Resolved(frame.ref, "found", own))

    me_key = new_key()
    async with lying_relay(script) as relay, open_at(relay, me_key) as me:
        found = await me.resolve(victim.did)
        assert (found.state, found.record) == ("unreadable", None)


async def test_every_code_that_a_relay_says_is_raised_as_its_own_class():
    async def script(talk: Talk) -> None:
        await talk.log_in()
        for code in ErrorCode:
            while not isinstance(frame := await talk.hear(), Status):
                pass
            await talk.say(Error(code, "because", retry_after=7, ref=frame.ref))
        await talk.until_closed()

    async with lying_relay(script) as relay, open_at(relay) as me:
        for code in ErrorCode:
            with pytest.raises(CLASS_OF[code]) as caught:
                await me.status(me.did, "01a2075f-685f-7a93-b7ef-4e61fc67d08d")
            assert type(caught.value) is CLASS_OF[code]
            assert (caught.value.code, caught.value.retry_after) == (code, 7)
        assert relay.talks == 1


@pytest.mark.parametrize("url", ["http://10.0.0.1:8080", "ws://relay.example"])
async def test_an_agent_dials_nobody_in_plain_text_beyond_loopback(url):
    with pytest.raises(UnsupportedError, match="TLS"):
        async with Agent.open(new_key(), url):
            pass
