"""What a relay took over from ours: it is followed, and only its bounce is believed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from relay.client import Agent, Bounce
from relay.client.inbox import relay_inbox
from relay.protocol import endpoint_record, frames, receipts
from relay.protocol import envelope as envelopes
from relay.protocol.did import SigningKey
from relay.protocol.errors import ErrorCode
from relay.protocol.frames import (
    Error,
    Publish,
    Published,
    Resolve,
    Resolved,
    State,
    Status,
    StatusAnswer,
    Statuses,
    Submit,
    Submitted,
)
from relay.protocol.ids import Did, Epoch, Timestamp
from relay.protocol.receipts import BOUNCE_CONTENT_TYPE, BounceItem, ReceiptItem, sign_bounce
from tests.client.scripted_relay import Talk, deliver, envelope_of, lying_relay, new_key, welcome
from tests.support.patience import wait_until, within

pytestmark = pytest.mark.timeout(30)

BOB, PEER, STRANGER = new_key(), new_key(), new_key()


def outbox_receipt(talk: Talk, frame: Submit) -> str:
    stored = [envelopes.parse(item) for item in frame.envelopes]
    items = [
        ReceiptItem(e.eid, e.recipient.did, Epoch("e"), "p", e.expires_at, custody="outbox")
        for e in stored
    ]
    return receipts.sign_receipt(
        talk.relay.key, items, durability="fsync", now=Timestamp(time.time())
    )


class Forwarding:
    """A relay that says that a peer took it over, then what became of it."""

    def __init__(self, *states: State, peer: Did | None, record: str | None = None) -> None:
        self.states: Iterator[State] = iter(states)
        self.last: State = "stored"
        self.peer = peer
        self.record = record
        self.own: str | None = None
        self.is_unable = False
        self.asked = 0
        self.talk: Talk | None = None
        self.seq = 0

    async def __call__(self, talk: Talk) -> None:
        self.talk = talk
        await talk.log_in(said=welcome(head=9))
        while True:
            frame = frames.parse(await talk.socket.recv(decode=False), "agent")
            answer = self.answer(talk, frame)
            if answer is not None:
                await talk.say(answer)

    def answer(
        self, talk: Talk, frame: object
    ) -> Resolved | Published | Submitted | Statuses | Error | None:
        match frame:
            case Status() | Resolve(did=BOB.did) if self.is_unable:
                self.asked += 1
                return Error(ErrorCode.STORAGE_UNAVAILABLE, ref=frame.ref)
            case Resolve(did=did):
                shown = self.record if did == BOB.did else self.own
                return Resolved(frame.ref, "absent" if shown is None else "found", shown)
            case Publish():
                return Published(frame.ref, stored=True, kv=1, seq=1)
            case Submit():
                return Submitted((frame.ref,), outbox_receipt(talk, frame))
            case Status(items=[item]):
                self.last = next(self.states, self.last)
                peer = self.peer if self.last == "forwarded" else None
                return Statuses(frame.ref, (StatusAnswer(item.to, item.id, self.last, peer),))
            case _:
                return None

    async def bounce(self, signer: SigningKey, me: Did, *items: BounceItem) -> None:
        assert self.talk is not None
        self.seq += 1
        body = sign_bounce(signer, items).encode()
        wire = envelope_of(signer, me, body, content_type=BOUNCE_CONTENT_TYPE).wire
        await self.talk.say(deliver((self.seq, wire)))


async def test_waiting_for_the_ack_goes_on_over_a_forward():
    script = Forwarding("stored", "forwarded", "forwarded", "acked", peer=PEER.did)
    async with lying_relay(script) as own, Agent.open(new_key(), own.url) as me:
        sent = await me.send(BOB.did, "over there", wait="acked")
        assert (sent.custody, sent.durability, sent.state) == ("outbox", "fsync", "acked")


async def bounced(script: Forwarding, signer: SigningKey, to: Did = BOB.did, **options) -> Agent:
    """Send one to Bob, and be told by ``signer`` that it has expired."""
    key = new_key()
    async with lying_relay(script) as own, Agent.open(key, own.url, **options) as me:
        sent = await me.send(BOB.did, "not for long")
        await script.bounce(signer, me.did, BounceItem(sent.eid, to, "expired", False))
        honest = envelope_of(STRANGER, me.did, b"not held up")
        script.seq += 1
        await script.talk.say(deliver((script.seq, honest.wire)))
        taken = []
        async with within(10):
            while len(taken) + me.refused < 2:
                looking = asyncio.ensure_future(anext(me.inbox()))
                refusing = asyncio.ensure_future(wait_until(lambda: me.refused, 10, "refused"))
                await asyncio.wait({looking, refusing}, return_when=asyncio.FIRST_COMPLETED)
                refusing.cancel()
                if looking.done():
                    taken.append(looking.result())
                else:
                    looking.cancel()
        return taken, me.refused


async def test_a_bounce_of_the_relay_that_took_it_over_is_believed():
    script = Forwarding("forwarded", peer=PEER.did)
    taken, refused = await bounced(script, PEER)
    [bounce] = [message for message in taken if isinstance(message, Bounce)]
    assert (bounce.sender, bounce.items[0].reason, refused) == (PEER.did, "expired", 0)


async def test_a_bounce_of_a_relay_that_the_recipients_record_names_is_believed():
    home = [endpoint_record.Home(PEER.did, "https://peer.example")]
    record = endpoint_record.sign(BOB, home, now=Timestamp(time.time()))
    taken, refused = await bounced(Forwarding("stored", peer=None, record=record), PEER)
    assert any(isinstance(message, Bounce) for message in taken)
    assert refused == 0


@pytest.mark.parametrize("to", [BOB.did, STRANGER.did], ids=["bob", "stranger"])
async def test_a_bounce_of_a_relay_that_nobody_names_is_refused_and_holds_up_nobody(to: Did):
    script = Forwarding("forwarded", peer=PEER.did)
    taken, refused = await bounced(script, STRANGER, to)
    assert [message.text() for message in taken] == ["not held up"]
    assert refused == 1


async def test_who_took_it_over_is_known_after_a_restart_too(tmp_path):
    key, state = new_key(), tmp_path / "state"
    script = Forwarding("forwarded", peer=PEER.did)
    async with lying_relay(script) as own:
        async with Agent.open(key, own.url, state=state) as me:
            sent = await me.send(BOB.did, "not for long")
        async with Agent.open(key, own.url, state=state) as me:
            item = BounceItem(sent.eid, BOB.did, "expired", maybe_delivered=False)
            await script.bounce(PEER, me.did, item)
            async with within(10):
                message = await anext(me.inbox())
            assert isinstance(message, Bounce)
            assert message.items == (item,)


async def message_of(me: Agent):
    async with within(10):
        return await anext(me.inbox())


async def test_a_bounce_that_cannot_be_judged_is_kept_until_it_can(monkeypatch):
    monkeypatch.setattr(relay_inbox, "VERIFY_PAUSE_S", 0.001)
    monkeypatch.setattr(relay_inbox, "MAX_VERIFY_PAUSE_S", 0.01)
    script = Forwarding("forwarded", peer=PEER.did)
    async with lying_relay(script) as own, Agent.open(new_key(), own.url) as me:
        sent = await me.send(BOB.did, "not for long")
        script.is_unable = True
        await script.bounce(PEER, me.did, BounceItem(sent.eid, BOB.did, "expired", False))
        # a look asks twice: its relay about the envelope, and about where Bob lives
        await wait_until(lambda: script.asked > 20, 10, "it was looked at ten times")
        assert me.refused == 0
        script.is_unable = False
        bounce = await message_of(me)
        assert isinstance(bounce, Bounce)
        assert (bounce.items[0].eid, me.refused) == (sent.eid, 0)


async def test_nobody_stops_an_inbox_by_bounces_that_cannot_be_judged(monkeypatch):
    monkeypatch.setattr(relay_inbox, "VERIFY_PAUSE_S", 0.001)
    monkeypatch.setattr(relay_inbox, "MAX_VERIFY_PAUSE_S", 0.01)
    window, liar = 64, new_key()
    script = Forwarding("forwarded", peer=PEER.did)
    async with lying_relay(script) as own, Agent.open(new_key(), own.url) as me:
        to_bob, to_liar = [await me.send(to, "x") for to in (BOB.did, liar.did)]
        script.is_unable = True
        await script.bounce(PEER, me.did, BounceItem(to_bob.eid, BOB.did, "expired", False))
        for _ in range(window):
            await script.bounce(STRANGER, me.did, BounceItem(to_liar.eid, liar.did, "no", False))
        script.seq += 1
        await script.talk.say(
            deliver((script.seq, envelope_of(STRANGER, me.did, b"not held up").wire))
        )
        assert (await message_of(me)).text() == "not held up"
        # all over half a window, and it is the liar who pays
        await wait_until(lambda: me.refused == 1 + window - window // 2, 10, "they were refused")
        script.is_unable = False
        assert (await message_of(me)).items[0].eid == to_bob.eid


async def test_a_bounce_of_a_home_that_was_left_is_believed_in_another_life(tmp_path):
    key, script = new_key(), Forwarding("stored", peer=None)
    now = int(time.time())
    async with lying_relay(script) as own:
        home = [endpoint_record.Home(own.key.did, own.url)]
        left = [endpoint_record.FormerHome(PEER.did, "https://left.example", now + 3600)]
        script.own = endpoint_record.sign(key, home, now=Timestamp(now), drain=left)
        async with Agent.open(key, own.url, state=tmp_path / "state") as me:
            sent = envelope_of(key, BOB.did)
            item = BounceItem(sent.eid, BOB.did, "expired", maybe_delivered=True)
            await script.bounce(STRANGER, me.did, item)
            await script.bounce(PEER, me.did, item)
            bounce = await message_of(me)
            assert isinstance(bounce, Bounce)
            assert (bounce.sender, me.refused) == (PEER.did, 1)
