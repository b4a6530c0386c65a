"""Inboxes of agents that live elsewhere: what waits for couriers (GUARANTEES.md S1, R7)."""

from __future__ import annotations

from typing import Any

import pytest

from relay.directory.ports import (
    RecordRow,
)
from relay.forwarding.ports import (
    DueOutbox,
)
from relay.inbox.model.store_contract import LEASE_S
from relay.inbox.model.types import (
    Accepted,
    AckRequest,
    AckResult,
    Disposition,
    Forwarded,
    InboxAck,
    LiveSession,
    OpenedSession,
    OutboxLimits,
    Page,
    PendingBounce,
    RememberedId,
)
from relay.inbox.ports import (
    InboxHead,
)
from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
)
from relay.protocol.ids import (
    AgentKey,
    Fence,
    Seq,
)
from relay.protocol.types import (
    DedupKey,
    Range,
    Reason,
    Window,
)
from tests.store.test_nodes_and_clock import Heard
from tests.store.worlds import (
    ALICE,
    ALL,
    HOUR,
    ME,
    NODE,
    NOW,
    OTHER,
    World,
    code,
    eid,
    entry,
    opened,
    opened_to,
    request,
    ruled,
)  # fmt: skip
from tests.support.patience import wait_until

pytestmark = pytest.mark.timeout(60)
PEER, PEER2 = AgentKey("key:peer"), AgentKey("key:peer2")
BOB = AgentKey("key:bob")
RECEIPT = bytes(range(32))
FORWARDED = Forwarded(PEER, RECEIPT)


async def moves(store: Any, seq: int, *, home: bool, owner: AgentKey = ME) -> None:
    """A newer record of the agent."""
    row = RecordRow(RecordVersion(1, seq, bytes([seq]) * 32), f"record{seq}", names_us=home)
    await store.records.merge([(owner, row)])


async def bring(store: Any, *numbers: int, **changes: Any) -> list[Any]:
    """Submit envelopes that may wait for a peer."""
    return await store.inboxes.append([entry(n, **{"peer": PEER, **changes}) for n in numbers])


async def courier(store: Any, inbox: AgentKey = ME, **changes: Any) -> OpenedSession:
    return await opened(store, inbox, forwards=True, create=False, **changes)


async def forward(
    store: Any, session: OpenedSession, *numbers: int, by: Forwarded | None = FORWARDED, **more: Any
) -> AckResult | Refusal:
    seqs = tuple(Seq(n) for n in numbers)
    ack = InboxAck(session.fence, session.epoch, seqs, forwarded=by, **more)
    (result,) = await store.inboxes.ack([AckRequest(ME, ack)])
    return result


async def read(store: Any, session: OpenedSession) -> Page:
    page = await store.inboxes.read(ME, session.fence, Seq(0), ALL)
    assert isinstance(page, Page), page
    return page


async def shown(store: Any, session: OpenedSession) -> list[tuple[int, bool]]:
    return [(item.seq, item.redelivered) for item in (await read(store, session)).items]


async def due(store: Any, lease_s: float = 30) -> list[DueOutbox]:
    return await store.outboxes.due(NODE, limit=100, lease_s=lease_s)


async def limited(world: World, **limits: Any) -> Any:
    world.options["outbox"] = OutboxLimits(**limits)
    return await world.restart()


async def away_beside(world: World, inbox: AgentKey) -> tuple[AgentKey, AgentKey]:
    """Two more inboxes of its partition; all three agents live elsewhere."""
    keys = [AgentKey(f"key:b{n}") for n in range(200)]
    if world.partitions > 1:
        part = world.store._partitions.of
        keys = [key for key in keys if part(key) == part(inbox)]
    for owner in (inbox, *keys[:2]):
        await moves(world.store, 1, home=False, owner=owner)
    return keys[0], keys[1]


# ---------------------------------------------------------------- accept


async def test_without_a_peer_an_envelope_for_elsewhere_is_answered_as_ever(world: World) -> None:
    await moves(world.store, 1, home=False)
    (no,) = await world.inboxes.append([entry(1)])
    assert (no.code, no.record) == (ErrorCode.MOVED, "record1")
    (unknown,) = await bring(world.store, 2, inbox=BOB)
    assert code(unknown) is ErrorCode.UNKNOWN_INBOX
    assert await due(world.store) == []
    assert await world.outboxes.totals() == []


async def test_an_envelope_for_elsewhere_waits_in_the_inbox_of_its_recipient(world: World) -> None:
    await moves(world.store, 1, home=False)
    first, second = await bring(world.store, 1, 2)
    assert first == Accepted(Seq(1), first.epoch, dup=False, session=None, away=True)
    assert (second.seq, second.away) == (2, True)
    (again,) = await world.inboxes.append([entry(1)])
    assert again == Accepted(Seq(1), first.epoch, dup=True, session=None, away=True)
    (replayed,) = await bring(world.store, 3, dedupe_key=entry(1).dedupe_key)
    assert code(replayed) is ErrorCode.REPLAYED
    (found,) = await world.outboxes.totals()
    assert found == (PEER, 2, entry(1).size + entry(2).size)
    assert await due(world.store) == [DueOutbox(ME, PEER)]
    (head,) = await world.inboxes.heads([ME])
    assert (head.head, head.away) == (2, True)


async def test_where_the_recipient_has_its_home_no_peer_is_asked_for(world: World) -> None:
    session = await opened(world.store)
    (result,) = await bring(world.store, 1)
    assert (result.away, result.stranger) == (False, True)
    assert result.session == LiveSession(session.fence, NODE)
    assert await world.outboxes.totals() == []
    assert await due(world.store) == []


async def test_the_rules_of_the_recipient_are_for_its_home_to_judge(world: World) -> None:
    session = await opened(world.store)
    patch = {"first_contact": "refuse", "deny": (ALICE,)}
    await ruled(world.store, session, **patch)
    (no,) = await bring(world.store, 1)
    assert code(no) is ErrorCode.BLOCKED
    await moves(world.store, 1, home=False)
    results = await bring(world.store, 1, 2, barred=True)
    assert [result.away for result in results] == [True, True]
    assert not any(result.stranger for result in results)


async def test_what_is_too_late_does_not_wait(world: World) -> None:
    await moves(world.store, 1, home=False)
    (late,) = await bring(world.store, 1, expires_at=NOW)
    assert code(late) is ErrorCode.EXPIRED
    world.store.clock.trust(ok=False)
    (unsure,) = await bring(world.store, 1, expires_at=NOW)
    assert code(unsure) is ErrorCode.STORAGE_UNAVAILABLE
    assert await world.outboxes.totals() == []


async def test_while_the_store_is_full_only_what_waits_is_confirmed(world: World) -> None:
    await moves(world.store, 1, home=False)
    await bring(world.store, 1)
    world.store.refuse_appends("the disk is nearly full")
    known, new = await bring(world.store, 1, 2)
    assert (known.dup, known.away, code(new)) == (True, True, ErrorCode.STORAGE_FULL)
    session = await courier(world.store)
    assert isinstance(await forward(world.store, session, 1), AckResult)


# ---------------------------------------------------------------- bounds: R7


async def test_what_waits_for_one_peer_is_bounded(world: World) -> None:
    store = await limited(world, count=3, bytes=10_000, shares=1)
    other, third = await away_beside(world, ME)
    await bring(store, 1, 2)
    one, full = await bring(store, 3, 4, inbox=other)
    assert (code(one), code(full)) == (None, ErrorCode.OVERLOADED)
    assert full.retry_after == 60
    (elsewhere,) = await bring(store, 5, inbox=third, peer=PEER2)
    assert elsewhere.away
    session = await courier(store)
    assert isinstance(await forward(store, session, 1), AckResult)
    (again,) = await bring(store, 4, inbox=other)
    assert code(again) is None


async def test_the_bound_is_one_of_bytes_too(world: World) -> None:
    store = await limited(world, count=100, bytes=1_000, shares=1)
    await moves(store, 1, home=False)
    first, second, third = await store.inboxes.append([
        entry(1, size=600, peer=PEER), entry(2, size=500, peer=PEER), entry(3, peer=PEER),
    ])  # fmt: skip
    assert (first.away, code(second), third.away) == (True, ErrorCode.OVERLOADED, True)


async def test_one_sender_has_a_share_of_what_waits_for_a_peer(world: World) -> None:
    store = await limited(world, count=20, bytes=20_000, shares=10)
    second, third = await away_beside(world, ME)
    results = [
        (await bring(store, n, inbox=inbox))[0] for n, inbox in enumerate([ME, second, third])
    ]
    assert [code(result) for result in results] == [None, None, ErrorCode.SENDER_QUOTA]
    (other,) = await bring(store, 3, inbox=third, sender=BOB)
    assert other.away
    (same,) = await bring(store, 4, inbox=ME, peer=PEER2)
    assert code(same) is ErrorCode.SENDER_QUOTA, "its inbox counts where it began to"


async def test_one_recipient_has_a_share_of_what_waits_for_a_peer(world: World) -> None:
    store = await limited(world, count=20, bytes=20_000, shares=10)
    await moves(store, 1, home=False)
    results = [(await bring(store, n, sender=AgentKey(f"key:s{n}")))[0] for n in range(3)]
    assert [code(result) for result in results] == [None, None, ErrorCode.INBOX_FULL]
    (known,) = await bring(store, 0)
    assert known.dup


async def test_a_bound_that_an_inbox_of_this_relay_has_is_not_that_of_an_outbox(
    world: World,
) -> None:
    await moves(world.store, 1, home=False)
    results = await bring(world.store, *range(25))
    assert {result.away for result in results} == {True}, "more than the sender's quota"
    session = await courier(world.store)
    assert session.pending.refused.count == 0


async def test_what_waits_is_counted_where_a_courier_says(world: World) -> None:
    await moves(world.store, 1, home=False)
    await bring(world.store, 1, 2)
    await bring(world.store, 3, peer=PEER2, sender=BOB)
    assert [(peer, count) for peer, count, _ in await world.outboxes.totals()] == [(PEER, 3)]
    session = await courier(world.store)
    assert await world.outboxes.defer(ME, session.fence, 0, peer=PEER2)
    assert [(peer, count) for peer, count, _ in await world.outboxes.totals()] == [(PEER2, 3)]
    await forward(world.store, session, 1, 2, 3)
    assert await world.outboxes.totals() == []
    await bring(world.store, 4)
    assert [(peer, count) for peer, count, _ in await world.outboxes.totals()] == [(PEER, 1)]


# ---------------------------------------------------------------- a courier's session


async def test_a_courier_opens_only_what_is_away_and_makes_nothing(world: World) -> None:
    wanted = request(forwards=True, create=True)
    assert code(await world.inboxes.open(wanted)) is ErrorCode.UNKNOWN_INBOX
    await opened(world.store)
    assert code(await world.inboxes.open(wanted)) is ErrorCode.UNKNOWN_INBOX
    await moves(world.store, 1, home=False)
    assert isinstance(await world.inboxes.open(wanted), OpenedSession)
    assert code(await world.inboxes.open(request())) is ErrorCode.UNKNOWN_INBOX


async def test_a_courier_takes_what_waits_and_keeps_the_proof(world: World) -> None:
    await moves(world.store, 1, home=False)
    await bring(world.store, 1, 2, 3)
    session = await courier(world.store)
    assert (session.head, session.pending.count) == (3, 3)
    assert await shown(world.store, session) == [(1, False), (2, False), (3, False)]
    assert await forward(world.store, session, 1, 3) == AckResult(Seq(1), (Seq(1), Seq(3)), ())
    page = await read(world.store, session)
    assert ([item.seq for item in page.items], page.gaps) == (
        [2], (Range(Seq(3), Seq(3), Reason.MOVED),),
    )  # fmt: skip
    questions = [DedupKey(entry(n).dedupe_key, HOUR) for n in (1, 2, 3)]
    gone, waiting, last = await world.inboxes.status(ME, questions)
    assert gone == RememberedId(Disposition.FORWARDED, eid(1)[:21], FORWARDED)
    assert waiting == RememberedId(Disposition.STORED, eid(2)[:21])
    assert last.forwarded == FORWARDED
    (again,) = await bring(world.store, 1)
    assert again == Accepted(Seq(1), session.epoch, dup=True, session=None, away=True)
    assert await forward(world.store, session, 2) == AckResult(Seq(3), (Seq(2),), ())
    assert await world.outboxes.totals() == []


async def test_proofs_are_forgotten_with_the_ids_of_their_hour(world: World) -> None:
    await moves(world.store, 1, home=False)
    await bring(world.store, 1)
    await forward(world.store, await courier(world.store), 1)
    await world.advance(1_601)
    await world.store.expiry.sweep(NODE, [NODE])
    assert await world.inboxes.status(ME, [DedupKey(entry(1).dedupe_key, HOUR)]) == [None]


async def test_what_was_forwarded_stays_so_while_the_agent_lives_elsewhere(world: World) -> None:
    await moves(world.store, 1, home=False)
    (first,) = await bring(world.store, 1)
    await forward(world.store, await courier(world.store), 1)
    (again,) = await world.inboxes.append([entry(1)])
    assert again == first._replace(dup=True)
    assert again.away, "this inbox never had it"
    assert await shown(world.store, await courier(world.store)) == []


async def test_what_was_forwarded_comes_back_when_the_agent_is_home_again(
    world: World,
) -> None:
    await moves(world.store, 1, home=False)
    await bring(world.store, 1, 2)
    await forward(world.store, await courier(world.store), 1, 2)
    await moves(world.store, 2, home=True)
    brought = entry(1, via=PEER)
    (stored,) = await world.inboxes.append([brought])
    assert isinstance(stored, Accepted), stored
    assert (stored.dup, stored.away) == (False, False)
    (again,) = await world.inboxes.append([brought])
    assert again == Accepted(stored.seq, stored.epoch, True, None)
    # where number 2 is nobody knows here: its sender may bring it, too
    (other,) = await world.inboxes.append([entry(2)])
    assert (other.dup, other.away, other.session) == (False, False, None)
    assert await shown(world.store, await opened(world.store)) == [(3, True), (4, True)]


async def test_what_the_agent_has_acked_does_not_come_back(world: World) -> None:
    session = await opened(world.store)
    await world.inboxes.append([entry(1)])
    ack = InboxAck(session.fence, session.epoch, (Seq(1),))
    await world.inboxes.ack([AckRequest(ME, ack)])
    (again,) = await world.inboxes.append([entry(1, via=PEER)])
    assert (again.dup, again.away) == (True, False)
    assert await shown(world.store, session) == []


async def test_what_a_peer_brings_back_to_no_home_has_moved(world: World) -> None:
    await moves(world.store, 1, home=False)
    await bring(world.store, 1, 2)
    await forward(world.store, await courier(world.store), 1)
    for no in await world.inboxes.append([entry(1, via=PEER2), entry(2, via=PEER2)]):
        assert (code(no), no.record) == (ErrorCode.MOVED, "record1")


async def test_only_the_newest_courier_forwards(world: World) -> None:
    await moves(world.store, 1, home=False)
    await bring(world.store, 1)
    old = await courier(world.store)
    new = await courier(world.store, node=OTHER)
    assert new.previous == LiveSession(old.fence, NODE)
    assert code(await forward(world.store, old, 1)) is ErrorCode.SUPERSEDED
    assert not await world.outboxes.defer(ME, old.fence, 9)
    assert code(await world.inboxes.read(ME, old.fence, Seq(0), ALL)) is ErrorCode.SUPERSEDED
    assert await shown(world.store, new) == [(1, True)]


async def test_a_courier_acks_nothing_as_if_it_were_the_agent(world: World) -> None:
    await moves(world.store, 1, home=False)
    await bring(world.store, 1)
    session = await courier(world.store)
    assert code(await forward(world.store, session, 1, by=None)) is ErrorCode.BAD_FRAME
    taken = InboxAck(session.fence, session.epoch, ())
    (no,) = await world.inboxes.ack([AckRequest(ME, taken, taken=True)])
    assert code(no) is ErrorCode.BAD_FRAME
    assert await shown(world.store, session) == [(1, False)]
    assert await forward(world.store, session, by=None, upto=Seq(1)) == AckResult(Seq(0), (), ())


async def test_an_agent_forwards_nothing(world: World) -> None:
    session = await opened(world.store)
    await world.inboxes.append([entry(1)])
    assert code(await forward(world.store, session, 1)) is ErrorCode.SUPERSEDED
    assert await shown(world.store, session) == [(1, False)]


async def test_a_courier_that_refuses_makes_one_bounce_that_says_what_the_marks_say(
    world: World,
) -> None:
    await moves(world.store, 1, home=False)
    await bring(world.store, 1, 2)
    first = await courier(world.store)
    await world.inboxes.close(ME, first.fence, Seq(1))
    session = await courier(world.store)
    refuse = ((Seq(1), "blocked"), (Seq(2), "blocked"))
    for _ in range(2):
        await forward(world.store, session, by=None, refuse=refuse)
    (batch,) = await world.store.bounces.claim()
    assert set(batch.intents) == {
        PendingBounce(ALICE, eid(1), ME, "blocked", True, NOW),
        PendingBounce(ALICE, eid(2), ME, "blocked", False, NOW),
    }
    assert await world.outboxes.totals() == []


async def test_what_waits_too_long_expires_with_a_bounce(world: World) -> None:
    await moves(world.store, 1, home=False)
    await bring(world.store, 1, expires_at=NOW + 10)
    await world.advance(309)
    assert await world.store.expiry.sweep(NODE, [NODE]) == 0
    await world.advance(1)
    assert await world.store.expiry.sweep(NODE, [NODE]) == 1
    (batch,) = await world.store.bounces.claim()
    assert batch.intents == (PendingBounce(ALICE, eid(1), ME, "expired", False, NOW + 310),)
    assert await world.outboxes.totals() == []
    assert await due(world.store) == []


# ---------------------------------------------------------------- who carries, and when


async def test_what_is_due_is_lent_to_one_courier_at_a_time(world: World) -> None:
    await moves(world.store, 1, home=False)
    await bring(world.store, 1)
    assert await due(world.store, 20) == [DueOutbox(ME, PEER)]
    assert await due(world.store) == []
    await world.advance(20)
    assert await due(world.store) == [DueOutbox(ME, PEER)]


async def test_a_node_that_is_alone_frees_what_dead_ones_had_lent(server_world: World) -> None:
    """And not what a courier is to wait for."""
    store = await server_world.node()
    one, two = await away_beside(server_world, ME)
    for inbox in (ME, one, two):
        await store.inboxes.append([entry(1, inbox=inbox, peer=PEER)])
    lent = {found.inbox for found in await due(store, LEASE_S)}
    assert lent == {ME, one, two}
    carrier = await opened(store, two, forwards=True, create=False)
    await store.outboxes.defer(two, carrier.fence, 4 * LEASE_S)
    assert await due(store) == []
    await store.outboxes.release()
    assert {found.inbox for found in await due(store)} == {ME, one}


async def test_only_so_many_are_lent_as_were_asked_for(world: World) -> None:
    owners = [AgentKey(f"key:o{n}") for n in range(12)]
    for owner in owners:
        await moves(world.store, 1, home=False, owner=owner)
        await bring(world.store, 1, inbox=owner)
    found: list[AgentKey] = []
    for _ in range(3):
        lent = await world.outboxes.due(NODE, limit=4, lease_s=30)
        assert len(lent) == 4
        found += [one.inbox for one in lent]
    assert sorted(found) == sorted(owners)
    assert await due(world.store) == []


async def test_a_courier_that_gets_on_keeps_what_was_lent_to_it(world: World) -> None:
    await moves(world.store, 1, home=False)
    await bring(world.store, 1, 2)
    assert await due(world.store, 10) == [DueOutbox(ME, PEER)]
    session = await courier(world.store)
    await world.advance(9)
    await forward(world.store, session, 1)
    await world.advance(LEASE_S - 1)
    assert await due(world.store) == []
    await world.advance(1)
    assert await due(world.store) == [DueOutbox(ME, PEER)]


async def test_a_courier_defers_and_then_it_is_due_no_earlier(world: World) -> None:
    await moves(world.store, 1, home=False)
    await bring(world.store, 1)
    session = await courier(world.store)
    assert await world.outboxes.defer(ME, session.fence, 100)
    await world.inboxes.close(ME, session.fence, Seq(1))
    await bring(world.store, 2)
    await world.advance(99)
    assert await due(world.store) == []
    await world.advance(1)
    assert await due(world.store) == [DueOutbox(ME, PEER)]
    assert not await world.outboxes.defer(ME, session.fence, 1)
    assert not await world.outboxes.defer(BOB, Fence(1), 1)


async def test_what_came_while_a_courier_ended_is_due_at_once(world: World) -> None:
    await moves(world.store, 1, home=False)
    await bring(world.store, 1)
    await due(world.store)
    session = await courier(world.store)
    await forward(world.store, session, 1)
    (news,) = await bring(world.store, 2)
    assert news.session == LiveSession(session.fence, NODE)
    await world.inboxes.close(ME, session.fence, Seq(1))
    assert await due(world.store) == [DueOutbox(ME, PEER)]
    (more,) = await bring(world.store, 3)
    assert more.session is None


async def test_what_comes_for_a_courier_that_is_dead_is_due_when_its_lease_ends(
    world: World,
) -> None:
    await moves(world.store, 1, home=False)
    await bring(world.store, 1)
    session = await courier(world.store)
    await forward(world.store, session, 1)
    await bring(world.store, 2)
    await world.advance(LEASE_S - 1)
    assert await due(world.store) == []
    await world.advance(1)
    assert await due(world.store) == [DueOutbox(ME, PEER)]


async def test_while_closed_new_envelopes_are_refused_as_the_peer_refused(world: World) -> None:
    await moves(world.store, 1, home=False)
    await bring(world.store, 1)
    session = await courier(world.store)
    no = Refusal(ErrorCode.UNKNOWN_INBOX, "there is no such inbox")
    assert await world.outboxes.defer(ME, session.fence, 60, closed=no)
    known, new = await bring(world.store, 1, 2)
    assert known.dup
    assert code(new) is ErrorCode.UNKNOWN_INBOX
    assert (new.retry_after, new.stored) == (60, "no")
    await world.advance(59)
    (still,) = await bring(world.store, 2)
    assert still.retry_after == 1
    await world.advance(1)
    (later,) = await bring(world.store, 2)
    assert later.away


async def test_a_courier_opens_again_what_it_closed(world: World) -> None:
    await moves(world.store, 1, home=False)
    await bring(world.store, 1)
    session = await courier(world.store)
    no = Refusal(ErrorCode.INBOX_FULL, "full")
    await world.outboxes.defer(ME, session.fence, 60, closed=no)
    await world.outboxes.defer(ME, session.fence, 0)
    (later,) = await bring(world.store, 2)
    assert later.away


# ---------------------------------------------------------------- the agent moves


async def test_when_an_agent_moves_its_session_ends_and_what_waits_is_for_couriers(
    world: World,
) -> None:
    session = await opened(world.store, window=Window(2, 10_000))
    await world.inboxes.append([entry(n) for n in (1, 2, 3)])
    await moves(world.store, 1, home=False)
    for _ in range(2):
        gone = await world.inboxes.read(ME, session.fence, Seq(0), ALL)
        assert code(gone) is ErrorCode.MOVED
        ack = AckRequest(ME, InboxAck(session.fence, session.epoch, (Seq(1),)))
        assert code((await world.inboxes.ack([ack]))[0]) is ErrorCode.MOVED
        live = LiveSession(session.fence, NODE, NOW + 9)
        assert code(await world.inboxes.fetch(ME, live, ALL)) is ErrorCode.MOVED
        assert not await world.inboxes.close(ME, session.fence, Seq(3))
    assert await due(world.store) == [DueOutbox(ME, None)]
    carrier = await courier(world.store)
    assert await shown(world.store, carrier) == [(1, True), (2, True), (3, False)]
    assert await world.outboxes.defer(ME, carrier.fence, 5, peer=PEER)
    (found,) = await world.outboxes.totals()
    assert found[:2] == (PEER, 3)
    still = await world.inboxes.read(ME, session.fence, Seq(0), ALL)
    assert code(still) is ErrorCode.MOVED


async def test_the_first_new_envelope_says_where_the_rest_waits_to_go(world: World) -> None:
    await opened(world.store)
    await world.inboxes.append([entry(1), entry(2, sender=BOB)])
    await moves(world.store, 1, home=False)
    assert await world.outboxes.totals() == []
    await bring(world.store, 3)
    (found,) = await world.outboxes.totals()
    assert found[:2] == (PEER, 3)
    session = await courier(world.store)
    await forward(world.store, session, 1, 2, 3)
    assert await world.outboxes.totals() == []


async def test_when_an_agent_comes_home_its_courier_is_fenced_off_and_it_takes_what_waits(
    world: World,
) -> None:
    await moves(world.store, 1, home=False)
    await bring(world.store, 1, 2)
    carrier = await courier(world.store, window=Window(1, 10_000))
    no = Refusal(ErrorCode.INBOX_FULL, "full")
    await world.outboxes.defer(ME, carrier.fence, 500, closed=no)
    await moves(world.store, 2, home=True)
    assert code(await forward(world.store, carrier, 1)) is ErrorCode.SUPERSEDED
    assert code(await world.inboxes.read(ME, carrier.fence, Seq(0), ALL)) is ErrorCode.SUPERSEDED
    assert not await world.outboxes.defer(ME, carrier.fence, 1)
    assert await world.outboxes.totals() == []
    assert await due(world.store) == [DueOutbox(ME, None)], "a mover asks what was shown elsewhere"
    session = await opened(world.store)
    assert await shown(world.store, session) == [(1, True), (2, True)]
    (known, new) = await bring(world.store, 1, 3)
    assert (known.dup, known.away, new.away) == (True, False, False)
    assert new.session is None, "it has to be read back with its mark"


async def test_a_newer_record_of_an_agent_elsewhere_makes_couriers_look_at_once(
    world: World,
) -> None:
    await moves(world.store, 1, home=False)
    await bring(world.store, 1)
    session = await courier(world.store)
    no = Refusal(ErrorCode.UNKNOWN_INBOX, "no such inbox")
    await world.outboxes.defer(ME, session.fence, 1_000, closed=no)
    assert await due(world.store) == []
    await moves(world.store, 1, home=False)
    assert await due(world.store) == [], "the same record says nothing new"
    await moves(world.store, 2, home=False)
    assert await due(world.store) == [DueOutbox(ME, PEER)]
    (new,) = await bring(world.store, 2)
    assert new.away


async def test_an_agent_that_went_and_came_back_is_not_told_that_it_was_superseded(
    world: World,
) -> None:
    session = await opened(world.store)
    await moves(world.store, 1, home=False)
    await moves(world.store, 2, home=True)
    gone = await world.inboxes.read(ME, session.fence, Seq(0), ALL)
    assert code(gone) is ErrorCode.MOVED
    (head,) = await world.inboxes.heads([ME])
    assert isinstance(head, InboxHead)
    assert not head.away
    first = await opened(world.store)
    await opened(world.store)
    gone = await world.inboxes.read(ME, first.fence, Seq(0), ALL)
    assert code(gone) is ErrorCode.SUPERSEDED


async def test_a_node_hears_that_its_session_ended_by_a_record(server_world: World) -> None:
    a, b = await server_world.node(NODE), await server_world.node(OTHER)
    heard = Heard(a)
    async with server_world.running(a):
        await wait_until(lambda: heard.looks, 10, "a listens")
        await opened(a)
        await moves(b, 1, home=False)
        await wait_until(lambda: heard.hints == [ME], 5, "the agent's node hears of it")
        await courier(a)
        await bring(b, 1)
        await wait_until(lambda: heard.hints == [ME, ME], 5, "the courier's node hears of news")
        await moves(b, 2, home=True)
        await wait_until(lambda: heard.hints == [ME] * 3, 5, "the courier's node hears of it")


# ---------------------------------------------------------------- troubles of the store


async def test_a_hole_in_what_waits_is_found_and_the_outbox_counts_what_is_there(
    server_world: World,
) -> None:
    store = await server_world.node()
    await moves(store, 1, home=False)
    await bring(store, 1, 2, 3)
    session = await courier(store)
    await server_world.raw.xdel(server_world.key("stream"), "2-0")
    assert code(await store.inboxes.read(ME, session.fence, Seq(0), ALL)) is ErrorCode.INBOX_RESET
    assert [(peer, count) for peer, count, _ in await store.outboxes.totals()] == [(PEER, 2)]
    anew = await courier(store)
    assert anew.epoch != session.epoch
    assert await shown(store, anew) == [(1, True), (3, True)]
    await forward(store, anew, 1, 3)
    assert await store.outboxes.totals() == []
    assert await server_world.raw.exists(server_world.key("outbox", PEER)) == 0


# ---------------------------------------------------------------- what peers bring


async def test_strangers_whom_one_peer_brings_have_a_quarter_of_what_strangers_have(
    world: World,
) -> None:
    world.limits = type(world.limits)(stranger_count=8, stranger_bytes=8_000)
    store = await world.restart()
    session = await opened_to(store, BOB)
    brought = [entry(n, sender=AgentKey(f"key:s{n}"), via=PEER) for n in range(3)]
    results = await store.inboxes.append(brought)
    assert [code(result) for result in results] == [None, None, ErrorCode.STRANGER_QUOTA]
    known, other, own = await store.inboxes.append([
        entry(10, sender=BOB, via=PEER), entry(11, via=PEER2), entry(12),
    ])  # fmt: skip
    assert (known.stranger, other.stranger, own.stranger) == (False, True, True)
    page = await read(store, session)
    assert [item.eid for item in page.items] == [eid(n) for n in (0, 1, 10, 11, 12)]
    ack = AckRequest(ME, InboxAck(session.fence, session.epoch, (Seq(1),)))
    await store.inboxes.ack([ack])
    first, second = await store.inboxes.append([brought[2], entry(4, via=PEER)])
    assert (first.stranger, code(second)) == (True, ErrorCode.STRANGER_QUOTA)
    rest = [entry(n, sender=AgentKey(f"key:t{n}")) for n in range(20, 26)]
    results = await store.inboxes.append(rest)
    full = [code(result) for result in results].count(ErrorCode.STRANGER_QUOTA)
    assert full == 2, "a quarter of the whole, and inside it"


async def test_bounces_of_other_relays_pass_the_rules_and_have_a_share(world: World) -> None:
    world.limits = type(world.limits)(stranger_count=8, stranger_bytes=8_000)
    store = await world.restart()
    session = await opened(store)
    await ruled(store, session, deny=(PEER,), first_contact="refuse")
    said = [entry(n, sender=PEER, via=PEER, bounces=False) for n in range(3)]
    results = await store.inboxes.append(said)
    assert [code(result) for result in results] == [None, None, ErrorCode.STRANGER_QUOTA]
    (own,) = await store.inboxes.append([entry(9, sender=PEER2, bounces=False)])
    assert own.stranger is False, "this relay's own word"


async def test_the_quarter_of_a_peers_strangers_is_one_of_bytes_too(world: World) -> None:
    world.limits = type(world.limits)(stranger_count=80, stranger_bytes=4_000)
    store = await world.restart()
    await opened(store)
    results = await store.inboxes.append([
        entry(1, size=600, via=PEER), entry(2, size=600, via=PEER), entry(3, size=600, via=PEER2),
    ])  # fmt: skip
    assert [code(result) for result in results] == [None, ErrorCode.STRANGER_QUOTA, None]
