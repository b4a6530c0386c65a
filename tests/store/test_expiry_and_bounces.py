"""How entries end without an ack, and who is told: sweeps and bounces (GUARANTEES.md R6)."""

from __future__ import annotations

from typing import Any

import pytest

from relay.inbox.model.types import (
    AckRequest,
    InboxAck,
    LiveSession,
    PendingBounce,
)
from relay.protocol.ids import (
    AgentKey,
    NodeId,
    Seq,
)
from relay.protocol.types import (
    DedupKey,
    Range,
    Reason,
    Window,
)
from tests.store.worlds import ALL, HOUR, ME, NODE, NOW, OTHER, World, eid, entry, opened

pytestmark = pytest.mark.timeout(60)
ALICE, CAROL = AgentKey("key:alice"), AgentKey("key:carol")
DEAD = NodeId("a-node-that-is-gone")


async def gaps(store: Any, fence: Any) -> tuple[Range, ...]:
    page = await store.inboxes.read(ME, fence, Seq(0), ALL)
    return page.gaps


async def end_by_sweep(world: World, nodes: list[NodeId]) -> int:
    await world.advance(310)
    return await world.store.expiry.sweep(NODE, nodes)


# ---------------------------------------------------------------- sweep


async def test_a_sweep_ends_what_expired_300_seconds_ago(world: World) -> None:
    session = await opened(world.store, node=DEAD)
    times = [NOW + 10, NOW + 11, NOW + 500]
    await world.inboxes.append([entry(n, expires_at=times[n - 1]) for n in range(1, 4)])
    await world.advance(310)
    assert await world.store.expiry.sweep(NODE, [NODE]) == 1
    assert await world.store.expiry.sweep(NODE, [NODE]) == 0
    await world.advance(1)
    assert await world.store.expiry.sweep(NODE, [NODE]) == 1
    assert await gaps(world.store, session.fence) == (Range(Seq(1), Seq(2), Reason.EXPIRED),)


async def test_a_sweep_leaves_what_a_live_session_may_have_in_flight(world: World) -> None:
    session = await opened(world.store, node=OTHER, window=Window(2, 10_000))
    await world.inboxes.append([entry(n, expires_at=NOW + 5) for n in range(1, 5)])
    assert await end_by_sweep(world, [NODE, OTHER]) == 2
    assert await world.store.expiry.sweep(NODE, [NODE, OTHER]) == 0
    await world.inboxes.close(ME, session.fence, Seq(2))
    assert await world.store.expiry.sweep(NODE, [NODE, OTHER]) == 2


async def test_the_session_of_a_dead_node_holds_nothing(world: World) -> None:
    await opened(world.store, node=OTHER)
    await world.inboxes.append([entry(1, expires_at=NOW + 5)])
    assert await end_by_sweep(world, [NODE]) == 1


async def test_a_session_without_a_connection_holds_what_it_took_until_it_ends(
    world: World,
) -> None:
    session = await opened(world.store, window=Window(1, 10_000), until=NOW + 400)
    await world.inboxes.append([entry(n, expires_at=NOW + 5) for n in range(1, 4)])
    await world.inboxes.fetch(ME, LiveSession(session.fence, NODE, NOW + 400), Window(2, 10_000))
    assert await end_by_sweep(world, [NODE]) == 1
    await world.advance(100)
    assert await world.store.expiry.sweep(NODE, [NODE]) == 2


async def test_a_sweep_reaches_every_inbox(world: World) -> None:
    inboxes = [AgentKey(f"key:i{n}") for n in range(150)]
    for inbox in inboxes:
        session = await opened(world.store, inbox)
        await world.inboxes.close(inbox, session.fence, Seq(0))
    made = [entry(n, inbox=inbox, expires_at=NOW + 5) for n, inbox in enumerate(inboxes)]
    await world.inboxes.append(made)
    assert await end_by_sweep(world, []) == 150


async def test_held_inboxes_do_not_hide_those_behind_them(world: World) -> None:
    inboxes = [AgentKey(f"key:i{n}") for n in range(140)]
    for inbox in inboxes:
        await opened(world.store, inbox, node=OTHER)
    await world.inboxes.append(
        [entry(n, inbox=inbox, expires_at=NOW + 5) for n, inbox in enumerate(inboxes)]
    )
    late = AgentKey("key:late")
    await opened(world.store, late, node=DEAD)
    await world.inboxes.append([entry(999, inbox=late, expires_at=NOW + 6)])
    assert await end_by_sweep(world, [NODE, OTHER]) == 1


async def test_a_large_inbox_ends_in_one_sweep_of_bounded_steps(world: World) -> None:
    world.limits = type(world.limits)(max_count=2_000, sender_count=2_000, dedupe_entries=5_000)
    store = await world.restart()
    await opened(store, node=DEAD)
    for start in range(1, 901, 100):
        await store.inboxes.append(
            [entry(n, expires_at=NOW + 5) for n in range(start, start + 100)]
        )
    assert await end_by_sweep(world, [NODE]) == 900


async def test_ids_are_forgotten_when_all_of_their_hour_has_expired(world: World) -> None:
    session = await opened(world.store)
    await world.inboxes.append([entry(1), entry(2, hour=HOUR - 1, expires_at=NOW + 5_000)])
    ack = InboxAck(session.fence, session.epoch, (Seq(1), Seq(2)))
    await world.inboxes.ack([AckRequest(ME, ack)])
    questions = [DedupKey(entry(1).dedupe_key, HOUR), DedupKey(entry(2).dedupe_key, HOUR - 1)]
    await world.advance(1_600)
    await world.store.expiry.sweep(NODE, [NODE])
    assert None not in await world.inboxes.status(ME, questions)
    await world.advance(1)
    await world.store.expiry.sweep(NODE, [NODE])
    first, second = await world.inboxes.status(ME, questions)
    assert first is None
    assert second is not None
    await world.advance(4_000)
    await world.store.expiry.sweep(NODE, [NODE])
    assert await world.inboxes.status(ME, questions) == [None, None]


# ---------------------------------------------------------------- bounces


async def refuse(world: World, *numbers: int, why: str = "cannot be opened") -> None:
    session = await opened(world.store)
    ack = InboxAck(session.fence, session.epoch, (), refuse=tuple((Seq(n), why) for n in numbers))
    await world.inboxes.ack([AckRequest(ME, ack)])


async def test_a_refused_envelope_bounces_at_once(world: World) -> None:
    await opened(world.store)
    await world.inboxes.append([entry(1), entry(2)])
    await refuse(world, 2)
    (batch,) = await world.store.bounces.claim()
    assert (batch.sender, batch.decided_at) == (ALICE, NOW)
    assert batch.intents == (PendingBounce(ALICE, eid(2), ME, "cannot be opened", True, NOW),)


async def test_an_expired_envelope_bounces_when_skewed_clocks_agree(world: World) -> None:
    session = await opened(world.store, window=Window(1, 10_000))
    await world.inboxes.append([entry(n, expires_at=NOW + 5) for n in (1, 2)])
    await world.inboxes.close(ME, session.fence, Seq(1))
    await world.advance(10)
    session = await opened(world.store)
    await world.inboxes.close(ME, session.fence, Seq(1))
    await world.inboxes.finalize(ME, [Seq(1), Seq(2)], Reason.EXPIRED)
    assert await world.store.bounces.claim() == []
    await world.advance(294)
    assert await world.store.bounces.claim() == []
    await world.advance(1)
    (batch,) = await world.store.bounces.claim()
    assert {(one.eid, one.reason, one.maybe_delivered, one.due_at) for one in batch.intents} == {
        (eid(1), "expired", True, NOW + 305),
        (eid(2), "expired", False, NOW + 305),
    }


async def test_a_bounce_never_bounces(world: World) -> None:
    await opened(world.store)
    await world.inboxes.append([entry(1, bounces=False)])
    await refuse(world, 1)
    assert await world.store.bounces.claim() == []


async def test_a_batch_stays_as_it_was_until_it_is_finished(world: World) -> None:
    await opened(world.store)
    await world.inboxes.append([entry(1), entry(2)])
    await refuse(world, 1)
    (batch,) = await world.store.bounces.claim()
    await refuse(world, 2)
    await world.advance(50)
    assert await world.store.bounces.claim() == [batch]
    assert await world.store.bounces.claim() == [batch]
    await world.store.bounces.finalize(batch)
    await world.store.bounces.finalize(batch)
    (second,) = await world.store.bounces.claim()
    assert [one.eid for one in second.intents] == [eid(2)]
    assert second.token != batch.token
    assert second.decided_at == NOW + 50
    await world.store.bounces.finalize(batch)
    assert await world.store.bounces.claim() == [second]
    await world.store.bounces.finalize(second)
    assert await world.store.bounces.claim() == []


async def test_of_a_batch_that_another_node_finished_nothing_is_remembered(
    embedded_world: World,
) -> None:
    world = embedded_world
    node, other = await world.node(NODE), await world.node(OTHER)
    await opened(world.store)
    await world.inboxes.append([entry(1)])
    await refuse(world, 1)
    (batch,) = await node.bounces.claim()
    assert await other.bounces.claim() == [batch]
    await other.bounces.finalize(batch)
    assert await node.bounces.claim() == []
    assert node.bounces._from == {}
    # a repeat, when it has been forgotten where the batch lay, does nothing
    await node.bounces.finalize(batch)


async def test_each_sender_gets_a_batch_of_its_own(world: World) -> None:
    await opened(world.store)
    await world.inboxes.append([entry(1), entry(2, sender=CAROL), entry(3)])
    await refuse(world, 1, 2, 3)
    batches = {batch.sender: batch for batch in await world.store.bounces.claim()}
    assert {one.eid for one in batches[ALICE].intents} == {eid(1), eid(3)}
    assert {one.eid for one in batches[CAROL].intents} == {eid(2)}


async def test_a_batch_has_at_most_256_intents(world: World) -> None:
    world.limits = type(world.limits)(max_count=2_000, sender_count=2_000, dedupe_entries=5_000)
    store = await world.restart()
    await opened(store)
    await store.inboxes.append([entry(n) for n in range(1, 301)])
    await refuse(world, *range(1, 301))
    found: list[str] = []
    while batches := await store.bounces.claim():
        (batch,) = batches
        assert len(batch.intents) <= 256
        found += [one.eid for one in batch.intents]
        await store.bounces.finalize(batch)
    assert sorted(found) == sorted(eid(n) for n in range(1, 301))


async def test_a_batch_can_be_finished_by_a_node_that_did_not_take_it(world: World) -> None:
    await opened(world.store)
    await world.inboxes.append([entry(1)])
    await refuse(world, 1)
    (batch,) = await world.store.bounces.claim()
    other = await world.node(OTHER)
    assert await other.bounces.claim() == [batch]
    await other.bounces.finalize(batch)
    assert await world.store.bounces.claim() == []
