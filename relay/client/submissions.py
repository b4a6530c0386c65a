"""From ``submit`` to a definite answer, over deadlines and crashes (GUARANTEES.md S2).

Rules of the file: with a journal, an envelope is noted before it is submitted, and a definite no is
told only after it was taken out again: else a crash could submit what the program believes refused.
An envelope whose outcome is unknown stays, and goes on being submitted, the same bytes.

::

    submit ──keep──▶ waiting ──receipt, refusal──▶ dropped
                        └──deadline, may be stored──▶ left ──receipt, refusal, expiry──▶ dropped
    resume ───────────────────────────────────────────▲
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Final, Literal

from relay import clock
from relay.client.conversation import Conversation
from relay.client.errors import AgentError, ClosedError, UnavailableError, again, typed
from relay.client.message import Sent
from relay.client.outbox import MAX_IN_FLIGHT, Waiting
from relay.core.envelope import SignedEnvelope
from relay.core.errors import ErrorCode
from relay.core.frames import State
from relay.core.ids import Eid

Wait = Literal["stored", "acked"]

FIRST_LOOK_S: Final = 0.05
LONGEST_LOOK_S: Final = 2.0
_LASTING: Final = frozenset({"stored", "forwarded", "moved"})
"""States that may still become another one."""

_log: Final = logging.getLogger("relay.client")


class Submissions:
    """What one agent has submitted and what became of it."""

    def __init__(self, conversation: Conversation) -> None:
        self.unanswered: dict[Eid, Waiting] = {}
        self._conversation = conversation
        self._journal = conversation.state.journal
        self._room = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._left: dict[Eid, Waiting] = {}

    async def resume(self) -> None:
        """Submit again what an earlier life of this agent left without a definite answer."""
        if self._journal is None:
            return
        for envelope in await self._journal.unanswered():
            if envelope.expires_at <= clock.now():
                _log.warning("%s expired before its outcome was known", envelope.eid)
                await self._drop(envelope.eid)
            else:
                waiting = self._conversation.outbox.add(envelope, maybe_stored=True)
                self._leave(waiting)

    async def submit(self, envelope: SignedEnvelope, *, deadline_s: float) -> Sent:
        """Submit the same bytes until the answer is definite; see :meth:`Agent.submit`."""
        held: list[Waiting] = []
        failure: AgentError | None = None
        try:
            return await self._wait(envelope, deadline_s, held)
        except AgentError as exc:
            failure = exc
            raise
        finally:
            for waiting in held:
                if not await self._end(waiting) and failure is not None:
                    # it could not be taken out of the outbox: the next open submits it
                    failure.stored = "unknown"

    async def _wait(self, envelope: SignedEnvelope, deadline_s: float, held: list[Waiting]) -> Sent:
        try:
            async with asyncio.timeout(deadline_s), self._room:
                held.append(await self._begin(envelope))
                return await asyncio.shield(held[0].answer)
        except TimeoutError as exc:
            if not held:
                detail = "too much of this agent waits for an answer"
                raise typed(ErrorCode.OVERLOADED, detail, stored="no", envelope=envelope) from exc
            if held[0].answer.done():
                return held[0].answer.result()
            raise held[0].verdict() from exc

    async def _begin(self, envelope: SignedEnvelope) -> Waiting:
        conversation = self._conversation
        self._refuse_if_ended(envelope)
        # one that was left is waited for again, instead of being submitted twice
        waiting = self._left.pop(envelope.eid, None)
        if waiting is None:
            await self._keep(envelope)
            waiting = conversation.outbox.add(envelope)
            self.unanswered[envelope.eid] = waiting
            conversation.wake()
        return waiting

    def _refuse_if_ended(self, envelope: SignedEnvelope) -> None:
        if self._conversation.ended is not None:
            raise _not_sent(self._conversation.ended, envelope)

    async def _keep(self, envelope: SignedEnvelope) -> None:
        if self._journal is None:
            return
        try:
            await self._journal.keep(envelope)
            self._refuse_if_ended(envelope)
        except (asyncio.CancelledError, ClosedError):
            await self._drop(envelope.eid)
            raise
        except AgentError as exc:
            raise _not_sent(exc, envelope) from exc

    async def _end(self, waiting: Waiting) -> bool:
        """The submitting task goes: its envelope was answered, never sent, or is left.

        False: it is neither left nor out of the journal.
        """
        answer = waiting.answer
        is_open = not answer.done() or waiting.cut_short
        if self._journal is not None and is_open and waiting.is_unknown:
            self._leave(waiting)
            return True
        has_receipt = answer.done() and not answer.cancelled() and answer.exception() is None
        # first of all: while the journal is written, it could be submitted
        self._conversation.outbox.forget(waiting)
        self.unanswered.pop(waiting.envelope.eid, None)
        if self._journal is None or not has_receipt:
            return await self._drop(waiting.envelope.eid)
        # not waited for: after a crash now, the relay answers that it is a duplicate
        self._journal.drop(waiting.envelope.eid).add_done_callback(_seen)
        return True

    async def _drop(self, eid: Eid) -> bool:
        if self._journal is None:
            return True
        dropping = self._journal.drop(eid)
        dropping.add_done_callback(_seen)
        await asyncio.wait([dropping])
        return dropping.exception() is None

    def _leave(self, waiting: Waiting) -> None:
        eid = waiting.envelope.eid
        self._left[eid] = waiting
        self.unanswered[eid] = waiting
        waiting.answer.add_done_callback(partial(self._answered_late, waiting))

    def _answered_late(self, waiting: Waiting, answer: asyncio.Future[Sent]) -> None:
        eid = waiting.envelope.eid
        failure = None if answer.cancelled() else answer.exception()
        if self._journal is None or self._left.get(eid) is not waiting or waiting.cut_short:
            return
        del self._left[eid]
        self.unanswered.pop(eid, None)
        level = logging.WARNING if failure else logging.INFO
        _log.log(level, "%s, whose outcome was unknown: %s", eid, failure or "stored")
        self._journal.drop(eid).add_done_callback(_seen)


def _not_sent(ended: AgentError, envelope: SignedEnvelope) -> AgentError:
    failure = again(ended)
    failure.stored, failure.envelope = "no", envelope
    return failure


def _seen(noting: asyncio.Future[None]) -> None:
    """A failed drop costs a duplicate at the next open, which its answer will say."""
    failure = None if noting.cancelled() else noting.exception()
    if failure is not None:
        _log.warning("the outbox keeps what was answered: %s", failure)


async def outcome_of(
    sent: Sent, status: Callable[[str, str], Awaitable[State]], until: float
) -> Sent:
    """Ask until it has ended; then, or at ``until`` (monotonic seconds), say where it stands."""
    pause = FIRST_LOOK_S
    try:
        async with asyncio.timeout(max(0.0, until - clock.monotonic())):
            while sent.state in _LASTING:
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_LOOK_S)
                with contextlib.suppress(UnavailableError):
                    sent = replace(sent, state=await status(sent.to, sent.id))
    except TimeoutError:
        return sent
    return sent
