"""Inboxes that change relays: steps, digests, pages, and what is counted (GUARANTEES.md §3)."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest

from relay.core.dedupe import Fate, Forwarded
from relay.core.envelope import MAX_LIFETIME_S
from relay.core.errors import ErrorCode, Refusal
from relay.core.handoffs import Tally
from relay.core.ids import AgentKey, Seq
from relay.core.inbox_values import (
    Accepted,
    Ack,
    Acked,
    InboxLimits,
    Known,
    LiveSession,
    Opened,
    Page,
    Question,
    Waiting,
    Window,
)
from relay.core.migration_values import Holding
from relay.core.ranges import Reason
from relay.ports import AckRequest, RecordRow
from relay.ports_mesh import DueOutbox, HandoffChange, HandoffRow
from relay.store.redis.entries import eid_bytes
from tests.store.test_beside import Heard
from tests.store.worlds import (
    ALICE,
    ALL,
    HOUR,
    LIMITS,
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
from tests.support.servers import wait_until

pytestmark = pytest.mark.timeout(60)
PEER, PEER2 = AgentKey("key:peer"), AgentKey("key:peer2")
BOB = AgentKey("key:bob")
FORWARDED = Forwarded(PEER, bytes(range(32)))


def record(seq: int, *, home: bool) -> RecordRow:
    return RecordRow((1, seq, bytes([seq]) * 32), f"record{seq}", names_us=home)


async def merged(store: Any, seq: int, *, home: bool, owner: AgentKey = ME) -> bool:
    """A newer record of the agent; whether it moves an inbox."""
    (one,) = await store.merge_records([(owner, record(seq, home=home))])
    return bool(one.moves)


async def change(
    store: Any, holding: Holding, text: str = "side", *, inbox: AgentKey = ME, **more: Any
) -> bool:
    """A step that follows upon how things stand."""
    seen = await store.handoff(inbox)
    return bool(await store.change_handoff(inbox, seen, HandoffChange(text, holding, **more)))


async def bring(store: Any, *numbers: int, **changes: Any) -> list[Any]:
    """A page of an inbox that moves."""
    given = {"via": PEER, "moving": True, **changes}
    return [*await store.append([entry(n, **given) for n in numbers])]


async def shown(store: Any, session: Opened) -> list[tuple[int, bool]]:
    page = await store.read(ME, session.fence, Seq(0), ALL)
    assert isinstance(page, Page), page
    return [(item.seq, item.redelivered) for item in page.items]


async def courier(store: Any) -> Opened:
    return await opened(store, courier=True, create=False)


async def end(store: Any, session: Opened, *seqs: int, **more: Any) -> Acked | Refusal:
    ack = Ack(session.fence, session.epoch, tuple(map(Seq, seqs)), **more)
    (result,) = await store.ack([AckRequest(ME, ack)])
    return result


def doubt(n: int, hour: int = HOUR, of: int | None = None) -> bytes:
    """The id of envelope ``n`` as a digest says it; ``of``: of another envelope."""
    eid16 = eid_bytes(eid(n if of is None else of))[:16]
    return struct.pack(">I16s16s", hour, n.to_bytes(16, "big"), eid16)


async def all_doubts(store: Any, most: int = 1_000, inbox: AgentKey = ME) -> set[bytes]:
    """All that an agent may have seen, page by page."""
    ids, after = set(), ""
    while True:
        some = await store.doubts(inbox, after, most)
        ids |= {some.ids[at : at + 36] for at in range(0, len(some.ids), 36)}
        if not some.after:
            return ids
        assert some.after != after
        after = some.after


async def fates(store: Any, *numbers: int) -> list[Fate | None]:
    asked = [Question(entry(n).dedupe_key, HOUR) for n in numbers]
    return [one and one.fate for one in await store.status(ME, asked)]


# ---------------------------------------------------------------- a step


async def test_of_an_inbox_that_never_moved_there_is_only_what_it_is(world: World) -> None:
    assert await world.store.handoff(ME) == HandoffRow()
    await opened(world.store)
    await world.store.append([entry(1)])
    assert await world.store.handoff(ME) == HandoffRow(holding=Holding.HOME, tally=Tally(waiting=1))
    assert await world.store.handoffs() == []


async def test_a_step_is_written_with_what_it_does_to_the_inbox(world: World) -> None:
    assert await change(world.store, Holding.HELD, "incoming", is_new=True)
    assert await world.store.handoff(ME) == HandoffRow("incoming", Holding.HELD)
    assert await world.store.handoffs() == [(ME, "incoming")]
    assert await change(world.store, Holding.HOME, "active", is_open=False)
    row = await world.store.handoff(ME)
    assert (row.text, row.holding) == ("active", Holding.HOME)
    assert await world.store.handoffs() == []


async def test_of_two_steps_that_saw_the_same_only_one_is_taken(world: World) -> None:
    await opened(world.store)
    seen = await world.store.handoff(ME)
    first = HandoffChange("first", Holding.HELD, has_work=True)
    assert await world.store.change_handoff(ME, seen, first)
    assert not await world.store.change_handoff(ME, seen, first)
    assert not await world.store.change_handoff(ME, seen, replace(first, text="second"))
    assert (await world.store.handoff(ME)).text == "first"


async def test_a_step_that_did_not_see_the_newest_record_is_not_taken(world: World) -> None:
    await opened(world.store)
    await merged(world.store, 1, home=True)
    seen = await world.store.handoff(ME)
    assert seen.record == record(1, home=True)
    await merged(world.store, 2, home=True)
    step = HandoffChange("late", Holding.HELD)
    assert not await world.store.change_handoff(ME, seen, step)
    assert not await world.store.change_handoff(ME, replace(seen, record=None), step)
    assert await world.store.handoff(ME) == replace(seen, record=record(2, home=True))


async def test_a_step_of_an_agent_without_a_record_is_compared_too(world: World) -> None:
    seen = await world.store.handoff(ME)
    await merged(world.store, 1, home=False)
    assert not await world.store.change_handoff(ME, seen, HandoffChange("x", Holding.HELD))
    assert (await world.store.handoff(ME)).holding is None


async def test_a_step_is_taken_while_the_store_is_full(world: World) -> None:
    await opened(world.store)
    world.store.refuse_appends("the disk is nearly full")
    assert await change(world.store, Holding.AWAY, ends_session=True)


# ---------------------------------------------------------------- held


async def test_a_held_inbox_takes_mail_and_lets_nobody_in(world: World) -> None:
    session = await opened_to(world.store, ALICE)
    await world.store.append([entry(1)])
    assert await change(world.store, Holding.HELD, ends_session=True)
    (taken,) = await world.store.append([entry(2)])
    assert taken == Accepted(Seq(2), session.epoch, dup=False, session=None)
    (again,) = await world.store.append([entry(2)])
    assert again == replace_dup(taken)
    assert code(await world.store.open(request())) is ErrorCode.MIGRATING
    assert code(await world.store.open(request(courier=True))) is ErrorCode.UNKNOWN_INBOX
    assert code(await world.store.read(ME, session.fence, Seq(0), ALL)) is ErrorCode.MIGRATING
    live = LiveSession(session.fence, NODE, NOW + 9)
    assert code(await world.store.take(ME, live, ALL)) is ErrorCode.MIGRATING
    assert code(await end(world.store, session, 1)) is ErrorCode.MIGRATING
    assert code(await ruled(world.store, session)) is ErrorCode.MIGRATING
    assert not await world.store.close(ME, session.fence, Seq(2))
    (head,) = await world.store.heads([ME])
    assert head.away, "no session of the agent can go on"


def replace_dup(taken: Accepted) -> Accepted:
    return taken._replace(dup=True)


async def test_a_target_takes_mail_although_the_record_names_others(world: World) -> None:
    await merged(world.store, 1, home=False)
    await change(world.store, Holding.HELD, "incoming")
    (taken,) = await world.store.append([entry(1)])
    assert (taken.seq, taken.away) == (1, False)
    assert await world.store.outboxes() == []
    assert code(await world.store.open(request())) is ErrorCode.MIGRATING


async def test_where_others_read_no_session_goes_on_even_unasked(world: World) -> None:
    session = await opened(world.store)
    await change(world.store, Holding.HELD)
    assert code(await world.store.read(ME, session.fence, Seq(0), ALL)) is ErrorCode.MIGRATING
    await change(world.store, Holding.AWAY, "away")
    assert code(await world.store.read(ME, session.fence, Seq(0), ALL)) is ErrorCode.MOVED
    await change(world.store, Holding.HOME, "home")
    assert code(await world.store.read(ME, session.fence, Seq(0), ALL)) is ErrorCode.MOVED


async def test_a_session_that_a_step_ends_leaves_marks_over_its_window(world: World) -> None:
    await opened(world.store, window=Window(2, 10_000))
    await world.store.append([entry(n) for n in (1, 2, 3)])
    await change(world.store, Holding.AWAY, ends_session=True)
    assert await shown(world.store, await courier(world.store)) == [
        (1, True), (2, True), (3, False),
    ]  # fmt: skip


async def test_a_step_may_mark_all_that_waits(world: World) -> None:
    session = await opened(world.store)
    await world.store.append([entry(1), entry(2)])
    await change(world.store, Holding.HOME, marks_present=True)
    (later,) = await world.store.append([entry(3)])
    assert later.session is not None
    assert await shown(world.store, session) == [(1, True), (2, True), (3, False)]


async def test_what_is_held_does_not_expire(world: World) -> None:
    await opened(world.store)
    await world.store.append([entry(1, expires_at=NOW + 10)])
    await change(world.store, Holding.HELD)
    await world.advance(1_000)
    assert await world.store.sweep(NODE, [NODE]) == 0
    await world.store.conclude(ME, [Seq(1)], Reason.EXPIRED)
    assert (await world.store.handoff(ME)).tally.waiting == 1
    await change(world.store, Holding.AWAY, "away")
    assert await world.store.sweep(NODE, [NODE]) == 1


async def test_a_changed_handoff_ends_the_courier_of_the_one_before(world: World) -> None:
    await opened(world.store)
    await world.store.append([entry(1)])
    await change(world.store, Holding.AWAY, "to B")
    carrier = await courier(world.store)
    await change(world.store, Holding.AWAY, "to C", ends_session=True)
    assert code(await end(world.store, carrier, 1, forwarded=FORWARDED)) is ErrorCode.MOVED
    assert (await world.store.handoff(ME)).tally.waiting == 1


async def test_a_node_hears_that_a_step_ended_its_session(server_world: World) -> None:
    a, b = await server_world.node(NODE), await server_world.node(OTHER)
    heard = Heard(a)
    async with server_world.running(a):
        await wait_until(lambda: heard.looks, 10, "a listens")
        await opened(a)
        await change(b, Holding.HELD, ends_session=True)
        await wait_until(lambda: heard.hints == [ME], 5, "the agent's node hears of it")


async def test_what_waits_for_a_peer_is_counted_there_while_it_is_away_only(world: World) -> None:
    await merged(world.store, 1, home=False)
    await world.store.append([entry(1, peer=PEER), entry(2, peer=PEER)])
    assert [one[:2] for one in await world.store.outboxes()] == [(PEER, 2)]
    await change(world.store, Holding.HELD)
    assert await world.store.outboxes() == []
    await change(world.store, Holding.AWAY, "away")
    assert await world.store.outboxes() == []
    carrier = await courier(world.store)
    await world.store.defer_outbox(ME, carrier.fence, 0, peer=PEER2)
    assert [one[:2] for one in await world.store.outboxes()] == [(PEER2, 2)]


# ---------------------------------------------------------------- doubtful


async def test_in_a_doubtful_inbox_all_is_marked_and_nothing_handed_over_unread(
    world: World,
) -> None:
    session = await opened(world.store)
    await world.store.append([entry(1)])
    await change(world.store, Holding.DOUBTFUL)
    (new,) = await world.store.append([entry(2)])
    assert new.session is None
    assert await shown(world.store, session) == [(1, True), (2, True)]
    page = await world.store.take(ME, LiveSession(session.fence, NODE, NOW + 9), ALL)
    assert [item.redelivered for item in page.items] == [True, True]
    assert await all_doubts(world.store) == {doubt(1), doubt(2)}


async def test_when_the_doubt_is_over_the_session_goes_on_and_marks_stop(world: World) -> None:
    session = await opened(world.store)
    await change(world.store, Holding.DOUBTFUL)
    await world.store.append([entry(1)])
    await change(world.store, Holding.HOME, "sure")
    (new,) = await world.store.append([entry(2)])
    assert new.session == LiveSession(session.fence, NODE)
    assert await shown(world.store, session) == [(1, False), (2, False)]


# ---------------------------------------------------------------- records


async def test_where_no_step_was_written_a_record_turns_the_inbox_as_ever(world: World) -> None:
    await opened(world.store)
    await world.store.append([entry(1)])
    assert not await merged(world.store, 1, home=True)
    assert await merged(world.store, 2, home=False)
    row = await world.store.handoff(ME)
    assert (row.holding, row.has_left, row.former) == (Holding.AWAY, True, "record1")
    assert not await merged(world.store, 3, home=False)
    assert (await world.store.handoff(ME)).former == "record1"
    assert await merged(world.store, 4, home=True)
    row = await world.store.handoff(ME)
    assert (row.holding, row.former) == (Holding.DOUBTFUL, "record3")
    assert await shown(world.store, await opened(world.store)) == [(1, True)]


async def test_an_inbox_that_turns_without_a_step_calls_a_mover(world: World) -> None:
    await opened(world.store)
    assert await world.store.due_outboxes(NODE, most=9, lease_s=5) == []
    await merged(world.store, 1, home=False)
    assert await world.store.due_outboxes(NODE, most=9, lease_s=5) == [DueOutbox(ME, None)]
    assert await world.store.due_outboxes(NODE, most=9, lease_s=5) == []
    await world.advance(5)
    assert await world.store.due_outboxes(NODE, most=9, lease_s=5) == [DueOutbox(ME, None)]
    await change(world.store, Holding.AWAY)
    await world.advance(5)
    assert await world.store.due_outboxes(NODE, most=9, lease_s=5) == []


async def test_an_inbox_that_is_made_where_others_were_homes_is_doubtful(world: World) -> None:
    await merged(world.store, 1, home=False)
    await merged(world.store, 2, home=True)
    session = await opened(world.store)
    assert (await world.store.handoff(ME)).holding is Holding.DOUBTFUL
    assert await world.store.due_outboxes(NODE, most=9, lease_s=5) == [DueOutbox(ME, None)]
    await world.store.append([entry(1)])
    assert await shown(world.store, session) == [(1, True)]


async def test_where_a_step_was_written_a_record_calls_a_mover_and_turns_nothing(
    world: World,
) -> None:
    session = await opened(world.store)
    await change(world.store, Holding.HOME)
    assert await merged(world.store, 1, home=False)
    assert (await world.store.handoff(ME)).holding is Holding.HOME
    assert await shown(world.store, session) == []
    assert await world.store.due_outboxes(NODE, most=9, lease_s=5) == [DueOutbox(ME, None)]
    assert code(await world.store.open(request())) is ErrorCode.UNKNOWN_INBOX
    assert await merged(world.store, 2, home=False), "each newer one"
    assert not await merged(world.store, 2, home=False)


async def test_what_is_away_and_coming_home_is_said_to_be_moving(world: World) -> None:
    await merged(world.store, 1, home=False)
    await world.store.append([entry(1, peer=PEER)])
    await change(world.store, Holding.AWAY)
    assert await merged(world.store, 2, home=True)
    assert code(await world.store.open(request())) is ErrorCode.MIGRATING
    (no,) = await world.store.append([entry(2)])
    assert (code(no), no.stored) == (ErrorCode.MIGRATING, "no")
    assert isinstance(await world.store.open(request(courier=True)), Opened)


async def test_two_records_of_one_seq_call_a_mover(world: World) -> None:
    await opened(world.store)
    await change(world.store, Holding.HOME)
    await merged(world.store, 1, home=True)
    await change(world.store, Holding.HOME, "settled")
    assert await world.store.due_outboxes(NODE, most=9, lease_s=5) == []
    other = RecordRow((1, 1, bytes(32)), "other", names_us=False)
    (forked,) = await world.store.merge_records([(ME, other)])
    assert (forked.outcome, forked.moves) == ("equivocal", True)
    assert (await world.store.handoff(ME)).evidence == ("record1", "other")
    assert await world.store.due_outboxes(NODE, most=9, lease_s=5) == [DueOutbox(ME, None)]
    (known,) = await world.store.merge_records([(ME, other)])
    assert not known.moves


async def test_a_fork_of_an_agent_without_an_inbox_moves_nothing(world: World) -> None:
    await merged(world.store, 1, home=False)
    other = RecordRow((1, 1, bytes(32)), "other", names_us=True)
    (forked,) = await world.store.merge_records([(ME, other)])
    assert (forked.outcome, forked.moves) == ("equivocal", False)


async def test_the_former_record_goes_with_the_newest(world: World) -> None:
    for seq, home in ((1, True), (2, False)):
        row = replace(record(seq, home=home), expires_at=NOW + 1)
        await world.store.merge_records([(ME, row)])
    assert (await world.store.handoff(ME)).former == "record1"
    await world.advance(91 * 24 * 3600)
    assert await world.store.purge_records() == 1
    assert await world.store.handoff(ME) == HandoffRow()


# ---------------------------------------------------------------- movers


async def test_an_inbox_with_work_is_due_though_nothing_waits_and_nobody_may_read(
    world: World,
) -> None:
    await change(world.store, Holding.HELD, has_work=True)
    assert await world.store.due_outboxes(NODE, most=9, lease_s=20) == [DueOutbox(ME, None)]
    await world.advance(19)
    assert await world.store.due_outboxes(NODE, most=9, lease_s=20) == []
    await world.advance(1)
    assert await world.store.due_outboxes(NODE, most=9, lease_s=20) == [DueOutbox(ME, None)]
    await change(world.store, Holding.HELD, "done")
    await world.advance(99)
    assert await world.store.due_outboxes(NODE, most=9, lease_s=20) == []


async def test_a_courier_that_is_done_leaves_work_for_the_mover(world: World) -> None:
    await opened(world.store)
    await world.store.append([entry(1)])
    await change(world.store, Holding.AWAY, has_work=True)
    carrier = await courier(world.store)
    await end(world.store, carrier, 1, forwarded=FORWARDED)
    await world.store.defer_outbox(ME, carrier.fence, 1)
    await world.store.close(ME, carrier.fence, Seq(1))
    await world.advance(1)
    assert await world.store.due_outboxes(NODE, most=9, lease_s=20) == [DueOutbox(ME, None)]
