"""Endpoint records: an agent's own signed word on where its mail goes (PROTOCOL.md §7.1, §7.2).

Rules of the file: a record is a value; records of one agent are totally ordered by
:attr:`EndpointRecord.order`, and :func:`merge` takes the greater one, so it is a join.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from relay.core import jws as jose
from relay.core.errors import ErrorCode, ProtocolError, Refusal
from relay.core.identity import SigningKey, VerificationKey, parse_did
from relay.core.ids import ORIGIN, Did, Timestamp

TYP: Final = "agent-endpoints+jws"
MAX_BYTES: Final = 4096
MAX_LIFETIME_S: Final = 7 * 24 * 3600
MAX_RELAYS: Final = 5
MAX_HANDLES: Final = 8
MAX_URL: Final = 512
SKEW_S: Final = 300
SEQ_SLACK_S: Final = 600
STALE_SERVED_S: Final = 90 * 24 * 3600
DEFAULT_TTL_S: Final = 300

Status = Literal["active", "parked"]


@dataclass(frozen=True, slots=True)
class Home:
    """One of an agent's relays; a lower ``prio`` is tried first."""

    did: Did
    url: str
    prio: int = 0


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    """A record whose form is right; :func:`verify` tells whether it is the agent's."""

    jws: jose.Jws
    did: Did
    kv: int
    seq: int
    issued_at: int
    expires_at: int
    status: Status
    relays: tuple[Home, ...]
    handles: tuple[str, ...]
    enc: bytes | None

    @property
    def order(self) -> tuple[int, int, bytes]:
        """(kv, seq, SHA-256 of the signing input): greater wins."""
        return (self.kv, self.seq, hashlib.sha256(self.jws.signing_input).digest())

    def names(self, relay: Did) -> bool:
        """Whether ``relay`` is one of the agent's homes."""
        return any(home.did == relay for home in self.relays)


def parse(compact: str) -> EndpointRecord:
    """Read a record's form.

    Raises:
        ProtocolError: ``bad_frame``, or ``unsupported`` for another DID method or version.
    """
    try:
        return _parse(compact)
    except jose.UnsupportedError as exc:
        raise ProtocolError(ErrorCode.UNSUPPORTED, f"record: {exc}") from exc
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_FRAME, f"record: {exc}") from exc


def _parse(compact: str) -> EndpointRecord:
    jws = jose.parse(compact, typ=TYP, max_bytes=MAX_BYTES)
    members = jws.members()
    if members.integer("v") != 1:
        raise jose.UnsupportedError("v must be 1")
    did = Did(members.text("did", most=512))
    if jws.header.kid != parse_did(did).kid:
        raise ValueError("kid is not a key of did")
    issued = members.integer("iat")
    expires = members.integer("exp", least=issued + 1, most=issued + MAX_LIFETIME_S)
    members.integer("ttl", least=1, most=MAX_LIFETIME_S)
    status = members.text("status", most=16)
    if status not in {"active", "parked"}:
        raise ValueError("status must be active or parked")
    return EndpointRecord(
        jws=jws,
        did=did,
        kv=members.integer("kv", least=1, most=1),
        seq=members.integer("seq", most=(issued + SEQ_SLACK_S) * 1000),
        issued_at=issued,
        expires_at=expires,
        status=status,  # type: ignore[arg-type]  # checked above
        relays=tuple(_home(home) for home in members.array("relays", most=MAX_RELAYS)),
        handles=_handles(members.optional_array("handles", most=MAX_HANDLES)),
        enc=members.base64("enc", size=32) if members.has("enc") else None,
    )


def _home(value: object) -> Home:
    members = jose.Members(value)
    did = Did(members.text("did", most=512))
    parse_did(did)
    url = members.text("url", most=MAX_URL)
    if ORIGIN.fullmatch(url) is None:
        raise ValueError("a relay's url is an origin: https://host[:port]")
    return Home(did, url, members.integer("prio", most=1000))


def _handles(values: list[object]) -> tuple[str, ...]:
    handles = tuple(value for value in values if isinstance(value, str) and len(value) <= MAX_URL)
    if len(handles) != len(values):
        raise ValueError("handles must be strings")
    return handles


def verify(record: EndpointRecord, key: VerificationKey, now: Timestamp) -> Refusal | None:
    """Whether the agent signed it and it is not from the future (PROTOCOL.md §7.2)."""
    if record.issued_at > now + SKEW_S:
        return Refusal(ErrorCode.NOT_YET_VALID, "the record's iat is in the future")
    if record.jws.header.kid != key.kid or not jose.is_signed_by(record.jws, key.public_key):
        return Refusal(ErrorCode.BAD_SIGNATURE, "the record is not signed by a key of its did")
    return None


def merge(held: EndpointRecord | None, other: EndpointRecord) -> EndpointRecord:
    """The newer of two records of one agent: commutative, associative, idempotent."""
    return other if held is None or other.order > held.order else held


def is_stale(record: EndpointRecord, now: Timestamp) -> bool:
    """Past its ``exp``: still good for routing and order, shown as stale (PROTOCOL.md §7.3)."""
    return record.expires_at <= now


def sign(
    key: SigningKey,
    relays: Sequence[Home],
    *,
    now: Timestamp,
    newest_seq: int = 0,
    handles: Sequence[str] = (),
    status: Status = "active",
) -> str:
    """Sign the next record of ``key``'s agent.

    Args:
        key: the agent.
        relays: its homes, at most five.
        now: Unix seconds.
        newest_seq: the highest seq seen of this agent; the new one is above it.
        handles: names that resolve to this DID.
        status: ``parked`` ends routing but keeps the inbox.
    """
    payload = {
        "v": 1,
        "did": key.did,
        "kv": 1,
        "seq": max(newest_seq + 1, int(now * 1000)),
        "iat": int(now),
        "exp": int(now) + MAX_LIFETIME_S,
        "ttl": DEFAULT_TTL_S,
        "status": status,
        "relays": [{"did": home.did, "url": home.url, "prio": home.prio} for home in relays],
        "drain": [],
        "handles": list(handles),
    }
    return jose.sign(payload, typ=TYP, kid=key.kid, key=key.sign)
