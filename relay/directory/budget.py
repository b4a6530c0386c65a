"""Bound processor time: whoever spends it rests until it is paid back (GUARANTEES.md §4).

Only time between two awaits counts, so other work of the node is not charged.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Final

from relay import clock

SHARE: Final = 0.25
MIN_DEBT_S: Final = 0.02
"""A smaller debt is not worth a rest."""


class Budget:
    """A share of one core, for all that spend from it together.

    Args:
        share: 0 … 1.
    """

    def __init__(self, share: float = SHARE) -> None:
        self._share = share
        self._debt_s = 0.0
        self._at = clock.monotonic()
        self.spent_s = 0.0
        self.rested_s = 0.0

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Count the processor time of the block, which must not await."""
        began = clock.cpu()
        try:
            yield
        finally:
            used = clock.cpu() - began
            self.spent_s += used
            self._debt_s += used

    async def rest(self) -> None:
        """Wait until the debt is paid back."""
        now = clock.monotonic()
        self._debt_s = max(0.0, self._debt_s - (now - self._at) * self._share)
        self._at = now
        if self._debt_s > MIN_DEBT_S:
            self.rested_s += self._debt_s / self._share
            await asyncio.sleep(self._debt_s / self._share)
