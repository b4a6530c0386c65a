"""Error codes as WebSocket close codes: a total table, never renumbered (PROTOCOL.md §5.5)."""

from __future__ import annotations

from typing import Final

from relay.protocol.errors import ErrorCode

NORMAL: Final = 1000

CLOSE_CODE: Final[dict[ErrorCode, int | None]] = {
    ErrorCode.INTERNAL: 4000,
    ErrorCode.SUPERSEDED: 4001,
    ErrorCode.MIGRATING: 4002,
    ErrorCode.AUTH_REQUIRED: 4003,
    ErrorCode.BAD_FRAME: 4004,
    ErrorCode.BAD_SIGNATURE: 4005,
    ErrorCode.WRONG_RELAY: 4006,
    ErrorCode.NOT_ADMITTED: 4007,
    ErrorCode.NOT_FEDERATED: 4008,
    ErrorCode.RATE_LIMITED: 4009,
    ErrorCode.OVERLOADED: 4010,
    ErrorCode.DRAINING: 4011,
    ErrorCode.STORAGE_UNAVAILABLE: 4012,
    ErrorCode.SLOW_READER: 4013,
    ErrorCode.TOO_LARGE: 4014,
    ErrorCode.UNSUPPORTED: 4015,
    ErrorCode.BLOCKED: 4016,
    ErrorCode.MOVED: 4017,
    # the others answer a request and close nothing
    ErrorCode.BAD_ENVELOPE: None,
    ErrorCode.REPLAYED: None,
    ErrorCode.STALE_ID: None,
    ErrorCode.WRONG_STATE: None,
    ErrorCode.TOO_MANY_HOPS: None,
    ErrorCode.EXPIRED: None,
    ErrorCode.NOT_YET_VALID: None,
    ErrorCode.SENDER_QUOTA: None,
    ErrorCode.STRANGER_QUOTA: None,
    ErrorCode.INBOX_FULL: None,
    ErrorCode.NO_RELAYING: None,
    ErrorCode.UNKNOWN_INBOX: None,
    ErrorCode.INBOX_RESET: None,
    ErrorCode.STALE_RECORD: None,
    ErrorCode.CORRUPT: None,
    ErrorCode.STORAGE_FULL: None,
    ErrorCode.PEER_UNREACHABLE: None,
    ErrorCode.IDENTITY_UNAVAILABLE: None,
}

CLOSES: Final = frozenset(code for code, number in CLOSE_CODE.items() if number is not None)
"""Codes that a ``bye`` may carry."""


def close_code(code: ErrorCode | None) -> int:
    """Return the close code of an ending; None is a normal closure."""
    if code is None:
        return NORMAL
    return CLOSE_CODE[code] or NORMAL
