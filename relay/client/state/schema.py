"""Tables of an agent's state file, and the checks that open one.

Names of tables and columns are those of files that exist. A file of an earlier version gets the
tables that it lacks; an earlier version ignores tables that it does not know.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from relay.protocol.ids import Did

VERSION: Final = 1

TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # pins: the relay that is expected at an origin
    "CREATE TABLE IF NOT EXISTS relays (origin TEXT PRIMARY KEY, did TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS epochs (relay TEXT PRIMARY KEY, epoch TEXT NOT NULL) WITHOUT ROWID",
    # sent, and not definitely answered
    (
        "CREATE TABLE IF NOT EXISTS outbox (place INTEGER PRIMARY KEY AUTOINCREMENT, "
        "eid TEXT NOT NULL UNIQUE, id TEXT NOT NULL, recipient TEXT NOT NULL, "
        "expires_at INTEGER NOT NULL, wire BLOB NOT NULL)"
    ),
    # delivered to the program, and whether it has acked or refused
    (
        "CREATE TABLE IF NOT EXISTS eids (eid TEXT PRIMARY KEY, expires_at INTEGER NOT NULL, "
        "is_done INTEGER NOT NULL DEFAULT 0, refuse_code TEXT, "
        "failures INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID"
    ),
    "CREATE INDEX IF NOT EXISTS eids_by_expiry ON eids (expires_at)",
    # results of sends that returned before they had one
    (
        "CREATE TABLE IF NOT EXISTS outcomes (place INTEGER PRIMARY KEY AUTOINCREMENT, "
        "eid TEXT NOT NULL UNIQUE, id TEXT NOT NULL, recipient TEXT NOT NULL, "
        "expires_at INTEGER NOT NULL, wire BLOB NOT NULL, "
        "at INTEGER NOT NULL, code TEXT, answer TEXT NOT NULL)"
    ),
    # records of other agents
    (
        "CREATE TABLE IF NOT EXISTS found (did TEXT PRIMARY KEY, record TEXT NOT NULL, "
        "at INTEGER NOT NULL) WITHOUT ROWID"
    ),
    "CREATE TABLE IF NOT EXISTS handles (handle TEXT PRIMARY KEY, did TEXT NOT NULL) WITHOUT ROWID",
    # relays that hold an envelope of this agent
    (
        "CREATE TABLE IF NOT EXISTS holdings (eid TEXT PRIMARY KEY, id TEXT NOT NULL, "
        "recipient TEXT NOT NULL, relays TEXT NOT NULL, expires_at INTEGER NOT NULL) WITHOUT ROWID"
    ),
    "CREATE INDEX IF NOT EXISTS holdings_by_id ON holdings (id)",
    # inventory of the source of a migration
    (
        "CREATE TABLE IF NOT EXISTS waited (eid TEXT PRIMARY KEY, seq INTEGER NOT NULL, "
        "hour INTEGER NOT NULL, key BLOB NOT NULL, size INTEGER NOT NULL, "
        "expires_at INTEGER NOT NULL) WITHOUT ROWID"
    ),
)


def prepare(did: Did | None, connection: sqlite3.Connection) -> None:
    """Create the tables that are missing.

    Raises:
        ValueError: the file has another version, or belongs to another agent than ``did``.
    """
    for table in TABLES:
        connection.execute(table)
    facts = dict(connection.execute("SELECT name, value FROM facts"))
    if facts.setdefault("v", str(VERSION)) != str(VERSION):
        raise ValueError(f"it has version {facts['v']}")
    if did is not None and facts.setdefault("did", did) != did:
        raise ValueError(f"it belongs to {facts['did']}")
    connection.executemany("REPLACE INTO facts VALUES (?, ?)", facts.items())
