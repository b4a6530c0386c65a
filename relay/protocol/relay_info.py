"""Relay information: a relay's own signed word on what it is and where (PROTOCOL.md §8).

As with endpoint records, anybody may pass it on and nobody can forge it;
:func:`newest` is a join.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, Literal, get_args

from relay.protocol import jws as jose
from relay.protocol import signed
from relay.protocol.did import SigningKey, VerificationKey
from relay.protocol.errors import ErrorCode, Refusal
from relay.protocol.ids import Did, Timestamp

TYP: Final = "agent-relay-info+jws"
MAX_INFO_BYTES: Final = 4096
INFO_LIFETIME_S: Final = 7 * 24 * 3600
LIMIT_NAMES: Final = ("jws", "body", "frame", "envelopes")

Federation = Literal["closed", "open", "off"]
"""Links only with relays that the operator added, with any relay, or with none."""
_FEDERATION: Final = frozenset(get_args(Federation))


@dataclass(frozen=True, slots=True)
class RelayDescription:
    """A relay's description of itself, from its live configuration.

    Args:
        url: its origin, as in ``hello``.
        software: what runs.
        version: of the software.
        limits: as in ``hello``.
        retention_s: the longest lifetime of an envelope.
        registration: who gets an inbox.
        federation: with whom it keeps links.
        durability: as in receipts.
        peers: how many relays it keeps links to.
        contact: how to reach the operator.
    """

    url: str
    software: str
    version: str
    limits: dict[str, int]
    retention_s: int
    registration: str
    federation: Federation
    durability: str
    peers: int = 0
    contact: str | None = None


@dataclass(frozen=True, slots=True)
class RelayInfo:
    """Relay information whose form is right; :func:`verify` tells whether it is the relay's."""

    jws: jose.Jws
    key: VerificationKey
    issued_at: int
    expires_at: int
    description: RelayDescription

    @property
    def did(self) -> Did:
        """The DID of the relay."""
        return self.key.did

    @property
    def version(self) -> tuple[int, bytes]:
        """(iat, SHA-256 of the signing input): greater wins."""
        return (self.issued_at, hashlib.sha256(self.jws.signing_input).digest())


def read_limits(members: jose.Members) -> dict[str, int]:
    """The limits that are known here.

    Raises:
        ValueError: none, or no integers.
    """
    limits = members.object("limits")
    return {name: limits.integer(name) for name in LIMIT_NAMES if limits.has(name)}


def parse(compact: str) -> RelayInfo:
    """Read the form of relay information.

    Raises:
        ProtocolError: ``bad_frame``, or ``unsupported`` for another DID method or version.
    """
    return signed.read("relay information", _parse, compact)


def _parse(compact: str) -> RelayInfo:
    jws, members = signed.own_members(compact, typ=TYP, max_bytes=MAX_INFO_BYTES)
    key = signed.read_signer(jws, members)
    issued, expires = signed.read_lifetime(members, INFO_LIFETIME_S)
    return RelayInfo(jws, key, issued, expires, _description(members))


def _description(members: jose.Members) -> RelayDescription:
    return RelayDescription(
        url=signed.read_origin(members),
        software=members.text("software", limit=64),
        version=members.text("version", limit=64),
        limits=read_limits(members),
        retention_s=members.integer("retention_s"),
        registration=members.text("registration", limit=16),
        federation=members.one_of("federation", _FEDERATION),
        durability=members.text("durability", limit=16),
        peers=members.integer("peers"),
        contact=members.optional_text("contact", limit=512),
    )


def verify(info: RelayInfo, now: Timestamp) -> Refusal | None:
    """Refuse information that another signed, or that does not hold now."""
    if refusal := signed.refuse_future("the relay information", info.issued_at, now):
        return refusal
    if info.expires_at <= now - signed.MAX_SKEW_S:
        return Refusal(ErrorCode.EXPIRED, "the relay information has expired")
    if not jose.is_signed_by(info.jws, info.key.public_key):
        return Refusal(ErrorCode.BAD_SIGNATURE, f"relay information: not signed by {info.did}")
    return None


def newest(held: RelayInfo | None, other: RelayInfo) -> RelayInfo:
    """The newer of two of one relay: commutative, associative, idempotent."""
    return other if held is None or other.version > held.version else held


def sign(key: SigningKey, description: RelayDescription, now: Timestamp) -> str:
    """Sign a relay's description of itself; it holds for seven days."""
    payload = {
        "v": 1,
        "did": key.did,
        "iat": int(now),
        "exp": int(now) + INFO_LIFETIME_S,
        "url": description.url,
        "software": description.software,
        "version": description.version,
        "limits": description.limits,
        "retention_s": description.retention_s,
        "registration": description.registration,
        "federation": description.federation,
        "durability": description.durability,
        "peers": description.peers,
        "contact": description.contact,
    }
    return jose.sign(payload, typ=TYP, kid=key.kid, key=key.sign)
