"""The JSON text of one side of a migration, as the store holds it; no other relay reads it."""

from __future__ import annotations

from typing import Any

from relay.migration.model.state import (
    Handoff,
    MigrationRecord,
    MigrationSide,
    PartialDigest,
    RecordRef,
)
from relay.protocol import jws
from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.ids import Did
from relay.protocol.types import Mode


def encode(side: MigrationSide, order: str = "") -> str:
    """Return one line of JSON; members with empty values are left out."""
    partial = side.partial_digest
    members: dict[str, Any] = {
        "mode": side.mode,
        "order": order,
        "record": _from_ref(side.record),
        "order_seq": side.order_seq,
        "handoff": list(side.handoff) if side.handoff else None,
        "pending": _from_ref(side.pending),
        "since": side.since,
        "missing": sorted(side.awaiting_digests),
        "digested": side.digest_received,
        "collecting": [partial.digest_id.hex(), partial.pages] if partial else None,
        "sources": sorted(side.digest_sources),
        "handed": side.digest_acked,
        "forked": _from_version(side.fork_version) if side.fork_version else None,
    }
    return jws.dumps({name: value for name, value in members.items() if value}).decode()


def decode(me: Did, text: str) -> MigrationRecord:
    """Read the text of :func:`encode`.

    Raises:
        ValueError: the text has another form.
    """
    try:
        return _decode(me, jws.loads_own(text.encode()))
    except (KeyError, TypeError) as exc:
        raise ValueError("this text is not the side of a migration") from exc


def _decode(me: Did, members: dict[str, Any]) -> MigrationRecord:
    partial, handoff = members.get("collecting"), members.get("handoff")
    side = MigrationSide(
        me=me,
        mode=Mode(members["mode"]),
        record=_to_ref(members.get("record")),
        order_seq=members.get("order_seq", 0),
        handoff=Handoff(handoff[0], Did(handoff[1])) if handoff else None,
        pending=_to_ref(members.get("pending")),
        since=members.get("since", 0),
        awaiting_digests=frozenset(map(Did, members.get("missing", ()))),
        digest_received=members.get("digested", False),
        partial_digest=PartialDigest(bytes.fromhex(partial[0]), partial[1]) if partial else None,
        digest_sources=frozenset(map(Did, members.get("sources", ()))),
        digest_acked=members.get("handed", False),
        fork_version=_to_version(members["forked"]) if members.get("forked") else None,
    )
    return MigrationRecord(side, members.get("order", ""))


def _from_version(version: RecordVersion) -> list[Any]:
    kv, seq, digest = version
    return [kv, seq, digest.hex()]


def _to_version(value: list[Any]) -> RecordVersion:
    kv, seq, digest = value
    return RecordVersion(kv, seq, bytes.fromhex(digest))


def _from_ref(ref: RecordRef | None) -> list[Any] | None:
    return None if ref is None else [*_from_version(ref.version), list(ref.homes)]


def _to_ref(value: list[Any] | None) -> RecordRef | None:
    if value is None:
        return None
    *version, homes = value
    return RecordRef(_to_version(version), tuple(map(Did, homes)))
