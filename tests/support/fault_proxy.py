"""A TCP proxy before one relay, on which :mod:`tests.support.link_faults` are played.

The owner of the other end of the socket tells who dials (Linux, loopback). So one origin serves all
diallers, and each pair has ways of its own. The proxy parses nothing.

::

    dialler ──▶ listener of the proxy ──Way(dialler, target)──▶ target
            ◀────────────────────────── Way(target, dialler) ──
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path

from tests.support.link_faults import Faults

PIECE = 16 * 1024
CONNECT_S = 5.0
OUTSIDER = "outside"
"""Whoever is none of the named processes: agents, mostly."""

Pids = Callable[[], Mapping[str, int]]


class FaultProxy:
    """One listener and whatever goes through it.

    Args:
        target: name of who is behind it.
        port: where that one listens on 127.0.0.1.
        faults: what goes wrong.
        pids: processes by name, as they are now.
    """

    def __init__(self, target: str, port: int, faults: Faults, pids: Pids) -> None:
        self.target = target
        self.port = 0
        self.lines = 0
        self._behind = port
        self._faults = faults
        self._pids = pids

    @property
    def url(self) -> str:
        """Origin under which the target is dialled."""
        return f"http://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[FaultProxy]:
        """Listen for as long as the block runs; then all lines are broken."""
        listener = socket.create_server(("127.0.0.1", port))
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(self._serve(listener, tasks))
            try:
                yield self
            finally:
                serving.cancel()
                listener.close()
                self._faults.reset(self.target)

    async def _serve(self, listener: socket.socket, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            near, (_, port) = await loop.sock_accept(listener)
            source = owner_of(port, self.port, self._pids()) or OUTSIDER
            tasks.create_task(self._carry(near, source))

    async def _carry(self, near: socket.socket, source: str) -> None:
        far = socket.socket()
        far.setblocking(False)
        task = asyncio.current_task()
        assert task is not None
        end = partial(_break, task, near, far)
        self._faults.opened(end, source, self.target)
        self.lines += 1
        try:
            with near, far:
                near.setblocking(False)
                for one in (near, far):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await self._talk(near, far, source)
        finally:
            self.lines -= 1
            self._faults.closed(end)

    async def _talk(self, near: socket.socket, far: socket.socket, source: str) -> None:
        loop, target = asyncio.get_running_loop(), self.target
        try:
            async with asyncio.timeout(CONNECT_S):
                await loop.sock_connect(far, ("127.0.0.1", self._behind))
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(near, far, source, target))
                both.create_task(self._pump(far, near, target, source))
        except* OSError:
            # one side is gone: the other must not wait for it
            _hard(near)
            _hard(far)

    async def _pump(
        self, reads: socket.socket, writes: socket.socket, source: str, target: str
    ) -> None:
        loop, way = asyncio.get_running_loop(), self._faults.way(source, target)
        while piece := await loop.sock_recv(reads, PIECE):
            await way.passed(self._faults.rng)
            await loop.sock_sendall(writes, piece)
        await way.passed(self._faults.rng)
        with contextlib.suppress(OSError):
            writes.shutdown(socket.SHUT_WR)


def _break(task: asyncio.Task[None], near: socket.socket, far: socket.socket) -> None:
    """Both sides see a reset."""
    _hard(near)
    _hard(far)
    task.cancel()


def _hard(one: socket.socket) -> None:
    """Its close will be a reset."""
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# ---------------------------------------------------------------- who dials


def owner_of(port: int, to: int, pids: Mapping[str, int]) -> str | None:
    """Return the process that owns the connection from ``port`` to ``to`` of 127.0.0.1."""
    inode = _inode_of(port, to)
    if inode is None:
        return None
    wanted = f"socket:[{inode}]"
    return next((name for name, pid in pids.items() if wanted in _files_of(pid)), None)


def _inode_of(port: int, to: int) -> str | None:
    loopback = "0100007F"
    ends = [f"{loopback}:{port:04X}", f"{loopback}:{to:04X}"]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1:3] == ends:
            return fields[9]
    return None


def _files_of(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                found.add(str(Path(entry.path).readlink()))
    return found
