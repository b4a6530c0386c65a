"""The proofs of both ends of a conversation (PROTOCOL.md §5 ``auth``, ``welcome.proof``).

Both sign the other's nonce and the origin that was dialled. So a login at one relay cannot be
used at another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from relay.protocol import jws as jose
from relay.protocol import signed
from relay.protocol.did import SigningKey, VerificationKey, parse_did
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.ids import MAX_DID_BYTES, MAX_EPOCH_CHARS, MAX_URL_CHARS, Did, Timestamp, in_utc

AUTH_TYP: Final = "agent-auth+jws"
PROOF_TYP: Final = "relay-proof+jws"
MAX_AUTH_BYTES: Final = 8192
LOGIN_LIFETIME_S: Final = 60
NONCE_BYTES: Final = 32

Role = Literal["agent", "peer"]


@dataclass(frozen=True, slots=True)
class LoginClaims:
    """The claims of a login: ``aud`` is the relay expected, ``url`` the origin dialled."""

    subject: Did
    aud: Did
    url: str
    nonce: str
    cnonce: str
    role: Role


@dataclass(frozen=True, slots=True)
class InboxPosition:
    """The position of an inbox, proven at login; ``epoch`` is None for a send-only session."""

    epoch: str | None
    cursor: int
    head: int


def sign_auth(key: SigningKey, claims: LoginClaims, now: Timestamp) -> str:
    """Sign a login, good for 60 s."""
    payload = {
        "aud": claims.aud,
        "url": claims.url,
        "nonce": claims.nonce,
        "cnonce": claims.cnonce,
        "role": claims.role,
        "iat": int(now),
        "exp": int(now) + LOGIN_LIFETIME_S,
    }
    return jose.sign(payload, typ=AUTH_TYP, kid=key.kid, key=key.sign)


def parse_auth(compact: str) -> tuple[jose.Jws, LoginClaims, int, int]:
    """Read a login's form; return the JWS, its claims, iat and exp.

    Raises:
        ProtocolError: ``bad_frame`` or ``unsupported``.
    """
    return signed.read("auth", _parse_auth, compact)


def _parse_auth(compact: str) -> tuple[jose.Jws, LoginClaims, int, int]:
    jws = jose.parse(compact, typ=AUTH_TYP, max_bytes=MAX_AUTH_BYTES)
    members = jws.members()
    role = members.text("role", limit=8)
    if role not in {"agent", "peer"}:
        raise ValueError("role must be agent or peer")
    issued, expires = signed.read_lifetime(members, LOGIN_LIFETIME_S)
    claims = LoginClaims(
        subject=parse_did(jws.header.kid.partition("#")[0]).did,
        aud=Did(members.text("aud", limit=MAX_DID_BYTES)),
        url=members.text("url", limit=MAX_URL_CHARS),
        nonce=jose.b64encode(members.base64("nonce", size=NONCE_BYTES)),
        cnonce=jose.b64encode(members.base64("cnonce", size=NONCE_BYTES)),
        role=role,  # type: ignore[arg-type]  # checked above
    )
    return jws, claims, issued, expires


def verify_auth(
    parsed: tuple[jose.Jws, LoginClaims, int, int],
    key: VerificationKey,
    *,
    relay: Did,
    url: str,
    now: Timestamp,
) -> LoginClaims:
    """Check a login against who we are; the caller has compared or taken the nonce.

    Raises:
        ProtocolError: ``wrong_relay``, ``bad_signature``, ``expired`` or ``not_yet_valid``.
    """
    jws, claims, issued, expires = parsed
    if claims.aud != relay or claims.url != url:
        raise ProtocolError(ErrorCode.WRONG_RELAY, f"this is {relay} at {url}")
    if not signed.is_by(jws, key):
        raise ProtocolError(ErrorCode.BAD_SIGNATURE, "auth is not signed by its kid")
    if issued > now + signed.MAX_SKEW_S:
        detail = f"auth comes from the future by the relay's clock, which says {in_utc(now)}"
        raise ProtocolError(ErrorCode.NOT_YET_VALID, f"{detail}; check the clock")
    if expires < now - signed.MAX_SKEW_S:
        detail = f"auth is too old by the relay's clock, which says {in_utc(now)}"
        raise ProtocolError(ErrorCode.EXPIRED, f"{detail}; check the clock")
    return claims


def sign_proof(
    key: SigningKey, claims: LoginClaims, position: InboxPosition, now: Timestamp
) -> str:
    """Sign the relay's side: same nonces, and where the inbox proven."""
    payload = {
        "sub": claims.subject,
        "url": claims.url,
        "nonce": claims.nonce,
        "cnonce": claims.cnonce,
        "role": claims.role,
        "epoch": position.epoch,
        "cursor": position.cursor,
        "head": position.head,
        "iat": int(now),
        "exp": int(now) + LOGIN_LIFETIME_S,
    }
    return jose.sign(payload, typ=PROOF_TYP, kid=key.kid, key=key.sign)


def verify_proof(compact: str, claims: LoginClaims, position: InboxPosition) -> None:
    """Check that the relay named in ``claims.aud`` answered this very login.

    Raises:
        ProtocolError: ``bad_frame``, ``bad_signature`` or ``wrong_relay``.
    """
    try:
        jws = jose.parse(compact, typ=PROOF_TYP, max_bytes=MAX_AUTH_BYTES)
        members = jws.members()
        answered = tuple(
            members.text(name, limit=MAX_URL_CHARS)
            for name in ("sub", "url", "nonce", "cnonce", "role")
        )
        epoch = members.optional_text("epoch", limit=MAX_EPOCH_CHARS)
        proven = InboxPosition(epoch, members.integer("cursor"), members.integer("head"))
        key = parse_did(claims.aud)
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_FRAME, f"proof: {exc}") from exc
    if not signed.is_by(jws, key):
        raise ProtocolError(ErrorCode.BAD_SIGNATURE, "the proof is not signed by that relay")
    asked = (claims.subject, claims.url, claims.nonce, claims.cnonce, claims.role)
    if answered != asked or proven != position:
        raise ProtocolError(ErrorCode.WRONG_RELAY, "the proof answers another login")
