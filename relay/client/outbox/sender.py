"""From ``submit`` to a definite answer, over deadlines and crashes (GUARANTEES.md S2, S3).

Rules of the file: with a journal, an envelope is noted before it is submitted, and a definite no is
told only after it was taken out again: else a crash could submit what the program believes refused.
An envelope whose outcome is unknown stays, and goes on being submitted, the same bytes. What comes
when nobody waits for it is an outcome, noted in the commit that ends the envelope.

::

    submit ──keep──▶ waiting ──receipt, refusal──▶ told
                        └──deadline, may be stored──▶ left ──receipt, refusal, expiry──▶ outcome
    resume ───────────────────────────────────────────▲
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Final, Literal

from relay import clock
from relay.client.errors import ENDS_THE_AGENT, AgentError, ClosedError, again, typed
from relay.client.message import Sent
from relay.client.outbox.outcomes import expired
from relay.client.outbox.queue import (
    ANSWER_S,
    MAX_IN_FLIGHT,
)
from relay.client.outbox.signing import damage
from relay.client.outbox.submission import Waiting
from relay.client.session.pool import Sessions
from relay.protocol import frames
from relay.protocol.envelope import SignedEnvelope
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import Eid

Wait = Literal["stored", "acked"]
Ask = Callable[[str, str], Awaitable[frames.State]]

FIRST_LOOK_S: Final = 0.05
LONGEST_LOOK_S: Final = 2.0
_LASTING: Final = frozenset({"stored", "forwarded", "moved"})
"""States that may still become another one."""
_NO_MORE_ANSWERS: Final = ENDS_THE_AGENT | {ErrorCode.WRONG_STATE}

_log: Final = logging.getLogger("relay.client")


class Submissions:
    """What one agent has submitted and what became of it."""

    def __init__(self, sessions: Sessions) -> None:
        self.unanswered: dict[Eid, Waiting] = {}
        self._sessions = sessions
        self._journal = sessions.state.journal
        self._room = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._outcomes = sessions.outcomes
        self._left: dict[Eid, Waiting] = {}
        self._expiries: dict[Eid, asyncio.TimerHandle] = {}

    async def resume(self) -> None:
        """Submit again what an earlier life of this agent left without a definite answer."""
        if self._journal is None:
            return
        await self._outcomes.recount()
        for envelope in await self._journal.outgoing():
            if envelope.expires_at <= clock.now():
                self._outcomes.conclude(envelope, expired(envelope))
            elif (failure := damage(envelope)) is not None:
                self._outcomes.conclude(envelope, failure)
            else:
                waiting = self._sessions.outbox.add(envelope, maybe_stored=True)
                self._leave(waiting)

    async def submit(self, envelope: SignedEnvelope, *, deadline_s: float) -> Sent:
        """Submit the same bytes until the answer is definite; see :meth:`Agent.submit`."""
        sent = await self._receipt_of(envelope, deadline_s)
        self._told(envelope.eid)
        return sent

    async def see_through(
        self, envelope: SignedEnvelope, status: Ask, *, deadline_s: float
    ) -> Sent:
        """As :meth:`submit`, then wait until it has ended, or for the deadline."""
        until = clock.monotonic() + deadline_s
        sent = await self._receipt_of(envelope, deadline_s)
        try:
            # it stays in the outbox: after a crash meanwhile its outcome can be read
            last = await outcome_of(sent, status, until)
        except asyncio.CancelledError:
            self._outcomes.conclude(envelope, sent)
            raise
        self._told(envelope.eid)
        return last

    async def _receipt_of(self, envelope: SignedEnvelope, deadline_s: float) -> Sent:
        """Wait for the receipt; its envelope is still in the journal."""
        held: list[Waiting] = []
        try:
            sent = await self._wait(envelope, deadline_s, held)
        except AgentError as exc:
            if held and not await self._end(held[0]):
                # it could not be taken out of the outbox: the next open submits it
                exc.stored = "unknown"
            raise
        except BaseException:
            if held:
                await self._abandon(held[0])
            raise
        self._done_with(held[0])
        self._sessions.note_correspondent(sent.to)
        return sent

    async def _wait(self, envelope: SignedEnvelope, deadline_s: float, held: list[Waiting]) -> Sent:
        if deadline_s <= 0:
            raise self._not_begun(envelope)
        try:
            async with asyncio.timeout(deadline_s), self._room:
                held.append(await self._begin(envelope))
                return await asyncio.shield(held[0].answer)
        except TimeoutError as exc:
            if not held:
                raise self._not_begun(envelope) from exc
            if held[0].answer.done():
                return held[0].answer.result()
            is_alone = self._sessions.sender is None
            failure = self._sessions.last_failure if is_alone else None
            raise held[0].verdict(failure) from exc

    def _not_begun(self, envelope: SignedEnvelope) -> AgentError:
        if self._room.locked():
            code, detail = ErrorCode.OVERLOADED, "too much of this agent waits for an answer"
        else:
            code, detail = ErrorCode.PEER_UNREACHABLE, "no time was left to submit it"
        return typed(code, detail, stored="no", envelope=envelope)

    async def _begin(self, envelope: SignedEnvelope) -> Waiting:
        sessions = self._sessions
        self._refuse_if_ended(envelope)
        # one that was left is waited for again, instead of being submitted twice
        waiting = self._left.pop(envelope.eid, None)
        if waiting is not None:
            self._expiries.pop(envelope.eid).cancel()
        else:
            await self._keep(envelope)
            waiting = sessions.outbox.add(envelope)
            self.unanswered[envelope.eid] = waiting
        return waiting

    def _refuse_if_ended(self, envelope: SignedEnvelope) -> None:
        if self._sessions.ended is not None:
            raise _not_sent(self._sessions.ended, envelope)

    async def _keep(self, envelope: SignedEnvelope) -> None:
        if self._journal is None:
            return
        if await self._outcomes.is_full(len(self.unanswered)):
            detail = "too many envelopes without an answer, and outcomes that nobody has taken"
            raise typed(ErrorCode.OVERLOADED, detail, stored="no", envelope=envelope)
        try:
            await self._journal.add_outgoing(envelope)
            self._refuse_if_ended(envelope)
        except (asyncio.CancelledError, ClosedError):
            await self._drop(envelope.eid)
            raise
        except AgentError as exc:
            raise _not_sent(exc, envelope) from exc

    async def _end(self, waiting: Waiting) -> bool:
        """The submitting task tells its program that there is no receipt.

        False: the envelope is neither left nor out of the journal.
        """
        answer = waiting.answer
        is_open = not answer.done() or waiting.cut_short
        if self._journal is not None and is_open and waiting.is_unknown:
            self._leave(waiting)
            return True
        self._done_with(waiting)
        try:
            return await self._drop(waiting.envelope.eid, is_told=not is_open)
        except asyncio.CancelledError:
            if not is_open:
                self._conclude(waiting)
            raise

    async def _abandon(self, waiting: Waiting) -> None:
        """The submitting task was cancelled: it tells nothing, not even what it may know."""
        if waiting.answer.done() and not waiting.cut_short:
            self._done_with(waiting)
            self._conclude(waiting)
        else:
            await self._end(waiting)

    def _done_with(self, waiting: Waiting) -> None:
        # first of all: while the journal is written, it could be submitted
        self._sessions.outbox.forget(waiting)
        self.unanswered.pop(waiting.envelope.eid, None)

    def _conclude(self, waiting: Waiting) -> None:
        answer = waiting.answer
        if not answer.cancelled():
            failure = answer.exception()
            if failure is None:
                self._outcomes.conclude(waiting.envelope, answer.result())
            elif isinstance(failure, AgentError):
                self._outcomes.conclude(waiting.envelope, failure)

    def _told(self, eid: Eid) -> None:
        if self._journal is not None:
            # not waited for: after a crash now, the relay answers that it is a duplicate
            self._journal.remove_outgoing(eid).add_done_callback(_seen)

    async def _drop(self, eid: Eid, *, is_told: bool = False) -> bool:
        if self._journal is None:
            return True
        remove = self._journal.remove_outgoing if is_told else self._journal.withdraw_outgoing
        dropping = remove(eid)
        dropping.add_done_callback(_seen)
        await asyncio.wait([dropping])
        return dropping.exception() is None

    def _leave(self, waiting: Waiting) -> None:
        eid = waiting.envelope.eid
        self._left[eid] = waiting
        self.unanswered[eid] = waiting
        self._look_at_expiry(waiting, 0.0)
        waiting.answer.add_done_callback(partial(self._answered_late, waiting))

    def _look_at_expiry(self, waiting: Waiting, least_s: float) -> None:
        delay = max(waiting.envelope.expires_at - clock.now(), least_s)
        looking = asyncio.get_running_loop().call_later(delay, self._expire, waiting)
        self._expiries[waiting.envelope.eid] = looking

    def _expire(self, waiting: Waiting) -> None:
        """End one that no relay has answered in its lifetime."""
        if waiting.in_flight or clock.now() < waiting.envelope.expires_at:
            # the answer, or the end of the connection, is near; or the clock was set back
            self._look_at_expiry(waiting, ANSWER_S)
        elif not waiting.answer.done():
            waiting.answer.set_exception(expired(waiting.envelope))

    def _answered_late(self, waiting: Waiting, answer: asyncio.Future[Sent]) -> None:
        eid = waiting.envelope.eid
        if not answer.cancelled():
            answer.exception()
        if self._left.get(eid) is not waiting:
            return
        self._expiries.pop(eid).cancel()
        if waiting.cut_short:
            return
        del self._left[eid]
        self.unanswered.pop(eid, None)
        self._conclude(waiting)


def _not_sent(ended: AgentError, envelope: SignedEnvelope) -> AgentError:
    failure = again(ended)
    failure.stored, failure.envelope = "no", envelope
    return failure


def _seen(noting: asyncio.Future[None]) -> None:
    """A failed drop costs a duplicate at the next open, which its answer will say."""
    failure = None if noting.cancelled() else noting.exception()
    if failure is not None:
        _log.warning("the outbox keeps what was answered: %s", failure)


async def outcome_of(sent: Sent, status: Ask, until: float) -> Sent:
    """Ask until it has ended; then, or at ``until`` (monotonic seconds), say where it stands.

    It never fails: there is a receipt, and no error of a question may look like an error of that.
    """
    pause = FIRST_LOOK_S
    try:
        async with asyncio.timeout(max(0.0, until - clock.monotonic())):
            while sent.state in _LASTING:
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_LOOK_S)
                try:
                    sent = replace(sent, state=await status(sent.to, sent.id))
                except AgentError as exc:
                    if exc.code in _NO_MORE_ANSWERS:
                        return sent
    except TimeoutError:
        return sent
    return sent
