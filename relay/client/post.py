"""Send without a session: one submit over HTTP; the envelope is its own proof (PROTOCOL.md §6).

It takes no inbox session, so a program that only sends does not supersede the one that listens with
the same key.
"""

from __future__ import annotations

import asyncio
import http.client
from typing import Final

from relay import clock
from relay.client.errors import AgentError, of, typed
from relay.client.message import Sent
from relay.client.origin import Origin
from relay.client.outbox import Outbox, Waiting
from relay.client.state import State
from relay.core import codec, receipts
from relay.core import jws as jose
from relay.core.envelope import SignedEnvelope
from relay.core.errors import ErrorCode, RelayError
from relay.core.frames import MAX_FRAME_BYTES, Rejection, Submitted
from relay.core.ids import Did

PATH: Final = "/v1/envelopes"
EXCHANGE_S: Final = 10.0
PAUSE_S: Final = 0.5
_OK: Final = 200
_FINAL: Final = frozenset({ErrorCode.WRONG_RELAY, ErrorCode.BAD_FRAME, ErrorCode.BAD_SIGNATURE})
"""Somebody else answers there, or nothing that we understand."""


async def post(
    envelope: SignedEnvelope, origin: Origin, state: State, *, deadline_s: float
) -> Sent:
    """Submit the same bytes over HTTP until the answer is definite.

    Args:
        envelope: what is sent.
        origin: the relay.
        state: knows which relay is expected there, and remembers it.
        deadline_s: seconds to go on.

    Raises:
        OutcomeUnknownError: the deadline passed and it may be stored: post it again.
        AgentError: a definite no, or never sent.
    """
    box = Outbox()
    waiting = box.add(envelope)
    until = clock.monotonic() + deadline_s
    reached = False
    last: AgentError | None = None
    try:
        async with asyncio.timeout(deadline_s):
            while not waiting.answer.done():
                try:
                    await _try(box, origin, state, max(0.1, until - clock.monotonic()))
                    reached = True
                except AgentError as exc:
                    if exc.code in _FINAL:
                        raise typed(
                            exc.code, exc.detail, stored="unknown", envelope=envelope
                        ) from exc
                    # refused before a connection: nothing can have been sent
                    reached = reached or not isinstance(exc.__cause__, ConnectionRefusedError)
                    last = exc
                    box.lost()
                if not waiting.answer.done():
                    await asyncio.sleep(_pause(box))
    except TimeoutError as exc:
        raise _verdict(waiting, last, reached=reached) from exc
    return waiting.answer.result()


def _pause(box: Outbox) -> float:
    due = box.next_timer()
    return PAUSE_S if due is None else max(0.0, due - clock.monotonic())


def _verdict(waiting: Waiting, last: AgentError | None, *, reached: bool) -> AgentError:
    if not reached and last is not None:
        return typed(last.code, last.detail, stored="no", envelope=waiting.envelope)
    return waiting.verdict()


async def _try(box: Outbox, origin: Origin, state: State, seconds: float) -> None:
    submit = box.next_submit(clock.monotonic())
    if submit is None:
        return
    body = b'{"envelopes":[%b]}' % b",".join(bytes(item) for item in submit.envelopes)  # type: ignore[call-overload]  # wire bytes
    # the thread cannot be cancelled: it must not outlive the deadline by itself
    status, answer = await asyncio.to_thread(_exchange, origin, body, min(seconds, EXCHANGE_S))
    try:
        members = jose.Members(jose.loads(answer))
        if status == _OK:
            frame = _submitted(members, submit.ref)
        else:
            box.failed(submit.ref, _error(members), clock.monotonic())
            return
    except ValueError as exc:
        detail = f"{origin} answered HTTP {status}, but not as a relay does"
        raise typed(ErrorCode.PEER_UNREACHABLE, detail) from exc
    signer = _signer(frame)
    relay = state.relay_at(str(origin)) or signer
    if frame.receipt is not None and signer != relay:
        raise typed(ErrorCode.WRONG_RELAY, f"{origin}: expected {relay}, found {signer}")
    try:
        box.answered(frame, relay, clock.monotonic())
    except RelayError as exc:
        raise of(exc) from exc
    if frame.receipt is not None:
        state.pin(str(origin), relay)


def _submitted(members: jose.Members, ref: str) -> Submitted:
    rejected = [codec.read_rejection(item) for item in members.array("rejected", most=256)]
    return Submitted(
        refs=(ref,),
        receipt=members.optional_text("receipt", most=receipts.MAX_RECEIPT_BYTES),
        rejected=tuple(
            Rejection(ref, no.i, no.error, no.stored, no.detail, no.retry_after, no.record)
            for no in rejected
        ),
    )


def _error(members: jose.Members) -> AgentError:
    return typed(
        ErrorCode(members.text("error", most=64)),
        members.optional_text("detail", most=1024) or "",
        retry_after=members.integer("retry_after") if members.has("retry_after") else None,
    )


def _signer(frame: Submitted) -> Did:
    """On first contact: who signed the receipt; the signature itself is checked after this."""
    if frame.receipt is None:
        return Did("")
    jws = jose.parse(frame.receipt, typ=receipts.RECEIPT_TYP, max_bytes=receipts.MAX_RECEIPT_BYTES)
    return Did(jws.header.kid.partition("#")[0])


def _exchange(origin: Origin, body: bytes, seconds: float) -> tuple[int, bytes]:
    """One POST; gives status and body.

    Raises:
        AgentError: ``peer_unreachable``.
    """
    kind = http.client.HTTPConnection if origin.is_plain else http.client.HTTPSConnection
    connection = kind(origin.host, origin.port, timeout=seconds)
    try:
        connection.request("POST", PATH, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read(MAX_FRAME_BYTES)
    except (OSError, http.client.HTTPException) as exc:
        reason = (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
        raise typed(ErrorCode.PEER_UNREACHABLE, f"{origin}: {reason}") from exc
    finally:
        connection.close()
