"""Endpoint records: an agent's own signed word on where its mail goes (PROTOCOL.md §7.1, §7.2).

A record is a value. At any one moment the records of one agent are totally ordered
(:meth:`RecordVersion.rank`). :func:`merge` takes the greater one, so it is a join.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from relay.protocol import jws as jose
from relay.protocol import signed
from relay.protocol.did import SigningKey, VerificationKey, parse_did
from relay.protocol.errors import ErrorCode, Refusal
from relay.protocol.ids import MAX_DID_BYTES, MAX_URL_CHARS, Did, Timestamp

TYP: Final = "agent-endpoints+jws"
MAX_RECORD_BYTES: Final = 4096
RECORD_LIFETIME_S: Final = 7 * 24 * 3600
MAX_HOMES: Final = 5
MAX_HANDLES: Final = 8
SEQ_SLACK_S: Final = 600
STALE_SERVED_S: Final = 90 * 24 * 3600
DEFAULT_TTL_S: Final = 300
MAX_AHEAD_S: Final = signed.MAX_SKEW_S + SEQ_SLACK_S
"""How far a ``seq`` may be ahead of the clock of whoever judges it; beyond, it is void."""

RecordStatus = Literal["active", "parked"]
Comparison = Literal["newer", "same", "older", "equivocal"]
"""A record compared with the current one; ``equivocal``: the same kv and seq, and other bytes."""


class RecordVersion(NamedTuple):
    """The version of a record; of two records of one agent the greater wins (PROTOCOL.md §7.2).

    ``digest`` is SHA-256 of the signing input.
    """

    kv: int
    seq: int
    digest: bytes

    @property
    def handoff_id(self) -> str:
        """The id under which a relay hands mail over because of this record, without an order."""
        return f"record:{self.kv}:{self.seq}:{self.digest.hex()}"

    def rank(self, now: Timestamp) -> tuple[bool, int, int, bytes]:
        """Return the value that versions are compared by.

        A ``seq`` that no correct clock can have produced ranks below all others: a record made
        while a clock was wrong does not lock its agent out (PROTOCOL.md §7.2).
        """
        return (self.seq <= (now + MAX_AHEAD_S) * 1000, *self)


@dataclass(frozen=True, slots=True)
class Home:
    """One of an agent's relays; a lower ``prio`` is tried first."""

    did: Did
    url: str
    prio: int = 0


@dataclass(frozen=True, slots=True)
class FormerHome:
    """A relay that the agent has left; it may still hold mail ``until`` then."""

    did: Did
    url: str
    until: int


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    """A record whose form is right; :func:`verify` tells whether it is the agent's."""

    jws: jose.Jws
    did: Did
    kv: int
    seq: int
    issued_at: int
    expires_at: int
    status: RecordStatus
    relays: tuple[Home, ...]
    handles: tuple[str, ...]
    enc: bytes | None
    drain: tuple[FormerHome, ...] = ()

    @property
    def version(self) -> RecordVersion:
        """The version; the greater of two wins."""
        return RecordVersion(self.kv, self.seq, hashlib.sha256(self.jws.signing_input).digest())

    def names(self, relay: Did) -> bool:
        """Return True if ``relay`` is one of the agent's homes."""
        return any(home.did == relay for home in self.relays)


def parse(compact: str) -> EndpointRecord:
    """Read a record's form.

    Raises:
        ProtocolError: ``bad_frame``, or ``unsupported`` for another DID method or version.
    """
    return signed.read("record", _parse, compact)


def _parse(compact: str) -> EndpointRecord:
    jws, members = signed.own_members(compact, typ=TYP, max_bytes=MAX_RECORD_BYTES)
    did = signed.read_signer(jws, members).did
    issued, expires = signed.read_lifetime(members, RECORD_LIFETIME_S)
    members.integer("ttl", minimum=1, limit=RECORD_LIFETIME_S)
    status = members.text("status", limit=16)
    if status not in {"active", "parked"}:
        raise ValueError("status must be active or parked")
    return EndpointRecord(
        jws=jws,
        did=did,
        kv=members.integer("kv", minimum=1, limit=1),
        seq=members.integer("seq", limit=(issued + SEQ_SLACK_S) * 1000),
        issued_at=issued,
        expires_at=expires,
        status=status,  # type: ignore[arg-type]  # checked above
        relays=tuple(_home(home) for home in members.array("relays", limit=MAX_HOMES)),
        handles=_handles(members.optional_array("handles", limit=MAX_HANDLES)),
        enc=members.base64("enc", size=32) if members.has("enc") else None,
        drain=tuple(_left(left) for left in members.optional_array("drain", limit=MAX_HOMES)),
    )


def _home(value: object) -> Home:
    members = jose.Members(value)
    return Home(*read_relay(members), members.integer("prio", limit=1000))


def _left(value: object) -> FormerHome:
    members = jose.Members(value)
    return FormerHome(*read_relay(members), members.integer("until"))


def read_relay(members: jose.Members) -> tuple[Did, str]:
    """Read the DID and the origin of a relay.

    Raises:
        ValueError: one of them has another form.
    """
    return parse_did(members.text("did", limit=MAX_DID_BYTES)).did, signed.read_origin(members)


def _handles(values: list[object]) -> tuple[str, ...]:
    handles = tuple(
        value for value in values if isinstance(value, str) and len(value) <= MAX_URL_CHARS
    )
    if len(handles) != len(values):
        raise ValueError("handles must be strings")
    return handles


def verify(record: EndpointRecord, key: VerificationKey, now: Timestamp) -> Refusal | None:
    """Refuse a record that another signed, from the future, or long past its end.

    Past its ``exp`` it is stale, which is no reason to refuse it (PROTOCOL.md §7.2, §7.3).
    """
    if refusal := signed.refuse_future("the record", record.issued_at, now):
        return refusal
    if is_purgeable(record.expires_at, now):
        return Refusal(ErrorCode.EXPIRED, "the record is stale for more than 90 days")
    if not signed.is_by(record.jws, key):
        return Refusal(ErrorCode.BAD_SIGNATURE, "the record is not signed by a key of its did")
    return None


def compare_versions(
    current: RecordVersion | None, other: RecordVersion, now: Timestamp
) -> Comparison:
    """Compare the version of a record with that of the current one."""
    if current is None:
        return "newer"
    if current == other:
        return "same"
    if current[:2] == other[:2]:
        return "equivocal"
    return "newer" if other.rank(now) > current.rank(now) else "older"


def merge(
    current: EndpointRecord | None, other: EndpointRecord, now: Timestamp | None = None
) -> EndpointRecord:
    """Return the newer of two records of one agent: commutative, associative, idempotent.

    Args:
        current: the record held, if any.
        other: the record that came.
        now: voids versions too far ahead; None voids none.
    """
    if current is None:
        return other
    if now is None:
        return other if other.version > current.version else current
    return other if other.version.rank(now) > current.version.rank(now) else current


def is_stale(expires_at: int, now: Timestamp) -> bool:
    """Return True past ``exp``: still good for routing and order (PROTOCOL.md §7.3)."""
    return expires_at <= now


def is_purgeable(expires_at: int, now: Timestamp) -> bool:
    """Return True if it is stale for so long that a relay may delete it (PROTOCOL.md §7.3)."""
    return expires_at + STALE_SERVED_S <= now


def sign(
    key: SigningKey,
    relays: Sequence[Home],
    *,
    now: Timestamp,
    newest_seq: int = 0,
    handles: Sequence[str] = (),
    status: RecordStatus = "active",
    drain: Sequence[FormerHome] = (),
    enc: bytes | None = None,
) -> str:
    """Sign the next record of ``key``'s agent.

    Args:
        key: the agent.
        relays: its homes, at most five.
        now: Unix seconds. A clock that was set back is not followed further than ``newest_seq``
            allows: the record would have a seq that no reader takes.
        newest_seq: the highest seq seen of this agent; the new one is above it.
        handles: names that resolve to this DID.
        status: ``parked`` ends routing but keeps the inbox.
        drain: relays that it has left, at most five.
        enc: an X25519 key to seal for, instead of the one that follows from the DID.
    """
    now = Timestamp(max(now, newest_seq / 1000 - SEQ_SLACK_S + 1))
    payload: dict[str, object] = {
        "v": 1,
        "did": key.did,
        "kv": 1,
        "seq": max(newest_seq + 1, int(now * 1000)),
        "iat": int(now),
        "exp": int(now) + RECORD_LIFETIME_S,
        "ttl": DEFAULT_TTL_S,
        "status": status,
        "relays": [{"did": home.did, "url": home.url, "prio": home.prio} for home in relays],
        "drain": [{"did": left.did, "url": left.url, "until": left.until} for left in drain],
        "handles": list(handles),
    }
    if enc is not None:
        payload["enc"] = jose.b64encode(enc)
    return jose.sign(payload, typ=TYP, kid=key.kid, key=key.sign)
