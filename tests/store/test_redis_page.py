"""REDIS.md, and the keys that a store really makes."""

from __future__ import annotations

from typing import Any

import pytest

from relay.directory.ports import RecordRow
from relay.inbox.model.types import AckRequest, Forwarded, InboxAck, InboxRole
from relay.migration.ports import MigrationChange, MigrationRow
from relay.peering.ports import PeerRow
from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.ids import AgentKey, Did, Seq
from relay.store.redis import keys
from tests.store.worlds import ALICE, LARGE, ME, NODE, World, entry, opened, ruled
from tests.support import redis_page

pytestmark = pytest.mark.timeout(60)
PEER, THERE = AgentKey("key:peer"), AgentKey("key:there")


def test_the_page_is_as_the_scripts_are() -> None:
    assert redis_page.PAGE.read_text() == redis_page.page(), (
        "python -m tests.support.redis_page writes it again"
    )


def test_every_key_that_a_script_names_is_listed_and_has_users() -> None:
    found = redis_page.users()
    listed = {kind.pattern: kind for kind in keys.KINDS}
    assert found.keys() - listed.keys() == set(), "keys.KINDS lacks it"
    for pattern, kind in listed.items():
        wrote, _ = found.get(pattern, ([], []))
        assert wrote or kind.by_python, f"nothing writes {pattern}"


def test_a_key_that_no_kind_describes_is_seen() -> None:
    assert redis_page.kind_of_key("relay:{3}:outbox:key:z") is not None
    assert redis_page.kind_of_key("relay:{3}:others:key:z") is None
    assert redis_page.kind_of_key("relay:{x}:due") is None


def record(seq: int, *, home: bool, digest: int = 0, **more: Any) -> RecordRow:
    version = RecordVersion(1, seq, bytes([digest]) * 32)
    return RecordRow(version, f"a.b.{seq}", names_us=home, **more)


async def use_everything(world: World) -> None:
    """Make at least one key of each kind."""
    store: Any = world.store
    session = await opened(store)
    await store.nodes.heartbeat(NODE, 30)
    await store.tokens.put(b"nonce", b"1", 30)
    await store.handles.claim("alice", Did("did:key:z6MkAlice"), 1)
    await store.peers.put(PeerRow(Did("did:key:z6MkPeer"), "https://p.example", "learned", 1))
    await ruled(store, session, allow=(ALICE,))
    await store.inboxes.append([entry(n) for n in range(70)])
    await store.inboxes.ack(
        [AckRequest(ME, InboxAck(session.fence, session.epoch, (Seq(2),), refuse=((Seq(3), "x"),)))]
    )
    await store.bounces.claim()
    await store.inboxes.ack(
        [AckRequest(ME, InboxAck(session.fence, session.epoch, (), refuse=((Seq(4), "x"),)))]
    )
    await store.records.merge([(THERE, record(5, home=False, introducer=PEER))])
    await store.records.merge([(THERE, record(6, home=True))])
    await store.records.merge([(THERE, record(7, home=False))])
    await store.records.merge([(THERE, record(7, home=False, digest=1))])
    await store.records.merge([(AgentKey("key:far"), record(5, home=False, introducer=PEER))])
    await store.inboxes.append([entry(n, inbox=THERE, peer=PEER) for n in (201, 202)])
    carrier = await opened(store, THERE, create=False, forwards=True)
    proof = Forwarded(PEER, b"r" * 32)
    await store.inboxes.ack(
        [AckRequest(THERE, InboxAck(carrier.fence, carrier.epoch, (Seq(1),), forwarded=proof))]
    )
    moving = AgentKey("key:moving")
    await store.migrations.change(moving, MigrationRow(), MigrationChange("side", InboxRole.PAUSED))
    old = AgentKey("key:old")
    await store.records.merge([(old, record(1, home=False, expires_at=1))])
    await store.records.purge()


async def test_a_run_makes_keys_of_every_kind_and_no_others(server_world: World) -> None:
    world = server_world
    world.limits = LARGE
    await world.node()
    await use_everything(world)
    made = {kind.pattern for kind in await world.check_keys()}
    # the lease of a sweep ends with it
    assert {kind.pattern for kind in keys.KINDS} - made == {"relay:{p}:lease:sweep"}
