"""Storing envelopes: dedupe, refusals, quotas, each item judged alone (GUARANTEES.md R3, R7)."""

from __future__ import annotations

import pytest

from relay.inbox.model.types import (
    Accepted,
    AckRequest,
    Disposition,
    InboxAck,
    InboxLimits,
    LiveSession,
)
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import (
    AgentKey,
    Seq,
)
from relay.protocol.types import (
    DedupKey,
    Window,
)
from tests.store.worlds import ALICE, HOUR, ME, NODE, NOW, World, code, entry, opened, opened_to

pytestmark = pytest.mark.timeout(60)
YOU = AgentKey("key:you")


async def test_an_inbox_that_nobody_opened_is_unknown(world: World) -> None:
    (result,) = await world.inboxes.append([entry(1)])
    assert code(result) is ErrorCode.UNKNOWN_INBOX
    assert result.stored == "no"


async def test_envelopes_get_seqs_without_gaps_and_the_open_session(world: World) -> None:
    session = await opened(world.store)
    results = await world.inboxes.append([entry(1), entry(2)])
    live = LiveSession(session.fence, NODE)
    assert results == [
        Accepted(Seq(1), session.epoch, dup=False, session=live, stranger=True),
        Accepted(Seq(2), session.epoch, dup=False, session=live, stranger=True),
    ]


async def test_without_an_open_session_there_is_nobody_to_tell(world: World) -> None:
    session = await opened(world.store)
    assert await world.inboxes.close(ME, session.fence, Seq(0))
    (result,) = await world.inboxes.append([entry(1)])
    assert result == Accepted(Seq(1), session.epoch, dup=False, session=None, stranger=True)


async def test_the_same_envelope_again_is_answered_as_the_first_time(world: World) -> None:
    session = await opened(world.store)
    await world.inboxes.append([entry(1), entry(2)])
    results = await world.inboxes.append([entry(2), entry(3), entry(1), entry(3)])
    assert [(result.seq, result.dup) for result in results] == [
        (2, True),
        (3, False),
        (1, True),
        (3, True),
    ]
    assert {result.epoch for result in results} == {session.epoch}


async def test_a_duplicate_is_known_after_its_ack_and_after_its_expiry(world: World) -> None:
    session = await opened(world.store)
    await world.inboxes.append([entry(1)])
    ack = InboxAck(session.fence, session.epoch, (Seq(1),))
    await world.inboxes.ack([AckRequest(ME, ack)])
    await world.advance(1_100)
    (result,) = await world.inboxes.append([entry(1)])
    assert (result.seq, result.dup) == (1, True)


async def test_an_id_that_was_used_for_another_envelope_is_replayed(world: World) -> None:
    await opened(world.store)
    other = entry(2)._replace(dedupe_key=entry(1).dedupe_key)
    results = await world.inboxes.append([entry(1), other])
    assert code(results[1]) is ErrorCode.REPLAYED


async def test_what_has_expired_is_refused(world: World) -> None:
    await opened(world.store)
    results = await world.inboxes.append([entry(1, expires_at=NOW), entry(2, expires_at=NOW + 1)])
    assert code(results[0]) is ErrorCode.EXPIRED
    assert results[1].seq == 1


async def test_a_clock_in_doubt_never_says_expired(world: World) -> None:
    await opened(world.store)
    world.store.clock.trust(ok=False)
    (result,) = await world.inboxes.append([entry(1, expires_at=NOW - 5)])
    assert code(result) is ErrorCode.STORAGE_UNAVAILABLE
    assert result.stored == "unknown"


async def test_a_full_inbox_refuses_and_counts_what_it_refused(world: World) -> None:
    senders = [AgentKey(f"key:s{n % 2}") for n in range(21)]
    session = await opened_to(world.store, ALICE, *senders[:2])
    results = await world.inboxes.append([entry(n, sender=senders[n]) for n in range(21)])
    assert [code(result) for result in results[:20]] == [None] * 20
    assert code(results[20]) is ErrorCode.INBOX_FULL
    await world.advance(5)
    await world.inboxes.append([entry(22)])
    again = await opened(world.store)
    refused = again.pending.refused
    assert (refused.count, refused.first_at, refused.last_at) == (2, NOW, NOW + 5)
    assert again.pending.count == 20
    await world.inboxes.ack([AckRequest(ME, InboxAck(again.fence, session.epoch, (Seq(4),)))])
    (result,) = await world.inboxes.append([entry(23)])
    assert result.seq == 21


async def test_an_inbox_takes_no_more_bytes_than_it_may(world: World) -> None:
    await opened(world.store)
    big = [entry(n, size=9_990, sender=AgentKey(f"key:s{n}")) for n in range(3)]
    results = await world.inboxes.append([*big, entry(9, size=20)])
    assert [code(result) for result in results] == [None, None, ErrorCode.INBOX_FULL,
                                                    ErrorCode.INBOX_FULL]  # fmt: skip


async def test_one_sender_fills_only_its_share(world: World) -> None:
    await opened(world.store)
    results = await world.inboxes.append([entry(n) for n in range(13)])
    assert code(results[12]) is ErrorCode.SENDER_QUOTA
    (other,) = await world.inboxes.append([entry(50, sender=AgentKey("key:carol"))])
    assert other.seq == 13


async def test_one_sender_takes_only_its_share_of_bytes(world: World) -> None:
    session = await opened(world.store)
    first, second = await world.inboxes.append([entry(1, size=8_000), entry(2, size=8_000)])
    assert (first.seq, code(second)) == (1, ErrorCode.SENDER_QUOTA)
    await world.inboxes.ack([AckRequest(ME, InboxAck(session.fence, session.epoch, (Seq(1),)))])
    (result,) = await world.inboxes.append([entry(2, size=8_000)])
    assert result.seq == 2


async def test_an_old_hour_is_shed_when_the_memory_is_full_and_becomes_the_floor(
    world: World,
) -> None:
    session = await opened_to(world.store, ALICE)
    for n in range(30):
        hour = HOUR - (2 if n < 10 else 1 if n < 20 else 0)
        (result,) = await world.inboxes.append([entry(n, hour=hour)])
        await world.inboxes.ack(
            [AckRequest(ME, InboxAck(session.fence, session.epoch, (result.seq,)))]
        )
    (kept,) = await world.inboxes.append([entry(30)])
    assert kept.seq == 31
    results = await world.inboxes.append([
        entry(0, hour=HOUR - 2), entry(99, hour=HOUR - 3), entry(10, hour=HOUR - 1),
    ])  # fmt: skip
    assert [code(result) for result in results] == [ErrorCode.STALE_ID, ErrorCode.STALE_ID, None]
    assert results[2].dup
    assert results[0].stored == "unknown"


async def test_with_only_the_newest_hours_left_the_inbox_is_overloaded(world: World) -> None:
    session = await opened_to(world.store, ALICE)
    for n in range(30):
        (result,) = await world.inboxes.append([entry(n, hour=HOUR - n % 2)])
        await world.inboxes.ack(
            [AckRequest(ME, InboxAck(session.fence, session.epoch, (result.seq,)))]
        )
    results = await world.inboxes.append([entry(30), entry(3, hour=HOUR - 1)])
    assert code(results[0]) is ErrorCode.OVERLOADED
    assert results[1].dup


async def test_over_the_budget_of_all_the_inbox_that_remembers_most_gives_way(
    world: World,
) -> None:
    world.limits = InboxLimits(sender_count=1_000)
    world.options["dedupe_total"] = 300
    store = await world.restart()
    same_partition = [
        AgentKey(f"key:i{n}")
        for n in range(200)
        if world.is_memory or world.partitions == 1 or store._partitions.of(f"key:i{n}") == 3
    ][:2]
    large, small = same_partition
    for inbox in (large, small):
        await opened_to(store, ALICE, inbox=inbox)
    for hour in range(3):
        made = [entry(hour * 80 + n, inbox=large, hour=HOUR - hour) for n in range(80)]
        await store.inboxes.append(made)
    results = await store.inboxes.append([entry(n, inbox=small) for n in range(70)])
    assert {code(result) for result in results} == {None}
    (shed,) = await store.inboxes.append([entry(160, inbox=large, hour=HOUR - 2)])
    assert code(shed) is ErrorCode.STALE_ID
    (kept,) = await store.inboxes.append([entry(0, inbox=large, hour=HOUR)])
    assert kept.dup


async def test_an_inbox_that_is_full_says_so_and_nothing_is_forgotten_for_what_it_refuses(
    world: World,
) -> None:
    world.limits = InboxLimits(max_count=100)
    world.options["dedupe_total"] = 100
    store = await world.restart()
    await opened_to(store, ALICE)
    made = [entry(n, hour=HOUR - n % 4) for n in range(100)]
    assert {code(result) for result in await store.inboxes.append(made)} == {None}
    (result,) = await store.inboxes.append([entry(100)])
    assert code(result) is ErrorCode.INBOX_FULL
    assert all(result.dup for result in await store.inboxes.append(made))


async def test_a_batch_for_several_inboxes_is_judged_item_by_item(world: World) -> None:
    inboxes = [AgentKey(f"key:i{n}") for n in range(12)]
    for inbox in inboxes[:8]:
        await opened(world.store, inbox)
    made = [entry(n, inbox=inboxes[n % 12]) for n in range(36)]
    results = await world.inboxes.append(made)
    for n, result in enumerate(results):
        if n % 12 < 8:
            assert result.seq == n // 12 + 1
        else:
            assert code(result) is ErrorCode.UNKNOWN_INBOX


async def test_an_empty_batch_is_no_work(world: World) -> None:
    assert await world.inboxes.append([]) == []


async def test_while_the_store_is_full_only_what_it_has_is_confirmed(world: World) -> None:
    session = await opened(world.store)
    await world.inboxes.append([entry(1)])
    world.store.refuse_appends("the disk is nearly full")
    other = entry(3)._replace(dedupe_key=entry(1).dedupe_key)
    known, new, replayed = await world.inboxes.append([entry(1), entry(2), other])
    assert (known.seq, known.dup, known.epoch) == (1, True, session.epoch)
    assert (code(new), new.stored) == (ErrorCode.STORAGE_FULL, "no")
    assert code(replayed) is ErrorCode.REPLAYED
    done = await world.inboxes.ack(
        [AckRequest(ME, InboxAck(session.fence, session.epoch, (Seq(1),)))]
    )
    assert done[0].cursor == 1
    world.store.refuse_appends(None)
    (result,) = await world.inboxes.append([entry(2)])
    assert result.seq == 2


async def test_status_tells_what_became_of_an_id(world: World) -> None:
    session = await opened(world.store)
    await world.inboxes.append([entry(n) for n in range(1, 4)])
    ack = InboxAck(session.fence, session.epoch, (Seq(1),), refuse=((Seq(2), "cannot open"),))
    await world.inboxes.ack([AckRequest(ME, ack)])
    questions = [DedupKey(entry(n).dedupe_key, HOUR) for n in range(1, 5)]
    found = await world.inboxes.status(ME, questions)
    fates = [answer and answer[0] for answer in found]
    assert fates == [Disposition.ACKED, Disposition.REFUSED, Disposition.STORED, None]
    assert [answer[1] for answer in found[:3]] == [entry(n).eid[:21] for n in range(1, 4)]
    assert await world.inboxes.status(YOU, questions[:1]) == [None]
    assert await world.inboxes.status(ME, []) == []


async def test_facts_survive_the_way_through_the_store(world: World) -> None:
    session = await opened(world.store)
    made = [entry(1, marked=True), entry(2, size=5_000), entry(3, created_at=0)]
    await world.inboxes.append(made)
    page = await world.inboxes.read(ME, session.fence, Seq(0), Window())
    assert [(item.seq, item.eid, item.wire) for item in page.items] == [
        (n, item.eid, item.wire) for n, item in enumerate(made, 1)
    ]
    assert [item.redelivered for item in page.items] == [True, False, False]
