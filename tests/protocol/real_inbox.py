"""The real inbox (:mod:`relay.reference.inbox`) behind the interface of ``model_inbox.py``.

Two inboxes are one state where no later event can tell them apart: fences and seqs grow for ever,
and are left out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from relay.inbox.model.store_contract import max_imported_ids
from relay.inbox.model.types import (
    KNOWN_BY,
    Accepted,
    Disposition,
    Forwarded,
    InboxAck,
    InboxLimits,
    InboxRole,
    Page,
)
from relay.migration.model.state import MigrationSide, Transition
from relay.protocol.envelope import StoredEnvelope
from relay.protocol.errors import ErrorCode, Refusal
from relay.protocol.ids import AgentKey, Eid, Epoch, NodeId, Seq, Timestamp
from relay.protocol.types import Reason, Window
from relay.reference import handoff
from relay.reference.forwarding import Outboxes
from relay.reference.inbox import Inbox
from tests.protocol.model_inbox import (
    DUP,
    HOUR,
    LATE,
    NO_EIDS,
    STALE,
    STORED,
    Item,
    Outcome,
    ends_session,
    key_of,
    real,
)

ME, SENDER, PEER = AgentKey("me"), AgentKey("sender"), AgentKey("peer")
NODE = NodeId("node")
WINDOW = Window(1, 1_000)
"""A session is handed one at a time, so that the marks are as few as they can be."""
LIMITS = InboxLimits()
MOST_IDS = max_imported_ids(LIMITS)
EARLY = Timestamp(HOUR * 3600.0)
EXPIRES = HOUR * 3600 + 60
LATE_AT = Timestamp(EXPIRES + 1_000.0)
TAKEN = Forwarded(PEER, bytes(32))
REFUSALS = {
    ErrorCode.EXPIRED: LATE,
    ErrorCode.STALE_ID: STALE,
    ErrorCode.REPLAYED: STALE,
}

_asked: dict[tuple[Any, ...], Any] = {}


def forget_all() -> None:
    """Forget cached answers: a test has replaced the code behind them."""
    _asked.clear()


def dup(seq: Seq) -> Accepted:
    """An answer that keeps nothing."""
    return Accepted(seq, Epoch("e"), True, None)


class RealBox:
    """An immutable inbox: each step returns another one."""

    __slots__ = ("box", "floor", "given", "hash", "key", "session")

    def __init__(
        self,
        box: Inbox | None = None,
        session: str = "",
        given: frozenset[Eid] = NO_EIDS,
        *,
        floor: bool = False,
    ) -> None:
        self.box, self.session, self.given, self.floor = box, session, given, floor
        self.key = (_state(box), session, given, floor)
        self.hash = hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RealBox) and self.key == other.key

    def __hash__(self) -> int:
        return self.hash

    def _step(self, *about: Any, by: Callable[[Inbox], Any]) -> Any:
        """The same question has the same answer, so it is asked once."""
        asked = (self.key, *about)
        if asked not in _asked:
            box = (
                copy.deepcopy(self.box) if self.box else Inbox(ME, Epoch("e"), InboxRole.FORWARDING)
            )
            _asked[asked] = by(box)
        return _asked[asked]

    # ------------------------------------------------------------ questions

    @property
    def holding(self) -> InboxRole | None:
        return self.box.holding if self.box else None

    @property
    def live(self) -> frozenset[tuple[Eid, bool]]:
        return frozenset((eid, self._has_mark(eid)) for eid in self.eids)

    @property
    def fates(self) -> bool:
        return self.box is not None and len(self.box.dedupe) > 0

    @property
    def eids(self) -> frozenset[Eid]:
        return frozenset(named(item) for item in self.box.live.values()) if self.box else NO_EIDS

    def disposition(self, eid: Eid) -> Disposition | None:
        seen = self.box.dedupe.find(HOUR, key_of(eid)) if self.box else None
        return seen.disposition if seen else None

    def _seq(self, eid: Eid) -> Seq:
        assert self.box is not None
        return next(seq for seq, item in self.box.live.items() if named(item) == eid)

    def _has_mark(self, eid: Eid) -> bool:
        """Return True if it is marked, or may be in the hands of the session that goes on."""
        assert self.box is not None
        seq = self._seq(eid)
        return self.box.is_marked(seq, self.box.live[seq])

    def is_marked(self, eid: Eid) -> bool:
        return self._has_mark(eid)

    def readable(self) -> dict[Eid, bool]:
        """Return what may be handed to the session now, and whether marked: by a real read."""
        if self.box is None or self.box.session is None:
            return {}
        after = max((self._seq(eid) for eid in self.given), default=Seq(0))
        room = WINDOW.count - len(self.given)
        page = self.box.read(self.box.fence, after, Window(room, WINDOW.bytes), EARLY)
        assert isinstance(page, Page), page
        return {_NAMES[item.eid]: item.redelivered for item in page.items} if room else {}

    # ------------------------------------------------------------ steps

    def accept(self, item: Item, *, late: bool = False) -> tuple[RealBox, Outcome] | None:
        def by(box: Inbox) -> tuple[RealBox, Outcome] | None:
            if self.box is None:
                return None
            now = LATE_AT if late else EARLY
            done = box.accept(_stored(item), LIMITS, now, outboxes=Outboxes())
            if isinstance(done, Refusal):
                outcome = REFUSALS.get(done.code)
                return (self, outcome) if outcome else None
            assert isinstance(done, Accepted)
            return RealBox(
                box, self.session, self.given, floor=self.floor
            ), DUP if done.dup else STORED

        return self._step("accept", item, late, by=by)  # type: ignore[no-any-return]

    def queue(self) -> RealBox:
        return home(InboxRole.FORWARDING)

    def end(self, eid: Eid, disposition: Disposition) -> RealBox:
        def by(box: Inbox) -> RealBox:
            seq = self._seq(eid)
            if disposition is Disposition.EXPIRED:
                box.conclude([seq], Reason.EXPIRED, LATE_AT)
            elif disposition is Disposition.REFUSED:
                ack = InboxAck(box.fence, box.epoch, (), refuse=((seq, "expired"),))
                assert not isinstance(box.ack(ack, EARLY), Refusal)
            else:
                went = TAKEN if disposition is Disposition.FORWARDED else None
                ack = InboxAck(box.fence, box.epoch, (seq,), forwarded=went)
                assert not isinstance(box.ack(ack, EARLY), Refusal)
            return RealBox(box, self.session, self.given - {eid}, floor=self.floor)

        return self._step("end", eid, disposition, by=by)  # type: ignore[no-any-return]

    def forget(self) -> RealBox:
        def by(box: Inbox) -> RealBox:
            box.dedupe.shed()
            return RealBox(box, self.session, self.given, floor=True)

        return self._step("forget", by=by)  # type: ignore[no-any-return]

    def open(self, who: str) -> RealBox:
        def by(box: Inbox) -> RealBox:
            box.open_session(NODE, WINDOW)
            return RealBox(box, who, floor=self.floor)

        return self._step("open", who, by=by)  # type: ignore[no-any-return]

    def give(self, eid: Eid) -> RealBox:
        return RealBox(self.box, self.session, self.given | {eid}, floor=self.floor)

    def hold(self, holding: InboxRole) -> RealBox:
        """Return what a record alone does to an inbox that no side is written of."""

        def by(box: Inbox) -> RealBox:
            if self.box is None:
                return home(holding)
            box.set_home(home=holding is not InboxRole.FORWARDING, now=EARLY)
            return self._after(box)

        return self._step("hold", holding, by=by)  # type: ignore[no-any-return]

    def _after(self, box: Inbox) -> RealBox:
        goes_on = box.session is not None
        if goes_on:
            return RealBox(box, self.session, self.given, floor=self.floor)
        return RealBox(box, floor=self.floor)

    def change(self, before: MigrationSide, step: Transition) -> RealBox:
        """As ``change_handoff`` of a store."""

        def by(box: Inbox) -> RealBox:
            holding = step.side.role
            if self.box is None:
                box = Inbox(ME, Epoch("e"), holding)
            ends = ends_session(self.holding, before, step)
            handoff.hold(box, holding, ends_session=ends)
            if step.mark_present:
                handoff.mark_present(box)
            if step.imports is not None:
                handoff.learn_floor(box, step.imports.dedup_horizon)
                handoff.learn_doubts(box, step.imports.maybe_seen, MOST_IDS)
            return self._after(box)

        return self._step("change", before.handoff, step, by=by)  # type: ignore[no-any-return]

    def doubts(self) -> tuple[list[bytes], int]:
        """Return what a digest says."""
        if self.box is None:
            return [], -1
        return handoff.doubts(self.box), handoff.floor(self.box)


def home(holding: InboxRole = InboxRole.HOME) -> RealBox:
    """An inbox in which nothing is."""
    return RealBox(Inbox(ME, Epoch("e"), holding))


_NAMES: dict[Eid, Eid] = {}


def named(item: StoredEnvelope) -> Eid:
    """Return what the world calls it."""
    return _NAMES[item.eid]


def _stored(item: Item) -> StoredEnvelope:
    _NAMES[real(item.eid)] = item.eid
    return StoredEnvelope(
        inbox=ME,
        eid=real(item.eid),
        wire=b"w",
        sender=SENDER,
        dedupe_key=key_of(item.eid),
        hour=HOUR,
        created_at=HOUR * 3600,
        expires_at=EXPIRES,
        marked=item.marked,
        peer=PEER,
        via=PEER if item.via else None,
        moving=item.moving,
    )


def _state(box: Inbox | None) -> tuple[Any, ...]:
    if box is None:
        return ()
    ids = {
        (hour, key, seen.eid[:KNOWN_BY], seen.disposition, seen.seq in box.live)
        for hour, bucket in box.dedupe.hours.items()
        for key, seen in bucket.entries.items()
    }
    live = tuple(
        (item.eid, box.is_marked(seq, item), item.marked, seq <= box.handed)
        for seq, item in box.live.items()
    )
    left = box.fence < box.away.left_fence or box.away.left_fence > 0
    return (
        box.holding, live, frozenset(ids), box.dedupe.floor, box.mark_before, left,
        box.session is not None,
    )  # fmt: skip
