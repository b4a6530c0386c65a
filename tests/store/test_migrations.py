"""Inboxes that change relays: steps, digests, pages, and what is counted (GUARANTEES.md §3)."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest

from relay.directory.ports import (
    RecordRow,
)
from relay.forwarding.ports import (
    DueOutbox,
)
from relay.inbox.model.types import (
    Accepted,
    AckRequest,
    AckResult,
    Disposition,
    Forwarded,
    InboxAck,
    InboxLimits,
    InboxRole,
    LiveSession,
    OpenedSession,
    OutboxLimits,
    Page,
)
from relay.migration.ports import (
    MigrationChange,
    MigrationRow,
)
from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.envelope import (
    MAX_ENVELOPE_LIFETIME_S,
)
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
)
from relay.protocol.ids import (
    AgentKey,
    Seq,
)
from relay.protocol.migration_statement import (
    MigrationCounters,
)
from relay.protocol.types import (
    DedupKey,
    MovedRules,
    Reason,
    WaitingEnvelope,
    Window,
)
from relay.store.redis.entries import eid_bytes
from tests.store.test_nodes_and_clock import Heard
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
from tests.support.patience import wait_until

pytestmark = pytest.mark.timeout(60)
PEER, PEER2 = AgentKey("key:peer"), AgentKey("key:peer2")
BOB = AgentKey("key:bob")
FORWARDED = Forwarded(PEER, bytes(range(32)))


def record(seq: int, *, home: bool) -> RecordRow:
    return RecordRow(RecordVersion(1, seq, bytes([seq]) * 32), f"record{seq}", names_us=home)


async def merged(store: Any, seq: int, *, home: bool, owner: AgentKey = ME) -> bool:
    """A newer record of the agent; whether it moves an inbox."""
    (one,) = await store.records.merge([(owner, record(seq, home=home))])
    return bool(one.moves)


async def change(
    store: Any, holding: InboxRole, text: str = "side", *, inbox: AgentKey = ME, **more: Any
) -> bool:
    """A step that follows upon how things stand."""
    seen = await store.migrations.load(inbox)
    return bool(await store.migrations.change(inbox, seen, MigrationChange(text, holding, **more)))


def taken(results: list[Any]) -> list[Accepted]:
    """All of them were stored now."""
    assert all(isinstance(one, Accepted) and not one.dup for one in results), results
    return results


async def bring(store: Any, *numbers: int, **changes: Any) -> list[Any]:
    """A page of an inbox that moves."""
    given = {"via": PEER, "moving": True, **changes}
    return [*await store.inboxes.append([entry(n, **given) for n in numbers])]


async def shown(store: Any, session: OpenedSession) -> list[tuple[int, bool]]:
    page = await store.inboxes.read(ME, session.fence, Seq(0), ALL)
    assert isinstance(page, Page), page
    return [(item.seq, item.redelivered) for item in page.items]


async def courier(store: Any) -> OpenedSession:
    return await opened(store, forwards=True, create=False)


async def end(store: Any, session: OpenedSession, *seqs: int, **more: Any) -> AckResult | Refusal:
    ack = InboxAck(session.fence, session.epoch, tuple(map(Seq, seqs)), **more)
    (result,) = await store.inboxes.ack([AckRequest(ME, ack)])
    return result


def doubt(n: int, hour: int = HOUR, of: int | None = None) -> bytes:
    """The id of envelope ``n`` as a digest says it; ``of``: of another envelope."""
    eid16 = eid_bytes(eid(n if of is None else of))[:16]
    return struct.pack(">I16s16s", hour, n.to_bytes(16, "big"), eid16)


async def all_doubts(store: Any, most: int = 1_000, inbox: AgentKey = ME) -> set[bytes]:
    """All that an agent may have seen, page by page."""
    ids, after = set(), ""
    while True:
        some = await store.migrations.maybe_seen_ids(inbox, after, most)
        ids |= {some.ids[at : at + 36] for at in range(0, len(some.ids), 36)}
        if not some.after:
            return ids
        assert some.after != after
        after = some.after


async def fates(store: Any, *numbers: int) -> list[Disposition | None]:
    asked = [DedupKey(entry(n).dedupe_key, HOUR) for n in numbers]
    return [one and one.disposition for one in await store.inboxes.status(ME, asked)]


# ---------------------------------------------------------------- a step


async def test_of_an_inbox_that_never_moved_there_is_only_what_it_is(world: World) -> None:
    assert await world.migrations.load(ME) == MigrationRow()
    await opened(world.store)
    await world.inboxes.append([entry(1)])
    assert await world.migrations.load(ME) == MigrationRow(
        role=InboxRole.HOME, counters=MigrationCounters(waiting=1)
    )
    assert await world.migrations.list_open() == []


async def test_a_step_is_written_with_what_it_does_to_the_inbox(world: World) -> None:
    assert await change(world.store, InboxRole.PAUSED, "incoming", is_new=True)
    assert await world.migrations.load(ME) == MigrationRow("incoming", InboxRole.PAUSED)
    assert await world.migrations.list_open() == [(ME, "incoming")]
    assert await change(world.store, InboxRole.HOME, "active", is_open=False)
    row = await world.migrations.load(ME)
    assert (row.text, row.role) == ("active", InboxRole.HOME)
    assert await world.migrations.list_open() == []


async def test_of_two_steps_that_saw_the_same_only_one_is_taken(world: World) -> None:
    await opened(world.store)
    seen = await world.migrations.load(ME)
    first = MigrationChange("first", InboxRole.PAUSED, has_work=True)
    assert await world.migrations.change(ME, seen, first)
    assert not await world.migrations.change(ME, seen, first)
    assert not await world.migrations.change(ME, seen, replace(first, text="second"))
    assert (await world.migrations.load(ME)).text == "first"


async def test_a_step_that_did_not_see_the_newest_record_is_not_taken(world: World) -> None:
    await opened(world.store)
    await merged(world.store, 1, home=True)
    seen = await world.migrations.load(ME)
    assert seen.record == record(1, home=True)
    await merged(world.store, 2, home=True)
    step = MigrationChange("late", InboxRole.PAUSED)
    assert not await world.migrations.change(ME, seen, step)
    assert not await world.migrations.change(ME, replace(seen, record=None), step)
    assert await world.migrations.load(ME) == replace(seen, record=record(2, home=True))


async def test_a_step_of_an_agent_without_a_record_is_compared_too(world: World) -> None:
    seen = await world.migrations.load(ME)
    await merged(world.store, 1, home=False)
    assert not await world.migrations.change(ME, seen, MigrationChange("x", InboxRole.PAUSED))
    assert (await world.migrations.load(ME)).role is None


async def test_a_step_is_taken_while_the_store_is_full(world: World) -> None:
    await opened(world.store)
    world.store.refuse_appends("the disk is nearly full")
    assert await change(world.store, InboxRole.FORWARDING, ends_session=True)


# ---------------------------------------------------------------- held


async def test_a_held_inbox_takes_mail_and_lets_nobody_in(world: World) -> None:
    session = await opened_to(world.store, ALICE)
    await world.inboxes.append([entry(1)])
    assert await change(world.store, InboxRole.PAUSED, ends_session=True)
    (first,) = await world.inboxes.append([entry(2)])
    assert first == Accepted(Seq(2), session.epoch, dup=False, session=None)
    (again,) = await world.inboxes.append([entry(2)])
    assert again == first._replace(dup=True)
    assert code(await world.inboxes.open(request())) is ErrorCode.MIGRATING
    assert code(await world.inboxes.open(request(forwards=True))) is ErrorCode.UNKNOWN_INBOX
    assert code(await world.inboxes.read(ME, session.fence, Seq(0), ALL)) is ErrorCode.MIGRATING
    live = LiveSession(session.fence, NODE, NOW + 9)
    assert code(await world.inboxes.fetch(ME, live, ALL)) is ErrorCode.MIGRATING
    assert code(await end(world.store, session, 1)) is ErrorCode.MIGRATING
    assert code(await ruled(world.store, session)) is ErrorCode.MIGRATING
    assert not await world.inboxes.close(ME, session.fence, Seq(2))
    (head,) = await world.inboxes.heads([ME])
    assert head.away, "no session of the agent can go on"


async def test_a_target_takes_mail_although_the_record_names_others(world: World) -> None:
    await merged(world.store, 1, home=False)
    await change(world.store, InboxRole.PAUSED, "incoming")
    (first,) = taken(await world.inboxes.append([entry(1)]))
    assert (first.seq, first.away) == (1, False)
    assert await world.outboxes.totals() == []
    assert code(await world.inboxes.open(request())) is ErrorCode.MIGRATING


async def test_where_others_read_no_session_goes_on_even_unasked(world: World) -> None:
    session = await opened(world.store)
    await change(world.store, InboxRole.PAUSED)
    assert code(await world.inboxes.read(ME, session.fence, Seq(0), ALL)) is ErrorCode.MIGRATING
    await change(world.store, InboxRole.FORWARDING, "away")
    assert code(await world.inboxes.read(ME, session.fence, Seq(0), ALL)) is ErrorCode.MOVED
    await change(world.store, InboxRole.HOME, "home")
    assert code(await world.inboxes.read(ME, session.fence, Seq(0), ALL)) is ErrorCode.MOVED


async def test_a_session_that_a_step_ends_leaves_marks_over_its_window(world: World) -> None:
    await opened(world.store, window=Window(2, 10_000))
    await world.inboxes.append([entry(n) for n in (1, 2, 3)])
    await change(world.store, InboxRole.FORWARDING, ends_session=True)
    assert await shown(world.store, await courier(world.store)) == [
        (1, True), (2, True), (3, False),
    ]  # fmt: skip


async def test_a_step_may_mark_all_that_waits(world: World) -> None:
    session = await opened(world.store)
    await world.inboxes.append([entry(1), entry(2)])
    await change(world.store, InboxRole.HOME, marks_present=True)
    (later,) = await world.inboxes.append([entry(3)])
    assert later.session is not None
    assert await shown(world.store, session) == [(1, True), (2, True), (3, False)]


async def test_what_is_held_does_not_expire(world: World) -> None:
    await opened(world.store)
    await world.inboxes.append([entry(1, expires_at=NOW + 10)])
    await change(world.store, InboxRole.PAUSED)
    await world.advance(1_000)
    assert await world.store.expiry.sweep(NODE, [NODE]) == 0
    await world.inboxes.finalize(ME, [Seq(1)], Reason.EXPIRED)
    assert (await world.migrations.load(ME)).counters.waiting == 1
    await change(world.store, InboxRole.FORWARDING, "away")
    assert await world.store.expiry.sweep(NODE, [NODE]) == 1


async def test_a_changed_handoff_ends_the_courier_of_the_one_before(world: World) -> None:
    await opened(world.store)
    await world.inboxes.append([entry(1)])
    await change(world.store, InboxRole.FORWARDING, "to B")
    carrier = await courier(world.store)
    await change(world.store, InboxRole.FORWARDING, "to C", ends_session=True)
    assert code(await end(world.store, carrier, 1, forwarded=FORWARDED)) is ErrorCode.MOVED
    assert (await world.migrations.load(ME)).counters.waiting == 1


async def test_a_node_hears_that_a_step_ended_its_session(server_world: World) -> None:
    a, b = await server_world.node(NODE), await server_world.node(OTHER)
    heard = Heard(a)
    async with server_world.running(a):
        await wait_until(lambda: heard.looks, 10, "a listens")
        await opened(a)
        await change(b, InboxRole.PAUSED, ends_session=True)
        await wait_until(lambda: heard.hints == [ME], 5, "the agent's node hears of it")


async def test_what_waits_for_a_peer_is_counted_there_while_it_is_away_only(world: World) -> None:
    await merged(world.store, 1, home=False)
    await world.inboxes.append([entry(1, peer=PEER), entry(2, peer=PEER)])
    assert [one[:2] for one in await world.outboxes.totals()] == [(PEER, 2)]
    await change(world.store, InboxRole.PAUSED)
    assert await world.outboxes.totals() == []
    await change(world.store, InboxRole.FORWARDING, "away")
    assert await world.outboxes.totals() == []
    carrier = await courier(world.store)
    await world.outboxes.defer(ME, carrier.fence, 0, peer=PEER2)
    assert [one[:2] for one in await world.outboxes.totals()] == [(PEER2, 2)]


async def test_what_moves_is_no_outboxs_nor_is_what_comes_meanwhile(world: World) -> None:
    """A share of an outbox is far less than an inbox holds; senders must not notice a move."""
    world.options["outbox"] = OutboxLimits(count=8, bytes=10**6, shares=4)
    store = await world.restart()
    await opened(store)
    taken(await store.inboxes.append([entry(n) for n in range(1, 6)]))
    await merged(store, 1, home=False)
    await change(store, InboxRole.FORWARDING, is_new=True)
    carrier = await courier(store)
    await store.outboxes.defer(ME, carrier.fence, 0, peer=PEER)
    taken(await store.inboxes.append([entry(n, peer=PEER) for n in range(6, 9)]))
    assert await store.outboxes.totals() == []
    await end(store, carrier, *range(1, 6), forwarded=FORWARDED)
    # what is left came since, and goes behind it: as long as any of it is there
    taken(await store.inboxes.append([entry(9, peer=PEER)]))
    await end(store, carrier, *range(6, 10), forwarded=FORWARDED)
    assert await store.outboxes.totals() == []
    taken(await store.inboxes.append([entry(n, peer=PEER) for n in (10, 11)]))
    assert [one[:2] for one in await store.outboxes.totals()] == [(PEER, 2)]
    (no,) = await store.inboxes.append([entry(12, peer=PEER)])
    assert code(no) is ErrorCode.SENDER_QUOTA


# ---------------------------------------------------------------- doubtful


async def test_in_a_doubtful_inbox_all_is_marked_and_nothing_handed_over_unread(
    world: World,
) -> None:
    session = await opened(world.store)
    await world.inboxes.append([entry(1)])
    await change(world.store, InboxRole.UNCERTAIN)
    (new,) = await world.inboxes.append([entry(2)])
    assert new.session is None
    assert await shown(world.store, session) == [(1, True), (2, True)]
    page = await world.inboxes.fetch(ME, LiveSession(session.fence, NODE, NOW + 9), ALL)
    assert [item.redelivered for item in page.items] == [True, True]
    assert await all_doubts(world.store) == {doubt(1), doubt(2)}


async def test_when_the_doubt_is_over_the_session_goes_on_and_marks_stop(world: World) -> None:
    session = await opened(world.store)
    await change(world.store, InboxRole.UNCERTAIN)
    await world.inboxes.append([entry(1)])
    await change(world.store, InboxRole.HOME, "sure")
    (new,) = await world.inboxes.append([entry(2)])
    assert new.session == LiveSession(session.fence, NODE)
    assert await shown(world.store, session) == [(1, False), (2, False)]


# ---------------------------------------------------------------- records


async def test_where_no_step_was_written_a_record_turns_the_inbox_as_ever(world: World) -> None:
    await opened(world.store)
    await world.inboxes.append([entry(1)])
    assert not await merged(world.store, 1, home=True)
    assert await merged(world.store, 2, home=False)
    row = await world.migrations.load(ME)
    assert (row.role, row.has_left, row.former) == (InboxRole.FORWARDING, True, "record1")
    assert not await merged(world.store, 3, home=False)
    assert (await world.migrations.load(ME)).former == "record1"
    assert await merged(world.store, 4, home=True)
    row = await world.migrations.load(ME)
    assert (row.role, row.former) == (InboxRole.UNCERTAIN, "record3")
    assert await shown(world.store, await opened(world.store)) == [(1, True)]


async def test_an_inbox_that_turns_without_a_step_calls_a_mover(world: World) -> None:
    await opened(world.store)
    assert await world.outboxes.due(NODE, limit=9, lease_s=5) == []
    await merged(world.store, 1, home=False)
    assert await world.outboxes.due(NODE, limit=9, lease_s=5) == [DueOutbox(ME, None)]
    assert await world.outboxes.due(NODE, limit=9, lease_s=5) == []
    await world.advance(5)
    assert await world.outboxes.due(NODE, limit=9, lease_s=5) == [DueOutbox(ME, None)]
    await change(world.store, InboxRole.FORWARDING)
    await world.advance(5)
    assert await world.outboxes.due(NODE, limit=9, lease_s=5) == []


async def test_an_inbox_that_is_made_where_others_were_homes_is_doubtful(world: World) -> None:
    await merged(world.store, 1, home=False)
    await merged(world.store, 2, home=True)
    session = await opened(world.store)
    assert (await world.migrations.load(ME)).role is InboxRole.UNCERTAIN
    assert await world.outboxes.due(NODE, limit=9, lease_s=5) == [DueOutbox(ME, None)]
    await world.inboxes.append([entry(1)])
    assert await shown(world.store, session) == [(1, True)]


async def test_where_a_step_was_written_a_record_calls_a_mover_and_turns_nothing(
    world: World,
) -> None:
    session = await opened(world.store)
    await change(world.store, InboxRole.HOME)
    assert await merged(world.store, 1, home=False)
    assert (await world.migrations.load(ME)).role is InboxRole.HOME
    assert await shown(world.store, session) == []
    assert await world.outboxes.due(NODE, limit=9, lease_s=5) == [DueOutbox(ME, None)]
    assert code(await world.inboxes.open(request())) is ErrorCode.UNKNOWN_INBOX
    assert await merged(world.store, 2, home=False), "each newer one"
    assert not await merged(world.store, 2, home=False)


async def test_what_is_away_and_coming_home_is_said_to_be_moving(world: World) -> None:
    await merged(world.store, 1, home=False)
    await world.inboxes.append([entry(1, peer=PEER)])
    await change(world.store, InboxRole.FORWARDING)
    assert await merged(world.store, 2, home=True)
    assert code(await world.inboxes.open(request())) is ErrorCode.MIGRATING
    (no,) = await world.inboxes.append([entry(2)])
    assert (code(no), no.stored) == (ErrorCode.MIGRATING, "no")
    assert isinstance(await world.inboxes.open(request(forwards=True)), OpenedSession)


async def test_two_records_of_one_seq_call_a_mover(world: World) -> None:
    await opened(world.store)
    await change(world.store, InboxRole.HOME)
    await merged(world.store, 1, home=True)
    await change(world.store, InboxRole.HOME, "settled")
    assert await world.outboxes.due(NODE, limit=9, lease_s=5) == []
    other = RecordRow(RecordVersion(1, 1, bytes(32)), "other", names_us=False)
    (forked,) = await world.records.merge([(ME, other)])
    assert (forked.outcome, forked.moves) == ("equivocal", True)
    assert (await world.migrations.load(ME)).evidence == ("record1", "other")
    assert await world.outboxes.due(NODE, limit=9, lease_s=5) == [DueOutbox(ME, None)]
    (known,) = await world.records.merge([(ME, other)])
    assert not known.moves


async def test_a_fork_of_an_agent_without_an_inbox_moves_nothing(world: World) -> None:
    await merged(world.store, 1, home=False)
    other = RecordRow(RecordVersion(1, 1, bytes(32)), "other", names_us=True)
    (forked,) = await world.records.merge([(ME, other)])
    assert (forked.outcome, forked.moves) == ("equivocal", False)


async def test_the_former_record_goes_with_the_newest(world: World) -> None:
    for seq, home in ((1, True), (2, False)):
        row = replace(record(seq, home=home), expires_at=NOW + 1)
        await world.records.merge([(ME, row)])
    assert (await world.migrations.load(ME)).former == "record1"
    await world.advance(91 * 24 * 3600)
    assert await world.records.purge() == 1
    assert await world.migrations.load(ME) == MigrationRow()


# ---------------------------------------------------------------- movers


async def test_an_inbox_with_work_is_due_though_nothing_waits_and_nobody_may_read(
    world: World,
) -> None:
    await change(world.store, InboxRole.PAUSED, has_work=True)
    assert await world.outboxes.due(NODE, limit=9, lease_s=20) == [DueOutbox(ME, None)]
    await world.advance(19)
    assert await world.outboxes.due(NODE, limit=9, lease_s=20) == []
    await world.advance(1)
    assert await world.outboxes.due(NODE, limit=9, lease_s=20) == [DueOutbox(ME, None)]
    await change(world.store, InboxRole.PAUSED, "done")
    await world.advance(99)
    assert await world.outboxes.due(NODE, limit=9, lease_s=20) == []


async def test_a_courier_that_is_done_leaves_work_for_the_mover(world: World) -> None:
    await opened(world.store)
    await world.inboxes.append([entry(1)])
    await change(world.store, InboxRole.FORWARDING, has_work=True)
    carrier = await courier(world.store)
    await end(world.store, carrier, 1, forwarded=FORWARDED)
    await world.outboxes.defer(ME, carrier.fence, 1)
    await world.inboxes.close(ME, carrier.fence, Seq(1))
    await world.advance(1)
    assert await world.outboxes.due(NODE, limit=9, lease_s=20) == [DueOutbox(ME, None)]


# ---------------------------------------------------------------- digests


async def test_what_an_agent_may_have_seen_is_told_page_by_page(world: World) -> None:
    session = await opened(world.store)
    await world.inboxes.append([entry(n) for n in range(1, 8)])
    await world.inboxes.append([entry(8, marked=True), entry(9, hour=HOUR - 1)])
    await end(world.store, session, 2, refuse=((Seq(3), "no"),))
    await world.inboxes.close(ME, session.fence, Seq(4))
    seen = {doubt(1), doubt(2), doubt(3), doubt(4), doubt(8)}
    assert await all_doubts(world.store) == seen
    assert await all_doubts(world.store, most=1) == seen
    assert (await world.migrations.maybe_seen_ids(ME, "", 9)).floor == -1
    await change(world.store, InboxRole.PAUSED, marks_present=True)
    assert len(await all_doubts(world.store, most=3)) == 9


async def test_of_an_inbox_that_is_not_there_nothing_was_seen(world: World) -> None:
    some = await world.migrations.maybe_seen_ids(ME, "", 9)
    assert (some.ids, some.after, some.floor) == (b"", "", -1)
    assert await world.migrations.waiting(ME, Seq(0), 9) == []
    assert await world.migrations.known(ME) == MovedRules()


async def test_what_waits_in_an_old_epoch_is_among_what_may_have_been_seen(
    server_world: World,
) -> None:
    store = await server_world.node()
    await opened(store)
    await store.inboxes.append([entry(1), entry(2)])
    await lose_commits(server_world)
    assert await all_doubts(store) == {doubt(1), doubt(2)}


async def lose_commits(world: World) -> None:
    """The store knows less than its nodes do: it was rolled back."""
    world.mutations.edit("tonumber(redis.call('TIME')[1])", str(int(world.now)))
    part = 0 if world.partitions == 1 else world.store._partitions.of(ME)
    await world.raw.hset(f"relay:{{{part}}}:state", "commits", 0)


async def test_an_id_that_a_digest_named_is_stored_once_and_marked(world: World) -> None:
    await change(world.store, InboxRole.PAUSED, maybe_seen=doubt(1) + doubt(2, HOUR - 5))
    assert await fates(world.store, 1) == [Disposition.MAYBE_SEEN]
    (own,) = await world.inboxes.append([entry(1)])
    assert (own.seq, own.dup) == (1, False)
    (again,) = await world.inboxes.append([entry(1)])
    assert again.dup
    (page,) = await bring(world.store, 2, hour=HOUR - 5)
    assert (page.seq, page.dup) == (2, False)
    (plain,) = await world.inboxes.append([entry(3)])
    assert isinstance(plain, Accepted)
    await change(world.store, InboxRole.HOME, "home")
    session = await opened(world.store)
    assert await shown(world.store, session) == [(1, True), (2, True), (3, False)]
    assert await all_doubts(world.store) == {doubt(1), doubt(2, HOUR - 5)}


async def test_an_id_that_a_digest_names_of_another_envelope_turns_none_away(world: World) -> None:
    await change(world.store, InboxRole.PAUSED, maybe_seen=doubt(1, of=7) + doubt(2, of=7))
    taken(await world.inboxes.append([entry(1)]))
    taken(await bring(world.store, 2))
    assert code((await world.inboxes.append([entry(1, eid=eid(7))]))[0]) is ErrorCode.REPLAYED
    await change(world.store, InboxRole.HOME, "home")
    assert await shown(world.store, await opened(world.store)) == [(1, True), (2, True)]


async def test_what_went_and_was_shown_there_is_marked_whoever_brings_it_back(
    world: World,
) -> None:
    await opened(world.store)
    await world.inboxes.append([entry(1), entry(2)])
    await change(world.store, InboxRole.FORWARDING)
    carrier = await courier(world.store)
    await end(world.store, carrier, 1, 2, forwarded=FORWARDED)
    await change(world.store, InboxRole.PAUSED, "back", maybe_seen=doubt(1))
    assert await fates(world.store, 1, 2) == [Disposition.MAYBE_SEEN, Disposition.FORWARDED]
    taken(await bring(world.store, 1))
    taken(await bring(world.store, 2))
    await change(world.store, InboxRole.HOME, "home")
    assert await shown(world.store, await opened(world.store)) == [(3, True), (4, False)]


async def test_a_mark_that_is_brought_outlasts_a_doubt_about_all(world: World) -> None:
    await change(world.store, InboxRole.UNCERTAIN)
    await world.inboxes.append([entry(1), entry(2)])
    (again,) = await bring(world.store, 1, marked=True)
    assert isinstance(again, Accepted)
    assert again.dup
    await change(world.store, InboxRole.HOME, "home")
    assert await shown(world.store, await opened(world.store)) == [(1, True), (2, False)]


async def test_what_is_marked_for_an_id_is_never_handed_over_unread(world: World) -> None:
    session = await opened(world.store)
    await change(world.store, InboxRole.HOME, maybe_seen=doubt(1))
    marked, plain = await world.inboxes.append([entry(1), entry(2)])
    assert (marked.session, plain.session) == (None, LiveSession(session.fence, NODE))


async def test_what_is_here_already_is_marked_for_a_digest_and_stays(world: World) -> None:
    session = await opened(world.store)
    await world.inboxes.append([entry(1), entry(2), entry(3)])
    await end(world.store, session, 1)
    await change(world.store, InboxRole.HOME, maybe_seen=doubt(1) + doubt(2))
    assert await fates(world.store, 1, 2, 3) == [
        Disposition.ACKED,
        Disposition.STORED,
        Disposition.STORED,
    ]
    assert await shown(world.store, session) == [(2, True), (3, False)]


async def test_a_digest_is_remembered_as_long_as_its_envelopes_can_live(world: World) -> None:
    await change(world.store, InboxRole.PAUSED, maybe_seen=doubt(1))
    ends_at = (HOUR + 1) * 3600 + MAX_ENVELOPE_LIFETIME_S
    await world.set_time(ends_at + 600)
    await world.store.expiry.sweep(NODE, [NODE])
    assert await fates(world.store, 1) == [Disposition.MAYBE_SEEN]
    await world.advance(1)
    await world.store.expiry.sweep(NODE, [NODE])
    assert await fates(world.store, 1) == [None]


async def test_a_digest_without_room_marks_what_is_older(world: World) -> None:
    """LIMITS allow 30 ids, and a digest leaves room for what comes."""
    ids = [doubt(n, HOUR - n // 5) for n in range(20)]
    await change(world.store, InboxRole.PAUSED, maybe_seen=b"".join(ids))
    assert await all_doubts(world.store) == set(ids[:10])
    assert (await world.migrations.maybe_seen_ids(ME, "", 99)).floor == HOUR - 2
    end_s = (HOUR - 1) * 3600 + 300
    old, young = await world.inboxes.append([
        entry(101, hour=HOUR - 9, created_at=end_s - 1), entry(102, created_at=end_s),
    ])  # fmt: skip
    taken([old, young])
    taken(await bring(world.store, 17, hour=HOUR - 3, created_at=end_s - 1))
    await change(world.store, InboxRole.HOME, "home")
    session = await opened(world.store)
    assert await shown(world.store, session) == [(1, True), (2, False), (3, True)]


async def test_what_an_inbox_has_seen_itself_it_does_not_forget_for_a_digest(world: World) -> None:
    session = await opened(world.store)
    await world.inboxes.append([
        entry(n, sender=AgentKey(f"key:s{n % 3}"), hour=HOUR - 5 - n % 3) for n in range(9)
    ])  # fmt: skip
    await end(world.store, session, *range(1, 10))
    ids = [doubt(n) for n in range(100, 130)]
    await change(world.store, InboxRole.HOME, maybe_seen=b"".join(ids))
    assert await all_doubts(world.store) == {doubt(n, HOUR - 5 - n % 3) for n in range(9)}
    taken(await world.inboxes.append([entry(99, hour=HOUR - 9)]))
    again = await world.inboxes.append([
        entry(n, sender=AgentKey(f"key:s{n % 3}"), hour=HOUR - 5 - n % 3) for n in range(9)
    ])  # fmt: skip
    assert all(one.dup for one in again)


async def test_what_is_marked_by_its_time_takes_no_room(world: World) -> None:
    await change(world.store, InboxRole.PAUSED, dedup_horizon=HOUR - 2)
    await change(
        world.store, InboxRole.PAUSED, "more", maybe_seen=doubt(1, HOUR - 2) + doubt(2, HOUR - 1)
    )
    assert await all_doubts(world.store) == {doubt(2, HOUR - 1)}


async def test_a_digest_keeps_within_the_budget_of_all(world: World) -> None:
    world.options["dedupe_total"] = 6
    store = await world.restart()
    ids = [doubt(n, HOUR - n // 4) for n in range(16)]
    await change(store, InboxRole.PAUSED, maybe_seen=b"".join(ids))
    assert await all_doubts(store) == set(ids[:4])
    assert (await store.migrations.maybe_seen_ids(ME, "", 99)).floor == HOUR - 1


async def test_what_waits_and_is_forgotten_here_is_marked_for_a_digest(world: World) -> None:
    """LIMITS allow 30 ids, and half of that of strangers; two hours are always kept."""
    await change(world.store, InboxRole.PAUSED)
    for n, hour in enumerate([*[HOUR - 9] * 13, HOUR - 1, HOUR, HOUR], 1):
        sender = AgentKey(f"key:s{n % 9}")
        await world.inboxes.append([entry(n, hour=hour, created_at=hour * 3600, sender=sender)])
    assert (await world.migrations.maybe_seen_ids(ME, "", 99)).floor == HOUR - 9
    await change(world.store, InboxRole.PAUSED, "digested", maybe_seen=doubt(1, HOUR - 9))
    await change(world.store, InboxRole.HOME, "home")
    session = await opened(world.store)
    marked = dict(await shown(world.store, session))
    assert (marked[1], marked[13], marked[14], marked[16]) == (True, True, False, False)


async def test_the_newest_is_said_first(world: World) -> None:
    ids = [doubt(n, HOUR - n) for n in range(9)]
    await change(world.store, InboxRole.PAUSED, maybe_seen=b"".join(reversed(ids)))
    first = await world.migrations.maybe_seen_ids(ME, "", 4)
    assert first.ids == b"".join(ids[:4])
    rest = await world.migrations.maybe_seen_ids(ME, first.after, 9)
    assert rest.ids == b"".join(ids[4:])


async def test_a_digest_with_more_of_one_hour_than_there_is_room_for_marks_that_hour(
    world: World,
) -> None:
    ids = [doubt(n) for n in range(100, 140)]
    await change(world.store, InboxRole.PAUSED, maybe_seen=b"".join(ids))
    assert await all_doubts(world.store) == set()
    end_s = (HOUR + 1) * 3600 + 300
    young, old = await world.inboxes.append([
        entry(1, created_at=end_s, expires_at=end_s + 99), entry(2, created_at=end_s - 1),
    ])  # fmt: skip
    assert (young.dup, old.dup) == (False, False)
    await change(world.store, InboxRole.HOME, "home")
    assert await shown(world.store, await opened(world.store)) == [(1, False), (2, True)]


async def test_what_a_source_has_forgotten_is_taken_here_and_marked(world: World) -> None:
    await change(world.store, InboxRole.PAUSED)
    old = (HOUR - 3) * 3600
    await world.inboxes.append([entry(1, hour=HOUR - 3, created_at=old), entry(2, created_at=NOW)])
    await change(world.store, InboxRole.PAUSED, "digested", dedup_horizon=HOUR - 3)
    assert (await world.migrations.maybe_seen_ids(ME, "", 9)).floor == HOUR - 3
    taken(await world.inboxes.append([entry(3, hour=HOUR - 3, created_at=old)]))
    taken(await bring(world.store, 4, hour=HOUR - 3, created_at=old))
    taken(await bring(world.store, 5, created_at=NOW))
    await change(world.store, InboxRole.HOME, "home", dedup_horizon=HOUR - 9)
    session = await opened(world.store)
    assert (await world.migrations.maybe_seen_ids(ME, "", 9)).floor == HOUR - 3
    assert await shown(world.store, session) == [
        (1, True), (2, False), (3, True), (4, True), (5, False),
    ]  # fmt: skip


async def test_a_large_page_is_taken_at_once_and_twice(world: World) -> None:
    world.limits = InboxLimits()
    store = await world.restart()
    ids = b"".join(doubt(n, HOUR - n // 1_000) for n in range(4_096))
    await change(store, InboxRole.PAUSED, "one", maybe_seen=ids, is_new=True)
    await change(store, InboxRole.PAUSED, "two", maybe_seen=ids)
    assert len(await all_doubts(store, most=4_096)) == 4_096
    assert (await store.migrations.maybe_seen_ids(ME, "", 99)).floor == -1


# ---------------------------------------------------------------- pages


async def test_a_page_passes_rules_and_quotas(world: World) -> None:
    world.limits = replace(LIMITS, max_count=2, sender_count=1, stranger_count=1)
    store = await world.restart()
    session = await opened(store)
    await ruled(store, session, deny=(ALICE,), first_contact="refuse")
    await change(store, InboxRole.PAUSED)
    results = await bring(store, 1, 2, 3, barred=True)
    results += await bring(store, 4, sender=BOB)
    assert [(one.seq, one.stranger) for one in taken(results)] == [
        (1, True), (2, True), (3, True), (4, True),
    ]  # fmt: skip
    assert (await waiting_in(store)) == 4
    (full,) = await store.inboxes.append([entry(9, sender=AgentKey("key:eve"))])
    assert isinstance(full, Refusal)


async def waiting_in(store: Any) -> int:
    return int((await store.migrations.load(ME)).counters.waiting)


async def test_a_page_is_taken_below_the_floor_and_marked(world: World) -> None:
    """LIMITS allow 30 ids, and strangers half of them."""
    session = await opened(world.store)
    for n in range(16):
        await world.inboxes.append([entry(n, hour=HOUR - 9 + n // 5)])
        await end(world.store, session, n + 1)
    (old,) = await world.inboxes.append([entry(99, hour=HOUR - 9)])
    assert code(old) is ErrorCode.STALE_ID
    taken(await bring(world.store, 99, hour=HOUR - 9))
    assert await shown(world.store, session) == [(17, True)]


async def test_a_page_counts_where_others_do(world: World) -> None:
    world.limits = replace(LIMITS, stranger_count=4)
    store = await world.restart()
    await opened(store)
    await bring(store, *range(1, 5))
    (no,) = await store.inboxes.append([entry(9, sender=BOB)])
    assert code(no) is ErrorCode.STRANGER_QUOTA


async def test_a_page_is_not_past_expiry_or_memory(world: World) -> None:
    session = await opened(world.store)
    await world.inboxes.append([entry(1), entry(2)])
    await end(world.store, session, 1)
    late, other = await world.inboxes.append([
        entry(3, via=PEER, moving=True, expires_at=NOW),
        entry(4, via=PEER, moving=True, dedupe_key=entry(2).dedupe_key),
    ])  # fmt: skip
    assert (code(late), code(other)) == (ErrorCode.EXPIRED, ErrorCode.REPLAYED)
    acked, here = await bring(world.store, 1, 2)
    assert (acked.dup, here.dup) == (True, True)
    assert await shown(world.store, session) == [(2, False)]
    world.store.clock.trust(ok=False)
    (unsure,) = await bring(world.store, 5, expires_at=NOW)
    assert code(unsure) is ErrorCode.STORAGE_UNAVAILABLE


async def test_a_page_never_takes_a_mark_away_and_always_brings_its_own(world: World) -> None:
    session = await opened(world.store)
    await world.inboxes.append([entry(1), entry(2), entry(3, marked=True), entry(4)])
    await bring(world.store, 3, marked=True)
    await bring(world.store, 3, 4)
    assert await shown(world.store, session) == [(1, False), (2, False), (3, True), (4, False)]
    await bring(world.store, 2, marked=True)
    assert await shown(world.store, session) == [(1, True), (2, True), (3, True), (4, False)]


async def test_what_moved_on_comes_back_with_its_inbox_as_it_is(world: World) -> None:
    await opened(world.store)
    await world.inboxes.append([entry(n) for n in (1, 2, 3)])
    await change(world.store, InboxRole.FORWARDING, "away")
    await change(world.store, InboxRole.FORWARDING, "away still")
    carrier = await courier(world.store)
    await end(world.store, carrier, 1, 2, 3, forwarded=FORWARDED)
    (gone,) = await bring(world.store, 1)
    assert gone.code is ErrorCode.MIGRATING
    await change(world.store, InboxRole.PAUSED, "incoming")
    assert await fates(world.store, 1, 2, 3) == [Disposition.FORWARDED] * 3
    taken(await bring(world.store, 1))
    taken(await world.inboxes.append([entry(2)]))
    taken(await bring(world.store, 3, marked=True))
    await change(world.store, InboxRole.HOME, "home")
    session = await opened(world.store)
    assert await shown(world.store, session) == [(4, False), (5, True), (6, True)]


async def test_while_the_store_is_full_what_would_be_kept_anew_is_refused(world: World) -> None:
    await opened(world.store)
    await world.inboxes.append([entry(1)])
    await change(world.store, InboxRole.FORWARDING)
    await end(world.store, await courier(world.store), 1, forwarded=FORWARDED)
    await change(world.store, InboxRole.PAUSED, "incoming", maybe_seen=doubt(2))
    await world.inboxes.append([entry(3)])
    world.store.refuse_appends("the disk is nearly full")
    results = await world.inboxes.append([entry(n) for n in (1, 2, 3)])
    assert [code(one) for one in results] == [
        ErrorCode.STORAGE_FULL, ErrorCode.STORAGE_FULL, None,
    ]  # fmt: skip


# ---------------------------------------------------------------- what is counted


async def tally(store: Any) -> MigrationCounters:
    found = (await store.migrations.load(ME)).counters
    assert isinstance(found, MigrationCounters)
    return found


async def test_every_envelope_of_a_source_is_accounted_for(world: World) -> None:
    await opened(world.store)
    await world.inboxes.append([entry(0)])
    await world.inboxes.append([entry(n, expires_at=NOW + 50) for n in (1, 2)])
    await world.inboxes.append([entry(n) for n in (3, 4, 5)])
    size = sum(entry(n).size for n in range(6))
    await change(world.store, InboxRole.PAUSED, "frozen", is_new=True)
    assert await tally(world.store) == MigrationCounters(was=6, was_bytes=size, waiting=6)
    await world.inboxes.append([entry(6), entry(7), entry(6)])
    await change(world.store, InboxRole.FORWARDING, "away")
    carrier = await courier(world.store)
    await end(world.store, carrier, 1, forwarded=FORWARDED, refuse=((Seq(4), "blocked"),))
    await world.inboxes.finalize(ME, [Seq(5)], Reason.CORRUPT)
    await world.advance(400)
    await world.store.expiry.sweep(OTHER, [OTHER])
    now = await tally(world.store)
    assert now == MigrationCounters(
        6, size, late=2, waiting=3, moved=1, expired=2, refused=1, corrupt=1
    )
    assert now.is_balanced
    await change(world.store, InboxRole.HOME, "back")
    session = await opened(world.store)
    await end(world.store, session, 6)
    back = await tally(world.store)
    assert (back.acked, back.waiting, back.is_balanced) == (1, 2, True)
    await change(world.store, InboxRole.PAUSED, "again", is_new=True)
    assert (await tally(world.store)).was == 2


async def test_a_target_counts_what_is_new_and_what_it_had(world: World) -> None:
    await change(world.store, InboxRole.PAUSED, is_new=True)
    await world.inboxes.append([entry(1)])
    await bring(world.store, 1, 2, 3)
    await bring(world.store, 3)
    counted = await tally(world.store)
    assert (counted.kept, counted.dups, counted.late, counted.waiting) == (2, 2, 3, 3)
    assert counted.is_balanced


async def test_without_a_beginning_nothing_is_counted(world: World) -> None:
    session = await opened(world.store)
    await change(world.store, InboxRole.HOME)
    await bring(world.store, 1, 1)
    await end(world.store, session, 1)
    assert await tally(world.store) == MigrationCounters()


async def test_what_the_store_lost_counts_as_corrupt(server_world: World) -> None:
    store = await server_world.node()
    await opened(store)
    await store.inboxes.append([entry(n) for n in (1, 2, 3)])
    await change(store, InboxRole.FORWARDING, is_new=True)
    carrier = await courier(store)
    await server_world.raw.xdel(server_world.key("stream"), "2-0")
    reset = await store.inboxes.read(ME, carrier.fence, Seq(0), ALL)
    assert code(reset) is ErrorCode.INBOX_RESET
    counted = await tally(store)
    assert (counted.corrupt, counted.waiting, counted.is_balanced) == (1, 2, True)
    assert (await store.migrations.load(ME)).role is InboxRole.FORWARDING


async def test_a_new_epoch_keeps_what_becomes_of_an_inbox(server_world: World) -> None:
    store = await server_world.node()
    before = await opened(store)
    await store.inboxes.append([entry(1)])
    await change(store, InboxRole.PAUSED, "frozen", is_new=True)
    await lose_commits(server_world)
    row = await store.migrations.load(ME)
    assert (row.text, row.role, row.counters.waiting) == ("frozen", InboxRole.PAUSED, 1)
    assert code(await store.inboxes.open(request())) is ErrorCode.MIGRATING
    assert await store.migrations.list_open() == [(ME, "frozen")]
    await change(store, InboxRole.HOME, "back")
    session = await opened(store)
    assert session.epoch != before.epoch
    assert await shown(store, session) == [(1, True)]
    assert (await tally(store)).is_balanced


async def test_what_waits_is_listed_without_its_content(world: World) -> None:
    session = await opened(world.store)
    await world.inboxes.append([entry(n, sender=AgentKey(f"key:s{n}")) for n in range(1, 6)])
    await end(world.store, session, 2)
    found = await world.migrations.waiting(ME, Seq(0), 3)
    assert found == [
        WaitingEnvelope(
            Seq(n), eid(n), DedupKey(entry(n).dedupe_key, HOUR), entry(n).size, NOW + 1_000
        )
        for n in (1, 3, 4)
    ]
    assert [one.seq for one in await world.migrations.waiting(ME, Seq(4), 3)] == [5]
    assert await world.migrations.waiting(ME, Seq(5), 3) == []


async def test_a_long_list_of_what_waits_is_whole(world: World) -> None:
    world.limits = InboxLimits(sender_count=5_000, stranger_count=5_000)
    store = await world.restart()
    await opened(store)
    await store.inboxes.append([entry(n) for n in range(600)])
    assert [one.seq for one in await store.migrations.waiting(ME, Seq(0), 1_000)] == [
        *range(1, 601)
    ]
    assert [one.seq for one in await store.migrations.waiting(ME, Seq(10), 300)] == [
        *range(11, 311)
    ]


# ---------------------------------------------------------------- rules


async def test_whom_an_agent_knows_moves_with_its_inbox(world: World) -> None:
    session = await opened(world.store)
    await ruled(world.store, session, allow=(BOB,), deny=(ALICE,), first_contact="refuse")
    await world.rules.add_contacts([(ME, PEER2)])
    await world.advance(1)
    await world.rules.add_contacts([(ME, PEER)])
    known = await world.migrations.known(ME)
    assert known == MovedRules("refuse", (BOB,), (ALICE,), (PEER2, PEER))
    there = AgentKey("key:there")
    await world.migrations.add_known(there, known)
    assert await world.migrations.known(there) == MovedRules(), "there is no such inbox"
    await change(world.store, InboxRole.PAUSED, inbox=there)
    for _ in range(2):
        await world.migrations.add_known(there, known)
        assert await world.migrations.known(there) == known


async def test_what_an_agent_said_here_stands(world: World) -> None:
    eve = AgentKey("key:eve")
    session = await opened(world.store)
    await ruled(world.store, session, allow=(ALICE,), deny=(BOB,))
    await world.rules.add_contacts([(ME, eve), (ME, PEER)])
    await world.migrations.add_known(
        ME, MovedRules("refuse", (BOB,), (ALICE, eve), (ALICE, PEER, PEER2))
    )
    known = await world.migrations.known(ME)
    assert known == MovedRules("refuse", (ALICE,), (BOB, eve), (PEER2, PEER))
    now = await ruled(world.store, session)
    assert (now.contacts, now.first_contact) == (2, "refuse")
    await world.migrations.add_known(ME, MovedRules())
    assert await world.migrations.known(ME) == known


async def test_of_what_an_agent_knew_no_more_is_kept_than_fits(world: World) -> None:
    world.limits = replace(LIMITS, rules=2, contacts=3)
    store = await world.restart()
    await opened(store)
    some = [AgentKey(f"key:k{n}") for n in range(12)]
    await store.migrations.add_known(
        ME, MovedRules("accept", tuple(some[:3]), tuple(some[3:6]), tuple(some[6:]))
    )
    known = await store.migrations.known(ME)
    assert known == MovedRules("accept", tuple(some[:2]), tuple(some[3:5]), tuple(some[9:]))
    await store.rules.add_contacts([(ME, PEER)])
    assert (await store.migrations.known(ME)).contacts == (*some[10:], PEER)


# ---------------------------------------------------------------- a restored store


async def test_a_restored_outbox_does_not_bounce_for_a_day(server_world: World) -> None:
    store = await server_world.node()
    await merged(store, 1, home=False)
    await store.inboxes.append([entry(1, peer=PEER, expires_at=NOW + 10), entry(2, peer=PEER)])
    await lose_commits(server_world)
    carrier = await courier(store)
    await end(store, carrier, refuse=((Seq(2), "blocked"),))
    await server_world.advance(400)
    await store.expiry.sweep(OTHER, [OTHER])
    assert await store.bounces.claim() == []
    await server_world.set_time(NOW + 24 * 3600)
    (batch,) = await store.bounces.claim()
    assert {(one.reason, one.maybe_delivered) for one in batch.intents} == {
        ("blocked", True), ("expired", True),
    }  # fmt: skip


async def test_what_was_created_before_a_restore_may_have_been_delivered(
    server_world: World,
) -> None:
    store = await server_world.node()
    await opened(store)
    await lose_commits(server_world)
    assert code(await store.inboxes.read(ME, (await opened(store)).fence, Seq(0), ALL)) is None
    await change(store, InboxRole.FORWARDING)
    await store.inboxes.append([entry(1, peer=PEER, expires_at=NOW + 10)])
    await server_world.advance(400)
    await store.expiry.sweep(OTHER, [OTHER])
    await server_world.set_time(NOW + 24 * 3600)
    (batch,) = await store.bounces.claim()
    assert [(one.reason, one.maybe_delivered) for one in batch.intents] == [("expired", True)]


async def test_who_writes_a_step_down_anew_keeps_what_was_lent(world: World) -> None:
    """Else each other node would be lent it, too, and they would fence each other off."""
    await opened(world.store)
    await world.inboxes.append([entry(1)])
    await change(world.store, InboxRole.FORWARDING, "one", has_work=True)
    assert await world.outboxes.due(NODE, limit=9, lease_s=20) == [DueOutbox(ME, None)]
    for text, has_work in (("one", True), ("two", True), ("three", False), ("three", False)):
        await change(world.store, InboxRole.FORWARDING, text, has_work=has_work)
        assert await world.outboxes.due(OTHER, limit=9, lease_s=20) == []
    await change(world.store, InboxRole.FORWARDING, "four", has_work=True)
    assert await world.outboxes.due(OTHER, limit=9, lease_s=20) == [DueOutbox(ME, None)]
    await change(world.store, InboxRole.FORWARDING, "five", has_work=True, ends_session=True)
    assert await world.outboxes.due(OTHER, limit=9, lease_s=20) == [DueOutbox(ME, None)]
    assert await world.outboxes.due(OTHER, limit=9, lease_s=20) == []
    await world.advance(20)
    assert await world.outboxes.due(OTHER, limit=9, lease_s=20) == [DueOutbox(ME, None)]


async def test_a_page_fills_an_inbox_twice_at_most(world: World) -> None:
    world.limits = replace(LIMITS, max_count=2, sender_count=1, stranger_count=1)
    store = await world.restart()
    await change(store, InboxRole.PAUSED)
    taken(await bring(store, 1, 2, 3, 4))
    (no,) = await bring(store, 5)
    assert code(no) is ErrorCode.INBOX_FULL
    (again,) = await bring(store, 4)
    assert isinstance(again, Accepted)
    assert again.dup
