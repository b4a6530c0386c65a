"""What the SDK keeps of one envelope between its delivery and the durable answer to it.

Rules of the file: one envelope is one entry, at however many homes it lies; where it lies in the
inbox of one home is a place.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

from relay.client.errors import AgentError, again
from relay.client.message import Message
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import (
    Eid,
    Seq,
    Timestamp,
)
from relay.protocol.types import (
    Reason,
)

_log: Final = logging.getLogger("relay.client")

GONE: Final[dict[Reason, ErrorCode]] = {
    Reason.EXPIRED: ErrorCode.EXPIRED,
    Reason.MOVED: ErrorCode.MOVED,
    Reason.CORRUPT: ErrorCode.CORRUPT,
    Reason.REFUSED: ErrorCode.INBOX_RESET,
    Reason.ACKED: ErrorCode.INBOX_RESET,
}
"""What an answer came to where the relay says that the envelope is gone."""


class Stage(Enum):
    """Where an envelope stands."""

    DOUBTED = "doubted"
    QUEUED = "queued"
    SHOWN = "shown"
    ANSWERED = "answered"


class HomeSide(Protocol):
    """A home, as the inbox knows it."""

    is_open: bool
    has_moved: bool
    no_inbox: AgentError | None

    def say(self, place: Place) -> None:
        """The answer is noted: it may be said."""
        ...

    def lost(self) -> None:
        """The connection is gone."""
        ...


@dataclass(slots=True, eq=False)
class Place:
    """Where an envelope lies in the inbox of one home.

    ``here``: handed over on this connection. ``said``: so was our answer to it, ``said_at`` then.
    """

    home: HomeSide
    seq: Seq
    entry: Entry
    here: bool = True
    said: bool = False
    said_at: Timestamp = Timestamp(0)


@dataclass(slots=True, eq=False)
class Entry:
    """One envelope that was delivered and is not yet durably answered.

    ``noted``: its answer is in the journal, so that it may be said. ``durable``: one home has made
    it durable. ``redelivered``: some home says that it may have been shown before. ``teller``:
    where a refusal is said, one home at a time: it is to bounce once.
    Without a place its inbox has begun a new epoch: its eid is all that still counts.
    """

    eid: Eid | None
    stage: Stage = Stage.QUEUED
    refuse_code: str | None = None
    expires_at: int = 0
    noted: bool = True
    durable: bool = False
    redelivered: bool = False
    teller: Place | None = None
    shown: weakref.ref[Message] | None = None
    places: list[Place] = field(default_factory=list)
    waiters: list[asyncio.Future[None]] = field(default_factory=list)

    @property
    def unsaid_code(self) -> str | None:
        """The refusal that a home is to hear; once one has it, the others hear an ack."""
        return None if self.durable else self.refuse_code

    @property
    def is_let_go(self) -> bool:
        """Whether the program has dropped the message without an answer."""
        return self.stage is Stage.SHOWN and (self.shown is None or self.shown() is None)

    @property
    def is_adrift(self) -> bool:
        """Whether it lay only where the inbox is no more."""
        return bool(self.places) and all(place.home.has_moved for place in self.places)

    @property
    def is_here(self) -> bool:
        """Whether some home that is connected has handed it over."""
        return any(place.here for place in self.places)

    def settle(self, failure: AgentError | None = None) -> None:
        """Tell those who wait for the answer to be durable."""
        for waiter in self.waiters:
            if waiter.done():
                continue
            if failure is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(again(failure))
        self.waiters.clear()


def log_failure(noting: asyncio.Future[None]) -> BaseException | None:
    """See what became of a note that nobody waits for."""
    failure = None if noting.cancelled() else noting.exception()
    if failure is not None:
        _log.warning("an answer could not be noted: %s", failure)
    return failure
