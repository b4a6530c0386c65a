"""Token buckets of proven senders, local to a node (GUARANTEES.md R7).

A Redis round trip per check would cost more than the check protects, so n nodes allow a sender up
to n times the rate; quotas in the inbox are exact and shared.
"""

from __future__ import annotations

from typing import Final

from relay import clock
from relay.core.ids import AgentKey

MAX_SENDERS: Final = 100_000
MINUTE_S: Final = 60


class SenderRates:
    """One bucket a sender: holds a minute's worth, refills steadily.

    Args:
        per_minute: envelopes a minute of one sender.
        max_senders: so many buckets are kept; then those that are full again are forgotten.
    """

    def __init__(self, per_minute: int, max_senders: int = MAX_SENDERS) -> None:
        self._rate = per_minute / MINUTE_S
        self._most = float(per_minute)
        self._max_senders = max_senders
        self._buckets: dict[AgentKey, tuple[float, float]] = {}

    def take(self, sender: AgentKey) -> float:
        """Take a token; gives 0, or the seconds until there is one."""
        now = clock.monotonic()
        tokens, at = self._buckets.get(sender) or self._new(now)
        tokens = min(self._most, tokens + (now - at) * self._rate)
        if tokens < 1:
            self._buckets[sender] = (tokens, now)
            return (1 - tokens) / self._rate
        self._buckets[sender] = (tokens - 1, now)
        return 0.0

    def _new(self, now: float) -> tuple[float, float]:
        if len(self._buckets) >= self._max_senders:
            self._forget(now)
        return self._most, now

    def _forget(self, now: float) -> None:
        """A bucket untouched for a minute is full again; of the others the longest untouched go."""
        kept = [(at, sender) for sender, (_, at) in self._buckets.items() if now - at < MINUTE_S]
        kept.sort(reverse=True)
        half = self._max_senders // 2
        self._buckets = {sender: self._buckets[sender] for _, sender in kept[:half]}

    def __len__(self) -> int:
        """How many buckets are kept."""
        return len(self._buckets)
