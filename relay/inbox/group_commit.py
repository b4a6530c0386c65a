"""Group commit: what arrived while the last commit was in flight goes into the next one.

One commit is in flight. A batch is bounded in items and bytes and filled round-robin over the
sources, so that no connection starves another. Each commit calls a source once, with all that it
decided for that source. A commit that fails decides, too: its items get the refusal. A source that
fails in its callback harms only itself.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from relay.clock import monotonic
from relay.protocol.errors import ErrorCode, Refusal, RelayError
from relay.tasks import isolated

MAX_ITEMS: Final = 512
MAX_BYTES: Final = 2 * 1024 * 1024
GATHER_S: Final = 0.002
QUIET_TURNS: Final = 2
"""Turns of the event loop: one reads a socket, one wakes its reader."""

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
_Item_contra = TypeVar("_Item_contra", contravariant=True)
_Result_contra = TypeVar("_Result_contra", contravariant=True)


class Source(Protocol[_Item_contra, _Result_contra]):
    """The origin of items: a connection, a request, a pump."""

    def on_committed(
        self, results: Sequence[tuple[_Item_contra, _Result_contra | Refusal]]
    ) -> None:
        """Take what one commit decided, in the order the items were put."""
        ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """The largest commit."""

    items: int = MAX_ITEMS
    bytes: int = MAX_BYTES


class GroupCommit(Generic[ItemT, ResultT]):
    """Collects items and commits them in batches.

    Args:
        commit: stores a batch durably; returns a result for each item, in order.
        size: bytes of an item, for the bound.
        bounds: of one commit.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[ItemT]], Awaitable[Sequence[ResultT | Refusal]]],
        size: Callable[[ItemT], int],
        bounds: Bounds = Bounds(),
    ) -> None:
        self._commit = commit
        self._size = size
        self._bounds = bounds
        self._waiting: OrderedDict[Source[ItemT, ResultT], deque[ItemT]] = OrderedDict()
        self._count = 0
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def put(self, source: Source[ItemT, ResultT], items: Sequence[ItemT]) -> None:
        """Queue items of ``source``; callers bound what a source may have waiting."""
        if not items:
            return
        self._waiting.setdefault(source, deque()).extend(items)
        self._count += len(items)
        self._idle.clear()
        self._work.set()

    async def idle(self) -> None:
        """Wait until nothing waits and no commit is in flight."""
        await self._idle.wait()

    async def run(self) -> None:
        """Commit until cancelled."""
        while True:
            await self._work.wait()
            await self._gather()
            batch = self._take()
            self._count -= len(batch)
            if batch:
                await self._decide(batch)
            if not self._waiting:
                self._work.clear()
                self._idle.set()

    async def _gather(self) -> None:
        """Let a burst that is arriving join: a commit costs as much for one as for many.

        Only while each turn of the event loop brings a good share more: under a steady trickle the
        first item must not wait for the next.
        """
        until, quiet, seen = monotonic() + GATHER_S, 0, 0
        while quiet < QUIET_TURNS and self._count < self._bounds.items and monotonic() < until:
            quiet = quiet + 1 if self._count - seen <= seen // 4 else 0
            seen = self._count
            await asyncio.sleep(0)

    def _take(self) -> list[tuple[Source[ItemT, ResultT], ItemT]]:
        """The next batch: an equal share of each source in turn, until full."""
        batch: list[tuple[Source[ItemT, ResultT], ItemT]] = []
        room_bytes = self._bounds.bytes
        while self._waiting:
            room = self._bounds.items - len(batch)
            share = max(1, room // len(self._waiting))
            for source in list(self._waiting):
                queue = self._waiting[source]
                for _ in range(min(share, len(queue), self._bounds.items - len(batch))):
                    size = self._size(queue[0])
                    if batch and size > room_bytes:
                        self._waiting.move_to_end(source, last=False)
                        return batch
                    room_bytes -= size
                    batch.append((source, queue.popleft()))
                if queue:
                    self._waiting.move_to_end(source)
                else:
                    del self._waiting[source]
                if len(batch) == self._bounds.items:
                    return batch
        return batch

    async def _decide(self, batch: Sequence[tuple[Source[ItemT, ResultT], ItemT]]) -> None:
        results = await self._results([item for _, item in batch])
        decided: dict[Source[ItemT, ResultT], list[tuple[ItemT, ResultT | Refusal]]] = {}
        for (source, item), result in zip(batch, results, strict=True):
            decided.setdefault(source, []).append((item, result))
        for source, pairs in decided.items():
            with isolated("decided"):
                source.on_committed(pairs)

    async def _results(self, items: Sequence[ItemT]) -> Sequence[ResultT | Refusal]:
        """One result for each item, whatever the commit raises."""
        with isolated("commit"):
            try:
                results = await self._commit(items)
            except RelayError as exc:
                return [Refusal.of(exc)] * len(items)
            if len(results) == len(items):
                return results
            raise RuntimeError(f"{len(results)} results for {len(items)} items")
        return [Refusal(ErrorCode.INTERNAL, "a bug of the relay")] * len(items)
