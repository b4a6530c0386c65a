"""The disk guard: its decisions, its ballast, and a real server on a real disk that runs full."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import RedisError

from relay.protocol.errors import ErrorCode, UnavailableError
from relay.store.disk import (
    BALLAST,
    MAX_BALLAST_BYTES,
    DiskGuard,
    DiskRules,
    DiskSpace,
    DiskState,
    ballast_size,
    decide,
    disk_space,
)
from relay.store.embedded import find_server_binary
from tests.support.embedded_stores import BINARIES, run_command, serving, supervised
from tests.support.patience import wait_until
from tests.support.servers import client

OK, REFUSE, RELEASED = DiskState.OK, DiskState.REFUSE_SUBMITS, DiskState.BALLAST_RELEASED
RULES = DiskRules(floor_bytes=1000, ballast_bytes=100)  # reserve 500, reopens at 1250

KIB, MIB = 1 << 10, 1 << 20
DISK, FLOOR = 8 * MIB, 512 * KIB


# ---------------------------------------------------------------- decisions


@pytest.mark.parametrize(
    ("state", "free", "expected"),
    [
        (OK, 1000, OK),
        (OK, 999, REFUSE),
        (OK, 500, REFUSE),
        (OK, 499, RELEASED),
        (REFUSE, 1249, REFUSE),
        (REFUSE, 1250, OK),
        (REFUSE, 500, REFUSE),
        (REFUSE, 499, RELEASED),
        (RELEASED, 1349, RELEASED),
        (RELEASED, 1350, OK),
        (RELEASED, 0, RELEASED),
    ],
)
def test_each_line_is_drawn_where_the_picture_says(state, free, expected):
    assert decide(state, free, RULES) is expected


@given(
    state=st.sampled_from(DiskState),
    free=st.integers(0, 10**13),
    floor=st.integers(1, 10**12),
    ballast=st.integers(0, MAX_BALLAST_BYTES),
)
def test_no_decision_below_the_floor_takes_submits_and_none_undoes_itself(
    state, free, floor, ballast
):
    rules = DiskRules(floor, ballast)
    found = decide(state, free, rules)
    if found is OK:
        assert free >= floor
    # Carrying it out moves the ballast in or out of the free bytes; that alone changes nothing.
    if found is RELEASED and state is not RELEASED:
        assert decide(found, free + ballast, rules) is RELEASED
    if state is RELEASED and found is OK:
        assert decide(found, free - ballast, rules) is OK


def test_a_ballast_is_at_most_64_mib_and_1_percent_of_the_disk_in_whole_pages():
    assert ballast_size(10**12, 10**15) == 64 * MIB
    assert ballast_size(16 * MIB, 10**15) == 16 * MIB
    assert ballast_size(64 * MIB, 1000 * MIB) == 10 * MIB
    assert ballast_size(64 * MIB, DISK) == 80 * KIB
    assert ballast_size(64 * MIB, 100 * KIB) == 0


# ---------------------------------------------------------------- the ballast


class Disk:
    """A disk whose free space a test turns; the ballast on it is a real file."""

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes

    def __call__(self, _directory) -> DiskSpace:
        return DiskSpace(self.free_bytes, 100 * MIB)


def guarded(directory, disk) -> DiskGuard:
    return DiskGuard(directory, floor_bytes=10 * MIB, ballast_bytes=MIB, probe=disk)


def test_the_ballast_is_really_allocated_and_survives_a_restart_of_the_relay(tmp_path):
    disk = Disk(50 * MIB)
    assert guarded(tmp_path, disk).check() is OK
    before = (tmp_path / BALLAST).stat()
    assert before.st_size == MIB
    assert before.st_blocks * 512 >= MIB
    assert guarded(tmp_path, disk).check() is OK
    assert (tmp_path / BALLAST).stat().st_ino == before.st_ino


def test_a_sparse_ballast_is_replaced_for_it_holds_no_room(tmp_path):
    with (tmp_path / BALLAST).open("wb") as sparse:
        sparse.truncate(MIB)
    assert guarded(tmp_path, Disk(50 * MIB)).check() is OK
    assert (tmp_path / BALLAST).stat().st_blocks * 512 >= MIB


def test_submits_are_refused_first_and_the_ballast_goes_when_it_gets_worse(tmp_path):
    disk = Disk(50 * MIB)
    guard = guarded(tmp_path, disk)
    guard.check()
    assert guard.refusal is None
    disk.free_bytes = 9 * MIB
    assert guard.check() is REFUSE
    assert guard.refusal is not None
    assert guard.refusal.code is ErrorCode.STORAGE_FULL
    assert guard.refusal.stored == "no"
    assert (tmp_path / BALLAST).exists()
    disk.free_bytes = 4 * MIB
    assert guard.check() is RELEASED
    assert not (tmp_path / BALLAST).exists()
    assert guard.spare_bytes == 0
    disk.free_bytes = 20 * MIB
    assert guard.check() is guard.state is OK
    assert (tmp_path / BALLAST).exists()
    assert guard.spare_bytes == 15 * MIB


def test_a_relay_that_starts_on_a_nearly_full_disk_without_ballast_refuses(tmp_path):
    assert guarded(tmp_path, Disk(11 * MIB)).check() is RELEASED
    assert not (tmp_path / BALLAST).exists()


def test_a_directory_that_is_gone_is_a_named_error(tmp_path):
    with pytest.raises(UnavailableError) as found:
        guarded(tmp_path / "gone", disk_space).check()
    assert found.value.code is ErrorCode.STORAGE_UNAVAILABLE
    assert str(tmp_path / "gone") in found.value.detail


# ---------------------------------------------------------------- a real full disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB of its own."""
    where = tmp_path / "disk"
    where.mkdir()
    options = f"size={DISK},mode=0700"
    mount = run_command("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(where))
    if mount.returncode != 0:
        pytest.skip("needs root and the right to mount a tmpfs")
    yield where
    assert run_command("umount", "-l", str(where)).returncode == 0


@pytest.fixture(params=BINARIES)
def binary(request) -> str:
    return str(find_server_binary(request.param).path)


def new_guard(directory) -> DiskGuard:
    return DiskGuard(directory, floor_bytes=FLOOR, ballast_bytes=MIB)


async def submit_until_refused(redis, guard) -> int:
    """Append entries as a relay would: only while the guard lets it; returns how many."""
    for count in range(20_000):
        if guard.check() is not OK:
            return count
        await redis.xadd("inbox", {"envelope": "x" * 1000})
    raise AssertionError("the guard never refused")


async def test_a_guarded_server_lives_on_a_full_disk_acks_and_recovers(small_disk, binary):
    guard = new_guard(small_disk)
    assert guard.check() is OK
    async with serving(small_disk, binary) as store, client(store.url) as redis:
        pid = store.pid
        stored = await submit_until_refused(redis, guard)
        assert stored > 1000
        assert guard.state is REFUSE

        # Another program eats the rest of the disk, the ballast excepted.
        free = disk_space(small_disk).free_bytes
        with (small_disk / "temp-of-a-stranger").open("wb") as stranger:
            os.posix_fallocate(stranger.fileno(), 0, free)
        assert disk_space(small_disk).free_bytes == 0
        assert guard.check() is RELEASED
        assert disk_space(small_disk).free_bytes >= 80 * KIB

        entries = [entry for entry, _ in await redis.xrange("inbox")]
        assert len(entries) == stored
        for entry in entries[:300]:
            assert await redis.xdel("inbox", entry) == 1
        assert guard.check() is RELEASED
        assert store.pid == pid, "it never died"

        (small_disk / "temp-of-a-stranger").unlink()
        assert guard.check() is not OK, "the acks themselves have given nothing back yet"
        await redis.xdel("inbox", *entries[300:])
        assert await store.compact(guard.free_bytes)
        await wait_until(lambda: guard.check() is OK, 5, "the rewrite gave the room back")
        assert (small_disk / BALLAST).exists()
        assert await redis.xadd("inbox", {"envelope": "x" * 1000})
        assert (store.pid, store.fault) == (pid, None)


async def write_until_refused(redis) -> None:
    for number in range(20_000):
        await redis.set(f"key-{number}", "x" * 1000)


@pytest.mark.breaks(
    "embedded store",
    "the guard keeps room on the disk",
    by="tests/integration/test_disk_guard.py::test_a_guarded_server_lives_on_a_full_disk_acks_and_recovers",
)
async def test_without_the_guard_the_server_dies_of_the_full_disk(small_disk, binary):
    async with serving(small_disk, binary) as store, client(store.url) as redis:
        with pytest.raises((RedisError, OSError)):
            await write_until_refused(redis)
        await wait_until(lambda: store.pid is None, 5, "the server dies")


async def test_a_server_that_died_of_a_full_disk_says_so_and_serves_again_when_it_is_freed(
    small_disk, binary
):
    events: list[tuple[str, dict[str, object]]] = []
    filler = small_disk / "filler"
    async with supervised(
        small_disk, binary, on_event=lambda *event: events.append(event)
    ) as store:
        async with client(store.url) as redis:
            await redis.set("kept", "yes")
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, disk_space(small_disk).free_bytes)
        async with client(store.url) as redis:
            with pytest.raises((RedisError, OSError)):
                await write_until_refused(redis)
        await wait_until(lambda: events, 5, "the server dies")
        assert events[0][0] == "store_died"
        assert events[0][1]["code"] == "storage_full"
        filler.unlink()
        await wait_until(lambda: store.pid and store.fault is None, 6, "the server is back")
        async with client(store.url) as redis:
            assert await redis.get("kept") == "yes"
            assert await redis.set("more", "yes")


async def test_a_rewrite_that_would_not_fit_or_not_help_is_not_begun(small_disk, binary):
    async with serving(small_disk, binary) as store, client(store.url) as redis:
        assert not await store.compact(MIB), "an empty store has nothing to give back"
        for _ in range(500):
            await redis.set("key", "x" * 1000)
        assert not await store.compact(100), "100 bytes are no room"
        assert await store.compact(MIB)
        await wait_until(lambda: not list(small_disk.glob("temp-*")), 5, "the rewrite ends")
