"""Handles of anybody, asked through the dialer: real web servers, TLS and DNS answers."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, Self

import pytest

from relay.directory.remote_handles import (
    ABSENT_S,
    FOUND_S,
    MAX_ASKED,
    UNREACHABLE_HOST_S,
    RemoteHandles,
)
from relay.limits import BoundedTtl
from relay.peering.dialer import Dialer
from relay.protocol import handles
from relay.protocol.handles import LookupResult
from tests.federation.loopback_servers import HERE, Authority, Table, Web, said, web
from tests.support.patience import wait_until
from tests.unit.builders import ALICE, BOB

HOST = "agent.example"
TEXT = {f"_agent.{HOST}": [f"did={ALICE.did}"]}


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Fixed(Dialer):
    """Dials 443 where a test listens on a port of its own."""

    port = 0

    async def get(self, url: str, *, accept: str = "*/*") -> Any:
        here = url.replace(f"https://{HOST}/", f"https://{HOST}:{self.port}/")
        return await super().get(here, accept=accept)


class Stage:
    """A host with a web server, and a naming that asks it."""

    def __init__(self, answer: bytes | Callable[[bytes], bytes], texts: Any = None) -> None:
        self.table = Table({HOST: [HERE]}, texts)
        self.clock = Clock()
        self.authority = Authority()
        self._answer = answer
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        tls: ssl.SSLContext = self.authority.server(HOST)
        self.site: Web = await self._stack.enter_async_context(web(self._answer, tls=tls))
        dialer = Fixed([f"{HERE}/32"], self.table, tls=self.authority.client())
        dialer.port = self.site.port
        self.naming = RemoteHandles(dialer, monotonic=self.clock)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def resolve(self, text: str = HOST) -> LookupResult:
        return await self.naming.resolve(handles.parse(text))


def jrd(did: str) -> bytes:
    body = b'{"subject":"acct:a@x","links":[{"rel":"self","href":"%s"}]}' % did.encode()
    return said(body, "application/jrd+json")


NONE = said(b"", status="404 Not Found")


@pytest.mark.parametrize(
    ("web_says", "dns_says", "wanted"),
    [
        (said(ALICE.did.encode()), None, "found"),
        (said(ALICE.did.encode()), TEXT, "found"),
        (NONE, TEXT, "found"),
        (said(b"", status="500 Oh"), TEXT, "found"),
        (said(BOB.did.encode()), TEXT, "unreadable"),
        (NONE, None, "absent"),
        (said(b"", status="500 Oh"), None, "unreadable"),
        (said(b"<html>"), None, "unreadable"),
        (said(b"", "text/plain", "302 Found", "Location: /x"), None, "unreadable"),
        (NONE, {f"_agent.{HOST}": [f"did={ALICE.did}", f"did={BOB.did}"]}, "unreadable"),
    ],
)
async def test_a_hostname_is_what_its_sources_agree_on(web_says: bytes, dns_says: Any, wanted: str):
    async with Stage(web_says, dns_says) as stage:
        received = await stage.resolve()
        assert received.state == wanted
        assert received.did == (ALICE.did if wanted == "found" else None)
        assert (received.why == "") == (wanted == "found")


async def test_dns_that_does_not_say_is_not_absent():
    async with Stage(NONE) as stage:
        stage.table.silent.add(f"_agent.{HOST}")
        assert (await stage.resolve()).state == "unreadable"


async def test_a_host_that_does_not_exist_is_absent():
    async with Stage(NONE) as stage:
        del stage.table.known[HOST]
        assert (await stage.resolve()).state == "absent"


async def test_a_name_at_a_relay_is_asked_of_webfinger_alone():
    async with Stage(jrd(ALICE.did), {f"_agent.{HOST}": [f"did={BOB.did}"]}) as stage:
        assert await stage.resolve(f"alice@{HOST}") == LookupResult("found", ALICE.did)
        [request] = stage.site.requests
        assert request.startswith(
            b"GET /.well-known/webfinger?resource=acct%3Aalice%40agent.example&rel=self HTTP/1.1"
        )
        assert stage.table.asked == [HOST]


@pytest.mark.parametrize(("answer", "seconds"), [(jrd(ALICE.did), FOUND_S), (NONE, ABSENT_S)])
async def test_an_answer_is_remembered_for_a_while(answer: bytes, seconds: float):
    async with Stage(answer) as stage:
        first = await stage.resolve(f"alice@{HOST}")
        stage.clock.now += seconds - 1
        assert await stage.resolve(f"alice@{HOST}") == first
        assert len(stage.site.requests) == 1
        stage.clock.now += 1
        assert await stage.resolve(f"alice@{HOST}") == first
        assert len(stage.site.requests) == 2


async def test_a_host_that_cannot_be_reached_is_left_alone_for_all_its_handles():
    async with Stage(b"no HTTP at all") as stage:
        for name in "abcdef":
            assert (await stage.resolve(f"{name}@{HOST}")).state == "unreadable"
        assert len(stage.site.requests) == 1
        stage.clock.now += UNREACHABLE_HOST_S
        await stage.resolve(f"g@{HOST}")
        assert len(stage.site.requests) == 2


async def test_one_host_is_not_asked_too_much_at_once():
    gate = asyncio.Event()

    class Slow(Table):
        async def addresses(self, host: str) -> Any:
            await gate.wait()
            return await super().addresses(host)

    async with Stage(jrd(ALICE.did)) as stage:
        stage.table = Slow({HOST: [HERE]})
        stage.naming._dialer._resolver = stage.table
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(stage.resolve(f"a{n}@{HOST}")) for n in range(9)]
            refused = 9 - MAX_ASKED
            await wait_until(lambda: sum(task.done() for task in asked) == refused, 5, "refused")
            gate.set()
        states = [task.result().state for task in asked]
        assert states.count("found") == MAX_ASKED
        assert len(stage.site.requests) == MAX_ASKED
        assert not stage.naming._asking


def test_a_memory_is_bounded_and_forgets():
    now = Clock()
    memory: BoundedTtl[int, str] = BoundedTtl(3)
    for number in range(5):
        memory.put(number, str(number), now() + 10)
    assert len(memory) == 3
    assert [memory.get(number, now()) for number in range(5)] == [None, None, "2", "3", "4"]
    now.now += 10
    assert memory.get(4, now()) is None
