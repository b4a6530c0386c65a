"""A handle leads to one DID: pinned at the first envelope, never redirected afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from relay.client import Agent, AgentError, HandleChangedError, UnsupportedError
from relay.client.errors import make_error
from relay.client.identity import handles as names
from relay.protocol.errors import ErrorCode
from tests.client.scripted_relay import new_key
from tests.support.nodes import running_node

pytestmark = pytest.mark.timeout(30)

HANDLE = "bob@relay.example"


@dataclass
class Said:
    """What the sources of a handle say, as the test sets it."""

    state: str = "absent"
    did: str | None = None
    why: str = "nobody of that name"


@dataclass
class Names:
    """The forward leg of every handle."""

    said: Said
    asked: int = 0

    async def __call__(self, _: str) -> Said:
        self.asked += 1
        return self.said

    def used_by(self, me: Agent) -> Agent:
        me._parts.handles.lookup = self
        return me


async def test_a_handle_that_its_record_lists_is_sent_to_and_pinned(tmp_path, monkeypatch):
    key, state = new_key(), tmp_path / "state"
    async with running_node() as node, Agent.open(new_key(), node.url) as bob:
        await bob.publish(handles=[HANDLE])
        forward = Names(Said("found", bob.did))
        async with Agent.open(key, node.url, state=state) as me:
            found = await forward.used_by(me).resolve(HANDLE)
            assert (found.did, found.verified) == (bob.did, True)
            await me.send("Bob@Relay.Example", "hello")
            assert (await anext(bob.inbox())).text() == "hello"
        # the next life knows it, too: it is not redirected, and silence changes nothing
        async with Agent.open(key, node.url, state=state) as me:
            forward.used_by(me)
            forward.said = Said("unreadable")
            assert (await me.send(HANDLE, "still")).to == bob.did
            monkeypatch.setattr(names, "RECHECK_S", 0.0)
            forward.said = Said("found", new_key().did)
            with pytest.raises(HandleChangedError) as caught:
                await me.send(HANDLE, "redirected")
            assert caught.value.stored == "no"
            # what is resolved says where it leads now; nothing is pinned by looking
            assert (await me.resolve(HANDLE)).did == forward.said.did


async def test_whose_a_handle_is_now_is_accepted_by_its_did_and_by_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(names, "RECHECK_S", 0.0)
    key, state = new_key(), tmp_path / "state"
    async with (
        running_node() as node,
        Agent.open(new_key(), node.url) as bob,
        Agent.open(new_key(), node.url) as heir,
    ):
        await bob.publish(handles=[HANDLE])
        await heir.publish(handles=[HANDLE])
        forward = Names(Said("found", bob.did))
        async with Agent.open(key, node.url, state=state) as me:
            await forward.used_by(me).send(HANDLE, "hello")
            forward.said = Said("found", heir.did)
            with pytest.raises(HandleChangedError, match="relay accept"):
                await me.send(HANDLE, "redirected")
            handles = me._parts.handles
            with pytest.raises(HandleChangedError):
                await handles.accept(HANDLE, new_key().did)
            with pytest.raises(HandleChangedError):
                await me.send(HANDLE, "still redirected")
            await handles.accept(HANDLE, heir.did)
            assert (await me.send(HANDLE, "accepted")).to == heir.did
        async with Agent.open(key, node.url, state=state) as me:
            assert (await forward.used_by(me).send(HANDLE, "in the next life")).to == heir.did


async def test_a_pinned_handle_is_not_asked_for_at_each_send():
    async with running_node() as node, Agent.open(new_key(), node.url) as bob:
        await bob.publish(handles=[HANDLE])
        forward = Names(Said("found", bob.did))
        async with Agent.open(new_key(), node.url) as me:
            forward.used_by(me)
            for _ in range(5):
                await me.send(HANDLE, "again")
        assert forward.asked == 1


@pytest.mark.parametrize(
    ("said", "code"),
    [(Said("absent"), "unknown_inbox"), (Said("unreadable"), "identity_unavailable")],
)
async def test_a_handle_that_leads_nowhere_is_not_sent_to(said: Said, code: str):
    async with running_node() as node, Agent.open(new_key(), node.url) as me:
        with pytest.raises(AgentError) as caught:
            await Names(said).used_by(me).send(HANDLE, "hello")
        assert (caught.value.code, caught.value.stored) == (code, "no")
        assert (await me.resolve(HANDLE)).state == said.state


async def test_a_handle_that_the_record_does_not_list_is_shown_as_unverified_and_not_sent_to():
    async with (
        running_node() as node,
        Agent.open(new_key(), node.url) as bob,
        Agent.open(new_key(), node.url) as me,
    ):
        found = await Names(Said("found", bob.did)).used_by(me).resolve(HANDLE)
        assert (found.did, found.verified, found.record is not None) == (bob.did, False, True)
        with pytest.raises(AgentError, match="does not list"):
            await me.send(HANDLE, "hello")


async def asks_no_names(_: str) -> Said:
    raise make_error(ErrorCode.UNSUPPORTED, "this agent asks no names; use a DID")


async def test_an_agent_that_asks_no_names_says_so():
    async with running_node() as node, Agent.open(new_key(), node.url) as me:
        me._parts.handles.lookup = asks_no_names
        with pytest.raises(UnsupportedError):
            await me.send(HANDLE, "hello")
        with pytest.raises(ValueError, match="not a DID"):
            await me.send("nonsense", "hello")


async def test_a_name_under_a_real_relay_is_sent_to_without_any_help(tmp_path):
    async with running_node() as node, Agent.open(new_key(), node.url) as bob:
        handle = f"bob@{node.url.removeprefix('http://')}"
        async with Agent.open(new_key(), node.url, state=tmp_path / "state") as me:
            with pytest.raises(AgentError) as caught:
                await me.send(handle, "too early")
            assert caught.value.stored == "no"
            await bob.publish(handles=[handle])
            found = await me.resolve(handle)
            assert (found.did, found.verified) == (bob.did, True)
            assert (await me.send(handle, "by name")).to == bob.did
            assert (await anext(bob.inbox())).text() == "by name"


async def test_a_name_under_a_relay_that_the_own_one_does_not_know_leads_there():
    async with (
        running_node() as own,
        running_node() as far,
        Agent.open(new_key(), far.url) as bob,
        Agent.open(new_key(), own.url) as me,
    ):
        handle = f"bob@{far.url.removeprefix('http://')}"
        await bob.publish(handles=[handle])
        sent = await me.send(handle, "over there")
        assert sent.relay == bob.relay
        assert (await anext(bob.inbox())).text() == "over there"
