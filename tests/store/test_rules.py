"""Rules of an inbox, contacts, and the one quota of all strangers (GUARANTEES.md R7)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from relay.inbox.model.types import (
    AckRequest,
    InboxAck,
    InboxLimits,
    RulesNow,
)
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import (
    AgentKey,
    Fence,
    Seq,
)
from tests.store.worlds import (
    ALICE,
    HOUR,
    LIMITS,
    ME,
    OTHER,
    World,
    code,
    entry,
    opened,
    opened_to,
    ruled,
)

pytestmark = pytest.mark.timeout(60)
BOB, CAROL, DAVE = (AgentKey(f"key:{name}") for name in ("bob", "carol", "dave"))
NONE = frozenset[AgentKey]()


def strangers(count: int, first: int = 100, **changes) -> list:
    """Envelopes, each of a sender of its own."""
    return [entry(n, sender=AgentKey(f"key:s{n}"), **changes) for n in range(first, first + count)]


async def test_an_inbox_begins_open_to_everybody(world: World) -> None:
    session = await opened(world.store)
    assert await ruled(world.store, session) == RulesNow("accept", NONE, NONE, 0)


async def test_a_patch_changes_what_it_names_and_nothing_else(world: World) -> None:
    session = await opened(world.store)
    await ruled(world.store, session, allow=(ALICE, BOB), deny=(CAROL,))
    now = await ruled(world.store, session, first_contact="refuse", deny=(BOB,))
    assert now == RulesNow("refuse", frozenset({ALICE}), frozenset({BOB, CAROL}), 0)
    now = await ruled(world.store, session, allow=(CAROL,), forget=(ALICE, DAVE))
    assert now == RulesNow("refuse", frozenset({CAROL}), frozenset({BOB}), 0)
    assert await ruled(world.store, session) == now
    newer = await opened(world.store)
    assert await ruled(world.store, newer) == now


async def test_too_many_rules_change_nothing(world: World) -> None:
    world.limits = replace(LIMITS, rules=2)
    store = await world.restart()
    session = await opened_to(store, ALICE, BOB)
    no = await ruled(store, session, allow=(CAROL,), deny=(DAVE,), first_contact="refuse")
    assert code(no) is ErrorCode.TOO_LARGE
    assert await ruled(store, session) == RulesNow("accept", frozenset({ALICE, BOB}), NONE, 0)
    now = await ruled(store, session, allow=(CAROL,), deny=(BOB,))
    assert now == RulesNow("accept", frozenset({ALICE, CAROL}), frozenset({BOB}), 0)


async def test_only_the_session_that_has_the_inbox_changes_its_rules(world: World) -> None:
    older = await opened(world.store)
    newer = await opened(world.store, node=OTHER)
    no = await ruled(world.store, older, deny=(ALICE,))
    assert code(no) is ErrorCode.SUPERSEDED
    assert await ruled(world.store, newer) == RulesNow("accept", NONE, NONE, 0)
    await world.inboxes.close(ME, newer.fence, Seq(0))
    assert code(await ruled(world.store, newer, deny=(ALICE,))) is ErrorCode.SUPERSEDED
    ghost = replace(newer, fence=Fence(1))
    nowhere = await ruled(world.store, ghost, AgentKey("key:nowhere"), deny=(ALICE,))
    assert code(nowhere) is ErrorCode.INBOX_RESET


async def test_a_denied_sender_is_blocked_and_what_it_has_waiting_stays(world: World) -> None:
    session = await opened(world.store)
    await world.inboxes.append([entry(1)])
    await ruled(world.store, session, deny=(ALICE,))
    known, new, other = await world.inboxes.append([entry(1), entry(2), entry(3, sender=BOB)])
    assert known.dup
    assert code(new) is ErrorCode.BLOCKED
    assert new.stored == "no"
    assert other.seq == 2
    again = await opened(world.store)
    assert (again.pending.count, again.pending.refused.count) == (2, 0)


async def test_where_first_contact_is_refused_only_the_known_come_in(world: World) -> None:
    session = await opened(world.store)
    assert await world.rules.add_contacts([(ME, BOB)]) == [True]
    await ruled(world.store, session, first_contact="refuse", allow=(ALICE,))
    made = [entry(1), entry(2, sender=BOB), entry(3, sender=CAROL), entry(4, sender=ME)]
    results = await world.inboxes.append(made)
    assert [code(result) for result in results] == [None, None, ErrorCode.NOT_ADMITTED, None]
    assert not any(results[at].stranger for at in (0, 1, 3))


async def test_a_bounce_is_nobodys_to_refuse(world: World) -> None:
    session = await opened(world.store)
    await ruled(world.store, session, first_contact="refuse", deny=(ALICE,))
    (result,) = await world.inboxes.append([entry(1, bounces=False)])
    assert code(result) is None
    assert not result.stranger


async def test_rules_are_asked_after_duplicates_and_before_anything_else(world: World) -> None:
    session = await opened(world.store)
    await ruled(world.store, session, deny=(ALICE,))
    world.store.clock.trust(ok=False)
    (late,) = await world.inboxes.append([entry(1, expires_at=1)])
    assert code(late) is ErrorCode.BLOCKED


async def test_strangers_share_one_quota_and_leave_the_known_alone(world: World) -> None:
    world.limits = replace(LIMITS, stranger_count=5, dedupe_entries=100)
    store = await world.restart()
    session = await opened_to(store, ALICE)
    results = await store.inboxes.append(strangers(8))
    assert [code(one) for one in results] == [None] * 5 + [ErrorCode.STRANGER_QUOTA] * 3
    assert all(result.stranger for result in results[:5])
    mine = await store.inboxes.append([entry(n) for n in range(12)])
    assert {(code(one), getattr(one, "stranger", None)) for one in mine} == {(None, False)}
    await store.inboxes.ack([AckRequest(ME, InboxAck(session.fence, session.epoch, (Seq(2),)))])
    (one, two) = await store.inboxes.append(strangers(2, first=300))
    assert (code(one), code(two)) == (None, ErrorCode.STRANGER_QUOTA)
    assert (await opened(store)).pending.refused.count == 4


async def test_strangers_share_their_bytes(world: World) -> None:
    world.limits = replace(LIMITS, stranger_bytes=1_000)
    store = await world.restart()
    await opened_to(store, ALICE)
    results = await store.inboxes.append([*strangers(3, size=450), entry(1, size=5_000)])
    assert [code(one) for one in results] == [None, None, ErrorCode.STRANGER_QUOTA, None]


async def test_the_share_of_strangers_is_given_back_whatever_the_rules_say_by_then(
    world: World,
) -> None:
    world.limits = replace(LIMITS, stranger_count=3)
    store = await world.restart()
    session = await opened(store)
    await store.inboxes.append([entry(1), entry(2), entry(3)])
    await ruled(store, session, allow=(ALICE,))
    await store.inboxes.append([entry(4)])
    await ruled(store, session, forget=(ALICE,))
    # the fourth was no stranger's: its end gives strangers nothing
    await store.inboxes.ack([AckRequest(ME, InboxAck(session.fence, session.epoch, (Seq(4),)))])
    (full,) = await store.inboxes.append([entry(5)])
    assert code(full) is ErrorCode.STRANGER_QUOTA
    await ruled(store, session, allow=(ALICE,))
    await store.inboxes.ack(
        [AckRequest(ME, InboxAck(session.fence, session.epoch, (Seq(1), Seq(2))))]
    )
    await ruled(store, session, forget=(ALICE,))
    results = await store.inboxes.append([entry(6), entry(7), entry(8)])
    assert [code(one) for one in results] == [None, None, ErrorCode.STRANGER_QUOTA]


async def test_strangers_fill_half_of_an_inboxs_memory_of_ids(world: World) -> None:
    session = await opened_to(world.store, ALICE)
    done = []
    for item in strangers(20):
        (result,) = await world.inboxes.append([item])
        done.append(code(result))
        if code(result) is None:
            ack = InboxAck(session.fence, session.epoch, (result.seq,))
            await world.inboxes.ack([AckRequest(ME, ack)])
    assert done == [None] * 15 + [ErrorCode.OVERLOADED] * 5
    for n in range(15):
        (result,) = await world.inboxes.append([entry(n)])
        assert code(result) is None
        await world.inboxes.ack(
            [AckRequest(ME, InboxAck(session.fence, session.epoch, (result.seq,)))]
        )
    (result,) = await world.inboxes.append([entry(99)])
    assert code(result) is ErrorCode.OVERLOADED


async def test_barred_are_only_strangers(world: World) -> None:
    await opened_to(world.store, ALICE)
    results = await world.inboxes.append([
        entry(1, barred=True), entry(2, sender=BOB, barred=True), entry(3, sender=BOB),
    ])  # fmt: skip
    assert [code(one) for one in results] == [None, ErrorCode.RATE_LIMITED, None]


async def test_whom_an_agent_wrote_to_is_no_stranger_to_it(world: World) -> None:
    session = await opened(world.store)
    nobody = AgentKey("key:nobody")
    assert await world.rules.add_contacts([(ME, BOB), (nobody, BOB), (ME, BOB)]) == [
        True,
        False,
        True,
    ]
    one, two = await world.inboxes.append([entry(1, sender=BOB), entry(2, sender=CAROL)])
    assert (one.stranger, two.stranger) == (False, True)
    assert await ruled(world.store, session) == RulesNow("accept", NONE, NONE, 1)
    now = await ruled(world.store, session, forget=(BOB,))
    assert now == RulesNow("accept", NONE, NONE, 0)


async def test_a_contact_never_takes_the_place_of_a_rule(world: World) -> None:
    session = await opened(world.store)
    await ruled(world.store, session, deny=(BOB,), allow=(ALICE,))
    await world.rules.add_contacts([(ME, BOB), (ME, ALICE)])
    (no,) = await world.inboxes.append([entry(1, sender=BOB)])
    assert code(no) is ErrorCode.BLOCKED
    now = await ruled(world.store, session)
    assert now == RulesNow("accept", frozenset({ALICE}), frozenset({BOB}), 0)


async def test_too_many_contacts_lose_their_oldest_and_no_rule(world: World) -> None:
    world.limits = replace(LIMITS, contacts=10)
    store = await world.restart()
    session = await opened_to(store, ALICE)
    people = [AgentKey(f"key:p{n}") for n in range(11)]
    for one in people[:10]:
        await store.rules.add_contacts([(ME, one)])
        await world.advance(1)
    await world.advance(600)
    await store.rules.add_contacts([(ME, people[0])])
    await store.rules.add_contacts([(ME, people[10])])
    assert await ruled(store, session) == RulesNow("accept", frozenset({ALICE}), NONE, 10)
    results = await store.inboxes.append([entry(n, sender=one) for n, one in enumerate(people)])
    assert [result.stranger for result in results] == [n == 1 for n in range(11)]


async def test_two_agents_that_collude_cost_themselves_and_not_a_third(world: World) -> None:
    world.limits = InboxLimits(sender_count=1_000, dedupe_entries=100)
    world.options["dedupe_total"] = 150
    store = await world.restart()
    names = [
        AgentKey(f"key:i{n}")
        for n in range(200)
        if world.is_memory or world.partitions == 1 or store._partitions.of(f"key:i{n}") == 3
    ]
    flooded, third = names[:2]
    session = await opened_to(store, BOB, inbox=flooded)
    mine = await opened_to(store, ALICE, inbox=third)
    turned_away = 0
    for n in range(120):
        item = entry(1_000 + n, inbox=flooded, sender=BOB)
        (result,) = await store.inboxes.append([item])
        if code(result) is None:
            ack = InboxAck(session.fence, session.epoch, (result.seq,))
            await store.inboxes.ack([AckRequest(flooded, ack)])
        else:
            assert code(result) is ErrorCode.OVERLOADED
            turned_away += 1
    assert turned_away == 20
    results = await store.inboxes.append([entry(n, inbox=third) for n in range(50)])
    assert {code(result) for result in results} == {None}
    await store.inboxes.ack([
        AckRequest(third, InboxAck(mine.fence, mine.epoch, tuple(one.seq for one in results)))
    ])  # fmt: skip
    (kept,) = await store.inboxes.append([entry(0, inbox=third, hour=HOUR)])
    assert kept.dup
