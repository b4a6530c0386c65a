"""A real `relay serve` process: signals, kill -9, the store's kill -9, two on one directory."""

from __future__ import annotations

import asyncio
import os
import signal
import socket as sockets
import stat
import struct
from pathlib import Path

import pytest

from relay.protocol.errors import ErrorCode
from relay.protocol.frames import Ack, Acked, Bye, Deliver, Submit, Submitted
from relay.protocol.ids import Seq
from relay.protocol.receipts import verify_receipt
from tests.support.nodes import get, make_envelope, new_key, speaker
from tests.support.patience import wait_until, within
from tests.support.relay_process import relay_process, start_relay
from tests.support.servers import is_alive

pytestmark = pytest.mark.timeout(60)


async def test_an_accepted_envelope_survives_kill_9_of_the_relay(tmp_path):
    bob = new_key()
    async with relay_process(tmp_path / "data") as relay:
        async with speaker(relay.url, bob):
            pass
        async with speaker(relay.url) as alice:
            envelope = make_envelope(alice.key, bob.did)
            await alice.say(Submit("r", [envelope.wire]))
            receipt = verify_receipt((await alice.hear(Submitted)).receipt, alice.ready.relay)
            assert receipt.durability == "fsync"
            store = relay.store_pid()
            relay.kill()
            await relay.process.wait()
    listen = relay.url.removeprefix("http://")
    async with relay_process(tmp_path / "data", listen=listen) as again:
        assert again.did == relay.did
        assert not is_alive(store)
        async with speaker(again.url, bob) as me:
            delivered = await me.hear(Deliver)
            assert [(i.seq, i.redelivered) for i in delivered.items] == [(1, False)]
            await me.say(Ack(delivered.epoch, upto=Seq(1)))
            assert (await me.hear(Acked)).upto == 1


@pytest.mark.alone
async def test_a_killed_store_is_told_as_unavailable_and_comes_back_by_itself(tmp_path):
    async with (
        relay_process(tmp_path / "data") as relay,
        speaker(relay.url) as alice,
        speaker(relay.url) as bob,
    ):
        stopped = relay.store_pid()
        os.kill(stopped, signal.SIGSTOP)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await alice.say(Submit("a", [make_envelope(alice.key, bob.key.did).wire]))
        [no] = (await alice.hear(Submitted)).rejected
        assert (no.error, no.stored) == (ErrorCode.STORAGE_UNAVAILABLE, "unknown")
        assert loop.time() - began < 2.5
        os.kill(stopped, signal.SIGKILL)
        second = make_envelope(alice.key, bob.key.did)

        async def accepted() -> bool:
            await alice.say(Submit("b", [second.wire]))
            return (await alice.hear(Submitted)).receipt is not None

        await wait_until(accepted, 15, "the store to be back")
        delivered = await bob.hear(Deliver)
        assert delivered.items


async def test_sigterm_drains_says_goodbye_and_exits_with_0(tmp_path):
    async with relay_process(tmp_path / "data") as relay:
        store = relay.store_pid()
        async with speaker(relay.url) as agent:
            relay.process.send_signal(signal.SIGTERM)
            assert (await agent.hear(Bye)).error is ErrorCode.DRAINING
        assert await relay.process.wait() == 0
        assert not is_alive(store)


async def test_ctrl_c_reaches_the_relay_first_and_drains_too(tmp_path):
    async with relay_process(tmp_path / "data") as relay:
        os.killpg(relay.process.pid, signal.SIGINT)
        assert await relay.process.wait() == 0


async def test_a_second_relay_on_one_directory_is_refused_plainly(tmp_path):
    async with relay_process(tmp_path / "data") as relay:
        with pytest.raises(AssertionError, match="in use") as refused:
            await start_relay(tmp_path / "data")
        assert "Traceback" not in str(refused.value)
        async with speaker(relay.url):
            pass


async def test_the_relays_key_is_0600_kept_and_refused_when_others_can_read_it(tmp_path):
    async with relay_process(tmp_path / "data") as relay:
        key_file = tmp_path / "data" / "relay.key"
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    key_file.chmod(0o644)
    with pytest.raises(AssertionError, match="chmod 600") as refused:
        await start_relay(tmp_path / "data")
    assert key_file.read_text().strip() not in str(refused.value)
    key_file.chmod(0o600)
    async with relay_process(tmp_path / "data") as again:
        assert again.did == relay.did


async def test_no_secret_and_no_body_reaches_the_log(tmp_path):
    body = b"a body that nobody else should read"
    relay = await start_relay(tmp_path / "data", RELAY_LOG_LEVEL="debug")
    async with speaker(relay.url) as alice, speaker(relay.url) as bob:
        await alice.say(Submit("r", [make_envelope(alice.key, bob.key.did, body).wire]))
        await bob.hear(Deliver)
    relay.process.terminate()
    assert relay.process.stderr is not None
    said = (await relay.process.stderr.read()).decode()
    assert await relay.process.wait() == 0
    assert "node_started" in said
    assert body.decode() not in said
    assert key_of(tmp_path / "data") not in said


def key_of(data: Path) -> str:
    return (data / "relay.key").read_text().strip()


async def test_a_bad_setting_is_named_without_a_traceback(tmp_path):
    with pytest.raises(AssertionError, match="window_count") as refused:
        await start_relay(tmp_path / "data", RELAY_WINDOW_COUNT="0")
    assert "Traceback" not in str(refused.value)


async def test_a_port_in_use_is_named(tmp_path):
    async with relay_process(tmp_path / "data") as relay:
        with pytest.raises(AssertionError, match="cannot listen"):
            await start_relay(tmp_path / "other", listen=relay.url.removeprefix("http://"))


async def test_clients_that_hang_up_in_a_body_or_a_handshake_are_no_bugs(tmp_path):
    async with relay_process(tmp_path / "data") as relay:
        for method, path in (
            ("POST", "/v1/envelopes"), ("POST", "/v1/session"), ("POST", "/v1/inbox/ack"),
            ("POST", "/v1/migrations"), ("PUT", "/v1/agents/did:key:x"), ("GET", "/v1/ws"),
        ):  # fmt: skip
            for is_reset in (False, True):
                await hang_up(relay.url, f"{method} {path} HTTP/1.1", is_reset=is_reset)
        status, said = await get(relay.admin, "/metrics")
        assert status == 200
        assert "relay_internal_errors_total 0.0" in said
    # complete only now: the drain has seen the end of each connection
    assert b"Traceback" not in relay.said
    assert b'"internal"' not in relay.said


async def hang_up(url: str, first_line: str, *, is_reset: bool) -> None:
    """Begin a request with a body, or an upgrade, and go once the relay has read the beginning."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    more = upgrade if "/v1/ws" in first_line else "Content-Length: 9\r\nExpect: 100-continue\r\n"
    writer.write(f"{first_line}\r\nHost: x\r\n{more}\r\n{{".encode())
    async with within(8):
        await reader.read(1)
    if is_reset:
        raw = writer.get_extra_info("socket")
        raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()
