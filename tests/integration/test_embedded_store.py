"""The embedded store with real servers, real signals and real files; nothing here is pretended."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from relay.protocol.errors import ErrorCode, UnavailableError
from relay.store.embedded import (
    DirectoryInUseError,
    EmbeddedStore,
    find_server_binary,
    launcher,
    supervisor,
)
from tests.support.embedded_stores import (
    BINARIES,
    answers,
    children,
    count_present,
    executable,
    linux_only,
    open_files,
    read_line,
    ready,
    serving,
    supervised,
    tiny_relay,
    write,
    write_until_it_ends,
)
from tests.support.patience import wait_until
from tests.support.servers import RedisServer, client, is_alive


@pytest.fixture(params=BINARIES)
def binary(request) -> str:
    return str(find_server_binary(request.param).path)


@pytest.fixture
def directory(tmp_path) -> Path:
    return tmp_path / "store"


# ---------------------------------------------------------------- starting


async def test_it_starts_answers_and_keeps_what_was_written_over_a_stop(directory, binary):
    async with serving(directory, binary) as first:
        assert first.pid is not None
        assert first.fault is None
        await write(first.url)
    assert first.pid is None
    async with serving(directory, binary) as second:
        assert await count_present(second.url, ["written"]) == 1


async def test_every_safe_setting_is_in_force(directory, binary):
    async with serving(directory, binary, maxmemory="64mb") as store, client(store.url) as redis:
        found = await redis.config_get("*")
    expected = {
        "port": "0",
        "unixsocketperm": "600",
        "appendonly": "yes",
        "appendfsync": "always",
        "no-appendfsync-on-rewrite": "no",
        "save": "",
        "maxmemory": str(64 << 20),
        "maxmemory-policy": "noeviction",
        "aof-load-truncated": "yes",
        "dir": str(directory),
    }
    assert {name: found[name] for name in expected} == expected


async def test_nobody_else_may_enter_the_directory_the_socket_or_the_files(directory, binary):
    async with serving(directory, binary) as store:
        await write(store.url)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE((directory / "store.sock").stat().st_mode) == 0o600
        open_to_others = [p for p in directory.rglob("*") if p.stat().st_mode & 0o077]
        assert open_to_others == []


async def test_names_that_urls_and_servers_quote_do_no_harm(tmp_path, binary):
    async with serving(tmp_path / "a b%20c?d#e'\"", binary) as store:
        await write(store.url)


async def test_a_long_path_gets_a_private_short_socket_that_is_found_again(tmp_path, binary):
    directory = tmp_path / ("long" * 25)
    async with tiny_relay(directory, binary) as child:
        url, pid = await ready(child)
        socket = Path(url.removeprefix("unix://"))
        assert directory not in socket.parents
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        await write(url)
        child.kill()
    async with serving(directory, binary) as store:
        assert store.url == url
        assert not is_alive(pid)
        assert await count_present(url, ["written"]) == 1
    assert not socket.parent.exists()


async def test_a_short_socket_is_not_put_into_a_directory_that_others_can_enter(tmp_path, binary):
    directory, shared = tmp_path / ("long" * 25), tmp_path / "shared"
    directory.mkdir(mode=0o700)
    shared.mkdir(mode=0o755)
    (directory / "store.sock.path").write_text(str(shared / "store.sock"))
    async with serving(directory, binary) as store:
        assert str(shared) not in store.url
        await write(store.url)
    assert shared.exists()


# ---------------------------------------------------------------- one relay, one server


async def test_a_second_relay_on_the_same_directory_is_refused_by_name(directory, binary):
    async with serving(directory, binary) as first:
        second = EmbeddedStore(directory, binary=binary)
        with pytest.raises(DirectoryInUseError) as refused:
            await second.start()
        assert refused.value.code is ErrorCode.STORAGE_UNAVAILABLE
        assert str(directory) in refused.value.detail
        assert f"pid {os.getpid()}" in refused.value.detail
        await write(first.url)


@linux_only
async def test_the_server_holds_its_own_lock_and_not_the_relays(directory, binary):
    async with serving(directory, binary) as store:
        opened = open_files(store.pid)
    assert directory / "server.lock" in opened
    assert directory / "relay.lock" not in opened


@pytest.mark.alone
async def test_after_kill_9_of_the_relay_the_next_start_has_every_acknowledged_write(
    directory, binary
):
    async with tiny_relay(directory, binary) as child:
        url, _ = await ready(child)
        async with asyncio.TaskGroup() as group, client(url) as redis:
            writer = group.create_task(write_until_it_ends(url))
            await wait_until(lambda: redis.exists("key-200"), 5, "writes are under way")
            child.kill()
        acknowledged = writer.result()
    async with asyncio.timeout(3), serving(directory, binary) as store:
        assert len(acknowledged) > 200
        assert await count_present(store.url, acknowledged) == len(acknowledged)


@linux_only
async def test_the_server_ends_by_itself_when_its_relay_is_killed(directory, binary):
    async with tiny_relay(directory, binary) as child:
        _, pid = await ready(child)
        child.kill()
        await wait_until(lambda: not is_alive(pid), 5, "the server follows its relay")
    assert not (directory / "store.sock").exists(), "it closed properly"


@linux_only
def test_a_server_whose_relay_died_before_it_could_be_bound_to_it_never_starts(tmp_path):
    proof = tmp_path / "ran"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for parent, ran in ((dead.pid, False), (os.getpid(), True)):
        command = [sys.executable, "-I", "-S", launcher.__file__, str(parent)]
        done = subprocess.run([*command, "/usr/bin/touch", str(proof)], check=False)
        assert done.returncode == 0
        assert proof.exists() is ran


def leave_orphan(directory: Path, binary: str) -> RedisServer:
    """A server as a relay leaves it that died without its server: the lock is all it has of it."""
    directory.mkdir(mode=0o700)
    (directory / "server.lock").touch(mode=0o600)
    fd = os.open(directory / "server.lock", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    where = {"unixsocket": str(directory / "store.sock"), "unixsocketperm": "600"}
    orphan = RedisServer(directory, binary=binary, settings=where)
    orphan.spawn(pass_fds=(fd,))
    os.close(fd)
    return orphan


@pytest.mark.alone
@linux_only
@pytest.mark.parametrize("frozen", [False, True], ids=["healthy", "frozen"])
async def test_an_orphan_is_ended_and_its_acknowledged_writes_are_kept(directory, binary, frozen):
    orphan = leave_orphan(directory, binary)
    try:
        url = f"unix://{directory / 'store.sock'}"
        await wait_until((directory / "store.sock").exists, 5, "the orphan listens")
        await write(url)
        if frozen:  # neither SHUTDOWN nor SIGTERM is heard
            os.kill(orphan.pid, signal.SIGSTOP)
        async with asyncio.timeout(3.5), serving(directory, binary) as store:
            assert not is_alive(orphan.pid)
            assert await count_present(store.url, ["written"]) == 1
    finally:
        orphan.kill()


async def test_a_server_that_no_relay_started_is_refused_and_left_alone(directory, binary):
    directory.mkdir(mode=0o700)
    where = {"unixsocket": str(directory / "store.sock")}
    stranger = RedisServer(directory, binary=binary, settings=where)
    stranger.spawn()
    try:
        await wait_until((directory / "store.sock").exists, 5, "the stranger listens")
        with pytest.raises(UnavailableError, match="no relay started") as refused:
            await EmbeddedStore(directory, binary=binary).start()
        assert "RELAY_REDIS_URL" in refused.value.detail
        await write(f"unix://{directory / 'store.sock'}")
        assert is_alive(stranger.pid)
    finally:
        stranger.kill()


async def test_ctrl_c_reaches_the_relay_which_drains_into_a_living_store(directory, binary):
    async with tiny_relay(directory, binary) as child:
        url, pid = await ready(child)
        assert os.getpgid(pid) != os.getpgid(child.pid)
        os.killpg(child.pid, signal.SIGINT)
        assert await read_line(child) == "interrupted"
        await write(url, "written during the drain")
        child.stdin.write("\n")
        child.stdin.flush()
        assert await read_line(child) == "drained"
        assert await asyncio.to_thread(child.wait, 5) == 0
        assert not is_alive(pid)
    async with serving(directory, binary) as store:
        assert await count_present(store.url, ["drained", "written during the drain"]) == 2


# ---------------------------------------------------------------- coming back


async def test_after_kill_9_of_the_server_it_is_back_by_itself_with_every_acknowledged_write(
    directory, binary
):
    events: list[tuple[str, dict[str, object]]] = []
    async with supervised(directory, binary, on_event=lambda *e: events.append(e)) as store:
        url, first = store.url, store.pid
        assert first is not None
        async with asyncio.TaskGroup() as group, client(url) as redis:
            writer = group.create_task(write_until_it_ends(url))
            await wait_until(lambda: redis.exists("key-200"), 5, "writes are under way")
            os.kill(first, signal.SIGKILL)
        acknowledged = writer.result()
        await wait_until(
            lambda: [name for name, _ in events] == ["store_died", "store_restarted"],
            3,
            "the server is back",
        )
        assert store.pid not in {None, first}
        assert (store.url, store.fault) == (url, None)
        assert len(acknowledged) > 200
        assert await count_present(url, acknowledged) == len(acknowledged)
    assert events[0][1]["ended_with"] == "signal SIGKILL"
    assert events[1][1]["down_s"] < 2


@linux_only
async def test_a_rewrite_that_outlives_its_killed_server_neither_delays_nor_litters(
    directory, binary
):
    async with supervised(directory, binary) as store:
        first = store.pid
        async with client(store.url) as redis:
            await redis.mset({f"key-{n}": "x" for n in range(1000)})
            await redis.config_set("rdb-key-save-delay", 60_000_000)  # a minute before it looks up
            await redis.bgrewriteaof()
            await wait_until(lambda: list(directory.glob("temp-*")), 5, "the rewrite began")
        (child,) = children(first)
        os.kill(first, signal.SIGKILL)
        await wait_until(lambda: store.pid not in {None, first}, 3, "a new server runs")
        await wait_until(lambda: answers(store), 3, "it serves")
        assert not is_alive(child)
        assert list(directory.glob("temp-*")) == []
        assert await count_present(store.url, [f"key-{n}" for n in range(1000)]) == 1000


async def test_a_crash_loop_is_named_and_slowed_and_heals_when_its_cause_is_gone(
    tmp_path, directory, binary
):
    full = tmp_path / "full"
    words = "Error writing to the AOF file: No space left on device"
    sick = executable(
        tmp_path / "server",
        f'[ -e "{full}" ] && {{ echo "{words}"; exit 1; }}; exec "{binary}" "$@"',
    )
    events: list[str] = []
    async with supervised(directory, sick, on_event=lambda name, _: events.append(name)) as store:
        await write(store.url)
        full.touch()
        os.kill(store.pid, signal.SIGKILL)
        await wait_until(lambda: "store_crash_loop" in events, 5, "the crash loop is reported")
        assert store.pid is None
        assert store.fault is not None
        assert store.fault.code is ErrorCode.STORAGE_FULL
        assert words in store.fault.detail
        full.unlink()
        await wait_until(lambda: store.fault is None, 6, "it heals by itself")
        assert await count_present(store.url, ["written"]) == 1
    assert events.count("store_crash_loop") == 1
    pauses = supervisor.BACKOFF_S
    assert list(pauses) == sorted(pauses)
    assert pauses[-1] <= 5


@pytest.mark.alone
async def test_stop_is_heard_while_the_server_is_down(tmp_path, directory, binary):
    gone = tmp_path / "gone"
    sick = executable(tmp_path / "server", f'[ -e "{gone}" ] && exit 7; exec "{binary}" "$@"')
    async with asyncio.timeout(3), supervised(directory, sick) as store:
        store._failures = len(supervisor.BACKOFF_S)  # so that the pause is longer than our patience
        assert supervisor.BACKOFF_S[-1] > 3
        gone.touch()
        os.kill(store.pid, signal.SIGKILL)
        await wait_until(lambda: store.fault is not None, 3, "the fault is seen")
    async with serving(directory, binary):
        pass  # the directory is free again


async def test_stop_may_be_repeated_and_an_object_starts_only_once(directory, binary):
    async with serving(directory, binary) as store:
        await store.stop()
        await store.stop()
        with pytest.raises(RuntimeError, match="once"):
            await store.start()


async def test_a_cancelled_start_leaves_no_process_and_no_lock(tmp_path, directory, binary):
    pidfile = tmp_path / "pid"
    mute = executable(tmp_path / "server", f'echo $$ > "{pidfile}.new"; '
                      f'mv "{pidfile}.new" "{pidfile}"; exec sleep 600')  # fmt: skip
    async with asyncio.TaskGroup() as group:
        start = group.create_task(EmbeddedStore(directory, binary=mute).start())
        await wait_until(pidfile.exists, 5, "the mute server runs")
        start.cancel()
    assert start.cancelled()
    assert not is_alive(int(pidfile.read_text()))
    async with serving(directory, binary):
        pass
