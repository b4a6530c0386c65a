"""Faults on the way between two relays, as values that a test changes while bytes flow.

A fault never changes a byte and never drops one, as TCP would not either. Lost bytes come later, as
a resend would bring them. Cut bytes wait until the way is healed or the line is reset.

::

    Faults.way("a", "b") ──▶ Way: a's bytes reach b …  … late, with stalls, or not at all
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

RESEND_S = 0.2
LONGEST_RESEND_S = 3.2
EVERYBODY = "*"


@dataclass(slots=True)
class Way:
    """One direction between two parties.

    Args:
        delay_s: what each piece waits.
        loss: share of pieces that need a resend, and a second one with the same odds.
    """

    delay_s: float = 0.0
    loss: float = 0.0
    _open: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._open.set()

    @property
    def is_cut(self) -> bool:
        """True if nothing gets through."""
        return not self._open.is_set()

    def cut(self) -> None:
        """Let nothing through from now on, without a sign to anybody."""
        self._open.clear()

    def heal(self) -> None:
        """As if nothing had ever been wrong; what waited goes through."""
        self.delay_s = self.loss = 0.0
        self._open.set()

    async def passed(self, rng: Random) -> None:
        """Return when a piece is through."""
        pause, resend = self.delay_s, RESEND_S
        while rng.random() < self.loss:
            pause += resend
            resend = min(2 * resend, LONGEST_RESEND_S)
        if pause:
            await asyncio.sleep(pause)
        await self._open.wait()


class Faults:
    """All ways between named parties, and the lines that can be reset.

    Args:
        rng: draws what is lost.
    """

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.resets = 0
        self._ways: dict[tuple[str, str], Way] = {}
        self._lines: dict[Callable[[], None], tuple[str, str]] = {}

    def way(self, source: str, target: str) -> Way:
        """Return what ``source`` says to ``target``."""
        return self._ways.setdefault((source, target), Way())

    def cut(self, source: str, target: str) -> None:
        """Nothing of ``source`` reaches ``target`` any more; the other direction is left alone."""
        self.way(source, target).cut()

    def lose(self, source: str, target: str, share: float) -> None:
        """So much of what ``source`` says needs a resend."""
        self.way(source, target).loss = share

    def part(self, some: Iterable[str], others: Iterable[str]) -> None:
        """Two groups that do not hear of each other."""
        theirs = list(others)
        for one in some:
            for other in theirs:
                self.cut(one, other)
                self.cut(other, one)

    def heal(self) -> None:
        """All is well again; what waited on the way goes through."""
        for way in self._ways.values():
            way.heal()

    def reset(self, one: str = EVERYBODY, other: str = EVERYBODY) -> int:
        """Break all lines between them; return how many there were."""
        wanted = {one, other} - {EVERYBODY}
        found = [end for end, parties in self._lines.items() if wanted <= set(parties)]
        for end in found:
            end()
        self.resets += len(found)
        return len(found)

    # ------------------------------------------------------------ of a proxy

    def opened(self, end: Callable[[], None], source: str, target: str) -> None:
        """A line is there; ``end`` breaks it."""
        self._lines[end] = (source, target)

    def closed(self, end: Callable[[], None]) -> None:
        """It has ended."""
        self._lines.pop(end, None)
