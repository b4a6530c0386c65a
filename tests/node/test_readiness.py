"""What a node believes of its surroundings: ``/readyz``, ``/metrics`` and the log agree."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError

from relay import clock
from relay.health import ProblemReason
from relay.inbox.model.types import InboxLimits
from relay.protocol.did import parse_did
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.frames import Submit, Submitted
from relay.protocol.handshake import LoginClaims, parse_auth, sign_auth, verify_auth
from relay.protocol.ids import Timestamp
from relay.protocol.jws import b64encode
from relay.reference.memory_store import MemoryStore
from relay.store.embedded import find_server_binary
from tests.node.test_hostile_clients import get
from tests.support.embedded_stores import linux_only
from tests.support.nodes import make_envelope, new_key, running_node, speaker
from tests.support.patience import wait_until, within
from tests.support.ports import free_port
from tests.support.relay_process import NO_LIMITS, ROOT, RelayProcess, relay_process
from tests.support.servers import RedisServer, client

pytestmark = pytest.mark.timeout(60)
BINARY = str(find_server_binary().path)


async def readiness(admin: str) -> tuple[int, dict[str, bool]]:
    """The status of ``/readyz``, and each reason with whether it blocks."""
    status, body = await get(admin, "/readyz")
    said = json.loads(body)
    assert said["ready"] is (status == 200)
    assert all(one["detail"] for one in said["reasons"])
    return status, {one["reason"]: one["blocks"] for one in said["reasons"]}


async def gauges(admin: str) -> dict[str, float]:
    lines = (await get(admin, "/metrics"))[1].splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


# ---------------------------------------------------------------- in this process


async def test_each_reason_has_a_gauge_that_says_what_readyz_says():
    async with running_node() as node:
        assert (await readiness(node.admin))[0] == 200
        health = node.parts.store.health
        health.found(ProblemReason.DISK_FULL, "no room")
        health.found(ProblemReason.STORE_UNVERIFIED, "a replica is attached")
        node.parts.intake.draining = True
        status, reasons = await readiness(node.admin)
        assert status == 503
        wanted = {"draining": True, "disk_full": True, "store_unverified": False}
        assert {name: reasons.get(name) for name in wanted} == wanted
        found = await gauges(node.admin)
        for reason in ProblemReason:
            assert found[f'relay_problem{{reason="{reason}"}}'] == (reason in reasons)
        assert found["relay_ready"] == 0


async def test_what_an_operator_should_only_know_keeps_a_node_ready():
    async with running_node() as node:
        node.parts.store.health.found(ProblemReason.STORE_UNVERIFIED, "a replica is attached")
        assert (await readiness(node.admin))[0] == 200


@pytest.mark.parametrize("ahead_s", [3600, -3600])
async def test_clocks_that_differ_are_named_and_expire_nothing(ahead_s: int):
    ahead = [ahead_s]
    store = MemoryStore(InboxLimits(), lambda: Timestamp(clock.now() + ahead[0]))
    async with running_node(store) as node, speaker(node.url) as alice, speaker(node.url) as bob:
        status, reasons = await readiness(node.admin)
        assert (status, reasons["clocks_differ"]) == (503, True)
        found = await gauges(node.admin)
        assert found["relay_clock_ok"] == 0
        assert abs(found["relay_store_clock_ahead_seconds"] - ahead_s) < 10
        short = make_envelope(alice.key, bob.key.did, lifetime_s=600)
        await alice.say(Submit("r", [short.wire]))
        answer = await alice.hear(Submitted)
        if ahead_s > 0:
            assert answer.rejected[0].error is ErrorCode.STORAGE_UNAVAILABLE
            assert "clock" in answer.rejected[0].detail
        else:
            assert answer.receipt
        # one of the two is wrong whatever an operator says, until it was set
        assert (await post(node.admin, "/v1/admin/clock"))[1]["ok"] is False
        ahead[0] = 0
        await node.parts.housekeeping.sweep()
        assert "clocks_differ" not in (await readiness(node.admin))[1]
        # the store's clock was set: that was a step, and now a word is enough
        assert (await post(node.admin, "/v1/admin/clock"))[1]["ok"] is True
        assert (await readiness(node.admin))[0] == 200


async def post(origin: str, path: str) -> tuple[int, Any]:
    host, _, port = origin.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())
    async with within(8):
        answer = (await reader.read()).decode()
    writer.close()
    return int(answer.split()[1]), json.loads(answer.partition("\r\n\r\n")[2])


@pytest.mark.parametrize("off_s", [-172_800, 172_800])
def test_a_login_that_is_refused_for_its_time_names_the_relays_clock(off_s: int):
    key, relay = new_key(), new_key()
    nonce = b64encode(bytes(32))
    claims = LoginClaims(key.did, relay.did, "http://127.0.0.1:1", nonce, nonce, "agent")
    now = Timestamp(1_800_000_000.0)
    parsed = parse_auth(sign_auth(key, claims, Timestamp(now + off_s)))
    with pytest.raises(ProtocolError, match="the relay's clock, which says 2027-01-15T08:00:00Z"):
        verify_auth(parsed, parse_did(key.did), relay=relay.did, url=claims.url, now=now)


# ---------------------------------------------------------------- as a process


@dataclass
class Starting:
    """A `relay serve` that may not be ready yet."""

    process: asyncio.subprocess.Process
    admin: str

    async def end(self, number: int = signal.SIGTERM) -> tuple[int, list[dict[str, Any]]]:
        """End it; gives its exit code and its log."""
        self.process.send_signal(number)
        async with within(20):
            _, said = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, [json.loads(line) for line in said.splitlines()]

    async def has(self, status: int, reason: str | None = None) -> bool:
        try:
            found, reasons = await readiness(self.admin)
        except OSError:
            return False
        return found == status and (reason is None or reason in reasons)


@contextlib.asynccontextmanager
async def starting(data: Path, *before: str, **environment: str) -> AsyncIterator[Starting]:
    admin = f"127.0.0.1:{free_port()}"
    process = await asyncio.create_subprocess_exec(
        *before,
        sys.executable,
        *("-m", "relay", "serve", "--data", str(data), "--listen", "127.0.0.1:0"),
        *("--admin", admin),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **NO_LIMITS, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        process_group=0,
    )
    try:
        yield Starting(process, f"http://{admin}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def failed(admin: str, loop: str) -> bool:
    found = await gauges(admin)
    return found.get(f'relay_loop_failures_total{{loop="{loop}"}}', 0) > 1


async def answers(url: str) -> bool:
    async with client(url) as redis:
        try:
            return bool(await redis.ping())
        except (RedisError, OSError):
            return False


def problems(logged: list[dict[str, Any]]) -> list[tuple[str, str]]:
    kinds = {"problem_appeared", "problem_gone"}
    return [(one["event"], one["reason"]) for one in logged if one.get("event") in kinds]


async def test_a_store_that_is_away_is_waited_for_at_the_start_and_later_told_twice(tmp_path):
    server = RedisServer(tmp_path / "server", binary=BINARY, port=free_port())
    async with starting(tmp_path / "data", RELAY_REDIS_URL=server.url) as relay:
        try:
            for _ in range(2):
                await wait_until(lambda: relay.has(503, "store_away"), 15, "it says what it lacks")
                await server.start()
                await wait_until(lambda: relay.has(200), 15, "the node is ready")
                server.kill()
            await wait_until(lambda: relay.has(503, "store_away"), 15, "it says so again")
            await wait_until(lambda: failed(relay.admin, "bounce"), 15, "a loop found it away, too")
            code, logged = await relay.end()
        finally:
            server.kill()
    assert code == 0
    told = [("problem_appeared", "store_away"), ("problem_gone", "store_away")]
    assert [one for one in problems(logged) if one[1] == "store_away"] == [*told, *told, told[0]]
    assert not [one for one in logged if one["event"] == "loop_failed"]


async def test_a_signal_ends_a_node_that_waits_for_its_store(tmp_path):
    url = f"redis://127.0.0.1:{free_port()}"
    async with starting(tmp_path / "data", RELAY_REDIS_URL=url) as relay:
        await wait_until(lambda: relay.has(503, "starting"), 15, "it waits")
        code, logged = await relay.end()
    assert code == 0
    assert problems(logged) == [("problem_appeared", "store_away")]


async def test_a_wrong_password_is_not_waited_for(tmp_path):
    settings = {"requirepass": "right"}
    server = RedisServer(tmp_path / "server", binary=BINARY, port=free_port(), settings=settings)
    server.directory.mkdir()
    server.spawn()
    try:
        right = f"redis://:right@127.0.0.1:{server.port}"
        await wait_until(lambda: answers(right), 10, "the server answers")
        url = f"redis://:wrong@127.0.0.1:{server.port}"
        async with starting(tmp_path / "data", RELAY_REDIS_URL=url) as relay:
            _, said = await asyncio.wait_for(relay.process.communicate(), 20)
            [last] = said.decode().splitlines()
            assert relay.process.returncode == 1
            assert last.startswith("relay: the store refuses: ")
            assert "wrong" not in last
    finally:
        server.kill()


@linux_only
async def test_no_more_open_files_are_said_once_and_so_is_their_end(tmp_path):
    shell = ("/bin/sh", "-c", 'ulimit -n 256; exec "$@"', "sh")
    async with starting(tmp_path / "data", *shell) as relay:
        await wait_until(lambda: relay.has(200, "few_files"), 15, "the low limit is a note")
        pid = relay.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        # as many as are open: one more is EMFILE. Nobody can ask now; the log says it
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (10, limits[1]))
        assert relay.process.stderr is not None
        logged: list[dict[str, Any]] = []
        while ("problem_appeared", "no_files") not in problems(logged):
            logged.append(json.loads(await asyncio.wait_for(relay.process.stderr.readline(), 15)))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        while ("problem_gone", "no_files") not in problems(logged):
            logged.append(json.loads(await asyncio.wait_for(relay.process.stderr.readline(), 15)))
        code, rest = await relay.end()
    assert code == 0
    of_files = [one for one in problems(logged + rest) if one[1] == "no_files"]
    assert of_files == [("problem_appeared", "no_files"), ("problem_gone", "no_files")]


async def test_a_disk_below_its_floor_is_a_named_reason(tmp_path):
    async with starting(tmp_path / "data", RELAY_DISK_FLOOR_BYTES=str(2**60)) as relay:
        await wait_until(lambda: relay.has(503, "disk_full"), 15, "the full disk is named")
        assert (await gauges(relay.admin))['relay_problem{reason="disk_full"}'] == 1
        _, logged = await relay.end()
    assert problems(logged).count(("problem_appeared", "disk_full")) == 1


async def test_a_data_directory_that_was_put_back_whole_is_not_silent(tmp_path):
    bob = new_key()
    async with relay_process(tmp_path / "data") as relay, speaker(relay.url, bob) as me:
        before = me.ready.welcome.epoch
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    async with relay_process(tmp_path / "data") as relay:
        assert "store_rolled_back" not in (await readiness(relay.admin))[1]
        async with speaker(relay.url, bob) as me:
            assert me.ready.welcome.epoch == before
    shutil.rmtree(tmp_path / "data")
    shutil.copytree(tmp_path / "copy", tmp_path / "data")
    async with starting(tmp_path / "data") as relay:
        await wait_until(lambda: relay.has(200, "store_rolled_back"), 15, "it says so, and serves")
        assert relay.process.stdout is not None
        url = json.loads(await relay.process.stdout.readline())["url"]
        async with speaker(url, bob) as me:
            assert me.ready.welcome.epoch != before
        _, logged = await relay.end()
    assert ("problem_appeared", "store_rolled_back") in problems(logged)


@linux_only
@pytest.mark.parametrize(("backed_up", "option"), [("stopped", "-a"), ("running", "-r")])
async def test_a_data_directory_that_was_copied_over_in_place_is_not_silent(
    tmp_path, backed_up, option
):
    data, copy, bob = tmp_path / "data", tmp_path / "copy", new_key()

    async def epoch(relay: RelayProcess) -> str:
        assert "store_rolled_back" not in (await readiness(relay.admin))[1]
        async with speaker(relay.url, bob) as me:
            return str(me.ready.welcome.epoch)

    async with relay_process(data) as relay:
        before = await epoch(relay)
        if backed_up == "running":
            shutil.copytree(data, copy, ignore=shutil.ignore_patterns("*.sock"))
    if backed_up == "stopped":
        shutil.copytree(data, copy)
        # starts after a stop and after a crash say nothing; a new owner or mode does not matter
        async with relay_process(data) as relay:
            assert await epoch(relay) == before
            relay.kill()
        (data / "rollback").chmod(0o640)
        async with relay_process(data) as relay:
            assert await epoch(relay) == before
            relay.kill()
    inode = (data / "rollback").stat().st_ino
    copying = await asyncio.create_subprocess_exec("cp", option, f"{copy}/.", str(data))
    assert await copying.wait() == 0
    assert (data / "rollback").stat().st_ino == inode
    async with starting(data) as relay:
        await wait_until(lambda: relay.has(200, "store_rolled_back"), 15, "it says so, and serves")
        assert relay.process.stdout is not None
        url = json.loads(await relay.process.stdout.readline())["url"]
        async with speaker(url, bob) as me:
            assert me.ready.welcome.epoch != before
        _, logged = await relay.end()
    assert problems(logged).count(("problem_appeared", "store_rolled_back")) == 1
    async with relay_process(data) as relay:
        await epoch(relay)
