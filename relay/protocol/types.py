"""Small values that frames, the SDK and the node share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, NamedTuple

from relay.protocol.ids import AgentKey, Eid, Seq


@dataclass(frozen=True, slots=True)
class Window:
    """The limits of what is delivered and not yet durably acked; one envelope always fits."""

    count: int = 64
    bytes: int = 1024 * 1024


@dataclass(frozen=True, slots=True)
class DedupKey:
    """The key under which relays remember an id, and the hour of that id."""

    dedupe_key: bytes
    hour: int


FirstContact = Literal["accept", "refuse"]


class MovedRules(NamedTuple):
    """The rules and contacts of an agent, as they move with its inbox.

    ``contacts`` are those that it has written to, the longest known first.
    """

    first_contact: FirstContact = "accept"
    allow: tuple[AgentKey, ...] = ()
    deny: tuple[AgentKey, ...] = ()
    contacts: tuple[AgentKey, ...] = ()


class WaitingEnvelope(NamedTuple):
    """An envelope that waits in an inbox, without its content.

    Args:
        seq: where.
        eid: which.
        dedup_key: the key under which relays remember it.
        size: wire bytes.
        expires_at: Unix seconds.
    """

    seq: Seq
    eid: Eid
    dedup_key: DedupKey
    size: int
    expires_at: int


class Reason(StrEnum):
    """The reasons for which a seq holds no envelope (PROTOCOL.md §5 ``gap``)."""

    ACKED = "acked"
    REFUSED = "refused"
    EXPIRED = "expired"
    MOVED = "moved"
    CORRUPT = "corrupt"


@dataclass(frozen=True, slots=True)
class Range:
    """Seqs ``start`` … ``end``, both included."""

    start: Seq
    end: Seq
    reason: Reason


class Mode(StrEnum):
    """The modes of an inbox at one relay."""

    NONE = "none"
    INCOMING = "incoming"
    ACTIVE = "active"
    FROZEN = "frozen"


MAYBE_SEEN_ID_BYTES: Final = 36
"""Of one id in a digest: hour 4, big-endian; dedupe key 16; first bytes of its eid 16."""
