"""Count what a peer did wrong, and decide when to ban it from gossip (PROTOCOL.md §5.10).

A peer whose gossip no honest relay would pass on gets a strike. Three strikes within an hour ban
its gossip for an hour; a strike expires after an hour.

Entry points: :func:`is_strike` is the only rule for what counts; :class:`StrikeCounter` counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar

from relay.protocol.errors import ErrorCode
from relay.protocol.ids import Did, Timestamp

MAX_STRIKES: Final = 3
BAN_S: Final = 3600
"""How long a peer is banned, and how long a strike counts."""
MAX_PEERS: Final = 10_000
"""Bound of each table; in open federation anybody is a peer, since keys are free."""
STRIKE_CODES: Final = frozenset({ErrorCode.BAD_SIGNATURE, ErrorCode.BAD_FRAME, ErrorCode.TOO_LARGE})

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Reputation:
    """The strikes of a peer, and the ban that follows from them.

    Args:
        strikes: of the last hour.
        retry_after: seconds until the ban ends; None if the peer is not banned.
    """

    strikes: int = 0
    retry_after: int | None = None

    @property
    def is_banned(self) -> bool:
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
    """Strikes and bans of all peers, bounded; the peer touched longest ago is dropped first."""

    def __init__(self) -> None:
        self._strikes: dict[Did, list[Timestamp]] = {}
        self._banned_until: dict[Did, Timestamp] = {}

    def __len__(self) -> int:
        return len(self._strikes) + len(self._banned_until)

    def add(self, peer: Did, now: Timestamp) -> Reputation:
        """Count a strike, and return the reputation after it; a banned peer gets no more."""
        if not self.reputation(peer, now).is_banned:
            recent = [*self._recent(peer, now), now]
            if len(recent) < MAX_STRIKES:
                _put(self._strikes, peer, recent)
            else:
                self._strikes.pop(peer, None)
                _put(self._banned_until, peer, Timestamp(now + BAN_S))
        return self.reputation(peer, now)

    def reputation(self, peer: Did, now: Timestamp) -> Reputation:
        """Return the reputation of a peer; after a ban it starts again without strikes."""
        until = self._banned_until.get(peer, now)
        if until > now:
            return Reputation(MAX_STRIKES, int(until - now) + 1)
        self._banned_until.pop(peer, None)
        return Reputation(len(self._recent(peer, now)))

    def _recent(self, peer: Did, now: Timestamp) -> list[Timestamp]:
        recent = [at for at in self._strikes.get(peer, []) if at > now - BAN_S]
        if not recent:
            self._strikes.pop(peer, None)
        return recent


def _put(table: dict[Did, V], peer: Did, value: V) -> None:
    table.pop(peer, None)
    table[peer] = value
    if len(table) > MAX_PEERS:
        del table[next(iter(table))]
