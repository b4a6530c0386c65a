"""Open the store of a node: start the embedded one, or connect to an external one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from relay import clock, log
from relay.directory.ports import DirectoryLimits
from relay.health import Health
from relay.inbox.model.types import InboxLimits, OutboxLimits
from relay.node import keyfile
from relay.protocol.did import SigningKey
from relay.protocol.errors import UnavailableError
from relay.protocol.ids import Did, NodeId
from relay.settings import Settings
from relay.store.disk import DiskGuard
from relay.store.embedded import EmbeddedStore
from relay.store.ports import Store
from relay.store.redis import RedisStore, is_lasting

RETRY_S: Final = 0.5
"""Pause between two attempts to reach an external store that is not there yet."""


@dataclass(frozen=True, slots=True)
class OpenedStore:
    """A started store, the relay's key, and the process and guard of an embedded store."""

    key: SigningKey
    node_id: NodeId
    store: Store
    embedded: EmbeddedStore | None
    disk: DiskGuard | None


class StoppedError(Exception):
    """The operator stopped the node before its store was open."""


@contextlib.asynccontextmanager
async def open_store(
    settings: Settings, health: Health, stop: asyncio.Event
) -> AsyncIterator[OpenedStore]:
    """Start the store, embedded or external; stop it at the end.

    Wait for an external store that does not answer or is a replica, and report it to ``health``.

    Raises:
        RelayError: another process uses the directory, the key is unreadable, or the store is
            unsafe, belongs to another relay, or refuses our login.
        StoppedError: ``stop`` was set meanwhile.
    """
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = keyfile.load_or_make(settings.relay_key_file)
    async with contextlib.AsyncExitStack() as stack:
        embedded, disk, url = None, None, None
        if settings.redis_url is None:
            directory = settings.data / "store"
            directory.mkdir(exist_ok=True, mode=0o700)
            floor = settings.disk_floor
            disk = DiskGuard(directory, floor_bytes=floor, ballast_bytes=floor // 4)
            # before the start: the store may need the space of a released ballast
            disk.check()
            embedded = EmbeddedStore(
                directory,
                binary=settings.store_binary,
                maxmemory=settings.store_maxmemory,
                on_event=log.store_event,
            )
            stack.push_async_callback(embedded.stop)
            await embedded.start()
            url = embedded.url
        else:
            url = settings.redis_url.get_secret_value()
        store = RedisStore(
            url,
            inbox_limits(settings),
            cluster=settings.redis_cluster,
            rollback_file=settings.data / "rollback",
            allow_unsafe=settings.redis_unsafe,
            directory=DirectoryLimits(settings.directory_records),
            outbox=OutboxLimits(settings.outbox_count, settings.outbox_bytes),
            health=health,
            is_own=embedded is not None,
        )
        node_id = NodeId(clock.entropy(9).hex())
        stack.push_async_callback(store.stop)
        while not await _is_started(store, key.did, node_id, is_own=embedded is not None):
            if await _is_set_within(stop, RETRY_S):
                raise StoppedError
        yield OpenedStore(key, node_id, store, embedded, disk)


async def _is_started(store: RedisStore, relay: Did, node: NodeId, *, is_own: bool) -> bool:
    """Start a store; return False if it is external and not there yet."""
    try:
        await store.start(relay=relay, node=node)
    except UnavailableError as exc:
        # without retry_after only the operator can mend it
        if is_own or exc.retry_after is None or is_lasting(exc):
            raise
        return False
    return True


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


def inbox_limits(settings: Settings) -> InboxLimits:
    """Return the limits of each inbox."""
    return InboxLimits(
        max_count=settings.inbox_count,
        max_bytes=settings.inbox_bytes,
        sender_count=settings.sender_count,
        sender_bytes=settings.sender_bytes,
        stranger_count=settings.stranger_count,
        stranger_bytes=settings.stranger_bytes,
        dedupe_entries=settings.dedupe_entries,
    )
