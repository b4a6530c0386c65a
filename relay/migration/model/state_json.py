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
        "missing": sorted(side.awaiting_digests),
        "digested": side.digest_received,
        "collecting": (
            [side.partial_digest.digest_id.hex(), side.partial_digest.pages]
            if side.partial_digest
            else None
        ),
        "sources": sorted(side.digest_sources),
        "handed": side.digest_acked,
        "forked": _version(side.fork_version) if side.fork_version else None,
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
    partial_digest = said.get("collecting")
    handoff = said.get("handoff")
    side = MigrationSide(
        me=me,
        mode=Mode(said["mode"]),
        record=_read_ref(said.get("record")),
        order_seq=said.get("order_seq", 0),
        handoff=Handoff(handoff[0], Did(handoff[1])) if handoff else None,
        pending=_read_ref(said.get("pending")),
        since=said.get("since", 0),
        awaiting_digests=frozenset(map(Did, said.get("missing", ()))),
        digest_received=said.get("digested", False),
        partial_digest=(
            PartialDigest(bytes.fromhex(partial_digest[0]), partial_digest[1])
            if partial_digest
            else None
        ),
        digest_sources=frozenset(map(Did, said.get("sources", ()))),
        digest_acked=said.get("handed", False),
        fork_version=_read_version(said["forked"]) if said.get("forked") else None,
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
