"""How a migration lies in the state file: its order and how far it is, and what waited.

Rules of the file: as in :mod:`relay.client.state.journal`, whose file it shares. Nothing is
forgotten
when a migration is over: the seq of its order must not be used again, and its report is asked for.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from relay.client.errors import typed
from relay.client.migration.state import (
    Move,
    Moved,
)
from relay.client.state.database import Disk
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import (
    Eid,
    Seq,
)
from relay.protocol.types import (
    Question,
    Waiting,
)

TABLES: Final = (
    (
        "CREATE TABLE IF NOT EXISTS waited (eid TEXT PRIMARY KEY, seq INTEGER NOT NULL, "
        "hour INTEGER NOT NULL, key BLOB NOT NULL, size INTEGER NOT NULL, "
        "expires_at INTEGER NOT NULL) WITHOUT ROWID"
    ),
)
_MOVE: Final = "move"
_MOVED: Final = "moved"


@dataclass(slots=True)
class MoveLog:
    """The migration of one agent, in memory and in its file.

    Args:
        disk: the file; None: it lives as long as this process.
        move: the latest one.
        moved: what that came to, once it is over.
    """

    disk: Disk | None = None
    move: Move | None = None
    moved: Moved | None = None
    _waited: list[Waiting] = field(default_factory=list)

    @property
    def pending(self) -> Move | None:
        """The one that is under way."""
        return self.move if self.move is not None and not self.move.is_over else None

    @property
    def binds(self) -> bool:
        """Whether no record may be signed or published but the one that is signed already."""
        return self.move is not None and self.move.binds

    @property
    def order_seq(self) -> int:
        """The highest seq that an order of this agent is known to have."""
        return self.move.said.seq if self.move is not None else 0

    def refuse_if_bound(self) -> None:
        """Keep everybody else from signing a record while one waits to be published.

        Raises:
            MigratingError: one does.
        """
        if self.binds:
            detail = "this agent changes relays just now: finish that (relay migrate) or cancel it"
            raise typed(ErrorCode.MIGRATING, detail)

    async def keep(self, move: Move) -> None:
        """Note how far it is; what was noted of another one's list and report is gone.

        Raises:
            AgentError: the file cannot be written.
        """
        is_new = self.move is None or self.move.order != move.order
        if self.disk is not None:
            await asyncio.wrap_future(self.disk.do(partial(_keep, move.encode(), is_new)))
        if is_new:
            self._waited, self.moved = [], None
        self.move = move

    async def keep_moved(self, moved: Moved) -> None:
        """Note what it came to.

        Raises:
            AgentError: the file cannot be written.
        """
        if self.disk is not None:
            await asyncio.wrap_future(self.disk.do(partial(_put, _MOVED, moved.encode())))
        self.moved = moved

    async def keep_waited(self, items: Sequence[Waiting]) -> None:
        """Note all that waited at the source, in the place of what was noted.

        Raises:
            AgentError: the file cannot be written.
        """
        if self.disk is not None:
            await asyncio.wrap_future(self.disk.do(partial(_keep_waited, list(items))))
        else:
            self._waited = list(items)

    async def waited(self) -> list[Waiting]:
        """All that waited at the source, in the order of its seqs.

        Raises:
            AgentError: the file cannot be read.
        """
        if self.disk is not None:
            return await asyncio.wrap_future(self.disk.do(_read_waited))
        return list(self._waited)


# ---------------------------------------------------------------- in the thread


def load(disk: Disk) -> MoveLog:
    """What lies in the file; blocks.

    Raises:
        AgentError: ``corrupt``: it cannot be understood.
    """
    try:
        move, moved = disk.do(_read).result()
        return MoveLog(
            disk, Move.decode(move) if move else None, Moved.decode(moved) if moved else None
        )
    except (ValueError, TypeError, KeyError) as exc:
        raise typed(ErrorCode.CORRUPT, f"the migration in {disk.path}: {exc}") from exc


def _read(database: sqlite3.Connection) -> tuple[str | None, str | None]:
    query = "SELECT name, value FROM facts WHERE name IN (?, ?)"
    facts = dict(database.execute(query, (_MOVE, _MOVED)))
    return facts.get(_MOVE), facts.get(_MOVED)


def _put(name: str, value: str, database: sqlite3.Connection) -> None:
    database.execute("REPLACE INTO facts VALUES (?, ?)", (name, value))


def _keep(move: str, is_new: bool, database: sqlite3.Connection) -> None:  # noqa: FBT001  by partial
    _put(_MOVE, move, database)
    if is_new:
        database.execute("DELETE FROM waited")
        database.execute("DELETE FROM facts WHERE name = ?", (_MOVED,))


def _keep_waited(items: list[Waiting], database: sqlite3.Connection) -> None:
    database.execute("DELETE FROM waited")
    rows = [
        (one.eid, one.seq, one.question.hour, one.question.dedupe_key, one.size, one.expires_at)
        for one in items
    ]
    database.executemany("REPLACE INTO waited VALUES (?, ?, ?, ?, ?, ?)", rows)


def _read_waited(database: sqlite3.Connection) -> list[Waiting]:
    rows = database.execute("SELECT eid, seq, hour, key, size, expires_at FROM waited ORDER BY seq")
    return [
        Waiting(Seq(seq), Eid(eid), Question(key, hour), size, expires_at)
        for eid, seq, hour, key, size, expires_at in rows
    ]
