"""Old data put back together with the file that should have told: seen all the same (§2, rollback).

How a file that was kept gives a rollback away is in ``test_outages.py``.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.health import ProblemReason
from relay.protocol.ids import (
    Partition,
    Seq,
)
from relay.store.embedded import find_server_binary
from relay.store.redis.lineage import RollbackFile
from tests.store.test_outages import Node, backup, restore
from tests.store.worlds import ALL, ME, fresh, opened
from tests.support.servers import (
    RedisServer,
    redis_server,
)

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    binary = str(find_server_binary().path)
    async with redis_server(tmp_path / "server", binary=binary) as made:
        yield made


async def test_a_rollback_file_that_was_put_back_with_its_store_is_no_witness(
    server: RedisServer, tmp_path: Path
) -> None:
    file, kept = tmp_path / "file", tmp_path / "file.kept"
    async with Node(server, file) as store:
        session = await opened(store)
        await store.inboxes.append([fresh(1)])
    shutil.copy2(file, kept)
    await backup(server, tmp_path / "copy")
    async with Node(server, file) as store:
        # the same file again: nothing was put back, nothing is said
        assert (await opened(store)).epoch == session.epoch
        assert not store.health.has(ProblemReason.STORE_ROLLED_BACK)
        await store.inboxes.append([fresh(2)])
    await restore(server, tmp_path / "copy")
    file.unlink()
    shutil.copy2(kept, file)
    async with Node(server, file) as store:
        assert store.health.has(ProblemReason.STORE_ROLLED_BACK)
        again = await opened(store)
        assert again.epoch != session.epoch
        page = await store.inboxes.read(ME, again.fence, Seq(0), ALL)
        assert [(item.seq, item.redelivered) for item in page.items] == [(1, True)]
    async with Node(server, file) as store:
        # said once: from then on the file is this node's own
        assert (await opened(store)).epoch == again.epoch
        assert not store.health.has(ProblemReason.STORE_ROLLED_BACK)


async def test_what_the_file_of_the_only_node_does_not_know_was_put_back(
    server: RedisServer, tmp_path: Path
) -> None:
    async with Node(server, tmp_path / "file", is_own=True) as store:
        # a new store is no old one
        assert not store.health.has(ProblemReason.STORE_ROLLED_BACK)
        session = await opened(store)
        await store.inboxes.append([fresh(1)])
        page = await store.inboxes.read(ME, session.fence, Seq(0), ALL)
        assert [item.redelivered for item in page.items] == [False]
    (tmp_path / "file").unlink()
    async with Node(server, tmp_path / "file", is_own=True) as store:
        assert store.health.has(ProblemReason.STORE_ROLLED_BACK)
        assert (await opened(store)).epoch != session.epoch


async def test_a_rollback_file_of_an_earlier_version_is_believed(
    server: RedisServer, tmp_path: Path
) -> None:
    async with Node(server, tmp_path / "file") as store:
        session = await opened(store)
    number, token, commits, *_ = (tmp_path / "file").read_text().split()
    text = f"{number} {token} {commits}".encode()
    (tmp_path / "file").write_bytes(b"%b %08x" % (text, zlib.crc32(text)))
    async with Node(server, tmp_path / "file") as store:
        assert (await opened(store)).epoch == session.epoch
        assert not store.health.has(ProblemReason.STORE_ROLLED_BACK)
    assert len((tmp_path / "file").read_text().split()) == 5


async def test_a_copy_is_no_witness_until_its_partition_was_renewed(
    server: RedisServer, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    async with Node(server, file) as store:
        await opened(store)
    kept = file.read_bytes()
    async with Node(server, file) as store:
        await opened(store)
    file.write_bytes(kept)
    # a start that ends before it has looked at the store
    RollbackFile(file).close()
    again = RollbackFile(file)
    known = again.read(Partition(0))
    again.close()
    assert known is not None
    assert (known.token, again.is_copy) == ("", True)


async def test_a_disk_that_takes_no_new_file_leaves_the_old_one_in_use(
    server: RedisServer, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    async with Node(server, file) as store:
        session = await opened(store)
    name = file.read_text().split()[3]
    # a directory in its place stops even root
    (tmp_path / "file.new").mkdir()
    async with Node(server, file) as store:
        assert (await opened(store)).epoch == session.epoch
        assert not store.health.has(ProblemReason.STORE_ROLLED_BACK)
    assert file.read_text().split()[3] == name
    (tmp_path / "file.new").rmdir()
    async with Node(server, file) as store:
        assert (await opened(store)).epoch == session.epoch
    assert file.read_text().split()[3] != name
