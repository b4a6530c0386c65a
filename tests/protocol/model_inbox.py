"""The smallest possible inbox beside a hand-off: the effects of a store, as values.

It marks no more than a store must: single envelopes, where a store marks all up to one. It follows
the rules of :mod:`relay.reference.inbox` and of ``change_handoff.lua``.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Literal, NamedTuple

from relay.inbox.model.types import Disposition, InboxRole
from relay.migration.model.state import DigestPage, MigrationSide, Transition
from relay.protocol.ids import Eid
from relay.protocol.jws import b64encode
from relay.protocol.types import MAYBE_SEEN_ID_BYTES, Mode

NO_EIDS: frozenset[Eid] = frozenset()
HOMES = frozenset({InboxRole.HOME, InboxRole.UNCERTAIN})
TOLD = frozenset(
    {Disposition.ACKED, Disposition.REFUSED, Disposition.EXPIRED, Disposition.MAYBE_SEEN}
)
"""Fates whose ids a digest names."""
HOUR = 400_000
"""When all of it was sent."""
Outcome = Literal["stored", "dup", "late", "stale"]
STORED: Outcome = "stored"
DUP: Outcome = "dup"
LATE: Outcome = "late"
STALE: Outcome = "stale"


class Item(NamedTuple):
    """An envelope that comes: by a peer (``via``), as part of a hand-off (``moving``)."""

    eid: Eid
    marked: bool = False
    via: bool = False
    moving: bool = False


class Box(NamedTuple):
    """One inbox in one store.

    Args:
        holding: what the store does for it; None: there is none.
        live: what waits, and whether it is marked.
        fates: what is remembered of ids.
        floor: ids of the past are forgotten here.
        doubt: what was sent in the past is marked: another relay has forgotten its ids.
        session: "agent", "courier" or "", and what it was ``given``.
    """

    holding: InboxRole | None = None
    live: frozenset[tuple[Eid, bool]] = frozenset()
    fates: frozenset[tuple[Eid, Disposition]] = frozenset()
    floor: bool = False
    doubt: bool = False
    session: str = ""
    given: frozenset[Eid] = NO_EIDS

    def disposition(self, eid: Eid) -> Disposition | None:
        return dict(self.fates).get(eid)

    def with_fate(self, eid: Eid, disposition: Disposition) -> Box:
        kept = {one: old for one, old in self.fates if one != eid}
        return self._replace(fates=frozenset({*kept.items(), (eid, disposition)}))

    @property
    def eids(self) -> frozenset[Eid]:
        return frozenset(eid for eid, _ in self.live)

    def is_marked(self, eid: Eid) -> bool:
        """As it would be handed over now."""
        return self.doubt or self.holding is InboxRole.UNCERTAIN or (eid, True) in self.live

    def mark(self, eids: frozenset[Eid]) -> Box:
        return self._replace(live=frozenset((eid, old or eid in eids) for eid, old in self.live))

    def readable(self) -> dict[Eid, bool]:
        """Return what may be handed to the session now, and whether marked."""
        return {eid: self.is_marked(eid) for eid in self.eids - self.given}

    # ------------------------------------------------------------ what comes and goes

    def queue(self) -> Box:
        """One that is made for mail for elsewhere."""
        return self._replace(holding=InboxRole.FORWARDING)

    def accept(self, item: Item, *, late: bool = False) -> tuple[Box, Outcome] | None:
        """Store it, or say that it was; None: not here."""
        if self.holding is None or (self.holding is InboxRole.FORWARDING and item.via):
            return None
        disposition = self.disposition(item.eid)
        if disposition is Disposition.STORED:
            brings = item.marked and item.moving
            return (self.mark(frozenset({item.eid})) if brings else self), DUP
        is_back = disposition is Disposition.FORWARDED and self.holding is not InboxRole.FORWARDING
        if not (disposition is None or disposition is Disposition.MAYBE_SEEN or is_back):
            return self, DUP
        is_forgotten = self.floor and disposition is None
        if late or (is_forgotten and not item.moving):
            return self, LATE if late else STALE
        doubtful = (
            is_forgotten or disposition is Disposition.MAYBE_SEEN or (is_back and not item.moving)
        )
        kept = self._replace(live=self.live | {(item.eid, item.marked or doubtful)})
        return kept.with_fate(item.eid, Disposition.STORED), STORED

    def end(self, eid: Eid, disposition: Disposition) -> Box:
        left = frozenset(entry for entry in self.live if entry[0] != eid)
        return self._replace(live=left, given=self.given - {eid}).with_fate(eid, disposition)

    def forget(self) -> Box:
        """The memory is over its budget: what is finished is not known any more."""
        kept = frozenset(one for one in self.fates if one[1] is Disposition.STORED)
        return self._replace(fates=kept, floor=True)

    # ------------------------------------------------------------ sessions

    def open(self, who: str) -> Box:
        return self.close()._replace(session=who)

    def close(self) -> Box:
        """Return what it was given is marked, as nobody knows what became of it."""
        return self.mark(self.given)._replace(session="", given=NO_EIDS)

    def give(self, eid: Eid) -> Box:
        return self._replace(given=self.given | {eid})

    # ------------------------------------------------------------ hand-offs

    def hold(self, holding: InboxRole) -> Box:
        """Return what a record alone does to an inbox that no side is written of."""
        return self if self.holding is holding else self.close()._replace(holding=holding)

    def change(self, before: MigrationSide, step: Transition) -> Box:
        """Carry out a step."""
        box = self.close() if ends_session(self.holding, before, step) else self
        if step.mark_present:
            box = box.mark(box.eids)
        box = box._replace(holding=step.side.role)
        return box.remember(step.imports) if step.imports is not None else box

    def remember(self, page: DigestPage) -> Box:
        """Another relay's word marks, and does nothing else."""
        box = self._replace(doubt=self.doubt or page.dedup_horizon >= 0)
        for eid in named(page.maybe_seen):
            disposition = box.disposition(eid)
            if disposition is None or disposition is Disposition.FORWARDED:
                box = box.with_fate(eid, Disposition.MAYBE_SEEN)
            elif disposition is Disposition.STORED:
                box = box.mark(frozenset({eid}))
        return box

    def doubts(self) -> tuple[list[bytes], int]:
        """Return a digest: ids that the agent may have seen, and a horizon of forgotten ones."""
        told = {eid for eid, disposition in self.fates if disposition in TOLD}
        marked = {eid for eid, _ in self.live if self.is_marked(eid)}
        ids = sorted(packed(eid) for eid in told | marked)
        return ids, HOUR if self.floor or self.doubt else -1


def ends_session(holding: InboxRole | None, before: MigrationSide, step: Transition) -> bool:
    """A step after which another may read the inbox than before, or under another hand-off."""
    now = step.side.role
    hands_over = step.side.mode is Mode.FROZEN and before.handoff != step.side.handoff
    return hands_over or (holding is not now and not {holding, now} <= HOMES)


# ---------------------------------------------------------------- ids


def real(eid: Eid) -> Eid:
    """Return what a store calls it."""
    return Eid(b64encode(hashlib.sha256(eid.encode()).digest()))


def key_of(eid: Eid) -> bytes:
    """Of its dedupe key."""
    return hashlib.sha256(b"key" + eid.encode()).digest()[:16]


def packed(eid: Eid, of: Eid | None = None) -> bytes:
    """An id in a digest; ``of``: as if it were of that envelope."""
    digest = hashlib.sha256((of or eid).encode()).digest()
    return struct.pack(">I16s16s", HOUR, key_of(eid), digest[:16])


_KEY_ENDS = 20
_EIDS = {packed(eid)[:_KEY_ENDS]: eid for eid in (Eid(f"m{n}") for n in range(10))}


def named(doubts: bytes) -> list[Eid]:
    """The ids of a page."""
    parts = [
        doubts[at : at + MAYBE_SEEN_ID_BYTES] for at in range(0, len(doubts), MAYBE_SEEN_ID_BYTES)
    ]
    return [_EIDS[part[:_KEY_ENDS]] for part in parts]
