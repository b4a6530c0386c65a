"""SDK agents in processes of their own, killed and started again on the same state file.

This module ends only its own children. It enters the lines of an agent's journal into the ledger
as they come. The outbox of a killed agent is a promise of the SDK. It is read without a change to
the file: a reader that wrote would do for the next life what the SDK must do itself.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from base64 import b64decode
from dataclasses import replace
from pathlib import Path
from typing import Any

from relay.protocol.did import SigningKey
from relay.protocol.envelope import SignedEnvelope
from relay.protocol.ids import (
    Did,
    Eid,
    MessageId,
)
from relay.store.embedded.process import dying_with_us
from tests.chaos.journal import NoteReader
from tests.chaos.killable_agent import Orders
from tests.chaos.ledger import Ledger
from tests.chaos.restarting_relay import REPOSITORY
from tests.chaos.traffic_plan import POISON
from tests.support.patience import wait_until, within

LOOK_S = 0.01
END_S = 60.0


class MortalAgent:
    """One agent: its key, its files, its process, and its notes in the ledger.

    Args:
        key: who it is.
        orders: what it is told; its key and its files are filled in here.
        directory: its files.
        ledger: where its notes are entered.
        remembers: whether its SDK has a state file.
    """

    def __init__(
        self,
        key: SigningKey,
        orders: Orders,
        directory: Path,
        ledger: Ledger,
        *,
        remembers: bool = True,
    ) -> None:
        self.key = key
        self.kills = 0
        self.cut_handlers = 0
        self.kept = 0
        self.lives = 0
        self._lives_before = 0
        self._directory = directory
        self._state = directory / "agent.state"
        self._ledger = ledger
        self._notes = NoteReader(directory / "notes")
        self._child: asyncio.subprocess.Process | None = None
        self._in_hand: set[Eid] = set()
        self._unanswered: set[Eid] = set()
        self._is_over = False
        directory.mkdir(parents=True)
        self._orders = replace(
            orders,
            seed=key.seed.hex(),
            notes=str(directory / "notes"),
            state=str(self._state) if remembers else None,
        )

    @property
    def handling(self) -> int:
        """The number of handlers that run in this life."""
        return len(self._in_hand)

    @property
    def is_busy(self) -> bool:
        """True if, in this life, a handler runs or a submit waits."""
        return bool(self._in_hand or self._unanswered)

    # ------------------------------------------------------------ lives

    async def start(self, **changes: Any) -> None:
        """Begin a life; ``changes`` of its orders stay."""
        self._lives_before = self.lives
        self._orders = replace(self._orders, **changes)
        orders = self._directory / "orders.json"
        self._orders.write(orders)
        command = dying_with_us([sys.executable, "-m", "tests.chaos.killable_agent", str(orders)])
        with (self._directory / "log").open("ab") as log:
            self._child = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, cwd=REPOSITORY,
            )  # fmt: skip

    async def kill(self) -> None:
        """``kill -9``, and account for what it had in hand."""
        assert self._child is not None
        if self._child.returncode is not None:
            self._ledger.surprise(f"{self.key.did} ended by itself:\n{self._log_tail()}")
        else:
            self._child.kill()
            await self._child.wait()
        self._ledger.catch_up()
        self.kills += 1
        self.cut_handlers += len(self._in_hand)
        self._in_hand.clear()
        self._unanswered.clear()
        self._ledger.die(self.key.did)
        for eid in self._outbox():
            self.kept += 1
            if self._ledger.find(eid) is None:
                self._ledger.surprise(f"{eid} lies in the outbox of {self.key.did}, unheard of")
            self._ledger.promise(eid, f"in the outbox of {self.key.did} when that was killed")

    async def end(self) -> None:
        """Tell it to end when nothing waits for it any more."""
        assert self._child is not None
        await wait_until(self._listens, END_S, f"{self.key.did} lives")
        if self._child.returncode is None:
            self._child.terminate()
        try:
            async with within(END_S):
                await self._child.wait()
        except TimeoutError:
            self._ledger.surprise(f"{self.key.did} does not come to rest")
        await self.end_now()
        self._ledger.catch_up()
        if not self._is_over:
            self._ledger.surprise(f"{self.key.did} ended badly:\n{self._log_tail()}")

    def _listens(self) -> bool:
        """Return True if it has begun, and would hear a signal; or has ended."""
        self._ledger.catch_up()
        assert self._child is not None
        return self.lives > self._lives_before or self._child.returncode is not None

    async def end_now(self) -> None:
        """No life after this one, however it went."""
        if self._child is not None and self._child.returncode is None:
            self._child.kill()
            await self._child.wait()

    def _outbox(self) -> list[Eid]:
        if not self._state.exists():
            return []
        database = sqlite3.connect(f"file:{self._state}?mode=ro", uri=True)
        try:
            return [eid for (eid,) in database.execute("SELECT eid FROM outbox")]
        except sqlite3.OperationalError as exc:
            if "no such table" in str(exc):
                return []  # killed before its first life had begun
            raise
        finally:
            database.close()

    def _log_tail(self) -> str:
        return (self._directory / "log").read_text(errors="replace")[-3000:]

    # ------------------------------------------------------------ notes

    def enter(self) -> None:
        """Enter new journal lines into the ledger; only through :class:`Mortals`, in order."""
        for kind, *words in self._notes:
            getattr(self, f"_enter_{kind}")(*words)

    def _enter_life(self, _: int) -> None:
        self.lives += 1
        self._in_hand.clear()
        self._unanswered.clear()

    def _enter_meant(self, *words: Any) -> None:
        eid, id_, to, expires_at, wire, body = words
        envelope = SignedEnvelope(Eid(eid), MessageId(id_), Did(to), expires_at, wire.encode())
        plain = b64decode(body)
        poison = plain.startswith(POISON)
        self._ledger.submit(self.key.did, envelope, plain, poison=poison, is_mortal=True)
        self._unanswered.add(Eid(eid))

    def _enter_receipt(self, eid: str, to: str, durability: str, dup: bool) -> None:  # noqa: FBT001
        self._unanswered.discard(Eid(eid))
        self._ledger.receipt(Eid(eid), Did(to), durability=durability, dup=dup)

    def _enter_left(self, eid: str) -> None:
        self._ledger.promise(Eid(eid), f"left to the SDK of {self.key.did}")

    def _enter_withdrawn(self, eid: str) -> None:
        self._unanswered.discard(Eid(eid))
        self._ledger.deny(Eid(eid))

    def _enter_void(self, eid: str) -> None:
        self._ledger.annul(Eid(eid))

    def _enter_shown(self, *words: Any) -> None:
        eid, redelivered, body, ends = words
        for ended, reason in ends or ():
            self._ledger.bounce(self.key.did, Eid(eid), Eid(ended), reason)
        self._in_hand.add(Eid(eid))
        self._ledger.hand_over(
            self.key.did, Eid(eid), redelivered=redelivered, body=b64decode(body)
        )

    def _enter_answering(self, eid: str, how: str) -> None:
        self._in_hand.discard(Eid(eid))
        self._ledger.answering(self.key.did, Eid(eid), how)

    def _enter_ended(self, eid: str, how: str) -> None:
        self._ledger.end(self.key.did, Eid(eid), how)

    def _enter_surprise(self, what: str) -> None:
        self._ledger.surprise(what)

    def _enter_over(self) -> None:
        self._is_over = True


class Mortals:
    """All of them: keeps the ledger in step with their notes."""

    def __init__(self, agents: list[MortalAgent], ledger: Ledger) -> None:
        self.agents = agents
        self._is_entering = False
        ledger.catch_up = self.enter

    def enter(self) -> None:
        """Enter the journals of all; do nothing while that is under way."""
        if self._is_entering:
            return
        self._is_entering = True
        try:
            for agent in self.agents:
                agent.enter()
        finally:
            self._is_entering = False

    async def watch(self) -> None:
        """Enter notes until cancelled."""
        while True:
            self.enter()
            await asyncio.sleep(LOOK_S)

    async def start(self) -> None:
        """Begin all lives."""
        for agent in self.agents:
            await agent.start()

    async def end(self) -> None:
        """Tell all to end when nothing waits for them; the first error, if any, is raised."""
        async with asyncio.TaskGroup() as tasks:
            for agent in self.agents:
                tasks.create_task(agent.end())

    async def end_now(self) -> None:
        """End all processes."""
        for agent in self.agents:
            await agent.end_now()
