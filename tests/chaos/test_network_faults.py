"""The faults of the mesh tests happen, and no others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator
from random import Random
from typing import ClassVar

import pytest

from tests.support.fault_proxy import OUTSIDER, FaultProxy, owner_of
from tests.support.link_faults import Faults
from tests.support.namespaces import Namespaces, why_missing
from tests.support.patience import wait_until

pytestmark = pytest.mark.timeout(30)
QUIET_S = 0.4


class Echo(asyncio.Protocol):
    """Send back what arrives."""

    lines: ClassVar[set[asyncio.Transport]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.lines.add(transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """Yield the port of an echo server."""
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        while Echo.lines:
            Echo.lines.pop().abort()


@contextlib.asynccontextmanager
async def line(faults: Faults) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A line of this process through a proxy to an echo that is called "there"."""
    async with echo() as port:
        proxy = FaultProxy("there", port, faults, lambda: {"here": os.getpid()})
        async with proxy.running() as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            try:
                yield reader, writer
            finally:
                writer.transport.abort()


def faults() -> Faults:
    return Faults(Random(1))  # noqa: S311  whims, no keys


async def heard(reader: asyncio.StreamReader, seconds: float) -> bytes | None:
    try:
        async with asyncio.timeout(seconds):
            return await reader.read(4096)
    except TimeoutError:
        return None


async def test_without_a_fault_bytes_pass_both_ways():
    async with line(faults()) as (reader, writer):
        writer.write(b"hello")
        assert await heard(reader, 5) == b"hello"


@pytest.mark.parametrize("ways", [("here", "there"), ("there", "here")])
async def test_a_way_that_is_cut_holds_bytes_until_it_is_healed(ways):
    played = faults()
    async with line(played) as (reader, writer):
        played.way(*ways).cut()
        writer.write(b"hello")
        assert await heard(reader, QUIET_S) is None
        played.heal()
        assert await heard(reader, 5) == b"hello"


async def test_a_way_of_somebody_else_changes_nothing():
    played = faults()
    async with line(played) as (reader, writer):
        played.cut(OUTSIDER, "there")
        writer.write(b"hello")
        assert await heard(reader, 5) == b"hello"


async def test_a_delay_and_a_loss_are_seen_as_lateness():
    for values in ({"delay_s": 0.3}, {"loss": 0.6}):
        played = faults()
        async with line(played) as (reader, writer):
            way = played.way("here", "there")
            for name, value in values.items():
                setattr(way, name, value)
            began = time.monotonic()
            writer.write(b"hello")
            assert await heard(reader, 20) == b"hello"
            assert time.monotonic() - began >= 0.19


async def test_a_reset_is_one_for_both_sides():
    played = faults()
    async with line(played) as (reader, writer):
        writer.write(b"hello")
        assert await heard(reader, 5) == b"hello"
        assert played.reset("there") == 1
        with pytest.raises(ConnectionResetError):
            await heard(reader, 5)


async def test_the_owner_of_a_socket_is_found_among_processes():
    async with echo() as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        mine = writer.get_extra_info("sockname")[1]
        assert owner_of(mine, port, {"me": os.getpid(), "init": os.getppid()}) == "me"
        assert owner_of(mine, port, {"init": os.getppid()}) is None
        writer.close()


# ---------------------------------------------------------------- namespaces

TALKER = """
import socket, sys
server = socket.create_server((sys.argv[1], 7000))
print("listens", flush=True)
while True:
    line, _ = server.accept()
    line.sendall(line.recv(100))
    line.close()
"""


async def says(address: str, *within: str) -> bool:
    """Return True if a talker there answers within a second, when dialled from a namespace."""
    code = (
        "import socket, sys; s = socket.create_connection((sys.argv[1], 7000), 1); "
        "s.settimeout(1); s.sendall(b'hi'); sys.exit(s.recv(9) != b'hi')"
    )
    process = await asyncio.create_subprocess_exec(
        *within, sys.executable, "-I", "-S", "-c", code, address,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    return await process.wait() == 0


async def test_namespaces_hear_each_other_until_one_way_is_cut_or_reset():
    missing = why_missing()
    if missing:
        pytest.skip(missing)
    with Namespaces(["a", "b"]).made() as spaces:
        talker = await asyncio.create_subprocess_exec(
            *(*spaces.command("b"), sys.executable, "-c", TALKER, spaces.address("b")),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert talker.stdout is not None
            assert await talker.stdout.readline() == b"listens\n"
            there, dial = spaces.address("b"), spaces.command("a")
            assert await says(there, *dial)
            assert await says(there)  # from here, too
            for fault in (spaces.cut, spaces.reset):
                fault("a", "b")
                assert not await says(there, *dial)
                assert await says(there), "only one pair is concerned"
                spaces.heal()
                await wait_until(lambda: says(there, *dial), 10, "healed")
            spaces.cut("b", "a")
            assert not await says(there, *dial), "the answer does not come through"
        finally:
            talker.kill()
            await talker.wait()
