"""From ``submit`` to a definite answer, over deadlines and crashes (GUARANTEES.md S2, S3).

Entry point: :class:`Sender`; a WebSocket or an HTTP transport empties its outbox. Invariants: with
a journal, an envelope is saved before it is submitted. A definite refusal is raised only after its
envelope was removed again: else a crash could submit what the program believes refused. An envelope
whose outcome is unknown is an orphan: it stays, and the same bytes are submitted on. An answer that
nobody waits for becomes an outcome, written in the commit that ends the envelope.

::

    submit ──save──▶ waiting ──receipt, refusal──▶ returned or raised
                        └──deadline, may be stored──▶ orphan ──receipt, refusal, expiry──▶ outcome
    resume ──────────────────────────────────────────────▲
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Literal

from relay import clock
from relay.client._util import Backoff, log_failure
from relay.client.errors import ENDS_THE_AGENT, AgentError, ClosedError, clone, make_error
from relay.client.message import Sent
from relay.client.outbox.outcomes import Outcomes, expired
from relay.client.outbox.queue import ANSWER_S, MAX_IN_FLIGHT, Outbox
from relay.client.outbox.signing import damage
from relay.client.outbox.submission import Submission, SubmissionState
from relay.client.state.journal import Journal
from relay.protocol import frames
from relay.protocol.envelope import SignedEnvelope
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import Did, Eid

Wait = Literal["stored", "acked"]
Ask = Callable[[str, str], Awaitable[frames.State]]
Report = Callable[[SignedEnvelope, Sent | AgentError], None]

MIN_POLL_S: Final = 0.05
MAX_POLL_S: Final = 2.0
UNFINISHED: Final = frozenset({"stored", "forwarded", "moved"})
"""States that may still become another one."""
_NO_MORE_ANSWERS: Final = ENDS_THE_AGENT | {ErrorCode.WRONG_STATE}
_log_not_removed: Final = log_failure("the outbox keeps what was answered")
"""A failed removal costs a duplicate at the next open, and its answer will tell that."""


async def _no_transport() -> None:
    return


@dataclass(slots=True, eq=False)
class Sender:
    """The submissions of one agent, and the tasks that wait for them.

    Args:
        outbox: what is submitted.
        journal: saves it; None: without a state file.
        outcomes: answers that nobody waits for.
        on_stored: called with the recipient of each envelope that a relay has stored.
        last_failure: why no relay can be reached just now; None: one can.
        stop_transport: ends what is in flight, so that it is known whether it was sent.
        orphan_answered: called with the answer of an orphan; None: it becomes an outcome.
    """

    outbox: Outbox
    journal: Journal | None
    outcomes: Outcomes
    on_stored: Callable[[Did], None]
    last_failure: Callable[[], AgentError | None]
    stop_transport: Callable[[], Awaitable[None]] = _no_transport
    orphan_answered: Report | None = None
    unanswered: dict[Eid, Submission] = field(default_factory=dict)
    _room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_IN_FLIGHT))
    _orphans: dict[Eid, Submission] = field(default_factory=dict)
    _expiries: dict[Eid, asyncio.TimerHandle] = field(default_factory=dict)

    async def resume(self) -> None:
        """Submit again what an earlier process of this agent left without a definite answer."""
        if self.journal is None:
            return
        await self.outcomes.recount()
        for envelope in await self.journal.outgoing():
            if envelope.expires_at <= clock.now():
                self.outcomes.save(envelope, expired(envelope))
            else:
                self.adopt(envelope)

    def adopt(self, envelope: SignedEnvelope) -> None:
        """Submit an envelope that an earlier process may have submitted, as an orphan."""
        if (failure := damage(envelope)) is not None:
            self._report(envelope, failure)
        else:
            self._orphan(self.outbox.add(envelope, maybe_stored=True))

    async def submit(self, envelope: SignedEnvelope, *, deadline_s: float) -> Sent:
        """Submit the same bytes until the answer is definite; see :meth:`Agent.submit`."""
        sent = await self._receipt_of(envelope, deadline_s)
        self._remove_reported(envelope.eid)
        return sent

    async def send_until_acked(
        self, envelope: SignedEnvelope, status: Ask, *, deadline_s: float
    ) -> Sent:
        """Submit as :meth:`submit` does, then wait until it has ended, or for the deadline."""
        until = clock.monotonic() + deadline_s
        sent = await self._receipt_of(envelope, deadline_s)
        try:
            # it stays in the outbox: after a crash meanwhile its outcome can be read
            last = await wait_ended(sent, status, until)
        except asyncio.CancelledError:
            self.outcomes.save(envelope, sent)
            raise
        self._remove_reported(envelope.eid)
        return last

    async def _receipt_of(self, envelope: SignedEnvelope, deadline_s: float) -> Sent:
        """Wait for the receipt; its envelope is still in the journal."""
        begun: list[Submission] = []
        try:
            sent = await self._wait(envelope, deadline_s, begun)
        except AgentError as exc:
            if begun and not await self._end(begun[0]):
                # it could not be taken out of the outbox: the next open submits it
                exc.stored = "unknown"
            raise
        except BaseException:
            if begun:
                await self._abandon(begun[0])
            raise
        self._finish(begun[0])
        self.on_stored(sent.to)
        return sent

    async def _wait(
        self, envelope: SignedEnvelope, deadline_s: float, begun: list[Submission]
    ) -> Sent:
        if deadline_s <= 0:
            raise self._not_begun(envelope)
        try:
            async with asyncio.timeout(deadline_s), self._room:
                begun.append(await self._begin(envelope))
                return await asyncio.shield(begun[0].answer)
        except TimeoutError as exc:
            if not begun:
                raise self._not_begun(envelope) from exc
            await self.stop_transport()
            if begun[0].answer.done():
                return begun[0].answer.result()
            raise begun[0].timeout_error(self.last_failure()) from exc

    def _not_begun(self, envelope: SignedEnvelope) -> AgentError:
        if self._room.locked():
            code, detail = ErrorCode.OVERLOADED, "too much of this agent waits for an answer"
        else:
            code, detail = ErrorCode.PEER_UNREACHABLE, "no time was left to submit it"
        return make_error(code, detail, stored="no", envelope=envelope)

    async def _begin(self, envelope: SignedEnvelope) -> Submission:
        self._ensure_open(envelope)
        # an orphan gets its waiting task back, instead of being submitted twice
        submission = self._orphans.pop(envelope.eid, None)
        if submission is not None:
            self._expiries.pop(envelope.eid).cancel()
        else:
            await self._save(envelope)
            submission = self.outbox.add(envelope)
            self.unanswered[envelope.eid] = submission
        return submission

    def _ensure_open(self, envelope: SignedEnvelope) -> None:
        if self.outbox.ended is not None:
            raise _not_sent(self.outbox.ended, envelope)

    async def _save(self, envelope: SignedEnvelope) -> None:
        if self.journal is None:
            return
        if await self.outcomes.is_full(len(self.unanswered)):
            detail = "too many envelopes without an answer, and outcomes that nobody has taken"
            raise make_error(ErrorCode.OVERLOADED, detail, stored="no", envelope=envelope)
        try:
            await self.journal.add_outgoing(envelope)
            self._ensure_open(envelope)
        except (asyncio.CancelledError, ClosedError):
            await self._remove(envelope.eid)
            raise
        except AgentError as exc:
            raise _not_sent(exc, envelope) from exc

    async def _end(self, submission: Submission) -> bool:
        """End a submission without a receipt, whose error its task raises.

        False: the envelope is still in the journal, and is not an orphan.
        """
        is_open = not submission.answer.done() or submission.state is SubmissionState.ABORTED
        if self.journal is not None and is_open and submission.is_unknown:
            self._orphan(submission)
            return True
        self._finish(submission)
        try:
            return await self._remove(submission.envelope.eid, is_reported=not is_open)
        except asyncio.CancelledError:
            if not is_open:
                self._conclude(submission)
            raise

    async def _abandon(self, submission: Submission) -> None:
        """End a submission whose task was cancelled: it can report no answer that is there."""
        if submission.state is SubmissionState.ANSWERED:
            self._finish(submission)
            self._conclude(submission)
        else:
            await self._end(submission)

    def _finish(self, submission: Submission) -> None:
        # first of all: while the journal is written, it could be submitted
        submission.forget()
        self.unanswered.pop(submission.envelope.eid, None)

    def _conclude(self, submission: Submission) -> None:
        answer = submission.answer
        if answer.cancelled():
            return
        failure = answer.exception()
        if failure is None:
            self._report(submission.envelope, answer.result())
        elif isinstance(failure, AgentError):
            self._report(submission.envelope, failure)

    def _report(self, envelope: SignedEnvelope, answer: Sent | AgentError) -> None:
        (self.orphan_answered or self.outcomes.save)(envelope, answer)

    def _remove_reported(self, eid: Eid) -> None:
        if self.journal is not None:
            # not waited for: after a crash now, the relay answers that it is a duplicate
            self.journal.remove_outgoing(eid).add_done_callback(_log_not_removed)

    async def _remove(self, eid: Eid, *, is_reported: bool = False) -> bool:
        if self.journal is None:
            return True
        remove = self.journal.remove_outgoing if is_reported else self.journal.withdraw_outgoing
        removing = remove(eid)
        removing.add_done_callback(_log_not_removed)
        await asyncio.wait([removing])
        return removing.exception() is None

    # ------------------------------------------------------------ orphans

    def _orphan(self, submission: Submission) -> None:
        eid = submission.envelope.eid
        self._orphans[eid] = submission
        self.unanswered[eid] = submission
        self._schedule_expiry(submission, 0.0)
        submission.answer.add_done_callback(partial(self._orphan_done, submission))

    def _schedule_expiry(self, submission: Submission, min_s: float) -> None:
        delay = max(submission.envelope.expires_at - clock.now(), min_s)
        timer = asyncio.get_running_loop().call_later(delay, self._expire, submission)
        self._expiries[submission.envelope.eid] = timer

    def _expire(self, submission: Submission) -> None:
        """End an orphan that no relay has answered in its lifetime."""
        if submission.in_flight or clock.now() < submission.envelope.expires_at:
            # the answer, or the end of the connection, is near; or the clock was set back
            self._schedule_expiry(submission, ANSWER_S)
        else:
            submission.fail(expired(submission.envelope))

    def _orphan_done(self, submission: Submission, answer: asyncio.Future[Sent]) -> None:
        eid = submission.envelope.eid
        if not answer.cancelled():
            answer.exception()
        if self._orphans.get(eid) is not submission:
            return
        self._expiries.pop(eid).cancel()
        if submission.state is SubmissionState.ABORTED:
            return
        del self._orphans[eid]
        self.unanswered.pop(eid, None)
        self._conclude(submission)


def _not_sent(ended: AgentError, envelope: SignedEnvelope) -> AgentError:
    failure = clone(ended)
    failure.stored, failure.envelope = "no", envelope
    return failure


def _is_over(exc: AgentError) -> bool:
    return exc.code in _NO_MORE_ANSWERS


async def wait_ended(
    sent: Sent, status: Ask, until: float, is_final: Callable[[AgentError], bool] = _is_over
) -> Sent:
    """Ask until an envelope has ended; then, or at ``until`` (monotonic seconds), return its state.

    It never fails: there is a receipt, and an error of a question must not look like its error.

    Args:
        sent: with its latest known state.
        status: asks for the state.
        until: the deadline.
        is_final: called with each error of a question; True ends the wait.
    """
    polling = Backoff(MIN_POLL_S, MAX_POLL_S)
    try:
        async with asyncio.timeout(max(0.0, until - clock.monotonic())):
            while sent.state in UNFINISHED:
                await asyncio.sleep(polling.next_s())
                try:
                    sent = replace(sent, state=await status(sent.to, sent.id))
                except AgentError as exc:
                    if is_final(exc):
                        return sent
    except TimeoutError:
        return sent
    return sent
