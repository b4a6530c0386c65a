"""Embedded stores, and relays reduced to one, for the tests that kill them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from redis.exceptions import RedisError

from relay.store.embedded import EmbeddedStore
from tests.support.servers import client, why_missing

DEBIAN = "/usr/bin/redis-server"
BINARIES = [
    pytest.param(None, id="found"),
    pytest.param(
        DEBIAN,
        id="debian",
        marks=pytest.mark.skipif(why_missing(DEBIAN) is not None, reason=str(why_missing())),
    ),
]
"""What ``find_server_binary`` is given: nothing, and Debian's server where it is installed."""
ROOT = Path(__file__).parents[2]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and prctl of Linux")


@contextlib.asynccontextmanager
async def serving(directory: Path, binary: str | None, **options):
    """A started store without run()."""
    store = EmbeddedStore(directory, binary=binary, **options)
    await store.start()
    try:
        yield store
    finally:
        await store.stop()


@contextlib.asynccontextmanager
async def supervised(directory: Path, binary: str | None, **options):
    """A started store with run() in a TaskGroup, as a node has it."""
    async with asyncio.TaskGroup() as group, serving(directory, binary, **options) as store:
        group.create_task(store.run())
        yield store


def spawn_tiny_relay(directory: Path, binary: str) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603  our own interpreter and module
        [sys.executable, "-m", "tests.support.tiny_relay", str(directory), binary],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def run_command(*words: str, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603  a test chose the words
        words, input=said, text=True, capture_output=True, check=False
    )


def open_files(pid: int) -> set[Path]:
    return {link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir()}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.asynccontextmanager
async def tiny_relay(directory: Path, binary: str):
    """A relay process of its own in a process group of its own, as a terminal would start it."""
    with spawn_tiny_relay(directory, binary) as child:
        try:
            yield child
        finally:
            child.kill()


async def read_line(child) -> str:
    return (await asyncio.to_thread(child.stdout.readline)).strip()


async def ready(child) -> tuple[str, int]:
    """URL of a tiny relay's store and pid of its server."""
    url, pid = (await read_line(child)).split()
    return url, int(pid)


async def write_until_it_ends(url: str) -> list[str]:
    """Write keys one after the other; returns those whose write was acknowledged."""
    acknowledged: list[str] = []
    async with client(url) as redis:
        with contextlib.suppress(RedisError, OSError):
            for number in range(1_000_000):
                await redis.set(f"key-{number}", "x" * 100)
                acknowledged.append(f"key-{number}")
    return acknowledged


async def count_present(url: str, keys: list[str]) -> int:
    async with client(url) as redis:
        return await redis.exists(*keys)


async def write(url: str, key: str = "written") -> None:
    async with client(url) as redis:
        assert await redis.set(key, "yes")


async def answers(store: EmbeddedStore) -> bool:
    try:
        async with client(store.url) as redis:
            return bool(await redis.ping())
    except (RedisError, OSError):
        return False


def executable(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)
