"""Outcomes that ``send`` could not tell: late ones, those of former lives, and those at a kill."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import sys
import threading
import time
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from relay.client import (
    Agent,
    OutcomeUnknownError,
    OverloadedError,
    SignedEnvelope,
    SupersededError,
    UnknownInboxError,
)
from relay.client.errors import make_error
from relay.client.outbox import outcomes
from relay.client.outbox.sender import Sender
from relay.client.state.journal import Journal
from relay.protocol.envelope import Envelope
from relay.protocol.errors import ErrorCode
from relay.protocol.frames import Rejection, Submit, Submitted
from relay.protocol.ids import Did
from tests.client.agent_process import Identity
from tests.client.scripted_relay import Talk, envelope_of, lying_relay, new_key
from tests.support.nodes import running_node
from tests.support.patience import wait_until, within

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("kill_at_each_line.py")
DAY_S = 24 * 3600
pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def bob(tmp_path) -> Identity:
    return Identity(new_key(), tmp_path / "bob.state")


async def first(me: Agent) -> outcomes.Outcome:
    async with within(10):
        return await anext(me.outcomes())


async def none_is_left(me: Agent) -> None:
    """The file is asked; an iteration would wait."""
    journal = me._parts.state.journal
    assert await journal.next_outcome(0) is None
    assert await journal.outgoing() == []


async def give_up(me: Agent, to: Did | None = None) -> SignedEnvelope:
    with pytest.raises(OutcomeUnknownError) as caught:
        await me.send(to or new_key().did, "slow", deadline_s=0.2)
    return caught.value.envelope


async def keep(who: Identity, envelope: SignedEnvelope) -> None:
    """As a life that ended when it had submitted this and heard nothing."""
    journal = Journal.open(who.state, who.did)
    await journal.add_outgoing(envelope)
    journal.close()


def past(envelope: SignedEnvelope, seconds: int) -> SignedEnvelope:
    expires_at = int(time.time()) - seconds
    return SignedEnvelope(envelope.eid, envelope.id, envelope.to, expires_at, envelope.wire)


class Slow:
    """A relay that answers submits when it is let, each with a receipt."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()

    async def __call__(self, talk: Talk) -> None:
        await talk.log_in()
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    tasks.create_task(self._answer(talk, *await talk.submit()))
        except* ConnectionClosed:
            pass

    async def _answer(self, talk: Talk, frame: Submit, stored: list[Envelope]) -> None:
        await self.let_go.wait()
        await talk.say(Submitted((frame.ref,), talk.receipt(stored)))


# ---------------------------------------------------------------- late


async def test_a_receipt_after_the_deadline_is_read_from_the_outcomes_until_it_is_done(bob):
    slow = Slow()
    async with lying_relay(slow) as relay:
        async with bob.opened(relay.url) as me:
            envelope = await give_up(me)
            slow.let_go.set()
            outcome = await first(me)
            assert (outcome.eid, outcome.id, outcome.to) == (
                envelope.eid,
                envelope.id,
                envelope.to,
            )
            assert (outcome.stored, outcome.code, outcome.error) == ("yes", None, None)
            assert outcome.sent.relay == relay.key.did
            assert outcome.sent.expires_at == outcome.expires_at == envelope.expires_at
            assert (await first(me)).sent == outcome.sent
        async with bob.opened(relay.url) as me:
            again = await first(me)
            assert again.sent == outcome.sent
            await again.done()
            await again.done()
            await none_is_left(me)


async def test_a_refusal_after_a_crash_is_an_outcome_with_its_code_and_its_envelope(bob):
    envelope = envelope_of(bob.key, new_key().did)
    await keep(bob, envelope)
    async with running_node() as node, bob.opened(node.url) as me:
        outcome = await first(me)
        assert outcome.code is ErrorCode.UNKNOWN_INBOX
        # an earlier life may have had it stored at another time: nobody can know
        assert (outcome.stored, outcome.sent) == ("unknown", None)
        assert isinstance(outcome.error, UnknownInboxError)
        assert outcome.error.envelope == envelope
        await outcome.done()
        await none_is_left(me)


@pytest.mark.parametrize("seconds", [1, 3 * DAY_S])
async def test_one_that_expired_unanswered_ends_as_expired_and_unknown(bob, seconds):
    gone = past(envelope_of(bob.key, new_key().did), seconds)
    await keep(bob, gone)
    async with running_node() as node, bob.opened(node.url) as me:
        outcome = await first(me)
        assert (outcome.eid, outcome.code, outcome.stored) == (gone.eid, "expired", "unknown")
        assert outcome.error.envelope == gone
        assert me.unanswered == 0


async def test_one_that_expires_while_no_relay_answers_ends_in_the_same_life(bob):
    async def script(talk: Talk) -> None:
        if talk.number == 1:
            await talk.log_in()
            await talk.submit()

    async with lying_relay(script) as relay, bob.opened(relay.url) as me:
        envelope = me.sign(new_key().did, "short", lifetime_s=1)
        with pytest.raises(OutcomeUnknownError):
            await me.submit(envelope, deadline_s=0.1)
        outcome = await first(me)
        assert (outcome.eid, outcome.code, outcome.stored) == (envelope.eid, "expired", "unknown")
        assert time.time() >= envelope.expires_at
        assert me.unanswered == 0


async def test_what_send_has_told_is_no_outcome(bob):
    async with running_node() as node, bob.opened(node.url) as me:
        await me.send(me.did, "yes")
        with pytest.raises(UnknownInboxError):
            await me.send(new_key().did, "no")
        await none_is_left(me)


async def test_one_that_is_submitted_again_and_answered_then_is_told_once(bob):
    slow = Slow()
    async with lying_relay(slow) as relay, bob.opened(relay.url) as me:
        envelope = await give_up(me)
        slow.let_go.set()
        await first(me)
        assert (await me.submit(envelope)).eid == envelope.eid
        await none_is_left(me)


# ---------------------------------------------------------------- cancelled


async def test_a_send_that_is_cancelled_in_the_moment_of_its_receipt_leaves_an_outcome(bob):
    slow = Slow()
    async with lying_relay(slow) as relay, bob.opened(relay.url) as me:
        envelope = me.sign(new_key().did, "x")
        sending = asyncio.ensure_future(me.submit(envelope))
        await wait_until(lambda: me.unanswered == 1, 10, "the submit")
        answer = me._parts.sender.unanswered[envelope.eid].answer
        answer.add_done_callback(lambda _: sending.cancel())
        slow.let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert (await first(me)).stored == "yes"
        assert me.unanswered == 0


async def test_a_refusal_that_is_cancelled_before_it_is_told_leaves_an_outcome(bob):
    let_go, go_on = asyncio.Event(), threading.Event()

    async def script(talk: Talk) -> None:
        await talk.log_in()
        frame, _ = await talk.submit()
        await talk.until(let_go)
        no = Rejection(frame.ref, 0, ErrorCode.UNKNOWN_INBOX, "no")
        await talk.say(Submitted((frame.ref,), None, (no,)))
        await talk.until_closed()

    async with lying_relay(script) as relay, bob.opened(relay.url) as me:
        disk = me._parts.state.journal._database
        envelope = me.sign(new_key().did, "x")
        sending = asyncio.ensure_future(me.submit(envelope))
        await wait_until(lambda: me.unanswered == 1, 10, "the submit")
        answer = me._parts.sender.unanswered[envelope.eid].answer
        answer.add_done_callback(lambda _: disk.run(lambda _: go_on.wait(10)))
        let_go.set()
        await wait_until(lambda: me.unanswered == 0, 10, "the refusal")
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        go_on.set()
        outcome = await first(me)
        assert (outcome.code, outcome.stored) == ("unknown_inbox", "no")


async def test_a_send_that_is_cancelled_while_it_waits_for_the_ack_leaves_its_receipt(bob):
    async with (
        running_node() as node,
        Agent.open(new_key(), node.url) as carol,
        bob.opened(node.url) as me,
    ):
        sending = asyncio.ensure_future(me.send(carol.did, "x", wait="acked"))
        message = await anext(carol.inbox())
        await wait_until(lambda: me.unanswered == 0, 10, "the receipt")
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        outcome = await first(me)
        assert (outcome.eid, outcome.stored) == (message.eid, "yes")


async def test_closing_while_a_send_waits_for_the_ack_does_not_deny_its_receipt(bob):
    async with running_node() as node, Agent.open(new_key(), node.url) as carol:
        async with bob.opened(node.url) as me:
            sending = asyncio.ensure_future(me.send(carol.did, "x", wait="acked"))
            message = await anext(carol.inbox())
            await wait_until(lambda: me.unanswered == 0, 10, "the receipt")
        async with within(10):
            sent = await sending
        assert (sent.eid, sent.state) == (message.eid, "stored")


# ---------------------------------------------------------------- kill -9


async def test_an_outcome_is_shown_again_after_every_kill_until_it_is_done(bob):
    slow = Slow()
    async with lying_relay(slow) as relay:
        async with bob.alive(relay.url, "give-up", new_key().did, "hello") as agent:
            _, eid = await agent.says()
            assert await agent.says() == ["gave-up", eid]
        slow.let_go.set()
        for _ in range(2):
            async with bob.alive(relay.url, "outcomes") as agent:
                assert await agent.says() == ["outcome", eid, "yes", "None"]
        async with bob.alive(relay.url, "outcomes-done") as agent:
            await agent.says()
            assert await agent.says() == ["done", eid]
        async with bob.opened(relay.url) as me:
            await none_is_left(me)


async def test_a_send_that_waited_for_the_ack_when_it_was_killed_has_an_outcome(bob):
    async with running_node() as node, Agent.open(new_key(), node.url) as carol:
        async with bob.alive(node.url, "send-acked", carol.did, "x"):
            message = await anext(carol.inbox())
        async with bob.alive(node.url, "outcomes") as agent:
            assert await agent.says() == ["outcome", message.eid, "yes", "None"]


async def falls(*words: str) -> int:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAM), *words),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return int(out)


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
async def test_no_line_is_a_bad_one_to_be_killed_at(tmp_path, step):
    async def script(talk: Talk) -> None:
        await talk.log_in()
        await talk.accept()
        await talk.until_closed()

    async with lying_relay(script) as relay:
        lives = await falls(str(step), str(tmp_path), new_key().seed.hex(), relay.url)
    assert lives * step > 150


async def test_without_the_note_the_outcome_is_lost(bob, monkeypatch):
    """Negative control: it is the file that keeps it."""

    def save(me: outcomes.Outcomes, envelope: SignedEnvelope, _: object) -> None:
        me._journal.withdraw_outgoing(envelope.eid)

    monkeypatch.setattr(outcomes.Outcomes, "save", save)
    slow = Slow()
    async with lying_relay(slow) as relay:
        async with bob.opened(relay.url) as me:
            await give_up(me)
            slow.let_go.set()
            await wait_until(lambda: me.unanswered == 0, 10, "the late answer")
        monkeypatch.undo()
        async with bob.opened(relay.url) as me:
            await none_is_left(me)


# ---------------------------------------------------------------- bounds and ends


async def test_over_the_bound_new_sends_are_refused_until_outcomes_are_taken(bob, monkeypatch):
    monkeypatch.setattr(outcomes, "MAX_UNREPORTED", 2)
    slow = Slow()
    async with lying_relay(slow) as relay, bob.opened(relay.url) as me:
        for _ in range(2):
            await give_up(me)
        for _ in range(2):
            with pytest.raises(OverloadedError) as caught:
                await me.send(new_key().did, "too much")
            assert caught.value.stored == "no"
            slow.let_go.set()
            await wait_until(lambda: me.unanswered == 0, 10, "the late answers")
        await (await first(me)).done()
        await me.send(new_key().did, "room")


async def test_another_process_that_takes_outcomes_makes_room(bob, monkeypatch):
    monkeypatch.setattr(outcomes, "MAX_UNREPORTED", 1)
    slow = Slow()
    async with lying_relay(slow) as relay, bob.opened(relay.url) as me:
        await give_up(me)
        slow.let_go.set()
        outcome = await first(me)
        other = Journal.open(bob.state, bob.did)
        assert await other.delete_outcome(outcome.place) == 1
        other.close()
        await me.send(new_key().did, "room")


async def test_without_a_state_file_it_says_that_there_can_be_none():
    async with running_node() as node, Agent.open(new_key(), node.url) as me:
        with pytest.raises(ValueError, match="state="):
            me.outcomes()


async def test_an_iteration_ends_with_the_agent_and_after_what_there_is(bob):
    await keep(bob, past(envelope_of(bob.key, new_key().did), 1))
    async with running_node() as node:
        async with bob.opened(node.url) as me:
            telling = me.outcomes()
            await anext(telling)
            ending = asyncio.ensure_future(anext(telling, None))
            await asyncio.sleep(0)
        assert await ending is None
        assert [one async for one in me.outcomes()] == []
        async with bob.opened(node.url) as me, Agent.open(bob.key, node.url):
            telling = me.outcomes()
            assert (await anext(telling)).code is ErrorCode.EXPIRED
            with pytest.raises(SupersededError):
                await anext(telling)


async def test_two_tasks_in_one_iteration_are_each_told_another_one(bob):
    gone = [past(envelope_of(bob.key, new_key().did), 1) for _ in range(2)]
    for envelope in gone:
        await keep(bob, envelope)
    async with running_node() as node, bob.opened(node.url) as me:
        telling = me.outcomes()
        seen = await asyncio.gather(anext(telling), anext(telling))
        assert {one.eid for one in seen} == {envelope.eid for envelope in gone}
        assert [one.eid for one in sorted(seen, key=lambda one: one.place)] == [
            envelope.eid for envelope in gone
        ]


async def test_a_noted_receipt_is_not_replaced_by_a_later_error_but_an_error_is(bob):
    slow = Slow()
    async with lying_relay(slow) as relay, bob.opened(relay.url) as me:
        await give_up(me)
        slow.let_go.set()
        sent = (await first(me)).sent
    journal = Journal.open(bob.state, bob.did)
    one, other = envelope_of(bob.key, sent.to), envelope_of(bob.key, sent.to)
    same = SignedEnvelope(sent.eid, sent.id, sent.to, sent.expires_at, b"")
    await journal.save_outcome(same, outcomes.expired(same))
    assert (await journal.next_outcome(0)).code is None
    await journal.save_outcome(one, outcomes.expired(one))
    await journal.save_outcome(other, outcomes.expired(other))
    await journal.save_outcome(one, make_error(ErrorCode.BLOCKED, "no", stored="no", envelope=one))
    rows = [await journal.next_outcome(0)]
    while (row := await journal.next_outcome(rows[-1].place)) is not None:
        rows.append(row)
    assert [row.code for row in rows] == [None, "expired", "blocked"]
    journal.close()


async def test_an_outcome_whose_note_is_damaged_is_told_as_corrupt(bob):
    await keep(bob, past(envelope_of(bob.key, new_key().did), 1))
    async with running_node() as node:
        async with bob.opened(node.url) as me:
            await first(me)
        with contextlib.closing(sqlite3.connect(bob.state, isolation_level=None)) as file:
            file.execute("UPDATE outcomes SET answer = '{'")
        async with bob.opened(node.url) as me:
            outcome = await first(me)
            assert (outcome.code, outcome.stored) == (ErrorCode.CORRUPT, "unknown")
            await outcome.done()


async def test_what_cannot_be_noted_stays_in_the_outbox_for_the_next_life(bob):
    slow = Slow()
    async with lying_relay(slow) as relay:
        async with bob.opened(relay.url) as me:
            envelope = await give_up(me)
            disk = me._parts.state.journal._database
            disk.run(lambda file: file.execute("PRAGMA query_only = 1")).result()
            slow.let_go.set()
            await wait_until(lambda: me.unanswered == 0, 10, "the late answer")
        async with bob.opened(relay.url) as me:
            assert (await first(me)).eid == envelope.eid


async def test_resume_is_what_brings_them(bob, monkeypatch):
    """Negative control: without it the outbox is silent."""

    async def nothing(_: Sender) -> None:
        return

    monkeypatch.setattr(Sender, "resume", nothing)
    await keep(bob, past(envelope_of(bob.key, new_key().did), 1))
    async with running_node() as node, bob.opened(node.url) as me:
        assert await me._parts.state.journal.next_outcome(0) is None
