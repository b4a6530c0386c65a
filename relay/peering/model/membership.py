"""Decide which relays to link with and when to dial them (PROTOCOL.md §5.10).

This is the only dial policy: the links of a node and the simulation both ask
:meth:`MemberTable.due`. A state holds what *this* relay found when it dialled; no relay speaks for
another. A peer that is gone is dialled less often, but for ever.

::

    event           alive      suspect                      gone
    link_up         alive      alive                        alive
    dial_failed     suspect    suspect; gone at the 10th    gone
    info_received   alive      suspect                      suspect, dialled at once
    inbound_login   alive      suspect, dialled soon        suspect, dialled soon

``info_received`` is newer signed relay information from anybody: the peer was alive when it signed.
``inbound_login`` is the peer's own login here: mostly it can be reached, too.

Example: a new peer is ``suspect`` and due at once. Its dial fails, so it is due again after 1 to
2 s, then 1 to 4 s, and so on. After 10 failures it is ``gone``. Then it logs in here: it is
``suspect`` and due within :data:`LOGIN_DIAL_S`. The dial succeeds, and it is ``alive``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from relay.protocol import frames
from relay.protocol.backoff import doubling_pause_s
from relay.protocol.ids import Did, Timestamp

MAX_DESIRED_LINKS: Final = 16
"""Links to relays that others named; relays that the operator added come on top."""
GOSSIP_FANOUT: Final = 3
"""Random peers that get news which another peer sent."""
ROTATED_LINKS: Final = 4
"""In a large mesh so many of the links change their peers every :data:`ROTATION_S`."""
ROTATION_S: Final = 3600
FIRST_BACKOFF_S: Final = 1.0
MAX_BACKOFF_S: Final = 300.0
MAX_DESIRED_BACKOFF_S: Final = 15.0
"""For a peer with a desired link: it is one of few, so it is dialled often."""
LOGIN_DIAL_S: Final = 5.0
"""A peer that logs in here often and cannot be reached is dialled no more often than this."""
STABLE_LINK_S: Final = 5.0
"""A link that ends sooner counts as one more failure in a row."""
MAX_FAILURES: Final = 10
"""Failures in a row until a peer is gone; with the back-off that takes about a minute."""

Event = Literal["link_up", "dial_failed", "failed_often", "info_received", "inbound_login"]

TRANSITIONS: Final[dict[tuple[frames.Membership, Event], frames.Membership]] = {
    ("alive", "link_up"): "alive",
    ("alive", "dial_failed"): "suspect",
    ("alive", "failed_often"): "suspect",
    ("alive", "info_received"): "alive",
    ("alive", "inbound_login"): "alive",
    ("suspect", "link_up"): "alive",
    ("suspect", "dial_failed"): "suspect",
    ("suspect", "failed_often"): "gone",
    ("suspect", "info_received"): "suspect",
    ("suspect", "inbound_login"): "suspect",
    ("gone", "link_up"): "alive",
    ("gone", "dial_failed"): "gone",
    ("gone", "failed_often"): "gone",
    ("gone", "info_received"): "suspect",
    ("gone", "inbound_login"): "suspect",
}


@dataclass(slots=True)
class PeerState:
    """The dial history of one peer.

    Args:
        did: the peer.
        state: ``suspect`` until a first link stands.
        since: start of the state, Unix seconds; 0 = never dialled.
        failures: in a row.
        dial_at: earliest time of the next dial.
        reached_at: when the last link came up.
        failed_at: when the last dial failed.
        reason: of the last failure, for the operator.
    """

    did: Did
    state: frames.Membership = "suspect"
    since: int = 0
    failures: int = 0
    dial_at: Timestamp = Timestamp(0)
    reached_at: Timestamp = Timestamp(0)
    failed_at: Timestamp = Timestamp(0)
    reason: str | None = None


def backoff_s(failures: int, fraction: float, max_s: float = MAX_BACKOFF_S) -> float:
    """Return the seconds to wait after failures in a row: full jitter between 1 s and ``max_s``.

    Args:
        failures: at least 1.
        fraction: random, 0 … 1.
        max_s: upper bound of the wait.
    """
    ceiling = doubling_pause_s(failures, FIRST_BACKOFF_S, max_s)
    return FIRST_BACKOFF_S + fraction * (ceiling - FIRST_BACKOFF_S)


class MemberTable:
    """The peers of a relay and their dial history.

    Args:
        own: this relay; never a peer of its own.
    """

    def __init__(self, own: Did) -> None:
        self._own = own
        self._peers: dict[Did, PeerState] = {}
        self._rankings: dict[str, list[Did]] = {}
        self.pinned: frozenset[Did] = frozenset()
        """Relays that the operator added: each gets a link, however many others there are."""

    def __len__(self) -> int:
        return len(self._peers)

    def __contains__(self, did: Did) -> bool:
        return did in self._peers

    def __iter__(self) -> Iterator[PeerState]:
        return iter(list(self._peers.values()))

    def get(self, did: Did) -> PeerState | None:
        """Return the state of a peer; None if it is not in the table."""
        return self._peers.get(did)

    def add(self, did: Did) -> bool:
        """Add a peer, due at once; return False if it is there already, or is this relay."""
        if did == self._own or did in self._peers:
            return False
        self._peers[did] = PeerState(did)
        self._rankings.clear()
        return True

    def remove(self, did: Did) -> bool:
        """Remove a peer; return False if it was not there."""
        self._rankings.clear()
        return self._peers.pop(did, None) is not None

    # ------------------------------------------------------------ events

    def on_link_up(self, did: Did, now: Timestamp) -> bool:
        """Record that a dial succeeded; return True if the state changed."""
        peer = self._peers.get(did)
        if peer is None:
            return False
        peer.dial_at, peer.reached_at, peer.reason = now, now, None
        return _move(peer, "link_up", now)

    def on_dial_failed(
        self,
        did: Did,
        now: Timestamp,
        fraction: float,
        reason: str | None = None,
        *,
        min_s: float = 0.0,
    ) -> bool:
        """Record that a dial failed or a link broke; return True if the state changed.

        Args:
            did: the peer.
            now: the wall clock.
            fraction: random, 0 … 1; spreads the next dial.
            reason: for the operator.
            min_s: the pause that the peer asked for; at most 300 s of it count.
        """
        peer = self._peers.get(did)
        if peer is None:
            return False
        was_stable = peer.state == "alive" and now - peer.reached_at >= STABLE_LINK_S
        peer.failures = 1 if was_stable else peer.failures + 1
        moved = _move(peer, "dial_failed" if peer.failures < MAX_FAILURES else "failed_often", now)
        wait_s = backoff_s(peer.failures, fraction, self.max_backoff_s(did, now))
        if was_stable:
            # the link broke, but no dial has failed yet
            wait_s = fraction * FIRST_BACKOFF_S
        peer.dial_at = Timestamp(now + max(wait_s, min(min_s, MAX_BACKOFF_S)))
        peer.failed_at, peer.reason = now, reason
        return moved

    def on_info(self, did: Did, now: Timestamp) -> bool:
        """Record newer relay information; return True if the state changed."""
        peer = self._peers.get(did)
        if peer is None:
            return False
        if peer.state == "gone":
            peer.failures, peer.dial_at = 0, now
        return _move(peer, "info_received", now)

    def on_inbound_login(self, did: Did, now: Timestamp) -> bool:
        """Record that a peer logged in here; return True if its next dial comes sooner now."""
        peer = self._peers.get(did)
        if peer is None:
            return False
        soon = max(now, Timestamp(peer.failed_at + LOGIN_DIAL_S))
        if did in self.pinned:
            # only the operator vouches for addresses; else anybody could have any one dialled
            peer.failures, soon = 0, now
        is_sooner = soon < peer.dial_at
        peer.dial_at = min(soon, peer.dial_at)
        _move(peer, "inbound_login", now)
        return is_sooner

    def dial_now(self, did: Did, now: Timestamp) -> None:
        """Make a peer due: the operator asked for it, or its address changed."""
        peer = self._peers.get(did)
        if peer is not None:
            peer.dial_at = min(now, peer.dial_at)

    # ------------------------------------------------------------ policy

    def desired(self, now: Timestamp) -> frozenset[Did]:
        """Return the peers to hold links with: all of few, else a stable choice, slowly rotated.

        Relays that the operator added are never crowded out by those that others named. The choice
        differs from relay to relay, so all links together form a random graph.
        """
        here = {peer.did for peer in self._peers.values() if peer.state != "gone"}
        chosen = self._chosen(here if len(here) >= MAX_DESIRED_LINKS else self._peers.keys(), now)
        return chosen | (self.pinned & self._peers.keys())

    def due(self, now: Timestamp, linked: Collection[Did] = ()) -> list[Did]:
        """Return the peers to dial now.

        The list includes gone peers that the choice would hold if they were alive. Else the two
        halves of a split mesh would never dial each other again.

        Args:
            now: the wall clock.
            linked: peers with a link, or with a dial under way.
        """
        return [did for at, did in self._dials(now, linked) if at <= now]

    def next_dial_at(self, now: Timestamp, linked: Collection[Did] = ()) -> Timestamp | None:
        """Return the time of the next dial; None if every desired link stands."""
        return min((at for at, _ in self._dials(now, linked)), default=None)

    def max_backoff_s(self, did: Did, now: Timestamp) -> float:
        """Return the longest pause between two dials of a peer."""
        return MAX_DESIRED_BACKOFF_S if did in self.desired(now) else MAX_BACKOFF_S

    def view(
        self, did: Did, ref: str, *, strikes: int = 0, retry_after: int | None = None
    ) -> frames.View:
        """Return the answer to a peer that asks how this relay sees it."""
        peer = self._peers.get(did) or PeerState(did)
        return frames.View(ref, peer.state, peer.since, strikes, retry_after, peer.reason)

    def _dials(self, now: Timestamp, linked: Collection[Did]) -> list[tuple[Timestamp, Did]]:
        wanted = self.desired(now) | self._chosen(self._peers.keys(), now)
        return [(self._due_at(did, now), did) for did in sorted(wanted) if did not in linked]

    def _due_at(self, did: Did, now: Timestamp) -> Timestamp:
        # a clock that was set back must not delay a dial by more than the longest back-off
        at = self._peers[did].dial_at
        return at if at <= now + MAX_BACKOFF_S else now

    def _chosen(self, dids: Collection[Did], now: Timestamp) -> frozenset[Did]:
        if len(dids) <= MAX_DESIRED_LINKS:
            return frozenset(dids)
        stable = [did for did in self._ranked("stable") if did in dids]
        stable = stable[: MAX_DESIRED_LINKS - ROTATED_LINKS]
        hourly = [did for did in self._ranked(str(int(now // ROTATION_S))) if did in dids]
        others = [did for did in hourly[:MAX_DESIRED_LINKS] if did not in stable]
        return frozenset(stable + others[:ROTATED_LINKS])

    def _ranked(self, salt: str) -> list[Did]:
        """Return all peers in an order of this relay's own; cached, since callers ask often."""
        found = self._rankings.get(salt)
        if found is None:
            if len(self._rankings) > 1:
                self._rankings.clear()
            found = sorted(self._peers, key=lambda did: self._rank(did, salt))
            self._rankings[salt] = found
        return found

    def _rank(self, did: Did, salt: str) -> bytes:
        return hashlib.sha256(f"{salt}\0{self._own}\0{did}".encode()).digest()


def _move(peer: PeerState, event: Event, now: Timestamp) -> bool:
    state = TRANSITIONS[peer.state, event]
    if state == peer.state and peer.since:
        return False
    peer.state, peer.since = state, int(now)
    return True
