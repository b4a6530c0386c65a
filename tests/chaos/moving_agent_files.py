"""Goals and state of moving agents as values in files, so that a kill loses none of them.

The run writes the goals, the agents write their own state. Each file is replaced as a whole.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from relay.protocol.endpoint_record import Home
from relay.protocol.ids import Did
from tests.chaos.kill_points import write

STEPS = ("prepare", "freeze", "publish", "tell", "login", "empty")
"""What an agent does to move: ``publish`` is at the target, ``tell`` at the source."""
BOUNDARIES = ("ordered", *STEPS[:-1])
"""Behind each of these an agent can be stopped."""


@dataclass(frozen=True, slots=True)
class Place:
    """A relay."""

    did: str
    url: str

    @property
    def home(self) -> Home:
        """As records name it."""
        return Home(Did(self.did), self.url)


@dataclass(frozen=True, slots=True)
class Goal:
    """The relay at which one agent is to be.

    Args:
        at: number of the relay.
        pause: it stops behind this until the goal says otherwise.
        drains: once it is there it takes all that comes.
        takes: so many it takes on the way, at each relay.
        hasty: it publishes without waiting until the target has the digest.
    """

    at: int
    pause: str = ""
    drains: bool = False
    takes: int = 12
    hasty: bool = False


@dataclass(slots=True)
class Goals:
    """All agents', in a file."""

    path: Path

    def write(self, places: list[Place], seeds: list[str], goals: list[Goal]) -> None:
        """The run's word."""
        value = {
            "places": [asdict(place) for place in places],
            "seeds": seeds,
            "goals": [asdict(goal) for goal in goals],
        }
        write(self.path, value)

    def read(self) -> tuple[list[Place], list[str], list[Goal]]:
        """As it is now."""
        saved = json.loads(self.path.read_text())
        places = [Place(**one) for one in saved["places"]]
        return places, saved["seeds"], [Goal(**one) for one in saved["goals"]]


@dataclass(slots=True)
class Move:
    """One under way: signed before anything was sent, and sent again until all is done."""

    source: int
    target: int
    order: str
    record: str
    done: list[str] = field(default_factory=list)

    @property
    def step(self) -> str:
        """The next step; "" = nothing."""
        return next((step for step in STEPS if step not in self.done), "")


@dataclass(slots=True)
class Standing:
    """One agent's memory.

    Args:
        at: where its home is.
        record: its newest one; "" = it was nowhere yet.
        move: what is under way.
        moves: how many are over.
        sessions: how many it has opened; a later one has a higher number.
    """

    at: int
    record: str = ""
    move: Move | None = None
    moves: int = 0
    sessions: int = 0

    @classmethod
    def read(cls, path: Path, at: int) -> Standing:
        """From its file; at the beginning it is ``at``."""
        if not path.exists():
            return cls(at)
        saved: dict[str, Any] = json.loads(path.read_text())
        move = saved.pop("move")
        return cls(**saved, move=Move(**move) if move else None)

    def write(self, path: Path) -> None:
        """Durable when this returns, as far as a kill goes."""
        write(path, asdict(self))
