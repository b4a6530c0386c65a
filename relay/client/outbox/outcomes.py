"""Outcomes that no ``send`` has told: it had given up, or ended with its process (promise S3).

Rules of the file: an outcome is written in the commit that takes its envelope out of the outbox,
and leaves only when the program says so; until then every iteration and life shows it again.

::

    OUTBOX ──receipt, refusal, expiry, nobody waits──▶ kept ──shown, shown …──▶ done ──▶ gone
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final, Literal

from relay.client.errors import AgentError, ClosedError, again, typed
from relay.client.message import Sent
from relay.client.process import Owner, not_pickled
from relay.client.state.journal import Journal, OutcomeRow
from relay.protocol import jws as jose
from relay.protocol.envelope import SignedEnvelope
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import (
    Did,
    Eid,
    MessageId,
)

MOST_KEPT: Final = 10_000
"""Unanswered envelopes and outcomes that nobody has taken: over it nothing new is submitted."""

_log: Final = logging.getLogger("relay.client")


@dataclass(frozen=True, slots=True)
class OutcomeValues:
    """What became of one envelope.

    Args:
        eid: which envelope.
        id: the sender's own id, for ``status``.
        to: its recipient.
        expires_at: Unix seconds.
        at: when it was noted here, Unix seconds.
        sent: the relay's receipt, or None.
        error: why there is none; ``.stored`` says what is known, ``.envelope`` is what was sent.
            ``expired`` with ``stored`` ``unknown``: no relay had answered when its time was over.
    """

    eid: Eid
    id: MessageId
    to: Did
    expires_at: int
    at: int
    sent: Sent | None
    error: AgentError | None

    @property
    def stored(self) -> Literal["yes", "no", "unknown"]:
        """``yes``: a relay has signed so; ``no``; ``unknown``: perhaps, ``status`` may tell."""
        if self.sent is not None:
            return "yes"
        return "no" if self.error is not None and self.error.stored == "no" else "unknown"

    @property
    def code(self) -> ErrorCode | None:
        """Why there is no receipt; None: there is one."""
        return self.error.code if self.error is not None else None


@dataclass(frozen=True, slots=True, eq=False)
class Outcome(OutcomeValues):
    """What became of an envelope whose ``send`` could not say it.

    Args:
        place: its order among the outcomes.
        desk: where it is forgotten.
    """

    place: int
    desk: Outcomes = field(repr=False)

    __reduce__ = not_pickled("an outcome is neither pickled nor copied: hand on its eid and sent")

    async def done(self) -> None:
        """Say that the program has made use of it: it is not shown again.

        Raises:
            ClosedError: the agent was closed; the next one shows it again.
            InternalError: the state file cannot be written; say it again.
        """
        await self.desk.forget(self.place)


class Outcomes:
    """The outcomes in one journal; without one there are none."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._ended: AgentError | None = None
        self._count = 0
        self._noting = 0
        self._news = asyncio.Event()
        self._owner = Owner()

    def end(self, failure: AgentError) -> None:
        """No more will come: iterations end when they have shown what there is."""
        self._ended = failure
        self._tell()

    async def is_full(self, beside: int) -> bool:
        """Whether one more envelope, ``beside`` so many unanswered ones, would be too many."""
        if self._journal is None or self._count + self._noting + beside < MOST_KEPT:
            return False
        # counted anew: another process of this agent may have taken some
        self._count = await self._journal.count_outcomes()
        return self._count + self._noting + beside >= MOST_KEPT

    async def recount(self) -> None:
        """Learn how many an earlier life has left."""
        if self._journal is not None:
            self._count = await self._journal.count_outcomes()

    def conclude(self, envelope: SignedEnvelope, answer: Sent | AgentError) -> None:
        """Note an outcome and take its envelope out of the outbox: both, or after a crash neither.

        Where that cannot be written, the envelope stays in the outbox for the next life.
        """
        if self._journal is not None:
            level = logging.INFO if isinstance(answer, Sent) else logging.WARNING
            said = "stored" if isinstance(answer, Sent) else str(answer)
            _log.log(level, "%s, which no send waits for any more: %s", envelope.eid, said)
            # it counts from now on, not only when it is written: else a send slips in between
            self._noting += 1
            self._journal.save_outcome(envelope, answer).add_done_callback(self._concluded)

    def _concluded(self, noting: asyncio.Future[None]) -> None:
        self._noting -= 1
        failure = None if noting.cancelled() else noting.exception()
        if failure is None:
            self._count += 1
            self._tell()
        else:
            _log.warning("the outbox keeps what was answered: %s", failure)

    async def next(self, after: int) -> Outcome | None:
        """The first one behind a place; waits for it. None: the agent was closed.

        Raises:
            AgentError: what the agent ended with; ``internal``: the file cannot be read.
        """
        self._owner.check()
        if self._journal is None:
            return None
        while True:
            news = self._news
            try:
                row = await self._journal.next_outcome(after)
            except ClosedError:
                if self._ended is None:
                    raise
                row = None
            if row is not None:
                return self._outcome(row)
            if isinstance(self._ended, ClosedError):
                return None
            if self._ended is not None:
                raise again(self._ended)
            await news.wait()

    async def forget(self, place: int) -> None:
        """The program has made use of it; see :meth:`Outcome.done`."""
        self._owner.check()
        if self._journal is not None:
            self._count -= await self._journal.delete_outcome(place)

    def _tell(self) -> None:
        # each wait has its own event: one that is cleared could be missed by a second iteration
        self._news.set()
        self._news = asyncio.Event()

    def _outcome(self, row: OutcomeRow) -> Outcome:
        sent, error = _read(row)
        envelope = row.envelope
        return Outcome(
            eid=envelope.eid,
            id=envelope.id,
            to=envelope.to,
            expires_at=envelope.expires_at,
            at=row.at,
            sent=sent,
            error=error,
            place=row.place,
            desk=self,
        )


class Telling(AsyncIterator[Outcome]):
    """One iteration over the outcomes, from the oldest; a cancelled wait skips none."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        self._after = 0

    async def __anext__(self) -> Outcome:
        while True:
            found = await self._outcomes.next(self._after)
            if found is None:
                raise StopAsyncIteration
            # two tasks may have waited in one iteration: each outcome goes to one of them
            if found.place > self._after:
                self._after = found.place
                return found


def expired(envelope: SignedEnvelope) -> AgentError:
    """The outcome of one whose time is over before a relay's answer."""
    detail = "its time is over and no relay has answered; it may have been stored"
    return typed(ErrorCode.EXPIRED, detail, stored="unknown", envelope=envelope)


def _read(row: OutcomeRow) -> tuple[Sent | None, AgentError | None]:
    try:
        members = jose.loads(row.answer.encode())
        if row.code is None:
            return Sent(**members), None
        code = ErrorCode(row.code)
        return None, typed(code, envelope=row.envelope, **members)
    except (ValueError, TypeError) as exc:
        detail = f"its outcome cannot be read in the state file: {exc}"
        envelope = row.envelope if row.envelope.wire else None
        return None, typed(ErrorCode.CORRUPT, detail, stored="unknown", envelope=envelope)
