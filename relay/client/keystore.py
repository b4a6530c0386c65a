"""Agent keys at rest: one file a key, for its owner's eyes only.

Rules of the file: a key file is made whole or not at all and never overwritten; one that others may
read is refused; no error and no repr shows a secret byte.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from relay import clock
from relay.core import jws as jose
from relay.core.identity import KEY_BYTES, SigningKey

VERSION: Final = 1
MODE: Final = 0o600
_OTHERS: Final = 0o077
_MAX_BYTES: Final = 4096


class KeyFileError(Exception):
    """A key file that cannot be used; the text says which and why."""


def new(path: Path) -> SigningKey:
    """Make a key and keep it in a new file.

    Raises:
        KeyFileError: the file is there already, or cannot be written.
    """
    key = SigningKey(clock.entropy(KEY_BYTES))
    content = jose.dumps({"v": VERSION, "did": key.did, "seed": jose.b64encode(key.seed)})
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_new(path, content + b"\n")
    except FileExistsError as exc:
        raise KeyFileError(f"{path} is there already; a key is never overwritten") from exc
    except OSError as exc:
        raise KeyFileError(f"cannot write {path}: {exc.strerror}") from exc
    return key


def load(path: Path) -> SigningKey:
    """Read a key.

    Raises:
        KeyFileError: not there, readable by others, or not a key.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) or mode & _OTHERS:
                raise KeyFileError(f"others may read {path}; do: chmod 600 {path}")
            data = file.read(_MAX_BYTES)
    except FileNotFoundError as exc:
        raise KeyFileError(f"there is no key at {path}; make one: relay id new") from exc
    except OSError as exc:
        raise KeyFileError(f"cannot read {path}: {exc.strerror}") from exc
    try:
        return _parse(data)
    except ValueError:
        # without the cause: its text could show what was in the file
        raise KeyFileError(f"{path} is not a key file of this version") from None


def _parse(data: bytes) -> SigningKey:
    members = jose.Members(jose.loads(data.strip()))
    members.integer("v", least=VERSION, most=VERSION)
    key = SigningKey(members.base64("seed", size=KEY_BYTES))
    if members.text("did", most=512) != key.did:
        raise ValueError("did does not belong to seed")
    return key


def _write_new(path: Path, content: bytes) -> None:
    """Write a file that appears whole, and only if there is none of this name."""
    temporary = path.with_name(f".{path.name}.{clock.entropy(8).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123  a Path cannot open a descriptor
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # unlike a rename, a link never replaces what another process has just put there
        os.link(temporary, path)
    finally:
        temporary.unlink()
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
