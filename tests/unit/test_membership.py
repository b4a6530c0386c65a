"""Laws of the roster: what moves a peer's state, when it is dialled, to whom links are kept."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.peering.model import membership
from relay.peering.model.membership import (
    TRANSITIONS,
    Event,
    Roster,
    backoff_s,
)
from relay.protocol.frames import (
    Membership,
    View,
)
from relay.protocol.ids import (
    Did,
    Timestamp,
)
from tests.unit.builders import NOW

OWN = Did("did:key:zOwn")
PEER = Did("did:key:z0")
CHANCE = random.Random(3)  # noqa: S311


def dids(count: int) -> list[Did]:
    return [Did(f"did:key:z{n}") for n in range(count)]


def roster(count: int = 1, own: Did = OWN) -> Roster:
    made = Roster(own)
    for did in dids(count):
        assert made.add(did)
    return made


def pick(peers: Sequence[Did], count: int) -> list[Did]:
    return CHANCE.sample(list(peers), count)


def later(seconds: float) -> Timestamp:
    return Timestamp(NOW + seconds)


def state(of: Roster) -> Membership:
    peer = of.peer(PEER)
    assert peer is not None
    return peer.state


def gone() -> Roster:
    made = roster()
    for _ in range(membership.GONE_AFTER):
        made.missed(PEER, NOW, 0.5, "refused")
    assert state(made) == "gone"
    return made


# ---------------------------------------------------------------- states


def test_the_table_says_what_every_event_does_in_every_state():
    assert set(TRANSITIONS) == {
        (state, event) for state in get_args(Membership) for event in get_args(Event)
    }


def test_a_new_peer_is_suspect_until_it_was_reached_and_due_at_once():
    made = roster()
    assert (state(made), made.due(NOW)) == ("suspect", [PEER])
    assert made.view_of(PEER, "r") == View("r", "suspect", 0)
    assert made.reached(PEER, NOW)
    assert made.view_of(PEER, "r") == View("r", "alive", int(NOW))


def test_a_miss_makes_it_suspect_and_ten_in_a_row_gone():
    made = roster()
    made.reached(PEER, NOW)
    seen = []
    for n in range(1, 12):
        made.missed(PEER, later(n), 0.5, "connection refused")
        seen.append(state(made))
    assert seen == ["suspect"] * 9 + ["gone"] * 2
    assert made.view_of(PEER, "r").since == int(NOW) + 10
    assert made.view_of(PEER, "r").reason == "connection refused"


def test_misses_that_are_not_in_a_row_do_not_add_up():
    made = roster()
    for n in range(5):
        for _ in range(9):
            made.missed(PEER, later(10 * n), 0.5)
        made.reached(PEER, later(10 * n))
    assert state(made) == "alive"
    for _ in range(9):
        made.missed(PEER, later(50), 0.5)
    assert state(made) == "suspect"


def test_links_that_end_at_once_are_misses_in_a_row_and_are_dialled_less_and_less():
    made = roster()
    waits = []
    for n in range(12):
        made.reached(PEER, later(n))
        made.missed(PEER, later(n), 1.0)
        peer = made.peer(PEER)
        assert peer is not None
        waits.append(peer.dial_at - later(n))
    assert waits == [2, 4, 8, *[membership.KEPT_BACKOFF_S] * 9]


def test_a_link_that_stood_for_a_while_is_dialled_again_within_a_second():
    made = roster()
    for _ in range(8):
        made.missed(PEER, NOW, 1.0)
    made.reached(PEER, NOW)
    cut = later(membership.STEADY_S)
    made.missed(PEER, cut, 1.0)
    assert made.due(Timestamp(cut + 1)) == [PEER]


def test_who_asks_for_a_pause_gets_it_but_not_for_longer_than_any_back_off():
    made = roster()
    made.missed(PEER, NOW, 0.0, least_s=60)
    assert [made.due(later(s)) for s in (59, 60)] == [[], [PEER]]
    made.missed(PEER, NOW, 0.0, least_s=86_400)
    assert [made.due(later(s)) for s in (299, 300)] == [[], [PEER]]


def test_a_clock_that_was_set_back_puts_off_no_dial():
    made = roster()
    made.missed(PEER, NOW, 1.0)
    assert made.due(later(-3600)) == [PEER]


def test_whoever_is_heard_of_again_is_dialled_at_once():
    made = gone()
    assert made.due(NOW) == []
    assert made.heard(PEER, later(1))
    assert (state(made), made.due(later(1))) == ("suspect", [PEER])


def test_hearsay_makes_nobody_alive_and_does_not_hurry_who_is_suspect():
    made = roster()
    made.missed(PEER, NOW, 1.0)
    made.heard(PEER, NOW)
    assert (state(made), made.due(NOW)) == ("suspect", [])


def test_the_gone_are_dialled_for_ever_and_come_back():
    made = gone()
    assert made.due(later(membership.MAX_BACKOFF_S)) == [PEER]
    assert made.reached(PEER, later(400))
    assert state(made) == "alive"


def test_whoever_logs_in_here_is_dialled_soon_but_not_at_its_pleasure():
    made = gone()
    assert made.seen(PEER, later(2))
    assert (state(made), made.due(later(4.9)), made.due(later(5))) == ("suspect", [], [PEER])
    made.missed(PEER, later(5), 1.0)
    assert made.seen(PEER, later(6))
    assert not made.seen(PEER, later(6))
    assert (made.due(later(9.9)), made.due(later(10))) == ([], [PEER])
    made.reached(PEER, later(10))
    assert not made.seen(PEER, later(11))
    assert not Roster(OWN).seen(PEER, NOW)


def test_whom_the_operator_added_is_dialled_at_once_when_it_logs_in_here():
    made = gone()
    made.pinned = frozenset({PEER})
    assert made.seen(PEER, NOW)
    assert made.due(NOW) == [PEER]
    made.missed(PEER, NOW, 1.0)
    assert made.due(later(2)) == [PEER], "and soon again, should it not be there quite yet"


def test_whoever_has_another_address_is_dialled_at_once():
    made = gone()
    made.hurry(PEER, later(1))
    assert (state(made), made.due(later(1))) == ("gone", [PEER])
    made.hurry(Did("did:key:zStranger"), NOW)


@given(st.lists(st.sampled_from(["reached", "missed", "heard"]), max_size=40))
def test_since_moves_exactly_when_the_state_does(events):
    made = roster()
    for n, event in enumerate(events, start=1):
        before = made.view_of(PEER, "r")
        if event == "missed":
            moved = made.missed(PEER, later(n), 0.5)
        else:
            moved = getattr(made, event)(PEER, later(n))
        after = made.view_of(PEER, "r")
        assert moved is ((before.state, before.since) != (after.state, after.since))
        assert after.since == (int(NOW) + n if moved else before.since)
        assert (before.state != after.state) <= moved


def test_events_of_those_that_are_not_known_do_nothing():
    made = Roster(OWN)
    assert not made.reached(PEER, NOW)
    assert not made.missed(PEER, NOW, 0.5)
    assert not made.heard(PEER, NOW)
    assert (len(made), PEER in made, made.peer(PEER), made.remove(PEER)) == (0, False, None, False)
    assert made.view_of(PEER, "r", strikes=2, retry_after=7) == View("r", "suspect", 0, 2, 7)


def test_a_relay_is_not_its_own_peer_and_nobody_is_added_twice():
    made = Roster(OWN)
    assert not made.add(OWN)
    assert made.add(PEER)
    assert not made.add(PEER)
    assert [peer.did for peer in made.peers()] == [PEER]
    assert made.remove(PEER)
    assert made.peers() == []


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
    made = roster()
    made.missed(PEER, NOW, 1.0)
    assert [made.due(later(s)) for s in (0, 1.9, 2)] == [[], [], [PEER]]
    assert made.due(later(2), linked={PEER}) == []
    assert made.next_dial_at(NOW) == later(2)
    assert made.next_dial_at(NOW, linked={PEER}) is None


# ---------------------------------------------------------------- links


@pytest.mark.parametrize("count", [0, 1, 16, 17, 40])
def test_links_are_kept_to_all_while_they_are_few_else_to_sixteen(count):
    assert len(roster(count).kept(NOW)) == min(count, 16)


def test_the_choice_is_stable_but_for_four_that_change_by_the_hour():
    made = roster(200)
    kept = [made.kept(later(hours * 3600)) for hours in range(60)]
    assert made.kept(later(1)) == made.kept(NOW)
    assert len(frozenset.intersection(*kept)) >= 12
    assert all(len(one - other) <= 4 for one in kept for other in kept)
    assert len(frozenset.union(*kept)) > 100


def test_every_relay_chooses_for_itself_so_that_all_are_chosen_alike():
    chosen = Counter(
        did for n in range(200) for did in roster(100, own=Did(f"did:key:zOther{n}")).kept(NOW)
    )
    assert len(chosen) == 100
    assert max(chosen.values()) < 4 * min(chosen.values())


def test_the_links_of_all_relays_together_leave_nobody_alone():
    everyone = dids(120)
    links = {}
    for own in everyone:
        made = Roster(own)
        for did in everyone:
            made.add(did)
        links[own] = made.kept(NOW)
    reached, front = {PEER}, {PEER}
    while front:
        front = {did for own in front for did in links[own]} - reached
        reached |= front
    assert reached == set(everyone)


def test_who_is_gone_gives_its_link_to_another_and_gets_it_back():
    made = roster(40)
    kept = made.kept(NOW)
    lost = min(kept)
    for _ in range(membership.GONE_AFTER):
        made.missed(lost, NOW, 0.5)
    assert lost not in made.kept(NOW)
    assert len(made.kept(NOW)) == 16
    made.heard(lost, NOW)
    assert made.kept(NOW) == kept


def test_two_halves_of_a_large_mesh_go_on_looking_for_each_other():
    made = roster(60)
    for did in dids(60)[:30]:
        for _ in range(membership.GONE_AFTER):
            made.missed(did, NOW, 1.0)
    kept = made.kept(NOW)
    assert kept.isdisjoint(dids(60)[:30])
    assert set(made.due(later(299))) <= kept
    looked_for = set(made.due(later(300))) - kept
    assert 0 < len(looked_for) <= 16
    found = min(looked_for)
    made.reached(found, later(300))
    assert found in made.kept(later(300))


def test_one_to_which_a_link_is_kept_is_dialled_within_seconds_however_often_it_was_missed():
    made = roster(40)
    for _ in range(30):
        for did in dids(40):
            made.missed(did, NOW, 1.0)
    kept = made.kept(NOW)
    assert made.longest_s(min(kept), NOW) == membership.KEPT_BACKOFF_S
    assert {did for did in dids(40) if made.longest_s(did, NOW) == 300} == set(dids(40)) - kept
    assert set(made.due(later(membership.KEPT_BACKOFF_S))) == kept


def test_whom_the_operator_added_keeps_its_link_however_many_others_there_are():
    made = roster(60)
    added = set(dids(60)) - made.kept(NOW)
    made.pinned = frozenset({min(added), Did("did:key:zStranger")})
    assert made.kept(NOW) == roster(60).kept(NOW) | {min(added)}
    for _ in range(membership.GONE_AFTER):
        made.missed(min(added), NOW, 1.0)
    assert min(added) in made.kept(NOW)
    assert made.due(later(membership.KEPT_BACKOFF_S)).count(min(added)) == 1


def test_where_nearly_all_are_gone_they_are_dialled_all_the_same():
    made = roster(40)
    for did in dids(40)[:30]:
        for _ in range(membership.GONE_AFTER):
            made.missed(did, NOW, 0.5)
    assert len(made.kept(NOW)) == 16


def test_partners_are_alive_linked_and_as_many_as_there_are():
    made = roster(5)
    linked = [*dids(5)[:3], Did("did:key:zStranger")]
    assert made.pick(3, pick, linked) == []
    for did in dids(5)[1:]:
        made.reached(did, NOW)
    assert set(made.pick(3, pick, linked)) == set(dids(5)[1:3])
    assert len(made.pick(1, pick, linked)) == 1
