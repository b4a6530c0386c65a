"""Token buckets of a node: of proven senders, and of networks that strangers write from (R7).

A Redis round trip per check would cost more than the check protects, so n nodes allow a sender up
to n times the rate; quotas in the inbox are exact and shared.
"""

from __future__ import annotations

from typing import Final

from relay import clock
from relay.protocol.ids import AgentKey

MAX_SENDERS: Final = 100_000
MINUTE_S: Final = 60


class _Buckets:
    """One bucket a name: holds a minute's worth, refills steadily.

    Args:
        per_minute: how much flows in.
        most_names: so many buckets are kept; then those that are full again are forgotten.
    """

    def __init__(self, per_minute: int, most_names: int) -> None:
        self.rate = per_minute / MINUTE_S
        self._most = float(per_minute)
        self._most_names = most_names
        self._buckets: dict[str, tuple[float, float]] = {}

    def tokens(self, name: str, now: float) -> float:
        """What is in a bucket."""
        tokens, at = self._buckets.get(name, (self._most, now))
        return min(self._most, tokens + (now - at) * self.rate)

    def put(self, name: str, tokens: float, now: float) -> None:
        """Write down what is in it."""
        if name not in self._buckets and len(self._buckets) >= self._most_names:
            self._forget(now)
        self._buckets[name] = (tokens, now)

    def _forget(self, now: float) -> None:
        """A bucket untouched for a minute is full again; of the others the longest untouched go."""
        kept = [(at, name) for name, (_, at) in self._buckets.items() if now - at < MINUTE_S]
        kept.sort(reverse=True)
        half = self._most_names // 2
        self._buckets = {name: self._buckets[name] for _, name in kept[:half]}

    def __len__(self) -> int:
        return len(self._buckets)


class SenderRates:
    """One bucket a sender.

    Args:
        per_minute: envelopes a minute of one sender.
        max_senders: so many buckets are kept.
    """

    def __init__(self, per_minute: int, max_senders: int = MAX_SENDERS) -> None:
        self._buckets = _Buckets(per_minute, max_senders)

    def take(self, sender: AgentKey) -> float:
        """Take a token; gives 0, or the seconds until there is one."""
        now = clock.monotonic()
        tokens = self._buckets.tokens(sender, now)
        left = tokens if tokens < 1 else tokens - 1
        self._buckets.put(sender, left, now)
        return (1 - tokens) / self._buckets.rate if tokens < 1 else 0.0

    def __len__(self) -> int:
        """How many buckets are kept."""
        return len(self._buckets)


class StrangerRates:
    """One bucket a network. Only an inbox knows who is a stranger, so they are charged afterwards.

    What is under way when a bucket runs empty goes into debt, by at most a minute's worth.

    Args:
        per_minute: envelopes a minute of all strangers of one network.
        max_networks: so many buckets are kept.
    """

    def __init__(self, per_minute: int, max_networks: int = MAX_SENDERS) -> None:
        self._buckets = _Buckets(per_minute, max_networks)
        self._least = -float(per_minute)

    def wait(self, network: str) -> float:
        """Seconds until strangers of this network may write again; 0 = now."""
        tokens = self._buckets.tokens(network, clock.monotonic())
        return max(0.0, (1 - tokens) / self._buckets.rate)

    def charge(self, network: str, count: int = 1) -> None:
        """Count envelopes of strangers."""
        now = clock.monotonic()
        tokens = self._buckets.tokens(network, now) - count
        self._buckets.put(network, max(tokens, self._least), now)

    def __len__(self) -> int:
        """How many buckets are kept."""
        return len(self._buckets)
