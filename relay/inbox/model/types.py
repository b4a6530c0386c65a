"""The values that the steps of an inbox take and return.

The store implements these steps; :mod:`relay.reference.inbox` specifies them. What is made once
for each envelope is a named tuple: a frozen dataclass takes three times as long to make.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from relay.protocol.ids import AgentKey, Eid, Epoch, Fence, NodeId, Seq
from relay.protocol.types import FirstContact, Range


class Disposition(StrEnum):
    """The end of an envelope, or its present state; one letter in the store."""

    STORED = "S"
    ACKED = "A"
    REFUSED = "R"
    EXPIRED = "E"
    CORRUPT = "C"
    MOVED = "M"
    FORWARDED = "W"
    MAYBE_SEEN = "D"
    """Another relay reports that its agent may have seen it there; it is not here."""


KNOWN_BY: Final = 21
"""Characters of an eid that are compared: of some ids the store has only the first 16 bytes."""


class Forwarded(NamedTuple):
    """The relay that took an envelope over, and SHA-256 of its receipt (32 bytes)."""

    peer: AgentKey
    receipt: bytes


@dataclass(frozen=True, slots=True)
class InboxLimits:
    """Quotas of one inbox (R7) and of its memory (R3); counts and wire bytes.

    ``stranger_*`` are those of all strangers together, ``rules`` is of each of allow and deny.
    """

    max_count: int = 10_000
    max_bytes: int = 64 * 1024 * 1024
    sender_count: int = 1_000
    sender_bytes: int = 8 * 1024 * 1024
    stranger_count: int = 1_000
    stranger_bytes: int = 8 * 1024 * 1024
    dedupe_entries: int = 50_000
    rules: int = 1_000
    contacts: int = 5_000


class LiveSession(NamedTuple):
    """The session that a new entry is for, and the node that holds it.

    ``until`` is 0 for a connection, which its node closes; a session without one ends by itself
    at ``until`` (Unix seconds).
    """

    fence: Fence
    node: NodeId
    until: int = 0


class Accepted(NamedTuple):
    """Stored, or found stored before.

    Args:
        seq: where.
        epoch: of what.
        dup: it had been stored before.
        session: the session to deliver it to.
        stranger: stored now, from a sender that the inbox does not know.
        away: its agent lives elsewhere; it waits for a forwarder (custody ``outbox``).
    """

    seq: Seq
    epoch: Epoch
    dup: bool
    session: LiveSession | None
    stranger: bool = False
    away: bool = False


@dataclass(frozen=True, slots=True)
class RefusedCount:
    """The number of envelopes that an inbox refused, with the first and the last time."""

    count: int = 0
    first_at: int = 0
    last_at: int = 0


@dataclass(frozen=True, slots=True)
class Pending:
    """The waiting part of an inbox; ``oldest_at``: when its first live entry was created."""

    count: int
    bytes: int
    oldest_at: int | None
    refused: RefusedCount


@dataclass(frozen=True, slots=True)
class OpenedSession:
    """A session of an inbox. ``previous`` must learn that it is superseded."""

    fence: Fence
    epoch: Epoch
    cursor: Seq
    head: Seq
    pending: Pending
    previous: LiveSession | None


class PageItem(NamedTuple):
    """One entry as it is delivered."""

    seq: Seq
    redelivered: bool
    eid: Eid
    wire: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """A share of an inbox after some seq.

    Args:
        items: live entries in seq order.
        gaps: explained ranges between and behind them.
        upto: everything up to here is in ``items`` or ``gaps``.
        head: the last assigned seq.
        expired: the entry after ``upto`` has expired: conclude these, then read on.
    """

    items: tuple[PageItem, ...]
    gaps: tuple[Range, ...]
    upto: Seq
    head: Seq
    expired: tuple[Seq, ...] = ()


@dataclass(frozen=True, slots=True)
class InboxAck:
    """An ack of a session: ``seqs`` and ``refuse`` are explicit, ``upto`` moves the cursor.

    ``forwarded`` is set by a forwarder: another relay has taken ``seqs`` over.
    """

    fence: Fence
    epoch: Epoch
    seqs: tuple[Seq, ...]
    upto: Seq = Seq(0)
    refuse: tuple[tuple[Seq, str], ...] = ()
    forwarded: Forwarded | None = None


@dataclass(frozen=True, slots=True)
class AckResult:
    """The result of an ack; ``cursor`` is the new cumulative position."""

    cursor: Seq
    seqs: tuple[Seq, ...]
    refused: tuple[Seq, ...]


@dataclass(frozen=True, slots=True)
class PendingBounce:
    """A durable entry of the bounce queue: report to ``sender`` how its envelope ended (R6)."""

    sender: AgentKey
    eid: Eid
    to: AgentKey
    reason: str
    maybe_delivered: bool
    due_at: int


class RememberedId(NamedTuple):
    """An id that the inbox remembers; ``forwarded`` is set where another relay took it over."""

    disposition: Disposition
    eid: Eid
    forwarded: Forwarded | None = None


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """Bounds of what waits for one peer; one sender and one recipient have a share of it (R7).

    ``count`` and ``bytes`` (wire) are of one partition's part of the outbox.
    """

    count: int = 10_000
    bytes: int = 64 * 1024 * 1024
    shares: int = 20


@dataclass(frozen=True, slots=True)
class RulesPatch:
    """A change of the rules of an inbox; what it does not name stays.

    ``forget`` takes out of all lists, contacts too.
    """

    first_contact: FirstContact | None = None
    allow: tuple[AgentKey, ...] = ()
    deny: tuple[AgentKey, ...] = ()
    forget: tuple[AgentKey, ...] = ()


@dataclass(frozen=True, slots=True)
class RulesNow:
    """The rules of an inbox, and how many contacts it has."""

    first_contact: FirstContact
    allow: frozenset[AgentKey]
    deny: frozenset[AgentKey]
    contacts: int


class MaybeSeenIds(NamedTuple):
    """A share of the ids that an inbox remembers and that its agent may have seen.

    Args:
        ids: 36 bytes each: hour 4, big-endian; dedupe key 16; first bytes of its eid 16.
        after: opaque: go on from here; "" = that was all.
        floor: hours up to this one are forgotten; -1 = none.
    """

    ids: bytes
    after: str
    floor: int


class InboxRole(StrEnum):
    """The role of an inbox at this relay; the value is its digit in the store.

    Args:
        FORWARDING: the agent lives elsewhere; a forwarder reads the inbox.
        HOME: the inbox accepts and delivers.
        PAUSED: the inbox accepts and delivers nothing.
        UNCERTAIN: the inbox accepts and delivers, and everything is flagged as redelivered.
    """

    FORWARDING = "0"
    HOME = "1"
    PAUSED = "2"
    UNCERTAIN = "3"


@dataclass(frozen=True, slots=True)
class AckRequest:
    """An ack of one inbox's session; ``taken`` for a session without a connection."""

    inbox: AgentKey
    ack: InboxAck
    taken: bool = False
