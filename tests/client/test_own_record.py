"""The agent's own record: the same at every home, and its seq never goes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sqlite3
import time

import pytest

from relay import clock
from relay.client import (
    Agent,
    NotYetValidError,
    ProtocolError,
    StaleRecordError,
    StorageUnavailableError,
)
from relay.client.directory.own_record import JITTER, RENEW_AFTER_S, OwnRecord, Publication, publish
from relay.client.directory.resolve import resolve_at
from relay.client.http import origin as origins
from relay.client.http import transport
from relay.client.http.origin import Origin
from relay.client.state.agent_state import AgentState
from relay.protocol import endpoint_record, frames
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import EndpointRecord
from relay.protocol.frames import Publish, Published, Resolve, Resolved
from relay.protocol.ids import Timestamp
from tests.cli.terminal import stalling
from tests.client.scripted_relay import Talk, lying_relay, new_key, welcome
from tests.support.nodes import RunningNode, running_node
from tests.support.patience import wait_until

pytestmark = pytest.mark.timeout(40)

NOW = Timestamp(1_800_000_000)
KEY, RELAY, OTHER = new_key(), new_key(), new_key()
URL, OTHER_URL = "https://one.example", "https://two.example"


async def with_handle(key: SigningKey, here: Origin, handle: str) -> Publication:
    return await OwnRecord(key, AgentState()).publish_at(here, change=lambda _: (handle,))


async def held_by(node: RunningNode, did: str) -> EndpointRecord | None:
    return (await resolve_at(origins.parse(node.url), did)).record


async def test_every_home_holds_the_same_record_and_its_handles(tmp_path):
    async with (
        running_node() as one,
        running_node() as two,
        Agent.open(new_key(), [one.url, two.url], state=tmp_path / "state") as me,
    ):
        record = await me.publish(handles=["me@relay.example"])
        for node in (one, two):
            assert await held_by(node, me.did) == record
        assert record.handles == ("me@relay.example",)
        assert (await me.publish()).handles == record.handles
        assert (await me.publish(handles=[])).handles == ()
        with pytest.raises(ProtocolError):
            await me.publish(handles=["x" * 600])
        assert me._parts.own_record.newest.handles == ()


@pytest.mark.parametrize("is_lost", [True, False])
async def test_an_agent_restored_from_an_old_backup_goes_above_all_that_it_signed(
    tmp_path, is_lost
):
    key, state, backup = new_key(), tmp_path / "state", tmp_path / "backup"
    async with running_node() as one, running_node() as two:
        relays = [one.url, two.url]
        async with Agent.open(key, relays, state=state):
            pass
        shutil.copy(state, backup)
        async with Agent.open(key, relays, state=state) as me:
            newest = await me.publish(handles=["me@relay.example"])
        restored = tmp_path / "fresh" if is_lost else backup
        async with Agent.open(key, relays, state=restored) as me:
            # what it did not sign in this life is kept: its homes and handles go on
            assert me._parts.own_record.newest == newest
            record = await me.publish()
            assert record.seq > newest.seq
            assert (record.handles, record.relays) == (newest.handles, newest.relays)


async def test_nothing_is_signed_before_each_relay_was_asked(tmp_path):
    key = new_key()
    async with running_node() as one, running_node() as two:
        async with Agent.open(key, two.url, state=tmp_path / "state") as me:
            newest = await me.publish(handles=["me@relay.example"])
        # the first relay knows nothing of this agent, and this life remembers nothing
        async with Agent.open(key, [one.url, two.url], state=tmp_path / "fresh") as me:
            record = me._parts.own_record.newest
            assert record.seq > newest.seq
            assert record.handles == newest.handles
            assert {home.url for home in record.relays} == {one.url, two.url}


async def test_a_second_copy_of_the_agent_is_told_of_and_gone_above():
    async def script(talk: Talk) -> None:
        await talk.log_in()
        while True:
            frame = frames.parse(await talk.socket.recv(decode=False), "agent")
            if isinstance(frame, Resolve):
                await talk.say(Resolved(frame.ref, "absent"))
            elif isinstance(frame, Publish):
                published.append(endpoint_record.parse(frame.record))
                is_first = len(published) == 1
                forked = _forked(published[0], talk.relay.url) if is_first else None
                await talk.say(Published(frame.ref, not is_first, 1, published[-1].seq, forked))

    def _forked(mine: EndpointRecord, url: str) -> str:
        """Another record of the same seq that wins."""
        for n in range(1000):
            home = endpoint_record.Home(relay.key.did, url, n)
            at = Timestamp(mine.seq / 1000)
            other = endpoint_record.parse(
                endpoint_record.sign(key, [home], now=at, newest_seq=mine.seq - 1)
            )
            if other.version > mine.version and other.seq == mine.seq:
                return other.jws.compact
        raise AssertionError("a coin that falls on one side a thousand times")

    key, published = new_key(), []
    async with lying_relay(script) as relay, Agent.open(key, relay.url) as me:
        [warning] = me.warnings
        assert isinstance(warning, StaleRecordError)
        record = await me.publish()
        assert record.seq > published[0].seq


@pytest.mark.parametrize("has_inbox", [True, False])
async def test_a_relay_that_cannot_ask_others_keeps_nobody_out_who_has_an_inbox_there(has_inbox):
    async def script(talk: Talk) -> None:
        said = welcome() if has_inbox else welcome(inbox=False, session=None, epoch=None)
        await talk.log_in(said=said)
        while True:
            frame = frames.parse(await talk.socket.recv(decode=False), "agent")
            if isinstance(frame, Resolve):
                await talk.say(Resolved(frame.ref, "unreadable"))
            elif isinstance(frame, Publish):
                await talk.say(Published(frame.ref, stored=True, kv=1, seq=1))

    async with lying_relay(script) as relay:
        opening = Agent.open(new_key(), relay.url, open_timeout_s=1.5)
        if has_inbox:
            async with opening as me:
                assert me._parts.own_record.is_home(relay.key.did)
        else:
            # nobody knows where it lives: signing now could take it away from there
            with pytest.raises(StorageUnavailableError):
                await opening.__aenter__()


async def test_no_relay_sees_a_record_that_a_crash_could_make_forgotten(tmp_path):
    state = tmp_path / "state"
    async with running_node() as node, Agent.open(new_key(), node.url, state=state) as me:
        before = await held_by(node, me.did)
        with contextlib.closing(sqlite3.connect(state, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            publishing = asyncio.ensure_future(me.publish(handles=["me@relay.example"]))
            done, _ = await asyncio.wait([publishing], timeout=0.5)
            assert not done
            assert await held_by(node, me.did) == before
            other.execute("ROLLBACK")
        record = await publishing
        assert await held_by(node, me.did) == record != before


async def test_what_another_program_of_the_agent_has_published_is_kept_by_a_renewal(
    tmp_path, monkeypatch
):
    key = new_key()
    async with running_node() as node:
        here = origins.parse(node.url)
        async with Agent.open(key, node.url, state=tmp_path / "state") as me:
            await with_handle(key, here, "me@relay.example")
            record = await me.publish()
            assert record.handles == ("me@relay.example",)
        monkeypatch.setattr("relay.client.directory.own_record.RENEW_AFTER_S", 0.2)
        monkeypatch.setattr(OwnRecord, "renew_in", lambda *_: 0.2)
        async with Agent.open(key, node.url, state=tmp_path / "state") as me:
            done = await with_handle(key, here, "other@relay.example")

            def is_renewed() -> bool:
                newest = me._parts.own_record.newest
                return newest is not None and newest.seq > done.record.seq

            await wait_until(is_renewed, 10, "the next renewal")
            assert me._parts.own_record.newest.handles == ("other@relay.example",)


async def test_a_newer_record_that_only_another_home_holds_is_gone_above(tmp_path):
    key = new_key()
    async with running_node() as one, running_node() as two:
        relays = [one.url, two.url]
        async with Agent.open(key, relays, state=tmp_path / "state") as me:
            homes = me._parts.own_record.newest.relays
        ahead = endpoint_record.sign(key, homes, now=Timestamp(time.time() + 60))
        body = {"record": ahead}
        await transport.request_json(
            origins.parse(two.url), "PUT", f"/v1/agents/{key.did}", body=body
        )
        done = await OwnRecord(key, AgentState()).publish_at(origins.parse(one.url))
        assert done.missed == ()
        assert done.record.seq > endpoint_record.parse(ahead).seq
        for node in (one, two):
            assert await held_by(node, key.did) == done.record


@pytest.mark.parametrize("ahead_s", [500, 800])
async def test_after_clocks_were_set_back_the_next_record_is_above_the_one_held(
    ahead_s: float, monkeypatch
):
    key = new_key()
    async with running_node() as node:
        here = origins.parse(node.url)
        with monkeypatch.context() as ahead:
            ahead.setattr(clock, "now", lambda: Timestamp(time.time() + ahead_s))
            first = (await with_handle(key, here, "me@r.example")).record
        # of another agent it would not be taken before its time
        assert (await resolve_at(here, key.did)).state == "unreadable"
        done = await OwnRecord(key, AgentState()).publish_at(here)
        assert done.record.seq > first.seq
        assert done.record.handles == first.handles
        assert (await resolve_at(here, key.did, is_own=True)).record == done.record


async def test_where_no_relay_could_take_the_next_record_yet_the_error_names_the_clocks(
    monkeypatch,
):
    key = new_key()
    async with running_node() as node:
        here = origins.parse(node.url)
        with monkeypatch.context() as ahead:
            ahead.setattr(clock, "now", lambda: Timestamp(time.time() + 1500))
            await OwnRecord(key, AgentState()).publish_at(here)
        with pytest.raises(NotYetValidError, match="clock"):
            await OwnRecord(key, AgentState()).publish_at(here)


@pytest.mark.parametrize("signer", ["the agent", "a liar"])
async def test_a_relay_cannot_put_words_into_the_next_record(signer: str):
    mine = endpoint_record.parse(
        endpoint_record.sign(KEY, [endpoint_record.Home(RELAY.did, URL)], now=clock.now())
    )
    # further ahead than another agent's record may be: a clock was set back
    at = Timestamp(time.time() + 600)
    newer = endpoint_record.sign(KEY, [endpoint_record.Home(OTHER.did, OTHER_URL)], now=at)
    if signer == "a liar":
        head, payload, _ = newer.split(".")
        newer = ".".join((head, payload, mine.jws.compact.rpartition(".")[2]))
    answer = json.dumps({"stored": False, "kv": 1, "seq": 1, "record": newer}).encode()
    async with stalling(answer) as relay:
        relay.go.set()
        giving = publish(origins.parse(relay.url), mine)
        if signer == "the agent":
            assert await giving == endpoint_record.parse(newer)
        else:
            with pytest.raises(ProtocolError):
                await giving


# ---------------------------------------------------------------- by itself


def homes(share: float = 0.0, **values) -> OwnRecord:
    made = OwnRecord(KEY, AgentState(**values), [URL], share, lambda _: None)
    made.add_relay(RELAY.did, URL)
    return made


def test_a_record_is_renewed_at_half_its_life_and_a_little_earlier():
    for share in (0.0, 0.5, 1.0):
        kept = homes(share)
        first = kept.next_record(RELAY.did, NOW)
        kept.add_published(RELAY.did, first, Published("", stored=True, kv=1, seq=1))
        assert kept.next_record(RELAY.did, NOW) is None
        due = kept.renew_in(NOW)
        assert due == RENEW_AFTER_S * (1 - JITTER * share)
        assert kept.next_record(RELAY.did, Timestamp(NOW + due - 1)) is None
        second = endpoint_record.parse(kept.next_record(RELAY.did, Timestamp(NOW + due + 1)))
        assert second.seq > endpoint_record.parse(first).seq


def test_a_clock_that_was_set_back_does_not_set_the_seq_back():
    kept = homes()
    first = endpoint_record.parse(kept.next_record(RELAY.did, NOW))
    kept.set_handles(None, Timestamp(NOW - 1000))
    assert kept.newest.seq == first.seq + 1


def test_a_relay_that_takes_no_record_and_has_none_newer_is_not_believed():
    kept = homes()
    first = kept.next_record(RELAY.did, NOW)
    older = endpoint_record.sign(
        KEY, [endpoint_record.Home(RELAY.did, URL)], now=Timestamp(NOW - 100)
    )
    strange = endpoint_record.sign(
        OTHER, [endpoint_record.Home(RELAY.did, URL)], now=Timestamp(NOW + 100)
    )
    for held in (None, older, strange):
        with pytest.raises(Exception, match=r"none newer|not a|another agent|bad_frame"):
            kept.add_published(
                RELAY.did, first, Published("", stored=False, kv=1, seq=1, record=held)
            )
    assert kept.newest.jws.compact == first
