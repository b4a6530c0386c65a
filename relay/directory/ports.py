"""The stores of the directory: endpoint records, and names under this relay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.ids import AgentKey, Did

GONE: Final = RecordVersion(0, 0, b"")
"""The version of a record that was purged."""


@dataclass(frozen=True, slots=True)
class RecordRow:
    """An agent's endpoint record as stored beside its inbox (PROTOCOL.md §7.4).

    Args:
        version: the greater wins.
        compact: the signed record.
        names_us: True if this relay is one of its homes; then there is an inbox here.
        introducer: the peer that first sent a record of this agent; None: the agent itself did.
        expires_at: the record's ``exp``; 0: not known, and never purged.
        is_parked: the store keeps the current ``names_us`` if it has one or an inbox is here; else
            ``names_us`` counts. Not stored itself.
    """

    version: RecordVersion
    compact: str
    names_us: bool
    introducer: AgentKey | None = None
    expires_at: int = 0
    is_parked: bool = False


@dataclass(frozen=True, slots=True)
class DirectoryLimits:
    """Bounds of the records of agents elsewhere (GUARANTEES.md §4).

    Args:
        records: in all; above it the store takes no new agent from a peer. Nothing is evicted.
        share: one peer may introduce ``1/share`` of them.
    """

    records: int = 1_000_000
    share: int = 4


MergeOutcome = Literal["newer", "same", "older", "equivocal", "full"]
"""``equivocal``: same kv and seq, other bytes: both are evidence, the greater one is current.
``full``: the directory, or this introducer's share of it, takes no unknown agent."""


class Merged(NamedTuple):
    """The outcome of merging one record, and the current row (None: ``full``).

    ``moves``: an inbox here changes relays, or may, because of it; the hand-off takes a step.
    """

    outcome: MergeOutcome
    held: RecordRow | None
    moves: bool = False


class Changes(NamedTuple):
    """Versions that changed after some place, oldest change first.

    Args:
        items: (owner, current version); an owner occurs once, with its newest change. The version
            is :data:`GONE` if the record was purged.
        cursor: opaque; read on from here.
        more: True if more changes follow now.
        restarted: the place is of another lineage: these changes are from the very beginning.
    """

    items: tuple[tuple[AgentKey, RecordVersion], ...]
    cursor: str
    more: bool
    restarted: bool = False


@dataclass(frozen=True, slots=True)
class HandleRow:
    """A name under this relay and its agent; ``left_at``: when that agent moved elsewhere."""

    name: str
    did: Did
    since: int
    left_at: int | None = None


class RecordStore(Protocol):
    """The directory: endpoint records of agents, homed here or anywhere (PROTOCOL.md §7)."""

    async def merge(self, rows: Sequence[tuple[AgentKey, RecordRow]]) -> list[Merged]:
        """Store the newer of each current and given record, durably; safe to repeat."""
        ...

    async def get(self, owner: AgentKey) -> RecordRow | None:
        """Return the newest record of one agent."""
        ...

    async def get_many(self, owners: Sequence[AgentKey]) -> list[RecordRow | None]:
        """Return the newest records of several agents, in their order."""
        ...

    async def changes(self, after: str, limit: int) -> Changes:
        """Return the changes after ``after`` ("" = all): a node updates its index from them."""
        ...

    async def fork_proof(self, owner: AgentKey) -> tuple[str, str] | None:
        """Return the first two records of one kv and seq that the agent has signed."""
        ...

    async def purge(self) -> int:
        """Forget some records that are stale for more than 90 days; return how many.

        Each call is one bounded step and goes on where the last one ended. An agent that has an
        inbox here keeps its record.
        """
        ...


class HandleStore(Protocol):
    """Names under this relay, and the agents that have them."""

    async def claim(self, name: str, did: Did, now: int) -> HandleRow:
        """Give a free name to an agent; return the row of its present owner.

        A name that its agent left is free for another agent after a year, and for that agent at
        once.
        """
        ...

    async def put(self, row: HandleRow) -> None:
        """Record that an agent left a name, or took it up again."""
        ...

    async def get(self, name: str) -> HandleRow | None:
        """Return the owner of a name."""
        ...

    async def all(self) -> list[HandleRow]:
        """Return all names."""
        ...
