"""Rate limits and the bounded cache of a node."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.limits import BoundedTtl, TokenBuckets


def test_a_bucket_holds_a_minutes_worth_and_refills():
    rates = TokenBuckets[str].per_minute(60)
    assert [rates.try_acquire("a", 0.0) for _ in range(60)] == [0.0] * 60
    assert rates.try_acquire("a", 0.0) == 1.0
    assert rates.try_acquire("b", 0.0) == 0.0
    assert rates.try_acquire("a", 1.0) == 0.0
    assert rates.try_acquire("a", 1.0) > 0


def test_buckets_are_bounded_and_the_latest_stay():
    rates = TokenBuckets[int].per_minute(1, max_keys=10)
    for number in range(100):
        assert rates.try_acquire(number, number / 1000) == 0.0
        assert len(rates) <= 10
    assert rates.try_acquire(99, 0.1) > 0


def test_a_bucket_in_debt_waits_and_is_free_again():
    rates = TokenBuckets[str].per_minute(60, max_keys=2)
    assert rates.wait_s("a", 0.0) == 0.0
    for _ in range(60):
        rates.charge("a", 1, 0.0)
    assert rates.wait_s("a", 0.0) == 1.0
    for _ in range(1_000):
        rates.charge("a", 1, 0.0)
    assert rates.wait_s("a", 0.0) == 61.0  # the debt is bounded
    assert rates.wait_s("b", 0.0) == 0.0
    assert rates.wait_s("a", 61.0) == 0.0
    for name in ("b", "c", "d", "e"):
        rates.charge(name, 1, 61.0)
        assert len(rates) <= 2


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 2000)), max_size=40))
def test_no_key_acquires_more_than_its_rate_and_one_burst(calls: list[tuple[float, int]]):
    rates = TokenBuckets[str](200.0, 400.0)
    passed, total = 0.0, 0
    for wait, count in calls:
        passed += wait
        acquired = rates.acquire_up_to("a", count, passed)
        assert 0 <= acquired <= count
        total += acquired
    assert total <= 400 + 200 * passed + 1


def test_a_clock_that_goes_back_refills_nothing():
    rates = TokenBuckets[str](200.0, 400.0)
    assert rates.acquire_up_to("a", 400, 100.0) == 400
    assert rates.acquire_up_to("a", 10, 0.0) == 0


def test_a_debt_is_paid_back_before_anything_is_acquired_again():
    rates = TokenBuckets[str](200.0, 400.0)
    assert rates.acquire_up_to("a", 400, 0.0) == 400
    rates.charge("a", 100, 0.0)
    assert rates.acquire_up_to("a", 1, 0.5) == 0
    assert rates.acquire_up_to("a", 1_000, 1.0) == 100
    rates.charge("a", 1_000_000, 1.0)
    assert rates.acquire_up_to("a", 1_000, 3.0) == 0
    assert rates.acquire_up_to("a", 1_000, 4.0) == 200


def test_cached_values_lapse():
    cache = BoundedTtl[str, int]()
    cache.put("a", 1, until=10.0)
    assert (cache.get("a", 9.9), cache.get("a", 10.0), cache.get("b", 0.0)) == (1, None, None)
    cache.pop("a")
    cache.pop("a")
    assert cache.get("a", 0.0) is None
    assert len(cache) == 0


def test_a_full_cache_drops_the_value_that_was_put_first():
    cache = BoundedTtl[int, int](max_keys=3)
    for number in range(3):
        cache.put(number, number, until=10.0)
    cache.put(0, 7, until=10.0)
    cache.put(3, 3, until=10.0)
    assert [cache.get(number, 0.0) for number in range(4)] == [7, None, 2, 3]
    assert len(cache) == 3
