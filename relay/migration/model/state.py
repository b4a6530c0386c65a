"""What the two sides of a hand-off know, hear and want done (GUARANTEES.md §3).

Rules of the file: values only, and all of them hashable, so that tests can visit every state there
is. :mod:`relay.migration.model.machine` says what they mean. Envelopes are not here: what waits
and what is
remembered is the inbox's, and a side says only what becomes of all of it (:class:`InboxRole`).
"""

from __future__ import annotations

from typing import NamedTuple, Self

from relay.inbox.model.types import InboxRole
from relay.protocol.endpoint_record import EndpointRecord, RecordVersion
from relay.protocol.ids import Did
from relay.protocol.migration_order import MigrationOrder
from relay.protocol.types import (
    MAYBE_SEEN_ID_BYTES,
    Mode,
)


class RecordRef(NamedTuple):
    """What a hand-off needs of an endpoint record: where it stands, and whom it names.

    Args:
        version: the greater wins.
        homes: the relays that it names, the first one tried first.
    """

    version: RecordVersion
    homes: tuple[Did, ...]

    @classmethod
    def of(cls, record: EndpointRecord) -> Self:
        """Of a record that was verified."""
        ranked = sorted(record.relays, key=lambda home: home.prio)
        return cls(record.version, tuple(home.did for home in ranked))

    @property
    def home(self) -> Did | None:
        """Where mail goes first."""
        return self.homes[0] if self.homes else None

    @property
    def handoff(self) -> str:
        """The id under which a relay hands over because of this record, without an order."""
        return self.version.handoff_id


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


class PartialDigest(NamedTuple):
    """How many pages of a digest have come, in their order; ``whole`` names that one digest."""

    digest_id: bytes
    pages: int


class MigrationSide(NamedTuple):
    """One inbox at one relay, as its store keeps it. Changes only by :func:`migration.step`.

    Args:
        me: the relay.
        mode: what the inbox is here.
        record: the newest one that was acted upon.
        order_seq: of the newest order heard of.
        handoff: the current one: of INCOMING and ACTIVE the source's, of FROZEN the target's.
        pending: INCOMING and FROZEN: the record that the order will publish.
        since: Unix seconds, when ``mode`` began.
        missing: relays that may have handed over envelopes and have not said which; while there
            are any, whatever is delivered is marked.
        digested: the digest of the current hand-off's source is here.
        collecting: a part of a digest is.
        sources: relays whose digests came since ``mode`` began: their mail is taken beyond quotas.
        handed: FROZEN: the target has the digest.
        forked: two records of one seq: the greatest whose other homes were put into ``missing``.
    """

    me: Did
    mode: Mode = Mode.NONE
    record: RecordRef | None = None
    order_seq: int = 0
    handoff: Handoff | None = None
    pending: RecordRef | None = None
    since: int = 0
    awaiting_digests: frozenset[Did] = frozenset()
    digest_received: bool = False
    partial_digest: PartialDigest | None = None
    digest_sources: frozenset[Did] = frozenset()
    digest_acked: bool = False
    fork_version: RecordVersion | None = None

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
    def names_target(self) -> bool:
        """FROZEN: whether the newest record names the target, so that mail may be let go."""
        return self.handoff is not None and self.home == self.handoff.peer

    @property
    def holding(self) -> InboxRole:
        """What the store does for this inbox."""
        if self.mode is Mode.INCOMING or (self.mode is Mode.FROZEN and self.is_home):
            return InboxRole.PAUSED
        if not self.delivers:
            return InboxRole.FORWARDING
        return InboxRole.UNCERTAIN if self.awaiting_digests else InboxRole.HOME

    def takes_from(self, peer: Did) -> bool:
        """Whether what this relay brings is part of a hand-off: past rules and quotas.

        That goes by the relay: what it handed over under an order it may hand over again under the
        record that followed. One that is not of the order says its digest first.
        """
        named = self.handoff is not None and self.handoff.peer == peer
        return self.mode in {Mode.INCOMING, Mode.ACTIVE} and (named or peer in self.digest_sources)

    @property
    def handoff_peers(self) -> frozenset[Did]:
        """Relays that may talk with this one about this inbox, whatever the federation."""
        named = {self.handoff.peer} if self.handoff is not None else set[Did]()
        return (self.awaiting_digests | self.digest_sources | named) - {self.me}


# ---------------------------------------------------------------- between relays


class DigestPage(NamedTuple):
    """A part of what a frozen source says its agent has, or may have, seen.

    Args:
        handoff: which hand-off.
        whole: SHA-256 over all of it: pages of two digests are never taken for one.
        number: of this page, from 0; they are said in order.
        total: how many pages there are.
        missing: whose digests the source itself still lacks.
        floor: hours up to this one the source has forgotten; -1: none.
        doubts: ids, :data:`MAYBE_SEEN_ID_BYTES` each.
    """

    handoff: str
    digest_id: bytes
    number: int
    total: int
    awaiting_digests: frozenset[Did] = frozenset()
    floor: int = -1
    doubts: bytes = b""

    def until(self, hour: int) -> Self:
        """The same, but nothing of hours after the next one: that would never be forgotten."""
        doubts, places = self.doubts, range(0, len(self.doubts), MAYBE_SEEN_ID_BYTES)
        hours = [int.from_bytes(doubts[at : at + 4], "big") for at in places]
        if max(hours, default=0) > hour + 1:
            kept = (at for at, one in zip(places, hours, strict=True) if one <= hour + 1)
            doubts = b"".join(doubts[at : at + MAYBE_SEEN_ID_BYTES] for at in kept)
        return self._replace(floor=min(self.floor, hour), doubts=doubts)


class DigestReceipt(NamedTuple):
    """The target wants this page next of this digest; ``next`` is its total once it has all.

    A source acts upon the last one only: that is what its mover tells it.
    """

    handoff: str
    digest_id: bytes
    next: int


# ---------------------------------------------------------------- what a side hears


class Prepare(NamedTuple):
    """The agent asks the target to get ready. Room was found, or this is not said at all."""

    order: OrderRef


class Freeze(NamedTuple):
    """The agent has closed its session and asks the source to stop."""

    order: OrderRef


class RecordObserved(NamedTuple):
    """A record came, by whatever way, and was verified.

    Args:
        record: the newest one held.
        former: the one before it, if it is known.
        fork: another record of one kv and seq, that the agent signed, too.
    """

    record: RecordRef
    former: RecordRef | None = None
    fork: RecordRef | None = None


class PeerMessage(NamedTuple):
    """A message of another relay, over a link on which that relay has proven itself.

    Args:
        peer: that relay.
        message: what it said.
        named: :func:`orders.authorizes`: the agent itself has said that mail lay there.
    """

    peer: Did
    message: DigestPage | DigestReceipt
    named: bool = False


class DigestForgotten(NamedTuple):
    """The target of this hand-off knows nothing of it: what was said has to be said again."""

    handoff: str


class TimePassed(NamedTuple):
    """Time has passed."""


Event = Prepare | Freeze | RecordObserved | PeerMessage | DigestForgotten | TimePassed


class Transition(NamedTuple):
    """What a side becomes, in one piece with what that does to the inbox.

    Args:
        side: the next state. Where :attr:`MigrationSide.holding` changes, or the hand-off, no
            session goes on: what it may have handed over is marked.
        mark_present: mark all that waits.
        imports: remember these ids as doubtful: whatever comes under one of them is marked, and so
            is what waits under one.
        answer: to be said to the peer that was heard, once all else is durable.
    """

    side: MigrationSide
    mark_present: bool = False
    imports: DigestPage | None = None
    answer: DigestReceipt | None = None
