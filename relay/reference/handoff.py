"""What a step of a hand-off does to an inbox, and what can be asked of it (GUARANTEES.md §3).

:mod:`relay.migration.model.machine` decides; here is
only what that means for envelopes and ids. What another relay says marks, and ends nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import groupby
from typing import Final, NamedTuple

from relay.inbox.model.store_contract import BOUNCE_GRACE_S
from relay.inbox.model.types import (
    Disposition,
    InboxRole,
)
from relay.protocol.envelope import (
    MAX_ENVELOPE_LIFETIME_S,
)
from relay.protocol.ids import (
    Eid,
    Seq,
    Timestamp,
)
from relay.protocol.jws import (
    b64decode,
    b64encode,
)
from relay.protocol.migration_statement import (
    MigrationCounters,
)
from relay.protocol.types import (
    MAYBE_SEEN_ID_BYTES,
    DedupKey,
    WaitingEnvelope,
)
from relay.reference.dedupe import Seen
from relay.reference.inbox import (
    Inbox,
)

_DOUBT: Final = struct.Struct(">I16s16s")
_SEEN: Final = frozenset(
    {
        Disposition.ACKED,
        Disposition.REFUSED,
        Disposition.EXPIRED,
        Disposition.CORRUPT,
        Disposition.MAYBE_SEEN,
    }
)
"""What its agent has seen, or may have: here, or where it came from."""
HOUR_S: Final = 3600


class Doubt(NamedTuple):
    """An id that an agent may have seen, with the first 16 bytes of its envelope's eid."""

    hour: int
    key: bytes
    eid: bytes


# ---------------------------------------------------------------- a step


def hold(box: Inbox, holding: InboxRole, *, ends_session: bool) -> None:
    """Make this of an inbox; where others than before may read it, no session goes on."""
    if ends_session or _reader(box.holding) is not _reader(holding):
        box.turn(holding)
    box.holding = holding
    if holding is InboxRole.FORWARDING:
        box.away.closed, box.away.deferred_until = None, 0


def _reader(holding: InboxRole) -> InboxRole:
    return InboxRole.HOME if holding is InboxRole.UNCERTAIN else holding


def mark_present(box: Inbox) -> None:
    """Mark all that waits."""
    box.handed = box.last


def begin_tally(box: Inbox) -> None:
    """Count anew from here."""
    box.move.tally = MigrationCounters(was=len(box.live), was_bytes=box.bytes)
    box.move.last_then = box.last


def plan(box: Inbox, now: Timestamp, *, has_work: bool, is_news: bool) -> None:
    """Let a mover look now, or no more; a courier looks where there is something to carry.

    Who takes a step that is nothing new for others has been lent it, perhaps, and keeps it.
    """
    box.move.has_work = has_work
    lent = None if is_news else box.away.due_at
    box.set_due(now if lent is None else lent)


# ---------------------------------------------------------------- a digest


def _end_of(hour: int) -> int:
    """Whatever was created from then on has an id of a later hour."""
    return (hour + 1) * HOUR_S + BOUNCE_GRACE_S


def learn_floor(box: Inbox, floor: int) -> None:
    """Another relay has forgotten hours up to this one: what is of them may have been shown.

    It is marked, and not refused as it would be where this inbox itself has forgotten: what
    another relay says turns nothing away.
    """
    if floor >= 0:
        box.mark_before = max(box.mark_before, _end_of(floor))


def floor(box: Inbox) -> int:
    """Hours up to this one are forgotten here, or where it came from; -1 = none."""
    marked = -((BOUNCE_GRACE_S - box.mark_before) // HOUR_S) - 1
    return max(box.dedupe.floor, marked if box.mark_before else -1)


def learn_doubts(box: Inbox, doubts: bytes, most: int) -> None:
    """Remember ids as doubtful, while there are no more than ``most`` ids in all.

    Nothing is forgotten for them: of an hour that there is no room for, all is marked instead, and
    of all before it. So they are best said with the newest hour first. So it is where this inbox
    itself has forgotten: what waits may be one of them.
    """
    ids = [Doubt(*one) for one in _DOUBT.iter_unpack(doubts)]
    for hour, some in groupby(ids, key=lambda one: one.hour):
        new = {one.key: one for one in some if not _is_known(box, one)}
        if not new or box.mark_before >= _end_of(hour):
            continue
        if hour <= box.dedupe.floor or len(box.dedupe) + len(new) > most:
            box.mark_before = _end_of(hour)
            continue
        for one in new.values():
            _remember(box, one)


def _is_known(box: Inbox, doubt: Doubt) -> bool:
    """Whether this inbox has seen it itself; what waits is marked then."""
    seen = box.dedupe.find(doubt.hour, doubt.key)
    if seen is None:
        return False
    if seen.disposition is Disposition.FORWARDED:
        # it went on from here, and where it went it may have been shown
        seen.seq, seen.disposition, seen.forwarded = Seq(0), Disposition.MAYBE_SEEN, None
    elif seen.disposition is Disposition.STORED and seen.seq in box.live:
        box.handed = max(box.handed, seen.seq)
    return True


def _remember(box: Inbox, doubt: Doubt) -> None:
    """For as long as an envelope under this id can live."""
    seen = Seen(Eid(b64encode(doubt.eid)), Seq(0), Disposition.MAYBE_SEEN)
    expires_at = (doubt.hour + 1) * HOUR_S + MAX_ENVELOPE_LIFETIME_S
    box.dedupe.remember(doubt.hour, doubt.key, seen, expires_at)


# ---------------------------------------------------------------- questions


def tally(box: Inbox) -> MigrationCounters:
    """What became of its envelopes since it was counted anew."""
    counted = box.move.tally or MigrationCounters()
    late = box.last - box.move.last_then if box.move.tally is not None else 0
    return counted._replace(late=late, waiting=len(box.live))


def waiting(box: Inbox, after: Seq, most: int) -> list[WaitingEnvelope]:
    """What waits behind ``after``, in seq order."""
    later = [(seq, item) for seq, item in box.live.items() if seq > after]
    return [
        WaitingEnvelope(
            seq, item.eid, DedupKey(item.dedupe_key, item.hour), item.size, item.expires_at
        )
        for seq, item in later[:most]
    ]


def doubts(box: Inbox) -> list[bytes]:
    """Ids that its agent may have seen, the newest hour first, packed for :func:`learn_doubts`."""
    return sorted({_DOUBT.pack(*one) for one in _doubts(box)}, reverse=True)


def _doubts(box: Inbox) -> Iterator[Doubt]:
    handed = max(box.handed, box.taken)
    is_all = box.holding is InboxRole.UNCERTAIN
    for hour, bucket in box.dedupe.hours.items():
        for key, seen in bucket.entries.items():
            is_shown = seen.disposition is Disposition.STORED and (is_all or seen.seq <= handed)
            if seen.disposition in _SEEN or is_shown:
                yield Doubt(hour, key, _eid16(seen.eid))
    for seq, item in box.live.items():
        if seq > handed and box.is_marked(seq, item):
            yield Doubt(item.hour, item.dedupe_key, _eid16(item.eid))


def _eid16(eid: Eid) -> bytes:
    return b64decode(eid)[: (MAYBE_SEEN_ID_BYTES - 4) // 2]
