"""Reading requests: capped, in time, and through the one strict JSON reader."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Final

from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from relay.protocol import frames
from relay.protocol import jws as jose
from relay.protocol.errors import ErrorCode, ProtocolError, StateError

BODY_DEADLINE_S: Final = 15.0
TOKEN_BYTES: Final = 32


async def members(request: Request) -> jose.Members:
    """The body as the members of a strict JSON object.

    Raises:
        ProtocolError: ``too_large``, ``unsupported`` or ``bad_frame``.
    """
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            data = await _capped(request)
    except TimeoutError as exc:
        raise ProtocolError(ErrorCode.BAD_FRAME, "the body came too slowly") from exc
    except ClientDisconnect as exc:
        # nobody reads this answer; it is no bug either
        raise ProtocolError(ErrorCode.BAD_FRAME, "the connection ended within the body") from exc
    try:
        return jose.Members(jose.loads(data))
    except jose.UnsupportedTypeError as exc:
        raise ProtocolError(ErrorCode.UNSUPPORTED, str(exc)) from exc
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_FRAME, str(exc)) from exc


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Turn a wrong member that the block reads into ``bad_frame``."""
    try:
        yield
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_FRAME, str(exc)) from exc


async def _capped(request: Request) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > frames.MAX_FRAME_BYTES:
            detail = f"a body has at most {frames.MAX_FRAME_BYTES} bytes"
            raise ProtocolError(ErrorCode.TOO_LARGE, detail)
    return bytes(data)


def bearer(request: Request) -> bytes:
    """The session token.

    Raises:
        StateError: ``auth_required``.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    try:
        raw = jose.b64decode(token)
    except ValueError:
        raw = b""
    if scheme.lower() != "bearer" or len(raw) != TOKEN_BYTES:
        raise StateError(ErrorCode.AUTH_REQUIRED, "send the session token as a bearer token")
    return raw


def answer(value: object, status: int = 200) -> Response:
    """JSON as the relay writes it everywhere."""
    return Response(jose.dumps(value), status, media_type="application/json")
