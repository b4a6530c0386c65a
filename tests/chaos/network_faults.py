"""Network faults between relays: episodes drawn from a seed, then all is healed.

Every kind comes once before any comes a second time. Episodes do not overlap, and each names the
relays that it hits. Agents always reach their relays.

::

    calm ──▶ one way cut | lines severed | flapping | loss | resets | a relay alone ──▶ healed ──▶ …
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from random import Random
from typing import Protocol

KINDS = ("one_way", "severed", "flapping", "loss", "resets", "alone")
LOSS = 0.3
FLAPS = 6


class Sky(Protocol):
    """Faults on the ways between parties: played by a proxy, or by a namespace."""

    def cut(self, source: str, target: str) -> None:
        """Nothing of ``source`` reaches ``target``."""
        ...

    def lose(self, source: str, target: str, share: float) -> None:
        """So much of it does not."""
        ...

    def reset(self, one: str, other: str) -> object:
        """Lines between them break."""
        ...

    def heal(self) -> None:
        """All is well."""
        ...


@dataclass(slots=True)
class Weather:
    """Plays episodes until it is cancelled.

    Args:
        sky: where.
        names: of the relays.
        rng: draws everything.
        lasts_s: shortest and longest episode.
        calm_s: shortest and longest pause.
    """

    sky: Sky
    names: Sequence[str]
    rng: Random
    lasts_s: tuple[float, float] = (0.5, 2.5)
    calm_s: tuple[float, float] = (0.1, 0.5)
    seen: Counter[str] = field(default_factory=Counter)
    all_seen: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """One episode after the other."""
        kinds: list[Callable[[float], Awaitable[None]]] = [getattr(self, kind) for kind in KINDS]
        try:
            while True:
                self.rng.shuffle(kinds)
                for kind in kinds:
                    await asyncio.sleep(self.rng.uniform(*self.calm_s))
                    await kind(self.rng.uniform(*self.lasts_s))
                    self.sky.heal()
                    self.seen[kind.__name__] += 1
                self.all_seen.set()
        finally:
            self.sky.heal()

    async def one_way(self, seconds: float) -> None:
        """Cut one way of two relays: to all others, or from all others."""
        for name in self.rng.sample(list(self.names), 2):
            is_mute = self.rng.random() < 0.5
            for other in self._others(name):
                self.sky.cut(*((name, other) if is_mute else (other, name)))
        await asyncio.sleep(seconds)

    async def severed(self, seconds: float) -> None:
        """Two relays lose their lines and cannot make new ones."""
        one, other = self._pair()
        self._sever(one, other)
        await asyncio.sleep(seconds)

    async def flapping(self, seconds: float) -> None:
        """A pair is parted and joined again, quickly."""
        pair = self._pair()
        for _ in range(FLAPS):
            self._sever(*pair)
            await asyncio.sleep(seconds / FLAPS / 2)
            self.sky.heal()
            await asyncio.sleep(seconds / FLAPS / 2)

    async def loss(self, seconds: float) -> None:
        """A third of everything is lost, everywhere."""
        for source, target in permutations(self.names, 2):
            self.sky.lose(source, target, LOSS)
        await asyncio.sleep(seconds)

    async def resets(self, seconds: float) -> None:
        """Lines break all over the place."""
        for _ in range(FLAPS):
            self.sky.reset(*self._pair())
            await asyncio.sleep(seconds / FLAPS)

    async def alone(self, seconds: float) -> None:
        """One relay is parted from all others."""
        self.isolate(self.rng.choice(list(self.names)))
        await asyncio.sleep(seconds)

    def isolate(self, name: str) -> None:
        """Part one relay from all others, until somebody heals it."""
        for other in self._others(name):
            self._sever(name, other)

    def _sever(self, one: str, other: str) -> None:
        self.sky.cut(one, other)
        self.sky.cut(other, one)
        self.sky.reset(one, other)

    def _pair(self) -> tuple[str, str]:
        one, other = self.rng.sample(list(self.names), 2)
        return one, other

    def _others(self, name: str) -> list[str]:
        return [other for other in self.names if other != name]
