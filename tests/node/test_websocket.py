"""Conversations over a real socket with a node on the memory store."""

from __future__ import annotations

import asyncio

import pytest

from relay.peering import dialer
from relay.protocol import endpoint_record, jws
from relay.protocol.endpoint_record import Home
from relay.protocol.errors import ErrorCode, RelayError
from relay.protocol.frames import (
    Ack,
    Acked,
    Bye,
    Deliver,
    Error,
    Gap,
    Publish,
    Published,
    Resolve,
    Resolved,
    Status,
    Statuses,
    StatusItem,
    Submit,
    Submitted,
)
from relay.protocol.ids import Epoch, Seq
from relay.protocol.receipts import verify_receipt
from relay.ws import connection
from tests.support.nodes import dial, make_envelope, new_key, running_node, speaker
from tests.support.patience import within


async def test_an_envelope_travels_from_agent_to_agent_with_a_receipt_that_verifies():
    async with running_node() as node, speaker(node.url) as alice, speaker(node.url) as bob:
        envelope = make_envelope(alice.key, bob.key.did, b"hi")
        await alice.say(Submit("r1", [envelope.wire]))
        answer = await alice.hear(Submitted)
        receipt = verify_receipt(answer.receipt, alice.ready.relay)
        assert [item.eid for item in receipt.items] == [envelope.eid]
        assert receipt.durability == "memory"
        delivered = await bob.hear(Deliver)
        assert [(i.seq, i.redelivered) for i in delivered.items] == [(1, False)]
        assert jws.dumps(delivered.items[0].envelope) == envelope.wire
        await bob.say(Ack(delivered.epoch, upto=Seq(1)))
        acked = await bob.hear(Acked)
        assert (acked.upto, acked.seqs) == (1, ())
        await alice.say(Status("s", (StatusItem(bob.key.did, envelope.id),)))
        assert (await alice.hear(Statuses)).items[0].state == "acked"


async def test_what_was_sent_while_offline_comes_first_and_unmarked():
    bob = new_key()
    async with running_node() as node:
        async with speaker(node.url, bob):
            pass
        async with speaker(node.url) as alice:
            wires = [make_envelope(alice.key, bob.did, b"%d" % n).wire for n in range(5)]
            await alice.say(Submit("r", wires))
            await alice.hear(Submitted)
        async with speaker(node.url, bob) as again:
            assert again.ready.welcome.pending.count == 5
            delivered = await again.hear(Deliver)
            assert [(i.seq, i.redelivered) for i in delivered.items] == [
                (n, False) for n in range(1, 6)
            ]


async def test_what_was_handed_over_and_not_acked_comes_again_marked():
    bob = new_key()
    async with running_node() as node, speaker(node.url) as alice:
        async with speaker(node.url, bob) as first:
            await alice.say(Submit("r", [make_envelope(alice.key, bob.did).wire]))
            assert not (await first.hear(Deliver)).items[0].redelivered
        async with speaker(node.url, bob) as second:
            assert (await second.hear(Deliver)).items[0].redelivered


async def test_the_same_bytes_again_are_a_duplicate_with_the_same_pos():
    async with running_node() as node, speaker(node.url) as alice, speaker(node.url) as bob:
        wire = make_envelope(alice.key, bob.key.did).wire
        await alice.say(Submit("a", [wire]))
        await alice.say(Submit("b", [wire]))
        items = []
        while len(items) < 2:
            answer = await alice.hear(Submitted)
            items += verify_receipt(answer.receipt, alice.ready.relay).items
        assert [item.dup for item in items] == [False, True]
        assert items[0].pos == items[1].pos


async def test_each_envelope_of_a_submit_is_judged_alone():
    async with running_node() as node, speaker(node.url) as alice, speaker(node.url) as bob:
        good = make_envelope(alice.key, bob.key.did)
        stranger = make_envelope(alice.key, new_key().did)
        bad = {"jws": "a.b.c", "body": ""}
        forged = jws.loads(make_envelope(alice.key, bob.key.did).wire)
        forged["jws"] = forged["jws"][:-4] + "AAAA"
        await alice.say(Submit("r", [bad, good.wire, forged, stranger.wire]))
        answer = await alice.hear(Submitted)
        assert [(r.i, r.error, r.stored) for r in answer.rejected] == [
            (0, ErrorCode.BAD_ENVELOPE, "no"),
            (2, ErrorCode.BAD_SIGNATURE, "no"),
            (3, ErrorCode.UNKNOWN_INBOX, "no"),
        ]
        assert len(verify_receipt(answer.receipt, alice.ready.relay).items) == 1


async def test_a_newer_session_supersedes_and_the_older_is_told():
    bob = new_key()
    async with (
        running_node() as node,
        speaker(node.url, bob) as old,
        speaker(node.url, bob) as new,
    ):
        bye = await old.hear(Bye)
        assert bye.error is ErrorCode.SUPERSEDED
        assert await old.closed() == 4001
        assert new.ready.welcome.session > old.ready.welcome.session


async def test_an_ack_beyond_what_was_handed_over_is_a_bad_frame_and_deletes_nothing():
    bob = new_key()
    async with running_node() as node, speaker(node.url) as alice:
        async with speaker(node.url, bob) as first:
            await alice.say(Submit("r", [make_envelope(alice.key, bob.did).wire]))
            delivered = await first.hear(Deliver)
            await first.say(Ack(delivered.epoch, upto=Seq(2)))
            assert (await first.hear(Bye)).error is ErrorCode.BAD_FRAME
            assert await first.closed() == 4004
        async with speaker(node.url, bob) as second:
            assert (await second.hear(Deliver)).items[0].seq == 1


async def test_an_ack_of_another_epoch_changes_nothing():
    bob = new_key()
    async with running_node() as node, speaker(node.url) as alice, speaker(node.url, bob) as me:
        await alice.say(Submit("r", [make_envelope(alice.key, bob.did).wire]))
        await me.hear(Deliver)
        await me.say(Ack(Epoch("another"), upto=Seq(1)))
        assert (await me.hear(Error)).error is ErrorCode.INBOX_RESET
        page = await node.parts.store.inboxes.read(
            bob.agent_key, me.ready.welcome.session, Seq(0), node.parts.window
        )
        assert len(page.items) == 1


async def test_a_refused_envelope_is_removed_and_bounces_to_its_sender():
    async with running_node() as node, speaker(node.url) as alice, speaker(node.url) as bob:
        envelope = make_envelope(alice.key, bob.key.did)
        await alice.say(Submit("r", [envelope.wire]))
        delivered = await bob.hear(Deliver)
        await bob.say(Ack(delivered.epoch, refuse=((Seq(1), "poison"),)))
        assert (await bob.hear(Acked)).refused == (1,)
        # a bounce turn comes every second; the poll for lost hints would take longer
        async with asyncio.timeout(3):
            bounce = await alice.hear(Deliver)
        assert bounce.items[0].seq == 1
        await alice.say(Status("s", (StatusItem(bob.key.did, envelope.id),)))
        assert (await alice.hear(Statuses)).items[0].state == "refused"


async def test_the_window_bounds_what_is_handed_over_and_an_ack_opens_it():
    async with (
        running_node(window_count=4) as node,
        speaker(node.url) as alice,
        speaker(node.url) as bob,
    ):
        wires = [make_envelope(alice.key, bob.key.did, b"%d" % n).wire for n in range(10)]
        await alice.say(Submit("r", wires))
        await alice.hear(Submitted)
        seqs: list[int] = []
        while len(seqs) < 4:
            seqs += [i.seq for i in (await bob.hear(Deliver)).items]
        assert seqs == [1, 2, 3, 4]
        epoch = bob.ready.welcome.epoch
        # an answered question shows that nothing was delivered in between
        await bob.say(Resolve("q", bob.key.did))
        await bob.hear(Resolved)
        assert [f for f in bob.heard if isinstance(f, Deliver)][-1].items[-1].seq == 4
        await bob.say(Ack(epoch, upto=Seq(3)))
        while len(seqs) < 7:
            seqs += [i.seq for i in (await bob.hear(Deliver)).items]
        assert seqs == [1, 2, 3, 4, 5, 6, 7]


async def test_a_selective_ack_is_explained_as_a_gap_to_the_next_session():
    bob = new_key()
    async with running_node() as node, speaker(node.url) as alice:
        async with speaker(node.url, bob) as first:
            wires = [make_envelope(alice.key, bob.did, b"%d" % n).wire for n in range(3)]
            await alice.say(Submit("r", wires))
            seen = 0
            while seen < 3:
                seen += len((await first.hear(Deliver)).items)
            await first.say(Ack(first.ready.welcome.epoch, seqs=(Seq(2),)))
            assert (await first.hear(Acked)).upto == 0
        async with speaker(node.url, bob) as second:
            assert [i.seq for i in (await second.hear(Deliver)).items] == [1]
            gap = await second.hear(Gap)
            assert [(r.start, r.end, r.reason) for r in gap.ranges] == [(2, 2, "acked")]
            assert [i.seq for i in (await second.hear(Deliver)).items] == [3]


async def test_an_agent_publishes_and_anybody_resolves_its_record():
    async with running_node() as node, speaker(node.url) as alice, speaker(node.url) as bob:
        await alice.say(Resolve("q1", alice.key.did))
        assert (await alice.hear(Resolved)).state == "absent"
        record = endpoint_record.sign(
            alice.key, [Home(alice.ready.relay, node.url)], now=alice.ready.hello.time
        )
        await alice.say(Publish("p", record))
        assert (await alice.hear(Published)).stored
        await bob.say(Resolve("q2", alice.key.did))
        answer = await bob.hear(Resolved)
        assert (answer.state, answer.record, answer.stale) == ("found", record, False)
        await bob.say(Publish("p2", record))
        assert (await bob.hear(Error)).error is ErrorCode.BAD_SIGNATURE


async def test_an_agent_whose_record_names_another_home_gets_a_send_only_session():
    carol, other = new_key(), new_key()
    async with running_node() as node, speaker(node.url) as bob:
        record = endpoint_record.sign(
            carol, [Home(other.did, "https://elsewhere.example")], now=bob.ready.hello.time
        )
        async with speaker(node.url, carol, record=record) as away:
            assert not away.ready.welcome.inbox
            await away.say(Submit("r", [make_envelope(carol, bob.key.did).wire]))
            assert (await away.hear(Submitted)).receipt
        await bob.say(Submit("r", [make_envelope(bob.key, carol.did).wire]))
        [no] = (await bob.hear(Submitted)).rejected
        assert (no.error, no.record) == (ErrorCode.NOT_FEDERATED, record)


async def test_registration_can_be_closed_and_an_agent_denied():
    friend, foe = new_key(), new_key()
    async with running_node(registration="allow", allow=(friend.did,), deny=(foe.did,)) as node:
        async with speaker(node.url, friend) as me:
            assert me.ready.welcome.inbox
        with pytest.raises(RelayError) as stranger:
            async with speaker(node.url):
                pass
        assert stranger.value.code is ErrorCode.NOT_ADMITTED
        with pytest.raises(RelayError) as denied:
            async with speaker(node.url, foe):
                pass
        assert denied.value.code is ErrorCode.BLOCKED


async def test_frames_before_the_login_end_the_conversation():
    async with running_node() as node:
        socket = await dial(node.url)
        await socket.recv()
        await socket.send(b'{"t":"submit","ref":"r","envelopes":[{}]}'.decode())
        async with within(8):
            await socket.wait_closed()
        assert socket.close_code == 4003


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("not json", 4004),
        ('{"t":"submit"}', 4004),
        ('{"t":"deliver","epoch":"e","items":[]}', 4015),
        ('{"t":"unheard-of"}', 4015),
        ('{"t":"ack","epoch":"e","upto":1.5}', 4004),
        ('{"t":"ack","epoch":"e","epoch":"f"}', 4004),
        (b"binary", 4015),
    ],
)
async def test_bad_frames_are_named_and_closed(said, code):
    async with running_node() as node, speaker(node.url) as agent:
        await agent.socket.send(said)
        assert (await agent.hear(Bye)).error
        assert await agent.closed() == code


async def test_a_drain_says_goodbye_and_what_was_accepted_is_there_for_the_next_node():
    key, bob = new_key(), new_key()
    async with running_node(key=key) as node:
        async with speaker(node.url) as alice, speaker(node.url, bob) as me:
            await alice.say(Submit("r", [make_envelope(alice.key, bob.did).wire]))
            await alice.hear(Submitted)
            node.stop.set()
            assert (await me.hear(Bye)).error is ErrorCode.DRAINING
            assert await me.closed() == 4011
        store = node.parts.store
    async with running_node(store, key=key) as node, speaker(node.url, bob) as me:
        assert (await me.hear(Deliver)).items[0].redelivered


async def test_a_rate_limited_sender_is_told_when_to_come_back():
    async with (
        running_node(sender_rate=2) as node,
        speaker(node.url) as alice,
        speaker(node.url) as bob,
    ):
        wires = [make_envelope(alice.key, bob.key.did, b"%d" % n).wire for n in range(3)]
        await alice.say(Submit("r", wires))
        [no] = (await alice.hear(Submitted)).rejected
        assert (no.i, no.error, no.stored) == (2, ErrorCode.RATE_LIMITED, "no")
        assert no.retry_after
        assert no.retry_after <= 30


async def test_an_agent_that_asks_without_end_is_refused_and_its_questions_do_not_pile_up(
    monkeypatch,
):
    monkeypatch.setattr(connection, "MAX_QUESTIONS", 20)
    monkeypatch.setattr(dialer, "DIAL_S", 1.0)

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        writer.close()

    server = await asyncio.start_server(mute, [f"127.0.0.{n}" for n in range(1, 41)], 0)
    places = ["{}:{}".format(*one.getsockname()) for one in server.sockets]
    async with (
        server,
        running_node(dial_networks=("127.0.0.0/8",)) as node,
        speaker(node.url) as agent,
    ):
        for n, place in enumerate(places):
            await agent.say(Resolve(f"q{n}", handle=f"name@{place}"))
        for _ in range(20):
            assert (await agent.hear(Error)).error is ErrorCode.OVERLOADED
        # what is no question goes on
        await agent.say(Submit("s", [make_envelope(agent.key, agent.key.did).wire]))
        assert (await agent.hear(Submitted)).receipt


async def test_what_an_agent_that_has_left_still_asked_is_not_looked_into(monkeypatch):
    monkeypatch.setattr(dialer, "DIAL_S", 1.0)
    came: list[asyncio.StreamWriter] = []
    all_under_way = asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(writer)
        if len(came) == connection.MAX_QUESTIONS_IN_WORK:
            all_under_way.set()
        await reader.read(-1)
        writer.close()

    server = await asyncio.start_server(mute, [f"127.0.0.{n}" for n in range(1, 41)], 0)
    places = ["{}:{}".format(*one.getsockname()) for one in server.sockets]
    async with (
        server,
        running_node(dial_networks=("127.0.0.0/8",)) as node,
        speaker(node.url) as agent,
    ):
        for n, place in enumerate(places):
            await agent.say(Resolve(f"q{n}", handle=f"name@{place}"))
        await all_under_way.wait()
    assert len(came) == connection.MAX_QUESTIONS_IN_WORK
