"""Explicit ranges of an inbox's seqs that hold no envelope any more, each with its reason (R5).

Never derived from absence: a seq that is neither live nor in a range is a hole, and a hole means
that the store lost something.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from relay.protocol.ids import Seq
from relay.protocol.types import Range, Reason

_PASSED: Final = frozenset({Reason.ACKED, Reason.REFUSED, Reason.MOVED})


@dataclass(slots=True)
class Ranges:
    """Disjoint ranges in ascending order; neighbours with one reason are one range."""

    _items: list[Range] = field(default_factory=list)

    def add(self, seq: Seq, reason: Reason) -> None:
        """Add one seq that is in no range yet."""
        at = bisect_right(self._items, seq, key=lambda item: item.start)
        start = end = seq
        if at < len(self._items) and self._joins(self._items[at], seq + 1, reason):
            end = self._items.pop(at).end
        if at > 0 and self._items[at - 1].end == seq - 1 and self._items[at - 1].reason is reason:
            at -= 1
            start = self._items.pop(at).start
        self._items.insert(at, Range(start, end, reason))

    @staticmethod
    def _joins(item: Range, start: int, reason: Reason) -> bool:
        return item.start == start and item.reason is reason

    def between(self, after: Seq, upto: Seq) -> list[Range]:
        """The parts of the ranges that lie in ``after``+1 … ``upto``."""
        return [
            Range(Seq(max(item.start, after + 1)), Seq(min(item.end, upto)), item.reason)
            for item in self._items
            if after < upto and item.end > after and item.start <= upto
        ]

    def absorb(self, cursor: Seq, upto: Seq) -> Seq:
        """Move the cursor over ranges that touch it; gives the new cursor.

        What the agent itself ended (acked, refused) is passed at once, and what went on to its
        home elsewhere (moved); anything else only up to ``upto``, the cumulative ack: the agent
        must have been told before it is forgotten.
        """
        while self._items and self._items[0].start == cursor + 1:
            first = self._items[0]
            end = first.end if first.reason in _PASSED else Seq(min(first.end, upto))
            if end <= cursor:
                break
            cursor = end
            if end < first.end:
                self._items[0] = Range(Seq(end + 1), first.end, first.reason)
                break
            del self._items[0]
        return cursor

    def __iter__(self) -> Iterator[Range]:
        return iter(self._items)


def holes(live: Iterable[Seq], ranges: Iterable[Range], after: Seq, upto: Seq) -> list[Seq]:
    """The seqs in ``after``+1 … ``upto`` that are neither live nor explained."""
    known = set(live)
    for item in ranges:
        known.update(Seq(n) for n in range(item.start, item.end + 1))
    return [Seq(n) for n in range(after + 1, upto + 1) if n not in known]
