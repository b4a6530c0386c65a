"""DIDs and their keys: ``did:key`` with Ed25519 (PROTOCOL.md §2).

A DID and a key are not the same thing, so everything is stored under an
:data:`AgentKey`; secret bytes never appear in ``repr``, and leave only through :attr:`seed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import nacl.bindings
import nacl.exceptions

from relay.protocol.ids import MAX_DID_BYTES, AgentKey, Did
from relay.protocol.jws import UnsupportedTypeError

KEY_BYTES: Final = 32
_PREFIX: Final = "did:key:"
_MULTICODEC_ED25519: Final = b"\xed\x01"
_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_INDEX: Final = {char: value for value, char in enumerate(_ALPHABET)}
_MULTIBASE_CHARS: Final = 48


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A key that may act for a DID now."""

    did: Did
    agent_key: AgentKey
    kid: str
    public_key: bytes


@lru_cache(maxsize=65_536)
def parse_did(did: str) -> VerificationKey:
    """Read a ``did:key`` and the one key it stands for.

    Raises:
        UnsupportedTypeError: another method or another key type; it may be right elsewhere.
        ValueError: not a DID, a DID URL, too long, a small-order or non-canonical key.
    """
    if len(did.encode()) > MAX_DID_BYTES:
        raise ValueError("DID longer than 512 bytes")
    method = did.split(":", 2)[1] if did.startswith("did:") and did.count(":") > 1 else ""
    if not method or not method.islower() or any(c in did for c in "/?# "):
        raise ValueError("not a DID")
    if method != "key":
        raise UnsupportedTypeError(f"DID method {method!r} is not supported")
    multibase = did[len(_PREFIX) :]
    if not multibase.startswith("z6Mk") or len(multibase) != _MULTIBASE_CHARS:
        raise UnsupportedTypeError("only did:key with an Ed25519 key is supported")
    raw = _base58decode(multibase[1:])
    public_key = raw[2:]
    if raw[:2] != _MULTICODEC_ED25519 or len(public_key) != KEY_BYTES:
        raise UnsupportedTypeError("only did:key with an Ed25519 key is supported")
    if not nacl.bindings.crypto_core_ed25519_is_valid_point(public_key):
        raise ValueError("not a valid Ed25519 key")
    return VerificationKey(Did(did), agent_key_of(multibase), f"{did}#{multibase}", public_key)


def agent_key_of(multibase: str) -> AgentKey:
    """Return the key under which everything about the holder is stored."""
    return AgentKey(f"key:{multibase}")


def did_of(agent_key: AgentKey) -> Did:
    """The DID of an agent key; total for ``key:``, the only kind in version 1."""
    return Did(f"{_PREFIX}{agent_key.removeprefix('key:')}")


def encode_did(public_key: bytes) -> Did:
    """The ``did:key`` of a 32-byte Ed25519 public key."""
    return Did(f"{_PREFIX}z{_base58encode(_MULTICODEC_ED25519 + public_key)}")


@lru_cache(maxsize=4096)
def encryption_key(public_key: bytes) -> bytes:
    """The X25519 form of an Ed25519 key; cached, since making it takes longer than sealing."""
    return nacl.bindings.crypto_sign_ed25519_pk_to_curve25519(public_key)


class SigningKey:
    """An Ed25519 key pair and the did:key it makes.

    Args:
        seed: 32 secret bytes.
    """

    __slots__ = ("_sealing_keys", "_secret", "did", "kid", "public_key")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != KEY_BYTES:
            raise ValueError("a seed has 32 bytes")
        self.public_key, self._secret = nacl.bindings.crypto_sign_seed_keypair(seed)
        self._sealing_keys: tuple[bytes, bytes] | None = None
        self.did: Did = encode_did(self.public_key)
        self.kid = f"{self.did}#{self.did[len(_PREFIX) :]}"

    def __repr__(self) -> str:
        return f"SigningKey({self.did})"

    def __reduce__(self) -> str:
        raise TypeError("a signing key is not pickled")

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes, for a keystore."""
        return self._secret[:KEY_BYTES]

    @property
    def agent_key(self) -> AgentKey:
        """The key under which everything about this identity is stored."""
        return agent_key_of(self.did[len(_PREFIX) :])

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature of ``message``."""
        return nacl.bindings.crypto_sign(message, self._secret)[:64]

    def open_sealed(self, sealed: bytes) -> bytes:
        """Open a libsodium sealed box made for this key's X25519 form.

        Raises:
            ValueError: not for this key, or altered.
        """
        if self._sealing_keys is None:
            secret = nacl.bindings.crypto_sign_ed25519_sk_to_curve25519(self._secret)
            self._sealing_keys = (encryption_key(self.public_key), secret)
        try:
            return nacl.bindings.crypto_box_seal_open(sealed, *self._sealing_keys)
        except (nacl.exceptions.CryptoError, TypeError) as exc:
            raise ValueError("not sealed for this key") from exc


def _base58decode(text: str) -> bytes:
    number = 0
    for char in text:
        value = _INDEX.get(char)
        if value is None:
            raise ValueError("not base58btc")
        number = number * 58 + value
    zeros = len(text) - len(text.lstrip("1"))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")


def _base58encode(raw: bytes) -> str:
    number = int.from_bytes(raw, "big")
    chars: list[str] = []
    while number:
        number, digit = divmod(number, 58)
        chars.append(_ALPHABET[digit])
    zeros = len(raw) - len(raw.lstrip(b"\0"))
    return "1" * zeros + "".join(reversed(chars))
