"""How an inbox changes relays: the state machine of both sides, as tables (GUARANTEES.md §3).

::

    source:  ACTIVE ──freeze──▶ FROZEN ──empty, named, 7 d──▶ TOMBSTONE ──30 d──▶ NONE
                ▲                 │ a newer record names it again: the way back
                └─────────────────┘
    target:  NONE ──prepare──▶ INCOMING ──its record──▶ ACTIVE
                                  │ a newer record names another: FROZEN towards that one

Rules of the file: :func:`step` is one durable step of the store: the new :class:`Side` and what the
effects do to the inbox are written together or not at all, and repeating a step is harmless. The
effects that speak (receipts, answers, the end of a session) are carried out afterwards; where a
crash swallows them, the other side asks again. The store's scripts carry out the former, the node
the latter, and a lease-fenced mover sends :func:`due` until nothing is due. Signatures, links, URLs
and rates are checked before anything comes here.

Whatever a peer says is bound to the current hand-off, and its word is good for its own mail alone:
a source that lies about its digest can end only what it brought itself. Neither side ever trusts a
clock but for the three long waits below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from relay.core import handover
from relay.core.errors import ErrorCode, Refusal
from relay.core.handover import Step
from relay.core.ids import Did, Timestamp
from relay.core.migration_values import (
    Acked,
    Closed,
    CopyPage,
    CopyReceipt,
    DigestPage,
    DigestReceipt,
    Eids,
    EndSession,
    Expired,
    Freeze,
    Handoff,
    Heard,
    Input,
    Learned,
    Message,
    Mode,
    OrderRef,
    Prepare,
    RecordRef,
    Side,
    Submitted,
    Ticked,
)

UNNAMED_S: Final = 24 * 3600
"""So long an INCOMING side waits for the record that names it."""
GRACE_S: Final = 7 * 24 * 3600
"""So long a FROZEN side takes what senders with old records bring."""
TOMBSTONE_S: Final = 30 * 24 * 3600
"""So long a TOMBSTONE says where the agent has gone."""

Result = Step | Refusal


def step(side: Side, said: Input, now: Timestamp) -> Result:
    """What becomes of a side that hears ``said``; a refusal changes nothing."""
    match said:
        case Prepare():
            return _prepare(side, said.order, now)
        case Freeze():
            return _freeze(side, said, now)
        case Learned():
            return _learn(side, said, now)
        case Heard():
            return _hear(side, said)
        case Ticked():
            return _tick(side, now)
        case _:
            return _live(side, said)


def _live(side: Side, said: Submitted | Acked | Closed | Expired) -> Result:
    match said:
        case Submitted():
            return handover.submitted(side, said.eid)
        case Acked():
            return handover.acked(side, said.eids)
        case Closed():
            return handover.marked(side, said.in_flight)
        case Expired():
            return handover.expired(side, said.eids)


def due(side: Side) -> tuple[Message, ...]:
    """What a mover has to say to the other side now; nothing means: it is done for now.

    First the digest, until its receipt is here; then what waits, once the target is named: an
    envelope that no signed record sends there must not be let go.
    """
    if side.mode is not Mode.FROZEN or side.handoff is None:
        return ()
    digest = handover.digest_pages(side)
    if side.handed != digest[0].whole:
        return digest
    return handover.copy_pages(side) if side.home == side.handoff.peer else ()


# ---------------------------------------------------------------- orders

_MAY_PREPARE: Final = frozenset({Mode.NONE, Mode.TOMBSTONE, Mode.FROZEN, Mode.INCOMING})


def _overtaken(side: Side, order: OrderRef, now: Timestamp) -> Refusal | None:
    if order.seq <= side.order_seq:
        return Refusal(ErrorCode.STALE_RECORD, "a newer order of this agent is known")
    if side.record is not None and order.record.order <= side.record.order:
        return Refusal(ErrorCode.STALE_RECORD, "the order's record is not newer than the last one")
    if order.expires_at <= now:
        return Refusal(ErrorCode.EXPIRED, "the order has expired")
    return None


def _prepare(side: Side, order: OrderRef, now: Timestamp) -> Result:
    """The target gets ready: it takes mail, and delivers nothing."""
    handoff = Handoff(order.id, order.source)
    if side.handoff == handoff and side.mode in {Mode.INCOMING, Mode.ACTIVE}:
        return Step(side)
    if order.target != side.me:
        return Refusal(ErrorCode.WRONG_RELAY, "the order names another target")
    if side.mode not in _MAY_PREPARE:
        return Refusal(ErrorCode.WRONG_STATE, "this relay delivers; bring the record that says no")
    no = _overtaken(side, order, now)
    if no is not None:
        return no
    prepared = side._replace(
        mode=Mode.INCOMING,
        handoff=handoff,
        pending=order.record,
        order_seq=order.seq,
        since=int(now),
        missing=(_still_missing(side) | {order.source}) - {side.me},
        digested=False,
        collecting=None,
        handed=None,
    )
    return Step(prepared)


def _still_missing(side: Side) -> frozenset[Did]:
    """What a side goes on missing when it gets ready anew.

    A source that this side was getting ready for handed over nothing since an agent's later order
    names another; that other's digest says whether the first one's is missing.
    """
    if side.mode is Mode.FROZEN:
        return side.missing
    if side.mode is Mode.INCOMING and side.handoff is not None:
        return side.missing - {side.handoff.peer}
    return frozenset()


def _freeze(side: Side, said: Freeze, now: Timestamp) -> Result:
    """The source stops delivering, for good or until a record names it again."""
    order = said.order
    handoff = Handoff(order.id, order.target)
    if side.handoff == handoff and side.mode is Mode.FROZEN:
        return Step(side)
    if order.source != side.me:
        return Refusal(ErrorCode.WRONG_RELAY, "the order names another source")
    if side.mode not in {Mode.ACTIVE, Mode.FROZEN} or not side.is_home:
        return Refusal(ErrorCode.WRONG_STATE, "this relay is not the agent's home")
    no = _overtaken(side, order, now)
    if no is not None:
        return no
    frozen = _towards(side, handoff, now)._replace(order_seq=order.seq)
    return _stop(side, frozen, said.in_flight, ErrorCode.MIGRATING)


def _towards(side: Side, handoff: Handoff, now: Timestamp) -> Side:
    """Frozen towards another relay than before: the old target may have delivered meanwhile."""
    turned = side.mode is Mode.FROZEN and side.handoff and side.handoff.peer != handoff.peer
    old = {side.handoff.peer} if turned and side.handoff else set()
    return side._replace(
        mode=Mode.FROZEN,
        handoff=handoff,
        pending=None,
        since=side.since if side.mode is Mode.FROZEN else int(now),
        missing=(side.missing | old) - {side.me},
        digested=False,
        collecting=None,
        handed=None,
    )


def _stop(before: Side, frozen: Side, in_flight: Eids, code: ErrorCode) -> Step:
    """A session that was live is fenced off; what it may have been handed is marked."""
    if before.mode is not Mode.ACTIVE:
        return Step(frozen)
    eids = frozenset(held.eid for held in frozen.live if held.eid in in_flight)
    frozen, marks = handover.marked(frozen, eids)
    return Step(frozen, (*marks, EndSession(code)))


# ---------------------------------------------------------------- records


def _learn(side: Side, said: Learned, now: Timestamp) -> Result:
    record, held = said.record, side.record
    side = _forked(side, record)
    if held is not None and record.order <= held.order:
        return Step(side)
    if not record.homes:
        return _hold(side, said, now)
    return _ON_RECORD[side.mode, side.me in record.homes](side, said, now)


def _forked(side: Side, record: RecordRef) -> Side:
    """Two records of one seq: the loser's home may have handed something over, too."""
    held = side.record
    if held is None or held.order[:2] != record.order[:2] or held.order == record.order:
        return side
    loser = min(held, record)
    return side._replace(missing=side.missing | (frozenset(loser.homes) - {side.me}))


def _hold(side: Side, said: Learned, _: Timestamp) -> Step:
    return Step(side._replace(record=said.record))


def _take_home(side: Side, said: Learned, now: Timestamp) -> Step:
    """Deliver. Without the order's own record it is a dead-source publish: everybody is missing."""
    expected = side.mode is Mode.INCOMING and side.pending == said.record
    missing = set(side.missing)
    if not expected:
        missing |= {side.home} if side.home else set()
        missing |= {side.handoff.peer} if side.handoff else set()
    active = side._replace(
        mode=Mode.ACTIVE,
        record=said.record,
        pending=None,
        since=int(now),
        missing=frozenset(missing - {side.me}),
        handoff=side.handoff if side.mode is Mode.INCOMING else None,
        handed=None,
    )
    return Step(active)


def _come_back(side: Side, said: Learned, now: Timestamp) -> Step:
    """The way back. Whether the target was named in between cannot be known here."""
    side, marks = handover.marked(side, frozenset(held.eid for held in side.live))
    return Step(_take_home(side, said, now).side, marks)


def _give_up(side: Side, said: Learned, now: Timestamp) -> Step:
    """The agent lives elsewhere: never deliver again, hand over what is here."""
    turned = _turn(side, said, now).side
    return _stop(side, turned, said.in_flight, ErrorCode.MOVED)


def _turn(side: Side, said: Learned, now: Timestamp) -> Step:
    turned = _towards(side, Handoff(said.record.handoff, said.record.homes[0]), now)
    return Step(turned._replace(record=said.record))


def _turn_if_overtaken(side: Side, said: Learned, now: Timestamp) -> Step:
    """INCOMING waits for its own record; one that is newer than that decides otherwise."""
    if side.pending is not None and said.record.order < side.pending.order:
        return _hold(side, said, now)
    return _turn(side, said, now)


_ON_RECORD: Final[dict[tuple[Mode, bool], Callable[[Side, Learned, Timestamp], Step]]] = {
    (Mode.NONE, True): _take_home,
    (Mode.NONE, False): _hold,
    (Mode.INCOMING, True): _take_home,
    (Mode.INCOMING, False): _turn_if_overtaken,
    (Mode.ACTIVE, True): _hold,
    (Mode.ACTIVE, False): _give_up,
    (Mode.FROZEN, True): _come_back,
    (Mode.FROZEN, False): _turn,
    (Mode.TOMBSTONE, True): _take_home,
    (Mode.TOMBSTONE, False): _hold,
}
"""What a newer record does, by mode and by whether it names this relay."""

# ---------------------------------------------------------------- peers


def _hear(side: Side, heard: Heard) -> Result:
    message = heard.message
    match message:
        case DigestPage():
            no = _not_my_source(side, heard, message.handoff) or _form(message)
            return no or handover.take_digest(side, heard, message)
        case CopyPage():
            no = _not_my_source(side, heard, message.handoff)
            return no or handover.take_copy(side, heard, message)
        case DigestReceipt():
            no = _not_my_target(side, heard, message.handoff)
            return no or Step(side._replace(handed=message.whole))
        case CopyReceipt():
            no = _not_my_target(side, heard, message.handoff)
            if no is None and side.home != heard.peer:
                no = Refusal(ErrorCode.WRONG_STATE, "no signed record names that relay yet")
            return no or handover.take_receipt(side, message)


def _form(page: DigestPage) -> Refusal | None:
    if not 0 <= page.number < page.total:
        return Refusal(ErrorCode.BAD_FRAME, "no such page of a digest")
    many = len(page.finished) + len(page.maybe) > handover.DIGEST_PAGE
    if many or page.total > handover.DIGEST_PAGES:
        return Refusal(ErrorCode.TOO_LARGE, "too many ids in a digest")
    return None


def _not_my_source(side: Side, heard: Heard, handoff: str) -> Refusal | None:
    """A source is the one that the order names, or one that an earlier record named."""
    by_order = side.handoff == Handoff(handoff, heard.peer)
    if by_order and side.mode in {Mode.INCOMING, Mode.ACTIVE}:
        return None
    by_record = side.record is not None and side.record.handoff == handoff and heard.named
    if by_record and side.is_home and side.mode in {Mode.ACTIVE, Mode.FROZEN}:
        return None
    if side.mode in {Mode.FROZEN, Mode.TOMBSTONE} and not side.is_home:
        return Refusal(ErrorCode.MOVED, "the agent's home is elsewhere")
    return Refusal(ErrorCode.WRONG_STATE, "nothing is handed over here under that id by that relay")


def _not_my_target(side: Side, heard: Heard, handoff: str) -> Refusal | None:
    if side.mode is Mode.FROZEN and side.handoff == Handoff(handoff, heard.peer):
        return None
    return Refusal(ErrorCode.WRONG_STATE, "that hand-off is not the current one")


# ---------------------------------------------------------------- long waits


def _tick(side: Side, now: Timestamp) -> Step:
    wait = _WAITS.get(side.mode)
    if wait is None or now < side.since + wait[0]:
        return Step(side)
    return wait[1](side, now)


def _unnamed(side: Side, now: Timestamp) -> Step:
    """Nobody was named in time. What imported a digest, or holds anything, is never dropped."""
    if not (side.digested or side.collecting or side.live or side.told or side.maybe):
        return Step(_emptied(side, Mode.NONE, now))
    if side.record is None or side.home is None:
        return Step(side)
    return Step(_towards(side, Handoff(side.record.handoff, side.home), now))


def _is_done(side: Side) -> bool:
    pages = handover.digest_pages(side)
    named = side.handoff is not None and side.home == side.handoff.peer
    return not side.live and named and bool(pages) and side.handed == pages[0].whole


def _buried(side: Side, now: Timestamp) -> Step:
    """All is handed over, and the target knows what the agent has seen here."""
    if not _is_done(side):
        return Step(side)
    return Step(side._replace(mode=Mode.TOMBSTONE, since=int(now)))


def _gone(side: Side, now: Timestamp) -> Step:
    return Step(_emptied(side, Mode.NONE, now))


def _emptied(side: Side, mode: Mode, now: Timestamp) -> Side:
    """Nothing is left but the record and the order's number, which nobody may turn back."""
    return Side(side.me, mode, side.record, side.order_seq, since=int(now))


_WAITS: Final[dict[Mode, tuple[int, Callable[[Side, Timestamp], Step]]]] = {
    Mode.INCOMING: (UNNAMED_S, _unnamed),
    Mode.FROZEN: (GRACE_S, _buried),
    Mode.TOMBSTONE: (TOMBSTONE_S, _gone),
}
"""What a side does by itself, and after how long."""
