"""Membership: which relays are known, which are reached, and whom to keep a link to (§5.10).

Rules of the file: a state says what *this* relay found when it dialled, nothing else: no relay
speaks for another. Being gone costs a peer nothing but patience; it is dialled for ever.

::

    event      alive      suspect                      gone
    reached    alive      alive                        alive
    missed     suspect    suspect; gone at the 10th    gone
    heard of   alive      suspect                      suspect, dialled at once
    seen       alive      suspect, dialled soon        suspect, dialled soon

``heard of`` is newer signed relay information from anybody: it was alive when it signed that.
``seen`` is its own login here: where it can reach us, we can mostly reach it.

This is the only schedule of dials: a node's links and the simulation both ask :meth:`Roster.due`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from relay.protocol import frames
from relay.protocol.backoff import doubling_pause_s
from relay.protocol.ids import (
    Did,
    Timestamp,
)

MAX_LINKS: Final = 16
ROTATED: Final = 4
"""Of the links of a large mesh, so many are to others every hour."""
ROTATION_S: Final = 3600
FIRST_BACKOFF_S: Final = 1.0
MAX_BACKOFF_S: Final = 300.0
KEPT_BACKOFF_S: Final = 15.0
"""A peer to which a link is kept is dialled at least this often: it is one of few."""
HURRY_S: Final = 5.0
"""Whoever logs in here often and cannot be reached is dialled no more often than this."""
STEADY_S: Final = 5.0
"""A link that ends sooner counts as one more miss in a row."""
GONE_AFTER: Final = 10
"""Misses in a row; with the back-off between them that takes about a minute."""

Event = Literal["reached", "missed", "missed_often", "heard", "seen"]

TRANSITIONS: Final[dict[tuple[frames.Membership, Event], frames.Membership]] = {
    ("alive", "reached"): "alive",
    ("alive", "missed"): "suspect",
    ("alive", "missed_often"): "suspect",
    ("alive", "heard"): "alive",
    ("suspect", "reached"): "alive",
    ("suspect", "missed"): "suspect",
    ("suspect", "missed_often"): "gone",
    ("suspect", "heard"): "suspect",
    ("gone", "reached"): "alive",
    ("gone", "missed"): "gone",
    ("gone", "missed_often"): "gone",
    ("gone", "heard"): "suspect",
    ("alive", "seen"): "alive",
    ("suspect", "seen"): "suspect",
    ("gone", "seen"): "suspect",
}


@dataclass(slots=True)
class Peer:
    """What is known of one peer.

    Args:
        did: who.
        state: a new peer is ``suspect`` until it was reached.
        since: when the state began; 0 = it was never dialled.
        misses: in a row.
        dial_at: not before.
        reached_at: when a dial came through last.
        missed_at: when a dial failed last.
        reason: why it was missed last, for a person.
    """

    did: Did
    state: frames.Membership = "suspect"
    since: int = 0
    misses: int = 0
    dial_at: Timestamp = Timestamp(0)
    reached_at: Timestamp = Timestamp(0)
    missed_at: Timestamp = Timestamp(0)
    reason: str | None = None


def backoff_s(misses: int, share: float, longest_s: float = MAX_BACKOFF_S) -> float:
    """Seconds to wait after so many misses in a row: full jitter between 1 s and ``longest_s``.

    Args:
        misses: at least 1.
        share: random, 0 … 1.
        longest_s: the wait never exceeds this.
    """
    ceiling = doubling_pause_s(misses, FIRST_BACKOFF_S, longest_s)
    return FIRST_BACKOFF_S + share * (ceiling - FIRST_BACKOFF_S)


Pick = Callable[[Sequence[Did], int], Sequence[Did]]
"""``pick(peers, k)`` gives k of them at random."""


class Roster:
    """All peers of a relay.

    Args:
        own: this relay; never a peer of its own.
    """

    def __init__(self, own: Did) -> None:
        self._own = own
        self._peers: dict[Did, Peer] = {}
        self._orders: dict[str, list[Did]] = {}
        self.pinned: frozenset[Did] = frozenset()
        """Whom the operator added: a link to each is kept, however many others there are."""

    def __len__(self) -> int:
        return len(self._peers)

    def __contains__(self, did: Did) -> bool:
        return did in self._peers

    def peers(self) -> list[Peer]:
        """All of them."""
        return list(self._peers.values())

    def add(self, did: Did) -> bool:
        """Know a peer, to be dialled at once; False if it is known, or is this relay itself."""
        if did == self._own or did in self._peers:
            return False
        self._peers[did] = Peer(did)
        self._orders.clear()
        return True

    def remove(self, did: Did) -> bool:
        """Forget a peer; False if it was not known."""
        self._orders.clear()
        return self._peers.pop(did, None) is not None

    def reached(self, did: Did, now: Timestamp) -> bool:
        """A dial came through, or a link answered; True if that changed its state."""
        peer = self._peers.get(did)
        if peer is None:
            return False
        peer.dial_at, peer.reached_at, peer.reason = now, now, None
        return _move(peer, "reached", now)

    def missed(
        self,
        did: Did,
        now: Timestamp,
        share: float,
        reason: str | None = None,
        *,
        least_s: float = 0.0,
    ) -> bool:
        """A dial failed, or a link broke; True if that changed its state.

        Args:
            did: whom.
            now: the wall clock.
            share: random, 0 … 1; it spreads the next dial.
            reason: for a person.
            least_s: the peer asked not to be dialled for so long; at most 300 s of it count.
        """
        peer = self._peers.get(did)
        if peer is None:
            return False
        was_steady = peer.state == "alive" and now - peer.reached_at >= STEADY_S
        peer.misses = 1 if was_steady else peer.misses + 1
        moved = _move(peer, "missed" if peer.misses < GONE_AFTER else "missed_often", now)
        wait_s = backoff_s(peer.misses, share, self.longest_s(did, now))
        if was_steady:
            # no dial has failed yet
            wait_s = share * FIRST_BACKOFF_S
        peer.dial_at = Timestamp(now + max(wait_s, min(least_s, MAX_BACKOFF_S)))
        peer.missed_at, peer.reason = now, reason
        return moved

    def longest_s(self, did: Did, now: Timestamp) -> float:
        """Seconds that a peer waits for its next dial, at most."""
        return KEPT_BACKOFF_S if did in self.kept(now) else MAX_BACKOFF_S

    def hurry(self, did: Did, now: Timestamp) -> None:
        """Dial a peer at once: the operator says so, or it has another address."""
        peer = self._peers.get(did)
        if peer is not None:
            peer.dial_at = min(now, peer.dial_at)

    def heard(self, did: Did, now: Timestamp) -> bool:
        """Somebody passed on newer relay information of it: a gone one is dialled at once."""
        peer = self._peers.get(did)
        if peer is None:
            return False
        if peer.state == "gone":
            peer.misses, peer.dial_at = 0, now
        return _move(peer, "heard", now)

    def seen(self, did: Did, now: Timestamp) -> bool:
        """It has logged in here: it is dialled soon; True if that is sooner than before."""
        peer = self._peers.get(did)
        if peer is None:
            return False
        soon = max(now, Timestamp(peer.missed_at + HURRY_S))
        if did in self.pinned:
            # only where the operator says who that is: others could have any address dialled so
            peer.misses, soon = 0, now
        comes_nearer = soon < peer.dial_at
        peer.dial_at = min(soon, peer.dial_at)
        _move(peer, "seen", now)
        return comes_nearer

    def kept(self, now: Timestamp) -> frozenset[Did]:
        """To whom links are kept: all if they are few, else a stable choice, slowly rotated.

        Whom the operator added is never crowded out by whom others told of.
        The choice is this relay's own, so the links of all relays together make a random graph.
        """
        here = {peer.did for peer in self._peers.values() if peer.state != "gone"}
        chosen = self._chosen(here if len(here) >= MAX_LINKS else self._peers.keys(), now)
        return chosen | (self.pinned & self._peers.keys())

    def _chosen(self, dids: Collection[Did], now: Timestamp) -> frozenset[Did]:
        if len(dids) <= MAX_LINKS:
            return frozenset(dids)
        stable = [did for did in self._ranked("stable") if did in dids][: MAX_LINKS - ROTATED]
        hourly = [did for did in self._ranked(str(int(now // ROTATION_S))) if did in dids]
        others = [did for did in hourly[:MAX_LINKS] if did not in stable]
        return frozenset(stable + others[:ROTATED])

    def _ranked(self, salt: str) -> list[Did]:
        """All peers in an order of this relay's own; remembered, since it is asked for often."""
        found = self._orders.get(salt)
        if found is None:
            if len(self._orders) > 1:
                self._orders.clear()
            found = sorted(self._peers, key=lambda did: self._rank(did, salt))
            self._orders[salt] = found
        return found

    def due(self, now: Timestamp, linked: Collection[Did] = ()) -> list[Did]:
        """Whom to dial now; ``linked``: to whom there is a link, or a dial under way.

        Those who would have been chosen and are gone are dialled, too, else two halves of a mesh
        would never look for each other again.
        """
        return [did for at, did in self._dials(now, linked) if at <= now]

    def next_dial_at(self, now: Timestamp, linked: Collection[Did] = ()) -> Timestamp | None:
        """When somebody is due next; None where there is a link to all that should have one."""
        return min((at for at, _ in self._dials(now, linked)), default=None)

    def _dials(self, now: Timestamp, linked: Collection[Did]) -> list[tuple[Timestamp, Did]]:
        wanted = self.kept(now) | self._chosen(self._peers.keys(), now)
        return [(self._due_at(did, now), did) for did in sorted(wanted) if did not in linked]

    def _due_at(self, did: Did, now: Timestamp) -> Timestamp:
        """A clock that was set back must not put off a dial for longer than any back-off."""
        at = self._peers[did].dial_at
        return at if at <= now + MAX_BACKOFF_S else now

    def pick(self, count: int, pick: Pick, linked: Collection[Did]) -> list[Did]:
        """Partners for gossip or a pull: random ones of those that are alive and linked."""
        able = [did for did in linked if did in self._peers and self._peers[did].state == "alive"]
        return list(pick(able, min(count, len(able))))

    def peer(self, did: Did) -> Peer | None:
        """What is known of one."""
        return self._peers.get(did)

    def view_of(
        self, did: Did, ref: str, *, strikes: int = 0, retry_after: int | None = None
    ) -> frames.View:
        """What a peer hears that asks how it is seen; one that is not known was never dialled."""
        peer = self._peers.get(did) or Peer(did)
        return frames.View(ref, peer.state, peer.since, strikes, retry_after, peer.reason)

    def _rank(self, did: Did, salt: str) -> bytes:
        return hashlib.sha256(f"{salt}\0{self._own}\0{did}".encode()).digest()


def _move(peer: Peer, event: Event, now: Timestamp) -> bool:
    state = TRANSITIONS[peer.state, event]
    if state == peer.state and peer.since:
        return False
    peer.state, peer.since = state, int(now)
    return True
