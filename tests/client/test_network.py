"""The way from an agent to its relay: proxies, names with several addresses, threads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from relay.client import (
    Agent,
    AgentError,
    ExpiredError,
    NotYetValidError,
    UnreachableError,
    UnsupportedError,
)
from relay.client.http import network
from relay.client.http import origin as origins
from relay.client.http.origin import Origin
from relay.client.http.proxies import proxy_for
from relay.client.http.relay_api import RelayApi
from relay.client.http.transport import HttpRequest, request
from relay.client.sessionless import SessionlessAgent
from relay.client.state.agent_state import in_memory
from relay.protocol.envelope import Draft, sign
from relay.protocol.errors import ErrorCode
from relay.protocol.frames import Rejection, Submitted
from relay.protocol.ids import Timestamp, new_message_id
from tests.client import proxies
from tests.client.scripted_relay import Talk, envelope_of, lying_relay, new_key
from tests.support.nodes import running_node
from tests.support.patience import wait_until
from tests.support.ports import free_port
from tests.support.silent_port import mute_port

pytestmark = pytest.mark.timeout(30)

NAME = "relay.test"
URL = f"https://{NAME}:8443"
VARIABLES = [
    f"{name}_{what}"
    for name in ("HTTP", "HTTPS", "SOCKS", "ALL", "NO", "WS", "WSS")
    for what in ("PROXY", "proxy")
]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.delenv(name.lower(), raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


@dataclass
class Far:
    """A relay that only a proxy can reach: no DNS knows its name."""

    place: proxies.Place
    authority: trustme.CA


@pytest.fixture
async def far(environment: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Far]:
    authority = trustme.CA()
    with proxies.trusted(authority, tmp_path, environment):
        async with (
            running_node(public_url=URL, listen=f"127.0.0.1:{(port := free_port())}"),
            proxies.tls_in_front(
                f"http://127.0.0.1:{port}", proxies.certified(authority, NAME)
            ) as at,
        ):
            yield Far(at, authority)


async def use_both_ways() -> None:
    """A conversation, and a plain request."""
    async with Agent.open(new_key(), URL, open_timeout_s=5) as me:
        await me.send(me.did, "hello")
    assert (await RelayApi(origins.parse(URL)).info()).description.url == URL


async def failures() -> tuple[AgentError, AgentError]:
    """How a conversation fails, and how a plain request does."""
    with pytest.raises(AgentError) as opening:
        async with Agent.open(new_key(), URL, open_timeout_s=0.5):
            raise AssertionError("it opened")
    with pytest.raises(AgentError) as asking:
        await RelayApi(origins.parse(URL)).info()
    return opening.value, asking.value


# ---------------------------------------------------------------- proxies


@pytest.mark.parametrize("login", ["", "user:pa@ss word"])
async def test_a_proxy_carries_the_conversation_and_plain_requests_alike(far, environment, login):
    async with proxies.http_proxy(far.place, login=login) as proxy:
        written = login.replace("@", "%40").replace(" ", "%20")
        environment.setenv("HTTPS_PROXY", proxy.url.replace("//", f"//{written}@"))
        await use_both_ways()
        assert set(proxy.targets) == {f"CONNECT {NAME}:8443 HTTP/1.1"}
        assert len(proxy.targets) >= 2
        assert set(proxy.logins) == {login}


async def test_a_proxy_may_itself_be_behind_tls(far, environment):
    tls = proxies.certified(far.authority, "127.0.0.1")
    async with proxies.http_proxy(far.place, tls=tls) as proxy:
        environment.setenv("https_proxy", proxy.url)
        await use_both_ways()
        assert len(proxy.targets) >= 2


async def test_a_proxy_is_often_written_without_its_scheme(far, environment):
    async with proxies.http_proxy(far.place) as proxy:
        environment.setenv("ALL_PROXY", proxy.url.removeprefix("http://"))
        await use_both_ways()
        assert len(proxy.targets) >= 2


async def test_a_socks_proxy_carries_both_and_looks_up_the_name(far, environment):
    async with proxies.socks_proxy(far.place) as proxy:
        environment.setenv("ALL_PROXY", proxy.url)
        await use_both_ways()
        assert set(proxy.targets) == {f"{NAME}:8443"}
        assert len(proxy.targets) >= 2


async def test_a_socks_proxy_without_its_package_is_a_sentence(environment, monkeypatch):
    monkeypatch.setitem(sys.modules, "python_socks", None)
    environment.setenv("ALL_PROXY", "socks5://user:secret@127.0.0.1:9")
    for failure in await failures():
        assert isinstance(failure, UnsupportedError)
        assert "pip install" in failure.detail
        assert "secret" not in failure.detail


@pytest.mark.parametrize(
    "text", ["ftp://user:secret@h:1", "http://", "http://u:secret@h:port", "http://u:secret@h/p"]
)
async def test_what_is_no_proxy_is_a_sentence_without_the_password(environment, text):
    environment.setenv("HTTPS_PROXY", text)
    for failure in await failures():
        assert isinstance(failure, UnsupportedError)
        assert "HTTPS_PROXY" in failure.detail
        assert "secret" not in str(failure.__cause__) + failure.detail


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"HTTP/1.1 407 no\r\n\r\n", "a user and a password"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "HTTP 502"),
        (b"SSH-2.0-OpenSSH_9\r\n", ""),
        (b"", ""),
    ],
    ids=["login", "gateway", "garbage", "hangs up"],
)
async def test_a_proxy_that_leads_nowhere_is_named(environment, said, told):
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)

    async with proxies.listening(handle) as (host, port):
        environment.setenv("HTTPS_PROXY", f"http://user:secret@{host}:{port}")
        for failure in await failures():
            assert isinstance(failure, UnreachableError)
            assert f"through the proxy http://{host}:{port}" in failure.detail
            assert told in failure.detail
            assert "secret" not in failure.detail


async def test_a_relay_on_this_machine_is_never_reached_by_a_proxy(environment):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        environment.setenv(name, "http://127.0.0.1:9")
    async with running_node() as node, Agent.open(new_key(), node.url) as me:
        await me.send(me.did, "hello")
        assert (await RelayApi(origins.parse(node.url)).info()).did == me.relay


@pytest.mark.parametrize(
    ("url", "exempt", "is_direct"),
    [
        ("https://relay.example", "relay.example", True),
        ("https://a.relay.example", "relay.example", True),
        ("https://relay.example:8443", "relay.example:8443", True),
        ("https://relay.example", "other.example", False),
        ("https://relay.example", "*", True),
        ("https://10.1.2.3", "10.0.0.0/8, 192.168.0.0/16", True),
        ("https://11.1.2.3", "10.0.0.0/8", False),
        ("https://[fd00::1]", "fd00::/8", True),
        ("https://[fd00::1]", "[fd00::1]", True),
        ("https://a.localhost", "", True),
    ],
)
def test_no_proxy_names_hosts_and_networks(environment, url, exempt, is_direct):
    environment.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    environment.setenv("NO_PROXY", exempt)
    assert (proxy_for(origins.parse(url)) is None) is is_direct


async def test_what_a_stranger_names_goes_through_a_proxy_by_the_address_that_was_checked(
    environment, monkeypatch
):
    names = {"home.test": "198.41.0.4", "inside.test": "10.0.0.1"}

    def look_up(host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (names.get(host, host), port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with proxies.http_proxy(("127.0.0.1", free_port())) as proxy:
        environment.setenv("HTTPS_PROXY", proxy.url)
        for name in names:
            with pytest.raises(UnreachableError):
                await request(Origin("https", name, 443, public_only=True), GET, 2.0)
        assert proxy.targets == ["CONNECT 198.41.0.4:443 HTTP/1.1"]


# ---------------------------------------------------------------- threads and names

GET = HttpRequest("GET", "/")
EXPIRED = ErrorCode.EXPIRED


@contextlib.contextmanager
def no_executor() -> Iterator[None]:
    """The program's own work has taken all threads of asyncio's default executor."""
    over = threading.Event()
    executor = ThreadPoolExecutor(1)
    executor.submit(over.wait)
    asyncio.get_running_loop().set_default_executor(executor)
    try:
        yield
    finally:
        over.set()


async def test_a_program_that_uses_all_threads_does_not_hold_up_its_agent(tmp_path):
    port = free_port()
    async with running_node(listen=f"127.0.0.1:{port}", public_url=f"http://localhost:{port}"):
        with no_executor():
            url, state = f"http://localhost:{port}", tmp_path / "state"
            async with Agent.open(new_key(), url, state=state) as me:
                await me.send(me.did, "hello")
                errand = SessionlessAgent(origins.parse(url), in_memory())
                assert (await errand.resolve(me.did)).record is not None


async def test_names_that_strangers_give_hold_up_neither_ours_nor_the_programs_threads(monkeypatch):
    real, over = socket.getaddrinfo, threading.Event()

    def look_up(host, *values, **named):
        if host.endswith(".silent.test"):
            over.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return real(host, *values, **named)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    port = free_port()
    async with running_node(listen=f"127.0.0.1:{port}", public_url=f"http://localhost:{port}"):
        async with asyncio.TaskGroup() as tasks:
            homes = [
                Origin("https", f"home{number}.silent.test", 443, public_only=True)
                for number in range(network.MAX_PUBLIC_LOOKUPS + 1)
            ]
            asking = [tasks.create_task(failing(home)) for home in homes]
            done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            assert "too many" in done.pop().result().detail
            async with Agent.open(new_key(), f"http://localhost:{port}") as me:
                await me.send(me.did, "hello")
            assert await asyncio.to_thread(real, "localhost", port)
            over.set()
        assert (
            sum("no answer" in one.result().detail for one in asking) == network.MAX_PUBLIC_LOOKUPS
        )


async def failing(origin: Origin) -> AgentError:
    with pytest.raises(UnreachableError) as caught:
        await request(origin, GET, 10.0)
    assert caught.value.stored == "no"
    return caught.value


@pytest.mark.parametrize("first", ["refuses", "is silent"])
async def test_the_next_address_of_a_name_is_dialled_where_the_first(monkeypatch, first):
    here, port = "127.0.0.1", free_port()
    infos = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
        for address in ("127.0.0.3", here)
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: infos)
    url = f"http://localhost:{port}"
    with contextlib.ExitStack() as stack:
        if first == "is silent":
            stack.enter_context(mute_port("127.0.0.3", port))
        async with running_node(listen=f"{here}:{port}", public_url=url):
            assert (await RelayApi(origins.parse(url)).info()).description.url == url
            async with Agent.open(new_key(), url, open_timeout_s=5) as me:
                await me.send(me.did, "hello")


# ---------------------------------------------------------------- the reason, always


async def test_a_relay_that_never_ends_the_handshake_has_not_got_the_envelope():
    async def handle(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()
        await reader.read()

    async with proxies.listening(handle) as (host, port):
        origin = origins.parse(f"https://{host}:{port}")
        agent = SessionlessAgent(origin, in_memory())
        with pytest.raises(UnreachableError) as caught:
            await agent.submit(envelope_of(new_key(), new_key().did), deadline_s=0.5)
        assert caught.value.stored == "no"
        assert caught.value.detail == f"{origin}: no answer in time"


async def test_what_could_not_be_sent_says_why_no_relay_can_be_reached():
    async with contextlib.AsyncExitStack() as stack:
        node = await stack.enter_async_context(contextlib.AsyncExitStack())
        running = await node.enter_async_context(running_node())
        me = await stack.enter_async_context(Agent.open(new_key(), running.url))
        await node.aclose()
        seen = me._parts.pool
        await wait_until(lambda: "refused" in str(seen.last_failure), 8, "the relay is away")
        with pytest.raises(UnreachableError) as caught:
            await me.send(me.did, "hello", deadline_s=0.2)
        assert caught.value.stored == "no"
        assert caught.value.detail == f"{running.url}: Connection refused"


async def test_an_envelope_from_the_future_is_a_question_of_the_clock():
    async with running_node() as node:
        me, future = new_key(), int(time.time()) + 600
        draft = Draft(
            to=me.did,
            id=new_message_id(Timestamp(future), os.urandom),
            body=b"",
            content_type="text/plain",
            created_at=future,
        )
        agent = SessionlessAgent(origins.parse(node.url), in_memory())
        with pytest.raises(NotYetValidError, match="by the relay's clock, which says"):
            await agent.submit(sign(draft, me), deadline_s=5)


async def test_a_relay_that_takes_a_new_envelope_for_an_old_one_has_another_clock():
    async def script(talk: Talk) -> None:
        await talk.log_in()
        frame, _ = await talk.submit()
        await talk.say(Submitted((frame.ref,), None, (Rejection(frame.ref, 0, EXPIRED, "no"),)))
        await talk.until_closed()

    async with lying_relay(script) as relay, Agent.open(new_key(), relay.url) as me:
        with pytest.raises(ExpiredError, match="one of the two clocks is wrong"):
            await me.send(me.did, "hello", deadline_s=5)


async def test_a_certificate_that_is_not_valid_now_is_a_question_of_the_clock(
    environment, tmp_path
):
    authority = trustme.CA()
    with proxies.trusted(authority, tmp_path, environment):
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        past = datetime.now(UTC) - timedelta(days=1)
        authority.issue_cert("127.0.0.1", not_after=past).configure_cert(tls)
        async with proxies.listening(lambda r, _: r.read(), tls) as (host, port):
            with pytest.raises(UnreachableError, match="is the clock of this machine right"):
                await RelayApi(origins.parse(f"https://{host}:{port}")).info()
