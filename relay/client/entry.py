"""What the SDK keeps of one envelope between its delivery and the durable answer to it."""

from __future__ import annotations

import asyncio
import logging
import weakref
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from relay.client.errors import AgentError, again
from relay.client.message import Message
from relay.core.errors import ErrorCode
from relay.core.ids import Eid, Seq
from relay.core.ranges import Reason

_log: Final = logging.getLogger("relay.client")

ADRIFT: Final = Seq(0)
"""The seq of an entry of an earlier epoch; its eid is all that still counts."""

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

    QUEUED = "queued"
    SHOWN = "shown"
    ANSWERED = "answered"


@dataclass(slots=True, eq=False)
class Entry:
    """One envelope that was delivered and is not yet durably answered.

    ``here``: handed over on this connection. ``said``: so was our answer to it. ``noted``: that
    answer is in the journal, so that it may be said.
    """

    seq: Seq
    eid: Eid | None
    stage: Stage = Stage.QUEUED
    refuse_code: str | None = None
    expires_at: int = 0
    noted: bool = True
    here: bool = True
    said: bool = False
    shown: weakref.ref[Message] | None = None
    waiters: list[asyncio.Future[None]] = field(default_factory=list)

    @property
    def is_let_go(self) -> bool:
        """Whether the program has dropped the message without an answer."""
        return self.stage is Stage.SHOWN and (self.shown is None or self.shown() is None)

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


def answered(seq: Seq, eid: Eid, unsaid: str | None) -> Entry:
    """One that comes again after its answer; ``unsaid`` is a refusal not known to be durable.

    Only that has an eid: when it is durable, this is to be remembered.
    """
    return Entry(seq, eid if unsaid is not None else None, Stage.ANSWERED, unsaid)


def log_failure(noting: asyncio.Future[None]) -> BaseException | None:
    """See what became of a note that nobody waits for."""
    failure = None if noting.cancelled() else noting.exception()
    if failure is not None:
        _log.warning("an answer could not be noted: %s", failure)
    return failure
