"""Run a node: bind, start the store, serve, drain (ARCHITECTURE.md §10).

::

    bind ▶ admin side ▶ store starts ▶ loops and public side run ▶ SIGTERM
         ▶ refuse new ▶ commits end ▶ bye ▶ stop

Stdout carries one JSON line, when the node is ready; everything else goes to stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import uvicorn
from fastapi import FastAPI

from relay import log
from relay.files import allow_files
from relay.health import Health, ProblemReason
from relay.http.app import add_node_routes, admin_app, public_app
from relay.node.build import build
from relay.node.edges import confirm_clock, http_services, ws_services
from relay.node.loops import loops_of, run_every
from relay.node.node import Node
from relay.node.open_store import StoppedError, open_store
from relay.protocol import hosts
from relay.protocol.errors import ErrorCode, RelayError, UnavailableError
from relay.protocol.jws import dumps
from relay.settings import Settings, split_host_port
from relay.tasks import side_by_side
from relay.ws.endpoint import Endpoint
from relay.ws.protocol import HeaderDeadlineProtocol, RelaySocket

BACKLOG: Final = 2048
GC_ALLOCATIONS: Final = 20_000
SPARE_FILES: Final = 128
"""Files beside agents' connections: to the store, to peers, own files."""
EXIT_OK: Final = 0
EXIT_FAILED: Final = 1


class _Server(uvicorn.Server):
    """A server that leaves signals to the node, which drains first."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and set :attr:`listening`."""
        await super().startup(sockets=sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


async def run_node(settings: Settings) -> int:
    """Serve until a signal; return the exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        with bind(settings.listen) as public, bind(settings.admin) as admin:
            listen(admin)
            async with operators_side(admin, settings, Health()) as operators:
                return await _run(settings, public, operators, stop)
    except RelayError as exc:
        return _failed(exc)


def _raise_file_limit(settings: Settings, health: Health) -> None:
    """Raise the limit of open files to what the node may need, or report that it is too low."""
    wanted = settings.max_connections + SPARE_FILES
    allowed = allow_files(wanted)
    detail = (
        f"open files are limited to {allowed} (ulimit -n), fewer than {wanted}: the connections "
        f"of RELAY_MAX_CONNECTIONS and {SPARE_FILES} for the node itself; raise the limit, or "
        "lower RELAY_MAX_CONNECTIONS"
    )
    health.found(ProblemReason.FEW_FILES, detail if allowed < wanted else None)


async def _run(
    settings: Settings, public: socket.socket, operators: OperatorsSide, stop: asyncio.Event
) -> int:
    try:
        async with open_store(settings, operators.health, stop) as opened:
            _raise_file_limit(settings, operators.health)
            listen(public)
            node = await build(settings, opened, _origin(settings, public))
            _tune_collector()
            await serve(node, public, operators, stop, _print_line)
    except StoppedError:
        pass
    except RelayError as exc:
        return _failed(exc)
    log.event("node_stopped", reason="signal")
    return EXIT_OK


def _failed(exc: RelayError) -> int:
    print(f"relay: {exc.detail or exc.code}", file=sys.stderr)  # noqa: T201  for a person
    return EXIT_FAILED


def _tune_collector() -> None:
    """Freeze the objects of the imports, and make the cycle collector run less often.

    A node makes few cycles, but an envelope makes hundreds of objects. By default the collector
    would walk the whole heap every few hundred envelopes, and stop the event loop meanwhile.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)


@contextlib.contextmanager
def bind(address: str) -> Iterator[socket.socket]:
    """Bind an address; no connection is accepted before :func:`listen`."""
    host, port = split_host_port(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    at = hosts.literal(host)
    with socket.socket(family) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # connections inherit it; asyncio sets it only on sockets that it has made
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family is socket.AF_INET6:
            # "::" means all addresses of this machine, those of IPv4, too
            is_both = at is not None and at.is_unspecified and socket.has_dualstack_ipv6()
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not is_both))
        try:
            made.bind((host, port))
        except OSError as exc:
            raise _cannot_listen(address, exc) from exc
        yield made


def listen(bound: socket.socket) -> None:
    """Listen; connections wait until a server accepts them.

    Raises:
        UnavailableError: another process listens at this address.
    """
    try:
        bound.listen(BACKLOG)
    except OSError as exc:
        raise _cannot_listen(_address(bound), exc) from exc


def _cannot_listen(address: str, exc: OSError) -> UnavailableError:
    return UnavailableError(ErrorCode.WRONG_STATE, f"cannot listen on {address}: {exc}")


@dataclass(frozen=True, slots=True)
class OperatorsSide:
    """The admin side; it answers from the start of the process to its end."""

    app: FastAPI
    address: str
    health: Health


@contextlib.asynccontextmanager
async def operators_side(
    admin: socket.socket, settings: Settings, health: Health
) -> AsyncIterator[OperatorsSide]:
    """Serve ``/livez``, ``/readyz`` and ``/metrics`` while the block runs."""
    side = OperatorsSide(admin_app(health), f"http://{_address(admin)}", health)
    server = _server(side.app, settings)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve(sockets=[admin]))
        await server.listening.wait()
        try:
            yield side
        finally:
            server.should_exit = True


def _address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _origin(settings: Settings, bound: socket.socket) -> str:
    return settings.public_url or f"http://{_address(bound)}"


async def serve(
    node: Node,
    public: socket.socket,
    operators: OperatorsSide,
    stop: asyncio.Event,
    announce: Callable[[dict[str, str]], None],
) -> None:
    """Serve an opened node on a bound socket until ``stop``, then drain.

    Args:
        node: the node.
        public: the bound socket for agents.
        operators: the admin side.
        stop: set to end.
        announce: called with DID and addresses when everything listens.
    """
    settings = node.settings
    endpoint = Endpoint(ws_services(node))
    server = _server(public_app(http_services(node), endpoint), settings)
    add_node_routes(operators.app, node.peer_admin, node.clock_guard, lambda: confirm_clock(node))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(server.serve(sockets=[public]))
        background = [tasks.create_task(run_every(*loop)) for loop in loops_of(node)]
        await server.listening.wait()
        operators.health.phase = node.phase
        log.event(
            "node_started",
            did=node.key.did,
            url=node.url,
            durability=node.store.inboxes.durability,
        )
        announce(
            {
                "did": node.key.did,
                "url": node.url,
                "admin": operators.address,
                "listen": _address(public),
            }
        )
        await stop.wait()
        await _drain(node, endpoint)
        server.should_exit = True
        await asyncio.wait([running])
        for task in background:
            task.cancel()


def _print_line(line: dict[str, str]) -> None:
    """Write the one line on stdout: the program that started this one waits for it."""
    sys.stdout.buffer.write(dumps(line) + b"\n")
    sys.stdout.buffer.flush()


async def _drain(node: Node, endpoint: Endpoint) -> None:
    """Accept nothing new, finish what was accepted, say goodbye, then close."""
    node.intake.draining = True
    log.event("draining", connections=endpoint.count)
    try:
        async with asyncio.timeout(node.settings.drain_s):
            await node.intake.commits.idle()
            await _drain_forwarders(node)
            await node.acks.idle()
            await side_by_side([node.links.drain(), endpoint.drain()])
    except TimeoutError:
        log.loop_failed("drain", ErrorCode.DRAINING)
    with contextlib.suppress(RelayError):
        await node.store.nodes.leave(node.node_id)


async def _drain_forwarders(node: Node) -> None:
    """End the forwarders cleanly, but wait for a silent relay only half of the drain time."""
    try:
        async with asyncio.timeout(node.settings.drain_s / 2):
            await node.forwarding.drain()
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
            # by default it trusts X-Forwarded-For from 127.0.0.1: RELAY_TRUSTED_PROXIES decides
            proxy_headers=False,
            forwarded_allow_ips="",
            # else WEB_CONCURRENCY would decide
            workers=1,
        )
    )
