"""Whether the store may be relied on: settings at the start, memory while it runs, the clock.

Rules of the file: what is unsafe is refused at the start, with the setting and the command that
mends it; what cannot be seen makes every receipt say ``unverified``; a store that is nearly full
refuses new envelopes while there is still room for acks.
"""

from __future__ import annotations

from typing import Any, Final

from redis.exceptions import NoPermissionError

from relay.core.errors import ErrorCode, Refusal, RelayError, UnavailableError
from relay.core.ids import Partition
from relay.core.receipts import Durability
from relay.store.redis.client import Client, Primary, text_of

FULL_SHARE: Final = 0.75
REOPEN_SHARE: Final = 0.70
"""A store that hovers at the limit must not flap."""
IDS_SHARE: Final = 0.20
BYTES_PER_ID: Final = 96
"""What one remembered id costs in a large hash, with its share of the rest (R3; measured)."""
_SAFE: Final = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}
_FLOOR: Final = {"redis": (7, 0), "valkey": (8, 1)}
_RETRY_AFTER_S: Final = 30


class Guard:
    """What new envelopes are judged by before a script sees them."""

    def __init__(self) -> None:
        self.is_clock_trusted = True
        self.ids_per_partition = 1_000_000
        self._reason: str | None = None
        self._full: set[str] = set()
        self._client: Client | None = None

    @property
    def clock_flag(self) -> int:
        """Whether a script may believe the store's clock: 1 or 0."""
        return int(self.is_clock_trusted)

    def refuse_appends(self, reason: str | None) -> None:
        """Refuse new envelopes for ``reason``; None takes them again."""
        self._reason = reason

    def refusal(self, part: Partition) -> Refusal | None:
        """The answer to a new envelope now; None = nothing against it."""
        if self._reason is not None:
            return Refusal(ErrorCode.STORAGE_FULL, self._reason, _RETRY_AFTER_S)
        if self._full and self._client and self._client.owner_of(part) in self._full:
            detail = "the memory of this relay's store is nearly full"
            return Refusal(ErrorCode.STORAGE_FULL, detail, _RETRY_AFTER_S)
        return None

    async def poll(self, client: Client, partitions: int) -> None:
        """Look at the memory of every primary.

        Raises:
            RelayError: one of them does not answer.
        """
        self._client = client
        primaries = await client.primaries("memory")
        for primary in primaries:
            self._judge_memory(primary)
        budget = sum(_memory_of(primary) for primary in primaries) * IDS_SHARE / BYTES_PER_ID
        self.ids_per_partition = max(1, int(budget / partitions))

    def _judge_memory(self, primary: Primary) -> None:
        most = int(primary.info.get("maxmemory", "0"))
        used = int(primary.info.get("used_memory", "0"))
        if most and used >= FULL_SHARE * most:
            self._full.add(primary.name)
        elif used < REOPEN_SHARE * most or not most:
            self._full.discard(primary.name)


def _memory_of(primary: Primary) -> int:
    most = int(primary.info.get("maxmemory", "0"))
    return most or int(primary.info.get("total_system_memory", "0"))


async def check_settings(client: Client, *, allow_unsafe: bool) -> Durability:
    """Read the settings that durability hangs on; gives what a receipt may promise.

    Raises:
        UnavailableError: not safe, and ``allow_unsafe`` is not set; says what to change.
    """
    durability: Durability = "fsync"
    for primary in await client.primaries("server"):
        _check_version(primary)
    for primary in await client.primaries("replication"):
        if primary.info.get("connected_slaves", "0") != "0":
            durability = "unverified"  # a lagging one, promoted, has less than was acknowledged
    problems: list[str] = []
    try:
        for name, reply in await client.ask_all("CONFIG", "GET", *_SAFE):
            problems += _problems(name, reply)
    except RelayError as exc:
        is_denied = isinstance(exc.__cause__, NoPermissionError)
        if exc.code is ErrorCode.STORAGE_UNAVAILABLE and not is_denied:
            raise
        return "unverified"  # a managed service that blocks CONFIG
    if problems and not allow_unsafe:
        raise UnavailableError(
            ErrorCode.STORAGE_UNAVAILABLE,
            "the store is not safe for durable mode: " + "; ".join(problems),
        )
    return "unverified" if problems else durability


def _check_version(primary: Primary) -> None:
    info = primary.info
    kind = "valkey" if "valkey_version" in info else "redis"
    version = info.get(f"{kind}_version", "0")
    if tuple(int(part) for part in version.split(".")[:2]) < _FLOOR[kind]:
        floor = ".".join(str(part) for part in _FLOOR[kind])
        raise UnavailableError(
            ErrorCode.STORAGE_UNAVAILABLE,
            f"the store is {kind} {version}; {kind} {floor} or later is needed: upgrade it",
        )


def _problems(name: str, reply: Any) -> list[str]:
    found = _pairs(reply)
    at = f" at {name}" if name else ""
    return [
        f"{setting} is {found.get(setting, 'unknown')!r}{at}, not {wanted!r} "
        f"(CONFIG SET {setting} {wanted}, then CONFIG REWRITE)"
        for setting, wanted in _SAFE.items()
        if found.get(setting) != wanted
    ]


def _pairs(reply: Any) -> dict[str, str]:
    if isinstance(reply, dict):
        return {text_of(name): text_of(value) for name, value in reply.items()}
    words = [text_of(word) for word in reply]
    return dict(zip(words[::2], words[1::2], strict=True))
