"""Each guard of the directory, taken out of the scripts: its test must fail."""

from __future__ import annotations

import pytest

from tests.store import test_records
from tests.store.controls import SUBJECT, Guard, Test, each, must_fail
from tests.store.worlds import World
from tests.support.broken_rules import node_id

pytestmark = pytest.mark.timeout(60)

GUARDS: list[Guard] = [
    (
        "of two records with one seq the greater wins",
        "(outcome == 'equivocal' and not is_above(row.hash, held.hash))",
        "outcome == 'equivocal'",
        test_records.test_of_two_records_with_one_seq_the_greater_is_held_whichever_came_first,
    ),
    (
        "the first evidence stays",
        "if redis.call('EXISTS', k) == 1 then return false end",
        "redis.call('DEL', k)",
        test_records.test_the_first_two_records_of_one_seq_are_kept_as_evidence,
    ),
    (
        "what is too far ahead is void",
        "if is_void ~= was_void then return was_void and 'newer' or 'older' end",
        "",
        test_records.test_a_record_from_too_far_ahead_gives_way_to_any_that_is_not,
    ),
    (
        "parked keeps the mode",
        "if not stays then return row.home end",
        "if true then return row.home end",
        test_records.test_a_parked_agent_keeps_the_inbox_and_its_mode,
    ),
    (
        "the record decides the mode",
        "if not is_moving(box.inbox) then return set_home(box, home) end",
        "",
        test_records.test_a_batch_changes_the_mode_of_each_inbox,
    ),
    (
        "a change has a number of its own",
        "redis.call('HINCRBY', KEYS[1], 'changes', 1)",
        "1",
        test_records.test_changes_come_oldest_first_and_an_agent_once_by_its_newest,
    ),
    (
        "what is over is purged",
        "row.expires > over_before",
        "row.expires >= over_before",
        test_records.test_what_is_stale_for_90_days_is_purged_and_readers_are_told,
    ),
    (
        "readers hear that a record is gone",
        "note_change(found[i])",
        "",
        test_records.test_what_is_stale_for_90_days_is_purged_and_readers_are_told,
    ),
    (
        "whoever has an inbox here keeps the record",
        "if redis.call('EXISTS', key('inbox', found[i])) == 0 then",
        "if true then",
        test_records.test_an_agent_with_an_inbox_here_keeps_its_record_for_ever,
    ),
    (
        "what is over is offered to nobody",
        "not redis.call('ZSCORE', PREFIX .. 'gone', found[i]) and head_of(found[i])",
        "head_of(found[i])",
        test_records.test_what_is_over_and_kept_for_its_inbox_is_told_to_no_reader_until_it_is_renewed,
    ),
    (
        "what was renewed is offered again",
        "redis.call('ZREM', PREFIX .. 'gone', owner)\n  note_change(owner)",
        "note_change(owner)",
        test_records.test_what_is_over_and_kept_for_its_inbox_is_told_to_no_reader_until_it_is_renewed,
    ),
]
OF_SMALL_ONES: list[Guard] = [
    (
        "a peer has its share",
        ">= SHARE",
        ">= SHARE + 9",
        test_records.test_one_peer_introduces_only_its_share_of_agents,
    ),
    (
        "who was first to tell of an agent stays so",
        "if row.introducer ~= '-' then return held.introducer end",
        "if row.introducer ~= '-' then return row.introducer end",
        test_records.test_one_peer_introduces_only_its_share_of_agents,
    ),
    (
        "a full directory is full",
        "if held >= MOST then return true end",
        "",
        test_records.test_a_full_directory_takes_no_unknown_agents_and_evicts_nobody,
    ),
    (
        "what was purged is given back",
        "count_introduced(row.introducer, -1)",
        "",
        test_records.test_what_was_purged_makes_room_and_takes_its_evidence_along,
    ),
]
ON_SERVERS: list[Guard] = [
    (
        "a place of another lineage is told from this one's",
        "if ARGV[4] ~= '' and ARGV[4] ~= lineage[1] then return unchanged({lineage[1]}) end",
        "",
        test_records.test_after_a_rollback_changes_are_read_anew,
    ),
    (
        "what is gone is told for an hour",
        "local gone_before, purged, changed = NOW - tonumber(ARGV[7])",
        "local gone_before, purged, changed = NOW",
        test_records.test_after_an_hour_nothing_is_left_of_what_was_purged,
    ),
]


@each(GUARDS)
async def test_without_this_guard_its_test_fails(
    embedded_world: World, old: str, new: str, test: Test
) -> None:
    await embedded_world.node()
    await must_fail(embedded_world, old, new, test)


@each(OF_SMALL_ONES)
async def test_without_this_guard_of_the_caps_its_test_fails(
    embedded_world: World, old: str, new: str, test: Test
) -> None:
    test_records.small(embedded_world, 8, 4)
    await embedded_world.node()
    await must_fail(embedded_world, old, new, test)


@each(ON_SERVERS)
async def test_without_this_guard_of_a_server_its_test_fails(
    embedded_world: World, old: str, new: str, test: Test
) -> None:
    await must_fail(embedded_world, old, new, test)


@pytest.mark.breaks(
    SUBJECT,
    "the next page begins behind the last change read",
    by=node_id(test_records.test_reading_changes_in_pages_skips_none_while_more_are_made),
)
async def test_a_page_that_goes_on_one_change_too_late_is_found_to_skip(
    embedded_world: World,
) -> None:
    await embedded_world.node()
    test = test_records.test_reading_changes_in_pages_skips_none_while_more_are_made
    await must_fail(embedded_world, "'(' .. ARGV[5]", "'(' .. (ARGV[5] + 1)", test, most=3)
