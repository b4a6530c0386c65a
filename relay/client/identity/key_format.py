"""The text form of a key: plain, or encrypted with a passphrase (argon2id, SecretBox).

Entry points: :func:`encode` and :func:`parse` for files, :func:`encode_pem` and :func:`parse_pem`
for text. Invariants: no error and no repr shows a secret byte or a passphrase. The work that a text
asks of this machine is bounded first: one that asks for 10 GB or an hour is no key.

::

    SigningKey ──encode────▶ bytes ──parse────▶ SigningKey, or EncryptedKey ──open──▶ SigningKey
    SigningKey ──encode_pem▶ lines ──parse_pem▶ the same two: a person can carry the lines
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
from relay.protocol.did import KEY_BYTES, SigningKey, parse_did
from relay.protocol.ids import MAX_DID_BYTES, Did

PLAIN: Final = 1
ENCRYPTED: Final = 2
"""Versions (``v``) of the two forms; a reader that knows only the first refuses the second."""

MAX_PEM_BYTES: Final = 16_384
MAX_PASSPHRASE_CHARACTERS: Final = 1024
_KDF: Final = frozenset({"argon2id"})
_SALT_BYTES: Final = 16
_NONCE_BYTES: Final = 24
_CIPHERTEXT_BYTES: Final = KEY_BYTES + 16
_LINE_CHARACTERS: Final = 64
_PEM: Final = re.compile(
    r"-----BEGIN (?P<label>(?:ENCRYPTED )?RELAY PRIVATE KEY)-----\s+"
    r"(?P<lines>[\w\s-]*?)\s+-----END (?P=label)-----",
    re.ASCII,
)


class KeyFileError(Exception):
    """A key cannot be used; the text names it and the reason."""


class PassphraseError(KeyFileError):
    """The key is encrypted, and the passphrase is missing or does not open it."""


@dataclass(frozen=True, slots=True)
class KdfParams:
    """The cost of each guess at a passphrase.

    Args:
        ops: passes over the memory.
        memory: bytes.
    """

    ops: int
    memory: int


KDF_DEFAULT: Final = KdfParams(3, 256 * 2**20)
"""libsodium's moderate level: about a second."""
KDF_MIN: Final = KdfParams(1, 8192)
"""No protection: for tests."""
KDF_MAX: Final = KdfParams(8, 2**30)
"""The limit for a file from elsewhere: about ten seconds."""


@dataclass(frozen=True, slots=True)
class EncryptedKey:
    """A key that only its passphrase opens; its DID is readable without."""

    did: Did
    kdf: KdfParams
    salt: bytes = field(repr=False)
    nonce: bytes = field(repr=False)
    ciphertext: bytes = field(repr=False)

    def open(self, passphrase: str) -> SigningKey:
        """Decrypt the key; takes about a second of this thread, and ``kdf.memory``.

        Raises:
            PassphraseError: it does not open this key.
            KeyFileError: too little memory, or it is the key of another DID.
        """
        derived = _derive(passphrase, self.salt, self.kdf)
        try:
            seed = nacl.bindings.crypto_secretbox_open(self.ciphertext, self.nonce, derived)
        except nacl.exceptions.CryptoError:
            raise PassphraseError("the passphrase is wrong, or the key is damaged") from None
        key = SigningKey(seed)
        if key.did != self.did:
            raise KeyFileError("damaged: the key in it is not the one of its DID")
        return key


# ---------------------------------------------------------------- a file's content


def encode(key: SigningKey, passphrase: str | None, kdf: KdfParams = KDF_DEFAULT) -> bytes:
    """Return the content of a key file, encrypted if there is a passphrase.

    Raises:
        PassphraseError: it is empty, too long, or not text.
        KeyFileError: too little memory.
    """
    if passphrase is None:
        plain = {"v": PLAIN, "did": key.did, "seed": jose.b64encode(key.seed)}
        return jose.dumps(plain) + b"\n"
    salt, nonce = clock.entropy(_SALT_BYTES), clock.entropy(_NONCE_BYTES)
    derived = _derive(passphrase, salt, kdf)
    locked = {
        "v": ENCRYPTED,
        "did": key.did,
        "kdf": "argon2id",
        "ops": kdf.ops,
        "memory": kdf.memory,
        "salt": jose.b64encode(salt),
        "nonce": jose.b64encode(nonce),
        "box": jose.b64encode(nacl.bindings.crypto_secretbox(key.seed, nonce, derived)),
    }
    return jose.dumps(locked) + b"\n"


def parse(data: bytes) -> SigningKey | EncryptedKey:
    """Parse what :func:`encode` returned; nothing is decrypted yet.

    Raises:
        ValueError: it is something else. Its text may show the secret: do not pass it on.
    """
    members = jose.Members(jose.loads(data.strip()))
    did = parse_did(members.text("did", limit=MAX_DID_BYTES)).did
    if members.integer("v", minimum=PLAIN, limit=ENCRYPTED) == PLAIN:
        key = SigningKey(members.base64("seed", size=KEY_BYTES))
        if key.did != did:
            raise ValueError("did does not belong to seed")
        return key
    members.one_of("kdf", _KDF)
    ops = members.integer("ops", minimum=KDF_MIN.ops, limit=KDF_MAX.ops)
    memory = members.integer("memory", minimum=KDF_MIN.memory, limit=KDF_MAX.memory)
    return EncryptedKey(
        did,
        KdfParams(ops, memory),
        members.base64("salt", size=_SALT_BYTES),
        members.base64("nonce", size=_NONCE_BYTES),
        members.base64("box", size=_CIPHERTEXT_BYTES),
    )


# ---------------------------------------------------------------- lines of text


def encode_pem(key: SigningKey, passphrase: str | None, kdf: KdfParams = KDF_DEFAULT) -> str:
    """Return the key as lines of ASCII; the first line shows if it is encrypted.

    Raises:
        KeyFileError: as :func:`encode`.
    """
    content = jose.b64encode(encode(key, passphrase, kdf))
    label = _label(encrypted=passphrase is not None)
    lines = [content[at : at + _LINE_CHARACTERS] for at in range(0, len(content), _LINE_CHARACTERS)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])


def parse_pem(text: str) -> SigningKey | EncryptedKey:
    """Parse the only block in a text; the text around it is ignored.

    Raises:
        KeyFileError: there is none, or more than one, or it is damaged.
    """
    found = list(_PEM.finditer(text[:MAX_PEM_BYTES]))
    if len(found) != 1 or len(text) > MAX_PEM_BYTES:
        raise KeyFileError("there must be one block in it, from BEGIN to END, and little else")
    try:
        key = parse(jose.b64decode("".join(found[0]["lines"].split())))
    except ValueError:
        # without the cause: its text could show what was in the block
        raise KeyFileError("the block is damaged, or of another version") from None
    if found[0]["label"] != _label(encrypted=isinstance(key, EncryptedKey)):
        raise KeyFileError("the block says wrongly whether it is encrypted")
    return key


def _label(*, encrypted: bool) -> str:
    return f"{'ENCRYPTED ' if encrypted else ''}RELAY PRIVATE KEY"


# ---------------------------------------------------------------- passphrases


def _derive(passphrase: str, salt: bytes, kdf: KdfParams) -> bytes:
    if not 0 < len(passphrase) <= MAX_PASSPHRASE_CHARACTERS:
        raise PassphraseError(f"a passphrase has 1 to {MAX_PASSPHRASE_CHARACTERS} characters")
    try:
        # keyboards differ in how they write the same letter
        secret = unicodedata.normalize("NFC", passphrase).encode()
    except UnicodeEncodeError:
        raise PassphraseError("the passphrase is not UTF-8") from None
    argon2id = nacl.bindings.crypto_pwhash_ALG_ARGON2ID13
    try:
        return nacl.bindings.crypto_pwhash_alg(
            nacl.bindings.crypto_secretbox_KEYBYTES, secret, salt, kdf.ops, kdf.memory, argon2id
        )
    except nacl.exceptions.CryptoError:
        detail = f"too little memory: a passphrase needs {kdf.memory // 2**20} MiB for a second"
        raise KeyFileError(detail) from None
