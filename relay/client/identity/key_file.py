"""Key files of agents: one key each, readable by the owner only, encrypted on request.

Invariants: a key file is written whole or not at all. A key is never overwritten by another one. A
file that other users may read is refused. No error shows a secret byte. The content of a file is
described in :mod:`relay.client.identity.key_format`.

::

    none ──generate, save_new──▶ plain ◀──replace──▶ encrypted
    killed at any line: the old or the new file
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from relay import clock
from relay.client.identity import key_format
from relay.client.identity.key_format import (
    KDF_DEFAULT,
    EncryptedKey,
    KdfParams,
    KeyFileError,
    PassphraseError,
)
from relay.files import NOT_WAITING, is_root, lock, others_may_read, sync_directory
from relay.protocol.did import KEY_BYTES, SigningKey

MODE: Final = 0o600
_MAX_BYTES: Final = 4096


def generate(
    path: Path, passphrase: str | None = None, *, kdf: KdfParams = KDF_DEFAULT
) -> SigningKey:
    """Generate a key and save it in a new file.

    Raises:
        KeyFileError: the file is there already, or cannot be written.
    """
    key = SigningKey(clock.entropy(KEY_BYTES))
    save_new(path, key, passphrase, kdf=kdf)
    return key


def save_new(
    path: Path, key: SigningKey, passphrase: str | None = None, *, kdf: KdfParams = KDF_DEFAULT
) -> None:
    """Save a key in a new file, encrypted if there is a passphrase.

    Raises:
        KeyFileError: the file is there already, or cannot be written.
    """
    write_new(path, key_format.encode(key, passphrase, kdf))


def read(path: Path) -> SigningKey | EncryptedKey:
    """Read the key of a file; an encrypted one is not decrypted yet.

    Raises:
        KeyFileError: not there, readable by others, or not a key.
    """
    with _explained("read", path), _opened(path) as file:
        return _read(path, file)


def load(path: Path, passphrase: str | None = None) -> SigningKey:
    """Read a key. An encrypted one takes about a second: call it before the event loop runs.

    Args:
        path: the file.
        passphrase: decrypts it; ignored if the key is not encrypted.

    Raises:
        PassphraseError: it is encrypted, and this is not its passphrase.
        KeyFileError: not there, readable by others, or not a key.
    """
    found = read(path)
    if isinstance(found, SigningKey):
        return found
    if passphrase is None:
        raise PassphraseError(f"{path} is encrypted, and its passphrase was not given")
    try:
        return found.open(passphrase)
    except KeyFileError as exc:
        raise type(exc)(f"{path}: {exc}") from None


def replace(
    path: Path, key: SigningKey, passphrase: str | None, *, kdf: KdfParams = KDF_DEFAULT
) -> None:
    """Encrypt the key of a file with another passphrase, or with none.

    A kill at any instruction leaves the old file or the new one, whole.

    Raises:
        KeyFileError: the file holds another key, another process changes it, or it cannot be
            written; it is unchanged.
    """
    content = key_format.encode(key, passphrase, kdf)
    with _explained("write", path):
        # a link to the file stays a link
        # (Path.resolve raises no OSError where a link leads to itself)
        target = Path(os.path.realpath(path, strict=True))
        with _opened(target, os.O_RDWR) as opened:
            _lock(target, opened)
            if _read(target, opened).did != key.did:
                raise KeyFileError(f"{path} holds another key; a key is never overwritten")
            _sweep(target)
            with _written(target, content, like=opened) as temporary:
                temporary.replace(target)
            sync_directory(target.parent)


def write_new(path: Path, content: bytes) -> None:
    """Write a secret into a new file, which appears whole or not at all.

    Raises:
        KeyFileError: the file exists, or cannot be written.
    """
    with _explained("write", path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _written(path, content) as temporary:
            # unlike a rename, a link never replaces what another process has just put there
            os.link(temporary, path)
        sync_directory(path.parent)


# ---------------------------------------------------------------- steps


@contextmanager
def _explained(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as exc:
        if not path.parent.is_dir():
            raise KeyFileError(f"cannot {what} {path}: {path.parent} is not a directory") from exc
        raise KeyFileError(f"{path} is there already; a key is never overwritten") from exc
    except BlockingIOError as exc:
        raise KeyFileError(f"another process is changing {path}") from exc
    except FileNotFoundError as exc:
        raise KeyFileError(f"there is no key at {path}; make one: relay id new") from exc
    except OSError as exc:
        raise KeyFileError(f"cannot {what} {path}: {exc.strerror}") from exc


def _opened(path: Path, flags: int = os.O_RDONLY) -> BinaryIO:
    descriptor = os.open(path, flags | NOT_WAITING)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise KeyFileError(f"{path} is not a file")
    return open(descriptor, "rb")  # noqa: PTH123  a Path cannot; the caller closes it


def _read(path: Path, file: BinaryIO) -> SigningKey | EncryptedKey:
    if others_may_read(file.fileno()):
        raise KeyFileError(f"others may read {path}; do: chmod 600 {path}")
    try:
        return key_format.parse(file.read(_MAX_BYTES))
    except ValueError:
        # without the cause: its text could show what was in the file
        raise KeyFileError(f"{path} is not a key file of this version") from None


def _lock(path: Path, file: BinaryIO) -> None:
    """Lock the file, so that no other process replaces it until it is closed."""
    lock(file, wait=False)
    if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
        # it was replaced between open and lock: this is a file without a name
        raise BlockingIOError


@contextmanager
def _written(path: Path, content: bytes, *, like: BinaryIO | None = None) -> Iterator[Path]:
    """Write a synced file beside ``path``; remove it at the end of the block."""
    temporary = path.with_name(f".{path.name}.{clock.entropy(8).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123  a Path cannot open a descriptor
            if like is not None and is_root():
                # root may change the passphrase of another user, who stays the owner
                owner = os.fstat(like.fileno())
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Remove temporary files of a killed process: one may be the plain key."""
    left = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}")
    for beside in path.parent.iterdir():
        if left.fullmatch(beside.name):
            beside.unlink(missing_ok=True)
