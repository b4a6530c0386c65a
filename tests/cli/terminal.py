"""The command line as its user runs it: a process, its exit code, what it wrote where."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.patience import within

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Terminal:
    """Somebody's home and the relay they use."""

    home: Path
    url: str = "http://127.0.0.1:1"

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if "RELAY_" not in name}
        mine = {"HOME": str(self.home), "RELAY_URL": self.url, "PYTHONPATH": str(ROOT)}
        return {**kept, "XDG_CONFIG_HOME": "", **mine, **more}

    async def start(self, *words: str, stdin: bool = False, **more: str):
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", *words),
            cwd=self.home,
            env=self.environment(**more),
            stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # nobody at the terminal of the tests is asked for anything
            start_new_session=True,
        )

    async def run(self, *words: str, text: bytes | None = None, **more: str) -> Done:
        process = await self.start(*words, stdin=text is not None, **more)
        try:
            async with within(25):
                out, err = await process.communicate(text)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        done = Done(process.returncode or 0, out.decode(), err.decode())
        assert "Traceback" not in done.err, done.err
        return done

    @contextlib.asynccontextmanager
    async def running(self, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
        process = await self.start(*words)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
            await process.wait()


@dataclass
class Stalling:
    """A server that takes one request after the other and answers when it may, or never.

    ``asked`` counts requests; ``answer`` is an HTTP body, sent once ``go`` is set.
    """

    url: str = ""
    answer: bytes = b""
    asked: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            _, _, length = head.partition("content-length: ")
            await reader.readexactly(int(length.partition("\r")[0] or 0))
            self.asked.release()
            await self.go.wait()
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(self.answer)}\r\n\r\n"
            writer.write(head.encode() + self.answer)
            await writer.drain()
        writer.close()

    async def was_asked(self) -> None:
        async with within(15):
            await self.asked.acquire()


@contextlib.asynccontextmanager
async def stalling(answer: bytes = b"") -> AsyncIterator[Stalling]:
    made = Stalling(answer=answer)
    server = await asyncio.start_server(made.handle, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        made.go.set()
        server.close()
        await server.wait_closed()


async def line_with(stream: asyncio.StreamReader | None, words: str) -> str:
    """Read on until a line has ``words`` in it."""
    assert stream is not None
    async with within(15):
        while line := (await stream.readline()).decode():
            if words in line:
                return line
    raise AssertionError(f"{words!r} was never said")
