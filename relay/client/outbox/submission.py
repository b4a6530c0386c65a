"""One envelope that waits for a relay's answer, and what its answers are to the program."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from relay import clock
from relay.client.errors import AgentError, OutcomeUnknownError, typed
from relay.client.message import Sent
from relay.protocol import frames
from relay.protocol.envelope import SignedEnvelope
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import Timestamp
from relay.protocol.receipts import (
    Receipt,
    ReceiptItem,
)

MAX_FRAME_WIRE: Final = 1_500_000
"""Wire bytes of the envelopes of one submit: well below the 2 MiB of a frame."""


@dataclass(slots=True, eq=False)
class Waiting:
    """One envelope and the task that waits for its receipt.

    ``cut_short``: the agent ended before a relay's answer. ``not_carried``: the refusal of the own
    relay, ``at``, for which it strayed. ``astray_at``: without any relay it strays not before.
    ``held``: it strayed, and a detour has it.
    """

    envelope: SignedEnvelope
    order: int
    answer: asyncio.Future[Sent]
    tries: int = 0
    maybe_stored: bool = False
    in_flight: bool = False
    cut_short: bool = False
    last: frames.Rejection | None = None
    not_carried: frames.Rejection | None = None
    at: str = ""
    astray_at: Timestamp = Timestamp(0)
    held: bool = False

    @property
    def is_unknown(self) -> bool:
        """Whether it may be stored although there is no receipt."""
        return self.maybe_stored or self.in_flight

    def verdict(self, failure: AgentError | None = None) -> AgentError:
        """The error of one whose deadline has passed.

        Args:
            failure: why no relay could be reached the last time.
        """
        code, detail = ErrorCode.PEER_UNREACHABLE, "no relay answered in time"
        if self.last is not None:
            code, detail = self.last.error, self.last.detail or detail
        elif failure is not None:
            is_same = failure.code is code
            detail = failure.detail if is_same and failure.detail else f"{detail}; {failure}"
        if not self.is_unknown:
            return typed(code, detail, stored="no", envelope=self.envelope)
        exc = OutcomeUnknownError(code, detail)
        exc.stored, exc.envelope = "unknown", self.envelope
        return exc


def take(queue: deque[Waiting], most: int) -> Iterator[Waiting]:
    """As many as one submit holds; those that nobody waits for are left out."""
    taken = size = 0
    while queue and taken < most:
        first = queue[0]
        if first.answer.done():
            queue.popleft()
            continue
        size += len(first.envelope.wire)
        if taken and size > MAX_FRAME_WIRE:
            return
        taken += 1
        yield queue.popleft()


def refusal_of(waiting: Waiting, no: frames.Rejection) -> AgentError:
    """The error of a definite no."""
    detail = no.detail
    if no.error is ErrorCode.EXPIRED and clock.now() < waiting.envelope.expires_at:
        detail += "; by this machine's clock it has not: one of the two clocks is wrong"
    return typed(
        no.error,
        detail,
        retry_after=no.retry_after,
        stored="unknown" if waiting.maybe_stored else no.stored,
        envelope=waiting.envelope,
        record=no.record,
    )


def sent_of(envelope: SignedEnvelope, item: ReceiptItem, receipt: Receipt, compact: str) -> Sent:
    """What the program gets of a receipt."""
    return Sent(
        eid=envelope.eid,
        id=envelope.id,
        to=envelope.to,
        relay=receipt.relay,
        at=receipt.at,
        durability=receipt.durability,
        custody=item.custody,
        expires_at=envelope.expires_at,
        dup=item.dup,
        receipt=compact,
    )
