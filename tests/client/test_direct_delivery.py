"""Where the own relay does not carry an envelope on: straight to the recipient's home."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from relay.client import Agent, AgentError, OutcomeUnknownError, UnknownInboxError
from relay.client.http import origin as origins
from relay.client.outbox import direct
from relay.client.parts import AgentParts
from relay.client.state import agent_state as states
from relay.protocol import endpoint_record, frames
from relay.protocol import envelope as envelopes
from relay.protocol.did import SigningKey
from relay.protocol.errors import ErrorCode
from relay.protocol.frames import (
    Publish,
    Published,
    Rejection,
    Resolve,
    Resolved,
    Submit,
    Submitted,
)
from relay.protocol.ids import Timestamp
from tests.cli.terminal import stalling
from tests.client.scripted_relay import LyingRelay, Script, Talk, lying_relay, new_key
from tests.support.nodes import RunningNode, running_node
from tests.support.patience import wait_until
from tests.support.ports import free_port

pytestmark = pytest.mark.timeout(40)


def record_of(key: SigningKey, url: str, relay: SigningKey) -> str:
    return endpoint_record.sign(
        key, [endpoint_record.Home(relay.did, url)], now=Timestamp(time.time())
    )


def refuses(code: ErrorCode, *, shown: str | None = None, with_no: str | None = None) -> Script:
    """A relay that keeps nothing; ``shown`` is the record that it resolves, ``with_no`` rejects."""

    async def script(talk: Talk) -> None:
        await talk.log_in()
        with contextlib.suppress(Exception):
            while True:
                frame = frames.parse(await talk.socket.recv(decode=False), "agent")
                talk.relay.heard.append(frame)
                await answer(talk, frame)

    async def answer(talk: Talk, frame: object) -> None:
        match frame:
            case Resolve(did=did):
                is_asked = shown is not None and endpoint_record.parse(shown).did == did
                found = Resolved(frame.ref, "found", shown)
                await talk.say(found if is_asked else Resolved(frame.ref, "absent"))
            case Publish():
                await talk.say(Published(frame.ref, stored=True, kv=1, seq=1))
            case Submit():
                no = [
                    Rejection(frame.ref, i, code, "no", record=with_no)
                    for i in range(len(frame.envelopes))
                ]
                await talk.say(Submitted((frame.ref,), None, tuple(no)))

    return script


@contextlib.asynccontextmanager
async def bob_at_home() -> AsyncIterator[tuple[RunningNode, Agent]]:
    async with running_node() as node, Agent.open(new_key(), node.url) as bob:
        yield node, bob


def relay_key(node: RunningNode) -> SigningKey:
    return node.parts.key


async def take(bob: Agent) -> str:
    async with asyncio.timeout(5):
        message = await anext(bob.inbox())
    await message.ack()
    return message.text()


@pytest.mark.parametrize(
    "code",
    [
        ErrorCode.NOT_FEDERATED,
        ErrorCode.NO_RELAYING,
        ErrorCode.UNKNOWN_INBOX,
        ErrorCode.PEER_UNREACHABLE,
    ],
)
async def test_what_the_own_relay_does_not_carry_goes_to_the_recipients_home(code: ErrorCode):
    async with bob_at_home() as (node, bob):
        shown = record_of(bob._parts.key, node.url, relay_key(node))
        async with (
            lying_relay(refuses(code, shown=shown)) as own,
            Agent.open(new_key(), own.url) as alice,
        ):
            sent = await alice.send(bob.did, "direct")
            assert sent.relay == relay_key(node).did
            assert sent.custody == "inbox"
            assert await take(bob) == "direct"


async def test_a_record_that_comes_with_moved_is_enough():
    async with bob_at_home() as (node, bob):
        record = record_of(bob._parts.key, node.url, relay_key(node))
        script = refuses(ErrorCode.MOVED, with_no=record)
        async with lying_relay(script) as own, Agent.open(new_key(), own.url) as alice:
            assert (await alice.send(bob.did, "moved")).relay == relay_key(node).did
            assert await take(bob) == "moved"


async def test_a_record_that_the_recipient_did_not_sign_leads_nowhere():
    async with bob_at_home() as (node, bob):
        forged = record_of(new_key(), node.url, relay_key(node))
        script = refuses(ErrorCode.UNKNOWN_INBOX, shown=forged, with_no=forged)
        async with lying_relay(script) as own, Agent.open(new_key(), own.url) as alice:
            with pytest.raises(UnknownInboxError) as caught:
                await alice.send(bob.did, "lost")
            assert caught.value.stored == "no"


async def test_a_receipt_of_another_relay_than_the_record_names_is_none():
    async with bob_at_home() as (node, bob):
        shown = record_of(bob._parts.key, node.url, new_key())
        script = refuses(ErrorCode.UNKNOWN_INBOX, shown=shown)
        async with lying_relay(script) as own, Agent.open(new_key(), own.url) as alice:
            with pytest.raises(OutcomeUnknownError):
                await alice.send(bob.did, "somewhere", deadline_s=1.5)


async def test_a_home_that_nobody_answers_for_is_tried_until_the_deadline_and_it_is_a_no():
    bob = new_key()
    shown = record_of(bob, f"http://127.0.0.1:{free_port()}", new_key())
    script = refuses(ErrorCode.UNKNOWN_INBOX, shown=shown)
    async with lying_relay(script) as own, Agent.open(new_key(), own.url) as alice:
        with pytest.raises(AgentError) as caught:
            await alice.send(bob.did, "nobody", deadline_s=1.5)
        assert caught.value.stored == "no"


async def stored_by(talk: Talk, shown: str) -> None:
    """An own relay that keeps all, and resolves one record."""
    await talk.log_in()
    with contextlib.suppress(Exception):
        while True:
            frame = frames.parse(await talk.socket.recv(decode=False), "agent")
            talk.relay.heard.append(frame)
            if isinstance(frame, Resolve):
                is_own = frame.did != endpoint_record.parse(shown).did
                found = Resolved(frame.ref, "found", shown)
                await talk.say(Resolved(frame.ref, "absent") if is_own else found)
            elif isinstance(frame, Publish):
                await talk.say(Published(frame.ref, stored=True, kv=1, seq=1))
            elif isinstance(frame, Submit):
                stored = [envelopes.parse(item) for item in frame.envelopes]
                await talk.say(Submitted((frame.ref,), talk.receipt(stored)))


def has_resolved(relay: LyingRelay, did: str) -> bool:
    return any(isinstance(frame, Resolve) and frame.did == did for frame in relay.heard)


async def test_with_the_own_relay_gone_what_was_found_before_leads_to_the_recipient(tmp_path):
    async with bob_at_home() as (node, bob):
        shown = record_of(bob._parts.key, node.url, relay_key(node))

        async def script(talk: Talk) -> None:
            if not gone:
                await stored_by(talk, shown)

        gone: list[bool] = []
        async with (
            lying_relay(script) as own,
            Agent.open(new_key(), own.url, state=tmp_path / "state") as alice,
        ):
            await alice.send(bob.did, "kept by the own relay")
            await wait_until(lambda: has_resolved(own, bob.did), 5, "the record was looked for")
            gone.append(True)
            await alice._parts.pool.active.connection._socket.close()
            began = time.monotonic()
            sent = await alice.send(bob.did, "with the own relay gone")
            assert sent.relay == relay_key(node).did
            assert time.monotonic() - began < 10
            assert await take(bob) == "with the own relay gone"


async def test_what_went_straight_to_the_home_is_followed_there_and_opens_no_inbox():
    async with bob_at_home() as (node, bob):
        shown = record_of(bob._parts.key, node.url, relay_key(node))
        script = refuses(ErrorCode.UNKNOWN_INBOX, shown=shown)
        async with lying_relay(script) as own, Agent.open(new_key(), own.url) as alice:
            serving = asyncio.ensure_future(take(bob))
            sent = await alice.send(bob.did, "acked there", wait="acked")
            assert (sent.relay, sent.state) == (relay_key(node).did, "acked")
            assert await serving == "acked there"
            # no inbox of alice there: bob's own relay does not take it, and hers speaks no HTTP
            with pytest.raises(OutcomeUnknownError):
                await bob.send(alice.did, "here?", deadline_s=1)


@pytest.mark.parametrize(
    ("own", "found", "is_dialled"),
    [
        ("https://relay.example", "https://other.example", True),
        ("https://relay.example", "http://127.0.0.1:6379", False),
        ("https://relay.example", "https://192.168.0.1", False),
        ("https://relay.example", "http://other.example", False),
        ("http://127.0.0.1:8080", "http://127.0.0.1:6379", True),
    ],
)
async def test_a_strangers_record_does_not_make_an_agent_call_inside(own, found, is_dialled):
    parts = AgentParts(new_key(), [origins.parse(own)], states.in_memory())
    assert (parts.direct.dialable(found) is not None) == is_dialled


@pytest.mark.parametrize("host", ["a..b", "x" * 70 + ".example", "-", "a.", "1.2.3"])
async def test_a_home_whose_name_is_none_costs_its_own_agent_the_mail_and_nobody_else(host: str):
    bob = new_key()
    shown = record_of(bob, f"https://{host}:1", new_key())
    script = refuses(ErrorCode.UNKNOWN_INBOX, shown=shown)
    async with lying_relay(script) as own, Agent.open(new_key(), own.url) as alice:
        for _ in range(2):
            with pytest.raises(AgentError):
                await alice.send(bob.did, "x", deadline_s=1.0)
        assert alice.is_connected


async def test_a_record_that_names_a_false_relay_at_an_address_costs_the_true_one_nothing(
    monkeypatch,
):
    monkeypatch.setattr(direct, "MIN_BREAK_S", 10_000.0)
    monkeypatch.setattr(direct, "MAX_BREAK_S", 10_000.0)
    async with bob_at_home() as (node, bob):
        mallory = new_key()
        shown = {
            mallory.did: record_of(mallory, node.url, new_key()),
            bob.did: record_of(bob._parts.key, node.url, relay_key(node)),
        }

        async def script(talk: Talk) -> None:
            await talk.log_in()
            with contextlib.suppress(Exception):
                while True:
                    frame = frames.parse(await talk.socket.recv(decode=False), "agent")
                    if isinstance(frame, Resolve) and frame.did in shown:
                        await talk.say(Resolved(frame.ref, "found", shown[frame.did]))
                    elif isinstance(frame, Resolve):
                        await talk.say(Resolved(frame.ref, "absent"))
                    elif isinstance(frame, Publish):
                        await talk.say(Published(frame.ref, stored=True, kv=1, seq=1))
                    elif isinstance(frame, Submit):
                        no = Rejection(frame.ref, 0, ErrorCode.NO_RELAYING, "no")
                        await talk.say(Submitted((frame.ref,), None, (no,)))

        async with (
            Agent.open(mallory, node.url),
            lying_relay(script) as own,
            Agent.open(new_key(), own.url) as alice,
        ):
            with pytest.raises(AgentError):
                await alice.send(mallory.did, "x", deadline_s=1.0)
            assert (await alice.send(bob.did, "y", deadline_s=5.0)).relay == relay_key(node).did


async def test_a_relay_of_ours_that_cannot_now_does_not_keep_others_from_being_asked():
    async with bob_at_home() as (node, bob):
        shown = record_of(bob._parts.key, node.url, relay_key(node))
        script = refuses(ErrorCode.STORAGE_UNAVAILABLE, shown=shown)
        async with lying_relay(script) as own, Agent.open(new_key(), own.url) as alice:
            sent = await alice.send(bob.did, "direct", deadline_s=8)
            assert sent.relay == relay_key(node).did


async def test_a_home_that_cannot_now_does_not_keep_the_next_one_from_being_asked():
    busy = b'{"error":"storage_unavailable","detail":"not now","retry_after":30}'
    async with bob_at_home() as (node, bob), stalling(busy) as first:
        first.go.set()
        homes = [
            endpoint_record.Home(new_key().did, first.url, 0),
            endpoint_record.Home(relay_key(node).did, node.url, 1),
        ]
        shown = endpoint_record.sign(bob._parts.key, homes, now=Timestamp(time.time()))
        script = refuses(ErrorCode.NO_RELAYING, shown=shown)
        async with lying_relay(script) as own, Agent.open(new_key(), own.url) as alice:
            sent = await alice.send(bob.did, "direct", deadline_s=5)
            assert sent.relay == relay_key(node).did
