"""One HTTP request to a relay and its answer (PROTOCOL.md §6); what blocks is in a thread.

Rules of the file: where no connection came about, the error says ``stored`` ``no``: nothing was
said. Any later failure says nothing of what the relay did.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from relay.client.errors import AgentError, typed
from relay.client.origin import Origin
from relay.core import addresses
from relay.core import jws as jose
from relay.core.errors import ErrorCode, Stored
from relay.core.frames import MAX_FRAME_BYTES

EXCHANGE_S: Final = 10.0
SHORTEST_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a relay."""

    method: str
    path: str
    body: bytes | None = None
    token: str | None = field(default=None, repr=False)


async def ask(
    origin: Origin,
    method: str,
    path: str,
    *,
    body: object = None,
    token: str | None = None,
    seconds: float = EXCHANGE_S,
) -> jose.Members:
    """Make one request; gives the members of the answer.

    Raises:
        AgentError: the relay's no; or ``peer_unreachable``.
    """
    request = Request(method, path, None if body is None else jose.dumps(body), token)
    status, answer = await in_thread(origin, request, seconds)
    members = read(origin, status, answer)
    if members.has("error"):
        raise error_of(origin, status, members)
    return members


async def in_thread(
    origin: Origin, request: Request, seconds: float, *, longest: float | None = None
) -> tuple[int, bytes]:
    """Make one request; gives status and body.

    Args:
        origin: of whom.
        request: what is asked.
        seconds: what is left for it.
        longest: however much is left; None: 10 s.

    Raises:
        AgentError: ``peer_unreachable``.
    """
    # the thread cannot be cancelled: it must not outlive the deadline by itself
    limit = max(SHORTEST_S, min(seconds, longest or EXCHANGE_S))
    cuts: list[Callable[[], None]] = []
    try:
        return await asyncio.to_thread(_exchange, origin, request, limit, cuts)
    finally:
        # nobody waits for it any more: nor does the end of the program
        for cut in cuts:
            cut()


async def certified_until(origin: Origin, seconds: float = EXCHANGE_S) -> int:
    """When the certificate of a relay ends, Unix seconds; it is good today.

    Raises:
        AgentError: ``peer_unreachable``.
    """
    return await asyncio.to_thread(_certified_until, origin, seconds)


def _certified_until(origin: Origin, seconds: float) -> int:
    context = ssl.create_default_context()
    try:
        with (
            socket.create_connection((origin.host, origin.port), seconds) as plain,
            context.wrap_socket(plain, server_hostname=origin.host) as secured,
        ):
            said = secured.getpeercert() or {}
    except (OSError, UnicodeError) as exc:
        raise typed(ErrorCode.PEER_UNREACHABLE, f"{origin}: {_reason(exc)}") from exc
    return int(ssl.cert_time_to_seconds(str(said.get("notAfter"))))


def read(origin: Origin, status: int, answer: bytes) -> jose.Members:
    """The answer as members.

    Raises:
        UnavailableError: it is not what a relay says.
    """
    try:
        return jose.Members(jose.loads(answer))
    except ValueError as exc:
        raise not_a_relay(origin, status) from exc


def not_a_relay(origin: Origin, status: int) -> AgentError:
    """Somebody answers there, but it cannot be understood."""
    detail = f"{origin} answered HTTP {status}, but not as a relay does"
    return typed(ErrorCode.PEER_UNREACHABLE, detail)


def error_of(origin: Origin, status: int, members: jose.Members) -> AgentError:
    """The error that a relay names in its answer."""
    try:
        return typed(
            ErrorCode(members.text("error", most=64)),
            members.optional_text("detail", most=1024) or "",
            retry_after=members.integer("retry_after") if members.has("retry_after") else None,
        )
    except ValueError:
        return not_a_relay(origin, status)


class _Outside(http.client.HTTPSConnection):
    """Resolves once, and dials a public address of that or none."""

    def connect(self) -> None:
        """See :class:`http.client.HTTPSConnection`.

        Raises:
            OSError: unreachable, or one of its addresses is inside.
        """
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        hosts = [str(address[0]) for *_, address in found]
        if not all(addresses.is_public(ipaddress.ip_address(host)) for host in hosts):
            raise OSError(f"{self.host} leads to an address inside of here")
        plain = socket.create_connection((hosts[0], self.port), self.timeout)
        self.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)


def _kind(origin: Origin) -> type[http.client.HTTPConnection]:
    if origin.is_plain:
        return http.client.HTTPConnection
    return _Outside if origin.is_strangers else http.client.HTTPSConnection


def _exchange(
    origin: Origin, request: Request, seconds: float, cuts: list[Callable[[], None]]
) -> tuple[int, bytes]:
    connection = _kind(origin)(origin.host, origin.port, timeout=seconds)
    headers = {"Content-Type": "application/json"} if request.body is not None else {}
    if request.token is not None:
        headers["Authorization"] = f"Bearer {request.token}"
    stored: Stored | None = "no"
    try:
        connection.connect()
        stored = None
        with _cut_off(connection.sock, seconds, cuts):
            connection.request(request.method, request.path, request.body, headers)
            response = connection.getresponse()
            return response.status, response.read(MAX_FRAME_BYTES)
    except (OSError, http.client.HTTPException, UnicodeError) as exc:
        # UnicodeError: a host whose labels no DNS can have; a stranger's record may name one
        raise typed(ErrorCode.PEER_UNREACHABLE, f"{origin}: {_reason(exc)}", stored=stored) from exc
    finally:
        connection.close()


@contextmanager
def _cut_off(
    connected: socket.socket, seconds: float, cuts: list[Callable[[], None]]
) -> Iterator[None]:
    """End the connection after so long: one that says a little now and then never times out.

    Args:
        connected: the connection.
        seconds: from now.
        cuts: gets what ends it earlier, from another thread.

    Raises:
        TimeoutError: it was ended.
    """
    is_over = threading.Event()

    def end() -> None:
        is_over.set()
        with contextlib.suppress(OSError):
            # of TCP, below TLS: the thread that reads has that in hand
            socket.socket.shutdown(connected, socket.SHUT_RDWR)

    cuts.append(end)
    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if is_over.is_set():
            raise TimeoutError("no answer in time")


def _reason(exc: OSError | http.client.HTTPException | UnicodeError) -> str:
    if isinstance(exc, ssl.SSLError):
        return f"TLS: {getattr(exc, 'verify_message', None) or exc.reason or exc}"
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc) or type(exc).__name__
