"""The memory of envelope ids: what it remembers, forgets and refuses."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from relay.inbox.model.types import Disposition
from relay.protocol.ids import Eid, Seq
from relay.reference.dedupe import MIN_DEDUP_HOURS, Dedupe, Seen

steps = st.lists(
    st.tuples(
        st.sampled_from(["remember", "conclude", "shed", "purge"]),
        st.integers(0, 5),
        st.integers(0, 3),
        st.integers(0, 100),
    ),
    max_size=30,
)


def name(hour: int, n: int) -> bytes:
    return f"{hour}/{n}".encode()


class Pair:
    """The memory, and beside it the dumbest thing that could be right: a dictionary of hours."""

    def __init__(self) -> None:
        self.memory = Dedupe()
        self.hours: dict[int, dict[int, Disposition]] = {}
        self.expiry: dict[int, int] = {}

    def remember(self, hour: int, n: int, at: int) -> None:
        self.memory.remember(hour, name(hour, n), Seen(Eid("e"), Seq(1), Disposition.STORED), at)
        self.hours.setdefault(hour, {})[n] = Disposition.STORED
        self.expiry[hour] = max(self.expiry.get(hour, 0), at)

    def conclude(self, hour: int, n: int, _: int) -> None:
        self.memory.conclude(hour, name(hour, n), Disposition.ACKED)
        if n in self.hours.get(hour, {}):
            self.hours[hour][n] = Disposition.ACKED

    def shed(self, _hour: int, _n: int, _at: int) -> None:
        if self.memory.can_shed():
            oldest = min(self.hours)
            floor = max(self.memory.floor, oldest)
            assert self.memory.shed() == len(self.hours[oldest])
            assert self.memory.floor == floor
            self.forget(oldest)

    def purge(self, _hour: int, _n: int, at: int) -> None:
        floor = self.memory.floor
        self.memory.purge(at)
        assert self.memory.floor == floor
        for hour in [hour for hour in self.hours if self.expiry[hour] < at]:
            self.forget(hour)

    def forget(self, hour: int) -> None:
        del self.hours[hour], self.expiry[hour]


@given(steps)
def test_the_memory_is_a_dictionary_that_forgets_whole_hours(taken: list):
    pair = Pair()
    for what, *given_to in taken:
        getattr(pair, what)(*given_to)
    assert len(pair.memory) == sum(map(len, pair.hours.values()))
    for hour, n in itertools.product(range(6), range(4)):
        seen = pair.memory.find(hour, name(hour, n))
        assert (seen.disposition if seen else None) == pair.hours.get(hour, {}).get(n)


def test_the_newest_two_hours_are_never_dropped():
    memory = Dedupe()
    for hour in range(5):
        memory.remember(hour, b"k", Seen(Eid("e"), Seq(1), Disposition.STORED), 0)
    dropped = []
    while memory.can_shed():
        memory.shed()
        dropped.append(memory.floor)
    assert dropped == [0, 1, 2]
    assert len(memory.hours) == MIN_DEDUP_HOURS
    assert memory.find(2, b"k") is None
    assert memory.find(3, b"k") is not None


def test_dropping_an_older_hour_again_never_lowers_the_floor():
    memory = Dedupe(floor=9)
    for hour in (1, 10, 11):
        memory.remember(hour, b"k", Seen(Eid("e"), Seq(1), Disposition.STORED), 0)
    assert memory.shed() == 1
    assert memory.floor == 9


def test_an_hour_stays_until_its_last_id_has_expired():
    memory = Dedupe()
    memory.remember(1, b"early", Seen(Eid("e"), Seq(1), Disposition.STORED), 100)
    memory.remember(1, b"late", Seen(Eid("e"), Seq(2), Disposition.STORED), 200)
    memory.purge(200)
    assert len(memory) == 2
    memory.purge(201)
    assert len(memory) == 0
    assert memory.floor == -1


def test_a_fate_is_one_letter_and_letters_differ():
    assert {len(disposition) for disposition in Disposition} == {1}
    assert len({str(disposition) for disposition in Disposition}) == len(Disposition) == 8
