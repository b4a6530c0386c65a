"""Mail between relays over real sockets: custody, order, refusals, what is followed and bounced."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from relay import clock
from relay.client.http import origin as origins
from relay.client.http.relay_api import RelayApi
from relay.client.state import agent_state as states
from relay.directory.ports import RecordRow
from relay.inbox.model.types import InboxLimits
from relay.protocol import endpoint_record
from relay.protocol import envelope as envelopes
from relay.protocol.did import SigningKey
from relay.protocol.envelope import SignedEnvelope
from relay.protocol.errors import ErrorCode
from relay.protocol.frames import (
    Ack,
    Deliver,
    Resolve,
    Resolved,
    Ruled,
    Rules,
    Status,
    StatusAnswer,
    Statuses,
    StatusItem,
    Submit,
    Submitted,
)
from relay.protocol.receipts import BOUNCE_CONTENT_TYPE, verify_bounce, verify_receipt
from relay.reference.memory_store import MemoryStore
from tests.federation.linked_nodes import Place, places, record_of, relay_at, until, until_held
from tests.support.nodes import RunningNode, Speaker, make_envelope, new_key, speaker
from tests.support.patience import within

pytestmark = pytest.mark.timeout(60)


@contextlib.asynccontextmanager
async def at_home(place: Place, agent: SigningKey) -> AsyncIterator[Speaker]:
    """An agent that logs in at its home, with the record that names it."""
    record = _last[agent.did] = record_of(agent, place)
    async with speaker(place.url, agent, record=record) as one:
        yield one


_last: dict[str, str] = {}


def record_of_last(agent: SigningKey) -> str:
    """The record with which an agent came home last."""
    return _last[agent.did]


@contextlib.asynccontextmanager
async def two_relays(**values) -> AsyncIterator[tuple[Place, RunningNode, Place, RunningNode]]:
    a, c = places(2)
    async with relay_at(a, [c], **values) as at_a, relay_at(c, [a], **values) as at_c:
        yield a, at_a, c, at_c


async def submit(one: Speaker, *made: SignedEnvelope) -> Submitted:
    await one.say(Submit("s", [envelope.wire for envelope in made]))
    return await one.hear(Submitted)


async def take(one: Speaker, count: int) -> list[tuple[bytes, bool]]:
    """Bodies as delivered and whether they are marked; each is acked at once."""
    found: list[tuple[bytes, bool]] = []
    while len(found) < count:
        frame = await one.hear(Deliver)
        found += [(envelopes.parse(i.envelope).body, i.redelivered) for i in frame.items]
        await one.say(Ack(frame.epoch, frame.items[-1].seq))
    return found


async def until_state(one: Speaker, envelope: SignedEnvelope, state: str) -> StatusAnswer:
    async with within(10):
        while True:
            await one.say(Status("q", (StatusItem(envelope.to, envelope.id),)))
            answer = (await one.hear(Statuses)).items[0]
            if answer.state == state:
                return answer
            await asyncio.sleep(0.02)


async def bounce(one: Speaker, relay: Place) -> tuple[str, str]:
    """The one bounce that comes: eid and reason, signed by ``relay``."""
    frame = await one.hear(Deliver)
    [item] = frame.items
    found = envelopes.parse(item.envelope)
    assert (found.sender.did, found.content_type) == (relay.did, BOUNCE_CONTENT_TYPE)
    [ended] = verify_bounce(found.body.decode(), relay.did)
    return ended.eid, ended.reason


def code_of(answer: Submitted) -> ErrorCode:
    [no] = answer.rejected
    assert answer.receipt is None
    assert no.stored == "no"
    return no.error


# ---------------------------------------------------------------- there and back


async def test_an_envelope_for_an_agent_elsewhere_arrives_there_and_is_followed():
    alice, bob = new_key(), new_key()
    async with (
        two_relays() as (a, _, c, _),
        at_home(a, alice) as sender,
        at_home(c, bob) as receiver,
    ):
        envelope = make_envelope(alice, bob.did)
        answer = await submit(sender, envelope)
        assert answer.rejected == ()
        [item] = verify_receipt(answer.receipt, a.did).items
        assert item.custody == "outbox"
        assert await take(receiver, 1) == [(b"hello", False)]
        followed = await until_state(sender, envelope, "acked")
        assert followed.peer == c.did
        assert followed.receipt


async def test_many_arrive_in_order_once_and_unmarked_and_a_repeat_is_answered_as_before():
    alice, bob = new_key(), new_key()
    made = [make_envelope(alice, bob.did, b"%d" % n) for n in range(300)]
    async with (
        two_relays() as (a, _, c, _),
        at_home(a, alice) as sender,
        at_home(c, bob) as receiver,
    ):
        first = [await submit(sender, *made[n : n + 60]) for n in range(0, 300, 60)]
        assert all(not answer.rejected for answer in first)
        assert await take(receiver, 300) == [(b"%d" % n, False) for n in range(300)]
        await until_state(sender, made[-1], "acked")
        again = verify_receipt((await submit(sender, made[0])).receipt, a.did).items[0]
        assert (again.dup, again.custody) == (True, "outbox")
        assert again.pos == verify_receipt(first[0].receipt, a.did).items[0].pos


async def test_what_was_sent_while_the_other_relay_was_away_waits_and_then_arrives():
    alice, bob = new_key(), new_key()
    a, c = places(2)
    store = MemoryStore(InboxLimits(), clock.now)
    async with relay_at(a, [c]) as at_a, at_home(a, alice) as sender:
        async with relay_at(c, [a], store), at_home(c, bob):
            await until_held(at_a, bob, record_of_last(bob))
        envelope = make_envelope(alice, bob.did)
        assert (await submit(sender, envelope)).rejected == ()
        assert await until_state(sender, envelope, "stored")
        async with relay_at(c, [a], store), at_home(c, bob) as receiver:
            assert await take(receiver, 1) == [(b"hello", False)]


async def test_a_bounce_goes_back_to_the_relay_of_its_sender():
    alice, bob = new_key(), new_key()
    async with (
        two_relays() as (a, _, c, _),
        at_home(a, alice) as sender,
        at_home(c, bob) as receiver,
    ):
        envelope = make_envelope(alice, bob.did)
        await submit(sender, envelope)
        frame = await receiver.hear(Deliver)
        await receiver.say(Ack(frame.epoch, refuse=((frame.items[0].seq, "unsupported"),)))
        assert await bounce(sender, c) == (envelope.eid, "unsupported")
        assert (await until_state(sender, envelope, "refused")).peer == c.did


# ---------------------------------------------------------------- refusals


async def test_poison_is_dead_lettered_with_its_reason_and_blocks_nobody():
    alice, bob, carol = new_key(), new_key(), new_key()
    async with (
        two_relays() as (a, _, c, _),
        at_home(a, alice) as sender,
        at_home(c, bob) as strict,
        at_home(c, carol) as receiver,
    ):
        await strict.say(Rules("r", deny=(alice.did,)))
        await strict.hear(Ruled)
        poison = make_envelope(alice, bob.did)
        made = [make_envelope(alice, carol.did, b"%d" % n) for n in range(20)]
        assert (await submit(sender, poison, *made)).rejected == ()
        assert len(await take(receiver, 20)) == 20
        assert await bounce(sender, a) == (poison.eid, "blocked")


async def test_nobody_knows_the_recipient_is_said_at_once():
    alice = new_key()
    async with two_relays() as (a, at_a, _, _), at_home(a, alice) as sender:
        await until(at_a.parts.links.live)
        answer = await submit(sender, make_envelope(alice, new_key().did))
        assert code_of(answer) is ErrorCode.UNKNOWN_INBOX


async def test_where_no_peer_can_be_asked_nobody_claims_that_the_recipient_is_nowhere():
    alice = new_key()
    a, c = places(2)
    async with relay_at(a, [c]), at_home(a, alice) as sender:
        answer = await submit(sender, make_envelope(alice, new_key().did))
        assert code_of(answer) is ErrorCode.PEER_UNREACHABLE
        assert answer.rejected[0].retry_after


async def test_only_the_own_envelopes_of_an_agent_are_forwarded():
    alice, bob, mallory = new_key(), new_key(), new_key()
    async with (
        two_relays() as (a, at_a, c, _),
        at_home(a, alice) as sender,
        at_home(c, bob),
    ):
        await until_held(at_a, bob, record_of_last(bob))
        known = await submit(sender, make_envelope(mallory, bob.did))
        assert code_of(known) is ErrorCode.MOVED
        assert known.rejected[0].record == record_of_last(bob)
        unknown = await submit(sender, make_envelope(mallory, new_key().did))
        assert code_of(unknown) is ErrorCode.NO_RELAYING


async def test_a_session_without_an_inbox_here_has_nothing_forwarded():
    bob, dave = new_key(), new_key()
    async with two_relays() as (a, at_a, c, _), at_home(c, bob), at_home(c, dave):
        await until_held(at_a, bob, record_of_last(bob))
        async with speaker(a.url, dave, record=record_of_last(dave)) as guest:
            assert not guest.ready.welcome.inbox
            answer = await submit(guest, make_envelope(dave, bob.did))
            assert code_of(answer) is ErrorCode.MOVED


async def test_a_closed_relay_says_where_the_recipient_of_a_stranger_lives():
    alice, bob = new_key(), new_key()
    a, c, d = places(3)
    async with (
        relay_at(a, [c]) as at_a,
        relay_at(c, [a, d]),
        relay_at(d, [c]),
        at_home(a, alice) as sender,
        at_home(d, bob),
    ):
        await until_held(at_a, bob, record_of_last(bob))
        answer = await submit(sender, make_envelope(alice, bob.did))
        assert code_of(answer) is ErrorCode.NOT_FEDERATED
        assert answer.rejected[0].record == record_of_last(bob)


async def test_what_a_peer_brings_for_nobody_here_goes_no_further():
    alice, bob = new_key(), new_key()
    a, c, d = places(3)
    async with (
        relay_at(a, [c]) as at_a,
        relay_at(c, [a, d]) as at_c,
        relay_at(d, [c]),
        at_home(d, bob),
    ):
        await until_held(at_c, bob, record_of_last(bob))
        link = await at_a.parts.links.reach(c.did, c.url)
        taken = await link.submit([make_envelope(alice, bob.did).wire], hops=(a.did,))
        [no] = taken.outcomes
        assert (no.error, no.record) == (ErrorCode.MOVED, record_of_last(bob))


# ---------------------------------------------------------------- moving, resolving


async def test_an_agent_that_moves_while_mail_waits_gets_it_at_its_new_home():
    alice, bob = new_key(), new_key()
    a, c, d = places(3)
    async with relay_at(a, [c, d]) as at_a, at_home(a, alice) as sender:
        async with relay_at(c, [a]), at_home(c, bob):
            await until_held(at_a, bob, record_of_last(bob))
        assert (await submit(sender, make_envelope(alice, bob.did))).rejected == ()
        async with relay_at(d, [a]):
            newer = record_of(bob, d, seq=int(time.time() * 1000) + 60_000)
            async with speaker(d.url, bob, record=newer) as receiver:
                assert [body for body, _ in await take(receiver, 1)] == [b"hello"]


async def test_what_waited_for_an_agent_that_comes_here_is_its_mail():
    alice, bob = new_key(), new_key()
    a, c = places(2)
    async with relay_at(a, [c]) as at_a, at_home(a, alice) as sender:
        async with relay_at(c, [a]), at_home(c, bob):
            await until_held(at_a, bob, record_of_last(bob))
        assert (await submit(sender, make_envelope(alice, bob.did))).rejected == ()
        newer = record_of(bob, a, seq=int(time.time() * 1000) + 60_000)
        async with speaker(a.url, bob, record=newer) as receiver:
            assert [body for body, _ in await take(receiver, 1)] == [b"hello"]


async def test_mail_follows_an_agent_that_moves_away_and_back():
    alice, bob = new_key(), new_key()
    a, c = places(2)
    ahead = int(time.time() * 1000)
    async with relay_at(a, [c]) as at_a, relay_at(c, [a]) as at_c, at_home(a, alice) as sender:
        for step, (place, node) in enumerate([(c, at_c), (a, at_a), (c, at_c), (a, at_a)]):
            record = record_of(bob, place, seq=ahead + step * 60_000)
            async with speaker(place.url, bob, record=record) as receiver:
                if step == 0:
                    await until_held(at_a, bob, record)
                    await submit(sender, make_envelope(alice, bob.did))
                frame = await receiver.hear(Deliver)
                assert [item.redelivered for item in frame.items] == [step > 0]
            await until_held(at_c if node is at_a else at_a, bob, record)


async def test_an_agent_whom_this_relay_does_not_know_is_found_by_asking_around():
    alice, bob = new_key(), new_key()
    a, c = places(2)
    async with relay_at(a, [c]) as at_a, relay_at(c, [a]) as at_c, at_home(a, alice) as asker:
        await until(at_a.parts.links.live)
        record = record_of(bob, c)
        # kept there without a word to anybody
        await at_c.parts.store.records.merge([(bob.agent_key, row_of(record))])
        await asker.say(Resolve("r", bob.did))
        assert (await asker.hear(Resolved)).record == record


def row_of(compact: str) -> RecordRow:
    return RecordRow(endpoint_record.parse(compact).version, compact, names_us=True)


async def test_status_over_http_follows_to_the_home_too(tmp_path):
    async with two_relays() as (a, at_a, c, _):
        carol, alice = new_key(), new_key()
        async with at_home(c, carol) as receiver:
            await until_held(at_a, carol, record_of_last(carol))
            async with at_home(a, alice) as sender:
                made = make_envelope(alice, carol.did, b"posted")
                assert (await submit(sender, made)).receipt
                await take(receiver, 1)
                await until_state(sender, made, "acked")
            with states.opened(tmp_path / "state", alice.did) as state:
                state.keep_record(record_of_last(alice))
                visit = await RelayApi(origins.parse(a.url)).login(alice, state)
                assert await visit.status(carol.did, made.id) == "acked"
                [here] = await at_a.parts.status.local(alice.did, [StatusItem(carol.did, made.id)])
                assert here.state == "forwarded", "it is the home that knows of the ack"
