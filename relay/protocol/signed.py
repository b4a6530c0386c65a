"""The common part of all signed objects: version, signer and times (PROTOCOL.md §1).

An object is read by its form first; whether its signer made it, is a question of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from relay.protocol import jws as jose
from relay.protocol.did import VerificationKey, parse_did
from relay.protocol.errors import ErrorCode, ProtocolError, Refusal
from relay.protocol.ids import MAX_DID_BYTES, MAX_URL_CHARS, ORIGIN, Timestamp, in_utc

MAX_SKEW_S: Final = 300
"""How far apart two correct clocks may be."""

_T = TypeVar("_T")


def read(what: str, parse_one: Callable[[str], _T], compact: str) -> _T:
    """Read the form of a signed object with ``parse_one``; ``what`` names it in errors.

    Raises:
        ProtocolError: ``bad_frame``, or ``unsupported``: it may be right in another version.
    """
    try:
        return parse_one(compact)
    except jose.UnsupportedTypeError as exc:
        raise ProtocolError(ErrorCode.UNSUPPORTED, f"{what}: {exc}") from exc
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_FRAME, f"{what}: {exc}") from exc


def check_version(members: jose.Members) -> None:
    """Require version 1.

    Raises:
        ValueError: another version, or none.
    """
    if members.integer("v") != 1:
        raise jose.UnsupportedTypeError("v must be 1")


def own_members(compact: str, *, typ: str, max_bytes: int) -> tuple[jose.Jws, jose.Members]:
    """Take a JWS of version 1 apart; nothing about its signer is checked.

    Raises:
        ValueError: another form, purpose or version.
    """
    jws = jose.parse(compact, typ=typ, max_bytes=max_bytes)
    members = jws.members()
    check_version(members)
    return jws, members


def read_signer(jws: jose.Jws, members: jose.Members, name: str = "did") -> VerificationKey:
    """Read the DID that the object claims to come from; its ``kid`` must be a key of it.

    Raises:
        ValueError: no DID, or a key of another one.
    """
    key = parse_did(members.text(name, limit=MAX_DID_BYTES))
    if jws.header.kid != key.kid:
        raise ValueError(f"kid is not a key of {name}")
    return key


def read_lifetime(members: jose.Members, max_lifetime_s: int) -> tuple[int, int]:
    """Read ``iat`` and ``exp``.

    Raises:
        ValueError: not in this order, or too far apart.
    """
    issued = members.integer("iat")
    return issued, members.integer("exp", minimum=issued + 1, limit=issued + max_lifetime_s)


def read_origin(members: jose.Members) -> str:
    """Read ``url``, the origin of a relay.

    Raises:
        ValueError: not an origin.
    """
    url = members.text("url", limit=MAX_URL_CHARS)
    if ORIGIN.fullmatch(url) is None:
        raise ValueError("a relay's url is an origin: https://host[:port]")
    return url


def is_by(jws: jose.Jws, key: VerificationKey) -> bool:
    """Return True if this key signed it, and it says so."""
    return jws.header.kid == key.kid and jose.is_signed_by(jws, key.public_key)


def refuse_future(what: str, issued_at: int, now: Timestamp) -> Refusal | None:
    """Refuse what was issued later than any correct clock can say."""
    if issued_at <= now + MAX_SKEW_S:
        return None
    return Refusal(ErrorCode.NOT_YET_VALID, f"{what}'s iat is in the future: it is {in_utc(now)}")
