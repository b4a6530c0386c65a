"""One HTTP request to a relay and its answer (PROTOCOL.md §6).

Entry points: :func:`request` returns status and body, :func:`request_json` the members of a JSON
answer. Invariant: an error that happens before the connection stands has ``stored`` ``no``, since
nothing was sent. A later error tells nothing about what the relay did.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from typing import Final

from relay.client.errors import AgentError, make_error
from relay.client.http import http1, network
from relay.client.http.network import Route
from relay.client.http.origin import Origin
from relay.protocol import frames
from relay.protocol import jws as jose
from relay.protocol.errors import ErrorCode, Stored

REQUEST_TIMEOUT_S: Final = 10.0
MIN_TIMEOUT_S: Final = 0.1


def no_op() -> None:
    """Do nothing: for a caller that does not need to know when a request is sent."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request to a relay.

    Args:
        method: GET, POST, PUT or PATCH.
        path: path and query.
        body: JSON, or None.
        token: of a login, or None.
        on_connected: called once the connection stands, before anything is sent.
    """

    method: str
    path: str
    body: bytes | None = None
    token: str | None = field(default=None, repr=False)
    on_connected: Callable[[], None] = no_op


async def request_json(
    origin: Origin,
    method: str,
    path: str,
    *,
    body: object = None,
    token: str | None = None,
    timeout_s: float = REQUEST_TIMEOUT_S,
) -> jose.Members:
    """Make one request, and return the members of the answer.

    Raises:
        AgentError: the relay's refusal; or ``peer_unreachable``.
    """
    made = HttpRequest(method, path, None if body is None else jose.dumps(body), token)
    status, answer = await request(origin, made, timeout_s)
    members = read_members(origin, status, answer)
    if members.has("error"):
        raise error_of(origin, status, members)
    return members


async def request(
    origin: Origin, made: HttpRequest, timeout_s: float, *, max_s: float | None = None
) -> tuple[int, bytes]:
    """Make one request, and return status and body.

    Args:
        origin: of the relay.
        made: the request.
        timeout_s: the time that the caller has left.
        max_s: the longest wait, however much is left; None: 10 s.

    Raises:
        AgentError: ``peer_unreachable``; ``unsupported``: a proxy that cannot be used.
    """
    route = Route.to(origin)
    stored: Stored | None = "no"
    try:
        async with (
            asyncio.timeout(max(MIN_TIMEOUT_S, min(timeout_s, max_s or REQUEST_TIMEOUT_S))),
            network.stream(route) as (reader, writer),
        ):
            data = _encode(origin, made)
            stored = None
            made.on_connected()
            # not drained: a relay may answer before it has read everything
            writer.write(data)
            answer = await http1.read_head(reader)
            return answer.status, await http1.read_body(reader, answer, frames.MAX_FRAME_BYTES)
    except (OSError, EOFError, ValueError, HTTPException) as exc:
        # ValueError: also a host name that DNS does not allow; the record of a stranger may have it
        detail = f"{route}: {network.reason(exc)}"
        raise make_error(ErrorCode.PEER_UNREACHABLE, detail, stored=stored) from exc


async def certificate_expiry(origin: Origin, timeout_s: float = REQUEST_TIMEOUT_S) -> int:
    """Return when the certificate of a relay expires, Unix seconds; today it is valid.

    Raises:
        AgentError: ``peer_unreachable``; ``unsupported``: a proxy that cannot be used.
    """
    route = Route.to(origin)
    try:
        async with asyncio.timeout(timeout_s), network.stream(route) as (_, writer):
            certificate = writer.get_extra_info("peercert")
            if not certificate:
                raise ValueError("it has no certificate")
            return int(ssl.cert_time_to_seconds(certificate["notAfter"]))
    except (OSError, EOFError, ValueError, HTTPException) as exc:
        raise make_error(ErrorCode.PEER_UNREACHABLE, f"{route}: {network.reason(exc)}") from exc


def _encode(origin: Origin, made: HttpRequest) -> bytes:
    host = replace(origin, host=origin.host.encode("idna").decode())
    lines = [
        f"{made.method} {made.path} HTTP/1.1",
        f"Host: {str(host).partition('://')[2]}",
        "Accept-Encoding: identity",
        "Connection: close",
    ]
    if made.token is not None:
        lines.append(f"Authorization: Bearer {made.token}")
    if made.body is not None:
        lines.append("Content-Type: application/json")
    body = made.body or b""
    if made.method != "GET":
        lines.append(f"Content-Length: {len(body)}")
    return http1.encode_head(lines) + body


def read_members(origin: Origin, status: int, answer: bytes) -> jose.Members:
    """Return the members of a JSON answer.

    Raises:
        UnavailableError: it is not the answer of a relay.
    """
    try:
        return jose.Members(jose.loads(answer))
    except ValueError as exc:
        raise not_a_relay(origin, status) from exc


def not_a_relay(origin: Origin, status: int) -> AgentError:
    """Return the error for an answer that is not from a relay."""
    detail = f"{origin} answered HTTP {status}, but not as a relay does"
    return make_error(ErrorCode.PEER_UNREACHABLE, detail)


def error_of(origin: Origin, status: int, members: jose.Members) -> AgentError:
    """Return the error that a relay names in its answer."""
    try:
        return make_error(
            ErrorCode(members.text("error", limit=64)),
            members.optional_text("detail", limit=1024) or "",
            retry_after=members.integer("retry_after") if members.has("retry_after") else None,
        )
    except ValueError:
        return not_a_relay(origin, status)
