"""Laws of the member table: transitions, times of dials, and the choice of links."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.peering.model import membership
from relay.peering.model.membership import TRANSITIONS, Event, MemberTable, backoff_s
from relay.protocol.frames import Membership, View
from relay.protocol.ids import Did, Timestamp
from tests.unit.builders import NOW

OWN = Did("did:key:zOwn")
PEER = Did("did:key:z0")


def dids(count: int) -> list[Did]:
    return [Did(f"did:key:z{n}") for n in range(count)]


def table(count: int = 1, own: Did = OWN) -> MemberTable:
    made = MemberTable(own)
    for did in dids(count):
        assert made.add(did)
    return made


def later(seconds: float) -> Timestamp:
    return Timestamp(NOW + seconds)


def state(of: MemberTable) -> Membership:
    peer = of.get(PEER)
    assert peer is not None
    return peer.state


def gone() -> MemberTable:
    made = table()
    for _ in range(membership.MAX_FAILURES):
        made.on_dial_failed(PEER, NOW, 0.5, "refused")
    assert state(made) == "gone"
    return made


# ---------------------------------------------------------------- states


def test_the_table_says_what_every_event_does_in_every_state():
    assert set(TRANSITIONS) == {
        (state, event) for state in get_args(Membership) for event in get_args(Event)
    }


def test_a_new_peer_is_suspect_until_it_was_reached_and_due_at_once():
    made = table()
    assert (state(made), made.due(NOW)) == ("suspect", [PEER])
    assert made.view(PEER, "r") == View("r", "suspect", 0)
    assert made.on_link_up(PEER, NOW)
    assert made.view(PEER, "r") == View("r", "alive", int(NOW))


def test_a_miss_makes_it_suspect_and_ten_in_a_row_gone():
    made = table()
    made.on_link_up(PEER, NOW)
    seen = []
    for n in range(1, 12):
        made.on_dial_failed(PEER, later(n), 0.5, "connection refused")
        seen.append(state(made))
    assert seen == ["suspect"] * 9 + ["gone"] * 2
    assert made.view(PEER, "r").since == int(NOW) + 10
    assert made.view(PEER, "r").reason == "connection refused"


def test_misses_that_are_not_in_a_row_do_not_add_up():
    made = table()
    for n in range(5):
        for _ in range(9):
            made.on_dial_failed(PEER, later(10 * n), 0.5)
        made.on_link_up(PEER, later(10 * n))
    assert state(made) == "alive"
    for _ in range(9):
        made.on_dial_failed(PEER, later(50), 0.5)
    assert state(made) == "suspect"


def test_links_that_end_at_once_are_misses_in_a_row_and_are_dialled_less_and_less():
    made = table()
    waits = []
    for n in range(12):
        made.on_link_up(PEER, later(n))
        made.on_dial_failed(PEER, later(n), 1.0)
        peer = made.get(PEER)
        assert peer is not None
        waits.append(peer.dial_at - later(n))
    assert waits == [2, 4, 8, *[membership.MAX_DESIRED_BACKOFF_S] * 9]


def test_a_link_that_stood_for_a_while_is_dialled_again_within_a_second():
    made = table()
    for _ in range(8):
        made.on_dial_failed(PEER, NOW, 1.0)
    made.on_link_up(PEER, NOW)
    cut = later(membership.STABLE_LINK_S)
    made.on_dial_failed(PEER, cut, 1.0)
    assert made.due(Timestamp(cut + 1)) == [PEER]


def test_who_asks_for_a_pause_gets_it_but_not_for_longer_than_any_back_off():
    made = table()
    made.on_dial_failed(PEER, NOW, 0.0, min_s=60)
    assert [made.due(later(s)) for s in (59, 60)] == [[], [PEER]]
    made.on_dial_failed(PEER, NOW, 0.0, min_s=86_400)
    assert [made.due(later(s)) for s in (299, 300)] == [[], [PEER]]


def test_a_clock_that_was_set_back_puts_off_no_dial():
    made = table()
    made.on_dial_failed(PEER, NOW, 1.0)
    assert made.due(later(-3600)) == [PEER]


def test_a_gone_peer_with_newer_information_is_dialled_at_once():
    made = gone()
    assert made.due(NOW) == []
    assert made.on_info(PEER, later(1))
    assert (state(made), made.due(later(1))) == ("suspect", [PEER])


def test_hearsay_makes_nobody_alive_and_does_not_hurry_who_is_suspect():
    made = table()
    made.on_dial_failed(PEER, NOW, 1.0)
    made.on_info(PEER, NOW)
    assert (state(made), made.due(NOW)) == ("suspect", [])


def test_the_gone_are_dialled_for_ever_and_come_back():
    made = gone()
    assert made.due(later(membership.MAX_BACKOFF_S)) == [PEER]
    assert made.on_link_up(PEER, later(400))
    assert state(made) == "alive"


def test_whoever_logs_in_here_is_dialled_soon_but_not_at_its_pleasure():
    made = gone()
    assert made.on_inbound_login(PEER, later(2))
    assert (state(made), made.due(later(4.9)), made.due(later(5))) == ("suspect", [], [PEER])
    made.on_dial_failed(PEER, later(5), 1.0)
    assert made.on_inbound_login(PEER, later(6))
    assert not made.on_inbound_login(PEER, later(6))
    assert (made.due(later(9.9)), made.due(later(10))) == ([], [PEER])
    made.on_link_up(PEER, later(10))
    assert not made.on_inbound_login(PEER, later(11))
    assert not MemberTable(OWN).on_inbound_login(PEER, NOW)


def test_whom_the_operator_added_is_dialled_at_once_when_it_logs_in_here():
    made = gone()
    made.pinned = frozenset({PEER})
    assert made.on_inbound_login(PEER, NOW)
    assert made.due(NOW) == [PEER]
    made.on_dial_failed(PEER, NOW, 1.0)
    assert made.due(later(2)) == [PEER], "and soon again, should it not be there quite yet"


def test_whoever_has_another_address_is_dialled_at_once():
    made = gone()
    made.dial_now(PEER, later(1))
    assert (state(made), made.due(later(1))) == ("gone", [PEER])
    made.dial_now(Did("did:key:zStranger"), NOW)


@given(st.lists(st.sampled_from(["on_link_up", "on_dial_failed", "on_info"]), max_size=40))
def test_since_moves_exactly_when_the_state_does(events):
    made = table()
    for n, event in enumerate(events, start=1):
        before = made.view(PEER, "r")
        if event == "on_dial_failed":
            moved = made.on_dial_failed(PEER, later(n), 0.5)
        else:
            moved = getattr(made, event)(PEER, later(n))
        after = made.view(PEER, "r")
        assert moved is ((before.state, before.since) != (after.state, after.since))
        assert after.since == (int(NOW) + n if moved else before.since)
        assert (before.state != after.state) <= moved


def test_events_of_those_that_are_not_known_do_nothing():
    made = MemberTable(OWN)
    assert not made.on_link_up(PEER, NOW)
    assert not made.on_dial_failed(PEER, NOW, 0.5)
    assert not made.on_info(PEER, NOW)
    assert (len(made), PEER in made, made.get(PEER), made.remove(PEER)) == (0, False, None, False)
    assert made.view(PEER, "r", strikes=2, retry_after=7) == View("r", "suspect", 0, 2, 7)


def test_a_relay_is_not_its_own_peer_and_nobody_is_added_twice():
    made = MemberTable(OWN)
    assert not made.add(OWN)
    assert made.add(PEER)
    assert not made.add(PEER)
    assert [peer.did for peer in made] == [PEER]
    assert made.remove(PEER)
    assert list(made) == []


# ---------------------------------------------------------------- back-off


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_a_wait_is_between_one_second_and_five_minutes(misses, share):
    assert 1 <= backoff_s(misses, share) <= 300


@given(st.integers(1, 30), st.floats(0, 1))
def test_waits_grow_with_the_misses_and_reach_over_the_whole_range(misses, share):
    assert backoff_s(misses, share) <= backoff_s(misses + 1, share)
    assert backoff_s(misses, 0) == 1
    assert backoff_s(misses, 1) == min(300, 2**misses)
    assert 1 <= backoff_s(misses, share, 15.0) <= 15


def test_nobody_is_dialled_before_its_time():
    made = table()
    made.on_dial_failed(PEER, NOW, 1.0)
    assert [made.due(later(s)) for s in (0, 1.9, 2)] == [[], [], [PEER]]
    assert made.due(later(2), linked={PEER}) == []
    assert made.next_dial_at(NOW) == later(2)
    assert made.next_dial_at(NOW, linked={PEER}) is None


# ---------------------------------------------------------------- links


@pytest.mark.parametrize("count", [0, 1, 16, 17, 40])
def test_links_to_all_are_desired_while_they_are_few_else_to_sixteen(count):
    assert len(table(count).desired(NOW)) == min(count, 16)


def test_the_choice_is_stable_but_for_four_that_change_by_the_hour():
    made = table(200)
    wanted = [made.desired(later(hours * 3600)) for hours in range(60)]
    assert made.desired(later(1)) == made.desired(NOW)
    assert len(frozenset.intersection(*wanted)) >= 12
    assert all(len(one - other) <= 4 for one in wanted for other in wanted)
    assert len(frozenset.union(*wanted)) > 100


def test_every_relay_chooses_for_itself_so_that_all_are_chosen_alike():
    chosen = Counter(
        did for n in range(200) for did in table(100, own=Did(f"did:key:zOther{n}")).desired(NOW)
    )
    assert len(chosen) == 100
    assert max(chosen.values()) < 4 * min(chosen.values())


def test_the_links_of_all_relays_together_leave_nobody_alone():
    everyone = dids(120)
    links = {}
    for own in everyone:
        made = MemberTable(own)
        for did in everyone:
            made.add(did)
        links[own] = made.desired(NOW)
    reached, front = {PEER}, {PEER}
    while front:
        front = {did for own in front for did in links[own]} - reached
        reached |= front
    assert reached == set(everyone)


def test_a_gone_peer_loses_its_link_to_another_and_gets_it_back():
    made = table(40)
    wanted = made.desired(NOW)
    lost = min(wanted)
    for _ in range(membership.MAX_FAILURES):
        made.on_dial_failed(lost, NOW, 0.5)
    assert lost not in made.desired(NOW)
    assert len(made.desired(NOW)) == 16
    made.on_info(lost, NOW)
    assert made.desired(NOW) == wanted


def test_two_halves_of_a_large_mesh_go_on_looking_for_each_other():
    made = table(60)
    for did in dids(60)[:30]:
        for _ in range(membership.MAX_FAILURES):
            made.on_dial_failed(did, NOW, 1.0)
    wanted = made.desired(NOW)
    assert wanted.isdisjoint(dids(60)[:30])
    assert set(made.due(later(299))) <= wanted
    looked_for = set(made.due(later(300))) - wanted
    assert 0 < len(looked_for) <= 16
    found = min(looked_for)
    made.on_link_up(found, later(300))
    assert found in made.desired(later(300))


def test_a_peer_with_a_desired_link_is_dialled_within_seconds_however_often_that_failed():
    made = table(40)
    for _ in range(30):
        for did in dids(40):
            made.on_dial_failed(did, NOW, 1.0)
    wanted = made.desired(NOW)
    assert made.max_backoff_s(min(wanted), NOW) == membership.MAX_DESIRED_BACKOFF_S
    assert {did for did in dids(40) if made.max_backoff_s(did, NOW) == 300} == set(
        dids(40)
    ) - wanted
    assert set(made.due(later(membership.MAX_DESIRED_BACKOFF_S))) == wanted


def test_whom_the_operator_added_keeps_its_link_however_many_others_there_are():
    made = table(60)
    added = set(dids(60)) - made.desired(NOW)
    made.pinned = frozenset({min(added), Did("did:key:zStranger")})
    assert made.desired(NOW) == table(60).desired(NOW) | {min(added)}
    for _ in range(membership.MAX_FAILURES):
        made.on_dial_failed(min(added), NOW, 1.0)
    assert min(added) in made.desired(NOW)
    assert made.due(later(membership.MAX_DESIRED_BACKOFF_S)).count(min(added)) == 1


def test_where_nearly_all_are_gone_they_are_dialled_all_the_same():
    made = table(40)
    for did in dids(40)[:30]:
        for _ in range(membership.MAX_FAILURES):
            made.on_dial_failed(did, NOW, 0.5)
    assert len(made.desired(NOW)) == 16
