"""What goes wrong with whole servers: down, hung, rolled back, emptied, full (GUARANTEES.md §2)."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from relay.health import ProblemReason
from relay.inbox.model.types import (
    AckRequest,
    InboxAck,
)
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
    UnavailableError,
)
from relay.protocol.ids import (
    AgentKey,
    Seq,
)
from relay.store.embedded import find_server_binary
from relay.store.redis import RedisStore
from tests.store.test_faults import read_until_answered as answered
from tests.store.worlds import (
    ALL,
    LARGE,
    ME,
    NODE,
    OTHER,
    RELAY,
    code,
    fresh,
    opened,
    request,
)
from tests.support.patience import wait_until
from tests.support.servers import (
    RedisServer,
    redis_cluster,
    why_missing,
)

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(params=["valkey", pytest.param("redis", marks=pytest.mark.redis)])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RedisServer]:
    binary = "redis-server"
    if request.param == "valkey":
        binary = str(find_server_binary().path)
    elif reason := why_missing():
        pytest.skip(reason)
    made = RedisServer(tmp_path / "server", binary=binary)
    await made.start()
    try:
        yield made
    finally:
        made.kill()


class Node:
    """A store over that server, as one process of the relay has it."""

    def __init__(self, server: RedisServer, file: Path | None, **options: Any) -> None:
        limits = options.pop("limits", LARGE)
        self.store = RedisStore(server.url, limits, rollback_file=file, **options)

    async def __aenter__(self) -> RedisStore:
        try:
            await self.store.start(relay=RELAY, node=NODE)
        except BaseException:
            await self.store.stop()
            raise
        return self.store

    async def __aexit__(self, *_: object) -> None:
        await self.store.stop()


@pytest.mark.alone
async def test_a_store_that_is_down_says_so_within_2_seconds_and_comes_back(
    server: RedisServer, tmp_path: Path
) -> None:
    async with Node(server, tmp_path / "file") as store:
        session = await opened(store)
        await store.inboxes.append([fresh(1)])
        server.kill()
        began = time.monotonic()
        (result,) = await store.inboxes.append([fresh(2)])
        assert (result.code, result.stored) == (ErrorCode.STORAGE_UNAVAILABLE, "unknown")
        with pytest.raises(UnavailableError, match="storage_unavailable"):
            await store.inboxes.read(ME, session.fence, Seq(0), ALL)
        assert time.monotonic() - began < 2
        assert store.health.has(ProblemReason.STORE_UNREACHABLE)
        await server.start()
        page = await answered(store, session)
        assert [item.seq for item in page.items] == [1]
        (result,) = await store.inboxes.append([fresh(2)])
        assert result.seq == 2
        assert not store.health.has(ProblemReason.STORE_UNREACHABLE)


@pytest.mark.alone
async def test_a_store_that_hangs_says_so_within_2_seconds(
    server: RedisServer, tmp_path: Path
) -> None:
    async with Node(server, tmp_path / "file") as store:
        await opened(store)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            (result,) = await store.inboxes.append([fresh(1)])
            assert result.code is ErrorCode.STORAGE_UNAVAILABLE
            assert time.monotonic() - began < 2.5
        finally:
            os.kill(server.pid, signal.SIGCONT)
        (result,) = await store.inboxes.append([fresh(1)])
        assert result.seq == 1


async def test_what_was_confirmed_survives_kill_9(server: RedisServer, tmp_path: Path) -> None:
    async with Node(server, tmp_path / "file") as store:
        await opened(store)
        await store.inboxes.append([fresh(n) for n in range(1, 51)])
        server.kill()
        await server.start()
    async with Node(server, tmp_path / "file") as store:
        session = await opened(store)
        page = await store.inboxes.read(ME, session.fence, Seq(0), ALL)
        assert [item.seq for item in page.items] == list(range(1, 51))


async def restore(server: RedisServer, copy: Path) -> None:
    """Bring back what the data directory was."""
    server.kill()
    shutil.rmtree(server.directory)
    shutil.copytree(copy, server.directory, ignore=shutil.ignore_patterns("*.sock"))
    await server.start()


async def backup(server: RedisServer, copy: Path) -> None:
    server.kill()
    shutil.copytree(server.directory, copy, ignore=shutil.ignore_patterns("*.sock"))
    await server.start()


@pytest.mark.parametrize("is_running", [True, False])
async def test_a_store_that_went_back_in_time_begins_new_epochs(
    server: RedisServer, tmp_path: Path, *, is_running: bool
) -> None:
    node = Node(server, tmp_path / "file")
    async with node as store:
        session = await opened(store)
        await store.inboxes.append([fresh(1)])
        await backup(server, tmp_path / "copy")
        await answered(store, session)
        (result,) = await store.inboxes.append([fresh(2)])
        assert result.seq == 2
        await restore(server, tmp_path / "copy")
        if is_running:
            refusal = await wait_until(lambda: try_read(store, session), 5, "an answer")
            assert code(refusal) is ErrorCode.INBOX_RESET
    async with Node(server, tmp_path / "file") as store:
        again = await opened(store)
        assert again.epoch != session.epoch
        assert again.fence > session.fence
        (result,) = await store.inboxes.append([fresh(2)])
        assert (result.seq, result.dup, result.session) == (2, False, None)
        page = await store.inboxes.read(ME, again.fence, Seq(0), ALL)
        assert [(item.seq, item.redelivered) for item in page.items] == [(1, True), (2, True)]
        (head,) = await store.inboxes.heads([ME])
        assert (head.epoch, head.fence) == (again.epoch, again.fence)


async def test_a_node_hears_of_a_rollback_before_it_reads_on(
    server: RedisServer, tmp_path: Path
) -> None:
    heard: list[str] = []
    async with Node(server, tmp_path / "file") as store, Node(server, tmp_path / "b") as other:
        store.wakeups.on_renewal(lambda: heard.append("a"))
        other.wakeups.on_renewal(lambda: heard.append("b"))
        session = await opened(store)
        await backup(server, tmp_path / "copy")
        # a store that was restarted as it was is no news
        await answered(store, session)
        await answered(other, session)
        assert heard == []
        await store.inboxes.append([fresh(1)])
        await other.inboxes.append([fresh(2)])
        await restore(server, tmp_path / "copy")
        refusal = await wait_until(lambda: try_read(store, session), 5, "an answer")
        assert code(refusal) is ErrorCode.INBOX_RESET
        assert heard == ["a"]
        refusal = await wait_until(lambda: try_read(other, session), 5, "an answer")
        assert code(refusal) is ErrorCode.INBOX_RESET
        assert heard == ["a", "b"]


async def try_read(store: Any, session: Any) -> Any:
    try:
        return await store.inboxes.read(ME, session.fence, Seq(0), ALL)
    except UnavailableError:
        return None


async def test_without_its_file_a_node_cannot_notice(server: RedisServer, tmp_path: Path) -> None:
    # the negative control of the test above: it is the file that proves it
    async with Node(server, None) as store:
        session = await opened(store)
        await backup(server, tmp_path / "copy")
        await answered(store, session)
        await store.inboxes.append([fresh(1)])
        await restore(server, tmp_path / "copy")
    async with Node(server, None) as store:
        assert (await opened(store)).epoch == session.epoch


async def test_a_store_that_was_emptied_is_not_a_new_one(
    server: RedisServer, tmp_path: Path
) -> None:
    async with Node(server, tmp_path / "file") as store:
        session = await opened(store)
        await store.inboxes.append([fresh(1)])
        raw = Redis.from_url(server.url)
        await raw.flushall()
        await raw.aclose()
        assert (
            code(await store.inboxes.read(ME, session.fence, Seq(0), ALL)) is ErrorCode.INBOX_RESET
        )
        (result,) = await store.inboxes.append([fresh(1)])
        assert code(result) is ErrorCode.UNKNOWN_INBOX
        again = await opened(store)
        assert again.epoch != session.epoch
        assert again.fence > session.fence
        (result,) = await store.inboxes.append([fresh(1)])
        page = await store.inboxes.read(ME, again.fence, Seq(0), ALL)
        assert [(item.seq, item.redelivered) for item in page.items] == [(1, True)]
        (acked,) = await store.inboxes.ack(
            [AckRequest(ME, InboxAck(session.fence, session.epoch, (Seq(1),)))]
        )
        assert code(acked) is ErrorCode.INBOX_RESET


async def test_two_nodes_notice_the_same_rollback_and_agree(
    server: RedisServer, tmp_path: Path
) -> None:
    async with Node(server, tmp_path / "a") as a, Node(server, tmp_path / "b") as b:
        session = await opened(a)
        await backup(server, tmp_path / "copy")
        await answered(a, session)
        await answered(b, session)
        await a.inboxes.append([fresh(1)])
        await b.inboxes.append([fresh(2)])
        await restore(server, tmp_path / "copy")
        await wait_until(lambda: try_read(a, session), 5, "a answers")
        await wait_until(lambda: try_read(b, session), 5, "b answers")
        await asyncio.gather(*(node.inboxes.heads([ME]) for node in (a, b) * 5))
        (head_a,), (head_b,) = await a.inboxes.heads([ME]), await b.inboxes.heads([ME])
        assert head_a == head_b
        assert head_a.epoch != session.epoch
        again = await opened(b, node=OTHER)
        assert again.epoch == head_a.epoch
        (result,) = await a.inboxes.append([fresh(1)])
        assert (result.seq, result.epoch) == (1, again.epoch)


async def test_a_torn_record_of_the_rollback_file_is_no_knowledge(
    server: RedisServer, tmp_path: Path
) -> None:
    async with Node(server, tmp_path / "file") as store:
        session = await opened(store)
    text = (tmp_path / "file").read_bytes()
    (tmp_path / "file").write_bytes(text.replace(b"1 ", b"9 ", 1))
    async with Node(server, tmp_path / "file") as store:
        assert (await opened(store)).epoch == session.epoch
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


# ---------------------------------------------------------------- memory


async def test_a_store_without_memory_refuses_submits_and_takes_acks(
    server: RedisServer, tmp_path: Path
) -> None:
    async with Node(server, tmp_path / "file") as store:
        session = await opened(store)
        await store.inboxes.append([fresh(n) for n in range(1, 101)])
        raw = Redis.from_url(server.url)
        used = (await raw.info("memory"))["used_memory"]
        await raw.config_set("maxmemory", used - 10_000)
        async with Node(server, tmp_path / "other") as other:
            assert await other.expiry.sweep(OTHER, [NODE]) == 0
            assert OTHER in await other.nodes.heartbeat(OTHER, 30)
        known, new = await store.inboxes.append([fresh(1), fresh(500)])
        assert known.dup
        assert (code(new), new.stored) == (ErrorCode.STORAGE_FULL, "no")
        again = await opened(store)
        page = await store.inboxes.read(ME, again.fence, Seq(0), ALL)
        assert len(page.items) == 100
        wanted = InboxAck(again.fence, session.epoch, tuple(item.seq for item in page.items))
        (acked,) = await store.inboxes.ack([AckRequest(ME, wanted)])
        assert acked.cursor == 100
        assert await store.inboxes.close(ME, again.fence, Seq(100))
        await raw.config_set("maxmemory", "256mb")
        await raw.aclose()
        (result,) = await store.inboxes.append([fresh(500)])
        assert result.seq == 101


async def test_submits_are_refused_while_there_is_still_room_for_acks(
    server: RedisServer, tmp_path: Path
) -> None:
    async with Node(server, tmp_path / "file") as store:
        session = await opened(store)
        await store.inboxes.append([fresh(1)])
        raw = Redis.from_url(server.url)
        background = asyncio.create_task(store.run())
        used = (await raw.info("memory"))["used_memory"]
        await raw.config_set("maxmemory", int(used / 0.8))
        numbers = itertools.count(2)

        async def refused() -> bool:
            (result,) = await store.inboxes.append([fresh(next(numbers))])
            return code(result) is ErrorCode.STORAGE_FULL

        async def taken() -> bool:
            (result,) = await store.inboxes.append([fresh(next(numbers))])
            return not isinstance(result, Refusal)

        await wait_until(refused, 10, "new envelopes are refused")
        none = await store.inboxes.open(request(AgentKey("key:new")))
        assert code(none) is ErrorCode.STORAGE_FULL
        (acked,) = await store.inboxes.ack(
            [AckRequest(ME, InboxAck(session.fence, session.epoch, (Seq(1),)))]
        )
        assert acked.cursor == 1
        await raw.config_set("maxmemory", "256mb")
        await wait_until(taken, 10, "new envelopes are taken again")
        background.cancel()
        await asyncio.gather(background, return_exceptions=True)
        await raw.aclose()


@pytest.mark.redis
@pytest.mark.cluster
async def test_a_master_that_is_down_fails_its_own_partitions_only(tmp_path: Path) -> None:
    if reason := why_missing():
        pytest.skip(reason)
    inboxes = [AgentKey(f"key:i{n}") for n in range(40)]
    settings = {"cluster-require-full-coverage": "no"}
    async with redis_cluster(tmp_path / "cluster", settings=settings) as cluster:
        node = Node(cluster.nodes[0], tmp_path / "file", cluster=True)
        async with node as store:
            for inbox in inboxes:
                await opened(store, inbox)
            cluster.nodes[1].kill()
            results = await store.inboxes.append([fresh(n, inbox=inboxes[n]) for n in range(40)])
            failed = {n for n, result in enumerate(results) if isinstance(result, Refusal)}
            assert 0 < len(failed) < 40
            assert {results[n].code for n in failed} == {ErrorCode.STORAGE_UNAVAILABLE}
            await cluster.nodes[1].start()

            async def all_stored() -> bool:
                again = await store.inboxes.append([fresh(n, inbox=inboxes[n]) for n in range(40)])
                return not any(isinstance(result, Refusal) for result in again)

            await wait_until(all_stored, 20, "the master serves again")
            final = await store.inboxes.append([fresh(n, inbox=inboxes[n]) for n in range(40)])
            assert [(result.seq, result.dup) for result in final] == [(1, True)] * 40
