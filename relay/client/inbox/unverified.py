"""Bounces of one home that cannot be judged yet: looked at again until they can (GUARANTEES.md R6).

Rules of the file: one that is new is looked at before those that wait, so that nobody holds up
another's. As many wait as leave half of the window free. Beyond that, the newest of the recipient
who has the most is given up: whoever makes false ones pays with those about himself.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from relay import clock
from relay.client.inbox.delivery import (
    Entry,
    Stage,
)
from relay.client.inbox.opener import Opened

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
MOST: Final = 32


@dataclass(slots=True, eq=False)
class Doubt:
    """One bounce that is not shown yet.

    Args:
        entry: what is kept of it.
        opened: what it says.
        redelivered: whether it may have been shown before.
    """

    entry: Entry
    opened: Opened
    redelivered: bool
    looks: int = 0
    due: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to judge any more."""
        return self.entry.stage is not Stage.DOUBTED or not self.entry.places

    @property
    def recipient(self) -> str:
        """Of an envelope that it names."""
        return self.opened.doubts[0].to


@dataclass(slots=True)
class Doubts:
    """What is to be looked at, and when."""

    _new: deque[Doubt] = field(default_factory=deque)
    _waiting: list[Doubt] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, doubt: Doubt) -> None:
        """One that nobody has looked at."""
        self._new.append(doubt)
        self._news.set()

    async def next(self) -> Doubt:
        """The next one to look at; waits for it."""
        while True:
            self._news.clear()
            if self._new:
                return self._new.popleft()
            first = min(self._waiting, key=lambda one: one.due, default=None)
            pause = None if first is None else first.due - clock.monotonic()
            if first is not None and pause is not None and pause <= 0:
                self._waiting.remove(first)
                return first
            try:
                async with asyncio.timeout(pause):
                    await self._news.wait()
            except TimeoutError:
                continue

    def put_back(self, doubt: Doubt, window: int) -> Doubt | None:
        """It cannot be judged now; gives the one that is given up for it, if any.

        Args:
            doubt: is looked at again, later and later.
            window: how many envelopes the home hands over at once.
        """
        doubt.due = clock.monotonic() + min(FIRST_PAUSE_S * 2.0**doubt.looks, LONGEST_PAUSE_S)
        doubt.looks = min(doubt.looks + 1, 16)
        self._waiting = [one for one in [*self._waiting, doubt] if not one.is_over]
        if len(self._waiting) <= max(1, min(MOST, window // 2)):
            return None
        [(most, _)] = Counter(one.recipient for one in self._waiting).most_common(1)
        over = next(one for one in reversed(self._waiting) if one.recipient == most)
        self._waiting.remove(over)
        return over
