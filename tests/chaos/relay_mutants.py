"""Relays that break one promise each: ``python -m tests.chaos.relay_mutants NAME``.

A mutant is the real relay without one promise, as a plausible bug would leave it. It breaks the
promise so often that no run can pass by luck. ``test_relay_controls.py`` says what must be found.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from relay.inbox.model.types import (
    Accepted,
    AckRequest,
    AckResult,
    Page,
)
from relay.inbox.submit import (
    SubmitStream,
)
from relay.node import (
    serve,
)
from relay.protocol.envelope import StoredEnvelope
from relay.protocol.errors import Refusal
from relay.protocol.ids import (
    AgentKey,
    Epoch,
    Fence,
    Seq,
)
from relay.protocol.types import (
    Window,
)
from relay.settings import load
from relay.store.redis import store as redis_store
from relay.store.redis.inboxes import RedisInboxes
from relay.tasks import isolated
from relay.ws.connection import Connection

T = TypeVar("T")
LATE_RECEIPTS = 128
LATE_ACKS = 32
IDLE_S = 1.0
NOT_ISOLATED = "not-isolated"


class LateCommits(Generic[T]):
    """Commits what it is given when ``most`` more have come, or none for a second.

    So that a kill finds something at risk whenever it comes, and without a kill all ends well.
    """

    def __init__(self, most: int, commit: Callable[[Sequence[T]], Awaitable[Any]]) -> None:
        self._most = most
        self._commit = commit
        self._waiting: tuple[T, ...] = ()
        self._idle: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    async def put(self, items: Sequence[T]) -> None:
        self._waiting += tuple(items)
        await self._catch_up(self._most)
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_S, self._when_idle)

    def _when_idle(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._catch_up(0))

    async def _catch_up(self, most: int) -> None:
        cut = max(0, len(self._waiting) - most)
        due, self._waiting = self._waiting[:cut], self._waiting[cut:]
        if due:
            await self._commit(due)


class ReceiptBeforeCommit(RedisInboxes):
    """Answers first and commits later."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.late = LateCommits(LATE_RECEIPTS, super().append)
        self.answered = 0

    async def append(self, items: Sequence[StoredEnvelope]) -> list[Accepted | Refusal]:
        await self.late.put(items)
        first = self.answered + 1
        self.answered += len(items)
        return [
            Accepted(Seq(seq), Epoch("said-too-early"), dup=False, session=None)
            for seq in range(first, first + len(items))
        ]


class AckedBeforeCommit(RedisInboxes):
    """Confirms acks first and commits them later."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.late = LateCommits(LATE_ACKS, super().ack)

    async def ack(self, requests: Sequence[AckRequest]) -> list[AckResult | Refusal]:
        await self.late.put(requests)
        return [_said(item) for item in requests]


class AcksComeToNothing(RedisInboxes):
    """Confirms acks and commits none of them."""

    async def ack(self, requests: Sequence[AckRequest]) -> list[AckResult | Refusal]:
        return [_said(item) for item in requests]


class Mute(RedisInboxes):
    """Takes envelopes, and neither stores nor answers."""

    async def append(self, _: Sequence[StoredEnvelope]) -> list[Accepted | Refusal]:
        await asyncio.Event().wait()
        raise AssertionError


def _said(item: AckRequest) -> AckResult:
    return AckResult(item.ack.upto, item.ack.seqs, tuple(seq for seq, _ in item.ack.refuse))


class NothingIsRedelivered(RedisInboxes):
    """Ignores how far an earlier session had handed over."""

    async def read(
        self, inbox: AgentKey, fence: Fence, after: Seq, window: Window
    ) -> Page | Refusal:
        page = await super().read(inbox, fence, after, window)
        if isinstance(page, Refusal):
            return page
        return replace(page, items=tuple(item._replace(redelivered=False) for item in page.items))


class Misfiled(RedisInboxes):
    """Stores every 20th envelope in the inbox that the one before it was for."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.count = 0
        self.before: AgentKey | None = None

    async def append(self, items: Sequence[StoredEnvelope]) -> list[Accepted | Refusal]:
        return await super().append([self.misfile(item) for item in items])

    def misfile(self, item: StoredEnvelope) -> StoredEnvelope:
        other, self.before = self.before, item.inbox
        self.count += 1
        if other is None or self.count % 20:
            return item
        return item._replace(inbox=other)


class LastInFirstOut(RedisInboxes):
    """Hands over a page in the wrong order; its seqs are in the right one."""

    async def read(
        self, inbox: AgentKey, fence: Fence, after: Seq, window: Window
    ) -> Page | Refusal:
        page = await super().read(inbox, fence, after, window)
        if isinstance(page, Refusal):
            return page
        seqs = [item.seq for item in page.items]
        items = zip(seqs, reversed(page.items), strict=True)
        return replace(page, items=tuple(item._replace(seq=seq) for seq, item in items))


MUTANTS: dict[str, type[RedisInboxes]] = {
    "receipt-before-commit": ReceiptBeforeCommit,
    "acked-before-commit": AckedBeforeCommit,
    "acks-come-to-nothing": AcksComeToNothing,
    "mute": Mute,
    "nothing-is-redelivered": NothingIsRedelivered,
    "misfiled": Misfiled,
    "last-in-first-out": LastInFirstOut,
}


def isolate_nothing() -> None:
    """Let a fault of one connection end the loop that serves them all, after its end too."""

    def spawn(self: Connection, work: Coroutine[Any, Any, None]) -> None:
        if self._tasks is None:
            work.close()
            raise RuntimeError("the conversation is over")
        self._tasks.create_task(work)

    Connection._spawn = spawn  # type: ignore[method-assign]
    SubmitStream.close = lambda _: None  # type: ignore[method-assign]
    isolated.__exit__ = lambda *_: False  # type: ignore[method-assign]


if __name__ == "__main__":
    if sys.argv[1] == NOT_ISOLATED:
        isolate_nothing()
    else:
        redis_store.RedisInboxes = MUTANTS[sys.argv[1]]
    sys.exit(serve(load()))
