"""What a store does when entries, keys, scripts or connections are lost or altered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from relay.inbox.model.types import (
    AckRequest,
    Disposition,
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
from relay.protocol.types import (
    DedupKey,
    Range,
    Reason,
)
from tests.store.worlds import (
    ALL,
    HOUR,
    ME,
    NOW,
    World,
    code,
    entry,
    opened,
    wire,
)
from tests.support.patience import wait_until

pytestmark = pytest.mark.timeout(60)


# ---------------------------------------------------------------- the store lost or altered entries


async def test_a_hole_begins_a_new_epoch(server_world: World) -> None:
    store = await server_world.node()
    session = await opened(store)
    await store.inboxes.append([entry(n) for n in range(1, 6)])
    await server_world.raw.xdel(server_world.key("stream"), "2-0", "5-0")
    assert code(await store.inboxes.read(ME, session.fence, Seq(0), ALL)) is ErrorCode.INBOX_RESET
    wanted = InboxAck(session.fence, session.epoch, (Seq(1),))
    (acked,) = await store.inboxes.ack([AckRequest(ME, wanted)])
    assert code(acked) is ErrorCode.INBOX_RESET
    assert code(await store.inboxes.read(ME, session.fence, Seq(0), ALL)) is ErrorCode.INBOX_RESET
    again = await opened(store)
    assert again.epoch != session.epoch
    assert again.fence > session.fence
    size = sum(len(wire(n)) for n in (1, 3, 4))
    assert (again.pending.count, again.pending.bytes) == (3, size)
    page = await store.inboxes.read(ME, again.fence, Seq(0), ALL)
    assert [(item.seq, item.redelivered) for item in page.items] == [(1, True), (3, True),
                                                                     (4, True)]  # fmt: skip
    assert page.gaps == (
        Range(Seq(2), Seq(2), Reason.CORRUPT), Range(Seq(5), Seq(5), Reason.CORRUPT),
    )  # fmt: skip


async def test_after_a_new_epoch_what_is_older_than_it_is_marked(server_world: World) -> None:
    store = await server_world.node()
    session = await opened(store)
    await store.inboxes.append([entry(1)])
    await server_world.raw.delete(server_world.key("stream"))
    await store.inboxes.read(ME, session.fence, Seq(0), ALL)
    again = await opened(store)
    late = [entry(2, created_at=NOW + 299), entry(3, created_at=NOW + 300)]
    await store.inboxes.append(late)
    page = await store.inboxes.read(ME, again.fence, Seq(0), ALL)
    assert [(item.seq, item.redelivered) for item in page.items] == [(2, True), (3, False)]


async def test_an_envelope_that_the_store_lost_is_no_duplicate(server_world: World) -> None:
    store = await server_world.node()
    await opened(store)
    await store.inboxes.append([entry(1), entry(2)])
    await server_world.raw.xdel(server_world.key("stream"), "1-0")
    store.refuse_appends("full")
    refused, kept = await store.inboxes.append([entry(1), entry(2)])
    assert code(refused) is ErrorCode.STORAGE_FULL
    assert kept.dup
    store.refuse_appends(None)
    anew, known, new = await store.inboxes.append([entry(1), entry(2), entry(3)])
    assert (anew.seq, anew.dup, anew.session) == (4, False, None)
    assert (known.seq, known.dup, new.seq) == (2, True, 3)
    (again,) = await store.inboxes.append([entry(1)])
    assert (again.seq, again.dup) == (4, True)


async def test_an_empty_inbox_does_not_look_like_a_lost_one(server_world: World) -> None:
    store = await server_world.node()
    session = await opened(store)
    await store.inboxes.append([entry(1)])
    await server_world.raw.delete(server_world.key("stream"))
    assert code(await store.inboxes.read(ME, session.fence, Seq(0), ALL)) is ErrorCode.INBOX_RESET


@pytest.mark.parametrize("damage", ["wire", "facts", "garbage", "other envelope"])
async def test_an_altered_entry_is_told_as_corrupt_and_never_handed_over(
    server_world: World, damage: str
) -> None:
    store, raw = await server_world.node(), server_world.raw
    session = await opened(store)
    await store.inboxes.append([entry(n) for n in range(1, 3)])
    stream = server_world.key("stream")
    (_, first), (_, fields) = await raw.xrange(stream)
    facts, text = fields[b"s"], fields[b"w"]
    altered = {
        "wire": {"s": facts, "w": text.replace(b"head", b"hEad")},
        "facts": {"s": facts[:30] + bytes([facts[30] ^ 1]) + facts[31:], "w": text},
        "garbage": {"x": b"y"},
        "other envelope": {"s": facts, "w": wire(7)},
    }[damage]
    await raw.delete(stream)
    await raw.xadd(stream, first, id="1-0")
    await raw.xadd(stream, altered, id="2-0")
    await store.inboxes.append([entry(3)])
    page = await store.inboxes.read(ME, session.fence, Seq(0), ALL)
    assert [item.seq for item in page.items] == [1, 3]
    assert page.gaps == (Range(Seq(2), Seq(2), Reason.CORRUPT),)
    batches = await store.bounces.claim()
    assert len(batches) == (0 if damage == "garbage" else 1)
    (disposition,) = await store.inboxes.status(ME, [DedupKey(entry(2).dedupe_key, HOUR)])
    assert disposition[0] in {Disposition.CORRUPT, Disposition.STORED}


async def test_an_item_whose_keys_are_broken_leaves_no_trace_and_hurts_no_other(
    server_world: World,
) -> None:
    store, raw = await server_world.node(), server_world.raw
    you = AgentKey("key:you")
    for inbox in (ME, you):
        await opened(store, inbox)
    for kind in ("stream", "expiry", "hours"):
        await raw.set(server_world.key(kind), "not what it should be")
        broken, good = await store.inboxes.append([entry(1), entry(hash(kind) % 10**9, inbox=you)])
        assert code(broken) is ErrorCode.STORAGE_UNAVAILABLE
        assert not good.dup
        await raw.delete(server_world.key(kind))
        (disposition,) = await store.inboxes.status(ME, [DedupKey(entry(1).dedupe_key, HOUR)])
        assert disposition is None
    (result,) = await store.inboxes.append([entry(1)])
    assert (result.seq, result.dup) == (1, False)
    assert (await opened(store)).pending.count == 1


async def test_scripts_that_the_store_forgot_are_taught_again(server_world: World) -> None:
    store = await server_world.node()
    session = await opened(store)
    where = (
        {"target_nodes": server_world.raw.get_primaries()}
        if server_world.backend.is_cluster
        else {}
    )
    for n in range(1, 4):
        await server_world.raw.execute_command("SCRIPT FLUSH", **where)
        (result,) = await store.inboxes.append([entry(n)])
        assert (result.seq, result.dup) == (n, False)
    await server_world.raw.execute_command("SCRIPT FLUSH", **where)
    assert len((await store.inboxes.read(ME, session.fence, Seq(0), ALL)).items) == 3


async def test_a_killed_connection_is_replaced(server_world: World) -> None:
    store = await server_world.node()
    session = await opened(store)
    where = (
        {"target_nodes": server_world.raw.get_primaries()}
        if server_world.backend.is_cluster
        else {}
    )

    async def killer() -> None:
        for _ in range(10):
            await server_world.raw.execute_command("CLIENT", "KILL", "TYPE", "normal", **where)
            await asyncio.sleep(0.01)

    killing = asyncio.create_task(killer())
    stored: set[int] = set()
    for n in range(1, 13):
        while n not in stored:
            (result,) = await store.inboxes.append([entry(n)])
            if not isinstance(result, Refusal):
                assert result.seq == n
                stored.add(n)
            else:
                assert (result.code, result.stored) == (ErrorCode.STORAGE_UNAVAILABLE, "unknown")
    await killing
    await server_world.raw.aclose()
    page = await read_until_answered(store, session)
    assert [item.seq for item in page.items] == list(range(1, 13))


async def read_until_answered(store: Any, session: Any) -> Any:
    async def page() -> Any:
        try:
            return await store.inboxes.read(ME, session.fence, Seq(0), ALL)
        except UnavailableError:
            return None

    return await wait_until(page, 5, "the store answers")
