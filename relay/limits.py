"""Bounded memory of a node: token buckets (rate limits) and a cache whose values lapse.

Both hold a limited number of keys, so that made-up names cannot fill the memory. Above it the key
that was updated least recently is dropped. The caller passes the time, monotonic seconds.

A store call per check would cost more than the check protects. So n nodes of one relay allow up to
n times a rate (docs/adr/0011).
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

MAX_KEYS: Final = 100_000
MINUTE_S: Final = 60

K = TypeVar("K")
V = TypeVar("V")


class TokenBuckets(Generic[K]):
    """One token bucket a key, full at first.

    Args:
        per_s: tokens that flow in each second.
        capacity: tokens that fit; a burst may take as many at once.
        max_keys: buckets held.
    """

    def __init__(self, per_s: float, capacity: float, max_keys: int = MAX_KEYS) -> None:
        self._per_s = per_s
        self._capacity = float(capacity)
        self._max_keys = max_keys
        self._buckets: dict[K, tuple[float, float]] = {}

    @classmethod
    def per_minute(cls, count: int, max_keys: int = MAX_KEYS) -> TokenBuckets[K]:
        """Return buckets that hold a minute's worth."""
        return cls(count / MINUTE_S, count, max_keys)

    def try_acquire(self, key: K, now: float) -> float:
        """Take one token and return 0, or return the seconds until there is one."""
        tokens = self._tokens(key, now)
        if tokens < 1:
            return (1 - tokens) / self._per_s
        self._put(key, tokens - 1, now)
        return 0.0

    def acquire_up_to(self, key: K, count: int, now: float) -> int:
        """Take as many of ``count`` tokens as there are; return how many."""
        tokens = self._tokens(key, now)
        acquired = min(count, max(0, int(tokens)))
        self._put(key, tokens - acquired, now)
        return acquired

    def charge(self, key: K, count: float, now: float) -> None:
        """Take tokens for work already done; the debt is at most one full bucket."""
        self._put(key, max(-self._capacity, self._tokens(key, now) - count), now)

    def wait_s(self, key: K, now: float) -> float:
        """Return the seconds until there is a token; 0 = now."""
        return max(0.0, (1 - self._tokens(key, now)) / self._per_s)

    def _tokens(self, key: K, now: float) -> float:
        tokens, at = self._buckets.get(key, (self._capacity, now))
        return min(self._capacity, tokens + max(0.0, now - at) * self._per_s)

    def _put(self, key: K, tokens: float, now: float) -> None:
        _put_newest(self._buckets, key, (tokens, now), self._max_keys)

    def __len__(self) -> int:
        """Return the number of buckets held."""
        return len(self._buckets)


class BoundedTtl(Generic[K, V]):
    """A cache whose values lapse.

    Args:
        max_keys: values held.
    """

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._values: dict[K, tuple[float, V]] = {}

    def get(self, key: K, now: float) -> V | None:
        """Return the value; None where there is none, or it has lapsed."""
        found = self._values.get(key)
        return found[1] if found is not None and found[0] > now else None

    def put(self, key: K, value: V, until: float) -> None:
        """Hold a value until then."""
        _put_newest(self._values, key, (until, value), self._max_keys)

    def pop(self, key: K) -> None:
        """Drop a value, if there is one."""
        self._values.pop(key, None)

    def __len__(self) -> int:
        """Return the number of values held, lapsed ones too."""
        return len(self._values)


def _put_newest(entries: dict[K, V], key: K, value: V, max_keys: int) -> None:
    """Put an entry last; drop the one that was put longest ago if there are too many."""
    entries.pop(key, None)
    if len(entries) >= max_keys:
        del entries[next(iter(entries))]
    entries[key] = value
