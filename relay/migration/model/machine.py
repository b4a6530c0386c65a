"""How an inbox changes relays: the state machine of both sides, as tables (GUARANTEES.md §3).

::

    source:  ACTIVE ──freeze──▶ FROZEN ──a record names the target──▶ FROZEN, away
                ▲                 │ a newer record names it again: the way back
                └─────────────────┘
    target:  NONE ──prepare──▶ INCOMING ──its record──▶ ACTIVE
                                  │ a newer record names another: FROZEN towards that one

Rules of the file: :func:`step` is one durable step of the store: the new :class:`MigrationSide`
and what the step does to the inbox are written together or not at all, and repeating a step is
harmless. What is said afterwards may be swallowed by a crash; then the other side asks again.

A FROZEN side says first what its agent has seen (the digest), and lets go of envelopes only once
the newest record names the target, one by one, for the target's signed receipt. Whatever a relay
says of an inbox only marks: its word ends nothing (docs/adr/0022, 0023). Neither side ever trusts a
clock but for the two long waits below. Signatures, links, URLs and rates are checked before
anything comes here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from relay.inbox.model.types import (
    InboxRole,
)
from relay.migration.model.state import (
    DigestForgotten,
    DigestPage,
    DigestReceipt,
    Event,
    Freeze,
    Handoff,
    MigrationSide,
    OrderRef,
    PartialDigest,
    PeerMessage,
    Prepare,
    RecordObserved,
    RecordRef,
    TimePassed,
    Transition,
)
from relay.protocol.envelope import (
    MAX_ENVELOPE_LIFETIME_S,
)
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
)
from relay.protocol.ids import (
    Did,
    Timestamp,
)
from relay.protocol.types import (
    MAYBE_SEEN_ID_BYTES,
    Mode,
)

DIGEST_PAGE: Final = 4096
"""Ids of one page of a digest."""
DIGEST_PAGES: Final = 64
"""Pages of one digest: five times what the memory of an inbox holds."""
MOST_MISSING: Final = 64
"""Relays whose digests one side waits for; more are of no agent that only moves now and then."""
UNNAMED_S: Final = 24 * 3600
"""So long an INCOMING side waits for the record that names it."""
MISSING_S: Final = MAX_ENVELOPE_LIFETIME_S + 3600
"""So long after a home began without a digest no envelope lives that another home has shown."""
HOUR_S: Final = 3600
GRACE_S: Final = 7 * 24 * 3600
"""So long two relays may go on talking about an inbox when all that is known has been said."""

Result = Transition | Refusal


def step(side: MigrationSide, said: Event, now: Timestamp) -> Result:
    """What becomes of a side that hears ``said``; a refusal changes nothing."""
    done = _step(side, said, now)
    if isinstance(done, Refusal) or len(done.side.awaiting_digests) <= MOST_MISSING:
        return done
    # whoever signs record after record fills no store with the relays that they name
    first = sorted(
        done.side.awaiting_digests, key=lambda did: (did not in side.awaiting_digests, did)
    )
    return done._replace(side=done.side._replace(awaiting_digests=frozenset(first[:MOST_MISSING])))


def _step(side: MigrationSide, said: Event, now: Timestamp) -> Result:
    match said:
        case Prepare():
            return _prepare(side, said.order, now)
        case Freeze():
            return _freeze(side, said.order, now)
        case RecordObserved():
            return _learn(side, said, now)
        case PeerMessage():
            return _hear(side, said, now)
        case DigestForgotten():
            return _doubt(side, said)
        case TimePassed():
            return _tick(side, now)


def initial_side(
    me: Did, holding: InboxRole | None, former: RecordRef | None, *, has_left: bool = False
) -> MigrationSide:
    """The side of an inbox of which none was ever written; it has its newest record to learn yet.

    Args:
        me: the relay.
        holding: what the store does for the inbox; None: there is none.
        former: the record before the newest, when last it changed whether this relay is named.
        has_left: it was a home here, and then its record named others.
    """
    if holding is InboxRole.FORWARDING and has_left:
        return MigrationSide(me, Mode.ACTIVE, former)
    if holding in {InboxRole.HOME, InboxRole.PAUSED}:
        return MigrationSide(me, Mode.ACTIVE)
    # there is none, or a queue for others, or a home since the newest record only
    return MigrationSide(me, Mode.NONE, former)


# ---------------------------------------------------------------- orders

_MAY_PREPARE: Final = frozenset({Mode.NONE, Mode.FROZEN, Mode.INCOMING})


def _overtaken(side: MigrationSide, order: OrderRef, now: Timestamp) -> Refusal | None:
    if order.seq <= side.order_seq:
        return Refusal(ErrorCode.STALE_RECORD, "a newer order of this agent is known")
    if side.record is not None and order.record.version <= side.record.version:
        return Refusal(ErrorCode.STALE_RECORD, "the order's record is not newer than the last one")
    if order.expires_at <= now:
        return Refusal(ErrorCode.EXPIRED, "the order has expired")
    return None


def _prepare(side: MigrationSide, order: OrderRef, now: Timestamp) -> Result:
    """The target gets ready: it takes mail, and delivers nothing."""
    handoff = Handoff(order.id, order.source)
    if side.handoff == handoff and side.mode in {Mode.INCOMING, Mode.ACTIVE}:
        return Transition(side)
    if order.target != side.me:
        return Refusal(ErrorCode.WRONG_RELAY, "the order names another target")
    if side.mode not in _MAY_PREPARE:
        return Refusal(ErrorCode.WRONG_STATE, "this relay is the agent's home; bring its record")
    no = _overtaken(side, order, now)
    if no is not None:
        return no
    prepared = side._replace(
        mode=Mode.INCOMING,
        handoff=handoff,
        pending=order.record,
        order_seq=order.seq,
        since=int(now),
        awaiting_digests=(_still_missing(side) | {order.source} | _beside(side)) - {side.me},
        digest_received=False,
        partial_digest=None,
        digest_sources=frozenset(),
        digest_acked=False,
    )
    return Transition(prepared)


def _beside(side: MigrationSide) -> frozenset[Did]:
    """The homes of now: each of them may have shown what it has, not the source alone."""
    return frozenset(side.record.homes) if side.record is not None else frozenset()


def _still_missing(side: MigrationSide) -> frozenset[Did]:
    """What a side goes on missing when it gets ready anew.

    A source that this side was getting ready for handed over nothing since an agent's later order
    names another; that other's digest says whether the first one's is missing.
    """
    if side.mode is Mode.FROZEN:
        return side.awaiting_digests
    if side.mode is Mode.INCOMING and side.handoff is not None:
        return side.awaiting_digests - {side.handoff.peer}
    return frozenset()


def _freeze(side: MigrationSide, order: OrderRef, now: Timestamp) -> Result:
    """The source stops delivering, for good or until a record names it again."""
    handoff = Handoff(order.id, order.target)
    if side.handoff == handoff and side.mode is Mode.FROZEN:
        return Transition(side)
    if order.source != side.me:
        return Refusal(ErrorCode.WRONG_RELAY, "the order names another source")
    if side.mode not in {Mode.ACTIVE, Mode.FROZEN} or not side.is_home:
        return Refusal(ErrorCode.WRONG_STATE, "this relay is not the agent's home")
    no = _overtaken(side, order, now)
    if no is not None:
        return no
    frozen = _towards(side, handoff, now)
    return Transition(frozen._replace(order_seq=order.seq, pending=order.record))


def _towards(side: MigrationSide, handoff: Handoff, now: Timestamp) -> MigrationSide:
    """Frozen towards another relay than before: the old target may have delivered meanwhile."""
    turned = side.mode is Mode.FROZEN and side.handoff and side.handoff.peer != handoff.peer
    old = {side.handoff.peer} if turned and side.handoff else set[Did]()
    return side._replace(
        mode=Mode.FROZEN,
        handoff=handoff,
        pending=None,
        since=side.since if side.mode is Mode.FROZEN else int(now),
        awaiting_digests=(side.awaiting_digests | old) - {side.me},
        digest_received=False,
        partial_digest=None,
        digest_sources=side.digest_sources if side.mode is Mode.FROZEN else frozenset(),
        digest_acked=False,
    )


# ---------------------------------------------------------------- records


def _learn(side: MigrationSide, said: RecordObserved, now: Timestamp) -> Result:
    record, held = said.record, side.record
    side = _forked(side, said)
    if held is not None and record.version <= held.version:
        return Transition(side)
    if not record.homes:
        return Transition(side._replace(record=record))
    return _ON_RECORD[side.mode, side.me in record.homes](side, said, now)


def _forked(side: MigrationSide, said: RecordObserved) -> MigrationSide:
    """Two records of one seq: the loser's home may have handed something over, too."""
    if said.fork is None or side.mode is Mode.NONE:
        return side
    if side.fork_version is not None and said.fork.version <= side.fork_version:
        return side
    others = frozenset(said.fork.homes) - {*said.record.homes, side.me}
    return side._replace(
        fork_version=said.fork.version, awaiting_digests=side.awaiting_digests | others
    )


def _hold(side: MigrationSide, said: RecordObserved, _: Timestamp) -> Transition:
    return Transition(side._replace(record=said.record))


def _take_home(side: MigrationSide, said: RecordObserved, now: Timestamp) -> Transition:
    """Deliver. Without the order's own record it is a dead-source publish: everybody is missing."""
    expected = side.mode is Mode.INCOMING and side.pending == said.record
    awaiting_digests = set(side.awaiting_digests)
    if not expected:
        before = [ref for ref in (side.record, said.former) if ref is not None]
        awaiting_digests |= {home for ref in before for home in ref.homes}
        awaiting_digests |= {side.handoff.peer} if side.handoff else set()
        # who is a home still hands nothing over
        awaiting_digests -= {*said.record.homes}
    active = side._replace(
        mode=Mode.ACTIVE,
        record=said.record,
        pending=None,
        since=int(now),
        awaiting_digests=frozenset(awaiting_digests - {side.me}),
        handoff=side.handoff if side.mode is Mode.INCOMING else None,
        digest_sources=side.digest_sources if side.mode is Mode.INCOMING else frozenset(),
        digest_acked=False,
    )
    return Transition(active)


def _come_back(side: MigrationSide, said: RecordObserved, now: Timestamp) -> Transition:
    """The way back. Whether the target was named in between cannot be known here."""
    return _take_home(side, said, now)._replace(mark_present=True)


def _turn(side: MigrationSide, said: RecordObserved, now: Timestamp) -> Transition:
    """The agent lives elsewhere: never deliver again, hand over what is here."""
    is_there = side.mode is Mode.FROZEN and side.handoff and side.handoff.peer == said.record.home
    if is_there and (side.digest_acked or side.pending == said.record):
        # what was said before holds: it was said to this very target, which knows it still
        return Transition(side._replace(record=said.record, pending=None))
    turned = _towards(side, Handoff(said.record.handoff, said.record.homes[0]), now)
    return Transition(turned._replace(record=said.record))


def _turn_if_overtaken(side: MigrationSide, said: RecordObserved, now: Timestamp) -> Transition:
    """INCOMING waits for its own record; one that is newer than that decides otherwise."""
    if side.pending is not None and said.record.version < side.pending.version:
        return _hold(side, said, now)
    return _turn(side, said, now)


_ON_RECORD: Final[
    dict[tuple[Mode, bool], Callable[[MigrationSide, RecordObserved, Timestamp], Transition]]
] = {
    (Mode.NONE, True): _take_home,
    (Mode.NONE, False): _hold,
    (Mode.INCOMING, True): _take_home,
    (Mode.INCOMING, False): _turn_if_overtaken,
    (Mode.ACTIVE, True): _hold,
    (Mode.ACTIVE, False): _turn,
    (Mode.FROZEN, True): _come_back,
    (Mode.FROZEN, False): _turn,
}
"""What a newer record does, by mode and by whether it names this relay."""

# ---------------------------------------------------------------- peers


def _hear(side: MigrationSide, heard: PeerMessage, now: Timestamp) -> Result:
    message = heard.message
    if isinstance(message, DigestReceipt):
        return _handed(side, heard, message)
    no = _form(message) or refuse_source(side, heard.peer, message.handoff, named=heard.named)
    if no is not None:
        return no
    # what has not been sent yet can neither be forgotten nor have been seen
    return _collect(side, heard, message.until(int(now) // HOUR_S))


def _form(page: DigestPage) -> Refusal | None:
    if not 0 <= page.number < page.total:
        return Refusal(ErrorCode.BAD_FRAME, "no such page of a digest")
    if page.total > DIGEST_PAGES or len(page.doubts) > DIGEST_PAGE * MAYBE_SEEN_ID_BYTES:
        return Refusal(ErrorCode.TOO_LARGE, "too many ids in a digest")
    return None


def refuse_source(side: MigrationSide, peer: Did, handoff: str, *, named: bool) -> Refusal | None:
    """Why ``peer`` may hand nothing over here under that id; None: it may, both ids and mail.

    A source is the one that the order names, or one that an earlier record named (``named``).
    """
    by_order = side.handoff == Handoff(handoff, peer)
    if by_order and side.mode in {Mode.INCOMING, Mode.ACTIVE}:
        return None
    by_record = side.record is not None and side.record.handoff == handoff and named
    if by_record and side.is_home and side.mode in {Mode.ACTIVE, Mode.FROZEN}:
        return None
    if side.mode is Mode.FROZEN and not side.is_home:
        return Refusal(ErrorCode.MOVED, "the agent's home is elsewhere")
    return Refusal(ErrorCode.WRONG_STATE, "nothing is handed over here under that id by that relay")


def _collect(side: MigrationSide, heard: PeerMessage, page: DigestPage) -> Transition:
    """Take the next page in order; any other is answered with which one that is."""
    known = side.partial_digest
    have = known.pages if known is not None and known.digest_id == page.digest_id else 0
    if page.number != have:
        return Transition(side, answer=DigestReceipt(page.handoff, page.digest_id, have))
    answer = DigestReceipt(page.handoff, page.digest_id, have + 1)
    if have + 1 < page.total:
        part = side._replace(partial_digest=PartialDigest(page.digest_id, have + 1))
        return Transition(part, imports=page, answer=answer)
    current = side.handoff is not None and side.handoff.peer == heard.peer
    awaiting_digests = (side.awaiting_digests - {heard.peer}) | (page.awaiting_digests - {side.me})
    digest_id = side._replace(
        partial_digest=None,
        digest_received=side.digest_received or (current and side.mode is not Mode.FROZEN),
        # one that misses more than can be kept goes on being missing itself
        awaiting_digests=awaiting_digests
        if len(awaiting_digests) <= MOST_MISSING
        else side.awaiting_digests,
        digest_sources=side.digest_sources | {heard.peer},
        # what it has said to its own target is not all any more
        digest_acked=False,
    )
    return Transition(digest_id, imports=page, answer=answer)


def _handed(side: MigrationSide, heard: PeerMessage, receipt: DigestReceipt) -> Result:
    if side.mode is not Mode.FROZEN or side.handoff != Handoff(receipt.handoff, heard.peer):
        return Refusal(ErrorCode.WRONG_STATE, "that hand-off is not the current one")
    return Transition(side._replace(digest_acked=True))


def _doubt(side: MigrationSide, said: DigestForgotten) -> Result:
    if side.handoff is None or side.handoff.id != said.handoff:
        return Refusal(ErrorCode.WRONG_STATE, "that hand-off is not the current one")
    return Transition(side._replace(digest_acked=False))


# ---------------------------------------------------------------- long waits


def _tick(side: MigrationSide, now: Timestamp) -> Transition:
    record = side.record
    if side.mode is Mode.INCOMING and record and record.home and now >= side.since + UNNAMED_S:
        # nobody was named in time; what came meanwhile goes to where the agent lives
        return Transition(_towards(side, Handoff(record.handoff, record.home), now))
    if side.mode is Mode.ACTIVE and side.awaiting_digests and now >= side.since + MISSING_S:
        return Transition(side._replace(awaiting_digests=frozenset()))
    if side.mode is Mode.FROZEN and not side.digest_acked and now >= side.since + MISSING_S:
        # nothing that its agent has seen here lives: there is no more to say
        return Transition(side._replace(digest_acked=True))
    return Transition(side)


def is_open(side: MigrationSide, now: Timestamp, waiting: int) -> bool:
    """Whether two relays still may have something to say to each other about it."""
    is_young, is_past = now < side.since + GRACE_S, now >= side.since + MISSING_S
    match side.mode:
        case Mode.FROZEN:
            is_done = side.digest_acked and (side.names_target or is_past)
            return bool(waiting) or not is_done or is_young
        case Mode.INCOMING:
            return not is_past
        case Mode.ACTIVE:
            return bool(side.awaiting_digests) or (bool(side.handoff_peers) and is_young)
        case Mode.NONE:
            return False


def has_work(side: MigrationSide) -> bool:
    """Whether a mover has something to say that does not wait in the inbox."""
    return side.mode is Mode.FROZEN and side.handoff is not None and not side.digest_acked
