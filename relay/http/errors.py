"""Error codes as HTTP status: a total table, and the one error shape."""

from __future__ import annotations

from typing import Final

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from relay import log, metrics
from relay.protocol.errors import ErrorCode, RelayError
from relay.protocol.jws import dumps

STATUS: Final[dict[ErrorCode, int]] = {
    ErrorCode.BAD_ENVELOPE: 400,
    ErrorCode.BAD_SIGNATURE: 401,
    ErrorCode.BAD_FRAME: 400,
    ErrorCode.REPLAYED: 409,
    ErrorCode.STALE_ID: 409,
    ErrorCode.WRONG_STATE: 409,
    ErrorCode.WRONG_RELAY: 421,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.TOO_MANY_HOPS: 400,
    ErrorCode.EXPIRED: 410,
    ErrorCode.NOT_YET_VALID: 400,
    ErrorCode.UNSUPPORTED: 400,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.SENDER_QUOTA: 429,
    ErrorCode.STRANGER_QUOTA: 429,
    ErrorCode.INBOX_FULL: 507,
    ErrorCode.BLOCKED: 403,
    ErrorCode.NOT_ADMITTED: 403,
    ErrorCode.NOT_FEDERATED: 403,
    ErrorCode.NO_RELAYING: 403,
    ErrorCode.OVERLOADED: 503,
    ErrorCode.UNKNOWN_INBOX: 404,
    ErrorCode.INBOX_RESET: 409,
    ErrorCode.MOVED: 410,
    ErrorCode.SUPERSEDED: 409,
    ErrorCode.MIGRATING: 503,
    ErrorCode.AUTH_REQUIRED: 401,
    ErrorCode.STALE_RECORD: 409,
    ErrorCode.CORRUPT: 500,
    ErrorCode.STORAGE_UNAVAILABLE: 503,
    ErrorCode.STORAGE_FULL: 507,
    ErrorCode.PEER_UNREACHABLE: 502,
    ErrorCode.IDENTITY_UNAVAILABLE: 503,
    ErrorCode.DRAINING: 503,
    ErrorCode.SLOW_READER: 408,
    ErrorCode.INTERNAL: 500,
}


def respond(exc: RelayError, status: int | None = None) -> Response:
    """``{"error", "detail", "retry_after"}``, everywhere the same.

    Args:
        exc: the named error.
        status: another HTTP status than the code's own.
    """
    body = {"error": exc.code, "detail": exc.detail, "retry_after": exc.retry_after}
    headers = {} if exc.retry_after is None else {"Retry-After": str(exc.retry_after)}
    return Response(
        dumps(body), status or STATUS[exc.code], headers=headers, media_type="application/json"
    )


async def on_relay_error(_: Request, exc: Exception) -> Response:
    """Answer a named error."""
    if not isinstance(exc, RelayError):
        return await on_bug(_, exc)
    return respond(exc)


async def on_wrong_route(_: Request, exc: Exception) -> Response:
    """Answer a path or method that is not there (404, 405), in our own shape."""
    status = exc.status_code if isinstance(exc, HTTPException) else 400
    return respond(RelayError(ErrorCode.UNSUPPORTED, "there is no such path or method"), status)


async def on_wrong_parameter(_: Request, exc: Exception) -> Response:
    """Answer a path or query parameter out of its bounds."""
    first = exc.errors()[0] if isinstance(exc, RequestValidationError) else {}
    name = ".".join(str(part) for part in first.get("loc", ()))
    return respond(RelayError(ErrorCode.BAD_FRAME, f"{name}: {first.get('msg', 'wrong')}"))


async def on_bug(_: Request, exc: Exception) -> Response:
    """Answer ``internal``; the text stays in the log."""
    del exc
    log.internal_error("http")
    metrics.INTERNAL.inc()
    return respond(RelayError(ErrorCode.INTERNAL, "a bug of the relay; it has been logged"))
