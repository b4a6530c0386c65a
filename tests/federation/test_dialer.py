"""The dialer against real sockets, a real DNS server and real certificates."""

from __future__ import annotations

import asyncio
import socket

import dns.rcode
import pytest
import uvloop
import websockets

from relay import sockets
from relay.peering import dialer as dialling
from relay.peering import dns as lookup
from relay.peering import fetch
from relay.peering.dialer import Dialer
from relay.peering.urls import Target
from relay.protocol.errors import ErrorCode, ProtocolError, RelayError, UnavailableError
from relay.protocol.frames import SUBPROTOCOL
from tests.federation.loopback_servers import (
    HERE,
    INSIDE,
    Authority,
    Table,
    canary,
    dns_server,
    said,
    watched,
    web,
)
from tests.support.ports import free_port
from tests.support.silent_port import mute_port

NAME = "relay.example"
HONEST = [f"{HERE}/32"]
EVERYWHERE = ["127.0.0.0/8"]


async def refused(way: Dialer, url: str, code: ErrorCode) -> str:
    with pytest.raises(RelayError) as caught:
        await way.get(url)
    assert caught.value.code == code
    return caught.value.detail


class ForgetfulDialer(Dialer):
    """The negative control: a dialer that resolves the name again after its check."""

    async def _connected(self, target: Target) -> socket.socket:
        await self._checked(target)
        [address, *_] = await self._addresses(target.host)
        return await sockets.connect([dialling._socket_address(address, target.port)])


async def test_a_name_that_answers_differently_the_second_time_leads_nowhere():
    async with canary() as bird, dns_server() as server:
        server.records[NAME, "A"] = [[HERE], [INSIDE]]
        way = Dialer(HONEST, server.resolver())
        detail = await refused(way, f"http://{NAME}:{bird.port}/", ErrorCode.PEER_UNREACHABLE)
        assert "refused" in detail  # nobody listens at the honest address
        assert server.asked.count((NAME, "A")) == 1
        # and now that DNS says so from the first time on, it is not dialled at all
        await refused(way, f"http://{NAME}:{bird.port}/", ErrorCode.UNSUPPORTED)
        assert bird.hits == 0


async def test_a_dialer_that_asks_twice_hits_the_canary():
    async with canary() as bird, dns_server() as server:
        server.records[NAME, "A"] = [[HERE], [INSIDE]]
        way = ForgetfulDialer(HONEST, server.resolver())
        await refused(way, f"http://{NAME}:{bird.port}/", ErrorCode.PEER_UNREACHABLE)
        assert bird.hits == 1


@pytest.mark.parametrize("answers", [[HERE, INSIDE], [INSIDE, HERE]])
async def test_one_bad_answer_among_good_ones_refuses_all(answers: list[str]):
    async with canary() as bird, dns_server() as server:
        server.records[NAME, "A"] = [answers]
        with watched() as seen:
            way = Dialer(HONEST, server.resolver())
            await refused(way, f"http://{NAME}:{bird.port}/", ErrorCode.UNSUPPORTED)
        assert [one for one in seen if "getaddrinfo" in one or str(bird.port) in one] == []
        assert bird.hits == 0


async def test_an_alias_is_judged_by_where_it_leads():
    async with canary() as bird, dns_server() as server:
        server.records[NAME, "CNAME"] = [["inside.example."]]
        server.records["inside.example", "A"] = [[INSIDE]]
        url = f"http://{NAME}:{bird.port}/"
        await refused(Dialer(HONEST, server.resolver()), url, ErrorCode.UNSUPPORTED)
        assert bird.hits == 0
        way = Dialer(EVERYWHERE, server.resolver())
        await refused(way, url, ErrorCode.PEER_UNREACHABLE)
        assert bird.hits == 1, "the alias does lead to the canary"


async def test_an_ipv6_answer_is_judged_like_any_other():
    async with dns_server() as server:
        server.records[NAME, "A"] = [[HERE]]
        server.records[NAME, "AAAA"] = [["::1"]]
        await refused(Dialer(HONEST, server.resolver()), f"http://{NAME}/", ErrorCode.UNSUPPORTED)


async def test_a_get_is_answered():
    async with web(said(b"hello", "Text/Plain; charset=utf-8")) as site, dns_server() as server:
        server.records[NAME, "A"] = [[HERE]]
        way = Dialer(HONEST, server.resolver())
        answer = await way.get(f"http://{NAME}:{site.port}/a/b?c=%20", accept="text/plain")
        assert answer == (200, b"hello", "text/plain")
        lines = site.requests[0].decode().split("\r\n")
        assert lines[0] == "GET /a/b?c=%20 HTTP/1.1"
        assert f"Host: {NAME}:{site.port}" in lines
        assert "Accept: text/plain" in lines


async def test_the_next_address_is_tried_where_one_does_not_answer():
    async with web(said(b"hello")) as site:
        way = Dialer(EVERYWHERE, Table({NAME: ["127.0.0.3", HERE]}))
        assert (await way.get(f"http://{NAME}:{site.port}/")).body == b"hello"


async def test_an_address_that_is_silent_holds_up_the_next_one_for_a_moment_only(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(dialling, "CONNECT_S", 2.0)
    async with web(said(b"hello")) as site:
        with mute_port("127.0.0.3", site.port), mute_port("127.0.0.4", site.port):
            way = Dialer(EVERYWHERE, Table({NAME: ["127.0.0.3", "127.0.0.4", HERE]}))
            assert (await way.get(f"http://{NAME}:{site.port}/")).body == b"hello"


async def test_an_answer_without_a_length_ends_with_the_connection():
    async with web(b"HTTP/1.1 200 OK\r\n\r\nhello") as site:
        assert (await Dialer(HONEST).get(f"http://{HERE}:{site.port}/")).body == b"hello"


async def test_a_chunked_answer_is_put_together():
    chunked = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
    )
    async with web(chunked) as site:
        assert (await Dialer(HONEST).get(f"http://{HERE}:{site.port}/")).body == b"hello"


MUCH = b"x" * 70_000
BAD_ANSWERS = {
    "a body beyond 64 KiB": said(MUCH),
    "an endless body": b"HTTP/1.1 200 OK\r\n\r\n" + MUCH * 2,
    "headers beyond 16 KiB": b"HTTP/1.1 200 OK\r\nX: " + MUCH + b"\r\n\r\n",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 9_000 + b"\r\n",
    "endless trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: "
    + MUCH * 3
    + b"\r\n\r\n",
    "chunks of one byte": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"1\r\nx\r\n" * 40_000
    + b"0\r\n\r\n",
    "a compressed body": said(b"x", "text/plain", "200 OK", "Content-Encoding: gzip"),
    "half an answer": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhel",
    "half a header": b"HTTP/1.1 200 OK\r\nContent-",
    "nothing": b"",
    "no HTTP": b"220 mail.example ESMTP\r\n" * 9,
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "another protocol": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nab",
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
async def test_an_answer_beyond_the_bounds_is_none(answer: bytes):
    async with web(answer) as site:
        url = f"http://{HERE}:{site.port}/"
        await refused(Dialer(HONEST), url, ErrorCode.PEER_UNREACHABLE)


async def test_who_keeps_silent_is_left_at_the_deadline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dialling, "DIAL_S", 0.2)
    async with web(b"HTTP/1.1 200 OK\r\n", stays=True) as site:
        url = f"http://{HERE}:{site.port}/"
        detail = await refused(Dialer(HONEST), url, ErrorCode.PEER_UNREACHABLE)
        assert "in time" in detail
        with pytest.raises(UnavailableError):
            await Dialer(HONEST).websocket(f"ws://{HERE}:{site.port}")


async def test_who_keeps_silent_keeps_no_relay_from_being_dialled(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dialling, "MAX_GETS", 2)
    monkeypatch.setattr(dialling, "MAX_DIALS", 2)

    async def talk(socket: websockets.ServerConnection) -> None:
        await socket.send("hello")

    protocol = websockets.Subprotocol(SUBPROTOCOL)
    async with (
        web(b"HTTP/1.1 200 OK\r\n", stays=True) as site,
        websockets.serve(talk, HERE, 0, subprotocols=[protocol]) as listening,
        asyncio.TaskGroup() as tasks,
    ):
        way = Dialer(HONEST)
        asked = [tasks.create_task(way.get(f"http://{HERE}:{site.port}/")) for _ in range(5)]
        await asyncio.sleep(0)
        port = next(iter(listening.sockets)).getsockname()[1]
        async with asyncio.timeout(5), await way.websocket(f"http://{HERE}:{port}") as line:
            assert await line.recv() == "hello"
        for task in asked:
            task.cancel()


async def test_who_sends_a_byte_now_and_then_is_left_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(dialling, "DIAL_S", 0.3)
    gone = asyncio.Event()

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            writer.close()
            gone.set()

    async with await asyncio.start_server(drip, HERE, 0) as server:
        port = server.sockets[0].getsockname()[1]
        detail = await refused(Dialer(HONEST), f"http://{HERE}:{port}/", ErrorCode.PEER_UNREACHABLE)
        assert "in time" in detail
        await asyncio.wait_for(gone.wait(), 5)


async def test_a_dns_server_that_keeps_silent_is_left_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(lookup, "LOOKUP_S", 0.2)
    async with dns_server() as server:
        server.is_silent = True
        way = Dialer(HONEST, server.resolver())
        detail = await refused(way, f"http://{NAME}/", ErrorCode.PEER_UNREACHABLE)
        assert "DNS does not say" in detail
        with pytest.raises(UnavailableError):
            await way.texts(NAME)


async def test_a_name_that_does_not_exist_is_an_answer():
    async with dns_server() as server:
        server.rcodes[NAME] = server.rcodes[f"_agent.{NAME}"] = dns.rcode.NXDOMAIN
        way = Dialer(HONEST, server.resolver())
        detail = await refused(way, f"http://{NAME}/", ErrorCode.PEER_UNREACHABLE)
        assert "no address" in detail
        assert await way.texts(f"_agent.{NAME}") == ()


async def test_texts_are_joined_from_their_strings():
    async with dns_server() as server:
        server.records["_agent.example", "TXT"] = [['"did=did:" "key:z6Mk"', '"other"']]
        found = await Dialer(resolver=server.resolver()).texts("_agent.example")
        assert sorted(found) == ["did=did:key:z6Mk", "other"]


async def test_tls_is_checked_for_the_name_and_spoken_to_the_checked_address():
    authority = Authority()
    async with web(said(b"hello"), tls=authority.server(NAME)) as site:
        way = Dialer(HONEST, Table({NAME: [HERE]}), tls=authority.client())
        assert (await way.get(f"https://{NAME}:{site.port}/")).body == b"hello"
        assert b"Host: relay.example:" in site.requests[0]


async def test_a_certificate_of_another_name_or_authority_is_none():
    authority = Authority()
    async with web(said(b"hello"), tls=authority.server("other.example")) as site:
        url = f"https://{NAME}:{site.port}"
        for trusted in (authority.client(), Authority().client(), None):
            way = Dialer(HONEST, Table({NAME: [HERE]}), tls=trusted)
            detail = await refused(way, url, ErrorCode.PEER_UNREACHABLE)
            assert "TLS" in detail
            with pytest.raises(UnavailableError):
                await way.websocket(url)
        assert site.requests == []


async def test_a_conversation_is_opened_over_tls():
    authority = Authority()
    received: list[str | None] = []

    async def talk(socket: websockets.ServerConnection) -> None:
        request = socket.request
        assert request is not None
        received.extend([request.headers["Host"], request.path, socket.subprotocol])
        await socket.send("hello")

    server = websockets.serve(
        talk,
        HERE,
        0,
        ssl=authority.server(NAME),
        subprotocols=[websockets.Subprotocol(SUBPROTOCOL)],
    )
    async with server as listening:
        port = next(iter(listening.sockets)).getsockname()[1]
        way = Dialer(HONEST, Table({NAME: [HERE]}), tls=authority.client())
        async with await way.websocket(f"https://{NAME}:{port}") as line:
            assert await line.recv() == "hello"
        assert received == [f"{NAME}:{port}", "/v1/ws", SUBPROTOCOL]


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch):
    async with canary() as bird, web(said(b"hello")) as site:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{bird.port}")
        assert (await Dialer(HONEST).get(f"http://{HERE}:{site.port}/")).status == 200
        with pytest.raises(UnavailableError):
            await Dialer(HONEST).websocket(f"http://{HERE}:{site.port}")
        assert bird.hits == 0


async def test_plain_text_needs_a_named_network_and_tls_does_not_lift_the_table():
    async with canary() as bird:
        url = f"{INSIDE}:{bird.port}"
        await refused(Dialer(), f"http://{url}", ErrorCode.UNSUPPORTED)
        await refused(Dialer(), f"https://{url}", ErrorCode.UNSUPPORTED)
        await refused(Dialer(["127.0.0.1/32"]), f"http://{url}", ErrorCode.PEER_UNREACHABLE)
        assert bird.hits == 1


async def test_localhost_is_never_asked_of_dns():
    table = Table({"localhost": [HERE], "a.localhost": [HERE]})
    port = free_port(INSIDE)
    for host in ("localhost", "a.localhost"):
        way = Dialer(["127.0.0.1/32"], table)
        await refused(way, f"http://{host}:{port}/", ErrorCode.PEER_UNREACHABLE)
    assert table.asked == []


def test_the_scheme_of_a_host_follows_from_where_it_is():
    way = Dialer(["10.0.0.0/8"])
    assert way.origin_of("relay.example") == "https://relay.example"
    assert way.origin_of("Relay.Example:8443") == "https://relay.example:8443"
    assert way.origin_of("localhost:8080") == "http://localhost:8080"
    assert way.origin_of("127.0.0.1:8080") == "http://127.0.0.1:8080"
    assert way.origin_of("10.1.2.3:8080") == "http://10.1.2.3:8080"
    assert way.origin_of("192.168.1.1:8080") == "https://192.168.1.1:8080"
    with pytest.raises(ProtocolError):
        way.origin_of("relay.example/x")


def test_a_value_that_is_no_network_is_refused_at_once():
    with pytest.raises(ValueError, match="10"):
        Dialer(["10.0.0.0/99"])


async def test_a_refused_dial_leaves_no_socket_open():
    async with canary() as bird:
        way = Dialer(EVERYWHERE)
        for _ in range(3):
            with pytest.raises(UnavailableError):
                await way.websocket(f"ws://127.0.0.1:{bird.port}")
        assert bird.hits == 3
    # an open one would be a ResourceWarning, which is an error here


def test_it_holds_on_the_loop_that_a_node_runs_on():
    authority = Authority()

    async def dial() -> None:
        async with canary() as bird, web(said(b"hello"), tls=authority.server(NAME)) as site:
            way = Dialer(EVERYWHERE, Table({NAME: [HERE]}), tls=authority.client())
            assert (await way.get(f"https://{NAME}:{site.port}/")).body == b"hello"
            for origin in (f"https://{NAME}:{site.port}", f"http://127.0.0.1:{bird.port}"):
                with pytest.raises(UnavailableError):
                    await way.websocket(origin)
            stranger = Dialer(EVERYWHERE, Table({NAME: [HERE]}))
            await refused(stranger, f"https://{NAME}:{site.port}/", ErrorCode.PEER_UNREACHABLE)
            assert bird.hits == 1

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(dial())


def test_bounds_are_those_of_the_guarantees():
    assert fetch.MAX_BODY_BYTES == 64 * 1024
    assert dialling.DIAL_S == 10
