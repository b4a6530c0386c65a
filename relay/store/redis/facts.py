"""What the servers of a store say of themselves, and what that means for mail.

Rules of the file: it asks and judges, and keeps nothing; :mod:`relay.store.redis.guard` keeps the
last answer. What is unsafe is named with the setting, and with what mends it for good: a setting
that is changed on a running server only is gone with its next restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from relay.clock import now
from relay.protocol.errors import (
    ErrorCode,
    RelayError,
)
from relay.protocol.ids import Timestamp
from relay.store.redis.client import Client, Primary, is_denied, text_of

SAFE: Final = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}
_FLOOR: Final = {"redis": (7, 0), "valkey": (8, 1)}
_SECTIONS: Final = ("server", "memory", "persistence", "replication")


@dataclass(frozen=True, slots=True)
class Facts:
    """What all primaries said at one look.

    Args:
        primaries: each with its INFO.
        unsafe: what can lose mail, and how to mend it; None = nothing.
        unverified: what cannot be known, or is not ours to judge; None = nothing.
        replica: a server that takes no writes since it follows another; None = none is.
        ahead_s: by how many seconds the store's clock is surely ahead of this node's; below 0:
            behind; the one of several that is furthest off.
    """

    primaries: tuple[Primary, ...]
    unsafe: str | None
    unverified: str | None
    replica: str | None
    ahead_s: float

    @property
    def run_ids(self) -> frozenset[str]:
        """Which server processes answered."""
        return frozenset(one.info.get("run_id", "") for one in self.primaries)


async def ask(client: Client) -> Facts:
    """Ask every primary for its settings, its role, its memory and its clock.

    Raises:
        RelayError: one of them does not answer, or does not let us ask.
    """
    ahead_s = await clock_ahead_s(client)
    primaries = tuple(await client.primaries(*_SECTIONS))
    unsafe = [old for one in primaries if (old := _too_old(one))]
    unverified = [why for one in primaries if (why := _unverified(one))]
    try:
        settings = await client.ask_all("CONFIG", "GET", *SAFE)
    except RelayError as exc:
        if exc.code is ErrorCode.STORAGE_UNAVAILABLE and not is_denied(exc):
            raise
        # a managed service that blocks CONFIG
        unverified.append("its settings cannot be read (CONFIG GET)")
    else:
        files = {one.name: one.info.get("config_file", "") for one in primaries}
        unsafe += [
            wrong for name, reply in settings if (wrong := _wrong(name, reply, files.get(name, "")))
        ]
    replicas = [_named(one) for one in primaries if one.info.get("role") == "slave"]
    return Facts(
        primaries, _joined(unsafe), _joined(unverified), _joined(replicas), ahead_s
    )  # fmt: skip


async def clock_ahead_s(client: Client) -> float:
    """By how many seconds the clock of the store is ahead of this node's; see :class:`Facts`.

    Raises:
        RelayError: a server does not answer.
    """
    before = now()
    replies = await client.ask_all("TIME")
    after = now()
    found = [_ahead_s(reply, before, after) for _, reply in replies]
    return max(found, key=abs, default=0.0)


def _ahead_s(reply: Any, before: Timestamp, after: Timestamp) -> float:
    """What the time that the question took cannot explain."""
    said = int(reply[0]) + int(reply[1]) / 1_000_000
    if said > after:
        return said - after
    return min(0.0, said - before)


def _too_old(primary: Primary) -> str | None:
    info = primary.info
    kind = "valkey" if "valkey_version" in info else "redis"
    version = info.get(f"{kind}_version", "0")
    if tuple(int(part) for part in version.split(".")[:2]) >= _FLOOR[kind]:
        return None
    floor = ".".join(str(part) for part in _FLOOR[kind])
    return f"it is {kind} {version}{_at(primary.name)}; {kind} {floor} or later is needed"


def _unverified(primary: Primary) -> str | None:
    info = primary.info
    if info.get("connected_slaves", "0") != "0":
        return f"replicas are attached{_at(primary.name)}: one that is promoted may have less"
    if info.get("aof_enabled") == "1" and info.get("aof_last_write_status", "ok") != "ok":
        return f"its last write to the append-only file failed{_at(primary.name)}"
    return None


def _wrong(name: str, reply: Any, config_file: str) -> str | None:
    found = _pairs(reply)
    wrong = [(one, wanted) for one, wanted in SAFE.items() if found.get(one) != wanted]
    if not wrong:
        return None
    said = ", ".join(
        f"{one} is {found.get(one, 'unknown')!r}, not {wanted!r}" for one, wanted in wrong
    )
    commands = ", ".join(f"CONFIG SET {one} {wanted}" for one, wanted in wrong)
    if config_file:
        cure = f"{commands}, then CONFIG REWRITE, which writes it to {config_file}"
    else:
        words = " ".join(f"--{one} {wanted}" for one, wanted in wrong)
        cure = (
            f"start it with {words}: it has no configuration file, so that {commands} lasts until "
            "its next restart only"
        )
    return f"{said}{_at(name)} ({cure})"


def _named(primary: Primary) -> str:
    info = primary.info
    leader = f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
    return f"the store{_at(primary.name)} is a replica of {leader} and takes no writes"


def _at(name: str) -> str:
    return f" at {name}" if name else ""


def _joined(sentences: list[str]) -> str | None:
    return "; ".join(sentences) or None


def _pairs(reply: Any) -> dict[str, str]:
    if isinstance(reply, dict):
        return {text_of(name): text_of(value) for name, value in reply.items()}
    words = [text_of(word) for word in reply]
    return dict(zip(words[::2], words[1::2], strict=True))
