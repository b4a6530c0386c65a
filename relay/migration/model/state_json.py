"""JSON text of one side of a migration, as the store keeps it; no other relay reads it."""

from __future__ import annotations

from typing import Any, NamedTuple

from relay.migration.model.state import (
    Handoff,
    MigrationSide,
    PartialDigest,
    RecordRef,
)
from relay.protocol import jws as jose
from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.ids import Did
from relay.protocol.types import (
    Mode,
)


class MigrationRecord(NamedTuple):
    """A side and the order that it acts upon, as signed; "" = none."""

    side: MigrationSide
    order: str = ""


def encode(side: MigrationSide, order: str = "") -> str:
    """One line of JSON."""
    record, pending = _ref(side.record), _ref(side.pending)
    said: dict[str, Any] = {
        "mode": side.mode,
        "order": order,
        "record": record,
        "order_seq": side.order_seq,
        "handoff": list(side.handoff) if side.handoff else None,
        "pending": pending,
        "since": side.since,
        "missing": sorted(side.missing),
        "digested": side.digested,
        "collecting": (
            [side.collecting.whole.hex(), side.collecting.pages] if side.collecting else None
        ),
        "sources": sorted(side.sources),
        "handed": side.handed,
        "forked": _version(side.forked) if side.forked else None,
    }
    return jose.dumps({name: value for name, value in said.items() if value}).decode()


def decode(me: Did, text: str) -> MigrationRecord:
    """What :func:`encode` wrote.

    Raises:
        ValueError: it did not.
    """
    try:
        return _decode(me, jose.loads_own(text.encode()))
    except (KeyError, TypeError) as exc:
        raise ValueError("this text is no side of a hand-off") from exc


def _decode(me: Did, said: dict[str, Any]) -> MigrationRecord:
    collecting = said.get("collecting")
    handoff = said.get("handoff")
    side = MigrationSide(
        me=me,
        mode=Mode(said["mode"]),
        record=_read_ref(said.get("record")),
        order_seq=said.get("order_seq", 0),
        handoff=Handoff(handoff[0], Did(handoff[1])) if handoff else None,
        pending=_read_ref(said.get("pending")),
        since=said.get("since", 0),
        missing=frozenset(map(Did, said.get("missing", ()))),
        digested=said.get("digested", False),
        collecting=(
            PartialDigest(bytes.fromhex(collecting[0]), collecting[1]) if collecting else None
        ),
        sources=frozenset(map(Did, said.get("sources", ()))),
        handed=said.get("handed", False),
        forked=_read_version(said["forked"]) if said.get("forked") else None,
    )
    return MigrationRecord(side, said.get("order", ""))


def _version(version: RecordVersion) -> list[Any]:
    kv, seq, digest = version
    return [kv, seq, digest.hex()]


def _read_version(value: list[Any]) -> RecordVersion:
    kv, seq, digest = value
    return RecordVersion(kv, seq, bytes.fromhex(digest))


def _ref(ref: RecordRef | None) -> list[Any] | None:
    return None if ref is None else [*_version(ref.version), list(ref.homes)]


def _read_ref(value: list[Any] | None) -> RecordRef | None:
    if value is None:
        return None
    *version, homes = value
    return RecordRef(_read_version(version), tuple(map(Did, homes)))
