"""A relay that comes back learns first which agents have moved, and hands over what it holds."""

from __future__ import annotations

import asyncio
import contextlib
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from relay import clock, metrics
from relay.client.http import origin as origins
from relay.client.http.relay_api import ApiSession, RelayApi
from relay.client.state import agent_state as states
from relay.directory import startup_gate
from relay.inbox.model.types import InboxLimits
from relay.protocol import envelope as envelopes
from relay.protocol import jws
from relay.protocol.did import SigningKey
from relay.protocol.envelope import SignedEnvelope
from relay.protocol.errors import ErrorCode, RelayError
from relay.protocol.frames import Deliver, Submit, Submitted
from relay.reference.memory_store import MemoryStore
from tests.federation.linked_nodes import (
    Place,
    held,
    places,
    record_of,
    relay_at,
    until,
    until_held,
)
from tests.support.nodes import RunningNode, make_envelope, new_key, speaker

pytestmark = pytest.mark.timeout(60)


def new_store() -> MemoryStore:
    return MemoryStore(InboxLimits(), clock.now)


@dataclass
class World:
    """Two relays whose stores outlive them, and an agent that was at ``a`` and is at ``b`` now."""

    a: Place
    b: Place
    agent: SigningKey = field(default_factory=new_key)
    sender: SigningKey = field(default_factory=new_key)
    at_a: MemoryStore = field(default_factory=new_store)
    at_b: MemoryStore = field(default_factory=new_store)
    waiting: list[SignedEnvelope] = field(default_factory=list)

    def relay_a(self, **values):
        return relay_at(self.a, [self.b], self.at_a, **values)

    def relay_b(self, **values):
        return relay_at(self.b, [self.a], self.at_b, **values)

    async def send(self, node: RunningNode, count: int = 1) -> None:
        """The sender, at ``a``, writes to the agent."""
        made = [make_envelope(self.sender, self.agent.did) for _ in range(count)]
        async with speaker(node.url, self.sender, record=record_of(self.sender, self.a)) as one:
            await one.say(Submit("s", [envelope.wire for envelope in made]))
            assert (await one.hear(Submitted)).receipt
        self.waiting += made

    async def takes_at_b(self, node: RunningNode) -> list[str]:
        """The ids of all that waits, as they come to the agent at its new home."""
        found: list[str] = []
        async with speaker(node.url, self.agent) as one:
            assert one.ready.welcome.inbox
            while len(found) < len(self.waiting):
                frame = await one.hear(Deliver)
                found += [envelopes.parse(item.envelope).id for item in frame.items]
        return found

    def sent(self) -> list[str]:
        return [envelope.id for envelope in self.waiting]


@contextlib.asynccontextmanager
async def logged_in(place: Place, agent: SigningKey, seq: int = 0) -> AsyncIterator[None]:
    async with speaker(place.url, agent, record=record_of(agent, place, seq=seq)) as one:
        assert one.ready.welcome.inbox
        yield


async def moved_while_a_was_offline(count: int = 3) -> World:
    """The agent lived at A, mail waits there, A was killed, the agent went to B, and B stops."""
    world = World(*places(2))
    async with world.relay_a() as node:
        async with logged_in(world.a, world.agent):
            pass
        await world.send(node, count)
    later = int(time.time() * 1000) + 60_000
    async with world.relay_b(), logged_in(world.b, world.agent, seq=later):
        pass
    return world


async def refused_at(url: str, agent: SigningKey) -> ErrorCode:
    with pytest.raises(RelayError) as caught:
        async with speaker(url, agent):
            pass
    return caught.value.code


def ask(url: str, body: object = None) -> tuple[int, object]:
    """GET, or POST a body; return the status and the answer."""
    data = None if body is None else jws.dumps(body)
    head = {"content-type": "application/json"}
    request = urllib.request.Request(url, data, head)  # noqa: S310  our own relay
    try:
        with urllib.request.urlopen(request, timeout=8) as answer:  # noqa: S310
            return answer.status, answer.read()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read()


def value(gauge) -> float:
    return gauge._value.get()


# ---------------------------------------------------------------- the promise


async def test_a_relay_that_comes_back_first_asks_and_then_hands_over(monkeypatch):
    monkeypatch.setattr(startup_gate, "MAX_LOGIN_WAIT_S", 0.2)
    world = await moved_while_a_was_offline()
    async with world.relay_a() as back:
        # nobody can tell: no agent is let in, whatever it brings
        assert await refused_at(back.url, world.agent) is ErrorCode.DRAINING
        assert await refused_at(back.url, new_key()) is ErrorCode.DRAINING
        assert (await asyncio.to_thread(ask, f"{back.admin}/readyz"))[0] == 503
        assert value(metrics.RETURNING) == 1
        # what comes meanwhile is taken, since it follows the agent
        made = make_envelope(world.sender, world.agent.did)
        reply = {"envelopes": [made.wire.decode()]}
        status, _ = await asyncio.to_thread(ask, f"{back.url}/v1/envelopes", reply)
        assert status == 200
        async with world.relay_b() as home:
            await until(lambda: back.parts.startup_gate.is_open)
            assert (await asyncio.to_thread(ask, f"{back.admin}/readyz"))[0] == 200
            async with speaker(back.url, world.agent) as one:
                assert not one.ready.welcome.inbox
                world.waiting = world.waiting[:3]
                assert await world.takes_at_b(home) == world.sent()
                assert not [frame for frame in one.heard if isinstance(frame, Deliver)]


@pytest.mark.breaks(
    "mesh",
    "a relay that returns asks first",
    by="tests/federation/test_startup_gate.py::test_a_relay_that_comes_back_first_asks_and_then_hands_over",
)
async def test_a_relay_that_asked_nobody_would_deliver():
    """The negative control, and what happens where no other relay can be reached."""
    world = await moved_while_a_was_offline(1)
    async with (
        world.relay_a(return_wait_s=0.2) as back,
        speaker(back.url, world.agent) as one,
    ):
        assert one.ready.welcome.inbox
        assert [item.seq for item in (await one.hear(Deliver)).items] == [1]
        assert value(metrics.UNASKED) == 1
        async with world.relay_b() as home:
            # it goes on asking: the first answer ends the session
            assert await one.closed() == 4017
            assert await world.takes_at_b(home) == world.sent()
            await until(lambda: value(metrics.UNASKED) == 0)


async def test_a_login_waits_a_moment_for_the_answer():
    world = await moved_while_a_was_offline(1)
    async with world.relay_a() as back:
        login = asyncio.create_task(inbox_of(back, world.agent))
        async with world.relay_b():
            assert await login is False


async def inbox_of(node: RunningNode, agent: SigningKey) -> bool:
    async with speaker(node.url, agent) as one:
        return one.ready.welcome.inbox


async def test_an_agent_that_brings_its_newest_record_is_believed_before_its_inbox_is_opened():
    world = await moved_while_a_was_offline(1)
    later = int(time.time() * 1000) + 120_000
    record = record_of(world.agent, world.b, seq=later)
    async with world.relay_a(return_wait_s=0.0) as back:
        await until(lambda: back.parts.startup_gate.is_open)
        async with speaker(back.url, world.agent, record=record) as one:
            assert not one.ready.welcome.inbox
        assert await inbox_of(back, world.agent) is False


async def test_a_token_from_before_takes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(startup_gate, "MAX_LOGIN_WAIT_S", 0.2)
    world = World(*places(2))
    async with world.relay_a() as node:
        async with logged_in(world.a, world.agent):
            pass
        await world.send(node)
        with states.opened(tmp_path / "state", world.agent.did) as state:
            session = await RelayApi(origins.parse(node.url)).login(world.agent, state)
    later = int(time.time() * 1000) + 60_000
    async with world.relay_b(), logged_in(world.b, world.agent, seq=later):
        pass
    async with world.relay_a() as back:
        assert await code_of(session.rules()) is ErrorCode.DRAINING
        assert await polled(back, session) == (503, "draining")
        async with world.relay_b() as home:
            await until(lambda: back.parts.startup_gate.is_open)
            assert await polled(back, session) == (410, "moved")
            assert await world.takes_at_b(home) == world.sent()


async def code_of(asking) -> ErrorCode:
    with pytest.raises(RelayError) as caught:
        await asking
    return caught.value.code


async def polled(node: RunningNode, session: ApiSession) -> tuple[int, str]:
    """Return the answer of the inbox to an earlier token."""

    def get() -> tuple[int, str]:
        head = {"authorization": f"Bearer {session.token}"}
        url = f"{node.url}/v1/inbox"
        request = urllib.request.Request(url, headers=head)  # noqa: S310  our own relay
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=8)  # noqa: S310
        with caught.value as exc:
            body = jws.loads(exc.read())
        assert isinstance(body, dict)
        return exc.code, body["error"]

    return await asyncio.to_thread(get)


# ---------------------------------------------------------------- who serves at once


async def test_a_relay_without_peers_or_without_inboxes_serves_at_once():
    (a, b), agent, store = places(2), new_key(), new_store()
    async with relay_at(a, [b]) as fresh:
        assert fresh.parts.startup_gate.is_open
    async with relay_at(a, store=store), logged_in(a, agent):
        pass
    async with relay_at(a, store=store) as alone:
        assert alone.parts.startup_gate.is_open
    async with relay_at(a, [b], store=store, federation="off") as off:
        assert off.parts.startup_gate.is_open
    async with relay_at(a, [b], store=store) as asking:
        assert not asking.parts.startup_gate.is_open


async def test_an_agent_that_has_not_moved_gets_its_inbox_once_a_peer_has_answered():
    a, b = places(2)
    agent, store = new_key(), new_store()
    async with relay_at(b, [a]) as other:
        async with relay_at(a, [b], store) as node, logged_in(a, agent):
            record = await held(node, agent)
            assert record
            await until_held(other, agent, record)
        async with relay_at(a, [b], store) as back:
            assert await inbox_of(back, agent)
            assert value(metrics.UNASKED) == 0


async def test_the_store_goes_back_in_time_under_a_node_that_runs(monkeypatch):
    monkeypatch.setattr(startup_gate, "MAX_LOGIN_WAIT_S", 0.2)
    a, b = places(2)
    agent, store = new_key(), new_store()
    async with relay_at(a, [b], store) as node:
        async with logged_in(a, agent):
            pass
        assert node.parts.startup_gate.is_open
        node.parts.startup_gate.close()
        assert await refused_at(node.url, agent) is ErrorCode.DRAINING
        async with relay_at(b, [a]):
            await until(lambda: node.parts.startup_gate.is_open)
            assert await inbox_of(node, agent)


async def test_a_newer_record_that_came_meanwhile_stays():
    world = await moved_while_a_was_offline(1)
    async with world.relay_a() as back, world.relay_b() as home:
        record = await held(home, world.agent)
        assert record
        await until_held(back, world.agent, record)


async def test_each_node_of_a_relay_asks_for_itself():
    world = await moved_while_a_was_offline(1)
    beside = Place(world.a.key, places(1)[0].port)
    async with (
        world.relay_a(public_url=world.a.url) as one,
        relay_at(beside, [world.b], world.at_a, public_url=world.a.url) as two,
    ):
        gates = [node.parts.startup_gate for node in (one, two)]
        assert not any(gate.is_open for gate in gates)
        async with world.relay_b() as home:
            await until(lambda: all(gate.is_open for gate in gates))
            assert await inbox_of(one, world.agent) is False
            assert await world.takes_at_b(home) == world.sent()
