"""Decide if the store's clock is right: a wrong one must never expire mail (GUARANTEES.md §2).

The caller brings samples. After a gap or a step, nobody can see which clock is right, so it stays
uncertain until an operator confirms it. Two clocks that differ stay uncertain while they do: one
of them is wrong, and no operator can confirm that away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relay.health import Health, ProblemReason
from relay.protocol.ids import Timestamp

MAX_STEP_S: Final = 300.0
MAX_GAP_S: Final = 3600.0
MAX_DIFFERENCE_S: Final = 60.0
"""The life of a login; mail expires at most this much early or late."""


@dataclass(slots=True)
class ClockGuard:
    """Compares the store's clock with elapsed time, the last one seen, and the node's.

    Args:
        gap: text, if the clock was far ahead when the node started.
        step: text, if the clock stepped while the node ran.
        difference: text, if the clocks of node and store differ.
    """

    gap: str | None = None
    step: str | None = None
    difference: str | None = None
    _store_at: Timestamp | None = None
    _monotonic_at: Timestamp | None = None

    def begin(self, last_seen: Timestamp | None, now: Timestamp, *, trusted: bool) -> None:
        """Start: uncertainty a clock far ahead of the last one that the store wrote down."""
        if last_seen is not None and now - last_seen > MAX_GAP_S and not trusted:
            self.gap = f"the clock is {int(now - last_seen)} s ahead of the last one seen"

    def sample(self, store_now: Timestamp, monotonic: Timestamp) -> None:
        """Doubt a step of more than 5 min beyond the time that passed."""
        if self._store_at is not None and self._monotonic_at is not None:
            step = (store_now - self._store_at) - (monotonic - self._monotonic_at)
            if abs(step) > MAX_STEP_S:
                self.step = f"the clock stepped by {int(step)} s"
        self._store_at, self._monotonic_at = store_now, monotonic

    def compare(self, ahead_s: float) -> None:
        """Doubt two clocks that are more than a minute apart.

        Args:
            ahead_s: how far the store's clock is ahead of this node's, seconds; < 0: behind.
        """
        self.difference = None
        if abs(ahead_s) > MAX_DIFFERENCE_S:
            side = "ahead of" if ahead_s > 0 else "behind"
            self.difference = (
                f"the clock of the store is {abs(int(ahead_s))} s {side} the clock of this node"
            )

    def confirm(self) -> None:
        """Confirm, for an operator, that the store's clock is right."""
        self.gap = self.step = None

    def tell(self, health: Health) -> None:
        """Report the reasons as problems of the node."""
        health.found(ProblemReason.CLOCK_GAP, self.gap)
        health.found(ProblemReason.CLOCK_STEPPED, self.step)
        health.found(ProblemReason.CLOCKS_DIFFER, self.difference)

    @property
    def uncertainty(self) -> str | None:
        """The reasons why the clock is uncertain; None = it is not."""
        return "; ".join(filter(None, (self.difference, self.step, self.gap))) or None

    @property
    def ok(self) -> bool:
        """True if anything may expire."""
        return self.uncertainty is None
