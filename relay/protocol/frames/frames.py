"""What is said in a conversation: one dataclass a frame (PROTOCOL.md §5).

Rules of the file: a frame is a value; ``protocol/frames/codec.py`` reads and writes it.
Envelopes inside
``submit`` and ``deliver`` stay raw here: each is judged alone, later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from relay.protocol.errors import (
    ErrorCode,
    Stored,
)
from relay.protocol.frames.frames_migrate import (
    Migrate,
    Migrated,
)
from relay.protocol.ids import (
    AgentKey,
    Did,
    Epoch,
    Fence,
    Seq,
)
from relay.protocol.types import (
    FirstContact,
    Range,
)

MAX_FRAME_BYTES: Final = 2 * 1024 * 1024
MAX_ENVELOPES: Final = 256
MAX_SEQS: Final = 1024
MAX_REF: Final = 64
MAX_STATUS: Final = 256
MAX_RULES: Final = 1_000
MAX_HOPS: Final = 3
MAX_GOSSIP_BYTES: Final = 1024 * 1024
MAX_RECORDS: Final = 1_024
MAX_RELAYS: Final = 64
MAX_BUCKETS: Final = 1_024
MAX_HAVE: Final = 2_048
MAX_WANT: Final = 1_024
SUBPROTOCOL: Final = "agent-relay.v1"


@dataclass(frozen=True, slots=True)
class Hello:
    """First word of a relay: who it is, and a nonce to sign."""

    relay: Did
    url: str
    nonce: str
    limits: dict[str, int]
    time: int


@dataclass(frozen=True, slots=True)
class Auth:
    """A dialler logs in; ``record`` is its newest endpoint record."""

    jws: str
    record: str | None = None
    invite: str | None = None


@dataclass(frozen=True, slots=True)
class WelcomePending:
    """What waits in the inbox; ages and times in Unix seconds."""

    count: int = 0
    bytes: int = 0
    oldest_age: int | None = None
    refused_count: int = 0
    refused_first_at: int | None = None
    refused_last_at: int | None = None


@dataclass(frozen=True, slots=True)
class Welcome:
    """The login holds. ``epoch`` and ``session`` are None for a send-only session."""

    inbox: bool
    session: Fence | None
    epoch: Epoch | None
    cursor: Seq
    head: Seq
    pending: WelcomePending
    window_count: int
    window_bytes: int
    proof: str


@dataclass(frozen=True, slots=True)
class Submit:
    """Envelopes for the relay to keep; raw ``{"jws","body"}`` objects or wire bytes.

    Args:
        ref: named by the answer.
        envelopes: what is to be kept.
        hops: of a peer: the relays that had them, the newest last.
        marked: of a peer: places of those that their recipient may have been handed before.
        handoff: of a peer: the hand-off that these are a page of; all are of one recipient.
    """

    ref: str
    envelopes: Sequence[object]
    hops: tuple[Did, ...] = ()
    marked: tuple[int, ...] = ()
    handoff: str = ""


@dataclass(frozen=True, slots=True)
class Rejection:
    """One envelope of a submit that was not stored, or of which nobody knows."""

    ref: str
    i: int
    error: ErrorCode
    stored: Stored
    detail: str = ""
    retry_after: int | None = None
    record: str | None = None


@dataclass(frozen=True, slots=True)
class Submitted:
    """The answer to all submits in ``refs``, oldest first."""

    refs: tuple[str, ...]
    receipt: str | None
    rejected: tuple[Rejection, ...] = ()


class DeliverItem(NamedTuple):
    """One envelope handed over: wire bytes when written, the raw object when read."""

    seq: Seq
    redelivered: bool
    envelope: object


@dataclass(frozen=True, slots=True)
class Deliver:
    """Envelopes in seq order."""

    epoch: Epoch
    items: tuple[DeliverItem, ...]


@dataclass(frozen=True, slots=True)
class Gap:
    """Seqs that hold nothing any more, and why."""

    epoch: Epoch
    ranges: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class Ack:
    """Durably processed, delete it; ``refuse`` is for what cannot be processed."""

    epoch: Epoch
    upto: Seq = Seq(0)
    seqs: tuple[Seq, ...] = ()
    refuse: tuple[tuple[Seq, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Acked:
    """The ack is durable; ``upto`` is the cursor now."""

    epoch: Epoch
    upto: Seq
    seqs: tuple[Seq, ...] = ()
    refused: tuple[Seq, ...] = ()


@dataclass(frozen=True, slots=True)
class StatusItem:
    """An envelope by recipient and the sender's own id; a peer names the ``sender``, too."""

    to: Did
    id: str
    sender: Did | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """What became of these?"""

    ref: str
    items: tuple[StatusItem, ...]


State = Literal["stored", "forwarded", "acked", "expired", "refused", "corrupt", "moved", "unknown"]


@dataclass(frozen=True, slots=True)
class StatusAnswer:
    """What became of one envelope, as far as this relay remembers.

    ``peer`` is the relay that took it over from this one; ``receipt`` is b64url(SHA-256) of that
    relay's receipt: the receipt itself names other envelopes.
    """

    to: Did
    id: str
    state: State
    peer: Did | None = None
    receipt: str | None = None


@dataclass(frozen=True, slots=True)
class Statuses:
    """The answer to ``status``, in its order."""

    ref: str
    items: tuple[StatusAnswer, ...]


@dataclass(frozen=True, slots=True)
class Resolve:
    """Where does this agent live?"""

    ref: str
    did: Did | None = None
    handle: str | None = None


Resolution = Literal["found", "absent", "unreadable"]


@dataclass(frozen=True, slots=True)
class Resolved:
    """Found, absent and unreadable are three answers, never confused."""

    ref: str
    state: Resolution
    record: str | None = None
    stale: bool = False


@dataclass(frozen=True, slots=True)
class Publish:
    """The agent's own endpoint record."""

    ref: str
    record: str


@dataclass(frozen=True, slots=True)
class Published:
    """The record now held; ``stored`` is false where a newer one was held already."""

    ref: str
    stored: bool
    kv: int
    seq: int
    record: str | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """Change the rules of the own inbox; what is not named stays, naming nothing just reads."""

    ref: str
    first_contact: FirstContact | None = None
    allow: tuple[Did, ...] = ()
    deny: tuple[Did, ...] = ()
    forget: tuple[Did, ...] = ()


@dataclass(frozen=True, slots=True)
class Ruled:
    """The rules of the own inbox now, and how many it has written to."""

    ref: str
    first_contact: FirstContact
    allow: tuple[Did, ...]
    deny: tuple[Did, ...]
    contacts: int


@dataclass(frozen=True, slots=True)
class Gossip:
    """Endpoint records and relay information, as signed; pushed, or with ``ref`` asked for."""

    records: tuple[str, ...] = ()
    relays: tuple[str, ...] = ()
    ref: str | None = None


@dataclass(frozen=True, slots=True)
class Digest:
    """What do you hold? Buckets of the directory by the first ``bits`` bits; none means all."""

    ref: str
    bits: int
    buckets: tuple[int, ...] = ()


class BucketDigest(NamedTuple):
    """How many records a bucket holds, and b64url of 16 bytes that differ where they differ."""

    bucket: int
    records: int
    digest: str


@dataclass(frozen=True, slots=True)
class Digests:
    """The answer to ``digest``; a bucket that is not named is empty."""

    ref: str
    bits: int
    items: tuple[BucketDigest, ...]


@dataclass(frozen=True, slots=True)
class Want:
    """A wish for exactly one of four: a bucket's list, records, relay information, or a view.

    Args:
        ref: named by the answer.
        bits: with ``bucket``: its depth; answered by ``have``.
        bucket: which one.
        after: go on behind this agent key.
        agents: whose records; answered by ``gossip``.
        relays: the relays that you know; answered by ``gossip``.
        view: how you see me; answered by ``view``.
    """

    ref: str
    bits: int | None = None
    bucket: int | None = None
    after: AgentKey | None = None
    agents: tuple[AgentKey, ...] = ()
    relays: bool = False
    view: bool = False


class HaveItem(NamedTuple):
    """A record by its order: agent key, kv, seq, b64url of the first 16 bytes of its hash."""

    agent: AgentKey
    kv: int
    seq: int
    hash: str


@dataclass(frozen=True, slots=True)
class Have:
    """What a bucket holds, by agent key; ``more`` says that it goes on behind the last one."""

    ref: str
    bits: int
    bucket: int
    items: tuple[HaveItem, ...]
    more: bool = False


Membership = Literal["alive", "suspect", "gone"]


@dataclass(frozen=True, slots=True)
class View:
    """How the answering relay sees the one that asks.

    Args:
        ref: of the question.
        state: whether it reaches the asker when it dials.
        since: when that began, Unix seconds; 0 = it never dialled.
        strikes: forged records that the asker introduced, of late.
        retry_after: seconds until it listens to the asker's gossip again, or None: now.
        reason: why it backs off, for a person.
    """

    ref: str
    state: Membership
    since: int
    strikes: int = 0
    retry_after: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Error:
    """A request failed; the conversation goes on."""

    error: ErrorCode
    detail: str = ""
    retry_after: int | None = None
    ref: str | None = None


@dataclass(frozen=True, slots=True)
class Bye:
    """The last word, then the socket closes."""

    error: ErrorCode
    detail: str = ""
    retry_after: int | None = None
    record: str | None = None


Frame = (
    Hello | Auth | Welcome | Submit | Submitted | Deliver | Gap | Ack | Acked | Status | Statuses
    | Resolve | Resolved | Publish | Published | Rules | Ruled | Gossip | Digest | Digests | Want
    | Have | View | Migrate | Migrated | Error | Bye
)  # fmt: skip
