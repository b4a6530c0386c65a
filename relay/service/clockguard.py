"""Is the store's clock to be believed? A wrong clock must never expire mail (GUARANTEES.md §2).

Rules of the file: pure; the shell brings samples. Once in doubt, it stays so until confirmed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relay.core.ids import Timestamp

MAX_STEP_S: Final = 300.0
MAX_GAP_S: Final = 3600.0


@dataclass(slots=True)
class ClockGuard:
    """Compares the store's clock with elapsed monotonic time and with the last one seen."""

    doubt: str | None = None
    _store_at: Timestamp | None = None
    _monotonic_at: Timestamp | None = None

    def begin(self, last_seen: Timestamp | None, now: Timestamp, *, trusted: bool) -> None:
        """At start: a clock far ahead of the last one written down is in doubt."""
        if last_seen is not None and now - last_seen > MAX_GAP_S and not trusted:
            self.doubt = f"the clock is {int(now - last_seen)} s ahead of the last one seen"

    def sample(self, store_now: Timestamp, monotonic: Timestamp) -> None:
        """While running: a step of more than 5 min beyond the time that passed is in doubt."""
        if self._store_at is not None and self._monotonic_at is not None:
            step = (store_now - self._store_at) - (monotonic - self._monotonic_at)
            if abs(step) > MAX_STEP_S:
                self.doubt = f"the clock stepped by {int(step)} s"
        self._store_at, self._monotonic_at = store_now, monotonic

    def confirm(self) -> None:
        """An operator says that the clock is right."""
        self.doubt = None

    @property
    def ok(self) -> bool:
        """Whether anything may expire."""
        return self.doubt is None
