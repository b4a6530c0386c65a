"""A store that becomes less than it was while a node runs: never promised from memory.

Each test changes a real server under a running store, and looks at what the next receipt may say.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from relay.health import Health, ProblemReason
from relay.inbox.model.types import (
    Accepted,
    InboxLimits,
    InboxRole,
)
from relay.migration.ports import (
    MigrationChange,
)
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
    StateError,
    UnavailableError,
)
from relay.protocol.ids import Timestamp
from relay.protocol.types import (
    MovedRules,
)
from relay.store.embedded import find_server_binary
from relay.store.redis import RedisStore
from relay.store.redis.facts import _ahead_s
from tests.store.worlds import ME, NODE, RELAY, code, fresh, opened
from tests.support.patience import wait_until
from tests.support.ports import free_port
from tests.support.servers import (
    RedisServer,
    redis_server,
)

pytestmark = pytest.mark.timeout(60)
BINARY = str(find_server_binary().path)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    made = RedisServer(tmp_path / "server", binary=BINARY, port=free_port())
    await made.start()
    try:
        yield made
    finally:
        made.kill()


@contextlib.asynccontextmanager
async def started(url: str, *, runs: bool = True, **options: Any) -> AsyncIterator[RedisStore]:
    """A store of a node, with or without its polls, and an inbox in it."""
    store = RedisStore(url, InboxLimits(), **options)
    await store.start(relay=RELAY, node=NODE)
    running = asyncio.create_task(store.run()) if runs else None
    try:
        await opened(store)
        yield store
    finally:
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        await store.stop()


async def command(server: RedisServer, *words: str) -> None:
    async with Redis.from_url(server.url) as raw:
        await raw.execute_command(*words)


def detail(store: RedisStore, reason: ProblemReason) -> str:
    return next((one.detail for one in store.health.problems if one.reason is reason), "")


def has(store: RedisStore, reason: ProblemReason) -> Any:
    return lambda: store.health.has(reason)


def lacks(store: RedisStore, reason: ProblemReason) -> Any:
    return lambda: not store.health.has(reason)


class Numbers:
    """Envelopes that were not sent before."""

    def __init__(self) -> None:
        self.last = 0

    async def append(self, store: RedisStore) -> Accepted | Refusal:
        self.last += 1
        (result,) = await store.inboxes.append([fresh(self.last)])
        return result

    async def taken(self, store: RedisStore) -> bool:
        return isinstance(await self.append(store), Accepted)


@pytest.mark.parametrize(
    ("setting", "worse", "safe"),
    [
        ("appendfsync", "no", "always"),
        ("appendonly", "no", "yes"),
        ("maxmemory-policy", "allkeys-lru", "noeviction"),
    ],
)
async def test_a_setting_that_becomes_unsafe_ends_receipts_until_it_is_mended(
    server: RedisServer, setting: str, worse: str, safe: str
) -> None:
    numbers = Numbers()
    async with started(server.url) as store:
        assert await numbers.taken(store)
        assert store.inboxes.durability == "fsync"
        await command(server, "CONFIG", "SET", setting, worse)
        await wait_until(has(store, ProblemReason.STORE_UNSAFE), 10, "the change is seen")
        assert f"CONFIG SET {setting} {safe}" in detail(store, ProblemReason.STORE_UNSAFE)
        assert code(await numbers.append(store)) is ErrorCode.STORAGE_UNAVAILABLE
        seen = await store.migrations.load(ME)
        with pytest.raises(UnavailableError, match="cannot be relied on"):
            await store.migrations.change(ME, seen, MigrationChange("signed for", InboxRole.PAUSED))
        with pytest.raises(UnavailableError, match="cannot be relied on"):
            await store.migrations.add_known(ME, MovedRules())
        assert await store.migrations.load(ME) == seen
        assert store.inboxes.durability == "unverified"
        assert not store.health.is_ready
        await command(server, "CONFIG", "SET", setting, safe)
        await wait_until(lambda: store.inboxes.durability == "fsync", 10, "the cure is seen")
        assert await numbers.taken(store)
        assert store.inboxes.durability == "fsync"


@pytest.mark.parametrize("allow_unsafe", [True, False])
async def test_the_first_commit_at_a_restarted_server_is_judged_by_that_server(
    server: RedisServer, *, allow_unsafe: bool
) -> None:
    numbers = Numbers()
    # no polls: only the new connection can give the change away
    async with started(server.url, runs=False, allow_unsafe=allow_unsafe) as store:
        assert await numbers.taken(store)
        assert store.inboxes.durability == "fsync"
        server.kill()
        worse = RedisServer(
            server.directory, binary=BINARY, port=server.port, settings={"appendfsync": "everysec"}
        )
        await worse.start()
        try:
            await wait_until(lambda: numbers.taken(store), 10, "the first envelope is taken")
            assert store.inboxes.durability == "unverified"
            assert await numbers.taken(store) is allow_unsafe
        finally:
            worse.kill()


async def test_an_operator_who_allows_unsafe_settings_is_told_and_stays_ready(
    server: RedisServer,
) -> None:
    async with started(server.url, allow_unsafe=True) as store:
        await command(server, "CONFIG", "SET", "appendfsync", "no")
        await wait_until(has(store, ProblemReason.STORE_UNVERIFIED), 10, "the change is seen")
        assert "appendfsync" in detail(store, ProblemReason.STORE_UNVERIFIED)
        assert await Numbers().taken(store)
        assert store.inboxes.durability == "unverified"
        assert all(not one.blocks for one in store.health.problems if one.since)


async def test_the_advice_names_what_survives_a_restart_of_the_server(tmp_path: Path) -> None:
    file = tmp_path / "server.conf"
    file.touch()
    worse = {"appendfsync": "everysec"}
    for place, config_file, advice in (
        ("a", None, "start it with --appendfsync always"),
        ("b", file, f"CONFIG REWRITE, which writes it to {file}"),
    ):
        directory = tmp_path / place
        made = RedisServer(directory, binary=BINARY, settings=worse, config_file=config_file)
        await made.start()
        try:
            store = RedisStore(made.url, InboxLimits())
            with pytest.raises(UnavailableError, match="CONFIG SET appendfsync always") as refused:
                await store.start(relay=RELAY, node=NODE)
            await store.stop()
            assert advice in refused.value.detail
        finally:
            made.kill()


async def test_a_server_that_becomes_a_replica_takes_nothing_and_is_back_as_a_primary(
    server: RedisServer,
) -> None:
    numbers = Numbers()
    async with started(server.url) as store:
        assert await numbers.taken(store)
        await command(server, "REPLICAOF", "127.0.0.1", str(free_port()))
        assert code(await numbers.append(store)) is ErrorCode.STORAGE_UNAVAILABLE
        # at once: by the refused write itself
        assert store.health.has(ProblemReason.STORE_REPLICA)
        assert not store.health.is_ready
        await command(server, "REPLICAOF", "NO", "ONE")
        await wait_until(lacks(store, ProblemReason.STORE_REPLICA), 10, "it is a primary again")
        assert await numbers.taken(store)
        assert store.inboxes.durability == "fsync"


async def test_a_server_that_refuses_writes_is_seen_though_nobody_writes(tmp_path: Path) -> None:
    # a snapshot cannot be renamed to what is a directory; after that writes are refused
    settings = {"dbfilename": "taken", "save": "3600 1000000"}
    async with redis_server(tmp_path / "server", binary=BINARY, settings=settings) as server:
        (server.directory / "taken").mkdir()
        async with started(server.url) as store:
            await command(server, "BGSAVE")
            refusing = has(store, ProblemReason.STORE_REFUSES_WRITES)
            await wait_until(refusing, 10, "MISCONF is seen")
            assert "MISCONF" in detail(store, ProblemReason.STORE_REFUSES_WRITES)
            assert not store.health.is_ready
            assert not store.health.has(ProblemReason.STORE_UNREACHABLE)
            await command(server, "CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
            gone = lacks(store, ProblemReason.STORE_REFUSES_WRITES)
            await wait_until(gone, 10, "writes are taken again")
            assert await Numbers().taken(store)


async def test_a_store_that_goes_to_another_relay_meanwhile_is_not_written_to(
    server: RedisServer,
) -> None:
    async with started(server.url) as store:
        await command(server, "HSET", "relay:store", "did", "did:key:z6MkOther")
        await wait_until(has(store, ProblemReason.STORE_FOREIGN), 10, "the other owner is seen")
        assert code(await Numbers().append(store)) is ErrorCode.STORAGE_UNAVAILABLE
        assert "did:key:z6MkOther" in detail(store, ProblemReason.STORE_FOREIGN)


async def test_an_outage_appears_once_and_goes_once(server: RedisServer) -> None:
    with capture_logs() as logged:
        await outage(server)
    said = [(one["event"], one["reason"]) for one in logged]
    assert said == [("problem_appeared", "store_away"), ("problem_gone", "store_away")]


async def outage(server: RedisServer) -> None:
    async with started(server.url) as store:
        server.kill()
        results = [(await store.inboxes.append([fresh(number)]))[0] for number in range(20)]
        assert {code(one) for one in results} == {ErrorCode.STORAGE_UNAVAILABLE}
        assert store.health.has(ProblemReason.STORE_UNREACHABLE)
        await server.start()
        await wait_until(lacks(store, ProblemReason.STORE_UNREACHABLE), 10, "the store is back")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redit://:hunter2@127.0.0.1:1", "it begins with redis://"),
        ("redis+sentinel://:hunter2@127.0.0.1:1/main", "not supported"),
        ("redis://:hunter2/x@127.0.0.1:1", "write odd characters of the password as %XX"),
        ("redis://:hunter2@127.0.0.1:port", "cannot be read"),
        ("redis://:hunter2@127.0.0.1:1?no_such=1", "does not take: no_such"),
        ("redis://:12?hunter2=1@127.0.0.1:1", "an option after the ?"),
        ("redis://:hunter2@127.0.0.1:1?max_connections=5", "does not take: max_connections"),
        ("redis://:hunter2@127.0.0.1:1?db=x", "cannot be read"),
        ("rediss://:hunter2@127.0.0.1:1?ssl_no_such=1", "one of its ssl_... options"),
        ("rediss://:hunter2@127.0.0.1:1?ssl_ca_certs=/no/such.crt", "cannot be used"),
    ],
)
def test_a_redis_url_that_is_none_is_refused_without_its_password(url: str, why: str) -> None:
    with pytest.raises(StateError) as refused:
        RedisStore(url, InboxLimits())
    assert why in refused.value.detail
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_what_is_found_again_is_logged_once_and_its_sentence_follows() -> None:
    health = Health()
    with capture_logs() as logged:
        for sentence in ("one", "two"):
            health.found(ProblemReason.DISK_FULL, sentence)
        assert [one["detail"] for one in health.describe()["reasons"]][-1] == "two"
        for _ in range(2):
            health.found(ProblemReason.DISK_FULL, None)
    assert [one["event"] for one in logged] == ["problem_appeared", "problem_gone"]


@pytest.mark.parametrize(
    ("said", "ahead_s"), [(50.0, -50.0), (100.5, 0.0), (101.0, 0.0), (161.5, 60.5)]
)
def test_what_a_question_took_is_no_difference_of_clocks(said: float, ahead_s: float) -> None:
    # asked at 100 s, answered at 101 s by this node's clock
    reply = [b"%d" % said, b"%d" % (said % 1 * 1_000_000)]
    assert _ahead_s(reply, Timestamp(100.0), Timestamp(101.0)) == ahead_s
