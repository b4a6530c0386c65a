"""Whether the store may be relied on: what is known of it, how old that is, what follows.

::

    look ──▶ facts ──▶ safe                    receipts say fsync
                  ├──▶ unverified, unreadable  receipts say unverified
                  └──▶ unsafe                  new envelopes are refused, or as unverified if the
                                               operator allows it (RELAY_REDIS_UNSAFE)

Rules of the file: nothing is promised from memory. A look is as good as it is young: it is taken
again at each poll, and before a commit is answered if a connection was made since, which may lead
to another server, or if it is older than :data:`FRESH_S`. A store that is nearly full refuses new
envelopes while there is still room for acks.
"""

from __future__ import annotations

import asyncio
from typing import Final

from relay.clock import monotonic
from relay.health import Health, ProblemReason
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
    RelayError,
    StateError,
    UnavailableError,
)
from relay.protocol.ids import (
    Did,
    Partition,
    Timestamp,
)
from relay.protocol.receipts import Durability
from relay.store.redis import facts, keys
from relay.store.redis.client import Client, Primary, is_denied
from relay.store.redis.facts import Facts

FULL_SHARE: Final = 0.75
REOPEN_SHARE: Final = 0.70
"""A store that hovers at the limit must not flap."""
IDS_SHARE: Final = 0.20
BYTES_PER_ID: Final = 96
"""What one remembered id costs in a large hash, with its share of the rest (R3; measured)."""
FRESH_S: Final = 2.0
"""So old the facts may be that a receipt rests on."""
_RETRY_AFTER_S: Final = 30
_LOOK_AGAIN_S: Final = 2
"""Settings are looked at each second: one that was mended is believed as soon as that."""


class Guard:
    """What is known of the store, and what new envelopes are judged by before a script sees them.

    Args:
        client: the connection.
        health: told what is wrong.
        allow_unsafe: take envelopes on settings that may lose mail; receipts say ``unverified``.
    """

    def __init__(self, client: Client, health: Health, *, allow_unsafe: bool = False) -> None:
        self.is_clock_trusted = True
        self.ids_per_partition = 1_000_000
        self.durability: Durability = "unverified"
        self.promised: Durability = "unverified"
        self._client = client
        self._health = health
        self._allow_unsafe = allow_unsafe
        self._reason: str | None = None
        self._full: set[str] = set()
        self._is_unsafe = self._is_foreign = False
        self._is_mended = True
        self._looked_at = -FRESH_S
        self._connections = -1

    @property
    def clock_flag(self) -> int:
        """Whether a script may believe the store's clock: 1 or 0."""
        return int(self.is_clock_trusted)

    def refuse_appends(self, reason: str | None) -> None:
        """Refuse new envelopes for ``reason``; None takes them again."""
        self._reason = reason

    def no_promise(self) -> Refusal | None:
        """The answer to what must be durable, as settings and owner of the store are now."""
        if self._is_unsafe or self._is_foreign:
            detail = "this relay's store cannot be relied on now; its operator has to look"
            return Refusal(ErrorCode.STORAGE_UNAVAILABLE, detail, _LOOK_AGAIN_S)
        return None

    def refusal(self, part: Partition) -> Refusal | None:
        """The answer to a new envelope now; None = nothing against it."""
        no = self.no_promise()
        if no is not None:
            return no
        if self._reason is not None:
            return Refusal(ErrorCode.STORAGE_FULL, self._reason, _RETRY_AFTER_S)
        if self._full and self._client.owner_of(part) in self._full:
            detail = "the memory of this relay's store is nearly full"
            return Refusal(ErrorCode.STORAGE_FULL, detail, _RETRY_AFTER_S)
        return None

    # ------------------------------------------------------------ looks

    async def start(self) -> None:
        """Take the first look.

        Raises:
            UnavailableError: a server does not answer, follows another one, is too old, or its
                settings can lose mail and that is not allowed; says what to change.
            RelayError: it does not let us ask.
        """
        found = await self.look()
        if found.replica is not None:
            raise UnavailableError(ErrorCode.STORAGE_UNAVAILABLE, found.replica, retry_after=1)
        if found.unsafe is not None and not self._allow_unsafe:
            detail = f"the store is not safe for durable mode: {found.unsafe}"
            raise UnavailableError(ErrorCode.STORAGE_UNAVAILABLE, detail)

    async def confirm(self) -> None:
        """Look again unless the last look is young and no connection was made since.

        Afterwards :attr:`durability` holds for what was just committed; it never raises, and takes
        no longer than one command.
        """
        age_s = monotonic() - self._looked_at
        if age_s <= FRESH_S and self._connections == self._client.connections_made:
            return
        try:
            async with asyncio.timeout(self._client.timeout_s):
                await self.look()
        except (RelayError, TimeoutError):
            self.durability = "unverified"

    async def poll(self, partitions: int) -> None:
        """Look, and see how many ids the memory has room for.

        Raises:
            RelayError: a server does not answer, or does not let us ask.
        """
        primaries = (await self.look()).primaries
        for primary in primaries:
            self._judge_memory(primary)
        detail = "the memory of the store is nearly full: new envelopes are refused until acks or "
        detail += "expiry make room; or raise maxmemory (RELAY_STORE_MAXMEMORY)"
        self._health.found(ProblemReason.STORE_FULL, detail if self._full else None)
        budget = sum(_memory_of(primary) for primary in primaries) * IDS_SHARE / BYTES_PER_ID
        self.ids_per_partition = max(1, int(budget / partitions))

    async def look(self) -> Facts:
        """Ask all servers for everything, and believe that from now on.

        Raises:
            RelayError: a server does not answer, or does not let us ask.
        """
        began_at, connections = monotonic(), self._client.connections_made
        try:
            found = await facts.ask(self._client)
        except RelayError as exc:
            self.durability = "unverified"
            # at the start it is raised, and told as the reason why there is no node
            is_away = isinstance(exc, UnavailableError) and not is_denied(exc)
            if not is_away and self._connections >= 0:
                detail = f"the store cannot be asked: {exc.detail}"
                self._health.found(ProblemReason.STORE_UNVERIFIED, detail)
            raise
        if began_at >= self._looked_at:
            self._looked_at, self._connections = began_at, connections
            self._judge(found)
        return found

    def _judge(self, found: Facts) -> None:
        health = self._health
        health.found(ProblemReason.STORE_UNREACHABLE, None)
        health.found(ProblemReason.STORE_REPLICA, found.replica)
        unverified = found.unverified
        if found.unsafe is not None:
            self._is_mended = False
        elif not self._is_mended:
            # an append-only file that was turned on counts once it is whole
            self._is_mended = not any(_is_rewriting(one) for one in found.primaries)
            if not self._is_mended:
                unverified = unverified or "the append-only file is not whole yet"
        if self._allow_unsafe:
            unverified, unsafe = found.unsafe or unverified, None
        else:
            unsafe = found.unsafe
        health.found(ProblemReason.STORE_UNSAFE, unsafe)
        health.found(ProblemReason.STORE_UNVERIFIED, unverified)
        self._is_unsafe = unsafe is not None
        is_safe = not (unsafe or unverified or found.replica)
        self.durability = "fsync" if is_safe else "unverified"
        if is_safe:
            self.promised = "fsync"

    def _judge_memory(self, primary: Primary) -> None:
        most = int(primary.info.get("maxmemory", "0"))
        used = int(primary.info.get("used_memory", "0"))
        if most and used >= FULL_SHARE * most:
            self._full.add(primary.name)
        elif used < REOPEN_SHARE * most or not most:
            self._full.discard(primary.name)

    async def claim(self, relay: Did, partitions: int) -> tuple[int, Timestamp | None]:
        """Write down whose store it is, if nobody has; so it is seen, too, that it takes writes.

        Returns:
            How many partitions it has, and its clock as last written down.

        Raises:
            StateError: ``wrong_relay``: it belongs to another relay.
            RelayError: it takes no writes, or does not answer.
        """
        script = self._client.script
        owner, count, time = await script("claim", keys.STORE, [relay, partitions])
        self._health.found(ProblemReason.STORE_REFUSES_WRITES, None)
        said = owner.decode()
        foreign = None if said == relay else f"this store belongs to {said}"
        self._health.found(ProblemReason.STORE_FOREIGN, foreign)
        self._is_foreign = foreign is not None
        if foreign is not None:
            advice = "; give this relay its own, or that key"
            raise StateError(ErrorCode.WRONG_RELAY, foreign + advice)
        return count, Timestamp(float(time)) if time else None


def _is_rewriting(primary: Primary) -> bool:
    words = ("aof_rewrite_in_progress", "aof_rewrite_scheduled")
    return any(primary.info.get(word) == "1" for word in words)


def _memory_of(primary: Primary) -> int:
    most = int(primary.info.get("maxmemory", "0"))
    return most or int(primary.info.get("total_system_memory", "0"))
