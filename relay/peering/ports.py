"""What the mesh needs: of a store the directory, outboxes, peers and handles; links to peers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.errors import (
    Refusal,
)
from relay.protocol.ids import (
    AgentKey,
    Did,
    Fence,
    NodeId,
)

GONE: Final = RecordVersion(0, 0, b"")
"""The version of a record that is not held any more: it was purged."""


@dataclass(frozen=True, slots=True)
class RecordRow:
    """An agent's endpoint record as it is kept beside its inbox (PROTOCOL.md §7.4).

    Args:
        version: the greater wins.
        compact: the signed record.
        names_us: whether this relay is one of its homes; decides whether there is an inbox here.
        introducer: the peer that was first to tell of this agent; None: the agent itself did.
        expires_at: the record's ``exp``; 0: not known, and never purged.
        is_parked: where a mode is held already, or an inbox is here, that mode stays; ``names_us``
            counts where neither is. Not kept itself: what is held has the mode that was decided.
    """

    version: RecordVersion
    compact: str
    names_us: bool
    introducer: AgentKey | None = None
    expires_at: int = 0
    is_parked: bool = False


@dataclass(frozen=True, slots=True)
class DirectoryLimits:
    """How many records of others are kept (GUARANTEES.md §4).

    Args:
        records: in all; above it agents of whom a peer tells are not taken in. Nothing is evicted.
        share: one peer may be the first to tell of ``1/share`` of them.
    """

    records: int = 1_000_000
    share: int = 4


MergeOutcome = Literal["newer", "same", "older", "equivocal", "full"]
"""``equivocal``: same kv and seq, other bytes: both are kept as evidence, the greater one is held.
``full``: the directory, or this introducer's share of it, takes no unknown agent."""


class Merged(NamedTuple):
    """What merging one record came to, and the row held now (None: ``full``).

    ``moves``: it is news for an inbox here that changes relays, or may: a step is to be taken.
    """

    outcome: MergeOutcome
    held: RecordRow | None
    moves: bool = False


class Changes(NamedTuple):
    """Orders of records that changed after some place, oldest change first.

    Args:
        items: (owner, order now) each; an owner is named once, by its newest change. An order
            that is :data:`GONE`: nothing is held of it any more.
        cursor: opaque; go on from here.
        more: whether there is more just now.
        anew: the place asked from is of another lineage: these are from the very beginning.
    """

    items: tuple[tuple[AgentKey, RecordVersion], ...]
    cursor: str
    more: bool
    anew: bool = False


@dataclass(frozen=True, slots=True)
class PeerRow:
    """A relay that this one knows of.

    Args:
        did: who it is.
        url: its origin.
        standing: ``added`` or ``blocked`` by the operator, or ``learned`` from others.
        since: Unix seconds.
        info: its signed relay information, the newest seen.
    """

    did: Did
    url: str
    standing: Literal["added", "learned", "blocked"]
    since: int
    info: str | None = None


@dataclass(frozen=True, slots=True)
class HandleRow:
    """A name under this relay and whose it is; ``left_at``: since when that one lives elsewhere."""

    name: str
    did: Did
    since: int
    left_at: int | None = None


@dataclass(frozen=True, slots=True)
class DueOutbox:
    """An inbox whose agent lives elsewhere and in which something waits for a courier."""

    inbox: AgentKey
    peer: AgentKey | None


class OutboxStore(Protocol):
    """Inboxes whose agents live elsewhere: a courier takes what waits to the agent's home.

    It waits in an inbox like any other, under the bounds of an outbox, with a courier's session
    (:class:`OpenRequest`, ``courier``) instead of the agent's: the same seqs, ids, fences, expiry
    and bounces. Should the agent come home, the courier's session ends, and what waits is its mail.
    """

    async def due_outboxes(self, node: NodeId, *, most: int, lease_s: float) -> list[DueOutbox]:
        """Outboxes in which something waits and is due, each lent to ``node`` for ``lease_s``."""
        ...

    async def defer_outbox(
        self,
        inbox: AgentKey,
        fence: Fence,
        wait_s: float,
        *,
        peer: AgentKey | None = None,
        closed: Refusal | None = None,
    ) -> bool:
        """A courier's word on what it carries: due again in ``wait_s``; False if fenced off.

        Args:
            inbox: whose.
            fence: of the courier's session.
            wait_s: seconds; where nothing waits it is not due at all until something does.
            peer: the relay that it waits for from now on; its bounds count there.
            closed: until then new envelopes for it are refused, as the peer refused.
        """
        ...

    async def outboxes(self) -> list[tuple[AgentKey, int, int]]:
        """(peer, envelopes, wire bytes) of all that waits for peers."""
        ...


class RecordStore(Protocol):
    """The directory: endpoint records of agents, homed here or anywhere (PROTOCOL.md §7)."""

    async def merge_records(self, rows: Sequence[tuple[AgentKey, RecordRow]]) -> list[Merged]:
        """Keep the newer of each held and given record, durably; safe to repeat."""
        ...

    async def records(self, owners: Sequence[AgentKey]) -> list[RecordRow | None]:
        """The newest records held."""
        ...

    async def merge_record(self, owner: AgentKey, row: RecordRow) -> RecordRow:
        """Keep the newer of the held and the given record; gives the one kept."""
        ...

    async def record(self, owner: AgentKey) -> RecordRow | None:
        """The newest record held of an agent."""
        ...

    async def record_changes(self, after: str, most: int) -> Changes:
        """What changed after ``after`` ("" = all): how a node keeps its index up to date."""
        ...

    async def evidence(self, owner: AgentKey) -> tuple[str, str] | None:
        """Two records of one kv and seq that the agent has signed: the first such two."""
        ...

    async def purge_records(self) -> int:
        """Forget some records that are stale for more than 90 days; gives how many.

        A bounded step, to be repeated now and then; each goes on where the last one ended. An
        agent that has an inbox here keeps its record.
        """
        ...


class PeerStore(Protocol):
    """Other relays, and names under this one."""

    async def peers(self) -> list[PeerRow]:
        """All that are known."""
        ...

    async def put_peer(self, row: PeerRow) -> None:
        """Write one down, in the place of what was known of this DID."""
        ...

    async def replace_peer(self, held: PeerRow | None, row: PeerRow) -> bool:
        """Write one down where the store says what ``held`` does; False: it says otherwise."""
        ...

    async def remove_peer(self, did: Did) -> bool:
        """Forget one; False if it was not known."""
        ...

    async def claim_handle(self, name: str, did: Did, now: int) -> HandleRow:
        """Give a free name to an agent; gives who holds it now.

        A name that was left is free for another after a year, and for its agent at once.
        """
        ...

    async def put_handle(self, row: HandleRow) -> None:
        """Write down that a name was left, or taken up again."""
        ...

    async def handle(self, name: str) -> HandleRow | None:
        """Who holds a name."""
        ...

    async def handles(self) -> list[HandleRow]:
        """All names."""
        ...


# ---------------------------------------------------------------- other relays

WaitingMail = Callable[[], Awaitable[list[tuple[AgentKey, int, int]]]]
"""Return (peer, envelopes, wire bytes) of all mail that waits for peers."""
