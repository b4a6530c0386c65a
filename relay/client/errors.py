"""The errors of the SDK: one class for each code, in families by fault.

Every class is also one of ``relay.protocol.errors`` and has a ``.code``. The table of classes is
total over :class:`ErrorCode`.

::

    AgentError(code, detail, retry_after; stored, envelope, record)
    ├── ProtocolError      ours or theirs, trying again will not help
    ├── RejectedError      a policy says no
    ├── StateError         not as things stand
    ├── UnavailableError   nobody's fault, try again
    │   └── OutcomeUnknownError   perhaps stored: submit the same envelope again, sign no other
    └── InternalError      a bug
"""

from __future__ import annotations

import logging
from typing import Final

from relay.protocol import errors as core
from relay.protocol.envelope import SignedEnvelope
from relay.protocol.errors import CLOSE_CODE, ErrorCode, RelayError, Stored
from relay.protocol.ids import Did

_log: Final = logging.getLogger("relay.client")


class AgentError(RelayError):
    """Base of all errors of the SDK.

    Attributes:
        stored: of a send: ``no``, or ``unknown`` if the envelope may be stored; else None.
        envelope: of a send: the envelope to submit again, if that makes sense.
        record: with ``moved``: the newest endpoint record (JWS) of the agent.
    """

    stored: Stored | None = None
    envelope: SignedEnvelope | None = None
    record: str | None = None


class ProtocolError(AgentError, core.ProtocolError):
    """A message or request is invalid; the same one will always fail."""


class RejectedError(AgentError, core.RejectedError):
    """A quota, a limit, or a rule of the recipient or the operator forbids it."""


class StateError(AgentError, core.StateError):
    """The request is valid, but not in the present state."""


class UnavailableError(AgentError, core.UnavailableError):
    """A temporary failure; try again."""


class InternalError(AgentError):
    """The relay has a bug."""


class OutcomeUnknownError(UnavailableError):
    """The deadline passed; the envelope may be stored. Submit ``.envelope`` again, same bytes."""


class UnreachableError(UnavailableError):
    """No relay could be reached."""


class StorageUnavailableError(UnavailableError):
    """The relay's store does not answer."""


class StorageFullError(UnavailableError):
    """The relay's disk or memory is full."""


class DrainingError(UnavailableError):
    """The node is shutting down."""


class SupersededError(StateError):
    """A newer session has this inbox; this one has stopped for good."""


class InboxResetError(StateError):
    """The inbox began a new epoch: what was in it may be lost, what comes may come again."""


class MovedError(StateError):
    """The newest record names another home."""


class UnknownInboxError(StateError):
    """The recipient has no inbox at this relay."""


class WrongRelayError(ProtocolError):
    """Another relay than before answers at this address, or it cannot prove its identity.

    Attributes:
        found: the DID that the relay there claims; None: not known. If its operator confirms
            that the relay has this new key: :func:`relay.client.accept_relay`.
    """

    found: Did | None = None


class ExpiredError(ProtocolError):
    """The time of an envelope or a login has passed."""


class ReplayedError(ProtocolError):
    """The id was used for another envelope."""


class StaleIdError(ProtocolError):
    """The inbox no longer remembers ids this old."""


class TooLargeError(ProtocolError):
    """Over a limit of the relay."""


class WrongStateError(ProtocolError):
    """Not in this state: say, there is no migration to take back."""


class ClosedError(WrongStateError):
    """This agent was closed; only the SDK itself raises it."""


class RateLimitedError(RejectedError):
    """Too fast; ``retry_after`` says when to go on."""


class SenderQuotaError(RejectedError):
    """Too much of this sender waits in that inbox."""


class StrangerQuotaError(RejectedError):
    """Too much of senders whom the recipient does not know waits in that inbox."""


class InboxFullError(RejectedError):
    """The recipient's inbox is full."""


class BlockedError(RejectedError):
    """The operator or the recipient does not take this sender's envelopes."""


class NotAdmittedError(RejectedError):
    """The relay admits no inbox of this agent, or the recipient accepts no first contact."""


class BadEnvelopeError(ProtocolError):
    """The envelope's form, or a time or hash in it, is wrong."""


class BadSignatureError(ProtocolError):
    """A signature does not hold, or is of another key."""


class BadFrameError(ProtocolError):
    """A frame has the wrong form or an impossible value."""


class TooManyHopsError(ProtocolError):
    """An envelope passed too many relays."""


class NotYetValidError(ProtocolError):
    """It is from the future: one of the clocks is wrong."""


class UnsupportedError(ProtocolError):
    """Another version or method; or plain text beyond loopback."""


class NotFederatedError(RejectedError):
    """A login as a relay, at one that links with none."""


class NoRelayingError(RejectedError):
    """The relay forwards only for its own agents."""


class OverloadedError(RejectedError):
    """Too much at once: of the inbox's memory of ids, or of this agent."""


class MigratingError(StateError):
    """The inbox is being moved."""


class MigrationStalledError(MigratingError):
    """A migration did not go on in time; nothing is lost, and ``.detail`` says what can be done."""


class AuthRequiredError(StateError):
    """There was no login in time."""


class StaleRecordError(StateError):
    """A record older than the one that is held."""


class HandleChangedError(StaleRecordError):
    """A handle leads to another DID than it did when it was first written to; nothing is sent."""


class CorruptError(StateError):
    """Stored data is damaged: an envelope, or the state file."""


class IdentityUnavailableError(UnavailableError):
    """The keys of a DID cannot be found out now."""


class SlowReaderError(UnavailableError):
    """This agent left its socket full for too long."""


CLASS_OF: Final[dict[ErrorCode, type[AgentError]]] = {
    ErrorCode.BAD_ENVELOPE: BadEnvelopeError,
    ErrorCode.BAD_SIGNATURE: BadSignatureError,
    ErrorCode.BAD_FRAME: BadFrameError,
    ErrorCode.REPLAYED: ReplayedError,
    ErrorCode.STALE_ID: StaleIdError,
    ErrorCode.WRONG_STATE: WrongStateError,
    ErrorCode.WRONG_RELAY: WrongRelayError,
    ErrorCode.TOO_LARGE: TooLargeError,
    ErrorCode.TOO_MANY_HOPS: TooManyHopsError,
    ErrorCode.EXPIRED: ExpiredError,
    ErrorCode.NOT_YET_VALID: NotYetValidError,
    ErrorCode.UNSUPPORTED: UnsupportedError,
    ErrorCode.RATE_LIMITED: RateLimitedError,
    ErrorCode.SENDER_QUOTA: SenderQuotaError,
    ErrorCode.STRANGER_QUOTA: StrangerQuotaError,
    ErrorCode.INBOX_FULL: InboxFullError,
    ErrorCode.BLOCKED: BlockedError,
    ErrorCode.NOT_ADMITTED: NotAdmittedError,
    ErrorCode.NOT_FEDERATED: NotFederatedError,
    ErrorCode.NO_RELAYING: NoRelayingError,
    ErrorCode.OVERLOADED: OverloadedError,
    ErrorCode.UNKNOWN_INBOX: UnknownInboxError,
    ErrorCode.INBOX_RESET: InboxResetError,
    ErrorCode.MOVED: MovedError,
    ErrorCode.SUPERSEDED: SupersededError,
    ErrorCode.MIGRATING: MigratingError,
    ErrorCode.AUTH_REQUIRED: AuthRequiredError,
    ErrorCode.STALE_RECORD: StaleRecordError,
    ErrorCode.CORRUPT: CorruptError,
    ErrorCode.STORAGE_UNAVAILABLE: StorageUnavailableError,
    ErrorCode.STORAGE_FULL: StorageFullError,
    ErrorCode.PEER_UNREACHABLE: UnreachableError,
    ErrorCode.IDENTITY_UNAVAILABLE: IdentityUnavailableError,
    ErrorCode.DRAINING: DrainingError,
    ErrorCode.SLOW_READER: SlowReaderError,
    ErrorCode.INTERNAL: InternalError,
}
"""The class of each code."""

CLOSE_CODES: Final = {number: code for code, number in CLOSE_CODE.items() if number is not None}
"""PROTOCOL.md §5.5, for a close whose ``bye`` did not arrive."""

ENDS_THE_AGENT: Final = frozenset({
    ErrorCode.SUPERSEDED, ErrorCode.WRONG_RELAY, ErrorCode.NOT_ADMITTED, ErrorCode.BLOCKED,
    ErrorCode.UNSUPPORTED, ErrorCode.BAD_SIGNATURE, ErrorCode.NOT_YET_VALID, ErrorCode.EXPIRED,
    ErrorCode.NOT_FEDERATED, ErrorCode.MOVED,
})  # fmt: skip
"""Ends of a session after which a reconnect would only repeat them, or supersede another one."""


CLOCK: Final = "clock"


def make_error(
    code: ErrorCode,
    detail: str = "",
    *,
    retry_after: int | None = None,
    stored: Stored | None = None,
    envelope: SignedEnvelope | None = None,
    record: str | None = None,
) -> AgentError:
    """Return the error whose class belongs to ``code``."""
    if code is ErrorCode.NOT_YET_VALID and CLOCK not in detail:
        detail = f"{detail}{'; ' if detail else ''}is the {CLOCK} of this machine right?"
    exc = CLASS_OF[code](code, detail, retry_after=retry_after)
    exc.stored, exc.envelope, exc.record = stored, envelope, record
    return exc


def from_core(exc: RelayError, *, record: str | None = None) -> AgentError:
    """Return the SDK's error for an error of :mod:`relay.protocol`."""
    if isinstance(exc, AgentError):
        return exc
    return make_error(exc.code, exc.detail, retry_after=exc.retry_after, record=record)


def clone(exc: AgentError) -> AgentError:
    """Return a copy: one object raised in several tasks mixes their tracebacks."""
    made = type(exc)(exc.code, exc.detail, retry_after=exc.retry_after)
    made.stored, made.envelope, made.record = exc.stored, exc.envelope, exc.record
    if isinstance(exc, WrongRelayError) and isinstance(made, WrongRelayError):
        made.found = exc.found
    return made


def closed(detail: str = "this agent is closed") -> ClosedError:
    """Return the error of a call after the end of the agent; only the SDK raises it."""
    return ClosedError(ErrorCode.WRONG_STATE, detail)


def bug_of(exc: Exception, where: str) -> AgentError:
    """Log a bug with its traceback; return the error that reports it."""
    _log.error("a bug in %s", where, exc_info=exc)
    while isinstance(exc, ExceptionGroup):
        exc = exc.exceptions[0]
    return make_error(ErrorCode.INTERNAL, f"a bug in {where}: {type(exc).__name__}: {exc}")
