"""Carriers: what couriers have for one relay goes there together (GUARANTEES.md R7, S1).

Rules of the file: a courier has one batch under way, a carrier several; those that wait are put
into one submit, so that a peer with many recipients costs one frame, and one fsync there, for all.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Final, Protocol

from relay import clock
from relay.forwarding.model import (
    ForwardItem,
    is_marked,
)
from relay.peering.ports import (
    PeerLinks,
    SubmitResult,
)
from relay.protocol import frames
from relay.protocol.backoff import doubling_pause_s
from relay.protocol.endpoint_record import Home
from relay.protocol.errors import (
    ErrorCode,
    RelayError,
    UnavailableError,
)
from relay.protocol.ids import Did
from relay.tasks import isolated

MOST_BYTES: Final = 1_500_000
"""Wire bytes of one submit: well below the 2 MiB of a frame."""
AT_ONCE: Final = 4
FIRST_HOLD_S: Final = 5.0
LONGEST_HOLD_S: Final = 20.0
REMEMBERED_S: Final = 60.0


class Spawn(Protocol):
    """Runs work beside; it ends with the node."""

    def __call__(self, work: Coroutine[Any, Any, None]) -> object:
        """Start it."""
        ...


class NotSentError(UnavailableError):
    """The relay was not reached: it has none of them."""


@dataclass(slots=True, eq=False)
class _Batch:
    """The batch of one courier, and where its answer goes."""

    items: Sequence[ForwardItem]
    answer: asyncio.Future[SubmitResult]

    @property
    def bytes(self) -> int:
        return sum(len(item.wire) for item in self.items)


class PeerSubmitter:
    """Takes parcels to one relay.

    Args:
        me: this relay, named in ``hops``.
        home: where they go.
        links: dials it.
        spawn: runs a submit beside the others.
        handoff: the hand-off that all of them are part of; "" = none.
    """

    def __init__(
        self, me: Did, home: Home, links: PeerLinks, spawn: Spawn, handoff: str = ""
    ) -> None:
        self._me = me
        self._home = home
        self._links = links
        self._spawn = spawn
        self._handoff = handoff
        self._waiting: deque[_Batch] = deque()
        self._under_way = 0
        self._is_due = False
        self._losses = 0
        self._lost_at = self._held_until = float("-inf")

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing to do, and nothing to remember."""
        is_past = clock.monotonic() > self._held_until + REMEMBERED_S
        return not self._is_busy and (not self._losses or is_past)

    @property
    def _is_busy(self) -> bool:
        return bool(self._waiting or self._under_way or self._is_due)

    def submit(self, items: Sequence[ForwardItem]) -> asyncio.Future[SubmitResult]:
        """Submit a batch, at most 256; perhaps together with others'. Awaited, it may raise.

        Raises:
            NotSentError: the relay was not reached.
            UnavailableError: no answer: it may have them.
            RelayError: it refused them all.
        """
        hold_s = self._held_until - clock.monotonic()
        # who has lost two in a row is tried with one at a time: couriers have others to serve
        if self._losses > 1 and (hold_s > 0 or self._is_busy):
            raise _silent(max(hold_s, FIRST_HOLD_S))
        answer: asyncio.Future[SubmitResult] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Batch(items, answer))
        self._soon()
        return answer

    def _soon(self) -> None:
        # one turn of the event loop later: what one commit brought comes together
        if not self._is_due and self._under_way < AT_ONCE and self._waiting:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._go)

    def _go(self) -> None:
        self._is_due = False
        parcels = self._take()
        if parcels:
            self._under_way += 1
            self._spawn(self._carry(parcels))
        self._soon()

    def _take(self) -> list[_Batch]:
        taken: list[_Batch] = []
        count = size = 0
        while self._waiting:
            first = self._waiting[0]
            count, size = count + len(first.items), size + first.bytes
            if taken and (count > frames.MAX_ENVELOPES or size > MOST_BYTES):
                break
            taken.append(self._waiting.popleft())
        return [parcel for parcel in taken if not parcel.answer.done()]

    async def _carry(self, parcels: list[_Batch]) -> None:
        try:
            with isolated("carrier"):
                try:
                    taken = await self._submit([item for one in parcels for item in one.items])
                except RelayError as exc:
                    _fail(parcels, exc)
                else:
                    _hand_out(parcels, taken)
        finally:
            # a courier waits for each answer
            _fail(parcels, RelayError(ErrorCode.INTERNAL, "a bug of this relay"))
            self._under_way -= 1
            self._soon()

    async def _submit(self, items: Sequence[ForwardItem]) -> SubmitResult:
        home = self._home
        try:
            link = await self._links.reach(home.did, home.url, handoff=bool(self._handoff))
        except RelayError as exc:
            said = NotSentError(exc.code, exc.detail, retry_after=exc.retry_after)
            raise said from exc
        began = clock.monotonic()
        marked = [at for at, item in enumerate(items) if is_marked(item, home.did)]
        wires = [item.wire for item in items]
        try:
            taken = await link.submit(wires, hops=(self._me,), marked=marked, handoff=self._handoff)
        except UnavailableError:
            self._lost(began)
            raise
        self._losses = 0
        return taken

    def _lost(self, began: float) -> None:
        """No answer; several that were under way together are one loss."""
        now = clock.monotonic()
        if began < self._lost_at:
            return
        self._losses, self._lost_at = self._losses + 1, now
        if self._losses > 1:
            hold_s = doubling_pause_s(self._losses - 2, FIRST_HOLD_S, LONGEST_HOLD_S)
            self._held_until = now + hold_s
            _fail(list(self._waiting), _silent(hold_s))
            self._waiting.clear()


def _silent(seconds: float) -> NotSentError:
    detail = "that relay did not answer, more than once"
    return NotSentError(ErrorCode.PEER_UNREACHABLE, detail, retry_after=ceil(seconds))


def _hand_out(parcels: Sequence[_Batch], taken: SubmitResult) -> None:
    at = 0
    for parcel in parcels:
        until = at + len(parcel.items)
        if not parcel.answer.done():
            share = SubmitResult(taken.receipt, taken.compact, taken.outcomes[at:until])
            parcel.answer.set_result(share)
        at = until


def _fail(parcels: Sequence[_Batch], exc: RelayError) -> None:
    for parcel in parcels:
        if not parcel.answer.done():
            parcel.answer.set_exception(_again(exc))


def _again(exc: RelayError) -> RelayError:
    """The same error for one more task: an exception that is raised twice grows its traceback."""
    return type(exc)(exc.code, exc.detail, retry_after=exc.retry_after)
