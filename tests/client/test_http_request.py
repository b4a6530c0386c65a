"""One HTTP request to a relay that a stranger runs: it ends in time, whatever that one does."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from relay.cli.node import peers
from relay.client import UnreachableError
from relay.client.http import origin as origins
from relay.client.http.origin import Origin
from relay.client.http.transport import HttpRequest, request

pytestmark = pytest.mark.timeout(20)

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n"
DRIP_S = 0.05


@contextlib.asynccontextmanager
async def dripping(said: bytes, drop: bytes) -> AsyncIterator[str]:
    """A server that says ``said`` at once, and then ``drop`` after ``drop``, without an end."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(said)
            while not writer.is_closing():
                writer.write(drop)
                await writer.drain()
                # a pause between two drops, not a wait for something
                await asyncio.sleep(DRIP_S)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"
    finally:
        server.close()


@pytest.mark.alone
@pytest.mark.parametrize(
    ("said", "drop"),
    [(HEAD, b"X-A: a\r\n"), (b"HTTP/1.1 200 ", b"a"), (HEAD + b"\r\n", b"a")],
    ids=["a header without an end", "a first line without an end", "a body without an end"],
)
async def test_a_relay_that_goes_on_saying_a_little_does_not_keep_the_thread(said, drop):
    async with dripping(said, drop) as url:
        began = time.monotonic()
        with pytest.raises(UnreachableError):
            await request(origins.parse(url), HttpRequest("GET", "/"), 0.5)
        assert time.monotonic() - began < 3


async def test_who_is_cancelled_leaves_no_thread_that_waits_for_an_answer():
    asked, closed = asyncio.Event(), asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        closed.set()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        here = origins.parse(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        asking = asyncio.ensure_future(request(here, HttpRequest("GET", "/"), 5.0))
        await asyncio.wait_for(asked.wait(), 5)
        assert not closed.is_set()
        asking.cancel()
        await asyncio.wait_for(closed.wait(), 2)


async def test_a_slow_answer_within_its_time_is_read_to_its_end():
    async with dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"a") as url:
        status, body = await request(origins.parse(url), HttpRequest("GET", "/"), 5.0)
        assert (status, body) == (200, b"aaaaa")


async def test_an_operators_request_has_the_time_that_the_node_needs_to_dial(monkeypatch):
    monkeypatch.setattr("relay.client.http.transport.REQUEST_TIMEOUT_S", 0.2)
    body = b'{"peers":[]}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(body) + 20)
    async with dripping(answer + body, b" ") as url:
        await peers.list_peers(url, as_json=True)
        with pytest.raises(UnreachableError):
            await request(origins.parse(url), HttpRequest("GET", "/"), 5.0)


@pytest.mark.parametrize("public_only", [True, False])
async def test_a_strangers_name_that_leads_inside_is_not_dialled(public_only):
    calls: list[object] = []

    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.append(writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        named = Origin("https", "localhost", port, public_only)
        with pytest.raises(UnreachableError) as caught:
            await request(named, HttpRequest("GET", "/"), 2.0)
        assert bool(calls) is not public_only
        assert ("inside" in caught.value.detail) is public_only
        assert caught.value.stored == "no"


INSIDE = [
    *("127.1", "0x7f000001", "2130706433", "localhost.", "a.localhost", "10.0.0.1", "100.64.0.1"),
    *("168.63.129.16", "[::1]", "[::ffff:10.0.0.1]", "[64:ff9b::a00:1]", "[::10.0.0.1]"),
    *("[fec0::1]", "[2002:a00:1::1]", "0.0.0.1", "[ff02::1]", "r.local", "127.0.0.1"),
]


@pytest.mark.parametrize("host", INSIDE)
def test_what_a_stranger_may_not_name_is_known_by_its_spelling(host):
    assert origins.parse(f"https://{host}").as_public() is None


@pytest.mark.parametrize("host", ["relay.example", "1.1.1.1", "[2606:4700::1111]"])
def test_what_a_stranger_names_outside_is_dialled_with_care(host):
    named = origins.parse(f"https://{host}")
    outside = named.as_public()
    assert outside is not None
    assert (outside.public_only, str(outside)) == (True, str(named))
