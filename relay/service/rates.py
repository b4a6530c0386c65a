"""Token buckets of proven senders, local to a node (GUARANTEES.md R7).

A Redis round trip per check would cost more than the check protects, so n nodes allow a
sender up to n times the rate; quotas in the inbox are exact and shared.
"""

from __future__ import annotations

from typing import Final

from cachetools import TTLCache

from relay import clock
from relay.core.ids import AgentKey

MAX_SENDERS: Final = 100_000


class SenderRates:
    """One bucket a sender: holds a minute's worth, refills steadily.

    Args:
        per_minute: envelopes a minute of one sender.
    """

    def __init__(self, per_minute: int) -> None:
        self._rate = per_minute / 60
        self._most = float(per_minute)
        # a bucket untouched for a minute is full again, so it may be forgotten
        self._buckets: TTLCache[AgentKey, tuple[float, float]] = TTLCache(
            MAX_SENDERS, ttl=60, timer=clock.monotonic
        )

    def take(self, sender: AgentKey) -> float:
        """Take a token; gives 0, or the seconds until there is one."""
        now = clock.monotonic()
        tokens, at = self._buckets.get(sender, (self._most, now))
        tokens = min(self._most, tokens + (now - at) * self._rate)
        if tokens < 1:
            self._buckets[sender] = (tokens, now)
            return (1 - tokens) / self._rate
        self._buckets[sender] = (tokens - 1, now)
        return 0.0
