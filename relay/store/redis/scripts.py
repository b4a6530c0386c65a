"""The Lua scripts of the store: all files are read when this module is imported.

Otherwise a node that runs on while its package is upgraded would run scripts of another version.

The first line of a script is the shebang with its flags. The loader replaces a line
``-- include: a b`` by ``scripts/lib/a.lua`` and ``b.lua``, since a script cannot call another one.
It inserts the constants of :data:`CONSTANTS` that the script names, so no value stands in two
languages. Every script can be repeated: after a lost reply the node runs it again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from relay.inbox.model import store_contract
from relay.protocol.endpoint_record import MAX_AHEAD_S
from relay.protocol.envelope import MAX_ENVELOPE_LIFETIME_S
from relay.protocol.types import MAYBE_SEEN_ID_BYTES
from relay.store.redis import entries

DIRECTORY: Final = Path(__file__).with_name("scripts")
FOLDERS: Final = ("inbox", "forwarding", "records", "migration", "partition")

CONSTANTS: Final[Mapping[str, int | str]] = {
    "BOUNCE_GRACE_S": store_contract.BOUNCE_GRACE_S,
    "CONTACT_EVICTION_SHARE": store_contract.CONTACT_EVICTION_SHARE,
    "CONTACT_FRESH_S": store_contract.CONTACT_FRESH_S,
    "FACTS": entries.FACTS_LUA,
    "FACTS_BYTES": entries.FACTS_BYTES,
    "HOUR_S": 3600,
    "LEASE_S": store_contract.LEASE_S,
    "MAX_AHEAD_S": int(MAX_AHEAD_S),
    "MAX_ENVELOPE_LIFETIME_S": MAX_ENVELOPE_LIFETIME_S,
    "MAYBE_SEEN_ID": ">I4c16c16",
    "MAYBE_SEEN_ID_BYTES": MAYBE_SEEN_ID_BYTES,
    "MIN_DEDUP_HOURS": store_contract.MIN_DEDUP_HOURS,
    "PEER_SHARE": store_contract.PEER_SHARE,
}
"""Constants of the scripts, by name; their meanings stand where Python defines them."""
_INCLUDE: Final = "-- include:"


@dataclass(frozen=True, slots=True)
class Script:
    """One script as it is sent, and the name by which the store knows it."""

    name: str
    text: str
    sha: str


def script(name: str) -> Script:
    """Return a script with its includes and constants."""
    return _SCRIPTS[name]


def all_scripts() -> Iterable[Script]:
    """Return every script."""
    return _SCRIPTS.values()


def _read(path: Path) -> Script:
    shebang, *lines = path.read_text(encoding="utf-8").splitlines()
    body = "\n".join(_expanded(line) for line in lines)
    words = set(re.findall(r"\b[A-Z][A-Z_]+\b", body))
    constants = [f"local {name} = {value!r}" for name, value in CONSTANTS.items() if name in words]
    text = "\n".join((shebang, *constants, body))
    return Script(path.stem, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def _expanded(line: str) -> str:
    if not line.startswith(_INCLUDE):
        return line
    names = line.removeprefix(_INCLUDE).split()
    return "\n".join(
        (DIRECTORY / "lib" / f"{name}.lua").read_text(encoding="utf-8") for name in names
    )


_SCRIPTS: Final = {
    path.stem: _read(path)
    for folder in FOLDERS
    for path in sorted((DIRECTORY / folder).glob("*.lua"))
}
