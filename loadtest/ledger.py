"""What was sent, stored and delivered, envelope by envelope: the driver's own book.

Rules of the file: pure. It believes nothing that a relay counts itself: an envelope is *stored*
where a receipt whose signature held names its eid, *delivered* where its recipient was handed bytes
with that eid. It is written between the measured intervals, so that it costs them nothing.

::

    post ──▶ sent ──store──▶ stored ──deliver──▶ delivered
              └─reject──▶ rejected
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, fields

from relay.protocol.ids import Eid

Lane = tuple[int, int]
"""A sender and a recipient, by number: within a lane, order counts."""


@dataclass(slots=True)
class Posted:
    """One envelope that was sent.

    Args:
        lane: from whom, to whom.
        number: its place in the lane's order of sending.
        due: when it was to be sent, driver clock; latency counts from here.
        checksum: of its bytes, body included.
        stored: whether a receipt named it.
        rejected: whether it was turned down.
        deliveries: how often it was handed over.
    """

    lane: Lane
    number: int
    due: float
    checksum: int
    stored: bool = False
    rejected: bool = False
    deliveries: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was wrong; all zero is the only good one.

    Args:
        lost: stored, never delivered.
        duplicated: deliveries beyond the first, with no reconnection to excuse them.
        reordered: delivered after a later one of the same lane.
        phantom: delivered, but never sent, or not to that recipient.
        altered: delivered with other bytes than were sent.
        marked: first deliveries that came marked as redelivered.
        unanswered: sent, and neither receipt nor rejection came.
        rejected: turned down, though limits are out of the way.
        misreceipted: receipts that did not hold, or did not name what was sent.
    """

    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    phantom: int = 0
    altered: int = 0
    marked: int = 0
    unanswered: int = 0
    rejected: int = 0
    misreceipted: int = 0

    def is_good(self) -> bool:
        """Whether nothing was wrong."""
        return not any(getattr(self, member.name) for member in fields(self))


@dataclass(slots=True)
class Ledger:
    """Every envelope of a run."""

    _posted: dict[Eid, Posted] = field(default_factory=dict)
    _sent: defaultdict[Lane, int] = field(default_factory=lambda: defaultdict(int))
    _last: dict[Lane, int] = field(default_factory=dict)
    rejections: Counter[str] = field(default_factory=Counter)
    _reordered: int = 0
    _phantom: int = 0
    _altered: int = 0
    _marked: int = 0
    _misreceipted: int = 0

    def post(self, eid: Eid, lane: Lane, due: float, checksum: int) -> None:
        """It was sent; callers keep the order of sending."""
        self._posted[eid] = Posted(lane, self._sent[lane], due, checksum)
        self._sent[lane] += 1

    def store(self, eid: Eid) -> Posted | None:
        """A receipt names it; gives what was sent, None where nothing was."""
        posted = self._posted.get(eid)
        if posted is None:
            self._misreceipted += 1
        else:
            posted.stored = True
        return posted

    def reject(self, eid: Eid, code: str) -> None:
        """It was turned down, for this reason."""
        self._posted[eid].rejected = True
        self.rejections[code] += 1

    def misreceipt(self) -> None:
        """A receipt was not what it should be."""
        self._misreceipted += 1

    def deliver(
        self, recipient: int, eid: Eid, checksum: int, *, redelivered: bool
    ) -> Posted | None:
        """``recipient`` was handed it; gives what was sent, None where that is a phantom."""
        posted = self._posted.get(eid)
        if posted is None or posted.lane[1] != recipient:
            self._phantom += 1
            return None
        posted.deliveries += 1
        self._altered += checksum != posted.checksum
        if posted.deliveries == 1:
            self._marked += redelivered
            if posted.number < self._last.get(posted.lane, -1):
                self._reordered += 1
            self._last[posted.lane] = max(posted.number, self._last.get(posted.lane, -1))
        return posted

    def verdict(self) -> Verdict:
        """Judge the run so far; only once nothing is in flight."""
        posted = self._posted.values()
        return Verdict(
            lost=sum(one.stored and not one.deliveries for one in posted),
            duplicated=sum(max(one.deliveries - 1, 0) for one in posted),
            reordered=self._reordered,
            phantom=self._phantom,
            altered=self._altered,
            marked=self._marked,
            unanswered=sum(not one.stored and not one.rejected for one in posted),
            rejected=sum(one.rejected for one in posted),
            misreceipted=self._misreceipted,
        )

    @property
    def count(self) -> int:
        """Envelopes sent."""
        return len(self._posted)
