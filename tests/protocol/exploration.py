"""Exhaustive search: visit every world that a model or the real code can get into.

A model has a first world and a function from a world to its moves: (what happens, the world
after, the promise it broke or None). Besides broken promises this finds worlds that can never
again come to a good end, however the story goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

World = TypeVar("World", bound=Hashable)
Move = tuple[str, World, str | None]


@dataclass
class Found(Generic[World]):
    """The result of a search.

    Args:
        broken: the promise that broke first, and ``told``, the shortest story of it.
        stuck: a story after which nothing can end well.
        whole: every world was visited.
    """

    worlds: int = 0
    broken: str | None = None
    told: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    whole: bool = True

    def __str__(self) -> str:
        return f"{self.worlds} worlds; {self.broken}: {' > '.join(self.told or self.stuck)}"


class _Search(Generic[World]):
    """Worlds have numbers: a move costs a number then, not a world."""

    def __init__(self, start: World) -> None:
        self.number: dict[World, int] = {start: 0}
        self.came_from: list[tuple[int, str] | None] = [None]
        self.before: list[list[int]] = [[]]

    def reach(self, world: World, source: int, what: str) -> bool:
        """Return True if it is new."""
        known = self.number.get(world)
        if known is None:
            self.number[world] = len(self.came_from)
            self.came_from.append((source, what))
            self.before.append([source])
            return True
        self.before[known].append(source)
        return False

    def story(self, number: int) -> list[str]:
        told: list[str] = []
        step = self.came_from[number]
        while step:
            told.append(step[1])
            step = self.came_from[step[0]]
        return told[::-1]

    def lost(self, is_good: Callable[[World], bool]) -> int | None:
        """The first world from which no good one can be reached."""
        waiting = [number for world, number in self.number.items() if is_good(world)]
        fine = set(waiting)
        while waiting:
            for number in self.before[waiting.pop()]:
                if number not in fine:
                    fine.add(number)
                    waiting.append(number)
        return next((number for number in self.number.values() if number not in fine), None)


def explore(
    start: World,
    moves: Callable[[World], Iterable[Move[World]]],
    is_good: Callable[[World], bool] | None = None,
    limit: int = 10_000_000,
) -> Found[World]:
    """Visit the worlds that can be reached, the nearest first; stop at the first broken promise.

    With more than ``limit`` worlds the search ends without having looked for what is stuck.
    """
    search = _Search(start)
    waiting = deque([start])
    while waiting:
        world = waiting.popleft()
        number = search.number[world]
        for what, after, broken in moves(world):
            if broken:
                return Found(len(search.number), broken, [*search.story(number), what])
            if search.reach(after, number, what):
                waiting.append(after)
        if len(search.number) > limit:
            return Found(len(search.number), whole=False)
    found: Found[World] = Found(len(search.number))
    stuck = search.lost(is_good) if is_good else None
    if stuck is not None:
        found.stuck = [*search.story(stuck), "(stuck)"]
    return found
