"""Peer submitters: each sends the batches of several forwarders to one relay.

A forwarder has one batch in flight, a submitter several. It joins waiting batches into one submit:
a peer with many recipients then costs one frame, and one fsync there, for all. A relay that loses
two submits in a row opens the circuit breaker: forwarders go on with other homes meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Final

from relay import clock
from relay.forwarding.model import ForwardItem, is_redelivered
from relay.peering.link import SubmitResult
from relay.peering.links import Links
from relay.protocol.backoff import doubling_pause_s
from relay.protocol.endpoint_record import Home
from relay.protocol.errors import ErrorCode, RelayError, UnavailableError
from relay.protocol.frames import MAX_ENVELOPES
from relay.protocol.ids import Did
from relay.tasks import Spawn, isolated

MAX_SUBMIT_BYTES: Final = 1_500_000
"""Wire bytes of one submit: well below the 2 MiB of a frame."""
MAX_IN_FLIGHT: Final = 4
FIRST_BREAK_S: Final = 5.0
MAX_BREAK_S: Final = 20.0
REMEMBER_S: Final = 60.0
"""A submitter remembers lost submits for this long after the breaker has closed."""


class NotSentError(UnavailableError):
    """The relay was not reached: it has none of the envelopes."""


@dataclass(slots=True, eq=False)
class _Batch:
    """A batch of one forwarder, and the future of its answer."""

    items: Sequence[ForwardItem]
    answer: asyncio.Future[SubmitResult]

    @property
    def bytes(self) -> int:
        return sum(len(item.wire) for item in self.items)

    def fail(self, exc: RelayError) -> None:
        if not self.answer.done():
            # a new exception for each task: one that is raised twice grows its traceback
            self.answer.set_exception(type(exc)(exc.code, exc.detail, retry_after=exc.retry_after))


class PeerSubmitter:
    """Sends batches to one relay.

    Args:
        me: this relay, named in ``hops``.
        home: the relay that gets them.
        links: dials it.
        spawn: runs a submit in the background.
        handoff: the hand-off that all of them belong to; "" = none.
    """

    def __init__(self, me: Did, home: Home, links: Links, spawn: Spawn, handoff: str = "") -> None:
        self._me = me
        self._home = home
        self._links = links
        self._spawn = spawn
        self._handoff = handoff
        self._waiting: deque[_Batch] = deque()
        self._in_flight = 0
        self._is_due = False
        self._losses = 0
        self._lost_at = self._open_until = float("-inf")

    @property
    def is_idle(self) -> bool:
        """True if it has no batch and no lost submit to remember."""
        is_past = clock.monotonic() > self._open_until + REMEMBER_S
        return not self._is_busy and (not self._losses or is_past)

    @property
    def _is_busy(self) -> bool:
        return bool(self._waiting or self._in_flight or self._is_due)

    def submit(self, items: Sequence[ForwardItem]) -> asyncio.Future[SubmitResult]:
        """Submit a batch of at most 256, perhaps together with others; await the answer.

        Raises:
            NotSentError: the relay was not reached.
            UnavailableError: no answer: the relay may have them.
            RelayError: the relay refused them all.
        """
        left_s = self._open_until - clock.monotonic()
        # after two losses in a row: one batch at a time, the other forwarders go elsewhere
        if self._losses > 1 and (left_s > 0 or self._is_busy):
            raise _silent(max(left_s, FIRST_BREAK_S))
        answer: asyncio.Future[SubmitResult] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Batch(items, answer))
        self._schedule()
        return answer

    def _schedule(self) -> None:
        # one turn of the event loop later: so the batches of one commit are joined
        if not self._is_due and self._in_flight < MAX_IN_FLIGHT and self._waiting:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        self._is_due = False
        batches = self._join()
        if batches:
            self._in_flight += 1
            self._spawn(self._send(batches))
        self._schedule()

    def _join(self) -> list[_Batch]:
        joined: list[_Batch] = []
        count = size = 0
        while self._waiting:
            first = self._waiting[0]
            count, size = count + len(first.items), size + first.bytes
            if joined and (count > MAX_ENVELOPES or size > MAX_SUBMIT_BYTES):
                break
            joined.append(self._waiting.popleft())
        return [batch for batch in joined if not batch.answer.done()]

    async def _send(self, batches: list[_Batch]) -> None:
        failure = RelayError(ErrorCode.INTERNAL, "a bug of this relay")
        try:
            with isolated("carrier"):
                try:
                    result = await self._submit([item for one in batches for item in one.items])
                except RelayError as exc:
                    failure = exc
                else:
                    _distribute(batches, result)
        finally:
            # a forwarder waits for each answer; those that have theirs stay as they are
            for batch in batches:
                batch.fail(failure)
            self._in_flight -= 1
            self._schedule()

    async def _submit(self, items: Sequence[ForwardItem]) -> SubmitResult:
        home = self._home
        try:
            link = await self._links.reach(home.did, home.url, handoff=bool(self._handoff))
        except RelayError as exc:
            raise NotSentError(exc.code, exc.detail, retry_after=exc.retry_after) from exc
        began = clock.monotonic()
        marked = [at for at, item in enumerate(items) if is_redelivered(item, home.did)]
        wires = [item.wire for item in items]
        try:
            result = await link.submit(
                wires, hops=(self._me,), marked=marked, handoff=self._handoff
            )
        except UnavailableError:
            self._on_loss(began)
            raise
        self._losses = 0
        return result

    def _on_loss(self, began: float) -> None:
        """Count a lost submit; several that were in flight together are one loss."""
        now = clock.monotonic()
        if began < self._lost_at:
            return
        self._losses, self._lost_at = self._losses + 1, now
        if self._losses > 1:
            break_s = doubling_pause_s(self._losses - 2, FIRST_BREAK_S, MAX_BREAK_S)
            self._open_until = now + break_s
            for batch in self._waiting:
                batch.fail(_silent(break_s))
            self._waiting.clear()


@dataclass(slots=True)
class SubmitterPool:
    """The submitters of one node; idle ones are dropped when a new one is made.

    Args:
        me: this relay.
        links: other relays.
        spawn: runs a submit in the background.
    """

    me: Did
    links: Links
    spawn: Spawn
    _made: dict[tuple[Did, str, str, str], PeerSubmitter] = field(default_factory=dict)

    def get(self, home: Home, handoff: str = "", inbox: str = "") -> PeerSubmitter:
        """Return the submitter to a home, or for one hand-off of one inbox.

        Agents choose the ids of hand-offs: those of two inboxes are never joined.
        """
        key = (home.did, home.url, handoff, inbox if handoff else "")
        found = self._made.get(key)
        if found is None:
            self._made = {other: one for other, one in self._made.items() if not one.is_idle}
            found = PeerSubmitter(self.me, home, self.links, self.spawn, handoff)
            self._made[key] = found
        return found


def _silent(seconds: float) -> NotSentError:
    detail = "that relay did not answer, more than once"
    return NotSentError(ErrorCode.PEER_UNREACHABLE, detail, retry_after=ceil(seconds))


def _distribute(batches: Sequence[_Batch], result: SubmitResult) -> None:
    at = 0
    for batch in batches:
        until = at + len(batch.items)
        if not batch.answer.done():
            batch.answer.set_result(result._replace(outcomes=result.outcomes[at:until]))
        at = until
