"""A real ``relay serve`` over its embedded store, killed and started again at the same address.

This module ends only what it started: the relay is its own child, the store is a child of that
relay, checked through a pidfd. ``starts`` and ``killed_at`` tell agents whether a kill explains the
end of a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from redis.exceptions import RedisError

from relay.protocol.jws import loads
from relay.store.embedded.process import dying_with_us
from tests.support.patience import wait_until
from tests.support.ports import free_port
from tests.support.servers import (
    client,
    is_alive,
)

REPOSITORY = Path(__file__).parents[2]
SERVE = ("-m", "relay", "serve")
START_S = 30.0
ANSWER_S = 10.0
NO_LIMITS = {
    "RELAY_SENDER_RATE": "100000000",
    "RELAY_STRANGER_RATE": "100000000",
    "RELAY_SENDER_COUNT": "100000",
    "RELAY_SENDER_BYTES": str(256 * 1024 * 1024),
    "RELAY_STRANGER_COUNT": "100000",
    "RELAY_STRANGER_BYTES": str(256 * 1024 * 1024),
    "RELAY_INBOX_COUNT": "100000",
    "RELAY_INBOX_BYTES": str(256 * 1024 * 1024),
    "RELAY_DEDUPE_ENTRIES": "200000",
}
"""Senders here are faster than any agent, and recipients may sleep."""


class RelayProcess:
    """One relay on one port and one data directory.

    Args:
        directory: its data, stdout and stderr.
        arguments: what Python is to run; default: ``-m relay serve``.
        settings: more ``RELAY_*`` variables.
        host: the address that it listens on.
        within: words before the command, to run it elsewhere under the same process id.
    """

    def __init__(
        self,
        directory: Path,
        arguments: Sequence[str] = SERVE,
        settings: Mapping[str, str] | None = None,
        *,
        host: str = "127.0.0.1",
        within: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.arguments = arguments
        self.host = host
        self.within = within
        self.admin = ""
        self.starts = 0
        self.killed_at: list[float] = []
        self.starting_took: list[float] = []
        self.did = ""
        self.is_ready = False
        self.port = free_port()
        self._settings = {**NO_LIMITS, **(settings or {})}
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its origin; the same over all starts."""
        return f"http://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the relay that runs."""
        assert self._child is not None, "not started"
        return self._child.pid

    async def start(self) -> None:
        """Start it and wait until it says that it is ready."""
        began = time.monotonic()
        self.spawn()
        said = await wait_until(self._said, START_S, f"the relay is ready\n{self.log_tail()}")
        line = loads(said)
        assert isinstance(line, dict)
        assert self.did in {"", line["did"]}, "the relay has another key now"
        self.did, self.admin = line["did"], line["admin"]
        self.is_ready = True
        self.starting_took.append(time.monotonic() - began)

    def spawn(self) -> None:
        """Start it and do not wait."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.starts += 1
        command = dying_with_us([sys.executable, *self.arguments])
        command = [*self.within, *command]
        variables = {
            **os.environ,
            "RELAY_DATA": str(self.directory / "data"),
            "RELAY_LISTEN": f"{self.host}:{self.port}",
            "RELAY_ADMIN": f"{self.host}:0",
            **self._settings,
        }
        with self._stdout.open("wb") as out, self._stderr.open("ab") as err:
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                cwd=REPOSITORY, env=variables, process_group=0,
            )  # fmt: skip

    def kill(self) -> None:
        """``kill -9`` of the node."""
        if self._child is not None and self._child.poll() is None:
            self.killed_at.append(time.monotonic())
            self.is_ready = False
            self._child.kill()
            self._child.wait(10)

    async def kill_store(self, *, rewriting: bool = False) -> None:
        """``kill -9`` of the store, perhaps while it rewrites its file; it comes back by itself."""
        pid, pidfd = await wait_until(self._open_store, START_S, "the relay has a store")
        try:
            if rewriting:
                # it may already rewrite by itself, or be just starting: then that is hit
                with contextlib.suppress(RedisError, OSError):
                    async with client(self.store_url) as redis:
                        await redis.bgrewriteaof()
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            await wait_until(lambda: not is_alive(pid), START_S, "the killed store is gone")
        finally:
            os.close(pidfd)

    async def stop(self) -> None:
        """Let it drain; killed if it does not end. Its store ends with it."""
        if self._child is None:
            return
        self._child.terminate()
        try:
            await wait_until(lambda: not self.runs, START_S, "the relay drains and ends")
        finally:
            self._child.kill()
            self._child.wait(10)

    @property
    def runs(self) -> bool:
        """True if its process is there."""
        return self._child is not None and self._child.poll() is None

    async def metric(self, name: str) -> float:
        """The sum of one metric over its labels; 0 where it has none yet."""
        text = await asyncio.to_thread(read_url, f"{self.admin}/metrics")
        lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith(name)]
        return sum(float(value) for what, _, value in lines if what.partition("{")[0] == name)

    def log_tail(self) -> str:
        """The last 4,000 characters that it logged."""
        return self._stderr.read_text(errors="replace")[-4000:]

    @property
    def _stdout(self) -> Path:
        return self.directory / f"ready.{self.starts}"

    @property
    def _stderr(self) -> Path:
        return self.directory / "relay.log"

    @property
    def store_url(self) -> str:
        """The URL at which a test asks its store, beside the node."""
        return f"unix://{self._store_socket}"

    @property
    def _store_socket(self) -> Path:
        """The socket of its store: beside its data, or elsewhere if that path is too long."""
        store = self.directory / "data" / "store"
        elsewhere = store / "store.sock.path"
        return Path(elsewhere.read_text()) if elsewhere.exists() else store / "store.sock"

    def _said(self) -> bytes | None:
        said = self._stdout.read_bytes()
        assert self.runs, f"the relay ended at once:\n{self.log_tail()}"
        return said if said.endswith(b"\n") else None

    def _open_store(self) -> tuple[int, int] | None:
        """The store's pid and a pidfd of it; the second look comes after the pidfd is held."""
        for pid in _children(self.pid):
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            if _is_store(pid) and _parent(pid) == self.pid:
                return pid, pidfd
            os.close(pidfd)
        return None


def read_url(url: str, body: bytes | None = None) -> str:
    """The body of an answer, as text."""
    head = {"content-type": "application/json"}
    request = urllib.request.Request(url, data=body, headers=head)  # noqa: S310  our own relay
    with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:  # noqa: S310
        text: str = answer.read().decode()
    return text


def _children(pid: int) -> list[int]:
    found = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [child for child in found if _parent(child) == pid]


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def _is_store(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith(("valkey", "redis"))
    except OSError:
        return False
