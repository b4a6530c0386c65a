"""A page as the scripts give it: check it, and make of it what is handed over (GUARANTEES.md R5).

Rules of the file: an entry is believed only after its digest and its eid were computed again; every
seq of the page must be an entry or explained, else the store lost something.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from relay.inbox.model.types import (
    Page,
    PageItem,
)
from relay.protocol.ids import (
    Epoch,
    Seq,
)
from relay.protocol.types import (
    Range,
    Reason,
)
from relay.store.redis import entries

_REASON = {
    "A": Reason.ACKED,
    "R": Reason.REFUSED,
    "E": Reason.EXPIRED,
    "C": Reason.CORRUPT,
    "M": Reason.MOVED,
}


@dataclass(frozen=True, slots=True)
class RawPage:
    """What a page script answered, every entry checked.

    Args:
        after: where the page begins, exclusive.
        upto: where it ends, inclusive.
        head: the last assigned seq.
        epoch: of the inbox.
        items: whole entries.
        corrupt: entries that are not what was stored.
        expired: entries to conclude before reading on.
        gaps: explained ranges.
    """

    after: Seq
    upto: Seq
    head: Seq
    epoch: Epoch
    items: tuple[PageItem, ...]
    corrupt: tuple[Seq, ...]
    expired: tuple[Seq, ...]
    gaps: tuple[Range, ...]

    @classmethod
    def parse(cls, reply: Any) -> RawPage:
        """Read the reply of read.lua or take.lua."""
        _, _, epoch, head, marked_upto, mark_before, after, upto, raw, ranges, expired = reply
        items: list[PageItem] = []
        corrupt: list[Seq] = []
        for stream_id, fields in raw:
            entry = entries.decode(stream_id, fields)
            if entry is None:
                corrupt.append(entries.seq_of(stream_id))
                continue
            is_marked = (
                entry.is_marked or entry.seq <= marked_upto or entry.created_at < mark_before
            )
            items.append(PageItem(entry.seq, is_marked, entry.eid, entry.wire))
        gaps = tuple(_clipped(text, after, upto) for text in ranges)
        seqs = tuple(Seq(seq) for seq in expired)
        return cls(
            Seq(after), Seq(upto), Seq(head), Epoch(epoch.decode()), tuple(items), tuple(corrupt),
            seqs, gaps,
        )  # fmt: skip

    def has_hole(self) -> bool:
        """Whether a seq of the page is neither an entry nor explained."""
        at = self.after
        for start, end in sorted(self._spans()):
            if start != at + 1:
                return True
            at = Seq(end)
        return at != self.upto

    def _spans(self) -> Iterator[tuple[int, int]]:
        yield from ((item.seq, item.seq) for item in self.items)
        yield from ((seq, seq) for seq in self.corrupt)
        yield from ((gap.start, gap.end) for gap in self.gaps)

    def page(self) -> Page:
        """What may be handed over: all that comes before the first corrupt entry."""
        if not self.corrupt:
            return Page(self.items, self.gaps, self.upto, self.head, self.expired)
        upto = Seq(self.corrupt[0] - 1)
        gaps = tuple(
            Range(gap.start, Seq(min(gap.end, upto)), gap.reason)
            for gap in self.gaps
            if gap.start <= upto
        )
        items = tuple(item for item in self.items if item.seq <= upto)
        return Page(items, gaps, upto, self.head, self.expired)


def _clipped(text: bytes, after: int, upto: int) -> Range:
    start, end, reason = text.decode().split(":")
    return Range(Seq(max(int(start), after + 1)), Seq(min(int(end), upto)), _REASON[reason])
