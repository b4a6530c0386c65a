"""What an agent knows of its own change of relays: how far it is, and what it came to.

Rules of the file: values only. A :class:`Move` lies in the state file before anything of it is
said, so that a life after a crash goes on with the same order and the same record, byte for byte.

::

    PREPARING ──▶ FREEZING ──▶ DIGEST ──▶ PUBLISHING ──▶ COPYING ──▶ DONE
        │             └───────────┴─── cancelled ──▶ CANCELLING ──┐
        └── the target says no ───────────────────────────────────┴──▶ DROPPED
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Final, NamedTuple, Self

from relay.protocol import jws as jose
from relay.protocol import migration_order
from relay.protocol.endpoint_record import Home
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
)
from relay.protocol.ids import (
    Eid,
    Seq,
)
from relay.protocol.migration_order import MigrationOrder
from relay.protocol.migration_statement import Tally
from relay.protocol.types import (
    Question,
    Waiting,
)

KEY_BYTES: Final = 16
_EID: Final = re.compile(r"[A-Za-z0-9_-]{43}")


class Stage(StrEnum):
    """What is being done; it is noted before that is asked for."""

    PREPARING = "preparing"
    FREEZING = "freezing"
    DIGEST = "digest"
    PUBLISHING = "publishing"
    COPYING = "copying"
    DONE = "done"
    CANCELLING = "cancelling"
    DROPPED = "dropped"


_OVER: Final = frozenset({Stage.DONE, Stage.DROPPED})
_UNPUBLISHED: Final = frozenset({
    Stage.PREPARING, Stage.FREEZING, Stage.DIGEST, Stage.PUBLISHING,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Move:
    """A change of relays, as it lies in the state file.

    Args:
        order: signed; the record that will be published is in it.
        stage: how far it is.
        began_at: Unix seconds.
        left_at: when nothing was delivered any more; 0: not yet.
        arrived_at: when the new home could deliver; 0: not yet.
        is_held: the source may have stopped delivering, under this order or the one before.
        is_listed: what waited at the source is noted.
        without_source: it goes on without the source.
        source_said: the last statement of the source, signed.
        target_said: the last statement of the target, signed.
    """

    order: str
    stage: Stage
    began_at: float
    left_at: float = 0.0
    arrived_at: float = 0.0
    is_held: bool = False
    is_listed: bool = False
    without_source: bool = False
    source_said: str | None = None
    target_said: str | None = None

    @property
    def said(self) -> MigrationOrder:
        """The order, read."""
        return migration_order.parse(self.order)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to do."""
        return self.stage in _OVER

    @property
    def binds(self) -> bool:
        """Whether the agent signs and publishes no record but the order's own."""
        return self.stage in _UNPUBLISHED

    @property
    def rests(self) -> bool:
        """Whether there is to be no session at the source."""
        return self.binds and self.is_held

    @property
    def handoffs(self) -> frozenset[str]:
        """Ids under which the source may hand over: the order's, or that of its record."""
        order = self.said
        return frozenset({order.id, order.record.version.handoff_id})

    def encode(self) -> str:
        """As text."""
        return jose.dumps(asdict(self)).decode()

    @classmethod
    def decode(cls, text: str) -> Self:
        """What :meth:`encode` wrote.

        Raises:
            ValueError: it did not.
        """
        said = jose.loads_own(text.encode())
        move = cls(**{**said, "stage": Stage(said["stage"])})
        migration_order.parse(move.order)
        return move


class Progress(NamedTuple):
    """Where a migration stands.

    Args:
        stage: what is being done.
        done: of ``copying``: envelopes that the target has taken over, or that have ended.
        total: of those; 0: it is not counted.
        detail: what it waits for, for a person; "" = nothing special.
    """

    stage: Stage
    done: int = 0
    total: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Moved:
    """What a migration came to.

    Args:
        id: of the hand-off.
        source: where the inbox was.
        target: where it is.
        was: what waited when the source stopped delivering.
        late: what the source has taken since.
        moved: what the target took over, by its signed receipts.
        acked: by the agent, at the source; only where it came back.
        expired: ended so, with a bounce.
        refused: the target will never take it; with a bounce.
        corrupt: damaged at the source; with a bounce.
        waiting: still at the source; it follows by itself. None: the source does not say.
        kept: what the target got and had not had.
        dups: what it got and had already.
        digest: b64url SHA-256 over the sorted eids of what waited at the source; None: not known.
        listed: how many those were.
        missing: of those, the ones that are nowhere: not at the target, and not ended.
        complaints: what does not fit together, a sentence each; () = all of it does.
        seconds: from the order to here.
        without_delivery_s: from the end of delivery at the source to its beginning at the target.
        source_said: the source's signed statement
        (:func:`relay.protocol.migration_statement.verify`).
        target_said: the target's.
    """

    id: str
    source: Home
    target: Home
    was: int = 0
    late: int = 0
    moved: int = 0
    acked: int = 0
    expired: int = 0
    refused: int = 0
    corrupt: int = 0
    waiting: int | None = None
    kept: int = 0
    dups: int = 0
    digest: str | None = None
    listed: int = 0
    missing: tuple[Eid, ...] = ()
    complaints: tuple[str, ...] = ()
    seconds: float = 0.0
    without_delivery_s: float = 0.0
    source_said: str | None = None
    target_said: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all that was there is at the target or has ended, and all of it fits."""
        return self.waiting == 0 and not self.missing and not self.complaints

    def counting(self, source: Tally | None, target: Tally | None) -> Self:
        """With the counts that the two relays state."""
        told = source or Tally()
        names = ("was", "late", "moved", "acked", "expired", "refused", "corrupt")
        counts: dict[str, Any] = {name: getattr(told, name) for name in names}
        counts["waiting"] = None if source is None else source.waiting
        if target is not None:
            counts |= {"kept": target.kept, "dups": target.dups}
        return replace(self, **counts)

    def encode(self) -> str:
        """As text."""
        return jose.dumps(asdict(self)).decode()

    @classmethod
    def decode(cls, text: str) -> Self:
        """What :meth:`encode` wrote."""
        said = jose.loads_own(text.encode())
        lists = {name: tuple(said[name]) for name in ("missing", "complaints")}
        ends = {name: Home(**said[name]) for name in ("source", "target")}
        return cls(**{**said, **lists, **ends})


# ---------------------------------------------------------------- what waits, on the wire


def read_waiting(value: object) -> Waiting:
    """One item of an inventory: [seq, eid, hour, key, size, expires].

    Raises:
        ProtocolError: it is none.
    """
    match value:
        case [int(seq), str(eid), int(hour), str(key), int(size), int(expires_at)]:
            if seq < 1 or size < 0 or not _EID.fullmatch(eid):
                # an eid is shown to a person at a terminal
                raise ProtocolError(ErrorCode.BAD_FRAME, "an inventory names what is no envelope")
            question = Question(_key(key), hour)
            return Waiting(Seq(seq), Eid(eid), question, size, expires_at)
        case _:
            raise ProtocolError(ErrorCode.BAD_FRAME, "an inventory says what cannot be")


def _key(text: str) -> bytes:
    try:
        key = jose.b64decode(text)
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_FRAME, f"an inventory: {exc}") from exc
    if len(key) != KEY_BYTES:
        raise ProtocolError(ErrorCode.BAD_FRAME, "an inventory names a key of a wrong length")
    return key


def asked(item: Waiting) -> list[Any]:
    """One item of a ``find``: [hour, key, eid]."""
    return [item.question.hour, jose.b64encode(item.question.dedupe_key), item.eid]
