"""Outcomes that no ``send`` has returned: it timed out, or ended with its process (promise S3).

Entry points: :class:`Outcomes` and :class:`OutcomeIterator`. Invariants: an outcome is written in
the commit that takes its envelope out of the outbox. Every iteration, in every process, shows it
again until the program calls its ``done()``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final, Literal

from relay.client._util import Signal, failure_of
from relay.client.errors import AgentError, ClosedError, clone, make_error
from relay.client.message import Sent
from relay.client.process import Owner, not_pickled
from relay.client.state.journal import Journal, OutcomeRow
from relay.protocol import jws as jose
from relay.protocol.envelope import SignedEnvelope
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import Did, Eid, MessageId

MAX_UNREPORTED: Final = 10_000
"""Unanswered envelopes and outcomes that no program took: above it nothing new is submitted."""

_log: Final = logging.getLogger("relay.client")


@dataclass(frozen=True, slots=True)
class OutcomeValues:
    """The outcome of one envelope.

    Args:
        eid: of the envelope.
        id: the sender's own id, for ``status``.
        to: its recipient.
        expires_at: Unix seconds.
        at: when the outcome was written here, Unix seconds.
        sent: the relay's receipt, or None.
        error: why there is none; ``.stored`` tells what is known, ``.envelope`` is what was sent.
            ``expired`` with ``stored`` ``unknown``: no relay answered in its lifetime.
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
        """The reason why there is no receipt; None: there is one."""
        return self.error.code if self.error is not None else None


@dataclass(frozen=True, slots=True, eq=False)
class Outcome(OutcomeValues):
    """The outcome of an envelope whose ``send`` could not return it.

    Args:
        place: its order among the outcomes.
        outcomes: where it is deleted.
    """

    place: int
    outcomes: Outcomes = field(repr=False)

    __reduce__ = not_pickled("an outcome is neither pickled nor copied: hand on its eid and sent")

    async def done(self) -> None:
        """Record that the program has processed it: it is not shown again.

        Raises:
            ClosedError: the agent was closed; the next one shows it again.
            InternalError: the state file cannot be written; call it again.
        """
        await self.outcomes.delete(self.place)


class Outcomes:
    """The outcomes in one journal; without one there are none."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._ended: AgentError | None = None
        self._count = 0
        self._saving = 0
        self._changed = Signal()
        self._owner = Owner()

    def end(self, failure: AgentError) -> None:
        """End the iterations, once they have shown what there is."""
        self._ended = failure
        self._changed.notify()

    async def is_full(self, unanswered: int) -> bool:
        """Return whether one more envelope beside those unanswered would be too many."""
        if self._journal is None or self._count + self._saving + unanswered < MAX_UNREPORTED:
            return False
        # counted again: another process of this agent may have taken some
        await self.recount()
        return self._count + self._saving + unanswered >= MAX_UNREPORTED

    async def recount(self) -> None:
        """Count the outcomes in the journal."""
        if self._journal is not None:
            self._count = await self._journal.count_outcomes()

    def save(self, envelope: SignedEnvelope, answer: Sent | AgentError) -> None:
        """Write an outcome and take its envelope out of the outbox, in one commit.

        If that fails, the envelope stays in the outbox for the next process.
        """
        if self._journal is not None:
            level = logging.INFO if isinstance(answer, Sent) else logging.WARNING
            result = "stored" if isinstance(answer, Sent) else str(answer)
            _log.log(level, "%s, which no send waits for any more: %s", envelope.eid, result)
            # it counts from now on, not only once it is written: else a send slips in between
            self._saving += 1
            self._journal.save_outcome(envelope, answer).add_done_callback(self._saved)

    def _saved(self, saving: asyncio.Future[None]) -> None:
        self._saving -= 1
        failure = failure_of(saving)
        if failure is None:
            self._count += 1
            self._changed.notify()
        else:
            _log.warning("the outbox keeps what was answered: %s", failure)

    async def next(self, after: int) -> Outcome | None:
        """Wait for the first outcome behind a place; None: the agent was closed.

        Raises:
            AgentError: the end of the agent; ``internal``: the file cannot be read.
        """
        self._owner.check()
        if self._journal is None:
            return None
        while True:
            changed = self._changed.upcoming()
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
                raise clone(self._ended)
            await changed.wait()

    async def delete(self, place: int) -> None:
        """Delete an outcome; see :meth:`Outcome.done`."""
        self._owner.check()
        if self._journal is not None:
            self._count -= await self._journal.delete_outcome(place)

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
            outcomes=self,
        )


class OutcomeIterator(AsyncIterator[Outcome]):
    """One iteration over the outcomes, from the oldest; a cancelled wait skips none."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        self._after = 0

    async def __anext__(self) -> Outcome:
        while True:
            found = await self._outcomes.next(self._after)
            if found is None:
                raise StopAsyncIteration
            # two tasks may wait in one iteration: each outcome goes to one of them
            if found.place > self._after:
                self._after = found.place
                return found


def expired(envelope: SignedEnvelope) -> AgentError:
    """Return the outcome of an envelope that no relay has answered in its lifetime."""
    detail = "its time is over and no relay has answered; it may have been stored"
    return make_error(ErrorCode.EXPIRED, detail, stored="unknown", envelope=envelope)


def _read(row: OutcomeRow) -> tuple[Sent | None, AgentError | None]:
    try:
        members = jose.loads(row.answer.encode())
        if row.code is None:
            return Sent(**members), None
        code = ErrorCode(row.code)
        return None, make_error(code, envelope=row.envelope, **members)
    except (ValueError, TypeError) as exc:
        detail = f"its outcome cannot be read in the state file: {exc}"
        envelope = row.envelope if row.envelope.wire else None
        return None, make_error(ErrorCode.CORRUPT, detail, stored="unknown", envelope=envelope)
