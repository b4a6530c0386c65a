"""Kill points: ``kill -9`` of a party at the very moment when another reaches a point.

A party that reaches a point looks into one file. It names the points and the party to kill there.
Each cut happens once; a second cut is armed when the first has happened. The file of process ids
is read at the kill, and holds only processes that the run started.

::

    run ──arm──▶ cuts.json ──▶ a relay, or an agent, reaches the point ──kill──▶ happened.json
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

STORE = ".store"
"""Behind a relay's name: its store."""


@dataclass(frozen=True, slots=True)
class Cut:
    """One of them.

    Args:
        where: who reaches the point.
        point: which.
        victim: who is killed.
        nth: how often it has to be reached.
    """

    where: str
    point: str
    victim: str
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.where} {self.point} ({self.nth}.): {self.victim}"


@dataclass(frozen=True, slots=True)
class Happened:
    """A cut, when it was (monotonic seconds), and how many processes it hit."""

    cut: Cut
    at: float
    hit: int


@dataclass(slots=True)
class Cuts:
    """The files, as everybody sees them."""

    directory: Path
    _counts: Counter[Cut] = field(default_factory=Counter)

    # ------------------------------------------------------------ of a run

    def arm(self, cuts: Sequence[Cut]) -> None:
        """These are to happen, one after the other."""
        self._happened.unlink(missing_ok=True)
        self._armed = cuts

    def disarm(self) -> list[Cut]:
        """Disarm all cuts; return those that did not happen."""
        left, self._armed = self._armed, []
        return list(left)

    def tell(self, pids: Mapping[str, int]) -> None:
        """The process id of each party."""
        write(self._pids, dict(pids))

    def happened(self) -> list[Happened]:
        """Those that did, in their order."""
        lines = _read_text(self._happened).splitlines()
        said = [json.loads(line) for line in lines]
        return [Happened(Cut(**one["cut"]), one["at"], one["hit"]) for one in said]

    # ------------------------------------------------------------ of who reaches a point

    def reached(self, where: str, point: str) -> None:
        """If a cut is to happen here, it does; whoever calls this may not come back."""
        cut = next(iter(self._armed), None)
        if cut is None or (cut.where, cut.point) != (where, point):
            return
        self._counts[cut] += 1
        if self._counts[cut] < cut.nth:
            return
        self._armed = self._armed[1:]
        victims = self.find(cut.victim)
        entry = {"cut": asdict(cut), "at": time.monotonic(), "hit": len(victims)}
        with self._happened.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        for pid in victims:
            os.kill(pid, signal.SIGKILL)

    def find(self, victim: str) -> list[int]:
        """The processes of one, as they are now."""
        pids: dict[str, int] = json.loads(_read_text(self._pids) or "{}")
        pid = pids.get(victim.removesuffix(STORE))
        if pid is None:
            return []
        return _children(pid) if victim.endswith(STORE) else [pid]

    # ------------------------------------------------------------ files

    @property
    def _armed(self) -> Sequence[Cut]:
        said: list[Any] = json.loads(_read_text(self.directory / "cuts.json") or "[]")
        return [Cut(**one) for one in said]

    @_armed.setter
    def _armed(self, cuts: Sequence[Cut]) -> None:
        write(self.directory / "cuts.json", [asdict(cut) for cut in cuts])

    @property
    def _happened(self) -> Path:
        return self.directory / "happened.json"

    @property
    def _pids(self) -> Path:
        return self.directory / "pids.json"


def _children(pid: int) -> list[int]:
    children = _read_text(Path(f"/proc/{pid}/task/{pid}/children"))
    return [int(child) for child in children.split()]


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def write(path: Path, value: object) -> None:
    """In one piece: whoever reads has the old or the new one."""
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(value))
    fresh.replace(path)
