"""What lies beside the inboxes: records, nodes, small values, the clock, wake-ups."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time

import pytest

from relay.directory.ports import (
    RecordRow,
)
from relay.inbox.model.types import (
    Accepted,
)
from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
    StateError,
)
from relay.protocol.ids import (
    AgentKey,
    Did,
    NodeId,
    Seq,
)
from relay.protocol.types import (
    Window,
)
from tests.store.worlds import ME, NODE, OTHER, RELAY, World, entry, opened
from tests.support.patience import wait_until

pytestmark = pytest.mark.timeout(60)


def row(kv: int, seq: int, digest: int = 0, *, names_us: bool = True) -> RecordRow:
    order = (kv, seq, bytes([digest]) * 32)
    return RecordRow(RecordVersion(*order), f"record.{kv}.{seq}.{digest}", names_us=names_us)


async def test_the_newest_record_is_kept_whatever_the_order_of_arrival(world: World) -> None:
    rows = [row(1, 5), row(1, 5, 9), row(1, 7, 200, names_us=False), row(2, 1, 127), row(2, 1, 128)]
    for number, order in enumerate(itertools.permutations(rows)):
        if number % 11:
            continue
        owner = AgentKey(f"key:owner{number}")
        for index, one in enumerate(order):
            (merged,) = await world.records.merge([(owner, one)])
            assert merged.held == max(order[: index + 1], key=lambda r: r.version)
        assert await world.records.get(owner) == row(2, 1, 128)
    assert await world.records.get(ME) is None


async def listed(world: World, most: int) -> list[AgentKey]:
    """All who have an inbox here, page by page."""
    found: list[AgentKey] = []
    cursor, is_last = "", False
    while not is_last:
        page = await world.inboxes.owners(cursor, most)
        found += page.owners
        cursor, is_last = page.cursor, not page.cursor
    return found


@pytest.mark.parametrize("most", [1, 7, 1_000])
async def test_all_inboxes_are_listed_at_home_or_away(world: World, most: int) -> None:
    assert await listed(world, most) == []
    owners = [AgentKey(f"key:owner{number}") for number in range(40)]
    for owner in owners:
        await opened(world.store, owner)
    away, elsewhere = owners[3], AgentKey("key:elsewhere")
    for owner in (away, elsewhere):
        await world.records.merge([(owner, row(1, 5, names_us=False))])
    # a record alone is no inbox, whatever it says
    await world.records.merge([(AgentKey("key:nobody"), row(1, 5))])
    await world.inboxes.append([entry(1, inbox=owners[0])])
    found = await listed(world, most)
    assert sorted(set(found)) == sorted(owners)


async def test_nodes_live_until_their_heartbeat_lapses_or_they_leave(world: World) -> None:
    store = world.store
    assert await store.nodes.heartbeat(NODE, 30) == {NODE}
    assert await store.nodes.heartbeat(OTHER, 30) == {NODE, OTHER}
    await store.nodes.leave(NODE)
    await store.nodes.leave(NODE)
    assert await store.nodes.heartbeat(OTHER, 30) == {OTHER}
    assert await store.nodes.heartbeat(NodeId("brief"), 0.05) == {OTHER, "brief"}

    async def lapsed() -> bool:
        await world.advance(1)
        return await store.nodes.heartbeat(OTHER, 3_000) == {OTHER}

    await wait_until(lapsed, 5, "a heartbeat lapses")


async def test_a_small_value_is_taken_once(world: World) -> None:
    store = world.store
    await store.tokens.put(b"nonce\x00\xff", b"value", 30)
    assert await store.tokens.get(b"nonce\x00\xff") == b"value"
    assert await store.tokens.pop(b"nonce\x00\xff") == b"value"
    assert await store.tokens.pop(b"nonce\x00\xff") is None
    assert await store.tokens.get(b"nonce\x00\xff") is None
    await store.tokens.put(b"brief", b"value", 0.05)

    async def lapsed() -> bool:
        await world.advance(1)
        return await store.tokens.get(b"brief") is None

    await wait_until(lapsed, 5, "a value lapses")
    assert await store.tokens.pop(b"brief") is None


async def test_a_value_is_taken_by_exactly_one_of_many(world: World) -> None:
    await world.store.tokens.put(b"once", b"value", 30)
    found = await asyncio.gather(*(world.store.tokens.pop(b"once") for _ in range(20)))
    assert sorted(found, key=bool) == [None] * 19 + [b"value"]


async def test_the_store_tells_its_own_time(real_time_world: World) -> None:
    store = await real_time_world.node()
    assert abs(await store.clock.time() - time.time()) < 5
    assert await store.clock.last_time() is None


async def test_the_clock_is_written_down_by_sweeps_for_the_next_start(
    real_time_world: World,
) -> None:
    store = await real_time_world.node()
    await store.expiry.sweep(NODE, [])
    written = await real_time_world.raw.hget("relay:store", "time")
    await store.expiry.sweep(NODE, [])
    assert await real_time_world.raw.hget("relay:store", "time") == written
    store = await real_time_world.restart()
    assert await store.clock.last_time() == int(written)


# ---------------------------------------------------------------- two nodes over one store


class Heard:
    """What a node's wake-ups said."""

    def __init__(self, store) -> None:
        self.hints: list[AgentKey] = []
        self.looks = 0
        store.wakeups.on_wake(self)

    def __call__(self, inboxes) -> None:
        self.hints += inboxes
        self.looks += not inboxes


async def test_a_node_hears_what_another_one_stored_for_its_sessions(server_world: World) -> None:
    world = server_world
    a, b = await world.node(NODE), await world.node(OTHER)
    heard_a, heard_b = Heard(a), Heard(b)
    inboxes = [AgentKey(f"key:i{n}") for n in range(6)]
    async with world.running(a, b):
        await wait_until(lambda: heard_a.looks and heard_b.looks, 10, "both listen")
        for inbox in inboxes:
            await opened(b, inbox, node=OTHER)
        results = await a.inboxes.append([entry(n, inbox=inboxes[n % 6]) for n in range(12)])
        assert {result.session.node for result in results} == {OTHER}
        await wait_until(lambda: set(heard_b.hints) >= set(inboxes), 5, "b hears of all")
        await opened(b, inboxes[0], node=OTHER)
        await b.inboxes.append([entry(99, inbox=inboxes[0])])
    assert heard_a.hints == []
    assert len(heard_b.hints) == 6


async def test_the_node_of_a_superseded_session_hears_of_it(server_world: World) -> None:
    world = server_world
    a, b = await world.node(NODE), await world.node(OTHER)
    heard = Heard(a)
    async with world.running(a):
        await wait_until(lambda: heard.looks, 10, "a listens")
        old = await opened(a)
        new = await opened(b, node=OTHER)
        await wait_until(lambda: heard.hints == [ME], 5, "a hears of it")
    (head,) = await a.inboxes.heads([ME])
    assert head.fence == new.fence > old.fence
    refusal = await a.inboxes.read(ME, old.fence, Seq(0), Window())
    assert isinstance(refusal, Refusal)
    assert refusal.code is ErrorCode.SUPERSEDED


async def test_what_must_be_read_back_wakes_the_own_node_too(server_world: World) -> None:
    world = server_world
    a = await world.node(NODE)
    heard = Heard(a)
    async with world.running(a):
        await wait_until(lambda: heard.looks, 10, "a listens")
        session = await opened(a)
        (result,) = await a.inboxes.append([entry(1, marked=True)])
        assert result == Accepted(Seq(1), session.epoch, dup=False, session=None, stranger=True)
        await wait_until(lambda: heard.hints == [ME], 5, "a hears of its own entry")


async def test_a_subscription_that_breaks_is_made_again_and_everything_looked_at(
    server_world: World,
) -> None:
    world = server_world
    a, b = await world.node(NODE), await world.node(OTHER)
    heard = Heard(b)
    async with world.running(b):
        await wait_until(lambda: heard.looks, 10, "b listens")
        await opened(b, node=OTHER)
        looks = heard.looks
        where = {"target_nodes": world.raw.get_primaries()} if world.backend.is_cluster else {}
        await world.raw.execute_command("CLIENT", "KILL", "TYPE", "pubsub", **where)
        await wait_until(lambda: heard.looks > looks, 10, "b looks at everything")

        async def heard_again() -> bool:
            (result,) = await a.inboxes.append([entry(len(numbers) + 1)])
            numbers.append(result.seq)
            # one at a time: a quick store would fill the sender's quota before the hint is there
            with contextlib.suppress(AssertionError):
                await wait_until(lambda: heard.hints, 0.2, "the hint of this one")
            return bool(heard.hints)

        numbers: list[int] = []
        await wait_until(heard_again, 10, "b hears again")


async def test_a_store_of_another_relay_is_refused(server_world: World) -> None:
    await server_world.node(NODE)
    with pytest.raises(StateError, match="belongs to did:key:z6MkRelay") as caught:
        await server_world.node(OTHER, relay=Did("did:key:z6MkStranger"))
    assert caught.value.code is ErrorCode.WRONG_RELAY
    await server_world.node(OTHER, relay=RELAY)


async def test_the_number_of_partitions_is_the_stores_and_not_the_settings(
    server_world: World,
) -> None:
    world = server_world
    a = await world.node(NODE, partitions=4)
    b = await world.node(OTHER, partitions=7)
    world.options["partitions"] = 4
    await world.set_time(world.now)
    inboxes = [AgentKey(f"key:i{n}") for n in range(10)]
    for inbox in inboxes:
        await opened(a, inbox)
    results = await b.inboxes.append([entry(n, inbox=inbox) for n, inbox in enumerate(inboxes)])
    assert [result.seq for result in results] == [1] * 10
