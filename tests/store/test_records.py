"""The directory in the store: merging in batches, what changed, caps, evidence, purge."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any
from unittest.mock import ANY

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.directory.ports import (
    GONE,
    Changes,
    DirectoryLimits,
    RecordRow,
)
from relay.protocol.endpoint_record import STALE_SERVED_S, RecordVersion
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import AgentKey
from relay.reference.memory_store import MemoryStore
from relay.store.redis.keys import partition_of
from tests.store.worlds import ME, NOW, World, code, entry, opened, request

pytestmark = pytest.mark.timeout(60)
PEER = AgentKey("key:peer")
OTHER_PEER = AgentKey("key:peer2")
SEQ = NOW * 1000


def row(seq: int = 1, digest: int = 0, **changes: Any) -> RecordRow:
    """A record of an agent that lives elsewhere, as a peer brings it."""
    given: dict[str, Any] = {"introducer": PEER, "names_us": False, "expires_at": NOW + 1_000}
    order = (1, seq, bytes([digest]) * 32)
    return RecordRow(RecordVersion(*order), f"record.{seq}.{digest}", **{**given, **changes})


def beside(world: World, count: int, name: str = "agent") -> list[AgentKey]:
    """Agents of one partition, whose share of the caps is known."""
    every = (AgentKey(f"key:{name}{number}") for number in itertools.count())
    parts = world.partitions
    ours = (owner for owner in every if partition_of(owner, parts) == partition_of(ME, parts))
    return list(itertools.islice(ours, count))


async def merged(world: World, owner: AgentKey, one: RecordRow) -> str:
    ((outcome, *_),) = await world.records.merge([(owner, one)])
    return str(outcome)


async def changes_of(world: World, most: int = 1_000, after: str = "") -> tuple[list[Any], Changes]:
    """All changes after a place, page by page."""
    items: list[Any] = []
    while True:
        page = await world.records.changes(after, most)
        items += page.items
        after = page.cursor
        if not page.more:
            return items, page


# ---------------------------------------------------------------- merging


async def test_each_record_of_a_batch_is_judged_alone(world: World) -> None:
    one, two, three, four, five = (AgentKey(f"key:{n}") for n in range(5))
    held = [(one, row(5)), (two, row(5)), (three, row(5)), (four, row(5, 7)), (two, row(5))]
    first = await world.records.merge(held)
    assert [done.outcome for done in first] == ["newer"] * 4 + ["same"]
    given = [(one, row(6)), (two, row(5)), (three, row(4)), (four, row(5, 9)), (five, row(1))]
    done = await world.records.merge(given)
    assert [(one.outcome, one.held) for one in done] == [
        ("newer", row(6)), ("same", row(5)), ("older", row(5)), ("equivocal", row(5, 9)),
        ("newer", row(1)),
    ]  # fmt: skip
    found = await world.records.get_many([one, two, three, four, AgentKey("key:none")])
    assert found == [row(6), row(5), row(5), row(5, 9), None]
    assert await world.records.merge([]) == []
    assert await world.records.get_many([]) == []


async def test_thousands_of_records_are_merged_and_read_at_once(world: World) -> None:
    owners = [AgentKey(f"key:{n}") for n in range(2_000)]
    given = [(owner, row(1, n % 250)) for n, owner in enumerate(owners)]
    done = await world.records.merge(given)
    assert {one.outcome for one in done} == {"newer"}
    assert await world.records.get_many(owners) == [one for _, one in given]


async def test_of_two_records_with_one_seq_the_greater_is_held_whichever_came_first(
    world: World,
) -> None:
    for owner, order in ((ME, (1, 2)), (AgentKey("key:other"), (2, 1))):
        outcomes = [await merged(world, owner, row(5, digest)) for digest in order]
        assert outcomes == ["newer", "equivocal"]
        assert await world.records.get(owner) == row(5, 2)


async def test_the_first_two_records_of_one_seq_are_kept_as_evidence(world: World) -> None:
    assert await world.records.fork_proof(ME) is None
    for one in (row(4), row(5, 3), row(5, 3), row(5, 2), row(5, 9), row(6), row(6, 1)):
        await world.records.merge([(ME, one)])
    if not world.is_memory:
        await world.restart()
    assert await world.records.fork_proof(ME) == ("record.5.3", "record.5.2")
    assert await world.records.get(ME) == row(6, 1)


async def test_a_record_from_too_far_ahead_gives_way_to_any_that_is_not(world: World) -> None:
    ahead = row((NOW + 900) * 1000 + 1)
    assert await merged(world, ME, ahead) == "newer"
    assert await merged(world, ME, row(SEQ)) == "newer"
    assert await merged(world, ME, ahead) == "older"
    assert await world.records.get(ME) == row(SEQ)
    assert await merged(world, ME, row((NOW + 900) * 1000)) == "newer"
    # nothing but what is void: still an order
    other = AgentKey("key:other")
    assert await merged(world, other, ahead) == "newer"
    assert await merged(world, other, row((NOW + 900) * 1000 + 2)) == "newer"
    assert await merged(world, other, ahead) == "older"


# ---------------------------------------------------------------- the mode of an inbox


async def test_a_parked_agent_keeps_the_inbox_and_its_mode(world: World) -> None:
    await opened(world.store)
    await world.records.merge([(ME, row(5, is_parked=True))])
    assert (await world.records.get(ME)).names_us
    await opened(world.store)
    await world.records.merge([(ME, row(6)), (ME, row(7, names_us=True, is_parked=True))])
    assert not (await world.records.get(ME)).names_us
    assert code(await world.inboxes.open(request())) is ErrorCode.UNKNOWN_INBOX


async def test_of_a_parked_agent_that_nobody_knows_the_caller_says_where_it_is(
    world: World,
) -> None:
    for owner, names_us in ((ME, False), (AgentKey("key:other"), True)):
        one = row(5, names_us=names_us, is_parked=True)
        ((_, held, _),) = await world.records.merge([(owner, one)])
        assert held == replace(one, is_parked=False)
        assert await world.records.get(owner) == held


async def test_a_batch_changes_the_mode_of_each_inbox(world: World) -> None:
    other = AgentKey("key:other")
    await opened(world.store)
    await opened(world.store, other)
    await world.records.merge([(ME, row(5)), (other, row(5, names_us=True))])
    gone, here = await world.inboxes.append([entry(1), entry(2, inbox=other)])
    assert (code(gone), code(here)) == (ErrorCode.MOVED, None)
    assert gone.record == "record.5.0"


# ---------------------------------------------------------------- caps


def small(world: World, records: int, share: int) -> None:
    world.options["directory"] = DirectoryLimits(records * world.partitions, share)


@pytest.fixture
async def small_world(any_world: World) -> World:
    """A store whose directory takes eight records of others a partition, two of one peer."""
    small(any_world, 8, 4)
    await any_world.node()
    return any_world


async def test_one_peer_introduces_only_its_share_of_agents(small_world: World) -> None:
    world, owners = small_world, beside(small_world, 4)
    outcomes = [await merged(world, owner, row(1)) for owner in owners[:3]]
    assert outcomes == ["newer", "newer", "full"]
    assert await world.records.get(owners[2]) is None
    # what is known, what others tell of, and what agents say themselves, goes on
    assert await merged(world, owners[0], row(2)) == "newer"
    assert await merged(world, owners[2], row(1, introducer=OTHER_PEER)) == "newer"
    assert await merged(world, owners[3], row(1, introducer=None)) == "newer"
    # its first introducer counts, whoever brings the newer ones, until the agent comes itself
    assert await merged(world, owners[2], row(2)) == "newer"
    assert (await world.records.get(owners[2])).introducer == OTHER_PEER
    assert await merged(world, owners[0], row(2, introducer=None)) == "same"
    assert (await world.records.get(owners[0])).introducer is None
    new = beside(world, 2, "new")
    assert [await merged(world, owner, row(1)) for owner in new] == ["newer", "full"]


async def test_a_full_directory_takes_no_unknown_agents_and_evicts_nobody(
    small_world: World,
) -> None:
    world, owners = small_world, beside(small_world, 9)
    peers = [AgentKey(f"key:peer{number}") for number in range(9)]
    given = [(owner, row(1, introducer=by)) for owner, by in zip(owners, peers, strict=True)]
    done = await world.records.merge(given)
    assert [one.outcome for one in done] == ["newer"] * 8 + ["full"]
    assert done[8].held is None
    assert await merged(world, owners[0], row(2)) == "newer"
    assert await merged(world, owners[8], row(1, introducer=None)) == "newer"
    (homed,) = beside(world, 1, "homed")
    await opened(world.store, homed)
    assert await merged(world, homed, row(1)) == "newer"
    assert None not in await world.records.get_many([*owners, homed])


# ---------------------------------------------------------------- what changed


async def test_changes_come_oldest_first_and_an_agent_once_by_its_newest(world: World) -> None:
    one, two, three = beside(world, 3)
    given = [(one, row(1)), (two, row(1)), (three, row(1)), (one, row(2, 5)), (two, row(0))]
    await world.records.merge(given)
    items, page = await changes_of(world)
    assert items == [(two, row(1).version), (three, row(1).version), (one, row(2, 5).version)]
    assert not page.restarted
    again = await world.records.changes(page.cursor, 1_000)
    assert (again.items, again.more, again.cursor) == ((), False, page.cursor)
    await world.records.merge([(three, row(1)), (two, row(1, 8)), (one, row(2, 4))])
    items, _ = await changes_of(world, after=page.cursor)
    assert items == [(two, row(1, 8).version)]


@pytest.mark.parametrize("most", [1, 3, 40])
async def test_reading_changes_in_pages_skips_none_while_more_are_made(
    world: World, most: int
) -> None:
    owners = [AgentKey(f"key:{n}") for n in range(50)]
    await world.records.merge([(owner, row(1)) for owner in owners])
    held: dict[AgentKey, Any] = {}
    after, seq, more = "", 1, True
    while more or seq < 20:
        if seq < 20:
            seq += 1
            await world.records.merge([(owners[seq * 7 % 50], row(seq))])
        page = await world.records.changes(after, most)
        assert len(page.items) <= most
        assert not page.restarted
        held.update(page.items)
        after, more = page.cursor, page.more
    rows = await world.records.get_many(owners)
    assert held == {owner: one.version for owner, one in zip(owners, rows, strict=True)}


async def test_after_a_rollback_changes_are_read_anew(server_world: World) -> None:
    store = await server_world.node()
    owners = [AgentKey(f"key:{n}") for n in range(40)]
    await store.records.merge([(owner, row(1)) for owner in owners])
    _, page = await changes_of(server_world)
    await server_world.flush()
    await server_world.set_time(NOW)
    await store.records.merge([(ME, row(3))])
    anew = await store.records.changes(page.cursor, 1_000)
    assert anew.restarted
    assert anew.items == ((ME, row(3).version),)
    after = await store.records.changes(anew.cursor, 1_000)
    assert (after.restarted, after.items) == (False, ())


async def test_a_place_that_cannot_be_read_means_from_the_beginning(server_world: World) -> None:
    store = await server_world.node()
    await store.records.merge([(ME, row(3))])
    assert (await store.records.changes("what", 10)).items == ((ME, row(3).version),)


# ---------------------------------------------------------------- purge

OVER = NOW - STALE_SERVED_S


async def test_what_is_stale_for_90_days_is_purged_and_readers_are_told(world: World) -> None:
    over, just, unknown = beside(world, 3)
    given = [(over, OVER), (just, OVER + 1), (unknown, 0)]
    await world.records.merge([(owner, row(1, expires_at=at)) for owner, at in given])
    _, page = await changes_of(world)
    assert await world.records.purge() == 1
    assert await world.records.purge() == 0
    found = await world.records.get_many([over, just, unknown])
    assert [one is None for one in found] == [True, False, False]
    items, _ = await changes_of(world, after=page.cursor)
    assert items == [(over, GONE)]
    assert await merged(world, over, row(1)) == "newer"
    items, _ = await changes_of(world, after=page.cursor)
    assert items == [(over, row(1).version)]


async def test_an_agent_with_an_inbox_here_keeps_its_record_for_ever(world: World) -> None:
    gone = AgentKey("key:gone")
    await opened(world.store)
    await opened(world.store, gone)
    mine = [(ME, row(1, names_us=True, expires_at=OVER)), (gone, row(1, expires_at=OVER))]
    await world.records.merge(mine)
    assert await world.records.purge() == 0
    assert None not in await world.records.get_many([ME, gone])


async def test_what_is_over_and_kept_for_its_inbox_is_told_to_no_reader_until_it_is_renewed(
    world: World,
) -> None:
    await opened(world.store)
    await world.records.merge([(ME, row(1, names_us=True, expires_at=OVER))])
    _, page = await changes_of(world)
    assert [await world.records.purge() for _ in range(3)] == [0, 0, 0]
    assert await changes_of(world, after=page.cursor) == ([(ME, GONE)], ANY)
    assert await changes_of(world) == ([(ME, GONE)], ANY)
    assert await world.records.get(ME) == row(1, names_us=True, expires_at=OVER)
    assert await merged(world, ME, row(2, names_us=True)) == "newer"
    assert await changes_of(world, after=page.cursor) == ([(ME, row(2).version)], ANY)


async def test_what_was_purged_makes_room_and_takes_its_evidence_along(
    small_world: World,
) -> None:
    world, owners = small_world, beside(small_world, 3)
    for owner in owners[:2]:
        await merged(world, owner, row(1, 1, expires_at=OVER))
        await merged(world, owner, row(1, 2, expires_at=OVER))
    assert await merged(world, owners[2], row(1)) == "full"
    assert await world.records.purge() == 2
    assert await world.records.fork_proof(owners[0]) is None
    assert await merged(world, owners[2], row(1)) == "newer"


async def test_a_clock_in_doubt_purges_nothing(world: World) -> None:
    await world.records.merge([(ME, row(1, expires_at=OVER))])
    world.store.clock.trust(ok=False)
    assert await world.records.purge() == 0
    world.store.clock.trust(ok=True)
    assert await world.records.purge() == 1


async def test_a_purge_walks_on_from_where_it_was_and_begins_again(world: World) -> None:
    owners = beside(world, 1_200)
    rows = [
        (owner, row(1, expires_at=OVER if n > 1_100 else NOW)) for n, owner in enumerate(owners)
    ]
    await world.records.merge(rows)
    assert [await world.records.purge() for _ in range(4)] == [0, 0, 99, 0]
    await merged(world, owners[0], row(2, expires_at=OVER))
    purged = [await world.records.purge() for _ in range(6)]
    assert sum(purged) == 1


async def test_after_an_hour_nothing_is_left_of_what_was_purged(server_world: World) -> None:
    store = await server_world.node()
    await store.records.merge([(ME, row(1, expires_at=OVER)), (ME, row(1, 1, expires_at=OVER))])
    await store.records.purge()
    await server_world.advance(3_599)
    await store.records.purge()
    part = partition_of(ME, server_world.partitions)
    assert await server_world.raw.zcard(f"relay:{{{part}}}:changed") == 1
    await server_world.advance(1)
    await store.records.purge()
    left = [key async for key in server_world.raw.scan_iter(f"relay:{{{part}}}:*")]
    assert sorted(left) == [
        f"relay:{{{part}}}:state".encode(), f"relay:{{{part}}}:testclock".encode()
    ]  # fmt: skip


# ---------------------------------------------------------------- specification and scripts

ROWS = st.lists(
    st.tuples(
        st.sampled_from([AgentKey(f"key:{n}") for n in range(6)]),
        st.builds(
            row,
            st.sampled_from([1, 2, 3, (NOW + 900) * 1000, (NOW + 900) * 1000 + 1, 2**53 - 1]),
            st.integers(0, 2),
            introducer=st.sampled_from([None, PEER, OTHER_PEER]),
            names_us=st.booleans(),
            expires_at=st.sampled_from([0, OVER, OVER + 1, NOW]),
            is_parked=st.booleans(),
        ),
    ),
    max_size=6,
)
STEPS = st.lists(st.one_of(ROWS, st.just("purge"), st.sampled_from(["key:0", "key:5"])), max_size=8)


async def test_the_scripts_do_what_the_specification_says(embedded_world: World) -> None:
    limits = DirectoryLimits(4, 2)

    async def compare(steps: list[Any]) -> None:
        await embedded_world.flush()
        await embedded_world.set_time(NOW)
        redis = await embedded_world.restart(directory=limits)
        memory = MemoryStore(embedded_world.limits, lambda: NOW, directory=limits)  # type: ignore[arg-type,return-value]
        for step in steps:
            answers = []
            for store in (memory, redis):
                if step == "purge":
                    answers.append(await store.records.purge())
                elif isinstance(step, str):
                    answers.append(code(await store.inboxes.open(request(AgentKey(step)))))
                else:
                    answers.append(await store.records.merge(step))
            assert answers[0] == answers[1]
            owners = [AgentKey(f"key:{n}") for n in range(6)]
            assert await memory.records.get_many(owners) == await redis.records.get_many(owners)
            for owner in owners:
                assert await memory.records.fork_proof(owner) == await redis.records.fork_proof(
                    owner
                )
                assert await memory.migrations.load(owner) == await redis.migrations.load(owner)
            ours, theirs = [await one.records.changes("", 100) for one in (memory, redis)]
            assert ours.items == theirs.items

    await in_examples(compare)


async def in_examples(compare: Any) -> None:
    """Run an async comparison over drawn steps, in the loop that is running."""
    examples: list[list[Any]] = []

    @settings(max_examples=60, database=None, deadline=None)
    @given(STEPS)
    def draw(steps: list[Any]) -> None:
        examples.append(steps)

    draw()
    for steps in examples:
        await compare(steps)
