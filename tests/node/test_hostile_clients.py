"""What a hostile or broken client can do to a socket, and what it gets."""

from __future__ import annotations

import asyncio
import socket as sockets
import struct

import pytest
from websockets.frames import Frame, Opcode

from relay import clock
from relay.http.errors import STATUS
from relay.inbox.model.conversation import AUTH_DEADLINE_S
from relay.inbox.model.types import InboxLimits
from relay.protocol.errors import CLOSE_CODE, ErrorCode
from relay.protocol.frames import Bye, Submit, Submitted
from relay.reference.memory_store import MemoryStore
from relay.ws import protocol
from tests.support.nodes import dial, get, make_envelope, new_key, running_node, speaker
from tests.support.patience import wait_until


def test_both_error_tables_are_total():
    assert set(STATUS) == set(ErrorCode)
    assert set(CLOSE_CODE) == set(ErrorCode)
    numbers = [number for number in CLOSE_CODE.values() if number is not None]
    assert sorted(numbers) == list(range(4000, 4018))


@pytest.mark.timeout(20)
async def test_a_connection_that_never_logs_in_is_ended_by_the_auth_deadline():
    async with running_node() as node:
        socket = await dial(node.url)
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.timeout(AUTH_DEADLINE_S + 5):
            await socket.wait_closed()
        assert socket.close_code == CLOSE_CODE[ErrorCode.AUTH_REQUIRED]
        assert loop.time() - began >= AUTH_DEADLINE_S - 0.5


@pytest.mark.timeout(20)
async def test_a_partial_http_header_is_ended_by_the_header_deadline():
    async with running_node() as node:
        host, _, port = node.url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /v1/ws HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        await writer.drain()
        async with asyncio.timeout(protocol.HEADER_DEADLINE_S + 5):
            assert await reader.read() == b""
        writer.close()


async def test_a_frame_over_the_cap_is_closed_and_never_parsed():
    async with running_node() as node, speaker(node.url) as agent:
        await agent.socket.send("x" * (2 * 1024 * 1024 + 1))
        assert await agent.closed() == 1009


async def test_invalid_utf_8_closes_with_1007():
    async with running_node() as node, speaker(node.url) as agent:
        frame = Frame(Opcode.TEXT, b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80")
        agent.socket.transport.write(frame.serialize(mask=True))
        assert await agent.closed() == 1007


async def test_endless_empty_fragments_are_counted_and_closed():
    async with running_node() as node, speaker(node.url) as agent:
        parts = [Frame(Opcode.TEXT, b"", fin=False)]
        parts += [Frame(Opcode.CONT, b"", fin=False)] * (protocol.MAX_FRAGMENTS + 1)
        agent.socket.transport.write(b"".join(part.serialize(mask=True) for part in parts))
        assert await agent.closed() == 1009


async def test_a_reader_that_leaves_its_socket_full_is_aborted():
    bob = new_key()
    # more than the kernel's own buffers take, which is a few MiB on loopback
    store = MemoryStore(InboxLimits(sender_bytes=64 * 2**20, stranger_bytes=64 * 2**20), clock.now)
    large = {"window_bytes": 16 * 2**20}
    async with running_node(store, write_timeout_s=0.3, **large) as node:
        async with speaker(node.url, bob):
            pass
        async with speaker(node.url) as alice:
            body = b"x" * 250_000
            for n in range(40):
                await alice.say(Submit("r", [make_envelope(alice.key, bob.did, body).wire]))
                assert (await alice.hear(Submitted)).receipt, n
        # a client that logs in and then never reads, with the smallest buffers there are
        raw = sockets.socket()
        raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        host, _, port = node.url.removeprefix("http://").rpartition(":")
        raw.connect((host, int(port)))
        raw.setblocking(False)
        async with speaker(node.url, bob, sock=raw, max_queue=1) as me:
            me.socket.transport.pause_reading()
            await wait_until(lambda: not node.parts.dispatcher._listeners, 8, "an abort")
            me.socket.transport.abort()


async def test_a_client_without_the_subprotocol_is_refused():
    async with running_node() as node:
        with pytest.raises(Exception, match="HTTP 400"):
            await dial(node.url, subprotocols=["another"])


async def test_too_many_connections_from_one_address_are_refused():
    async with running_node(max_connections_per_ip=2) as node:
        first, second = await dial(node.url), await dial(node.url)
        with pytest.raises(Exception, match="HTTP 429"):
            await dial(node.url)
        await first.close()
        await second.close()


async def test_a_reset_socket_ends_its_session_and_frees_the_inbox():
    bob = new_key()
    async with running_node() as node:
        async with speaker(node.url, bob) as me:
            linger = struct.pack("ii", 1, 0)
            raw = me.socket.transport.get_extra_info("socket")
            raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, linger)
            me.socket.transport.abort()
        await wait_until(lambda: not node.parts.dispatcher._listeners, 8, "the session's end")
        async with speaker(node.url, bob) as again:
            assert again.ready.welcome.inbox


async def test_the_operators_paths_are_not_on_the_public_bind():
    async with running_node() as node:
        for path in ("/livez", "/readyz", "/metrics", "/v1/admin/clock"):
            assert (await get(node.url, path))[0] == 404
            assert (await get(node.admin, path))[0] == 200


async def test_metrics_count_what_happened_without_naming_anybody():
    async with running_node() as node, speaker(node.url) as alice, speaker(node.url) as bob:
        await alice.say(Submit("r", [make_envelope(alice.key, bob.key.did).wire]))
        await bob.hear()
        text = (await get(node.admin, "/metrics"))[1]
        assert "relay_envelopes_accepted_total" in text
        assert "did:key" not in text


async def test_readyz_says_no_while_draining():
    async with running_node() as node:
        assert (await get(node.admin, "/readyz"))[0] == 200
        node.parts.intake.draining = True
        assert (await get(node.admin, "/readyz"))[0] == 503


async def test_a_bug_is_told_as_internal_and_keeps_its_text():
    class BugError(Exception):
        pass

    async def broken(*_: object) -> None:
        raise BugError("secret text")

    async with running_node() as node, speaker(node.url) as agent:
        node.parts.store.inboxes.read = broken
        node.parts.dispatcher.wake([agent.key.agent_key])
        await agent.say(Submit("r", [make_envelope(agent.key, agent.key.did).wire]))
        bye = await agent.hear(Bye)
        assert (bye.error, bye.detail) == (ErrorCode.INTERNAL, "")
        assert await agent.closed() == 4000
