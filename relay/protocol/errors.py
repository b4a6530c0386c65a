"""Every way in which a request can end badly: the class says whose fault, the code says what.

::

    RelayError(code, detail, retry_after)
    ├── ProtocolError      their fault, never retry
    ├── RejectedError      policy says no
    ├── StateError         not as things stand
    └── UnavailableError   nobody's fault, retry
    (a bug is none of these: it is ``internal``, logged with its traceback, its text not shown)

Classes and codes do not depend on HTTP or WebSocket. ``http/errors.py`` maps codes to statuses;
``CLOSE_CODE`` maps them to close codes (PROTOCOL.md §5.5). A published code is never renamed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from typing import Final, Literal

Stored = Literal["no", "unknown"]


class ErrorCode(StrEnum):
    """The codes of errors; docs/errors.md documents each."""

    # protocol
    BAD_ENVELOPE = "bad_envelope"
    BAD_SIGNATURE = "bad_signature"
    BAD_FRAME = "bad_frame"
    REPLAYED = "replayed"
    STALE_ID = "stale_id"
    WRONG_STATE = "wrong_state"
    WRONG_RELAY = "wrong_relay"
    TOO_LARGE = "too_large"
    TOO_MANY_HOPS = "too_many_hops"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    UNSUPPORTED = "unsupported"
    # policy
    RATE_LIMITED = "rate_limited"
    SENDER_QUOTA = "sender_quota"
    STRANGER_QUOTA = "stranger_quota"
    INBOX_FULL = "inbox_full"
    BLOCKED = "blocked"
    NOT_ADMITTED = "not_admitted"
    NOT_FEDERATED = "not_federated"
    NO_RELAYING = "no_relaying"
    OVERLOADED = "overloaded"
    # state
    UNKNOWN_INBOX = "unknown_inbox"
    INBOX_RESET = "inbox_reset"
    MOVED = "moved"
    SUPERSEDED = "superseded"
    MIGRATING = "migrating"
    AUTH_REQUIRED = "auth_required"
    STALE_RECORD = "stale_record"
    CORRUPT = "corrupt"
    # nobody's fault
    STORAGE_UNAVAILABLE = "storage_unavailable"
    STORAGE_FULL = "storage_full"
    PEER_UNREACHABLE = "peer_unreachable"
    IDENTITY_UNAVAILABLE = "identity_unavailable"
    DRAINING = "draining"
    SLOW_READER = "slow_reader"
    # a bug
    INTERNAL = "internal"


class RelayError(Exception):
    """Base of all named errors; ``code`` is what a program reads, ``detail`` what a person does.

    Args:
        code: what went wrong.
        detail: one plain sentence; never key material, never a body.
        retry_after: seconds after which trying again makes sense; None = no promise.
    """

    def __init__(
        self, code: ErrorCode, detail: str = "", *, retry_after: int | None = None
    ) -> None:
        super().__init__(f"{code}: {detail}" if detail else str(code))
        self.code = code
        self.detail = detail
        self.retry_after = retry_after


class ProtocolError(RelayError):
    """They sent something that is never right; sending it again will not help."""


class RejectedError(RelayError):
    """A policy says no: a quota, a limit, a rule of the recipient or of the operator."""


class StateError(RelayError):
    """The request is fine, but not as things stand."""


class UnavailableError(RelayError):
    """Nobody's fault; try again."""


_PROTOCOL = frozenset({
    ErrorCode.BAD_ENVELOPE, ErrorCode.BAD_SIGNATURE, ErrorCode.BAD_FRAME, ErrorCode.REPLAYED,
    ErrorCode.STALE_ID, ErrorCode.WRONG_STATE, ErrorCode.WRONG_RELAY, ErrorCode.TOO_LARGE,
    ErrorCode.TOO_MANY_HOPS, ErrorCode.EXPIRED, ErrorCode.NOT_YET_VALID, ErrorCode.UNSUPPORTED,
})  # fmt: skip
_REJECTED = frozenset({
    ErrorCode.RATE_LIMITED, ErrorCode.SENDER_QUOTA, ErrorCode.STRANGER_QUOTA, ErrorCode.INBOX_FULL,
    ErrorCode.BLOCKED, ErrorCode.NOT_ADMITTED, ErrorCode.NOT_FEDERATED, ErrorCode.NO_RELAYING,
    ErrorCode.OVERLOADED,
})  # fmt: skip
_STATE = frozenset({
    ErrorCode.UNKNOWN_INBOX, ErrorCode.INBOX_RESET, ErrorCode.MOVED, ErrorCode.SUPERSEDED,
    ErrorCode.MIGRATING, ErrorCode.AUTH_REQUIRED, ErrorCode.STALE_RECORD, ErrorCode.CORRUPT,
})  # fmt: skip
_UNAVAILABLE = frozenset({
    ErrorCode.STORAGE_UNAVAILABLE, ErrorCode.STORAGE_FULL, ErrorCode.PEER_UNREACHABLE,
    ErrorCode.IDENTITY_UNAVAILABLE, ErrorCode.DRAINING, ErrorCode.SLOW_READER,
})  # fmt: skip

ERROR_CLASS: dict[ErrorCode, type[RelayError]] = {
    **dict.fromkeys(_PROTOCOL, ProtocolError),
    **dict.fromkeys(_REJECTED, RejectedError),
    **dict.fromkeys(_STATE, StateError),
    **dict.fromkeys(_UNAVAILABLE, UnavailableError),
    ErrorCode.INTERNAL: RelayError,
}
"""Whose fault each code is; total over :class:`ErrorCode`."""

OUTCOME_UNKNOWN: frozenset[ErrorCode] = frozenset(
    {ErrorCode.STORAGE_UNAVAILABLE, ErrorCode.INTERNAL, ErrorCode.STALE_ID}
)
"""Codes after which nobody may claim that nothing was stored (PROTOCOL.md §3.3).

``stale_id`` is among them: the memory of that hour is gone, so a resend may be of something stored.
"""


def error(code: ErrorCode, detail: str = "", *, retry_after: int | None = None) -> RelayError:
    """Make the error whose class belongs to ``code``."""
    return ERROR_CLASS[code](code, detail, retry_after=retry_after)


def unreachable(detail: str, wait_s: float | None = None) -> UnavailableError:
    """Return ``peer_unreachable``; ``wait_s`` is rounded up to whole seconds, at least one."""
    retry_after = None if wait_s is None else max(1, ceil(wait_s))
    return UnavailableError(ErrorCode.PEER_UNREACHABLE, detail, retry_after=retry_after)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An expected no, as a value: what the core returns where a caller must go on with the rest.

    Args:
        code: what went wrong.
        detail: one plain sentence for a person.
        retry_after: seconds, or None.
        record: the recipient's newest endpoint record (JWS), with ``moved``.
    """

    code: ErrorCode
    detail: str = ""
    retry_after: int | None = None
    record: str | None = None

    @property
    def stored(self) -> Stored:
        """``unknown`` where the outcome is not known, else ``no`` (GUARANTEES.md S3)."""
        return "unknown" if self.code in OUTCOME_UNKNOWN else "no"

    @classmethod
    def of(cls, exc: RelayError) -> Refusal:
        """The same no as a value."""
        return cls(exc.code, exc.detail, exc.retry_after)

    def to_error(self) -> RelayError:
        """The same no as an exception."""
        return error(self.code, self.detail, retry_after=self.retry_after)


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
