"""The Lua scripts of the store: files, all read when this module is imported.

A node that ran on while its package was upgraded would else run scripts of another version.

Rules of the files: the first line is the shebang with the flags; a line ``-- include: a b`` is
replaced by scripts/lib/a.lua and b.lua, since a script cannot call another one. Every script can be
repeated: a lost reply or a store that forgot the script means running it again, whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DIRECTORY: Final = Path(__file__).with_name("scripts")
_INCLUDE: Final = "-- include:"


@dataclass(frozen=True, slots=True)
class Script:
    """One script as it is sent, and the name the store knows it by."""

    name: str
    text: str
    sha: str


def script(name: str) -> Script:
    """A script with what it includes."""
    return _SCRIPTS[name]


def all_scripts() -> Iterable[Script]:
    """Every script."""
    return _SCRIPTS.values()


def _read(path: Path) -> Script:
    lines = path.read_text(encoding="utf-8").splitlines()
    text = "\n".join(_expanded(line) for line in lines)
    return Script(path.stem, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def _expanded(line: str) -> str:
    if not line.startswith(_INCLUDE):
        return line
    names = line.removeprefix(_INCLUDE).split()
    return "\n".join(
        (DIRECTORY / "lib" / f"{name}.lua").read_text(encoding="utf-8") for name in names
    )


_SCRIPTS: Final = {path.stem: _read(path) for path in sorted(DIRECTORY.glob("*.lua"))}
