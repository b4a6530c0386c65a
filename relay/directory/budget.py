"""A budget of processor time: what was spent is paid back by resting (GUARANTEES.md §4).

Rules of the file: only time between two awaits counts, so other work of the node is not charged.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Final

from relay import clock

SHARE: Final = 0.25
UNPAID_S: Final = 0.02
"""So much may be spent at once before a rest is worth its while."""


class Budget:
    """At most a share of one core, over all who spend from it.

    Args:
        share: of one core.
    """

    def __init__(self, share: float = SHARE) -> None:
        self._share = share
        self._debt_s = 0.0
        self._at = clock.monotonic()
        self.spent_s = 0.0
        self.rested_s = 0.0

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Count what is computed in here; nothing may be awaited."""
        began = clock.cpu()
        try:
            yield
        finally:
            used = clock.cpu() - began
            self.spent_s += used
            self._debt_s += used

    async def rest(self) -> None:
        """Wait until what was spent is paid back."""
        now = clock.monotonic()
        self._debt_s = max(0.0, self._debt_s - (now - self._at) * self._share)
        self._at = now
        if self._debt_s > UNPAID_S:
            self.rested_s += self._debt_s / self._share
            await asyncio.sleep(self._debt_s / self._share)
