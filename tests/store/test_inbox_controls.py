"""Each guard of inboxes and forwarding, taken out of the scripts: its test must fail."""

from __future__ import annotations

import pytest

from relay.store.redis import entries
from tests.store import (
    test_append,
    test_expiry_and_bounces,
    test_faults,
    test_fetch,
    test_forwarding,
    test_nodes_and_clock,
    test_rules,
    test_sessions,
)
from tests.store.controls import SUBJECT, Guard, Test, each, must_fail
from tests.store.worlds import World
from tests.support.broken_rules import node_id

pytestmark = pytest.mark.timeout(60)

LEAVE_AN_ID = """
    redis.call('HSET', ids_key(box.inbox, item.hour), item.dedupe,
      struct.pack(SEEN, 'A', seq, item.eid16))
    error(failed)"""

GUARDS: list[Guard] = [
    (
        "the fence is compared",
        "if fence ~= box.fence or not box.open then return ended_by(box, fence) end",
        "",
        test_sessions.test_a_newer_session_supersedes_the_older_in_everything,
    ),
    (
        "a closed session is over",
        "if fence ~= box.fence or not box.open then return ended_by(box, fence) end",
        "if fence ~= box.fence then return ended_by(box, fence) end",
        test_sessions.test_a_closed_session_is_over,
    ),
    (
        "the window of an unclean end is marked",
        "box.handed = math.max(box.handed, window_end(box))",
        "",
        test_sessions.test_after_an_unclean_end_the_whole_window_is_marked,
    ),
    (
        "what was taken stays marked",
        "box.handed, box.taken = math.max(box.handed, box.taken), 0",
        "box.taken = 0",
        test_fetch.test_what_was_taken_is_marked_for_the_next_session,
    ),
    (
        "an ack is of this epoch",
        "if not box or request.epoch ~= box.epoch then return 'inbox_reset' end",
        "if not box then return 'inbox_reset' end",
        test_sessions.test_an_ack_of_another_epoch_changes_nothing,
    ),
    (
        "a taken ack covers what was given",
        "return 'bad_frame'",
        "return nil",
        test_fetch.test_a_taken_ack_covers_only_what_was_given,
    ),
    (
        "the agent is told before an expired entry is forgotten",
        "local passed = PASSED[reason] and to or math.min(to, upto)",
        "local passed = to",
        test_sessions.test_what_others_ended_is_passed_only_by_a_cumulative_ack,
    ),
    (
        "conclude looks again at the time",
        "not clock_ok or item.expires > NOW",
        "false",
        test_sessions.test_only_what_has_expired_can_be_concluded_as_expired,
    ),
    (
        "ids are remembered",
        "if not is_anew then",
        "if false then",
        test_append.test_the_same_envelope_again_is_answered_as_the_first_time,
    ),
    (
        "the floor is remembered",
        "if item.hour <= box.floor and not item.moving then return 'stale_id' end",
        "",
        test_append.test_an_old_hour_is_shed_when_the_memory_is_full_and_becomes_the_floor,
    ),
    (
        "a clock in doubt never says expired",
        "return CLOCK_OK and 'expired' or 'clock_in_doubt'",
        "return 'expired'",
        test_append.test_a_clock_in_doubt_never_says_expired,
    ),
    (
        "one sender has a share",
        "if quota[1] >= SENDER_COUNT or",
        "if false and",
        test_append.test_one_sender_fills_only_its_share,
    ),
    (
        "all strangers have one share",
        "if all[1] >= STRANGER_COUNT or",
        "if false and",
        test_rules.test_strangers_share_one_quota_and_leave_the_known_alone,
    ),
    (
        "an entry remembers that it was a stranger's",
        "item.is_stranger and 's' or 'm'",
        "'m'",
        test_rules.test_strangers_share_one_quota_and_leave_the_known_alone,
    ),
    (
        "strangers fill half of the memory of ids",
        "is_bound and math.floor(MAX_IDS / 2) or MAX_IDS",
        "MAX_IDS",
        test_rules.test_strangers_fill_half_of_an_inboxs_memory_of_ids,
    ),
    (
        "the denied are blocked",
        "if found[1] == 'D' then",
        "if false then",
        test_rules.test_a_denied_sender_is_blocked_and_what_it_has_waiting_stays,
    ),
    (
        "first contact may be refused",
        "found[2] == 'refuse' and 'not_admitted' or 'stranger'",
        "'stranger'",
        test_rules.test_where_first_contact_is_refused_only_the_known_come_in,
    ),
    (
        "a bounce is nobody's to refuse",
        "if not item.bounces then return nil end",
        "",
        test_forwarding.test_bounces_of_other_relays_pass_the_rules_and_have_a_share,
    ),
    (
        "the barred stay out",
        "if standing == 'stranger' and item.barred then return 'rate_limited' end",
        "",
        test_rules.test_barred_are_only_strangers,
    ),
    (
        "only the session of an inbox changes its rules",
        "if fence ~= box.fence or not box.open then return ended_by(box, fence) end",
        "",
        test_rules.test_only_the_session_that_has_the_inbox_changes_its_rules,
    ),
    (
        "a contact never takes the place of a rule",
        "found[1] and (not noted or NOW - tonumber(noted) < CONTACT_FRESH_S)",
        "false",
        test_rules.test_a_contact_never_takes_the_place_of_a_rule,
    ),
    (
        "the budget of all is kept",
        "if not has_room(box, item) then return 'overloaded' end",
        "",
        test_append.test_over_the_budget_of_all_the_inbox_that_remembers_most_gives_way,
    ),
    (
        "what is in flight is not swept",
        "if tonumber(seq) > kept_upto and",
        "if",
        test_expiry_and_bounces.test_a_sweep_leaves_what_a_live_session_may_have_in_flight,
    ),
    (
        "a bounce waits for skewed clocks",
        "math.max(NOW, item.expires + BOUNCE_GRACE_S) or NOW",
        "NOW or NOW",
        test_expiry_and_bounces.test_an_expired_envelope_bounces_when_skewed_clocks_agree,
    ),
    (
        "a batch is frozen",
        "if redis.call('EXISTS', frozen) == 0 then freeze(sender) end",
        "redis.call('UNLINK', frozen); freeze(sender)",
        test_expiry_and_bounces.test_a_batch_stays_as_it_was_until_it_is_finished,
    ),
    (
        "what waits for one peer is bounded",
        "if is_over(outbox_of(peer).all, size, OUTBOX_COUNT, OUTBOX_BYTES) then",
        "if false then",
        test_forwarding.test_what_waits_for_one_peer_is_bounded,
    ),
    (
        "a sender has a share of an outbox",
        "if is_over(share_of(peer, item.sender), size, count, bytes) then",
        "if false then",
        test_forwarding.test_one_sender_has_a_share_of_what_waits_for_a_peer,
    ),
    (
        "a recipient has a share of an outbox",
        "if is_over({box.count, box.bytes}, size, count, bytes) then",
        "if false then",
        test_forwarding.test_one_recipient_has_a_share_of_what_waits_for_a_peer,
    ),
    (
        "what went on is given back to its outbox",
        "add_to_outbox(box.away.peer, item.sender, -1, -item.size)",
        "",
        test_forwarding.test_what_waits_for_one_peer_is_bounded,
    ),
    (
        "an outbox that is closed takes nothing",
        "if NOW < away.closed_until then return 'closed' end",
        "",
        test_forwarding.test_while_closed_new_envelopes_are_refused_as_the_peer_refused,
    ),
    (
        "the session of an agent that moved ends",
        "box.fence, box.open, box.node = box.fence + 1, false, ''",
        "",
        test_forwarding.test_when_an_agent_moves_its_session_ends_and_what_waits_is_for_couriers,
    ),
    (
        "the courier of an agent that came home ends",
        "box.fence, box.open, box.node = box.fence + 1, false, ''",
        "",
        test_forwarding.test_when_an_agent_comes_home_its_courier_is_fenced_off_and_it_takes_what_waits,
    ),
    (
        "what the agent was handed before it moved is marked",
        "box.handed = math.max(box.handed, window_end(box))\n    local news",
        "local news",
        test_forwarding.test_when_an_agent_moves_its_session_ends_and_what_waits_is_for_couriers,
    ),
    (
        "an agent that moved is not told that it was superseded",
        "if holding == '0' or holding == '2' then away.left_fence = box.fence end",
        "",
        test_forwarding.test_an_agent_that_went_and_came_back_is_not_told_that_it_was_superseded,
    ),
    (
        "only the newest courier forwards",
        "if fence ~= box.fence or not box.open then return ended_by(box, fence) end",
        "",
        test_forwarding.test_only_the_newest_courier_forwards,
    ),
    (
        "a courier is none for an agent that is home",
        "if is_courier then return (not box or box.home) and",
        "if is_courier then return not box and",
        test_forwarding.test_a_courier_opens_only_what_is_away_and_makes_nothing,
    ),
    (
        "a courier acks only what went on",
        "if not box.home and names and not request.is_forwarded then return 'bad_frame' end",
        "",
        test_forwarding.test_a_courier_acks_nothing_as_if_it_were_the_agent,
    ),
    (
        "an agent forwards nothing",
        "if box.home and request.is_forwarded then return 'superseded' end",
        "",
        test_forwarding.test_an_agent_forwards_nothing,
    ),
    (
        "a forwarded id stays a courier's",
        "return fate == 'W' or (fate == 'S' and not box.home)",
        "return fate == 'S' and not box.home",
        test_forwarding.test_what_was_forwarded_stays_so_while_the_agent_lives_elsewhere,
    ),
    (
        "bounces of other relays have a share",
        "if item.sender == box.inbox or not (item.bounces or item.via) then return nil end",
        "if item.sender == box.inbox or not item.bounces then return nil end",
        test_forwarding.test_bounces_of_other_relays_pass_the_rules_and_have_a_share,
    ),
    (
        "what comes back is kept",
        "local is_anew = fate == 'D' or (fate == 'W' and box.home)",
        "local is_anew = fate == 'D'",
        test_forwarding.test_what_was_forwarded_comes_back_when_the_agent_is_home_again,
    ),
    (
        "a refusal of a courier says what the marks say",
        "return box.home or is_marked(",
        "return true or is_marked(",
        test_forwarding.test_a_courier_that_refuses_makes_one_bounce_that_says_what_the_marks_say,
    ),
    (
        "what is due is lent",
        "set_due(box, now + tonumber(ARGV[5]))",
        "",
        test_forwarding.test_what_is_due_is_lent_to_one_courier_at_a_time,
    ),
    (
        "what came while a courier ended is due",
        "if not box.home then set_due(box, math.max(precisely(), away_of(box).deferred)) end",
        "",
        test_forwarding.test_what_came_while_a_courier_ended_is_due_at_once,
    ),
    (
        "the strangers of one peer have a share",
        "if brought[1] >= math.floor(STRANGER_COUNT / PEER_SHARE) or",
        "if false and",
        test_forwarding.test_strangers_whom_one_peer_brings_have_a_quarter_of_what_strangers_have,
    ),
]
ON_SERVERS: list[Guard] = [
    (
        "a failed item is undone",
        "    error(failed)",
        LEAVE_AN_ID,
        test_faults.test_an_item_whose_keys_are_broken_leaves_no_trace_and_hurts_no_other,
    ),
    (
        "a lost entry is no duplicate",
        "if fate ~= 'S' or here then",
        "if true then",
        test_faults.test_an_envelope_that_the_store_lost_is_no_duplicate,
    ),
    (
        "a new epoch marks what is young",
        "renew(box, NOW + BOUNCE_GRACE_S)",
        "renew(box, 0)",
        test_faults.test_after_a_new_epoch_what_is_older_than_it_is_marked,
    ),
    (
        "the holder is told",
        "if not box.is_news then note(news, box.node, box.inbox) end",
        "",
        test_nodes_and_clock.test_what_must_be_read_back_wakes_the_own_node_too,
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


@pytest.mark.breaks(
    SUBJECT,
    "what is read is checked",
    by=node_id(test_faults.test_an_altered_entry_is_told_as_corrupt_and_never_handed_over),
)
@pytest.mark.parametrize("damage", ["wire", "other envelope"])
async def test_without_checking_what_is_read_damage_is_handed_over(
    embedded_world: World, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "_digest", lambda _rest, _wire: b"x" * 8)
    monkeypatch.setattr(entries, "_eid_of", lambda _wire: b"x" * 32)
    monkeypatch.setattr(entries, "eid_bytes", lambda _eid: b"x" * 32)
    with pytest.raises(AssertionError):
        await test_faults.test_an_altered_entry_is_told_as_corrupt_and_never_handed_over(
            embedded_world, damage
        )
