"""Agent keys at rest: one file a key, for its owner's eyes only, encrypted where one asks for it.

Rules of the file: a key file is made whole or not at all; a key is never overwritten by another
one; a file that others may read is refused; no error shows a secret byte. What is in a file is
:mod:`relay.client.identity.key_format`.

::

    none ──new, add──▶ plain ◀──replace──▶ encrypted       killed at any line: the old or the new
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
    MODERATE,
    Cost,
    KeyFileError,
    Locked,
    PassphraseError,
)
from relay.files import NOT_WAITING, is_root, lock, others_may_read, sync_directory
from relay.protocol.did import (
    KEY_BYTES,
    SigningKey,
)

MODE: Final = 0o600
_MAX_BYTES: Final = 4096


def new(path: Path, passphrase: str | None = None, *, cost: Cost = MODERATE) -> SigningKey:
    """Make a key and keep it in a new file.

    Raises:
        KeyFileError: the file is there already, or cannot be written.
    """
    key = SigningKey(clock.entropy(KEY_BYTES))
    add(path, key, passphrase, cost=cost)
    return key


def add(
    path: Path, key: SigningKey, passphrase: str | None = None, *, cost: Cost = MODERATE
) -> None:
    """Keep a key in a new file, encrypted if there is a passphrase.

    Raises:
        KeyFileError: the file is there already, or cannot be written.
    """
    write_new(path, key_format.encode(key, passphrase, cost))


def read(path: Path) -> SigningKey | Locked:
    """The key, or what its passphrase opens.

    Raises:
        KeyFileError: not there, readable by others, or not a key.
    """
    with _explained("read", path), _opened(path) as file:
        return _read(path, file)


def load(path: Path, passphrase: str | None = None) -> SigningKey:
    """Read a key. An encrypted one takes about a second: call it before the event loop runs.

    Args:
        path: the file.
        passphrase: opens it if it is encrypted; one that is not ignores it.

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


def replace(path: Path, key: SigningKey, passphrase: str | None, *, cost: Cost = MODERATE) -> None:
    """Keep the key that is in this file under another passphrase, or none.

    Killed at any instruction it leaves the old file or the new one, whole.

    Raises:
        KeyFileError: the file holds another key, another process changes it, or it cannot be
            written; it is as it was.
    """
    content = key_format.encode(key, passphrase, cost)
    with _explained("write", path):
        # a link to the file stays a link
        # (Path.resolve raises no OSError where a link leads to itself)
        target = Path(os.path.realpath(path, strict=True))
        with _opened(target, os.O_RDWR) as held:
            _hold(target, held)
            if _read(target, held).did != key.did:
                raise KeyFileError(f"{path} holds another key; a key is never overwritten")
            _sweep(target)
            with _written(target, content, like=held) as temporary:
                temporary.replace(target)
            sync_directory(target.parent)


def write_new(path: Path, content: bytes) -> None:
    """Write a secret that appears whole, and only if there is nothing of this name.

    Raises:
        KeyFileError: there is, or it cannot be written.
    """
    with _explained("write", path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _written(path, content) as temporary:
            # unlike a rename, a link never replaces what another process has just put there
            os.link(temporary, path)
        sync_directory(path.parent)


# ---------------------------------------------------------------- one step each


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


def _read(path: Path, file: BinaryIO) -> SigningKey | Locked:
    if others_may_read(file.fileno()):
        raise KeyFileError(f"others may read {path}; do: chmod 600 {path}")
    try:
        return key_format.parse(file.read(_MAX_BYTES))
    except ValueError:
        # without the cause: its text could show what was in the file
        raise KeyFileError(f"{path} is not a key file of this version") from None


def _hold(path: Path, file: BinaryIO) -> None:
    """Be the only one who replaces this file, until it is closed."""
    lock(file, wait=False)
    if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
        # it was replaced between open and lock: what we hold is a file without a name
        raise BlockingIOError


@contextmanager
def _written(path: Path, content: bytes, *, like: BinaryIO | None = None) -> Iterator[Path]:
    """A synced file beside ``path``; what is left of it at the end is removed."""
    temporary = path.with_name(f".{path.name}.{clock.entropy(8).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123  a Path cannot open a descriptor
            if like is not None and is_root():
                # root changes a passphrase for somebody else: it stays that agent's file
                owner = os.fstat(like.fileno())
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Remove what a killed process left beside the key: it may be the key as it is."""
    left = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}")
    for beside in path.parent.iterdir():
        if left.fullmatch(beside.name):
            beside.unlink(missing_ok=True)
