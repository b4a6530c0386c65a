"""Whatever fails, the SDK raises what it documents, and nothing of another library's.

Every public call is listed here, by introspection: one that is new fails until it has a case.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from relay.client import Agent, accept, sync
from relay.client.directory import own_record, resolve
from relay.client.directory.own_record import OwnRecord
from relay.client.http import origin as origins
from relay.client.http import transport
from relay.client.http.relay_api import RelayApi
from relay.client.identity import handles
from relay.client.session import connection
from relay.client.sessionless import SessionlessAgent
from relay.client.state.agent_state import in_memory
from relay.protocol import endpoint_record
from relay.protocol.client_session import LoginOptions
from relay.protocol.endpoint_record import Home
from relay.protocol.frames import Submit
from tests.client.documented_errors import complaints
from tests.client.network_failures import FAILURES, World
from tests.client.scripted_relay import envelope_of, new_key

pytestmark = pytest.mark.timeout(40)

SHORT_S = 0.3
"""For each wait of the SDK; a test must not wait as long as a program does."""


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    for name in ("REQUEST_TIMEOUT_S", "MIN_TIMEOUT_S"):
        monkeypatch.setattr(transport, name, SHORT_S)
    for name in ("CONNECT_S", "LOGIN_S", "CLOSE_S"):
        monkeypatch.setattr(connection, name, SHORT_S)
    for name in ("HTTP", "HTTPS", "SOCKS", "ALL", "NO"):
        monkeypatch.delenv(f"{name}_PROXY", raising=False)
        monkeypatch.delenv(f"{name}_proxy".lower(), raising=False)
    return World(monkeypatch, tmp_path)


def public(module: ModuleType | type) -> set[str]:
    """Its public calls that wait for the network: coroutines, and blocks that are entered."""
    found = inspect.getmembers(module, inspect.isfunction)
    return {
        f"{module.__name__.rpartition('.')[2]}.{name}"
        for name, one in found
        if one.__module__ in {module.__name__, module.__dict__.get("__module__")}
        and not name.startswith("_")
        and (inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(inspect.unwrap(one)))
    }


# ---------------------------------------------------------------- before there is a login


async def _open(url: str) -> None:
    async with Agent.open(new_key(), url, open_timeout_s=SHORT_S):
        raise AssertionError("it opened")


async def _open_sync(url: str) -> None:
    def program() -> None:
        with sync.Agent.open(new_key(), url, open_timeout_s=SHORT_S):
            raise AssertionError("it opened")

    await asyncio.to_thread(program)


async def _dial(url: str) -> None:
    origin = origins.parse(url)
    async with connection.dial(origin, new_key(), LoginOptions(str(origin))):
        raise AssertionError("it logged in")


async def _post(url: str) -> None:
    agent = SessionlessAgent(origins.parse(url), in_memory())
    await agent.submit(envelope_of(new_key(), new_key().did), deadline_s=SHORT_S)


async def _publish(url: str) -> None:
    key = new_key()
    record = endpoint_record.sign(key, [Home(new_key().did, "https://relay.test")], now=1.8e9)
    await own_record.publish(origins.parse(url), endpoint_record.parse(record))


async def _forward(url: str) -> None:
    await handles.lookup(f"name@{url.partition('://')[2]}", is_local=True)


def _request() -> transport.HttpRequest:
    return transport.HttpRequest("GET", "/")


def _submit() -> Submit:
    return Submit("r", (envelope_of(new_key(), new_key().did).wire,))


AT: dict[str, Callable[[str], Awaitable[Any]]] = {
    "Agent.open": _open,
    "sync.Agent.open": _open_sync,
    "connection.dial": _dial,
    "transport.request_json": lambda url: transport.request_json(origins.parse(url), "GET", "/"),
    "transport.certificate_expiry": lambda url: transport.certificate_expiry(
        origins.parse(url), SHORT_S
    ),
    "transport.request": lambda url: transport.request(origins.parse(url), _request(), SHORT_S),
    "accept.accept": lambda url: accept.accept(
        new_key(), origins.parse(url), new_key().did, in_memory()
    ),
    "accept.accept_relay": lambda url: accept.accept_relay(new_key(), url, new_key().did),
    "sync.accept_relay": lambda url: asyncio.to_thread(
        sync.accept_relay, new_key(), url, new_key().did
    ),
    "handles.lookup": _forward,
    "own_record.home_at": lambda url: own_record.home_at(origins.parse(url), in_memory()),
    "own_record.publish": _publish,
    "OwnRecord.publish_at": lambda url: OwnRecord(new_key(), in_memory()).publish_at(
        origins.parse(url)
    ),
    "OwnRecord.refresh_from": lambda url: OwnRecord(new_key(), in_memory()).refresh_from(
        origins.parse(url)
    ),
    "SessionlessAgent.login_at_holder": lambda url: SessionlessAgent(
        origins.parse(url), in_memory()
    ).login_at_holder(new_key(), new_key().did, "id"),
    "SessionlessAgent.resolve": lambda url: SessionlessAgent(
        origins.parse(url), in_memory()
    ).resolve(new_key().did),
    "SessionlessAgent.submit": _post,
    "resolve.resolve_at": lambda url: resolve.resolve_at(origins.parse(url), new_key().did),
    "RelayApi.info": lambda url: RelayApi(origins.parse(url)).info(),
    "RelayApi.login": lambda url: RelayApi(origins.parse(url)).login(new_key(), in_memory()),
    "RelayApi.publish": lambda url: RelayApi(origins.parse(url)).publish(new_key().did, "record"),
    "RelayApi.resolve": lambda url: RelayApi(origins.parse(url)).resolve(new_key().did),
    "RelayApi.submit": lambda url: RelayApi(origins.parse(url), SHORT_S).submit(_submit()),
}
"""What is asked of a relay with which nobody converses yet."""


def test_every_call_that_reaches_for_a_relay_has_a_case():
    modules = (
        accept, connection, transport, RelayApi, handles, own_record, OwnRecord, resolve,
        SessionlessAgent,
    )  # fmt: skip
    found: Iterable[set[str]] = map(public, modules)
    assert set(AT) == {"Agent.open", "sync.Agent.open", "sync.accept_relay"}.union(*found)


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_relay_that_cannot_be_reached_is_a_documented_error(world, failure):
    async with FAILURES[failure](world) as url:
        assert await complaints({name: call(url) for name, call in AT.items()}) == {}
