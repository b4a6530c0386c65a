"""What a store must be like to be relied on, and what an operator is told (GUARANTEES.md §2)."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from relay.health import Health
from relay.inbox.model.types import (
    InboxLimits,
)
from relay.protocol.errors import (
    ErrorCode,
    RelayError,
    UnavailableError,
)
from relay.store.embedded import find_server_binary
from relay.store.redis import RedisStore
from relay.store.redis.client import Client, Primary, parse_info, translated
from relay.store.redis.facts import _too_old
from relay.store.redis.guard import Guard
from tests.store.worlds import NODE, RELAY, World
from tests.support.patience import wait_until
from tests.support.ports import free_port
from tests.support.servers import RedisServer

pytestmark = pytest.mark.timeout(60)


async def start(url: str, *, allow_unsafe: bool = False) -> str:
    store = RedisStore(url, InboxLimits(), allow_unsafe=allow_unsafe)
    try:
        await store.start(relay=RELAY, node=NODE)
        return store.inboxes.durability
    finally:
        await store.stop()


async def test_safe_settings_give_fsync(server_world: World) -> None:
    store = await server_world.node()
    assert store.inboxes.durability == "fsync"


async def test_memory_promises_no_more_than_memory(world: World) -> None:
    assert world.inboxes.durability == ("memory" if world.is_memory else "fsync")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("appendonly", "no"),
        ("appendfsync", "everysec"),
        ("no-appendfsync-on-rewrite", "yes"),
        ("maxmemory-policy", "allkeys-lru"),
    ],
)
async def test_an_unsafe_setting_is_refused_with_the_command_that_mends_it(
    server: RedisServer, setting: str, value: str
) -> None:
    raw = Redis.from_url(server.url)
    await raw.config_set(setting, value)
    with pytest.raises(UnavailableError, match=f"CONFIG SET {setting} ") as caught:
        await start(server.url)
    assert caught.value.code is ErrorCode.STORAGE_UNAVAILABLE
    assert await start(server.url, allow_unsafe=True) == "unverified"
    await raw.aclose()


async def test_where_settings_cannot_be_read_nothing_is_verified(server: RedisServer) -> None:
    raw = Redis.from_url(server.url)
    await raw.execute_command("ACL", "SETUSER", "default", "-config")
    assert await start(server.url) == "unverified"
    await raw.aclose()


async def test_with_a_replica_nothing_is_verified(tmp_path: Path) -> None:
    binary = str(find_server_binary().path)
    main = RedisServer(tmp_path / "main", binary=binary, port=free_port())
    await main.start()
    replica = RedisServer(
        tmp_path / "replica",
        binary=binary,
        port=free_port(),
        settings={"replicaof": f"127.0.0.1 {main.port}", "repl-diskless-sync-delay": "0"},
    )
    raw = Redis.from_url(main.url)
    try:
        await replica.start()

        async def attached() -> bool:
            return (await raw.info("replication"))["connected_slaves"] == 1

        await wait_until(attached, 20, "the replica is attached")
        assert await start(main.url) == "unverified"
    finally:
        await raw.aclose()
        replica.kill()
        main.kill()


async def test_a_store_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="does not answer") as caught:
        await start(f"unix://{tmp_path}/nothing.sock")
    assert caught.value.code is ErrorCode.STORAGE_UNAVAILABLE
    assert caught.value.retry_after == 1


@pytest.mark.parametrize(
    ("info", "is_enough"),
    [
        ({"redis_version": "7.0.0"}, True),
        ({"redis_version": "6.2.14"}, False),
        ({"redis_version": "10.0.1"}, True),
        ({"redis_version": "7.2.4", "valkey_version": "8.0.9"}, False),
        ({"redis_version": "7.2.4", "valkey_version": "8.1.0"}, True),
    ],
)
def test_a_server_that_is_too_old_is_refused(info: dict[str, str], *, is_enough: bool) -> None:
    said = _too_old(Primary("", info))
    assert said is None if is_enough else said is not None and "or later is needed" in said


def test_a_store_that_hovers_at_its_limit_does_not_flap() -> None:
    health = Health()
    guard = Guard(Client("redis://x", cluster=False, timeout_s=1, health=health), health)
    seen = []
    for used in (74, 75, 74, 70, 69, 74):
        guard._judge_memory(Primary("", {"maxmemory": "100", "used_memory": str(used)}))
        seen.append(bool(guard._full))
    assert seen == [False, True, True, True, False, False]
    guard._judge_memory(Primary("", {"maxmemory": "100", "used_memory": "99"}))
    guard._judge_memory(Primary("", {"maxmemory": "0", "used_memory": "99"}))
    assert not guard._full


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", ErrorCode.STORAGE_FULL),
        ("MISCONF Errors writing to the AOF file", ErrorCode.STORAGE_FULL),
        ("LOADING Redis is loading the dataset in memory", ErrorCode.STORAGE_UNAVAILABLE),
        ("MASTERDOWN Link with MASTER is down", ErrorCode.STORAGE_UNAVAILABLE),
        ("CLUSTERDOWN Hash slot not served", ErrorCode.STORAGE_UNAVAILABLE),
        ("READONLY You can't write against a read only replica.", ErrorCode.STORAGE_UNAVAILABLE),
        ("NOAUTH Authentication required.", ErrorCode.STORAGE_UNAVAILABLE),
        ("ERR something nobody thought of", ErrorCode.INTERNAL),
    ],
)
def test_what_the_server_says_has_a_name(said: str, code: ErrorCode) -> None:
    with pytest.raises(RelayError) as caught, translated():
        raise ResponseError(said)
    assert caught.value.code is code
    assert isinstance(caught.value.__cause__, ResponseError)


def test_info_is_read_whatever_the_client_made_of_it() -> None:
    text = b"# Memory\r\nused_memory:12\r\nmaxmemory_policy:noeviction\r\n"
    wanted = {"used_memory": "12", "maxmemory_policy": "noeviction"}
    assert parse_info(text) == wanted
    assert parse_info({"used_memory": 12, b"maxmemory_policy": b"noeviction"}) == wanted
