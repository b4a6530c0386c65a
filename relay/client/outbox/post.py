"""Send without a session: submits over HTTP; the envelope is its own proof (PROTOCOL.md §6).

It takes no inbox session, so a program that only sends does not supersede the one that listens with
the same key. A relay forwards nothing that is posted: what it does not keep itself goes on to a
home of the recipient.

Rules of the file: with a journal, an envelope is in the outbox before it is on the wire and leaves
it only after a definite answer (GUARANTEES.md S2). What may be stored stays when this gives up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from relay import clock
from relay.client._util import beside, log_failure
from relay.client.errors import AgentError, of, typed
from relay.client.http.relay_api import RelayApi
from relay.client.message import Sent
from relay.client.outbox.errand import Errand
from relay.client.outbox.queue import Outbox
from relay.client.outbox.signing import damage
from relay.client.outbox.submission import Waiting
from relay.client.state.agent_state import AgentState
from relay.protocol import frames, receipts
from relay.protocol import jws as jose
from relay.protocol.envelope import SignedEnvelope
from relay.protocol.errors import (
    ErrorCode,
    RelayError,
    Stored,
)
from relay.protocol.ids import Did

PAUSE_S: Final = 0.5
_FINAL: Final = frozenset({
    ErrorCode.WRONG_RELAY, ErrorCode.BAD_FRAME, ErrorCode.BAD_SIGNATURE, ErrorCode.UNSUPPORTED,
})  # fmt: skip
"""Somebody else answers there, or nothing that we understand; or the proxy cannot be used."""

Tell = Callable[[SignedEnvelope, Sent | AgentError], None]


async def post(
    envelope: SignedEnvelope,
    errand: Errand,
    *,
    deadline_s: float,
    earlier: Sequence[SignedEnvelope] = (),
    tell: Tell | None = None,
) -> Sent:
    """Submit the same bytes over HTTP until the answer is definite.

    Args:
        envelope: what is sent.
        errand: the relay, and the state that keeps the outbox.
        deadline_s: seconds to go on.
        earlier: of the outbox, submitted before it: what nobody waits for any more.
        tell: is told what became of each of those, before it leaves the outbox; perhaps twice.

    Raises:
        OutcomeUnknownError: the deadline passed and it may be stored: post it again. In a state
            with a file it stays in the outbox.
        AgentError: a definite no, or never sent.
    """
    posting, state = _Posting(errand), errand.state
    before = [
        errand.outbox.add(item, maybe_stored=True)
        for item in earlier
        if not await _is_damaged(item, state, tell)
    ]
    waiting = errand.outbox.add(envelope)
    if state.journal is not None:
        await state.journal.add_outgoing(envelope)
    is_kept = False
    try:
        try:
            return await posting.until_answered(waiting, deadline_s)
        finally:
            for other in before:
                await _settle(other, state, tell)
            is_left = not waiting.answer.done() and waiting.is_unknown
            is_kept = not is_left and not await _dropped(envelope, state)
    except AgentError as exc:
        if is_kept:
            # it could not be taken out of the outbox: the next one submits it
            exc.stored = "unknown"
        raise
    except asyncio.CancelledError:
        _conclude(waiting, state)
        raise


async def _is_damaged(envelope: SignedEnvelope, state: AgentState, tell: Tell | None) -> bool:
    failure = damage(envelope)
    if failure is None:
        return False
    if tell is not None:
        tell(envelope, failure)
    await _dropped(envelope, state)
    return True


def _conclude(waiting: Waiting, state: AgentState) -> None:
    """Its sender was interrupted, perhaps after the answer: that is an outcome, told later."""
    if state.journal is None or not waiting.answer.done() or waiting.answer.cancelled():
        return
    failure = waiting.answer.exception()
    if failure is None or isinstance(failure, AgentError):
        answer = failure or waiting.answer.result()
        state.journal.save_outcome(waiting.envelope, answer).add_done_callback(
            log_failure("it could not be saved")
        )


async def _settle(waiting: Waiting, state: AgentState, tell: Tell | None) -> None:
    if not waiting.answer.done():
        return
    failure = waiting.answer.exception()
    if failure is not None and not isinstance(failure, AgentError):
        raise failure
    if tell is not None:
        tell(waiting.envelope, failure or waiting.answer.result())
    await _dropped(waiting.envelope, state)


async def _dropped(envelope: SignedEnvelope, state: AgentState) -> bool:
    if state.journal is None:
        return True
    try:
        # with what an earlier life may have noted of it: its sender is told now
        await state.journal.remove_outgoing(envelope.eid)
    except AgentError:
        return False
    return True


@dataclass(slots=True)
class _Posting:
    """One run of submits to a relay."""

    errand: Errand
    last: AgentError | None = None

    @property
    def box(self) -> Outbox:
        """What is to be submitted."""
        return self.errand.outbox

    async def until_answered(self, waiting: Waiting, deadline_s: float) -> Sent:
        until = clock.monotonic() + deadline_s
        # each try has an end of its own: one that is cancelled could not tell whether it had begun
        async with beside(self.errand.detours.run()):
            while not waiting.answer.done() and (left := until - clock.monotonic()) > 0:
                await self._try(waiting, left)
                pause = min(self._pause(), until - clock.monotonic())
                await asyncio.wait([waiting.answer], timeout=max(0.0, pause))
        if not waiting.answer.done():
            raise waiting.verdict(self.last)
        return waiting.answer.result()

    def _pause(self) -> float:
        # not until that timer alone: a detour may put something back meanwhile
        due = self.box.next_timer()
        return PAUSE_S if due is None else min(max(0.0, due - clock.monotonic()), PAUSE_S)

    async def _try(self, waiting: Waiting, seconds: float) -> None:
        submit = self.box.next_submit(clock.monotonic())
        if submit is None:
            return
        was_maybe_stored = waiting.maybe_stored
        is_in_it = waiting.in_flight and not waiting.held
        try:
            await self._exchange(submit, seconds)
        except AgentError as exc:
            self.last = exc
            self.box.lost()
            if exc.stored == "no" and is_in_it:
                # there was no connection, so nothing can have been sent
                waiting.maybe_stored = was_maybe_stored
            if exc.code in _FINAL:
                stored: Stored = "unknown" if waiting.is_unknown else "no"
                raise typed(exc.code, exc.detail, stored=stored, envelope=waiting.envelope) from exc
            self.errand.heard(answer=False)

    async def _exchange(self, submit: frames.Submit, seconds: float) -> None:
        origin = self.errand.origin
        answer = await RelayApi(origin, seconds).submit(submit)
        self.errand.heard(answer=True)
        if isinstance(answer, AgentError):
            self.box.failed(submit.ref, answer, clock.monotonic())
            return
        try:
            signer = _signer(answer)
        except ValueError as exc:
            raise typed(ErrorCode.PEER_UNREACHABLE, f"{origin} gave no receipt") from exc
        self._answered(answer, signer)

    def _answered(self, frame: frames.Submitted, signer: Did) -> None:
        origin, state = self.errand.origin, self.errand.state
        relay = state.relay_at(str(origin)) or signer
        if frame.receipt is not None and signer != relay:
            raise state.wrong_relay(str(origin), signer)
        try:
            self.box.answered(frame, relay, clock.monotonic())
        except RelayError as exc:
            raise of(exc) from exc
        if frame.receipt is not None:
            state.pin(str(origin), relay)


def _signer(frame: frames.Submitted) -> Did:
    """On first contact: who signed the receipt; the signature itself is checked after this."""
    if frame.receipt is None:
        return Did("")
    jws = jose.parse(frame.receipt, typ=receipts.RECEIPT_TYP, max_bytes=receipts.MAX_RECEIPT_BYTES)
    return Did(jws.header.kid.partition("#")[0])
