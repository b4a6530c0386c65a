"""Run a node: bind, start the store, serve, drain (ARCHITECTURE.md §10).

::

    bind ▶ store starts ▶ loops and servers run ▶ SIGTERM ▶ refuse new ▶ commits end ▶ bye ▶ stop

Stdout carries one JSON line, when the node is ready; everything else goes to stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import uvicorn

from relay import log
from relay.core.errors import ErrorCode, RelayError, UnavailableError
from relay.core.jws import dumps
from relay.http.app import admin_app, public_app
from relay.server.build import Built, build, open_store
from relay.server.loops import (
    BOUNCE_S,
    DISK_S,
    FOLLOW_S,
    HANDOFFS_S,
    LINKS_REST_S,
    MEASURE_S,
    MEET_S,
    PEERS_S,
    POLL_S,
    PULL_REST_S,
    PUSH_S,
    RETURN_REST_S,
    SWEEP_S,
    every,
)
from relay.settings import Settings, split_host_port
from relay.tasks import side_by_side
from relay.ws.endpoint import Endpoint
from relay.ws.protocol import HeaderDeadlineProtocol, RelaySocket

BACKLOG: Final = 2048
GC_ALLOCATIONS: Final = 20_000
EXIT_OK: Final = 0
EXIT_FAILED: Final = 1


class _Server(uvicorn.Server):
    """A server that leaves signals to the node: the drain comes first."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets=sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


async def run_node(settings: Settings) -> int:
    """Serve until a signal; gives the exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        with bind(settings.listen) as public, bind(settings.admin) as admin:
            async with open_store(settings) as opened:
                built = await build(settings, opened, _origin(settings, public))
                _spare_the_collector()
                await serve(built, public, admin, stop, _say)
    except RelayError as exc:
        print(f"relay: {exc.detail or exc.code}", file=sys.stderr)  # noqa: T201  for a person
        return EXIT_FAILED
    log.node_stopped("signal")
    return EXIT_OK


def _spare_the_collector() -> None:
    """Let the cycle collector pass over what the imports made, and come less often.

    A node makes few cycles, but an envelope makes hundreds of objects: by default the collector
    would walk the whole heap every few hundred envelopes, while everybody waits.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)


@contextlib.contextmanager
def bind(address: str) -> Iterator[socket.socket]:
    host, port = split_host_port(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        made = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as exc:
        raise UnavailableError(ErrorCode.WRONG_STATE, f"cannot listen on {address}: {exc}") from exc
    with made:
        yield made


def _address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _origin(settings: Settings, bound: socket.socket) -> str:
    return settings.public_url or f"http://{_address(bound)}"


async def serve(
    built: Built,
    public: socket.socket,
    admin: socket.socket,
    stop: asyncio.Event,
    announce: Callable[[dict[str, str]], None],
) -> None:
    """Serve an opened node on two bound sockets until ``stop``, then drain.

    Args:
        built: the node.
        public: where agents come.
        admin: where the operator comes.
        stop: set to end.
        announce: told DID and addresses once everything listens.
    """
    node, settings = built.node, built.settings
    endpoint = Endpoint(node)
    servers = (
        _server(public_app(node, endpoint), settings),
        _server(admin_app(node, built.operating, built.is_ready), settings),
    )
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(server.serve(sockets=[bound]))
            for server, bound in zip(servers, (public, admin), strict=True)
        ]
        background = [tasks.create_task(work) for work in _work(built)]
        announce(await _listening(servers, built, public, admin))
        await stop.wait()
        await _drain(built, endpoint)
        for server in servers:
            server.should_exit = True
        await asyncio.wait(running)
        for task in background:
            task.cancel()


def _work(built: Built) -> list[Any]:
    node, house = built.node, built.housekeeping
    return [
        node.intake.commits.run(),
        node.acks.run(),
        *(component.run() for component in built.components),
        every("poll", POLL_S, house.poll),
        every("sweep", SWEEP_S, house.sweep),
        every("bounce", BOUNCE_S, house.bounce),
        every("disk", DISK_S, built.check_disk),
        every("follow", FOLLOW_S, node.mesh.following),
        *([] if node.peers.federation == "off" else _mesh_work(built)),
    ]


def _mesh_work(built: Built) -> list[Any]:
    mesh = built.node.mesh
    return [
        every("links", LINKS_REST_S, lambda: built.links.run(mesh)),
        every("peers", PEERS_S, built.node.peers.refresh),
        every("handoffs", HANDOFFS_S, built.housekeeping.handoffs),
        built.node.forwarding.run(),
        every("push", PUSH_S, mesh.push),
        every("measure", MEASURE_S, built.housekeeping.measure),
        every("return", RETURN_REST_S, built.node.returning),
        every("pull", PULL_REST_S, mesh.pull),
        every("meet", MEET_S, mesh.meet),
    ]


async def _listening(
    servers: tuple[_Server, ...], built: Built, public: socket.socket, admin: socket.socket
) -> dict[str, str]:
    for server in servers:
        await server.listening.wait()
    node = built.node
    log.node_started(node.key.did, node.settings.url, node.store.durability)
    return {
        "did": node.key.did,
        "url": node.settings.url,
        "admin": f"http://{_address(admin)}",
        "listen": _address(public),
    }


def _say(line: dict[str, str]) -> None:
    """The one line on stdout: a program that started us waits for it."""
    sys.stdout.buffer.write(dumps(line) + b"\n")
    sys.stdout.buffer.flush()


async def _drain(built: Built, endpoint: Endpoint) -> None:
    """Take nothing new, finish what was taken, say goodbye, and only then close."""
    node = built.node
    node.intake.draining = True
    log.draining(endpoint.count)
    try:
        async with asyncio.timeout(built.settings.drain_s):
            await node.intake.commits.idle()
            await _leave_outboxes(built)
            await node.acks.idle()
            await side_by_side([built.links.drain(), endpoint.drain()])
    except TimeoutError:
        log.loop_failed("drain", ErrorCode.DRAINING)
    with contextlib.suppress(RelayError):
        await node.store.leave(node.node_id)


async def _leave_outboxes(built: Built) -> None:
    """Couriers end cleanly, but a relay that does not answer keeps no agent from its goodbye."""
    try:
        async with asyncio.timeout(built.settings.drain_s / 2):
            await built.node.forwarding.drain()
    except TimeoutError:
        log.loop_failed("forward", ErrorCode.DRAINING)


def _server(app: Any, settings: Settings) -> _Server:
    return _Server(
        uvicorn.Config(
            app,
            http=HeaderDeadlineProtocol,
            ws=RelaySocket,
            ws_ping_interval=settings.ping_interval_s,
            ws_ping_timeout=settings.ping_timeout_s,
            ws_per_message_deflate=False,
            ws_max_size=2 * 1024 * 1024,
            timeout_graceful_shutdown=2,
            server_header=False,
            date_header=False,
            access_log=False,
            log_config=None,
            lifespan="off",
        )
    )
