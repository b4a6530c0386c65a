"""Compact JWS over exact bytes, strict base64url and strict JSON (PROTOCOL.md §1).

This is the only reader of JSON and the only verifier of Ed25519 in the relay.
Bad input raises ValueError with a short reason; callers give it the code that fits. Nothing is
canonicalised: a relay stores the bytes that were signed.

::

    compact str ──parse──▶ Jws(header, payload bytes, signature) ──verify(key)──▶ payload members
"""

from __future__ import annotations

import binascii
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple, NoReturn

import nacl.bindings
import nacl.exceptions
import orjson

from relay.protocol.ids import Eid

MAX_SAFE_INTEGER: Final = 2**53 - 1
MAX_DEPTH: Final = 8
SIGNATURE_BYTES: Final = 64
MAX_HEADER_CHARS: Final = 2048
_GROUP_ORDER: Final = 2**252 + 27742317777372353535851937790883648493
_ALGORITHMS: Final = frozenset({"Ed25519", "EdDSA"})
# base64url's alphabet in that of plain base64; whatever is not in it becomes a foreign character
_TO_PLAIN: Final = bytes(
    {0x2D: 0x2B, 0x5F: 0x2F, 0x2B: 0, 0x2F: 0, 0x3D: 0}.get(code, code) for code in range(256)
)
_TO_URL: Final = bytes.maketrans(b"+/", b"-_")
_PADDING: Final = (b"", b"===", b"==", b"=")
_LAST_OF: Final = ("", "", "AQgw", "AEIMQUYcgkosw048")
"""By length mod 4: the last characters whose unused bits are zero."""
_HEADER_MEMBERS: Final = frozenset({"alg", "kid", "typ"})

Sign = Callable[[bytes], bytes]
"""``sign(signing_input)`` gives the 64-byte signature."""


class UnsupportedTypeError(ValueError):
    """Perhaps right in another version; not something that version 1 understands."""


# ---------------------------------------------------------------- base64url


def b64encode(raw: bytes) -> str:
    """Base64url without padding (RFC 7515 §2)."""
    plain = binascii.b2a_base64(raw, newline=False)
    return plain.translate(_TO_URL).rstrip(b"=").decode("ascii")


def b64decode(text: str) -> bytes:
    """Strict base64url: no padding, no white space, no non-zero trailing bits (PROTOCOL.md §1.3).

    Raises:
        ValueError: anything else.
    """
    rest = len(text) % 4
    if rest and text[-1] not in _LAST_OF[rest]:
        raise ValueError("not strict base64url")
    try:
        plain = text.encode("ascii").translate(_TO_PLAIN)
        return binascii.a2b_base64(plain + _PADDING[rest], strict_mode=True)
    except (UnicodeEncodeError, binascii.Error) as exc:
        raise ValueError("not base64url") from exc


# ---------------------------------------------------------------- JSON


def dumps(value: object) -> bytes:
    """Encode as compact UTF-8 JSON; ``orjson.Fragment`` passes through."""
    return orjson.dumps(value)


def loads(data: bytes) -> Any:
    """Strict JSON (PROTOCOL.md §1.3); the caller has capped the size.

    Raises:
        ValueError: not JSON, a duplicate key, a float, an integer beyond ±(2^53-1), deeper than 8,
            a BOM, a lone surrogate or invalid UTF-8.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as exc:
        raise ValueError("not JSON") from exc
    _check(value, MAX_DEPTH)
    # Bytes equal to our own encoding cannot hide a duplicate key; others are read again, slowly.
    if orjson.dumps(value) != data:
        try:
            json.loads(data, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        except RecursionError as exc:  # deep, and hidden behind a duplicate key
            raise ValueError("nested too deeply") from exc
    return value


def loads_own(data: bytes) -> Any:
    """JSON that is written as :func:`dumps` writes it: no duplicate key can hide in it.

    The caller checks the type of every value: floats and large integers are not refused here.

    Raises:
        ValueError: not JSON, or written otherwise; :func:`loads` may still read it.
    """
    value = orjson.loads(data)
    if orjson.dumps(value) != data:
        raise ValueError("not our own encoding")
    return value


def _check(value: Any, depth: int) -> None:
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return
    if kind is float:
        raise ValueError("floats are not allowed")
    if kind is int:
        if not -MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER:
            raise ValueError("integer out of range")
        return
    if depth == 0:
        raise ValueError("nested too deeply")
    for member in value.values() if kind is dict else value:
        # most members are text, and a call each is what this costs
        if type(member) is not str:
            _check(member, depth - 1)


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("duplicate key")
    return made


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


class Members:
    """Reads the members of a JSON object one by one; a wrong one is a ValueError that names it."""

    __slots__ = ("_members",)

    def __init__(self, value: object) -> None:
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")  # noqa: TRY004  one error for bad bytes
        for name in value:
            if name.startswith("must_"):
                raise UnsupportedTypeError(f"{name[:64]!r} is required but not understood")
        self._members: dict[str, Any] = value

    def has(self, name: str) -> bool:
        """Return True if the member is there and not null."""
        return self._members.get(name) is not None

    def text(self, name: str, *, limit: int, minimum: int = 1) -> str:
        """A string of ``minimum`` … ``limit`` characters."""
        value = self._members.get(name)
        if not isinstance(value, str) or not minimum <= len(value) <= limit:
            raise ValueError(f"{name} must be a string of {minimum} to {limit} characters")
        return value

    def optional_text(self, name: str, *, limit: int) -> str | None:
        """A string of 1 … ``limit`` characters, or None where it is absent or null."""
        return self.text(name, limit=limit) if self.has(name) else None

    def one_of(self, name: str, known: frozenset[str]) -> Any:
        """A member of a Literal; Any, since no checker can follow it there."""
        value = self.text(name, limit=16)
        if value not in known:
            raise ValueError(f"{name} is none of {', '.join(sorted(known))}")
        return value

    def integer(self, name: str, *, minimum: int = 0, limit: int = MAX_SAFE_INTEGER) -> int:
        """An integer of ``minimum`` … ``limit``."""
        value = self._members.get(name)
        if type(value) is not int or not minimum <= value <= limit:
            raise ValueError(f"{name} must be an integer from {minimum} to {limit}")
        return value

    def boolean(self, name: str) -> bool:
        """True or false."""
        value = self._members.get(name)
        if type(value) is not bool:
            raise ValueError(f"{name} must be true or false")
        return value

    def array(self, name: str, *, limit: int, minimum: int = 0) -> list[Any]:
        """An array of ``minimum`` … ``limit`` items."""
        value = self._members.get(name)
        if not isinstance(value, list) or not minimum <= len(value) <= limit:
            raise ValueError(f"{name} must be an array of {minimum} to {limit} items")
        return value

    def optional_array(self, name: str, *, limit: int) -> list[Any]:
        """An array, or an empty one where it is absent or null."""
        return self.array(name, limit=limit) if self.has(name) else []

    def object(self, name: str) -> Members:
        """The members of a nested object."""
        value = self._members.get(name)
        if not isinstance(value, dict):
            raise ValueError(f"{name} must be an object")  # noqa: TRY004  one error for bad bytes
        return Members(value)

    def base64(self, name: str, *, size: int) -> bytes:
        """Strict base64url of exactly ``size`` bytes."""
        raw = b64decode(self.text(name, limit=(size * 4 + 2) // 3))
        if len(raw) != size:
            raise ValueError(f"{name} must be {size} bytes")
        return raw


# ---------------------------------------------------------------- JWS


@dataclass(frozen=True, slots=True)
class Header:
    """The protected header; exactly these members (PROTOCOL.md §1.2)."""

    alg: str
    kid: str
    typ: str


class Jws(NamedTuple):
    """A parsed compact JWS; nothing about it is believed until :func:`verify` returned."""

    compact: str
    header: Header
    payload: bytes
    signature: bytes
    signing_input: bytes

    @property
    def eid(self) -> Eid:
        """b64url(SHA-256(signing input)); the signature is no part of it (PROTOCOL.md §1.6)."""
        return Eid(b64encode(hashlib.sha256(self.signing_input).digest()))

    def members(self) -> Members:
        """The payload as a strict JSON object.

        Raises:
            ValueError: it is none.
        """
        return Members(loads(self.payload))


# A sender's header never changes, so its parse is remembered by the exact segment.
@lru_cache(maxsize=8192)
def _parse_header(segment: str) -> Header:
    value = loads(b64decode(segment))
    if not isinstance(value, dict) or value.keys() != _HEADER_MEMBERS:
        raise ValueError("the header has exactly alg, kid and typ")
    members = Members(value)
    header = Header(
        alg=members.text("alg", limit=16),
        kid=members.text("kid", limit=1100),
        typ=members.text("typ", limit=64),
    )
    if header.alg not in _ALGORITHMS:
        raise ValueError("alg must be Ed25519")
    return header


def parse(compact: str, *, typ: str, max_bytes: int) -> Jws:
    """Take a compact JWS apart; checks form and purpose, not the signature.

    Args:
        compact: the JWS as received.
        typ: the only accepted ``typ``.
        max_bytes: cap on the whole JWS.

    Raises:
        ValueError: too long, not three strict segments, another header, another purpose.
    """
    if len(compact) > max_bytes:
        raise ValueError(f"larger than {max_bytes} bytes")
    head, dot, rest = compact.partition(".")
    body, dot2, tail = rest.partition(".")
    if not dot or not dot2 or len(head) > MAX_HEADER_CHARS:
        raise ValueError("not a compact JWS")
    header = _parse_header(head)
    if header.typ != typ:
        raise ValueError(f"typ must be {typ}")
    signature = b64decode(tail)
    if len(signature) != SIGNATURE_BYTES:
        raise ValueError("signature must be 64 bytes")
    return Jws(compact, header, b64decode(body), signature, compact[: -len(tail) - 1].encode())


def is_signed_by(jws: Jws, public_key: bytes) -> bool:
    """Return True if ``public_key`` (32 bytes) signed it, for libsodium (PROTOCOL.md §1.4).

    libsodium refuses small-order and non-canonical keys and points, and a non-canonical S.
    """
    try:
        nacl.bindings.crypto_sign_open(jws.signature + jws.signing_input, public_key)
    except nacl.exceptions.BadSignatureError:
        return False
    return True


def is_plainly_forged(jws: Jws, public_key: bytes) -> bool:
    """Return True if every verifier refuses it, not libsodium alone.

    The caller has asked :func:`is_signed_by`.

    Verifiers differ on a signature whose R or S is not in its usual form: an honest relay may have
    accepted it. Keys of that kind are no DIDs here at all.
    """
    point, scalar = jws.signature[:32], int.from_bytes(jws.signature[32:], "little")
    return (
        scalar < _GROUP_ORDER
        and nacl.bindings.crypto_core_ed25519_is_valid_point(point)
        and not is_signed_by(jws, public_key)
    )


def sign(payload: object, *, typ: str, kid: str, key: Sign) -> str:
    """Make a compact JWS; the member order is ours, any other would do (PROTOCOL.md §1.1)."""
    signing_input = f"{header_segment(typ, kid)}.{b64encode(dumps(payload))}"
    return f"{signing_input}.{b64encode(key(signing_input.encode()))}"


@lru_cache(maxsize=256)
def header_segment(typ: str, kid: str) -> str:
    """The encoded header of what ``kid`` signs for this purpose."""
    return b64encode(dumps({"alg": "Ed25519", "kid": kid, "typ": typ}))
