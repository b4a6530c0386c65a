"""Each guard of hand-offs, taken out of the scripts: its test must fail."""

from __future__ import annotations

import pytest

from tests.store import test_migrations as moving
from tests.store.controls import Guard, Test, each, must_fail
from tests.store.worlds import World

pytestmark = pytest.mark.timeout(60)

GUARDS: list[Guard] = [
    (
        "a step saw the text that stands",
        "if (redis.call('HGET', k, 'handoff') or '') ~= ARGV[5] then",
        "if false then",
        moving.test_of_two_steps_that_saw_the_same_only_one_is_taken,
    ),
    (
        "a step saw the newest record",
        "if order_held() ~= ARGV[6] then",
        "if false then",
        moving.test_a_step_that_did_not_see_the_newest_record_is_not_taken,
    ),
    (
        "a step that saw no record is compared",
        "if order_held() ~= ARGV[6] then",
        "if ARGV[6] ~= '' and order_held() ~= ARGV[6] then",
        moving.test_a_step_of_an_agent_without_a_record_is_compared_too,
    ),
    (
        "a step ends the session",
        "local ends_session, marks_present, is_new = ARGV[9] == '1'",
        "local ends_session, marks_present, is_new = false",
        moving.test_a_changed_handoff_ends_the_courier_of_the_one_before,
    ),
    (
        "where others read no session goes on",
        "reader_of(box.holding) ~= reader_of(holding) then turn(box, holding) end",
        "false then turn(box, holding) end",
        moving.test_where_others_read_no_session_goes_on_even_unasked,
    ),
    (
        "what a session may have shown is marked",
        "box.handed = math.max(box.handed, window_end(box))\n    local news",
        "local news",
        moving.test_a_session_that_a_step_ends_leaves_marks_over_its_window,
    ),
    (
        "a step marks what is present",
        "if marks_present then mark_present(box) end",
        "",
        moving.test_a_step_may_mark_all_that_waits,
    ),
    (
        "nobody is let into a held inbox",
        "if box and box.held then return 'migrating' end",
        "",
        moving.test_a_held_inbox_takes_mail_and_lets_nobody_in,
    ),
    (
        "who had a held inbox is told that it moves",
        "if box.held then return 'migrating' end",
        "",
        moving.test_a_held_inbox_takes_mail_and_lets_nobody_in,
    ),
    (
        "what is held does not expire",
        "item.garbage or box.held or",
        "item.garbage or",
        moving.test_what_is_held_does_not_expire,
    ),
    (
        "what is not away waits for no peer",
        "    wait_for(box, nil)\n    save_outboxes()\n    open_outbox(away)",
        "    open_outbox(away)",
        moving.test_what_waits_for_a_peer_is_counted_there_while_it_is_away_only,
    ),
    (
        "all of a doubtful inbox is marked",
        "local marked_upto = box.doubtful and box.last or",
        "local marked_upto =",
        moving.test_in_a_doubtful_inbox_all_is_marked_and_nothing_handed_over_unread,
    ),
    (
        "nothing of a doubtful inbox is handed over unread",
        "return marked or box.doubtful or",
        "return marked or",
        moving.test_in_a_doubtful_inbox_all_is_marked_and_nothing_handed_over_unread,
    ),
    (
        "who comes home is doubtful",
        "turn(box, home and '3' or '0')",
        "turn(box, home and '1' or '0')",
        moving.test_where_no_step_was_written_a_record_turns_the_inbox_as_ever,
    ),
    (
        "an inbox that is made where others were homes is doubtful",
        "new_box(inbox, is_doubtful and '3' or '1')",
        "new_box(inbox, '1')",
        moving.test_an_inbox_that_is_made_where_others_were_homes_is_doubtful,
    ),
    (
        "the record before is kept",
        "redis.call('SET', former_key(owner), jws_of(held.text))",
        "redis.call('GET', former_key(owner))",
        moving.test_an_inbox_that_is_made_where_others_were_homes_is_doubtful,
    ),
    (
        "a turn calls a mover",
        "turn(box, home and '3' or '0')\n    call_mover(box)",
        "turn(box, home and '3' or '0')\n    set_due(box, precisely())",
        moving.test_an_inbox_that_turns_without_a_step_calls_a_mover,
    ),
    (
        "a record turns no inbox of a hand-off",
        "if not is_moving(box.inbox) then return set_home(box, home) end",
        "if true then return set_home(box, home) end",
        moving.test_where_a_step_was_written_a_record_calls_a_mover_and_turns_nothing,
    ),
    (
        "a record calls the mover of a hand-off",
        "  call_mover(box)\n  return true",
        "  return true",
        moving.test_where_a_step_was_written_a_record_calls_a_mover_and_turns_nothing,
    ),
    (
        "a fork calls the mover of a hand-off",
        "if box and is_moving(owner) then call_mover(box) end",
        "",
        moving.test_two_records_of_one_seq_call_a_mover,
    ),
    (
        "who is coming home is not told that there is no inbox",
        "if boxes[inbox] then return {inbox, 'migrating'} end",
        "",
        moving.test_what_is_away_and_coming_home_is_said_to_be_moving,
    ),
    (
        "the record before goes with the newest",
        "key('evidence', owner), former_key(owner))",
        "key('evidence', owner))",
        moving.test_the_former_record_goes_with_the_newest,
    ),
    (
        "an inbox with work is due",
        "if (box.count > 0 and not box.home) or has_work(box) then",
        "if box.count > 0 and not box.home then",
        moving.test_an_inbox_with_work_is_due_though_nothing_waits_and_nobody_may_read,
    ),
    (
        "an inbox with work is lent",
        "if box and ((not box.home and box.count > 0) or has_work(box)) then",
        "if box and not box.home and box.count > 0 then",
        moving.test_an_inbox_with_work_is_due_though_nothing_waits_and_nobody_may_read,
    ),
    (
        "a courier leaves work for the mover",
        "if (box.count > 0 and not box.home) or has_work(box) then",
        "if box.count > 0 then",
        moving.test_a_courier_that_is_done_leaves_work_for_the_mover,
    ),
    (
        "work that is done is done",
        "redis.call('HDEL', k, 'mover')",
        "",
        moving.test_an_inbox_with_work_is_due_though_nothing_waits_and_nobody_may_read,
    ),
    (
        "what comes under a doubtful id is kept",
        "local is_anew = fate == 'D' or",
        "local is_anew =",
        moving.test_an_id_that_a_digest_named_is_stored_once_and_marked,
    ),
    (
        "what comes under a doubtful id is marked",
        "if item.marked or (fate == 'W' and item.moving) then return nil end",
        "if item.marked or fate == 'D' or (fate == 'W' and item.moving) then return nil end",
        moving.test_an_id_that_a_digest_named_is_stored_once_and_marked,
    ),
    (
        "what is here is marked for a digest",
        "elseif fate == 'S' and seq > box.handed and is_live(inbox, seq) then",
        "elseif false then",
        moving.test_what_is_here_already_is_marked_for_a_digest_and_stays,
    ),
    (
        "a digest ends nothing",
        "    if not seen then\n      if not is_new_key",
        "    if true then\n      if not is_new_key",
        moving.test_what_is_here_already_is_marked_for_a_digest_and_stays,
    ),
    (
        "a digest is remembered for a lifetime",
        "(hour + 1) * HOUR_S + MAX_ENVELOPE_LIFETIME_S",
        "(hour + 1) * HOUR_S",
        moving.test_a_digest_is_remembered_as_long_as_its_envelopes_can_live,
    ),
    (
        "a sweep looks when a digest may be forgotten",
        "if due < box.due then\n    redis.call('ZADD', PREFIX .. 'due', 'LT', due, inbox)",
        "if due < box.due then\n    redis.call('ZCARD', PREFIX .. 'due')",
        moving.test_a_digest_is_remembered_as_long_as_its_envelopes_can_live,
    ),
    (
        "a digest names no other envelope away",
        "if eid16 ~= item.eid16 and fate ~= 'D' then",
        "if eid16 ~= item.eid16 then",
        moving.test_an_id_that_a_digest_names_of_another_envelope_turns_none_away,
    ),
    (
        "what went on and was shown there is doubtful",
        "      if fate == 'W' then",
        "      if false then",
        moving.test_what_went_and_was_shown_there_is_marked_whoever_brings_it_back,
    ),
    (
        "a mark that is brought outlasts a doubt about all",
        "if flags % 4 < 2 and seq > box.handed then",
        "if flags % 4 < 2 and seq > box.handed and not box.doubtful then",
        moving.test_a_mark_that_is_brought_outlasts_a_doubt_about_all,
    ),
    (
        "a digest leaves room for what comes",
        "if hour <= box.floor or box.ids + count > most then",
        "if hour <= box.floor then",
        moving.test_a_digest_without_room_marks_what_is_older,
    ),
    (
        "what waits and is forgotten here is marked for a digest",
        "if hour <= box.floor or box.ids + count > most then",
        "if box.ids + count > most then",
        moving.test_what_waits_and_is_forgotten_here_is_marked_for_a_digest,
    ),
    (
        "nothing is forgotten for a digest",
        "if hour <= box.floor or box.ids + count > most then",
        "while box.ids + count > most and shed(box) do end\n  if box.ids + count > most then",
        moving.test_what_an_inbox_has_seen_itself_it_does_not_forget_for_a_digest,
    ),
    (
        "what has no room is marked",
        "    box.mark_before = end_of(hour)\n",
        "",
        moving.test_a_digest_without_room_marks_what_is_older,
    ),
    (
        "what is marked by its time takes no room",
        "if count == 0 or box.mark_before >= end_of(hour) then return end",
        "if count == 0 then return end",
        moving.test_what_is_marked_by_its_time_takes_no_room,
    ),
    (
        "the newest is said first",
        "'ZREVRANGEBYSCORE', key('hours', inbox), first, '-inf')",
        "'ZRANGE', key('hours', inbox), 0, -1)",
        moving.test_the_newest_is_said_first,
    ),
    (
        "what a source has forgotten is marked",
        "if floor >= 0 then box.mark_before",
        "if false then box.mark_before",
        moving.test_what_a_source_has_forgotten_is_taken_here_and_marked,
    ),
    (
        "what is marked by its time is told as forgotten",
        "math.max(box.floor, floor_of_marks())",
        "box.floor",
        moving.test_what_a_source_has_forgotten_is_taken_here_and_marked,
    ),
    (
        "a page passes the floor",
        "if item.hour <= box.floor and not item.moving then",
        "if item.hour <= box.floor then",
        moving.test_a_page_is_taken_below_the_floor_and_marked,
    ),
    (
        "what a page brings below the floor is marked",
        "return is_forgotten and not item.marked and {box.inbox, 'lost'} or nil",
        "return nil",
        moving.test_a_page_is_taken_below_the_floor_and_marked,
    ),
    (
        "a page passes the rules",
        "  if item.moving then return nil end\n  if standing",
        "  if standing",
        moving.test_a_page_passes_rules_and_quotas,
    ),
    (
        "a page passes the quotas",
        "no = over_twice(box, item.size)",
        "no = over_quota(box, item, quota)",
        moving.test_a_page_passes_rules_and_quotas,
    ),
    (
        "a page fills an inbox twice at most",
        "box.count >= 2 * MAX_COUNT",
        "false",
        moving.test_a_page_fills_an_inbox_twice_at_most,
    ),
    (
        "who takes a step that is no news keeps what was lent",
        "local lent = not is_news and",
        "local lent = false and",
        moving.test_who_writes_a_step_down_anew_keeps_what_was_lent,
    ),
    (
        "the mark that a page brings is kept",
        "    box.handed = seq\n",
        "",
        moving.test_a_page_never_takes_a_mark_away_and_always_brings_its_own,
    ),
    (
        "what is marked is not marked again",
        "if flags % 4 < 2 and seq > box.handed then",
        "if seq > box.handed then",
        moving.test_a_page_never_takes_a_mark_away_and_always_brings_its_own,
    ),
    (
        "what moved on is kept when it comes back",
        "local is_anew = fate == 'D' or (fate == 'W' and box.home)",
        "local is_anew = fate == 'D'",
        moving.test_what_moved_on_comes_back_with_its_inbox_as_it_is,
    ),
    (
        "what comes back without its inbox is marked",
        "if item.marked or (fate == 'W' and item.moving) then return nil end",
        "if item.marked or fate == 'W' then return nil end",
        moving.test_what_moved_on_comes_back_with_its_inbox_as_it_is,
    ),
    (
        "what would be kept anew is not confirmed while the store is full",
        "local is_there = not is_back and",
        "local is_there =",
        moving.test_while_the_store_is_full_what_would_be_kept_anew_is_refused,
    ),
    (
        "the tally begins anew",
        "if is_new then box.tally",
        "if is_new and not box.tally then box.tally",
        moving.test_every_envelope_of_a_source_is_accounted_for,
    ),
    (
        "each end is counted",
        "  count_in(box, fate)\n",
        "",
        moving.test_every_envelope_of_a_source_is_accounted_for,
    ),
    (
        "what comes is counted",
        "if item.moving then count_in(box, 'kept') end",
        "",
        moving.test_a_target_counts_what_is_new_and_what_it_had,
    ),
    (
        "an agent's own word here stands",
        "local is_listed = listed[ARGV[i]] == 'A' or listed[ARGV[i]] == 'D'",
        "local is_listed = false",
        moving.test_what_an_agent_said_here_stands,
    ),
]
ON_SERVERS: list[Guard] = [
    (
        "what was lost counts as corrupt",
        "    count_in(box, 'C')\n",
        "",
        moving.test_what_the_store_lost_counts_as_corrupt,
    ),
    (
        "who only reads sees a new epoch, too",
        "if box and box.generation ~= GENERATION then renew(box, MARK_BEFORE) end\n  return box",
        "return box",
        moving.test_what_waits_in_an_old_epoch_is_among_what_may_have_been_seen,
    ),
    (
        "what moves is under the bounds of an inbox",
        "if hands_over(box) then return over_quota(box, item, quota) end",
        "",
        moving.test_what_moves_is_no_outboxs_nor_is_what_comes_meanwhile,
    ),
    (
        "what comes behind it joins no outbox",
        "  if hands_over(box) then return end\n",
        "",
        moving.test_what_moves_is_no_outboxs_nor_is_what_comes_meanwhile,
    ),
    (
        "a courier's word puts it into none",
        "if ARGV[7] ~= '' and not hands_over(box) then",
        "if ARGV[7] ~= '' then",
        moving.test_what_moves_is_no_outboxs_nor_is_what_comes_meanwhile,
    ),
    (
        "a restored outbox is quiet",
        "if not box.home then due = math.max(due, QUIET_UNTIL) end",
        "",
        moving.test_a_restored_outbox_does_not_bounce_for_a_day,
    ),
    (
        "what is older than a restore may have been delivered",
        "    (created or 0) < box.mark_before",
        "    false",
        moving.test_what_was_created_before_a_restore_may_have_been_delivered,
    ),
]


@each(GUARDS)
async def test_without_this_guard_its_test_fails(
    embedded_world: World, old: str, new: str, test: Test
) -> None:
    await embedded_world.node()
    await must_fail(embedded_world, old, new, test)


@each(ON_SERVERS)
async def test_without_this_guard_of_a_server_its_test_fails(
    embedded_world: World, old: str, new: str, test: Test
) -> None:
    await must_fail(embedded_world, old, new, test)
