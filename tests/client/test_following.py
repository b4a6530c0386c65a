"""What a relay took over from ours: it is followed, and only its bounce is believed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from relay.client import Agent, Bounce
from relay.core import codec, receipts, records
from relay.core import envelope as envelopes
from relay.core.frames import (
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
from relay.core.identity import SigningKey
from relay.core.ids import Did, Epoch, Timestamp
from relay.core.receipts import BOUNCE_CONTENT_TYPE, BounceItem, ReceiptItem, sign_bounce
from tests.client.support import Talk, deliver, envelope_of, lying_relay, new_key, welcome
from tests.support.servers import wait_until

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
        self.talk: Talk | None = None
        self.seq = 0

    async def __call__(self, talk: Talk) -> None:
        self.talk = talk
        await talk.log_in(said=welcome(head=9))
        while True:
            frame = codec.parse(await talk.socket.recv(decode=False), "agent")
            answer = self.answer(talk, frame)
            if answer is not None:
                await talk.say(answer)

    def answer(
        self, talk: Talk, frame: object
    ) -> Resolved | Published | Submitted | Statuses | None:
        match frame:
            case Resolve(did=did):
                is_bob = did == BOB.did and self.record is not None
                return Resolved(
                    frame.ref, "found" if is_bob else "absent", self.record if is_bob else None
                )
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
        async with asyncio.timeout(10):
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
    home = [records.Home(PEER.did, "https://peer.example")]
    record = records.sign(BOB, home, now=Timestamp(time.time()))
    taken, refused = await bounced(Forwarding("stored", peer=None, record=record), PEER)
    assert any(isinstance(message, Bounce) for message in taken)
    assert refused == 0


@pytest.mark.parametrize("to", [BOB.did, STRANGER.did])
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
            async with asyncio.timeout(10):
                message = await anext(me.inbox())
            assert isinstance(message, Bounce)
            assert message.items == (item,)
