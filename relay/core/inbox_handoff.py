"""What a step of a hand-off does to an inbox, and what can be asked of it (GUARANTEES.md §3).

Rules of the file: those of :mod:`relay.core.inbox`. :mod:`relay.core.migration` decides; here is
only what that means for envelopes and ids. What another relay says marks, and ends nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Final, NamedTuple

from relay.core.dedupe import Fate, Seen
from relay.core.envelope import MAX_LIFETIME_S
from relay.core.handoffs import Tally
from relay.core.ids import Eid, Seq, Timestamp
from relay.core.inbox import BOUNCE_GRACE_S, Inbox
from relay.core.inbox_values import Question, Waiting
from relay.core.jws import b64decode, b64encode
from relay.core.migration_values import DOUBT_BYTES, Holding

_DOUBT: Final = struct.Struct(">I16s16s")
_SEEN: Final = frozenset({Fate.ACKED, Fate.REFUSED, Fate.EXPIRED, Fate.CORRUPT, Fate.DOUBTFUL})
"""What its agent has seen, or may have: here, or where it came from."""
HOUR_S: Final = 3600


class Doubt(NamedTuple):
    """An id that an agent may have seen, with the first 16 bytes of its envelope's eid."""

    hour: int
    key: bytes
    eid: bytes


# ---------------------------------------------------------------- a step


def hold(box: Inbox, holding: Holding, *, ends_session: bool) -> None:
    """Make this of an inbox; where others than before may read it, no session goes on."""
    if ends_session or _reader(box.holding) is not _reader(holding):
        box.turn(holding)
    box.holding = holding
    if holding is Holding.AWAY:
        box.away.closed, box.away.deferred_until = None, 0


def _reader(holding: Holding) -> Holding:
    return Holding.HOME if holding is Holding.DOUBTFUL else holding


def mark_present(box: Inbox) -> None:
    """Mark all that waits."""
    box.handed = box.last


def begin_tally(box: Inbox) -> None:
    """Count anew from here."""
    box.move.tally = Tally(was=len(box.live), was_bytes=box.bytes)
    box.move.last_then = box.last


def plan(box: Inbox, now: Timestamp, *, has_work: bool) -> None:
    """Let a mover look now, or no more; a courier looks where there is something to carry."""
    box.move.has_work = has_work
    box.set_due(now)


# ---------------------------------------------------------------- a digest


def learn_floor(box: Inbox, floor: int) -> None:
    """Another relay has forgotten hours up to this one: what is of them may have been shown.

    It is marked, and not refused as it would be where this inbox itself has forgotten: what
    another relay says turns nothing away.
    """
    if floor >= 0:
        box.mark_before = max(box.mark_before, (floor + 1) * HOUR_S + BOUNCE_GRACE_S)


def floor(box: Inbox) -> int:
    """Hours up to this one are forgotten here, or where it came from; -1 = none."""
    marked = -((BOUNCE_GRACE_S - box.mark_before) // HOUR_S) - 1
    return max(box.dedupe.floor, marked if box.mark_before else -1)


def learn_doubts(box: Inbox, doubts: bytes, most: int) -> None:
    """Remember ids as doubtful, if no more than ``most`` are remembered then.

    What is known here already marks what waits. Ids that there is no room for turn nothing away
    and make nothing be forgotten: all that was sent until then is marked.
    """
    ids = [Doubt(*one) for one in _DOUBT.iter_unpack(doubts)]
    for hour, some in groupby(ids, key=lambda one: one.hour):
        new = _unknown(box, hour, some)
        if not new:
            continue
        if hour <= box.dedupe.floor:
            mark_present(box)
        elif len(box.dedupe) + len(new) > most:
            learn_floor(box, hour)
        else:
            for one in new:
                _remember(box, one)


def _unknown(box: Inbox, hour: int, ids: Iterable[Doubt]) -> list[Doubt]:
    """What is not known here; of what is, that which waits is marked."""
    new: dict[bytes, Doubt] = {}
    for one in ids:
        seen = box.dedupe.find(hour, one.key)
        if seen is None:
            new.setdefault(one.key, one)
        elif seen.fate is Fate.FORWARDED:
            # it went on from here, and where it went it may have been shown
            seen.seq, seen.fate, seen.forwarded = Seq(0), Fate.DOUBTFUL, None
        elif seen.fate is Fate.STORED and seen.seq in box.live:
            box.handed = max(box.handed, seen.seq)
    return list(new.values())


def _remember(box: Inbox, doubt: Doubt) -> None:
    """For as long as an envelope under this id can live."""
    seen = Seen(Eid(b64encode(doubt.eid)), Seq(0), Fate.DOUBTFUL)
    expires_at = (doubt.hour + 1) * HOUR_S + MAX_LIFETIME_S
    box.dedupe.remember(doubt.hour, doubt.key, seen, expires_at)


# ---------------------------------------------------------------- questions


def tally(box: Inbox) -> Tally:
    """What became of its envelopes since it was counted anew."""
    counted = box.move.tally or Tally()
    late = box.last - box.move.last_then if box.move.tally is not None else 0
    return counted._replace(late=late, waiting=len(box.live))


def waiting(box: Inbox, after: Seq, most: int) -> list[Waiting]:
    """What waits behind ``after``, in seq order."""
    later = [(seq, item) for seq, item in box.live.items() if seq > after]
    return [
        Waiting(seq, item.eid, Question(item.dedupe_key, item.hour), item.size, item.expires_at)
        for seq, item in later[:most]
    ]


def doubts(box: Inbox) -> list[bytes]:
    """Ids that its agent may have seen, in order, each packed for :func:`learn_doubts`."""
    return sorted({_DOUBT.pack(*one) for one in _doubts(box)})


def _doubts(box: Inbox) -> Iterator[Doubt]:
    handed = max(box.handed, box.taken)
    is_all = box.holding is Holding.DOUBTFUL
    for hour, bucket in box.dedupe.hours.items():
        for key, seen in bucket.entries.items():
            is_shown = seen.fate is Fate.STORED and (is_all or seen.seq <= handed)
            if seen.fate in _SEEN or is_shown:
                yield Doubt(hour, key, _eid16(seen.eid))
    for seq, item in box.live.items():
        if seq > handed and box.is_marked(seq, item):
            yield Doubt(item.hour, item.dedupe_key, _eid16(item.eid))


def _eid16(eid: Eid) -> bytes:
    return b64decode(eid)[: (DOUBT_BYTES - 4) // 2]
