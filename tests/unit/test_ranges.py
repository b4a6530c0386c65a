"""Sets of sequence numbers as ranges, against plain sets."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from relay.protocol.ids import Seq
from relay.protocol.types import Range, Reason
from relay.reference.ranges import Ranges, holes

OWN = {Reason.ACKED, Reason.REFUSED, Reason.MOVED}
additions = st.dictionaries(st.integers(1, 20), st.sampled_from(Reason), max_size=20)


def filled(added: dict[int, Reason]) -> Ranges:
    ranges = Ranges()
    for seq, reason in added.items():
        ranges.add(Seq(seq), reason)
    return ranges


def flat(ranges: object) -> dict[int, Reason]:
    return {n: item.reason for item in ranges for n in range(item.start, item.end + 1)}


@given(additions, st.randoms())
def test_ranges_are_a_set_of_seqs_however_they_were_added(added: dict[int, Reason], order):
    shuffled = list(added.items())
    order.shuffle(shuffled)
    ranges = filled(dict(shuffled))
    assert flat(ranges) == added
    assert list(ranges) == list(filled(added))


@given(additions)
def test_ranges_are_ascending_disjoint_and_as_few_as_can_be(added: dict[int, Reason]):
    items = list(filled(added))
    assert all(item.start <= item.end for item in items)
    for one, other in pairwise(items):
        assert one.end < other.start
        assert one.end + 1 < other.start or one.reason is not other.reason


@given(additions, st.integers(0, 21), st.integers(0, 21))
def test_the_parts_between_two_seqs_are_exactly_those_seqs(added, after: int, upto: int):
    parts = filled(added).between(Seq(after), Seq(upto))
    assert flat(parts) == {n: why for n, why in added.items() if after < n <= upto}
    assert all(part.start <= part.end for part in parts)


def absorbed(added: dict[int, Reason], cursor: int, upto: int) -> int:
    """The naive cursor: one step at a time."""
    while cursor + 1 in added and (added[cursor + 1] in OWN or cursor + 1 <= upto):
        cursor += 1
    return cursor


@given(additions, st.integers(0, 5), st.integers(0, 25))
def test_the_cursor_passes_what_the_agent_ended_and_the_rest_up_to_its_ack(added, cursor, upto):
    added = {n: why for n, why in added.items() if n > cursor}
    ranges = filled(added)
    moved = ranges.absorb(Seq(cursor), Seq(upto))
    assert moved == absorbed(added, cursor, upto)
    assert flat(ranges) == {n: why for n, why in added.items() if n > moved}
    assert ranges.absorb(moved, Seq(upto)) == moved


@given(additions, st.sets(st.integers(1, 20)), st.integers(0, 21), st.integers(0, 21))
def test_a_hole_is_what_is_neither_live_nor_explained(added, live: set[int], after, upto):
    found = holes(map(Seq, live), filled(added), Seq(after), Seq(upto))
    assert found == [n for n in range(after + 1, upto + 1) if n not in live and n not in added]


def test_neighbours_with_one_reason_become_one_range():
    ranges = filled({1: Reason.ACKED, 3: Reason.ACKED, 2: Reason.ACKED, 4: Reason.EXPIRED})
    assert list(ranges) == [
        Range(Seq(1), Seq(3), Reason.ACKED),
        Range(Seq(4), Seq(4), Reason.EXPIRED),
    ]


def test_an_expired_range_is_not_passed_before_the_agent_was_told():
    ranges = filled({1: Reason.EXPIRED, 2: Reason.EXPIRED, 3: Reason.ACKED})
    assert ranges.absorb(Seq(0), Seq(0)) == 0
    assert ranges.absorb(Seq(0), Seq(1)) == 1
    assert next(iter(ranges)) == Range(Seq(2), Seq(2), Reason.EXPIRED)
    assert ranges.absorb(Seq(1), Seq(2)) == 3
