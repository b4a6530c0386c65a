"""The process of the moving agents, seen from the run: its goals, its journal, its lives.

This module ends only its own child. Lines of the journal are entries of the ledger, in order.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from relay.protocol.did import SigningKey
from relay.protocol.ids import Did
from relay.store.embedded.process import dying_with_us
from tests.chaos.journal import NoteReader
from tests.chaos.ledger import Ledger
from tests.chaos.moving_agent_files import (
    Goal,
    Goals,
    Place,
)
from tests.chaos.restarting_relay import REPOSITORY
from tests.support.nodes import new_key
from tests.support.patience import wait_until

LOOK_S = 0.01


@dataclass(slots=True)
class Movers:
    """All of them.

    Args:
        directory: their files.
        ledger: where their notes are entered.
        places: the relays.
        count: how many there are.
    """

    directory: Path
    ledger: Ledger
    places: list[Place]
    count: int
    keys: list[SigningKey] = field(init=False)
    goals: list[Goal] = field(init=False)
    settled: set[int] = field(default_factory=set)
    moves: dict[int, int] = field(default_factory=dict)
    behind: dict[int, str] = field(default_factory=dict)
    kills: int = 0
    _child: subprocess.Popen[bytes] | None = None
    _notes: NoteReader = field(init=False)
    _is_entering: bool = False

    def __post_init__(self) -> None:
        self.keys = [new_key() for _ in range(self.count)]
        self.goals = [Goal(0)] * self.count
        self.moves = dict.fromkeys(range(self.count), 0)
        self._notes = NoteReader(self.directory / "notes")
        self.ledger.catch_up = self.enter

    @property
    def dids(self) -> list[Did]:
        """The DIDs of the agents."""
        return [key.did for key in self.keys]

    # ------------------------------------------------------------ goals

    def tell(self, **changes: Any) -> None:
        """Change every goal."""
        self.goals = [replace(goal, **changes) for goal in self.goals]
        self.write()

    def set(self, number: int, **changes: Any) -> None:
        """Change one, and write it with the others."""
        self.goals[number] = replace(self.goals[number], **changes)

    def write(self) -> None:
        """Let the process know."""
        seeds = [key.seed.hex() for key in self.keys]
        Goals(self.directory / "goals.json").write(self.places, seeds, self.goals)

    # ------------------------------------------------------------ lives

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._child is not None
        return self._child.pid

    @property
    def runs(self) -> bool:
        """True if it is there."""
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        """Begin a life."""
        self.write()
        command = dying_with_us(
            [sys.executable, "-m", "tests.chaos.moving_agent", str(self.directory)]
        )
        with (self.directory / "mover.log").open("ab") as log:
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=REPOSITORY,
                process_group=0,
            )  # fmt: skip

    def kill(self) -> None:
        """``kill -9``; harmless if it is gone."""
        if self._child is not None:
            self._child.kill()
            self._child.wait(10)

    def died(self) -> None:
        """It was killed: what it had answered may come again or not."""
        self.kills += 1
        self.enter()
        for did in self.dids:
            self.ledger.die(did)

    def log_tail(self) -> str:
        """The last 3,000 characters of its log."""
        log = self.directory / "mover.log"
        return log.read_text(errors="replace")[-3000:] if log.exists() else ""

    # ------------------------------------------------------------ notes

    def enter(self) -> None:
        """Enter new journal lines; do nothing while that is under way."""
        if self._is_entering:
            return
        self._is_entering = True
        try:
            for kind, words, facts in self._notes:
                match kind:
                    case "settled":
                        self.settled.add(words[0])
                    case "moved":
                        self.moves[words[0]] = words[1]
                    case "behind":
                        self.behind[words[0]] = words[1]
                    case _:
                        getattr(self.ledger, kind)(*words, **facts)
        finally:
            self._is_entering = False

    async def watch(self) -> None:
        """Enter notes until cancelled."""
        while True:
            self.enter()
            await asyncio.sleep(LOOK_S)

    async def have_settled(self) -> None:
        """Wait until all have an inbox."""
        await wait_until(lambda: len(self.settled) == self.count, 30, "the movers have inboxes")
