"""Keep one real server alive in a directory, for as long as this relay lives.

::

               start()            it ends by itself
    idle ─────────────▶ serving ─────────────────────▶ down ──┐ run(): back-off, then launch
                          ▲ │ stop()                    │ ▲   │
                          │ └────────▶ stopped ◀────────┘ └───┤ it fails: slower, never giving up
                          └────────────────────────────────────┘ it answers

Rules: the server stops when :meth:`EmbeddedStore.stop` says so, after the drain, or when the relay
dies, and at no other time. A server that hangs is left alone: a slow disk and a dead one look
alike, and a kill would only add a restart to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote

from relay.protocol.errors import (
    ErrorCode,
    UnavailableError,
)
from relay.store.embedded.binary import find_server_binary
from relay.store.embedded.directory import StoreDirectory
from relay.store.embedded.predecessor import OFFSPRING, ORPHAN, Step, succeed
from relay.store.embedded.process import ServerProcess
from relay.store.embedded.resp import LOADING, PONG, ask
from relay.store.faults import exit_text, server_died, storage_error

OnEvent = Callable[[str, dict[str, object]], None]
"""``on_event(name, facts)``: store_died, store_restarted, store_start_failed, store_crash_loop."""

BACKOFF_S: Final = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 5.0)
"""Pause before each new start in a row: an operator's kill -9 costs none; the last one repeats."""
CRASH_LOOP: Final = 4
"""So many ends in a row, each before :data:`STABLE_S`, are a crash loop and are reported as one."""
STABLE_S: Final = 10.0
SILENCE_S: Final = 20.0
"""A new server that neither answers nor says that it is loading for this long is given up."""
STOP_S: Final = 10.0
_PING_S: Final = 1.0
_FIRST_PAUSE_S: Final = 0.005
_LAST_PAUSE_S: Final = 0.1


class EmbeddedStore:
    """A Valkey or Redis server of this relay's own (GUARANTEES.md §2).

    Call :meth:`start`, run :meth:`run` in the node's TaskGroup, and :meth:`stop` after the drain.

    Args:
        directory: where the data lives; made if it is not there; mode 0700.
        binary: the server to run; None finds one (:func:`find_server_binary`).
        maxmemory: as the server's setting of that name.
        appendfsync: ``everysec`` exists for negative controls: it loses acknowledged writes.
        on_event: told what happens to the server; must not raise.
    """

    def __init__(
        self,
        directory: Path,
        *,
        binary: str | None = None,
        maxmemory: str = "512mb",
        appendfsync: Literal["always", "everysec"] = "always",
        on_event: OnEvent = lambda _name, _facts: None,
    ) -> None:
        self._directory = StoreDirectory(directory)
        self._wanted_binary = binary
        self._maxmemory = maxmemory
        self._appendfsync = appendfsync
        self._on_event = on_event
        self._binary: Path | None = None
        self._socket: Path | None = None
        self._server: ServerProcess | None = None
        self._log_from = 0
        self._ready_at = 0.0
        self._failures = 0
        self._fault: UnavailableError | None = None
        self._stopping = asyncio.Event()

    @property
    def url(self) -> str:
        """``unix://…`` for a Redis client; the same over all restarts. Known after start()."""
        if self._socket is None:
            raise RuntimeError("the embedded store has no URL before start()")
        return f"unix://{quote(str(self._socket))}"

    @property
    def pid(self) -> int | None:
        """Process id of the running server; None while there is none."""
        server = self._server
        return server.pid if server is not None and server.status is None else None

    @property
    def fault(self) -> UnavailableError | None:
        """Why the server is down just now, in one sentence and its last words; None = it serves."""
        return self._fault

    async def start(self) -> None:
        """Claim the directory, end what a dead relay left there, start, and wait for an answer.

        Raises:
            DirectoryInUseError: another relay is running on this directory.
            UnavailableError: the server cannot be started; the detail says why and what to do.
        """
        if self._server is not None or self._stopping.is_set():
            raise RuntimeError("an EmbeddedStore starts once")
        self._binary = find_server_binary(self._wanted_binary).path
        self._directory.claim()
        try:
            self._socket = self._directory.socket()
            await self._launch(self._binary, self._socket, ORPHAN)
            self._directory.sync()
        except BaseException:
            await self.stop()
            raise

    async def run(self) -> None:
        """Bring the server back whenever it ends by itself; returns after :meth:`stop`.

        It never gives up: a disk that an operator frees heals the relay without a restart. Until
        then :attr:`fault` says what is wrong.
        """
        while not self._stopping.is_set():
            server = self._server
            if server is None:
                raise RuntimeError("start() comes before run()")
            status = await server.wait()
            if self._stopping.is_set():
                return
            loop = asyncio.get_running_loop()
            died_at = loop.time()
            if died_at - self._ready_at >= STABLE_S:
                self._failures = 0
            self._died(server.pid, status or 0)
            await self._bring_back()
            if self._fault is None:
                down_s = round(loop.time() - died_at, 3)
                self._on_event("store_restarted", {"pid": self.pid, "down_s": down_s})

    async def stop(self) -> None:
        """End the server, after it has synced, and let go of the directory; may be repeated."""
        self._stopping.set()
        try:
            if self._server is not None:
                await self._server.end(STOP_S)
        finally:
            self._directory.release()

    async def compact(self, spare_bytes: int) -> bool:
        """Rewrite the append-only file if its live data surely fits into ``spare_bytes`` of disk.

        An ack only ever *adds* to that file, so on a nearly full disk, where no submit makes it
        grow until the server rewrites it by itself, this is what gives the room back.

        Returns:
            Whether a rewrite began; False when it would not help, would not fit, or is running.
        """
        sizes = await self._sizes()
        live = sizes.get("used_memory", 0) - sizes.get("used_memory_startup", 0)
        dead = sizes.get("aof_current_size", 0) - live
        if dead <= 0 or live > spare_bytes or sizes.get("aof_rewrite_in_progress", 1):
            return False
        reply = await self._ask("BGREWRITEAOF")
        return reply is not None and reply.startswith("+")

    async def _sizes(self) -> dict[str, int]:
        text = f"{await self._ask('INFO', 'memory')}\n{await self._ask('INFO', 'persistence')}"
        pairs = (line.partition(":") for line in text.splitlines())
        return {name: int(value) for name, _, value in pairs if value.isdigit()}

    async def _ask(self, *words: str) -> str | None:
        if self._socket is None:
            return None
        return await ask(self._socket, *words, timeout_s=_PING_S)

    def _died(self, pid: int, status: int) -> None:
        self._fault = self._reason(status)
        facts = {"pid": pid, "ended_with": exit_text(status), **_facts_of(self._fault)}
        self._on_event("store_died", facts)

    def _reason(self, status: int) -> UnavailableError:
        return server_died(
            status,
            self._directory.last_words(self._log_from),
            disk_is_full=self._directory.is_full(),
            directory=self._directory.path,
            binary=self._binary or Path(),
        )

    async def _bring_back(self) -> None:
        while not self._stopping.is_set():
            await self._pause()
            if self._stopping.is_set() or self._binary is None:
                return
            try:
                socket = self._directory.socket()
                await self._launch(self._binary, socket, OFFSPRING)
            except (UnavailableError, OSError) as exc:
                if self._server is not None:
                    await self._server.end(STOP_S)
                if self._stopping.is_set():
                    return
                if isinstance(exc, UnavailableError):
                    self._fault = exc
                else:
                    self._fault = storage_error(exc, self._directory.path)
                facts = {"failures": self._failures, **_facts_of(self._fault)}
                self._on_event("store_start_failed", facts)
            else:
                self._socket, self._fault = socket, None
                return

    async def _pause(self) -> None:
        pause_s = BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
        self._failures += 1
        if self._failures == CRASH_LOOP and self._fault is not None:
            facts = {"failures": self._failures, **_facts_of(self._fault)}
            self._on_event("store_crash_loop", facts)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._stopping.wait()

    async def _launch(self, binary: Path, socket: Path, steps: tuple[Step, ...]) -> None:
        lock = await succeed(self._directory, socket, steps)
        try:
            self._server = self._spawn(binary, socket, lock)
        finally:
            os.close(lock)  # from here on only the server holds it
        await self._answers(self._server, socket)
        self._ready_at = asyncio.get_running_loop().time()

    def _spawn(self, binary: Path, socket: Path, lock: int) -> ServerProcess:
        if self._stopping.is_set():
            raise UnavailableError(ErrorCode.STORAGE_UNAVAILABLE, "the embedded store is stopping")
        directory = self._directory
        directory.remove_leftovers()
        log, self._log_from = directory.open_log()
        try:
            return ServerProcess.spawn(
                binary, self._arguments(socket), directory=directory.path, lock=lock, log=log
            )
        except OSError as exc:
            raise storage_error(exc, binary) from exc
        finally:
            os.close(log)

    async def _answers(self, server: ServerProcess, socket: Path) -> None:
        loop = asyncio.get_running_loop()
        deadline, pause_s = loop.time() + SILENCE_S, _FIRST_PAUSE_S
        while (status := await server.wait(pause_s)) is None:
            reply = await ask(socket, "PING", timeout_s=_PING_S) or ""
            if reply == PONG:
                return
            if reply.startswith(LOADING):  # a large store takes its time, and says so
                deadline = loop.time() + SILENCE_S
            if loop.time() > deadline:
                raise UnavailableError(
                    ErrorCode.STORAGE_UNAVAILABLE,
                    f"the embedded store in {self._directory.path} does not answer after "
                    f"{SILENCE_S:.0f} s: {reply or 'no reply at all'}",
                )
            pause_s = min(pause_s * 1.5, _LAST_PAUSE_S)
        raise self._reason(status)

    def _arguments(self, socket: Path) -> list[str]:
        settings = {
            "port": "0",  # no TCP
            "unixsocket": str(socket),
            "unixsocketperm": "600",
            "dir": str(self._directory.path),
            "appendonly": "yes",
            "appendfsync": self._appendfsync,
            "no-appendfsync-on-rewrite": "no",
            "save": "",
            "maxmemory": self._maxmemory,
            "maxmemory-policy": "noeviction",
            "aof-load-truncated": "yes",  # a tail that was never synced was never acknowledged
            "aof-use-rdb-preamble": "yes",
            "auto-aof-rewrite-percentage": "100",
            "auto-aof-rewrite-min-size": "64mb",
            "daemonize": "no",
            "logfile": "",  # to stdout, where a server that cannot even start complains, too
        }
        return [word for name, value in settings.items() for word in (f"--{name}", value)]


def _facts_of(fault: UnavailableError) -> dict[str, object]:
    return {"code": str(fault.code), "detail": fault.detail}
