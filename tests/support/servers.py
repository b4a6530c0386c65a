"""Real Redis and Valkey servers for tests, each in a directory of its own, on loopback only.

Rules: a server that a test started is ended by the pid of its own child, however the test ends; on
Linux it also dies with the test process. Nothing sleeps to let something happen: ``wait_until``
waits for a condition.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from relay.store.embedded.process import dying_with_us
from tests.support.patience import wait_until
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

T = TypeVar("T")

SAFE_SETTINGS = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "save": "",
    "maxmemory": "256mb",
    "maxmemory-policy": "noeviction",
}
"""What GUARANTEES.md §2 demands of a store."""

DEBIAN = "redis-server"
SLOTS = 16384


def why_missing(binary: str = DEBIAN) -> str | None:
    """Return why a test that needs ``binary`` must be skipped; None = it is there."""
    if shutil.which(binary) is None:
        return f"{binary} is not installed (Debian: apt-get install redis-server)"
    return None


def is_alive(pid: int) -> bool:
    """Return True if a process of this id runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def client(url: str) -> Redis:
    """Return a client without retries: a test wants to see the first answer."""
    return Redis.from_url(url, decode_responses=True, socket_timeout=5, retry=Retry(NoBackoff(), 0))


class RedisServer:
    """One server process; it can be killed and started again over the same files.

    Args:
        directory: its data, log and socket; made if it is not there.
        binary: a name on PATH, or a path.
        port: TCP port on 127.0.0.1; None = a unix socket in ``directory``.
        settings: what differs from :data:`SAFE_SETTINGS`, and more.
        config_file: what it is started with beside that; None = no file.
    """

    def __init__(
        self,
        directory: Path,
        *,
        binary: str = DEBIAN,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        config_file: Path | None = None,
    ) -> None:
        self.directory = directory
        self._files = [] if config_file is None else [str(config_file)]
        self.port = port
        self._binary = shutil.which(binary) or binary
        self._settings = {**SAFE_SETTINGS, **(settings or {})}
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL for a Redis client."""
        if self.port is not None:
            return f"redis://127.0.0.1:{self.port}/0"
        return f"unix://{self.directory / 'redis.sock'}"

    @property
    def pid(self) -> int:
        """Process id of the server that runs."""
        assert self._child is not None, "not started"
        return self._child.pid

    async def start(self) -> None:
        """Start it and wait until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.spawn()
        try:
            await wait_until(self._answers, 20, f"{self._binary} in {self.directory} answers")
        except BaseException:
            self.kill()
            raise

    def spawn(self, pass_fds: tuple[int, ...] = ()) -> None:
        """Start it with these files open in it, too, and do not wait."""
        where = {"port": "0", "unixsocket": str(self.directory / "redis.sock")}
        if self.port is not None:
            where = {"port": str(self.port), "bind": "127.0.0.1"}
        settings = {**where, "dir": str(self.directory), **self._settings}
        command = [self._binary, *self._files]
        command += [word for name, value in settings.items() for word in (f"--{name}", value)]
        with (self.directory / "server.log").open("ab") as log:
            self._child = subprocess.Popen(  # noqa: S603  the test chose the command
                dying_with_us(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=pass_fds,
                process_group=0,
            )

    def kill(self) -> None:
        """``kill -9``, and wait until it is gone; harmless if it is."""
        if self._child is not None:
            self._child.kill()
            self._child.wait(10)

    async def stop(self) -> None:
        """Let it end properly; killed if it does not want to."""
        if self._child is None:
            return
        self._child.terminate()
        try:
            await wait_until(self._has_ended, 10, "the server ends")
        finally:
            self.kill()

    def log_tail(self) -> str:
        """The last 2,000 characters that it logged."""
        return (self.directory / "server.log").read_text(errors="replace")[-2000:]

    def _has_ended(self) -> bool:
        return self._child is None or self._child.poll() is not None

    async def _answers(self) -> bool:
        assert not self._has_ended(), f"the server ended at once:\n{self.log_tail()}"
        async with client(self.url) as redis:
            try:
                return bool(await redis.ping())
            except (RedisError, OSError):
                return False


@contextlib.asynccontextmanager
async def redis_server(
    directory: Path,
    *,
    binary: str = DEBIAN,
    port: int | None = None,
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[RedisServer]:
    """A standalone server with the safe settings, for as long as the block runs."""
    server = RedisServer(directory, binary=binary, port=port, settings=settings)
    await server.start()
    try:
        yield server
    finally:
        server.kill()


class RedisCluster:
    """Masters of one Cluster on loopback; ``url`` is the first one's, a client finds the rest."""

    def __init__(self, nodes: list[RedisServer]) -> None:
        self.nodes = nodes

    @property
    def url(self) -> str:
        """The URL for a client of a cluster."""
        return self.nodes[0].url

    async def start(self) -> None:
        """Start all, make them one Cluster, share the slots, wait until every node says ok."""
        for node in self.nodes:
            await node.start()
        share = SLOTS // len(self.nodes)
        for index, node in enumerate(self.nodes):
            last = SLOTS - 1 if node is self.nodes[-1] else (index + 1) * share - 1
            # Epochs that differ from the start: else the nodes first quarrel about who is newer.
            await _command(node, "CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            await _command(node, "CLUSTER", "ADDSLOTSRANGE", index * share, last)
        first = self.nodes[0]
        for node in self.nodes[1:]:
            bus = await _command(node, "CONFIG", "GET", "cluster-port")
            port = dict(bus)["cluster-port"] if isinstance(bus, dict) else bus[1]
            await _command(first, "CLUSTER", "MEET", "127.0.0.1", node.port, port)
        await self.wait_ok()

    async def wait_ok(self) -> None:
        """Wait until every node knows all others and serves."""
        for node in self.nodes:
            await wait_until(
                lambda node=node: self._is_ok(node), 30, f"cluster_state:ok at {node.url}"
            )

    def kill(self) -> None:
        """``kill -9`` all nodes."""
        for node in self.nodes:
            node.kill()

    async def _is_ok(self, node: RedisServer) -> bool:
        facts = await _command(node, "CLUSTER", "INFO")
        lines = (
            facts if isinstance(facts, dict) else dict(line.split(":", 1) for line in facts.split())
        )
        return (
            lines["cluster_state"] == "ok"
            and lines["cluster_known_nodes"] == str(len(self.nodes))
            and lines["cluster_slots_ok"] == str(SLOTS)
        )


@contextlib.asynccontextmanager
async def redis_cluster(
    directory: Path,
    *,
    binary: str = DEBIAN,
    masters: int = 3,
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[RedisCluster]:
    """A real Cluster of ``masters`` processes without replicas, for as long as the block runs."""
    nodes = []
    for index in range(masters):
        more = {
            "cluster-enabled": "yes",
            "cluster-port": str(free_port()),  # the default, port + 10000, may be taken or too high
            "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": "2000",
            **(settings or {}),
        }
        where = directory / f"node{index}"
        nodes.append(RedisServer(where, binary=binary, port=free_port(), settings=more))
    cluster = RedisCluster(nodes)
    try:
        await cluster.start()
        yield cluster
    finally:
        cluster.kill()


async def _command(node: RedisServer, *words: str | int | None):
    async with client(node.url) as redis:
        return await redis.execute_command(*words)
