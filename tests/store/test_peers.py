"""Other relays, and names under this one, as the store keeps them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from relay.directory import local_handles
from relay.directory.local_handles import RESERVED_S
from relay.directory.ports import (
    HandleRow,
)
from relay.peering.ports import (
    PeerRow,
)
from relay.protocol.ids import Did
from tests.store.worlds import NOW, World

pytestmark = pytest.mark.timeout(60)
ALICE, BOB = Did("did:key:z6MkAlice"), Did("did:key:z6MkBob")
PEER = PeerRow(Did("did:key:z6MkPeer"), "https://peer.example", "added", NOW)
LEARNED = PeerRow(Did("did:key:z6MkOther"), "https://ü.example", "learned", NOW, "a.b.c")


async def test_peers_are_written_down_replaced_and_forgotten(world: World) -> None:
    store = world.store
    assert await store.peers.all() == []
    await store.peers.put(PEER)
    await store.peers.put(LEARNED)
    await store.peers.put(replace(PEER, standing="blocked"))
    if not world.is_memory:
        store = await world.restart()
    found = sorted(await store.peers.all(), key=lambda row: row.standing)
    assert found == [replace(PEER, standing="blocked"), LEARNED]
    assert await store.peers.remove(PEER.did)
    assert not await store.peers.remove(PEER.did)
    assert await store.peers.all() == [LEARNED]


async def test_a_peer_is_replaced_only_where_the_store_says_what_was_read(world: World) -> None:
    store = world.store
    blocked, newer = replace(LEARNED, standing="blocked"), replace(LEARNED, info="d.e.f")
    assert not await store.peers.replace(LEARNED, newer)
    assert await store.peers.replace(None, LEARNED)
    assert not await store.peers.replace(None, newer)
    await store.peers.put(blocked)
    assert not await store.peers.replace(LEARNED, newer)
    assert await store.peers.all() == [blocked]
    assert await store.peers.replace(blocked, newer)
    assert await store.peers.all() == [newer]


async def test_a_name_is_whose_it_was_first(world: World) -> None:
    store = world.store
    assert await store.handles.get("alice") is None
    row = HandleRow("alice", ALICE, NOW)
    assert await store.handles.claim("alice", ALICE, NOW) == row
    assert await store.handles.claim("alice", BOB, NOW + 1) == row
    assert await store.handles.claim("alice", ALICE, NOW + 2) == row
    if not world.is_memory:
        store = await world.restart()
    assert await store.handles.get("alice") == row
    assert await store.handles.claim("bob", BOB, NOW) == HandleRow("bob", BOB, NOW)
    assert sorted(row.name for row in await store.handles.all()) == ["alice", "bob"]


async def test_a_name_that_was_left_is_its_agents_for_a_year(world: World) -> None:
    store = world.store
    await store.handles.claim("alice", ALICE, NOW)
    left = HandleRow("alice", ALICE, NOW, left_at=NOW + 10)
    await store.handles.put(left)
    assert await store.handles.claim("alice", BOB, NOW + 9 + RESERVED_S) == left
    back = HandleRow("alice", ALICE, NOW)
    assert await store.handles.claim("alice", ALICE, NOW + 20) == back
    await store.handles.put(left)
    later = NOW + 10 + RESERVED_S
    assert await store.handles.claim("alice", BOB, later) == HandleRow("alice", BOB, later)
    assert await store.handles.get("alice") == HandleRow("alice", BOB, later)


async def test_without_the_year_a_name_would_go_to_whoever_asks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control."""
    monkeypatch.setattr(local_handles, "RESERVED_S", 0)
    with pytest.raises(AssertionError):
        await test_a_name_that_was_left_is_its_agents_for_a_year(world)


async def test_of_many_that_ask_at_once_one_gets_the_name(world: World) -> None:
    asked = [Did(f"did:key:z6Mk{number}") for number in range(20)]
    # connections first, else whoever has one already is always alone
    await asyncio.gather(*(world.store.handles.get("name") for _ in asked))
    rows = await asyncio.gather(*(world.store.handles.claim("name", did, NOW) for did in asked))
    assert len(set(rows)) == 1
    assert await world.store.handles.get("name") == rows[0]


async def test_without_the_comparison_two_nodes_would_both_get_it(embedded_world: World) -> None:
    """The negative control."""
    await embedded_world.node()
    guard = "if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end"
    embedded_world.mutations.edit(guard, "")
    with pytest.raises(AssertionError):
        await test_of_many_that_ask_at_once_one_gets_the_name(embedded_world)
