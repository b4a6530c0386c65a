"""The state machine of an inbox that changes relays, for both sides (GUARANTEES.md §3).

States are the modes, events are the values of :data:`~relay.migration.model.state.Event`::

    source:  ACTIVE ──freeze──▶ FROZEN ──a record names the target──▶ FROZEN, forwarding
                ▲                 │ a newer record names it again: the way back
                └─────────────────┘
    target:  NONE ──prepare──▶ INCOMING ──its record──▶ ACTIVE
                                  │ a newer record names another: FROZEN towards that one

Example, an agent moves from A to B::

    B: Prepare(order)                     INCOMING, paused, awaits the digest of A
    A: Freeze(order)                      FROZEN, paused
    B: PeerMessage(A, DigestPage 0 of 1)  digest received; the answer asks for page 1 of 1: all
    A: PeerMessage(B, DigestReceipt)      digest acked
    B: RecordObserved(record of B)        ACTIVE, home
    A: RecordObserved(record of B)        FROZEN, forwarding: the mail goes to B

:func:`step` is one durable step of the store. The new side and its effects on the inbox are written
together or not at all, and repeating a step is harmless. A crash may lose the answer to a peer;
then the peer asks again.

A FROZEN side first sends its digest, the ids that its agent may have seen. It forwards an envelope
only when the newest record names the target, and ends it only for the target's signed receipt. A
statement of another relay can set the redelivered flag; it never ends mail (docs/adr/0022, 0023).
Only the two long waits below trust a clock. The caller has checked signatures, links, URLs and
rates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from relay.inbox.model.types import InboxRole
from relay.migration.model import state
from relay.migration.model.state import Handoff, MigrationSide, OrderRef, RecordRef, Transition
from relay.protocol.envelope import MAX_ENVELOPE_LIFETIME_S
from relay.protocol.errors import ErrorCode, Refusal
from relay.protocol.frames import MAX_AWAITED_DIGESTS, MAX_DIGEST_PAGES, MAX_MAYBE_SEEN_IDS
from relay.protocol.ids import Did, Timestamp
from relay.protocol.types import MAYBE_SEEN_ID_BYTES, Mode

MAX_UNNAMED_S: Final = 24 * 3600
"""How long an INCOMING side waits for the record that names it."""
DIGEST_WAIT_S: Final = MAX_ENVELOPE_LIFETIME_S + 3600
"""How long a home awaits digests: no envelope that another home has delivered lives longer."""
HOUR_S: Final = 3600
GRACE_S: Final = 7 * 24 * 3600
"""How long two relays may talk about an inbox after both sides are done."""

Result = Transition | Refusal


def step(side: MigrationSide, event: state.Event, now: Timestamp) -> Result:
    """Return the transition for an event; a refusal changes nothing."""
    done = _step(side, event, now)
    if isinstance(done, Refusal) or len(done.side.awaiting_digests) <= MAX_AWAITED_DIGESTS:
        return done
    # bounded: an agent that signs record after record must not fill the store with their relays
    known = side.awaiting_digests
    first = sorted(done.side.awaiting_digests, key=lambda did: (did not in known, did))
    return done._replace(
        side=done.side._replace(awaiting_digests=frozenset(first[:MAX_AWAITED_DIGESTS]))
    )


def _step(side: MigrationSide, event: state.Event, now: Timestamp) -> Result:
    match event:
        case state.Prepare(order):
            return _prepare(side, order, now)
        case state.Freeze(order):
            return _freeze(side, order, now)
        case state.RecordObserved():
            return _on_record(side, event, now)
        case state.PeerMessage():
            return _on_peer_message(side, event, now)
        case state.DigestForgotten(handoff):
            return _on_digest_forgotten(side, handoff)
        case state.TimePassed():
            return _on_time(side, now)


def initial_side(
    me: Did, role: InboxRole | None, former: RecordRef | None, *, has_left: bool = False
) -> MigrationSide:
    """Return the side of an inbox without a stored one; apply its newest record afterwards.

    Args:
        me: the relay.
        role: the role of the inbox; None: there is no inbox.
        former: the record before the newest one, when the record last changed whether it names
            this relay.
        has_left: this relay was the home, and then the record named others.
    """
    if role is InboxRole.FORWARDING and has_left:
        return MigrationSide(me, Mode.ACTIVE, former)
    if role in {InboxRole.HOME, InboxRole.PAUSED}:
        return MigrationSide(me, Mode.ACTIVE)
    # no inbox, or one with mail for other relays, or a home since the newest record only
    return MigrationSide(me, Mode.NONE, former)


# ---------------------------------------------------------------- orders

_MAY_PREPARE: Final = frozenset({Mode.NONE, Mode.FROZEN, Mode.INCOMING})


def _refuse_order(side: MigrationSide, order: OrderRef, now: Timestamp) -> Refusal | None:
    if order.seq <= side.order_seq:
        return Refusal(ErrorCode.STALE_RECORD, "a newer order of this agent is known")
    if side.record is not None and order.record.version <= side.record.version:
        return Refusal(ErrorCode.STALE_RECORD, "the order's record is not newer than the last one")
    if order.expires_at <= now:
        return Refusal(ErrorCode.EXPIRED, "the order has expired")
    return None


def _prepare(side: MigrationSide, order: OrderRef, now: Timestamp) -> Result:
    """Make the target ready: it accepts mail and delivers nothing."""
    handoff = Handoff(order.id, order.source)
    if side.handoff == handoff and side.mode in {Mode.INCOMING, Mode.ACTIVE}:
        return Transition(side)
    if order.target != side.me:
        return Refusal(ErrorCode.WRONG_RELAY, "the order names another target")
    if side.mode not in _MAY_PREPARE:
        return Refusal(ErrorCode.WRONG_STATE, "this relay is the agent's home; bring its record")
    refusal = _refuse_order(side, order, now)
    if refusal is not None:
        return refusal
    # each home of the newest record may have delivered mail, not the source alone
    homes = side.record.homes if side.record is not None else ()
    awaiting = (_awaited_before(side) | {order.source, *homes}) - {side.me}
    prepared = side._replace(
        mode=Mode.INCOMING,
        handoff=handoff,
        pending=order.record,
        order_seq=order.seq,
        since=int(now),
        awaiting_digests=awaiting,
        digest_received=False,
        partial_digest=None,
        digest_sources=frozenset(),
        digest_acked=False,
    )
    return Transition(prepared)


def _awaited_before(side: MigrationSide) -> frozenset[Did]:
    """Return the digests that a side awaits from before it prepares.

    The source of an earlier order is left out: since a later order names another source, the first
    one handed over nothing. The digest of the other source says if that one is awaited.
    """
    if side.mode is Mode.FROZEN:
        return side.awaiting_digests
    if side.mode is Mode.INCOMING and side.handoff is not None:
        return side.awaiting_digests - {side.handoff.peer}
    return frozenset()


def _freeze(side: MigrationSide, order: OrderRef, now: Timestamp) -> Result:
    """Stop deliveries at the source, for good or until a record names it again."""
    handoff = Handoff(order.id, order.target)
    if side.handoff == handoff and side.mode is Mode.FROZEN:
        return Transition(side)
    if order.source != side.me:
        return Refusal(ErrorCode.WRONG_RELAY, "the order names another source")
    if side.mode not in {Mode.ACTIVE, Mode.FROZEN} or not side.is_home:
        return Refusal(ErrorCode.WRONG_STATE, "this relay is not the agent's home")
    refusal = _refuse_order(side, order, now)
    if refusal is not None:
        return refusal
    frozen = _frozen_towards(side, handoff, now)
    return Transition(frozen._replace(order_seq=order.seq, pending=order.record))


def _frozen_towards(side: MigrationSide, handoff: Handoff, now: Timestamp) -> MigrationSide:
    """Return the side frozen towards another relay; the old target may have delivered meanwhile."""
    redirected = side.mode is Mode.FROZEN and side.handoff and side.handoff.peer != handoff.peer
    old = {side.handoff.peer} if redirected and side.handoff else set[Did]()
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


def _on_record(side: MigrationSide, event: state.RecordObserved, now: Timestamp) -> Result:
    record, current = event.record, side.record
    side = _with_fork(side, event)
    if current is not None and record.version <= current.version:
        return Transition(side)
    if not record.homes:
        return Transition(side._replace(record=record))
    return _ON_RECORD[side.mode, side.me in record.homes](side, event, now)


def _with_fork(side: MigrationSide, event: state.RecordObserved) -> MigrationSide:
    """Await the digest of the loser's home: of two records with one seq, both may deliver."""
    if event.fork is None or side.mode is Mode.NONE:
        return side
    if side.fork_version is not None and event.fork.version <= side.fork_version:
        return side
    others = frozenset(event.fork.homes) - {*event.record.homes, side.me}
    return side._replace(
        fork_version=event.fork.version, awaiting_digests=side.awaiting_digests | others
    )


def _stay(side: MigrationSide, event: state.RecordObserved, _: Timestamp) -> Transition:
    return Transition(side._replace(record=event.record))


def _become_home(side: MigrationSide, event: state.RecordObserved, now: Timestamp) -> Transition:
    """Deliver. Any record but the order's own means a lost source: await all earlier homes."""
    is_expected = side.mode is Mode.INCOMING and side.pending == event.record
    awaiting = set(side.awaiting_digests)
    if not is_expected:
        before = [ref for ref in (side.record, event.former) if ref is not None]
        awaiting |= {home for ref in before for home in ref.homes}
        awaiting |= {side.handoff.peer} if side.handoff else set()
        # a relay that stays a home hands nothing over
        awaiting -= {*event.record.homes}
    active = side._replace(
        mode=Mode.ACTIVE,
        record=event.record,
        pending=None,
        since=int(now),
        awaiting_digests=frozenset(awaiting - {side.me}),
        handoff=side.handoff if side.mode is Mode.INCOMING else None,
        digest_sources=side.digest_sources if side.mode is Mode.INCOMING else frozenset(),
        digest_acked=False,
    )
    return Transition(active)


def _come_back(side: MigrationSide, event: state.RecordObserved, now: Timestamp) -> Transition:
    """Become home again; this relay cannot know if the target was the home meanwhile."""
    return _become_home(side, event, now)._replace(mark_present=True)


def _redirect(side: MigrationSide, event: state.RecordObserved, now: Timestamp) -> Transition:
    """Never deliver again, and hand over the mail: the agent lives elsewhere."""
    record = event.record
    is_there = side.mode is Mode.FROZEN and side.handoff and side.handoff.peer == record.home
    if is_there and (side.digest_acked or side.pending == record):
        # this very target has the digest, or is about to get it
        return Transition(side._replace(record=record, pending=None))
    redirected = _frozen_towards(side, Handoff(record.handoff, record.homes[0]), now)
    return Transition(redirected._replace(record=record))


def _redirect_if_newer(
    side: MigrationSide, event: state.RecordObserved, now: Timestamp
) -> Transition:
    """Go on waiting for the order's record, unless the other record is newer than that."""
    if side.pending is not None and event.record.version < side.pending.version:
        return _stay(side, event, now)
    return _redirect(side, event, now)


_ON_RECORD: Final[
    dict[tuple[Mode, bool], Callable[[MigrationSide, state.RecordObserved, Timestamp], Transition]]
] = {
    (Mode.NONE, True): _become_home,
    (Mode.NONE, False): _stay,
    (Mode.INCOMING, True): _become_home,
    (Mode.INCOMING, False): _redirect_if_newer,
    (Mode.ACTIVE, True): _stay,
    (Mode.ACTIVE, False): _redirect,
    (Mode.FROZEN, True): _come_back,
    (Mode.FROZEN, False): _redirect,
}
"""The effect of a newer record, by mode and by whether it names this relay."""

# ---------------------------------------------------------------- peers


def _on_peer_message(side: MigrationSide, event: state.PeerMessage, now: Timestamp) -> Result:
    message = event.message
    if isinstance(message, state.DigestReceipt):
        return _on_digest_acked(side, event.peer, message)
    refusal = _refuse_form(message) or refuse_source(
        side, event.peer, message.handoff, named=event.named
    )
    if refusal is not None:
        return refusal
    # an id of a later hour can neither be forgotten nor seen: its envelope is not sent yet
    return _collect(side, event.peer, message.until(int(now) // HOUR_S))


def _refuse_form(page: state.DigestPage) -> Refusal | None:
    if not 0 <= page.number < page.total:
        return Refusal(ErrorCode.BAD_FRAME, "no such page of a digest")
    if (
        page.total > MAX_DIGEST_PAGES
        or len(page.maybe_seen) > MAX_MAYBE_SEEN_IDS * MAYBE_SEEN_ID_BYTES
    ):
        return Refusal(ErrorCode.TOO_LARGE, "too many ids in a digest")
    return None


def refuse_source(side: MigrationSide, peer: Did, handoff: str, *, named: bool) -> Refusal | None:
    """Return why ``peer`` may hand neither ids nor mail over under that id; None: it may.

    A source is the relay that the order names, or one that an earlier record named (``named``).
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


def _collect(side: MigrationSide, peer: Did, page: state.DigestPage) -> Transition:
    """Take the next page in order; answer any other page with the number of the next one."""
    known = side.partial_digest
    have = known.pages if known is not None and known.digest_id == page.digest_id else 0
    answer = state.DigestReceipt(page.handoff, page.digest_id, have)
    if page.number != have:
        return Transition(side, answer=answer)
    answer = answer._replace(next=have + 1)
    if have + 1 < page.total:
        partial = state.PartialDigest(page.digest_id, have + 1)
        return Transition(side._replace(partial_digest=partial), imports=page, answer=answer)
    is_current = side.handoff is not None and side.handoff.peer == peer
    awaiting = (side.awaiting_digests - {peer}) | (page.awaiting_digests - {side.me})
    complete = side._replace(
        partial_digest=None,
        digest_received=side.digest_received or (is_current and side.mode is not Mode.FROZEN),
        # a source that awaits more digests than fit is awaited itself
        awaiting_digests=awaiting
        if len(awaiting) <= MAX_AWAITED_DIGESTS
        else side.awaiting_digests,
        digest_sources=side.digest_sources | {peer},
        # the digest that this side sent to its own target is not complete any more
        digest_acked=False,
    )
    return Transition(complete, imports=page, answer=answer)


def _on_digest_acked(side: MigrationSide, peer: Did, receipt: state.DigestReceipt) -> Result:
    if side.mode is not Mode.FROZEN or side.handoff != Handoff(receipt.handoff, peer):
        return Refusal(ErrorCode.WRONG_STATE, "that hand-off is not the current one")
    return Transition(side._replace(digest_acked=True))


def _on_digest_forgotten(side: MigrationSide, handoff: str) -> Result:
    if side.handoff is None or side.handoff.id != handoff:
        return Refusal(ErrorCode.WRONG_STATE, "that hand-off is not the current one")
    return Transition(side._replace(digest_acked=False))


# ---------------------------------------------------------------- long waits


def _on_time(side: MigrationSide, now: Timestamp) -> Transition:
    record = side.record
    if side.mode is Mode.INCOMING and record and record.home and now >= side.since + MAX_UNNAMED_S:
        # no record named this relay in time: its mail goes to the agent's home
        return Transition(_frozen_towards(side, Handoff(record.handoff, record.home), now))
    if side.mode is Mode.ACTIVE and side.awaiting_digests and now >= side.since + DIGEST_WAIT_S:
        return Transition(side._replace(awaiting_digests=frozenset()))
    if side.mode is Mode.FROZEN and not side.digest_acked and now >= side.since + DIGEST_WAIT_S:
        # every envelope that its agent has seen here has expired: no digest is needed
        return Transition(side._replace(digest_acked=True))
    return Transition(side)


def is_open(side: MigrationSide, now: Timestamp, waiting: int) -> bool:
    """Return True if two relays may still have to talk about it."""
    is_young, is_past = now < side.since + GRACE_S, now >= side.since + DIGEST_WAIT_S
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
    """Return True if a digest is to be sent, whether or not any mail waits."""
    return side.mode is Mode.FROZEN and side.handoff is not None and not side.digest_acked
