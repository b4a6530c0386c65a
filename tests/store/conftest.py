"""Servers that stay up for a whole run, and a fresh world in one of them for each test.

Every store in them is used by the user that docs/OPERATIONS.md describes: what that may not do, no
test of the contract gets done.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.store.embedded import find_server_binary
from tests.store.worlds import ASK_TIME, READ_TIME, Backend, World
from tests.support.ports import free_port
from tests.support.servers import (
    RedisCluster,
    RedisServer,
    why_missing,
)
from tests.support.store_user import (
    make_user,
    url_of,
)

KINDS = ["memory", "embedded", "redis", "cluster"]
SERVERS = KINDS[1:]


class Servers:
    """Starts each kind of server when it is first wanted."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self._directory = directory
        self._stack = stack
        self._backends: dict[str, Backend] = {"memory": Backend("memory")}

    def get(self, kind: str) -> Backend:
        if kind not in self._backends:
            self._backends[kind] = getattr(self, f"_{kind}")()
        return self._backends[kind]

    def _embedded(self) -> Backend:
        binary = str(find_server_binary().path)
        return self._server(RedisServer(self._directory / "embedded", binary=binary), "embedded")

    def _redis(self) -> Backend:
        return self._server(RedisServer(self._directory / "redis"), "redis")

    def _server(self, server: RedisServer, kind: str) -> Backend:
        self._stack.callback(server.kill)
        asyncio.run(server.start())
        asyncio.run(make_user(server))
        return Backend(kind, server.url, url_of(server))

    def _cluster(self) -> Backend:
        nodes = [
            RedisServer(
                self._directory / f"cluster{index}",
                port=free_port(),
                settings={
                    "cluster-enabled": "yes",
                    "cluster-port": str(free_port()),
                    "cluster-node-timeout": "2000",
                },
            )
            for index in range(3)
        ]
        cluster = RedisCluster(nodes)
        self._stack.callback(cluster.kill)
        asyncio.run(cluster.start())
        for node in nodes:
            asyncio.run(make_user(node, "+cluster|slots"))
        return Backend("cluster", cluster.url, url_of(nodes[0]), is_cluster=True)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with contextlib.ExitStack() as stack:
        # short: a unix socket's path has at most 107 bytes
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-store-"))
        yield Servers(Path(directory), stack)


def _marks(kind: str) -> list[Any]:
    return {"redis": [pytest.mark.redis], "cluster": [pytest.mark.redis, pytest.mark.cluster]}.get(
        kind, []
    )


def _backend(servers: Servers, kind: str) -> Backend:
    reason = why_missing() if kind in {"redis", "cluster"} else None
    if reason:
        pytest.skip(reason)
    return servers.get(kind)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A server of the test's own, which it may reconfigure, fill or kill."""
    made = RedisServer(tmp_path / "server", binary=str(find_server_binary().path))
    await made.start()
    try:
        yield made
    finally:
        made.kill()


@pytest.fixture(params=[pytest.param(kind, marks=_marks(kind)) for kind in KINDS])
def any_backend(request: pytest.FixtureRequest, servers: Servers) -> Backend:
    """Every kind of store."""
    return _backend(servers, request.param)


@pytest.fixture(params=[pytest.param(kind, marks=_marks(kind)) for kind in SERVERS])
def server_backend(request: pytest.FixtureRequest, servers: Servers) -> Backend:
    """Every kind of store that is a server."""
    return _backend(servers, request.param)


@pytest.fixture
def embedded_backend(servers: Servers) -> Backend:
    """The server of the embedded store."""
    return _backend(servers, "embedded")


@contextlib.asynccontextmanager
async def _world(backend: Backend, directory: Path, **changes: Any) -> AsyncIterator[World]:
    world = World(backend, directory, **changes)
    if not world.has_real_clock:
        world.mutations.edit(ASK_TIME, READ_TIME)
    with world.mutations.installed():
        async with world:
            yield world


@pytest.fixture
async def world(any_backend: Backend, tmp_path: Path) -> AsyncIterator[World]:
    """An empty store of every kind, with one node and a clock that the test moves."""
    async with _world(any_backend, tmp_path) as made:
        await made.node()
        yield made


@pytest.fixture
async def any_world(any_backend: Backend, tmp_path: Path) -> AsyncIterator[World]:
    """The same, of every kind; no node yet."""
    async with _world(any_backend, tmp_path) as made:
        yield made


@pytest.fixture
async def server_world(server_backend: Backend, tmp_path: Path) -> AsyncIterator[World]:
    """The same, of every kind that is a server; no node yet."""
    async with _world(server_backend, tmp_path) as made:
        yield made


@pytest.fixture
async def embedded_world(embedded_backend: Backend, tmp_path: Path) -> AsyncIterator[World]:
    """The same, in the server of the embedded store only; no node yet."""
    async with _world(embedded_backend, tmp_path) as made:
        yield made


@pytest.fixture
async def real_time_world(server_backend: Backend, tmp_path: Path) -> AsyncIterator[World]:
    """The scripts as they are shipped, with the server's own clock; no node yet."""
    async with _world(server_backend, tmp_path, has_real_clock=True) as made:
        yield made
