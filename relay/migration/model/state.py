"""The two sides of a migration: states, events and transitions (GUARANTEES.md §3).

Everything is an immutable and hashable value, so that tests can visit every reachable state.
:mod:`relay.migration.model.machine` defines the transitions. The mail and the known ids are in the
inbox; a side decides only the role of the inbox (:class:`InboxRole`).
"""

from __future__ import annotations

from typing import NamedTuple, Self

from relay.inbox.model.types import InboxRole
from relay.protocol.endpoint_record import EndpointRecord, RecordVersion
from relay.protocol.ids import Did
from relay.protocol.migration_order import MigrationOrder
from relay.protocol.types import MAYBE_SEEN_ID_BYTES, Mode


class RecordRef(NamedTuple):
    """The part of an endpoint record that matters here.

    Args:
        version: the greater wins.
        homes: the relays that it names, the preferred one first.
    """

    version: RecordVersion
    homes: tuple[Did, ...]

    @classmethod
    def of(cls, record: EndpointRecord) -> Self:
        """Return the reference to a verified record."""
        ranked = sorted(record.relays, key=lambda home: home.prio)
        return cls(record.version, tuple(home.did for home in ranked))

    @property
    def home(self) -> Did | None:
        """The preferred home."""
        return self.homes[0] if self.homes else None

    @property
    def handoff(self) -> str:
        """The id of a hand-off that follows from this record, without an order."""
        return self.version.handoff_id


class OrderRef(NamedTuple):
    """The part of a migration order that matters here."""

    id: str
    seq: int
    source: Did
    target: Did
    record: RecordRef
    expires_at: int

    @classmethod
    def of(cls, order: MigrationOrder) -> Self:
        """Return the reference to a verified order."""
        return cls(
            id=order.id,
            seq=order.seq,
            source=order.source.did,
            target=order.target.did,
            record=RecordRef.of(order.record),
            expires_at=order.expires_at,
        )


class Handoff(NamedTuple):
    """A hand-off and the other relay of it; a message about another one changes nothing."""

    id: str
    peer: Did


class PartialDigest(NamedTuple):
    """The number of pages received of one digest, in order."""

    digest_id: bytes
    pages: int


class MigrationSide(NamedTuple):
    """One inbox at one relay, as the store holds it; only ``machine.step`` changes it.

    Args:
        me: the relay.
        mode: the mode of the inbox here.
        record: the newest record that was applied.
        order_seq: the seq of the newest order.
        handoff: the current one: with the source in INCOMING and ACTIVE, the target in FROZEN.
        pending: INCOMING and FROZEN: the record that the order will publish.
        since: Unix seconds, when ``mode`` began.
        awaiting_digests: relays that may have delivered envelopes and have not sent their digests;
            while there are any, every delivery is flagged as redelivered.
        digest_received: the digest of the current hand-off's source is complete here.
        partial_digest: a digest of which some pages are here.
        digest_sources: relays whose digests came since ``mode`` began; their mail passes quotas.
        digest_acked: FROZEN: the target has the digest.
        fork_version: of two records with one seq: the greatest one whose other homes were added to
            ``awaiting_digests``.
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
        """The preferred home by the newest record."""
        return self.record.home if self.record else None

    @property
    def is_home(self) -> bool:
        """True if the record names this relay; a record without homes moves nobody."""
        return self.record is None or not self.record.homes or self.me in self.record.homes

    @property
    def delivers(self) -> bool:
        """True if a session of the agent may receive and ack."""
        return self.mode is Mode.ACTIVE and self.is_home

    @property
    def names_target(self) -> bool:
        """FROZEN: True if the newest record names the target, so that mail may be forwarded."""
        return self.handoff is not None and self.home == self.handoff.peer

    @property
    def role(self) -> InboxRole:
        """The role of the inbox."""
        if self.mode is Mode.INCOMING or (self.mode is Mode.FROZEN and self.is_home):
            return InboxRole.PAUSED
        if not self.delivers:
            return InboxRole.FORWARDING
        return InboxRole.UNCERTAIN if self.awaiting_digests else InboxRole.HOME

    def accepts_handoff_from(self, peer: Did) -> bool:
        """Return True if mail of this relay belongs to a hand-off and passes rules and quotas.

        The relay counts, not the id: it may hand over again under a record what it handed over
        under the order before. A relay that the order does not name sends its digest first.
        """
        named = self.handoff is not None and self.handoff.peer == peer
        return self.mode in {Mode.INCOMING, Mode.ACTIVE} and (named or peer in self.digest_sources)

    @property
    def handoff_peers(self) -> frozenset[Did]:
        """The relays that may talk with this one about this inbox, whatever the federation."""
        named = {self.handoff.peer} if self.handoff is not None else set[Did]()
        return (self.awaiting_digests | self.digest_sources | named) - {self.me}


class MigrationRecord(NamedTuple):
    """A side and its signed order; "" = none."""

    side: MigrationSide
    order: str = ""


# ---------------------------------------------------------------- between relays


class DigestPage(NamedTuple):
    """A page of the ids that an agent has seen, or may have seen, at a frozen source.

    Args:
        handoff: the hand-off.
        digest_id: SHA-256 over the digest: pages of two digests are never mixed.
        number: of this page, from 0; pages are sent in order.
        total: number of pages.
        awaiting_digests: relays whose digests the source itself awaits.
        dedup_horizon: the source has forgotten hours up to this one; -1 = none.
        maybe_seen: ids, :data:`MAYBE_SEEN_ID_BYTES` each.
    """

    handoff: str
    digest_id: bytes
    number: int
    total: int
    awaiting_digests: frozenset[Did] = frozenset()
    dedup_horizon: int = -1
    maybe_seen: bytes = b""

    def until(self, hour: int) -> Self:
        """Return the page without hours after the next one: those would never be forgotten."""
        ids, places = self.maybe_seen, range(0, len(self.maybe_seen), MAYBE_SEEN_ID_BYTES)
        hours = [int.from_bytes(ids[at : at + 4], "big") for at in places]
        if max(hours, default=0) > hour + 1:
            valid = (at for at, one in zip(places, hours, strict=True) if one <= hour + 1)
            ids = b"".join(ids[at : at + MAYBE_SEEN_ID_BYTES] for at in valid)
        return self._replace(dedup_horizon=min(self.dedup_horizon, hour), maybe_seen=ids)


class DigestReceipt(NamedTuple):
    """The next page of a digest that the target needs; ``next`` is the total when it has all.

    A source acts on the last receipt only.
    """

    handoff: str
    digest_id: bytes
    next: int


# ---------------------------------------------------------------- events


class Prepare(NamedTuple):
    """The agent asks the target to get ready; the caller has checked that there is room."""

    order: OrderRef


class Freeze(NamedTuple):
    """The agent has closed its session and asks the source to stop."""

    order: OrderRef


class RecordObserved(NamedTuple):
    """A verified record came.

    Args:
        record: the newest one.
        former: the one before it, if known.
        fork: another record of one kv and seq that the agent signed, too.
    """

    record: RecordRef
    former: RecordRef | None = None
    fork: RecordRef | None = None


class PeerMessage(NamedTuple):
    """A message of another relay over an authenticated link.

    Args:
        peer: that relay.
        message: its page or receipt.
        named: the agent has signed that its mail was there.
    """

    peer: Did
    message: DigestPage | DigestReceipt
    named: bool = False


class DigestForgotten(NamedTuple):
    """The target does not know this hand-off: the digest must be sent again."""

    handoff: str


class TimePassed(NamedTuple):
    """The clock has advanced."""


Event = Prepare | Freeze | RecordObserved | PeerMessage | DigestForgotten | TimePassed


class Transition(NamedTuple):
    """The next state of a side and its effects on the inbox, in one commit.

    Args:
        side: the next state. If :attr:`MigrationSide.role` or the hand-off changes, the session
            ends, and what it may have delivered is flagged.
        mark_present: flag all waiting mail as redelivered.
        imports: remember these ids as maybe seen: mail under one of them is flagged.
        answer: the answer to the peer, when everything else is durable.
    """

    side: MigrationSide
    mark_present: bool = False
    imports: DigestPage | None = None
    answer: DigestReceipt | None = None
