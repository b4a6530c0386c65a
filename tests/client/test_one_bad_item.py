"""One frame, envelope, record or job that is wrong harms itself: no loop of an agent ends by it."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from functools import partial
from pathlib import Path

import pytest

from relay.client import Agent, AgentError, BadFrameError, CorruptError, InternalError
from relay.client.http import origin as origins
from relay.client.inbox.opener import EnvelopeOpener
from relay.client.inbox.relay_inbox import RelayInbox
from relay.client.outbox import direct as detour
from relay.client.sessionless import SessionlessAgent
from relay.client.state import agent_state as states
from relay.client.state.database import Database
from relay.client.state.peers import PeerStore
from relay.client.state.schema import TABLES
from relay.protocol import endpoint_record, frames
from relay.protocol import envelope as envelopes
from relay.protocol.errors import ErrorCode
from relay.protocol.frames import (
    Gap,
    Publish,
    Published,
    Resolve,
    Resolved,
    Status,
    Submit,
    Submitted,
)
from relay.protocol.ids import Epoch, Seq, Timestamp
from relay.protocol.receipts import BOUNCE_CONTENT_TYPE, BounceItem, sign_bounce
from relay.protocol.types import Range, Reason
from tests.client.scripted_relay import Talk, envelope_of, lying_relay, new_key, raw
from tests.client.test_direct_delivery import bob_at_home, record_of, refuses, relay_key
from tests.support.nodes import running_node
from tests.support.patience import wait_until, within

pytestmark = pytest.mark.timeout(30)

ID = "01a2075f-685f-7a93-b7ef-4e61fc67d08d"


async def go_on(talk: Talk, own: str | None = None) -> None:
    """Be a relay that keeps all; ``own`` is what it shows as the agent's own record."""
    with contextlib.suppress(Exception):
        while True:
            frame = frames.parse(await talk.socket.recv(decode=False), "agent")
            match frame:
                case Resolve():
                    state = "absent" if own is None else "found"
                    await talk.say(Resolved(frame.ref, state, own))
                case Publish():
                    await talk.say(Published(frame.ref, stored=True, kv=1, seq=1))
                case Submit():
                    stored = [envelopes.parse(item) for item in frame.envelopes]
                    await talk.say(Submitted((frame.ref,), talk.receipt(stored)))


# ---------------------------------------------------------------- what a relay says


async def test_an_answer_to_another_question_is_an_error_and_cancels_nobody():
    async def script(talk: Talk) -> None:
        await talk.log_in()
        if talk.number > 1:
            await go_on(talk)
        while not isinstance(frame := await talk.hear(), Status):
            pass
        await talk.say(Resolved(frame.ref, "absent"))
        await talk.until_closed()

    async def ask(me: Agent) -> object:
        try:
            return await me.status(me.did, ID)
        except AgentError as exc:
            return exc

    async with lying_relay(script) as relay, Agent.open(new_key(), relay.url) as me:
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(ask(me))
        assert not asking.cancelled()
        assert isinstance(asking.result(), BadFrameError)
        assert (await me.send(me.did, "x", deadline_s=10)).relay == relay.key.did
        assert relay.talks == 2


@pytest.mark.parametrize("lie", ["of another agent", "forged"])
async def test_a_lie_about_the_own_record_costs_the_connection_and_not_the_agent(lie: str):
    me_key, other = new_key(), new_key()

    async def script(talk: Talk) -> None:
        await talk.log_in()
        home = [endpoint_record.Home(talk.relay.key.did, talk.relay.url)]
        signer = other if lie == "of another agent" else me_key
        shown = endpoint_record.sign(signer, home, now=Timestamp(time.time()))
        if lie == "forged":
            shown = shown[:-4] + ("AAAA" if shown[-4:] != "AAAA" else "BBBA")
        await go_on(talk, shown if talk.number == 1 else None)

    async with lying_relay(script) as relay, Agent.open(me_key, relay.url) as me:
        assert (await me.send(me.did, "x", deadline_s=10)).relay == relay.key.did
        assert relay.talks == 2


async def test_a_frame_that_is_not_understood_costs_the_connection_and_not_the_agent():
    async def script(talk: Talk) -> None:
        await talk.log_in()
        if talk.number == 1:
            await talk.socket.send('{"t":"of a later version"}')
        await go_on(talk)

    async with lying_relay(script) as relay, Agent.open(new_key(), relay.url) as me:
        await wait_until(lambda: relay.talks == 2, 5, "it was left and dialled again")
        assert (await me.send(me.did, "x", deadline_s=10)).relay == relay.key.did


async def test_a_question_that_cannot_be_said_ends_only_itself():
    async def script(talk: Talk) -> None:
        await talk.log_in()
        await go_on(talk)

    async with lying_relay(script) as relay, Agent.open(new_key(), relay.url) as me:
        with pytest.raises(BadFrameError):
            await me.resolve("did:key:\ud800")
        with pytest.raises(BadFrameError):
            await me.rules(deny=[""])
        assert (await me.send(me.did, "x", deadline_s=5)).relay == relay.key.did
        assert relay.talks == 1


# ---------------------------------------------------------------- bugs


def broken(*_: object, **__: object) -> None:
    raise ZeroDivisionError("a bug")


async def test_a_bug_in_one_conversation_ends_neither_the_agent_nor_its_program(
    monkeypatch, caplog
):
    monkeypatch.setattr(RelayInbox, "gap", broken)

    async def script(talk: Talk) -> None:
        await talk.log_in()
        if talk.number == 1:
            await talk.say(Gap(Epoch("e1"), (Range(Seq(1), Seq(1), Reason.EXPIRED),)))
        await go_on(talk)

    async with lying_relay(script) as relay, Agent.open(new_key(), relay.url) as me:
        await wait_until(lambda: relay.talks == 2, 5, "it was left and dialled again")
        assert (await me.send(me.did, "x", deadline_s=10)).relay == relay.key.did
    assert "a bug in the conversation with" in caplog.text


async def test_a_bug_about_one_recipient_leaves_the_detours_to_others(monkeypatch):
    unlucky, direct = new_key(), detour.DirectDelivery.refresh_record

    async def look_for(self, to):
        if to == unlucky.did:
            broken()
        return await direct(self, to)

    monkeypatch.setattr(detour.DirectDelivery, "refresh_record", look_for)
    async with bob_at_home() as (node, bob):
        shown = record_of(bob._parts.key, node.url, relay_key(node))
        script = refuses(ErrorCode.NO_RELAYING, shown=shown)
        async with lying_relay(script) as own, Agent.open(new_key(), own.url) as alice:
            with pytest.raises(AgentError) as caught:
                await alice.send(unlucky.did, "x", deadline_s=5)
            assert (caught.value.code, caught.value.stored) == ("no_relaying", "no")
            assert (await alice.send(bob.did, "y", deadline_s=5)).relay == relay_key(node).did


async def test_a_bug_in_the_agent_itself_is_told_by_name_and_does_not_cancel_the_program(
    monkeypatch,
):
    async def script(talk: Talk) -> None:
        await talk.log_in()
        await go_on(talk)

    async with lying_relay(script) as relay, Agent.open(new_key(), relay.url) as me:
        monkeypatch.setattr(me._parts.pool, "follow_migration", broken)
        monkeypatch.setattr(me._parts.pool, "_add_homes", broken)
        me._parts.own_record.changed.notify()
        with pytest.raises(InternalError, match="ZeroDivisionError"):
            await anext(me.inbox())
        with pytest.raises(InternalError):
            await me.send(me.did, "x")
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0


def test_a_bug_on_one_envelope_is_told_to_its_sender_and_is_no_exception():
    me, relay = new_key(), new_key()
    item = BounceItem(envelope_of(me, new_key().did).eid, me.did, "expired", False)
    body = sign_bounce(relay, [item]).encode()
    bounce = envelope_of(relay, me.did, body, content_type=BOUNCE_CONTENT_TYPE)
    failure = EnvelopeOpener(me, broken).open(raw(bounce))
    assert isinstance(failure, InternalError)


# ---------------------------------------------------------------- the state file


def test_a_job_that_fails_fails_alone_and_the_thread_of_the_disk_goes_on(tmp_path):
    def note(n: int, database: sqlite3.Connection) -> None:
        database.execute("INSERT INTO notes VALUES (?)", (n,))

    def count(database: sqlite3.Connection) -> int:
        return database.execute("SELECT count(*) FROM notes").fetchone()[0]

    disk = Database.open(
        tmp_path / "state", lambda it: it.execute("CREATE TABLE notes (n INTEGER)")
    )
    try:
        # enough for some to be in one commit with others
        done = [disk.run(partial(note, n)) for n in range(50)]
        bad = [disk.run(broken), disk.run(partial(note, 2**70)), disk.run(partial(note, object()))]
        done += [disk.run(partial(note, n)) for n in range(50)]
        for one in bad:
            with pytest.raises(InternalError):
                one.result(5)
        assert [one.result(5) for one in done] == [None] * 100
        assert disk.run(count).result(5) == 100
    finally:
        disk.close()


def spoil(state: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(state)) as database, database:
        assert database.execute(statement).rowcount == 1


async def test_a_damaged_record_of_another_agent_is_passed_over(tmp_path):
    state = tmp_path / "state"
    async with bob_at_home() as (node, bob):
        shown = record_of(bob._parts.key, node.url, relay_key(node))
        disk = Database.open(state, lambda it: [it.execute(one) for one in TABLES])
        PeerStore(disk).save_record(bob.did, shown)
        disk.close()
        spoil(state, "UPDATE found SET record = 'x'")
        script = refuses(ErrorCode.NO_RELAYING, shown=shown)
        async with (
            lying_relay(script) as own,
            Agent.open(new_key(), own.url, state=state) as alice,
        ):
            assert (await alice.send(bob.did, "y", deadline_s=5)).relay == relay_key(node).did
            found = await alice._parts.state.journal.peers.record(bob.did)
            assert found == shown


def test_a_damaged_record_of_its_own_is_named_when_the_file_is_opened(tmp_path):
    key, state = new_key(), tmp_path / "state"
    kept = states.load(state, key.did)
    kept.keep_record(record_of(key, "https://relay.example", new_key()))
    kept.close()
    spoil(state, "UPDATE facts SET value = 'x' WHERE name = 'record'")
    with pytest.raises(CorruptError, match="move the file away"):
        states.load(state, key.did)


async def test_what_cannot_be_noted_of_another_agent_is_logged(tmp_path, caplog):
    async def script(talk: Talk) -> None:
        await talk.log_in()
        await go_on(talk)

    state = tmp_path / "state"
    async with (
        lying_relay(script) as relay,
        Agent.open(new_key(), relay.url, state=state) as me,
        contextlib.AsyncExitStack() as stack,
    ):
        blocked = sqlite3.connect(state)
        stack.callback(blocked.close)
        blocked.execute("DROP TABLE found")
        blocked.commit()
        bob = new_key()
        compact = record_of(bob, "https://relay.example", new_key())
        me._parts.records.add(bob.did, compact)
        await wait_until(
            lambda: "the state file was not written" in caplog.text, 5, "it was logged"
        )


async def test_a_damaged_envelope_in_the_outbox_ends_as_an_outcome_and_holds_up_no_other(tmp_path):
    key, state = new_key(), tmp_path / "state"
    kept = states.load(state, key.did)
    damaged, whole = [envelope_of(key, key.did, body) for body in (b"damaged", b"whole")]
    for one in (damaged, whole):
        await kept.journal.add_outgoing(one)
    kept.close()
    spoil(state, "UPDATE outbox SET wire = 'x' WHERE place = 1")

    async def script(talk: Talk) -> None:
        await talk.log_in()
        await go_on(talk)

    async with lying_relay(script) as relay, Agent.open(key, relay.url, state=state) as me:
        async with within(10):
            outcomes = me.outcomes()
            ended = {one.eid: one for one in [await anext(outcomes), await anext(outcomes)]}
        assert (ended[damaged.eid].code, ended[damaged.eid].stored) == ("corrupt", "unknown")
        assert ended[whole.eid].stored == "yes"
        assert relay.talks == 1


async def test_nor_does_it_where_a_program_without_a_session_submits_what_is_left(tmp_path):
    key, state = new_key(), tmp_path / "state"
    async with running_node() as node, Agent.open(key, node.url):
        kept = states.load(state, key.did)
        damaged, whole, new = [envelope_of(key, key.did, bytes([n])) for n in range(3)]
        for one in (damaged, whole):
            await kept.journal.add_outgoing(one)
        spoil(state, "UPDATE outbox SET wire = 'x' WHERE place = 1")
        earlier = await kept.journal.outgoing()
        told: dict[str, object] = {}
        agent = SessionlessAgent(origins.parse(node.url), kept)
        sent = await agent.submit(
            new,
            deadline_s=10,
            earlier=earlier,
            report=lambda item, answer: told.update({item.eid: answer}),
        )
        assert sent.eid == new.eid
        assert isinstance(told[damaged.eid], CorruptError)
        assert told[whole.eid].relay == sent.relay
        assert await kept.journal.outgoing() == []
        kept.close()
