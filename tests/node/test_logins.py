"""What a node says and counts of logins: who and from where, and only of those that hold."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest
from structlog.testing import capture_logs

from relay import clock, metrics
from relay.inbox.login import MAX_LINES_PER_MINUTE, MAX_LINES_PER_NETWORK, RefusedLogins
from relay.inbox.model import conversation
from relay.inbox.model.types import InboxLimits
from relay.protocol import frames, handshake, jws
from relay.protocol.did import SigningKey
from relay.protocol.errors import CLOSE_CODE, ErrorCode, RelayError, error
from relay.protocol.frames import Auth
from relay.protocol.handshake import LoginClaims
from relay.protocol.ids import Did, Timestamp
from relay.reference.memory_store import MemoryStore
from tests.node.test_http import client
from tests.support.nodes import RunningNode, dial, new_key, running_node, speaker
from tests.support.patience import wait_until

pytestmark = pytest.mark.timeout(30)


def auth_of(node: RunningNode, key: SigningKey, *, spoilt: bool = False) -> str:
    """A login with a nonce that the relay never gave; ``spoilt``: nor does its signature hold."""
    here = node.parts
    nonce, cnonce = jws.b64encode(os.urandom(32)), jws.b64encode(os.urandom(32))
    claims = LoginClaims(key.did, Did(here.key.did), here.url, nonce, cnonce, "agent")
    head, payload, signature = handshake.sign_auth(key, claims, Timestamp(time.time())).split(".")
    return ".".join((head, payload, jws.b64encode(os.urandom(64)) if spoilt else signature))


def refused(lines: list[Any]) -> list[tuple[Any, ...]]:
    found = [line for line in lines if line["event"] == "login_refused"]
    return [(line["code"], line["did"], line["proven"], line["address"]) for line in found]


async def test_a_refused_login_is_logged_with_who_and_from_where():
    friend, foe, claimed = new_key(), new_key(), new_key()
    values = {"deny": (foe.did,), "trusted_proxies": ("127.0.0.1",)}
    where = {"additional_headers": {"X-Forwarded-For": "192.0.2.7:5"}}
    with capture_logs() as lines:
        async with running_node(**values) as node:
            async with speaker(node.url, friend):
                pass
            with pytest.raises(RelayError):
                async with speaker(node.url, foe, **where):
                    pass
            for spoilt in (True, False):
                socket = await dial(node.url)
                await socket.recv()
                auth = auth_of(node, claimed, spoilt=spoilt)
                await socket.send(frames.encode(Auth(auth)).decode())
                await socket.wait_closed()
                assert socket.close_code == CLOSE_CODE[ErrorCode.BAD_SIGNATURE]
    assert refused(lines) == [
        ("blocked", foe.did, True, "192.0.2.7"),
        # of these nobody knows who said so
        ("bad_signature", claimed.did, False, "127.0.0.1"),
        ("bad_signature", claimed.did, False, "127.0.0.1"),
    ]
    assert all(line["detail"] for line in lines if line["event"] == "login_refused")


async def test_over_http_it_is_logged_and_counted_as_well():
    key = new_key()
    before = metrics.LOGINS.labels(ErrorCode.AUTH_REQUIRED)._value.get()
    with capture_logs() as lines:
        async with running_node() as node, client(node.url) as http:
            for body in (auth_of(node, key, spoilt=True), auth_of(node, key)):
                answer = await http.post("/v1/session", json={"jws": body})
                assert answer.status_code == 401
    assert refused(lines) == [
        ("bad_signature", key.did, False, "127.0.0.1"),
        ("auth_required", key.did, False, "127.0.0.1"),
    ]
    assert metrics.LOGINS.labels(ErrorCode.AUTH_REQUIRED)._value.get() == before + 1


def test_a_flood_of_refused_logins_is_a_bounded_number_of_lines_and_hides_nobody(monkeypatch):
    now = [1_000.0]
    monkeypatch.setattr(clock, "monotonic", lambda: Timestamp(now[0]))
    logins, why = RefusedLogins(), error(ErrorCode.BAD_SIGNATURE, "x" * 5_000)
    before = metrics.LOGINS.labels(ErrorCode.BAD_SIGNATURE)._value.get()
    with capture_logs() as lines:
        for n in range(500):
            logins.record(why, Auth("no login"), None, f"192.0.2.{n % 250}")
        logins.record(why, Auth("no login"), None, "198.51.100.1")
    assert [line["address"] for line in lines[-2:]] == ["192.0.2.9", "198.51.100.1"]
    assert len(lines) == MAX_LINES_PER_NETWORK + 1
    assert lines[-1]["unsaid"] == 500 - MAX_LINES_PER_NETWORK
    assert lines[-1]["did"] is None
    assert len(lines[-1]["detail"]) == 200
    with capture_logs() as lines:
        for n in range(500):
            logins.record(why, Auth("no login"), None, f"10.0.{n % 250}.1")
    assert len(lines) == MAX_LINES_PER_MINUTE - MAX_LINES_PER_NETWORK - 1
    now[0] += 60
    with capture_logs() as lines:
        logins.record(why, Auth("no login"), None, "192.0.2.1")
    assert lines[0]["unsaid"] == 500 - (MAX_LINES_PER_MINUTE - MAX_LINES_PER_NETWORK - 1)
    assert metrics.LOGINS.labels(ErrorCode.BAD_SIGNATURE)._value.get() == before + 1_002


class GatedStore(MemoryStore):
    """A store that answers a login only when the gate is opened."""

    def __init__(self) -> None:
        super().__init__(InboxLimits(), clock.now)
        self.gate = asyncio.Event()
        self.asked = 0
        self._open, self.inboxes.open = self.inboxes.open, self.open

    async def open(self, request):
        self.asked += 1
        await self.gate.wait()
        return await self._open(request)


async def test_a_login_that_outlasts_its_connection_opens_nothing(monkeypatch):
    monkeypatch.setattr(conversation, "AUTH_DEADLINE_S", 0.2)
    key, store = new_key(), GatedStore()
    before = metrics.LOGINS.labels("ok")._value.get()
    with capture_logs() as lines:
        async with running_node(store) as node:
            with pytest.raises(RelayError) as late:
                async with speaker(node.url, key):
                    pass
            assert late.value.code is ErrorCode.STORAGE_UNAVAILABLE
            assert store.asked == 1
            store.gate.set()
            await wait_until(lambda: refused(lines), 8, "the late login to be over")
            assert node.parts.dispatcher._listeners == {}
            inbox = store.state.inboxes[key.agent_key]
            await wait_until(lambda: inbox.session is None, 8, "its inbox session to be closed")
            assert metrics.LOGINS.labels("ok")._value.get() == before
            assert not [line for line in lines if line["event"] == "session_opened"]
            async with speaker(node.url, key) as again:
                assert again.ready.welcome.inbox
                assert list(node.parts.dispatcher._listeners) == [key.agent_key]
    assert refused(lines) == [("storage_unavailable", key.did, True, "127.0.0.1")]


async def test_the_gauge_of_sessions_counts_those_that_are_logged_in():
    before = metrics.SESSIONS._value.get()

    def logged_in() -> float:
        return metrics.SESSIONS._value.get() - before

    async with running_node() as node:
        silent = await dial(node.url)
        assert logged_in() == 0
        async with speaker(node.url), speaker(node.url):
            assert logged_in() == 2
        await wait_until(lambda: logged_in() == 0, 8, "the sessions to end")
        await silent.close()
        async with speaker(node.url):
            assert logged_in() == 1
    assert logged_in() == 0
