"""When an open loop sends: a constant rate that does not care whether the relay keeps up.

Rules of the file: :class:`Schedule` is pure; :func:`ticking` wakes the event loop through a kernel
timer, since the loop's own timers are whole milliseconds and would bunch what is due.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

SHORTEST_TICK_S: Final = 0.000_25
"""Waking more often would cost the store more CPU than it gives in evenness."""

_CLOCK_MONOTONIC: Final = 1
_TFD_NONBLOCK: Final = os.O_NONBLOCK
_TFD_CLOEXEC: Final = os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Schedule:
    """``count`` sendings at ``rate`` a second, the first at ``start`` (driver clock, seconds)."""

    start: float
    rate: float
    count: int

    def due(self, number: int) -> float:
        """When sending ``number`` is due; whoever is late is late from here."""
        return self.start + number / self.rate

    def due_by(self, now: float) -> int:
        """How many are due at ``now``."""
        if now < self.start:
            return 0
        return min(self.count, int((now - self.start) * self.rate) + 1)

    @property
    def end(self) -> float:
        """When the last one is due."""
        return self.due(self.count - 1)

    @property
    def tick_s(self) -> float:
        """How often to look."""
        return max(1 / self.rate, SHORTEST_TICK_S)


@contextlib.contextmanager
def ticking(loop: AbstractEventLoop, every_s: float, call: Callable[[], None]) -> Iterator[None]:
    """Call back about every ``every_s`` seconds (timerfd(2)); late ticks are not made up for."""
    libc = ctypes.CDLL(None, use_errno=True)
    timer = libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
    if timer < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    pause = int(every_s), int(every_s % 1 * 1e9)
    interval = (ctypes.c_long * 4)(*pause, *pause)  # struct itimerspec: every, first
    try:
        if libc.timerfd_settime(timer, 0, ctypes.byref(interval), None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

        def tick() -> None:
            with contextlib.suppress(BlockingIOError):
                os.read(timer, 8)
            call()

        loop.add_reader(timer, tick)
        try:
            yield
        finally:
            loop.remove_reader(timer)
    finally:
        os.close(timer)
