"""Gossip: which news is told to whom, how much a peer may tell, and who tells lies (§5.10).

Rules of the file: news is passed on once, to a few peers, and then forgotten ("infect and die");
whom it does not reach learns it by anti-entropy, so whatever is dropped here is only late. Where it
begins it is told to all there are links to: of twenty relays, three each would miss one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from relay.protocol.errors import ErrorCode
from relay.protocol.frames.frames import (
    MAX_GOSSIP_BYTES,
    MAX_RECORDS,
    Gossip,
)
from relay.protocol.ids import (
    AgentKey,
    Did,
    Timestamp,
)

FANOUT: Final = 3
FIRST_FANOUT: Final = 16
"""Of what an agent of ours published: as many as a relay keeps links to."""
MAX_RUMORS: Final = 10_000
TAKE_MOST: Final = 100
"""Records taken at once; every half second, that is what the other side allows."""
PUSHED_PER_S: Final = 200.0
BURST_S: Final = 2.0
STRIKES: Final = 3
OUT_S: Final = 3600
MAX_PEERS: Final = 10_000
"""Of so many peers something is remembered; in open federation anybody is one: keys are free."""
_FRAME_BYTES: Final = 64
_RECORD_BYTES: Final = 3  # two quotes and a comma

Pick = Callable[[Sequence[Did], int], Sequence[Did]]
"""``pick(peers, k)`` gives k of them at random, or all where there are fewer."""


class _Rumor(NamedTuple):
    compact: str
    not_to: Did | None


class Rumors:
    """News that this node has not passed on yet: bounded, one record an agent, oldest first.

    Args:
        most: so many agents; what goes beyond is dropped and counted.
        fanout: what others told is passed on to so many peers.
    """

    def __init__(self, most: int = MAX_RUMORS, fanout: int = FANOUT) -> None:
        self._fanout = fanout
        self._most = most
        self._rumors: dict[AgentKey, _Rumor] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._rumors)

    def add(self, agent: AgentKey, compact: str, *, not_to: Did | None = None) -> bool:
        """A record that was kept just now takes the place of an older one; False if dropped.

        Args:
            agent: whose.
            compact: the signed record; it has been verified and kept.
            not_to: the peer that it came from; None: it begins here.
        """
        if agent not in self._rumors and len(self._rumors) >= self._most:
            self.dropped += 1
            return False
        self._rumors[agent] = _Rumor(compact, not_to)
        return True

    def take(
        self, peers: Sequence[Did], pick: Pick, most: int = TAKE_MOST
    ) -> list[tuple[Did, Gossip]]:
        """What to push now, each record to some random peers; it is forgotten here.

        Args:
            peers: to whom there is a link; without any, nothing is taken.
            pick: chooses at random.
            most: records at most, so that no peer is told more than it allows.
        """
        if not peers:
            return []
        told: dict[Did, list[str]] = {}
        for agent in list(self._rumors)[:most]:
            rumor = self._rumors.pop(agent)
            others = [peer for peer in peers if peer != rumor.not_to]
            fanout = FIRST_FANOUT if rumor.not_to is None else self._fanout
            for peer in pick(others, min(fanout, len(others))):
                told.setdefault(peer, []).append(rumor.compact)
        return [(peer, frame) for peer, records in told.items() for frame in frames(records)]


def frames(records: Sequence[str], ref: str | None = None) -> list[Gossip]:
    """Records as gossip frames of at most 1 MiB and 1,024 records each."""
    made: list[Gossip] = []
    part: list[str] = []
    size = _FRAME_BYTES
    for compact in records:
        cost = len(compact) + _RECORD_BYTES
        if part and (size + cost > MAX_GOSSIP_BYTES or len(part) == MAX_RECORDS):
            made.append(Gossip(tuple(part), ref=ref))
            part, size = [], _FRAME_BYTES
        part.append(compact)
        size += cost
    if part:
        made.append(Gossip(tuple(part), ref=ref))
    return made


V = TypeVar("V")


def _remember(of: dict[Did, V], peer: Did, value: V) -> None:
    """Note something of a peer; who was longest not heard of gives way."""
    of.pop(peer, None)
    of[peer] = value
    if len(of) > MAX_PEERS:
        del of[next(iter(of))]


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
        _remember(self._buckets, peer, (tokens - allowed, now))
        return allowed

    def charge(self, peer: Did, count: int, now: Timestamp) -> None:
        """Count what is known afterwards only: that may go into debt, by one burst at most."""
        tokens = max(-self._most, self._tokens(peer, now) - count)
        _remember(self._buckets, peer, (tokens, now))

    def _tokens(self, peer: Did, now: Timestamp) -> float:
        tokens, at = self._buckets.get(peer, (self._most, now))
        return min(self._most, tokens + max(0.0, now - at) * self._per_s)

    def __len__(self) -> int:
        """How many buckets are kept."""
        return len(self._buckets)


@dataclass(frozen=True, slots=True)
class PeerStanding:
    """What is held against a peer.

    Args:
        strikes: of the last hour.
        retry_after: seconds until its gossip is listened to again; None = now.
    """

    strikes: int = 0
    retry_after: int | None = None

    @property
    def is_out(self) -> bool:
        """Its gossip is not looked at."""
        return self.retry_after is not None


PLAIN_WRONGS: Final = frozenset({ErrorCode.BAD_SIGNATURE, ErrorCode.BAD_FRAME, ErrorCode.TOO_LARGE})


def is_strike(code: ErrorCode, *, is_introduced: bool, is_edge_case: bool = False) -> bool:
    """Whether a refused record is held against the peer that it came from.

    Never for expiry, order, a clock, or a method or version that is unknown here: an honest peer
    may see those otherwise.

    Args:
        code: why the record was refused.
        is_introduced: the peer brought it itself; it did not repeat what others hold.
        is_edge_case: its signature is one that verifiers judge differently
            (:func:`relay.protocol.jws.is_plainly_forged` says no).
    """
    return is_introduced and code in PLAIN_WRONGS and not is_edge_case


class Conduct:
    """Strikes: three within an hour, and a peer's gossip is not looked at for an hour."""

    def __init__(self) -> None:
        self._strikes: dict[Did, list[Timestamp]] = {}
        self._out_until: dict[Did, Timestamp] = {}

    def strike(self, peer: Did, now: Timestamp) -> PeerStanding:
        """One more; gives how the peer stands now. Whoever is out is not struck further."""
        if not self.standing(peer, now).is_out:
            recent = [*self._recent(peer, now), now]
            if len(recent) < STRIKES:
                _remember(self._strikes, peer, recent)
            else:
                self._strikes.pop(peer, None)
                _remember(self._out_until, peer, Timestamp(now + OUT_S))
        return self.standing(peer, now)

    def standing(self, peer: Did, now: Timestamp) -> PeerStanding:
        """How a peer stands; a strike is forgotten after an hour, all of them after one out."""
        until = self._out_until.get(peer, now)
        if until > now:
            return PeerStanding(STRIKES, int(until - now) + 1)
        self._out_until.pop(peer, None)
        return PeerStanding(len(self._recent(peer, now)))

    def _recent(self, peer: Did, now: Timestamp) -> list[Timestamp]:
        recent = [at for at in self._strikes.get(peer, []) if at > now - OUT_S]
        if not recent:
            self._strikes.pop(peer, None)
        return recent

    def __len__(self) -> int:
        """Of how many peers something is remembered."""
        return len(self._strikes) + len(self._out_until)
