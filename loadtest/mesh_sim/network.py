"""A network on a virtual clock: frames that are late, lost, repeated, or that a partition stops.

Rules of the file: everything that happens by chance comes from one seed, so a run can be repeated.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from relay.protocol.ids import Did

Step = Callable[[], None]


class Clock:
    """Virtual seconds; what is to happen later waits in a heap."""

    def __init__(self, at: float) -> None:
        self.now = at
        self._waiting: list[tuple[float, int, Step]] = []
        self._numbers = itertools.count()

    def later(self, seconds: float, step: Step) -> None:
        """Do ``step`` so many seconds from now."""
        heapq.heappush(self._waiting, (self.now + seconds, next(self._numbers), step))

    def run(self, until: float, is_over: Callable[[], bool]) -> None:
        """Go on until something is over, or the time is."""
        while not is_over():
            if not self._waiting or self._waiting[0][0] > until:
                self.now = until
                return
            at, _, step = heapq.heappop(self._waiting)
            self.now = max(self.now, at)  # after a jump, what was planned before is done late
            step()


@dataclass(slots=True)
class Traffic:
    """Counts of the network.

    Args:
        frames: sent, also those that got lost.
        bytes: of those frames.
        lost: frames.
    """

    frames: int = 0
    bytes: int = 0
    lost: int = 0


@dataclass(slots=True)
class Network:
    """Carries frames between relays.

    Args:
        clock: the virtual one.
        chance: the seed's.
        loss: share of frames that never arrive; worse than TCP, where loss only delays.
        repeats: share of frames that arrive twice.
        least_s: a frame takes at least this long, one way.
        most_s: and at most this, without its bytes.
        bytes_per_s: of one link.
        apart: a partition: relays of different groups do not hear each other.
        sent: bytes by relay.
    """

    clock: Clock
    chance: random.Random
    loss: float = 0.0
    repeats: float = 0.0
    min_s: float = 0.01
    max_s: float = 0.08
    bytes_per_s: float = 12_500_000.0
    apart: dict[Did, int] = field(default_factory=dict)
    sent: Counter[Did] = field(default_factory=Counter)
    traffic: Traffic = field(default_factory=Traffic)

    def is_parted(self, here: Did, there: Did) -> bool:
        """Return True if a partition lies between two relays."""
        return bool(self.apart) and self.apart.get(here) != self.apart.get(there)

    def send(self, here: Did, there: Did, size: int, arrive: Step) -> None:
        """Carry a frame of ``size`` bytes; ``arrive`` may happen late, twice or never."""
        self.traffic.frames += 1
        self.traffic.bytes += size
        self.sent[here] += size
        if self.is_parted(here, there) or self.chance.random() < self.loss:
            self.traffic.lost += 1
            return
        for _ in range(1 + (self.chance.random() < self.repeats)):
            wait = self.chance.uniform(self.min_s, self.max_s)
            self.clock.later(wait + size / self.bytes_per_s, arrive)
