"""One HTTP request to a relay and its answer (PROTOCOL.md §6).

Rules of the file: where no connection came about, the error says ``stored`` ``no``: nothing was
said. Any later failure says nothing of what the relay did.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from typing import Final

from relay.client.errors import AgentError, typed
from relay.client.http import (
    http1,
    network,
)
from relay.client.http.network import Route
from relay.client.http.origin import Origin
from relay.protocol import frames
from relay.protocol import jws as jose
from relay.protocol.errors import (
    ErrorCode,
    Stored,
)

EXCHANGE_S: Final = 10.0
SHORTEST_S: Final = 0.1


def unnoticed() -> None:
    """For who need not know when something is said."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a relay.

    Args:
        method: GET, POST, PUT or PATCH.
        path: path and query.
        body: JSON, or None.
        token: of a login, or None.
        begin: is called when there is a connection, just before anything is said.
    """

    method: str
    path: str
    body: bytes | None = None
    token: str | None = field(default=None, repr=False)
    begin: Callable[[], None] = unnoticed


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
    status, answer = await exchange(origin, request, seconds)
    members = read(origin, status, answer)
    if members.has("error"):
        raise error_of(origin, status, members)
    return members


async def exchange(
    origin: Origin, request: Request, seconds: float, *, longest: float | None = None
) -> tuple[int, bytes]:
    """Make one request; gives status and body.

    Args:
        origin: of whom.
        request: what is asked.
        seconds: what is left for it.
        longest: however much is left; None: 10 s.

    Raises:
        AgentError: ``peer_unreachable``; ``unsupported``: a proxy that cannot be used.
    """
    route = Route.to(origin)
    stored: Stored | None = "no"
    try:
        async with (
            asyncio.timeout(max(SHORTEST_S, min(seconds, longest or EXCHANGE_S))),
            network.stream(route) as (reader, writer),
        ):
            said = _written(origin, request)
            stored = None
            request.begin()
            # not drained: a relay may answer before it has read everything
            writer.write(said)
            answer = await http1.read_head(reader)
            return answer.status, await http1.read_body(reader, answer, frames.MAX_FRAME_BYTES)
    except (OSError, EOFError, ValueError, HTTPException) as exc:
        # ValueError: also a host whose labels no DNS can have; a stranger's record may name one
        detail = f"{route}: {network.reason(exc)}"
        raise typed(ErrorCode.PEER_UNREACHABLE, detail, stored=stored) from exc


async def certified_until(origin: Origin, seconds: float = EXCHANGE_S) -> int:
    """When the certificate of a relay ends, Unix seconds; it is good today.

    Raises:
        AgentError: ``peer_unreachable``; ``unsupported``: a proxy that cannot be used.
    """
    route = Route.to(origin)
    try:
        async with asyncio.timeout(seconds), network.stream(route) as (_, writer):
            said = writer.get_extra_info("peercert")
            if not said:
                raise ValueError("it has no certificate")
            return int(ssl.cert_time_to_seconds(said["notAfter"]))
    except (OSError, EOFError, ValueError, HTTPException) as exc:
        raise typed(ErrorCode.PEER_UNREACHABLE, f"{route}: {network.reason(exc)}") from exc


def _written(origin: Origin, request: Request) -> bytes:
    here = replace(origin, host=origin.host.encode("idna").decode())
    lines = [
        f"{request.method} {request.path} HTTP/1.1",
        f"Host: {str(here).partition('://')[2]}",
        "Accept-Encoding: identity",
        "Connection: close",
    ]
    if request.token is not None:
        lines.append(f"Authorization: Bearer {request.token}")
    if request.body is not None:
        lines.append("Content-Type: application/json")
    body = request.body or b""
    if request.method != "GET":
        lines.append(f"Content-Length: {len(body)}")
    return http1.head(lines) + body


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
