"""The relay's secret seed in a file: mode 0600, made once, never printed."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from relay import clock
from relay.files import sync_directory
from relay.protocol.did import KEY_BYTES, SigningKey
from relay.protocol.errors import ErrorCode, StateError
from relay.protocol.jws import b64decode, b64encode

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def load_or_make(path: Path) -> SigningKey:
    """Read the key; make one if there is no file.

    Raises:
        StateError: others can read the file, it is not a key, or it can be neither read nor made.
    """
    try:
        return _load(path)
    except FileNotFoundError:
        try:
            return _make(path)
        except OSError as exc:
            detail = f"there is no key file {path} and it cannot be made: {exc.strerror}"
            raise StateError(ErrorCode.WRONG_STATE, detail) from exc


def _make(path: Path) -> SigningKey:
    seed = clock.entropy(KEY_BYTES)
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(f"{b64encode(seed)}\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_directory(path.parent)
    return SigningKey(seed)


def _load(path: Path) -> SigningKey:
    try:
        mode = path.stat().st_mode
        if mode & _OTHERS and not _is_mounted_secret(path):
            detail = f"{path} can be read by others; run: chmod 600 {path}"
            raise StateError(ErrorCode.WRONG_STATE, detail)
        return SigningKey(b64decode(path.read_text(encoding="ascii").strip()))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as exc:
        # the error text could quote the content of the file
        raise StateError(ErrorCode.WRONG_STATE, f"{path} is not a readable key file") from exc


def _is_mounted_secret(path: Path) -> bool:
    """Return True for a container secret: nobody in the container can change its mode."""
    return path.is_relative_to("/run/secrets") or not os.access(path.parent, os.W_OK)
