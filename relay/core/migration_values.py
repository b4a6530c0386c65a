"""What the two sides of a hand-off know, hear and want done (GUARANTEES.md §3).

Rules of the file: values only, and all of them hashable, so that tests can visit every state there
is. :mod:`relay.core.migration` says what they mean. Envelopes are known here by their eids alone.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import NamedTuple, Self

from relay.core.errors import ErrorCode
from relay.core.ids import Did, Eid
from relay.core.orders import MigrationOrder
from relay.core.records import EndpointRecord

Eids = frozenset[Eid]
NO_EIDS: Eids = frozenset()


class Mode(StrEnum):
    """What an inbox is at one relay."""

    NONE = "none"
    INCOMING = "incoming"
    ACTIVE = "active"
    FROZEN = "frozen"
    TOMBSTONE = "tombstone"


class RecordRef(NamedTuple):
    """What a hand-off needs of an endpoint record: where it stands, and whom it names.

    Args:
        order: (kv, seq, hash): greater wins.
        homes: the relays that it names, the first one tried first.
    """

    order: tuple[int, int, bytes]
    homes: tuple[Did, ...]

    @classmethod
    def of(cls, record: EndpointRecord) -> Self:
        """Of a record that was verified."""
        ranked = sorted(record.relays, key=lambda home: home.prio)
        return cls(record.order, tuple(home.did for home in ranked))

    @property
    def home(self) -> Did | None:
        """Where mail goes first."""
        return self.homes[0] if self.homes else None

    @property
    def handoff(self) -> str:
        """The id under which a relay hands over because of this record, without an order."""
        kv, seq, digest = self.order
        return f"record:{kv}:{seq}:{digest.hex()}"


class OrderRef(NamedTuple):
    """What a hand-off needs of an order that was verified."""

    id: str
    seq: int
    source: Did
    target: Did
    record: RecordRef
    expires_at: int

    @classmethod
    def of(cls, order: MigrationOrder) -> Self:
        """Of an order that was verified."""
        return cls(
            id=order.id,
            seq=order.seq,
            source=order.source.did,
            target=order.target.did,
            record=RecordRef.of(order.record),
            expires_at=order.expires_at,
        )


class Handoff(NamedTuple):
    """Which hand-off, and with whom. Whatever names another one changes nothing."""

    id: str
    peer: Did


class Held(NamedTuple):
    """An envelope that waits here.

    Args:
        eid: which.
        marked: it may have been handed to its agent before.
        brought_by: the relay whose page alone brought it; None: this relay gave its sender a
            receipt, or two relays brought it, so that no other relay's word can end it.
    """

    eid: Eid
    marked: bool = False
    brought_by: Did | None = None


class Told(NamedTuple):
    """A relay's own word that the agent is done with an envelope, or that it bounced there."""

    by: Did
    eid: Eid


class Collecting(NamedTuple):
    """Which pages of a digest have come; ``whole`` names that one digest."""

    whole: bytes
    numbers: frozenset[int]


class Side(NamedTuple):
    """One inbox at one relay, as its store keeps it. Changes only by :func:`migration.step`.

    Args:
        me: the relay.
        mode: what the inbox is here.
        record: the newest one held.
        order_seq: of the newest order heard of.
        handoff: the current one: of INCOMING and ACTIVE the source's, of FROZEN the target's.
        pending: INCOMING: the record that the order will publish.
        since: Unix seconds, when ``mode`` began.
        missing: relays that may have handed over envelopes and have not said which; while there
            are any, whatever is delivered is marked.
        digested: the digest of the current hand-off's source is here.
        collecting: a part of it is.
        handed: FROZEN: which digest the target has whole, or None.
        live: what waits.
        finished: what the agent acked or refused here, or what bounced here: an explicit set.
        told: what other relays say is finished, each for itself.
        maybe: what may have been handed over elsewhere: marked when it comes.
    """

    me: Did
    mode: Mode = Mode.NONE
    record: RecordRef | None = None
    order_seq: int = 0
    handoff: Handoff | None = None
    pending: RecordRef | None = None
    since: int = 0
    missing: frozenset[Did] = frozenset()
    digested: bool = False
    collecting: Collecting | None = None
    handed: bytes | None = None
    live: frozenset[Held] = frozenset()
    finished: Eids = NO_EIDS
    told: frozenset[Told] = frozenset()
    maybe: Eids = NO_EIDS

    @property
    def home(self) -> Did | None:
        """Where the newest record held says that mail goes."""
        return self.record.home if self.record else None

    @property
    def is_home(self) -> bool:
        """Whether that is here; a record that names nobody moves nobody."""
        return self.record is None or not self.record.homes or self.me in self.record.homes

    @property
    def delivers(self) -> bool:
        """Whether a session of the agent may be handed anything, and may ack."""
        return self.mode is Mode.ACTIVE and self.is_home

    @property
    def accepts(self) -> bool:
        """Whether submits are taken and receipted."""
        return self.mode in {Mode.INCOMING, Mode.ACTIVE, Mode.FROZEN}

    def held(self, eid: Eid) -> Held | None:
        """The entry of ``eid``, if it waits here."""
        return next((held for held in self.live if held.eid == eid), None)

    def is_marked(self, held: Held) -> bool:
        """Whether it is delivered with its mark."""
        return held.marked or bool(self.missing)


# ---------------------------------------------------------------- between relays


class DigestPage(NamedTuple):
    """A part of what a frozen source says its agent has, or may have, seen.

    Args:
        handoff: which hand-off.
        whole: SHA-256 over the whole digest: pages of two digests are never taken for one.
        number: of this page, from 0.
        total: how many pages there are.
        finished: acked, refused or bounced at this source.
        maybe: perhaps handed over before, here or elsewhere.
        missing: whose digests the source itself still lacks.
    """

    handoff: str
    whole: bytes
    number: int
    total: int
    finished: Eids
    maybe: Eids
    missing: frozenset[Did]


class DigestReceipt(NamedTuple):
    """The target has all pages of this digest."""

    handoff: str
    whole: bytes


class CopyPage(NamedTuple):
    """Envelopes of a frozen source: (eid, mark) each. The bytes travel beside it."""

    handoff: str
    items: tuple[tuple[Eid, bool], ...]


class CopyReceipt(NamedTuple):
    """The target's signed answer: these are durable there, with these marks, or refused for good.

    Args:
        handoff: which hand-off.
        items: (eid, the mark that was sent).
        refused: (eid, code): will never be taken.
    """

    handoff: str
    items: tuple[tuple[Eid, bool], ...]
    refused: tuple[tuple[Eid, ErrorCode], ...] = ()


Message = DigestPage | DigestReceipt | CopyPage | CopyReceipt

# ---------------------------------------------------------------- what a side hears


class Prepare(NamedTuple):
    """The agent asks the target to get ready. Room was reserved, or this is not said at all."""

    order: OrderRef


class Freeze(NamedTuple):
    """The agent has closed its session and asks the source to stop.

    ``in_flight``: what its sessions may have been handed and not acked (R1: the first window).
    """

    order: OrderRef
    in_flight: Eids = NO_EIDS


class Learned(NamedTuple):
    """A record came, by whatever way, and was verified; ``in_flight`` as with a freeze."""

    record: RecordRef
    in_flight: Eids = NO_EIDS


class Heard(NamedTuple):
    """A message of another relay, over a link on which that relay has proven itself.

    Args:
        peer: that relay.
        message: what it said.
        named: :func:`orders.is_named`: the agent itself has said that mail lay there.
        refused: of a copy: what can never be taken here, with the code.
    """

    peer: Did
    message: Message
    named: bool = False
    refused: tuple[tuple[Eid, ErrorCode], ...] = ()


class Submitted(NamedTuple):
    """A sender's envelope passed every check but these."""

    eid: Eid


class Acked(NamedTuple):
    """The agent's live session is done with these."""

    eids: Eids


class Closed(NamedTuple):
    """A session of the agent ended: these may have been handed over and are not acked."""

    in_flight: Eids


class Expired(NamedTuple):
    """The sweep found that these have expired, and none of them is in flight."""

    eids: Eids


class Ticked(NamedTuple):
    """Time has passed."""


Input = Prepare | Freeze | Learned | Heard | Submitted | Acked | Closed | Expired | Ticked

# ---------------------------------------------------------------- what a side wants done


class Keep(NamedTuple):
    """Append this envelope to the inbox."""

    eid: Eid
    marked: bool


class Mark(NamedTuple):
    """Write a mark on these entries."""

    eids: Eids


class End(NamedTuple):
    """Take these entries away; ``reason`` as in :class:`relay.core.ranges.Reason`."""

    eids: Eids
    reason: str


class Forget(NamedTuple):
    """Take these ids out of the dedupe memory too: they may come back."""

    eids: Eids


class Bounce(NamedTuple):
    """Write a bounce intent for each."""

    eids: Eids
    reason: str
    maybe_delivered: bool


class EndSession(NamedTuple):
    """Fence off the agent's session with this code."""

    code: ErrorCode


class Answer(NamedTuple):
    """Say this to the peer that was heard, once all else is durable."""

    message: Message


class Receipt(NamedTuple):
    """Give the sender its receipt, once all else is durable; ``moved``: with the record."""

    eid: Eid
    dup: bool
    moved: bool


Effect = Keep | Mark | End | Forget | Bounce | EndSession | Answer | Receipt


def digest_hash(finished: Eids, maybe: Eids, missing: frozenset[Did]) -> bytes:
    """SHA-256 over all that a digest says."""
    parts = (sorted(finished), sorted(maybe), sorted(missing))
    return hashlib.sha256("\n\n".join("\n".join(part) for part in parts).encode()).digest()
