"""Is the store's clock to be believed? A wrong clock must never expire mail (GUARANTEES.md §2).

Rules of the file: pure; the shell brings samples. A gap or a step stays in doubt until confirmed,
since nobody can see which side of it is right. Two clocks that differ are in doubt while they do:
one of them is wrong, and no word of an operator changes that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relay.health import Health, ProblemReason
from relay.protocol.ids import Timestamp

MAX_STEP_S: Final = 300.0
MAX_GAP_S: Final = 3600.0
MAX_DIFFERENCE_S: Final = 60.0
"""A login is good for so long, and mail expires that much early or late at most."""


@dataclass(slots=True)
class ClockGuard:
    """Compares the store's clock with elapsed time, the last one seen, and the node's.

    Args:
        gap: the clock was far ahead when the node started, in words.
        step: the clock stepped while the node ran, in words.
        difference: the clocks of node and store differ, in words.
    """

    gap: str | None = None
    step: str | None = None
    difference: str | None = None
    _store_at: Timestamp | None = None
    _monotonic_at: Timestamp | None = None

    def begin(self, last_seen: Timestamp | None, now: Timestamp, *, trusted: bool) -> None:
        """At start: a clock far ahead of the last one written down is in doubt."""
        if last_seen is not None and now - last_seen > MAX_GAP_S and not trusted:
            self.gap = f"the clock is {int(now - last_seen)} s ahead of the last one seen"

    def sample(self, store_now: Timestamp, monotonic: Timestamp) -> None:
        """While running: a step of more than 5 min beyond the time that passed is in doubt."""
        if self._store_at is not None and self._monotonic_at is not None:
            step = (store_now - self._store_at) - (monotonic - self._monotonic_at)
            if abs(step) > MAX_STEP_S:
                self.step = f"the clock stepped by {int(step)} s"
        self._store_at, self._monotonic_at = store_now, monotonic

    def compare(self, ahead_s: float) -> None:
        """At start and while running: two clocks that are a minute apart are in doubt.

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
        """An operator says that the store's clock is right."""
        self.gap = self.step = None

    def tell(self, health: Health) -> None:
        """Say what is in doubt, and what is not."""
        health.found(ProblemReason.CLOCK_GAP, self.gap)
        health.found(ProblemReason.CLOCK_STEPPED, self.step)
        health.found(ProblemReason.CLOCKS_DIFFER, self.difference)

    @property
    def doubt(self) -> str | None:
        """All that is in doubt, in words; None = nothing is."""
        return "; ".join(filter(None, (self.difference, self.step, self.gap))) or None

    @property
    def ok(self) -> bool:
        """Whether anything may expire."""
        return self.doubt is None
