"""A key as text: as it is, or encrypted by a passphrase (argon2id, SecretBox).

Rules of the file: no error and no repr shows a secret byte or a passphrase. What a text asks of
this machine is bounded before it is done: one that wants 10 GB or an hour is no key.

::

    SigningKey ──encode──▶ bytes ──parse──▶ SigningKey, or Locked ──open(passphrase)──▶ SigningKey
    SigningKey ──block───▶ lines ──read_block──▶ the same two: what a person can carry elsewhere
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Final

import nacl.bindings
import nacl.exceptions

from relay import clock
from relay.protocol import jws as jose
from relay.protocol.did import (
    KEY_BYTES,
    SigningKey,
    parse_did,
)
from relay.protocol.ids import (
    MAX_DID_BYTES,
    Did,
)

PLAIN: Final = 1
ENCRYPTED: Final = 2
"""Versions (``v``) of the two forms; a reader that knows only the first refuses the second."""

MAX_BLOCK_BYTES: Final = 16_384
MAX_PASSPHRASE: Final = 1024
_KDF: Final = frozenset({"argon2id"})
_SALT_BYTES: Final = 16
_NONCE_BYTES: Final = 24
_BOX_BYTES: Final = KEY_BYTES + 16
_LINE: Final = 64
_BLOCK: Final = re.compile(
    r"-----BEGIN (?P<label>(?:ENCRYPTED )?RELAY PRIVATE KEY)-----\s+"
    r"(?P<lines>[\w\s-]*?)\s+-----END (?P=label)-----",
    re.ASCII,
)


class KeyFileError(Exception):
    """A key that cannot be used; the text says which and why."""


class PassphraseError(KeyFileError):
    """The key is encrypted, and the passphrase is missing or does not open it."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What each guess at a passphrase costs.

    Args:
        ops: passes over the memory.
        memory: bytes.
    """

    ops: int
    memory: int


MODERATE: Final = Cost(3, 256 * 2**20)
"""libsodium's middle: about a second."""
LEAST: Final = Cost(1, 8192)
"""Guards nothing: for tests."""
MOST: Final = Cost(8, 2**30)
"""What a file may ask of whoever opens it: about ten seconds."""


@dataclass(frozen=True, slots=True)
class Locked:
    """A key that only its passphrase opens; its DID can be read without."""

    did: Did
    cost: Cost
    salt: bytes = field(repr=False)
    nonce: bytes = field(repr=False)
    box: bytes = field(repr=False)

    def open(self, passphrase: str) -> SigningKey:
        """The key; takes about a second of this thread, and ``cost.memory``.

        Raises:
            PassphraseError: it does not open this key.
            KeyFileError: too little memory, or it is the key of another DID.
        """
        derived = _derive(passphrase, self.salt, self.cost)
        try:
            seed = nacl.bindings.crypto_secretbox_open(self.box, self.nonce, derived)
        except nacl.exceptions.CryptoError:
            raise PassphraseError("the passphrase is wrong, or the key is damaged") from None
        key = SigningKey(seed)
        if key.did != self.did:
            raise KeyFileError("damaged: the key in it is not the one of its DID")
        return key


# ---------------------------------------------------------------- a file's content


def encode(key: SigningKey, passphrase: str | None, cost: Cost = MODERATE) -> bytes:
    """The content of a key file; without a passphrase the key lies in it as it is.

    Raises:
        PassphraseError: it is empty, too long, or not text.
        KeyFileError: too little memory.
    """
    if passphrase is None:
        plain = {"v": PLAIN, "did": key.did, "seed": jose.b64encode(key.seed)}
        return jose.dumps(plain) + b"\n"
    salt, nonce = clock.entropy(_SALT_BYTES), clock.entropy(_NONCE_BYTES)
    derived = _derive(passphrase, salt, cost)
    locked = {
        "v": ENCRYPTED,
        "did": key.did,
        "kdf": "argon2id",
        "ops": cost.ops,
        "memory": cost.memory,
        "salt": jose.b64encode(salt),
        "nonce": jose.b64encode(nonce),
        "box": jose.b64encode(nacl.bindings.crypto_secretbox(key.seed, nonce, derived)),
    }
    return jose.dumps(locked) + b"\n"


def parse(data: bytes) -> SigningKey | Locked:
    """Read what :func:`encode` made; nothing is decrypted yet.

    Raises:
        ValueError: it is something else. Its text could show what was there: do not pass it on.
    """
    members = jose.Members(jose.loads(data.strip()))
    did = parse_did(members.text("did", most=MAX_DID_BYTES)).did
    if members.integer("v", least=PLAIN, most=ENCRYPTED) == PLAIN:
        key = SigningKey(members.base64("seed", size=KEY_BYTES))
        if key.did != did:
            raise ValueError("did does not belong to seed")
        return key
    members.one_of("kdf", _KDF)
    ops = members.integer("ops", least=LEAST.ops, most=MOST.ops)
    memory = members.integer("memory", least=LEAST.memory, most=MOST.memory)
    return Locked(
        did,
        Cost(ops, memory),
        members.base64("salt", size=_SALT_BYTES),
        members.base64("nonce", size=_NONCE_BYTES),
        members.base64("box", size=_BOX_BYTES),
    )


# ---------------------------------------------------------------- a block to carry elsewhere


def block(key: SigningKey, passphrase: str | None, cost: Cost = MODERATE) -> str:
    """The key as lines of ASCII; the first says whether it is encrypted.

    Raises:
        KeyFileError: as :func:`encode`.
    """
    content = jose.b64encode(encode(key, passphrase, cost))
    label = _label(encrypted=passphrase is not None)
    lines = [content[at : at + _LINE] for at in range(0, len(content), _LINE)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])


def read_block(text: str) -> SigningKey | Locked:
    """Read the one block in a text; what stands around it is passed over.

    Raises:
        KeyFileError: there is none, or more than one, or it is damaged.
    """
    found = list(_BLOCK.finditer(text[:MAX_BLOCK_BYTES]))
    if len(found) != 1 or len(text) > MAX_BLOCK_BYTES:
        raise KeyFileError("there must be one block in it, from BEGIN to END, and little else")
    try:
        key = parse(jose.b64decode("".join(found[0]["lines"].split())))
    except ValueError:
        # without the cause: its text could show what was in the block
        raise KeyFileError("the block is damaged, or of another version") from None
    if found[0]["label"] != _label(encrypted=isinstance(key, Locked)):
        raise KeyFileError("the block says wrongly whether it is encrypted")
    return key


def _label(*, encrypted: bool) -> str:
    return f"{'ENCRYPTED ' if encrypted else ''}RELAY PRIVATE KEY"


# ---------------------------------------------------------------- passphrases


def _derive(passphrase: str, salt: bytes, cost: Cost) -> bytes:
    if not 0 < len(passphrase) <= MAX_PASSPHRASE:
        raise PassphraseError(f"a passphrase has 1 to {MAX_PASSPHRASE} characters")
    try:
        # keyboards differ in how they write the same letter
        secret = unicodedata.normalize("NFC", passphrase).encode()
    except UnicodeEncodeError:
        raise PassphraseError("the passphrase is not UTF-8") from None
    argon2id = nacl.bindings.crypto_pwhash_ALG_ARGON2ID13
    try:
        return nacl.bindings.crypto_pwhash_alg(
            nacl.bindings.crypto_secretbox_KEYBYTES, secret, salt, cost.ops, cost.memory, argon2id
        )
    except nacl.exceptions.CryptoError:
        detail = f"too little memory: a passphrase needs {cost.memory // 2**20} MiB for a second"
        raise KeyFileError(detail) from None
