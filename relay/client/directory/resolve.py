"""What an agent finds out by asking its relay; a record's signature is checked here."""

from __future__ import annotations

from dataclasses import dataclass

from relay import clock
from relay.client.errors import typed
from relay.client.session.requests import Answer
from relay.protocol import endpoint_record, frames
from relay.protocol.did import parse_did
from relay.protocol.endpoint_record import EndpointRecord
from relay.protocol.errors import (
    ErrorCode,
    RelayError,
)
from relay.protocol.ids import (
    Did,
    Timestamp,
)


@dataclass(frozen=True, slots=True)
class Found:
    """What resolving came to: found, absent and unreadable are three answers.

    Args:
        state: which of them.
        record: verified, with ``found``.
        stale: past its ``exp``: good for routing, shown as stale.
        did: of a handle: where it leads.
        verified: of a handle: the record lists it, too.
        why: of a handle: why it leads nowhere.
    """

    state: frames.Resolution
    record: EndpointRecord | None = None
    stale: bool = False
    did: Did | None = None
    verified: bool = False
    why: str = ""


def found(answer: Answer, did: str, *, is_own: bool = False) -> Found:
    """Read the answer to a question about ``did``; ``is_own`` as for :func:`verified`.

    Raises:
        ProtocolError: it answers something else.
    """
    if not isinstance(answer, frames.Resolved):
        raise typed(ErrorCode.BAD_FRAME, "an answer to another question")
    if answer.record is None:
        return Found(answer.state)
    record = verified(answer.record, did, is_own=is_own)
    if record is None:
        # a relay can withhold a record, but not make one: what it shows here is none
        return Found("unreadable")
    return Found(answer.state, record, stale=answer.stale)


def verified(compact: str, did: str, *, is_own: bool = False) -> EndpointRecord | None:
    """A record as ``did`` has signed it; None: it has not.

    Args:
        compact: the record.
        did: whose it should be.
        is_own: the caller signs for ``did``. A record from the future counts too: the clock was
            set back, and the next record must be above it.
    """
    now = clock.now()
    try:
        record = endpoint_record.parse(compact)
        judged_at = Timestamp(max(now, record.issued_at)) if is_own else now
        no = endpoint_record.verify(record, parse_did(did), judged_at)
    except RelayError:
        return None
    return record if record.did == did and no is None else None


def ruled(answer: Answer) -> frames.Ruled:
    """The rules of an inbox: first contact, allow, deny and how many contacts.

    Raises:
        ProtocolError: the relay answered another question.
    """
    if not isinstance(answer, frames.Ruled):
        raise typed(ErrorCode.BAD_FRAME, "an answer to another question")
    return answer
