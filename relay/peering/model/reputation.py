"""Count what a peer did wrong, and decide when its gossip is ignored (PROTOCOL.md §5.10).

A peer whose gossip no honest relay would pass on gets a strike. Three strikes within an hour block
its gossip for an hour; a strike expires after an hour.

Entry points: :func:`is_strike` is the only rule for what counts; :class:`StrikeCounter` counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar

from relay.protocol.errors import ErrorCode
from relay.protocol.ids import Did, Timestamp

PUSHED_PER_S: Final = 200.0
BURST_S: Final = 2.0
MAX_STRIKES: Final = 3
BLOCK_S: Final = 3600
"""How long a peer is blocked, and how long a strike counts."""
MAX_PEERS: Final = 10_000
"""Bound of each table; in open federation anybody is a peer, since keys are free."""
STRIKE_CODES: Final = frozenset({ErrorCode.BAD_SIGNATURE, ErrorCode.BAD_FRAME, ErrorCode.TOO_LARGE})

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Reputation:
    """The strikes of a peer, and the block that follows from them.

    Args:
        strikes: of the last hour.
        retry_after: seconds until the block ends; None if the peer is not blocked.
    """

    strikes: int = 0
    retry_after: int | None = None

    @property
    def is_blocked(self) -> bool:
        """True while the peer's gossip is ignored."""
        return self.retry_after is not None


def is_strike(code: ErrorCode, *, is_edge_case: bool = False) -> bool:
    """Return True if a record refused with ``code`` is a strike against the peer that sent it.

    Expiry, version order, a clock, and an unknown method or version are no strike: an honest peer
    may judge those differently.

    Args:
        code: the reason for the refusal.
        is_edge_case: verifiers disagree about the signature
            (:func:`relay.protocol.jws.is_plainly_forged` returned False).
    """
    return code in STRIKE_CODES and not is_edge_case


class StrikeCounter:
    """Strikes and blocks of all peers, bounded; the peer touched longest ago is dropped first."""

    def __init__(self) -> None:
        self._strikes: dict[Did, list[Timestamp]] = {}
        self._blocked_until: dict[Did, Timestamp] = {}

    def __len__(self) -> int:
        return len(self._strikes) + len(self._blocked_until)

    def add(self, peer: Did, now: Timestamp) -> Reputation:
        """Count a strike, and return the reputation after it; a blocked peer gets no more."""
        if not self.reputation(peer, now).is_blocked:
            recent = [*self._recent(peer, now), now]
            if len(recent) < MAX_STRIKES:
                _put(self._strikes, peer, recent)
            else:
                self._strikes.pop(peer, None)
                _put(self._blocked_until, peer, Timestamp(now + BLOCK_S))
        return self.reputation(peer, now)

    def reputation(self, peer: Did, now: Timestamp) -> Reputation:
        """Return the reputation of a peer; after a block it starts again without strikes."""
        until = self._blocked_until.get(peer, now)
        if until > now:
            return Reputation(MAX_STRIKES, int(until - now) + 1)
        self._blocked_until.pop(peer, None)
        return Reputation(len(self._recent(peer, now)))

    def _recent(self, peer: Did, now: Timestamp) -> list[Timestamp]:
        recent = [at for at in self._strikes.get(peer, []) if at > now - BLOCK_S]
        if not recent:
            self._strikes.pop(peer, None)
        return recent


def _put(table: dict[Did, V], peer: Did, value: V) -> None:
    table.pop(peer, None)
    table[peer] = value
    if len(table) > MAX_PEERS:
        del table[next(iter(table))]


class Allowance:
    """How many unsolicited records each peer may push: a token bucket a peer.

    Args:
        per_s: how many flow in.
        burst_s: so many seconds' worth fit.
    """

    def __init__(self, per_s: float = PUSHED_PER_S, burst_s: float = BURST_S) -> None:
        self._per_s = per_s
        self._most = per_s * burst_s
        self._buckets: dict[Did, tuple[float, Timestamp]] = {}

    def take(self, peer: Did, count: int, now: Timestamp) -> int:
        """How many of ``count`` records are listened to; the others are dropped unread."""
        tokens = self._tokens(peer, now)
        allowed = min(count, max(0, int(tokens)))
        _put(self._buckets, peer, (tokens - allowed, now))
        return allowed

    def charge(self, peer: Did, count: int, now: Timestamp) -> None:
        """Count what is known afterwards only: that may go into debt, by one burst at most."""
        tokens = max(-self._most, self._tokens(peer, now) - count)
        _put(self._buckets, peer, (tokens, now))

    def _tokens(self, peer: Did, now: Timestamp) -> float:
        tokens, at = self._buckets.get(peer, (self._most, now))
        return min(self._most, tokens + max(0.0, now - at) * self._per_s)

    def __len__(self) -> int:
        """How many buckets are kept."""
        return len(self._buckets)
