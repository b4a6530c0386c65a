"""Decide which relays this one deals with, and store what is known of them (PROTOCOL.md §5.10).

``closed`` federation deals with relays that the operator added; ``open`` with every relay that
nobody blocked; ``off`` with none. Each rule holds in both directions. The DID identifies a relay,
never its address. Rows are in the store and shared by all nodes; dial history, reputation and views
belong to one node.

Entry points: the ``require_*`` methods raise where policy forbids; :class:`Peers` is the only
writer of peer rows.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, NamedTuple

from relay import clock, log, metrics
from relay.peering.model.membership import MemberTable
from relay.peering.model.reputation import Reputation, StrikeCounter
from relay.peering.ports import PeerRow, PeerRowStore
from relay.protocol import frames, relay_info
from relay.protocol.errors import ErrorCode, ProtocolError, RejectedError, RelayError
from relay.protocol.ids import Did, Timestamp
from relay.protocol.relay_info import Federation, RelayInfo

MAX_LEARNED: Final = 1_000
"""Relays that others named; beyond it a new one replaces one that is gone."""
MIN_INFO_AGE_S: Final = 60
"""A relay that signs new information all the time must not make work for the whole mesh."""
_MAX_CACHED_INFOS: Final = 2_000


@dataclass(frozen=True, slots=True)
class ReceivedView:
    """A peer's view of this relay, and the time when it arrived."""

    view: frames.View
    at: int


class PeerRefusal(NamedTuple):
    """The last answer of a relay that would not deal with this one."""

    code: ErrorCode
    detail: str
    at: int


class Peers:
    """The relays that this one knows.

    Args:
        own: this relay.
        federation: the policy for relays without a word of the operator.
        denied: DIDs that the settings exclude.
        store: holds the rows.
    """

    def __init__(
        self, own: Did, federation: Federation, denied: frozenset[Did], store: PeerRowStore
    ) -> None:
        self.own = own
        self.federation = federation
        self.rows: dict[Did, PeerRow] = {}
        self.members = MemberTable(own)
        self.strikes = StrikeCounter()
        self.handoff_peers: frozenset[Did] = frozenset()
        self.introduced: Counter[Did] = Counter()
        self.refusals: dict[Did, PeerRefusal] = {}
        self.views: dict[Did, ReceivedView] = {}
        self._denied = denied
        self._store = store
        self._inbound: dict[Did, set[Callable[[], None]]] = {}
        self._invited: Counter[Did] = Counter()
        self._proven: set[Did] = set()

    def set_handoff_peers(self, dids: frozenset[Did]) -> None:
        """Replace the relays that some agent's inbox moves from or to."""
        self.handoff_peers = dids

    # ------------------------------------------------------------ policy

    def require_contact(self, did: Did) -> None:
        """Raise if a relay may not log in here or be dialled, not even for a hand-off.

        Raises:
            RejectedError: ``not_federated`` or ``blocked``.
        """
        self._require(did, is_handoff_peer=self.is_handoff_peer(did))

    def require_federated(self, did: Did) -> None:
        """Raise if a relay may not exchange mail, gossip and questions with this one.

        Raises:
            RejectedError: ``not_federated`` or ``blocked``.
        """
        self._require(did, is_handoff_peer=False)

    def require_handoff(self, did: Did) -> None:
        """Raise if no inbox may move between here and a relay; an agent's order counts as welcome.

        Raises:
            RejectedError: ``not_federated`` or ``blocked``.
        """
        self._require(did, is_handoff_peer=True)

    def _require(self, did: Did, *, is_handoff_peer: bool) -> None:
        row = self.rows.get(did)
        policy = row.standing if row else None
        if did == self.own:
            raise RejectedError(ErrorCode.NOT_FEDERATED, "that is this relay itself")
        if self.federation == "off":
            raise RejectedError(ErrorCode.NOT_FEDERATED, "this relay has no peers")
        if did in self._denied or policy == "blocked":
            raise RejectedError(ErrorCode.BLOCKED, "the operator does not deal with this relay")
        is_welcome = policy == "added" or did in self._invited or is_handoff_peer
        if self.federation == "closed" and not is_welcome:
            detail = "this relay deals only with relays that its operator added"
            raise RejectedError(ErrorCode.NOT_FEDERATED, detail)

    def require_login(self, did: Did) -> None:
        """Raise if a relay may not log in here, or is banned for its gossip.

        Raises:
            RejectedError: as :meth:`require_contact` and :meth:`require_unbanned`.
        """
        self.require_contact(did)
        self.require_unbanned(did)

    def require_unbanned(self, did: Did) -> None:
        """Raise while the gossip of a peer is ignored.

        Raises:
            RejectedError: ``blocked``.
        """
        wait_s = self.reputation(did).retry_after
        if wait_s is not None:
            detail = "it passed on records that nobody signed"
            raise RejectedError(ErrorCode.BLOCKED, detail, retry_after=wait_s)

    def may_contact(self, did: Did) -> bool:
        """Return True unless :meth:`require_contact` raises."""
        return self._allows(did, is_handoff_peer=self.is_handoff_peer(did))

    def is_federated(self, did: Did) -> bool:
        """Return True unless :meth:`require_federated` raises.

        An agent's order lets its two relays talk about its inbox, and about nothing else.
        """
        return self._allows(did, is_handoff_peer=False)

    def is_handoff_peer(self, did: Did) -> bool:
        """Return True if a hand-off waits for this relay."""
        return did in self.handoff_peers

    @contextlib.contextmanager
    def inviting(self, did: Did) -> Iterator[None]:
        """Treat a relay as added within the block, without writing anything."""
        self._invited[did] += 1
        try:
            yield
        finally:
            self._invited -= Counter({did: 1})
            self._disconnect_forbidden()

    def _allows(self, did: Did, *, is_handoff_peer: bool) -> bool:
        try:
            self._require(did, is_handoff_peer=is_handoff_peer)
        except RejectedError:
            return False
        return True

    # ------------------------------------------------------------ rows

    async def load(self, configured: Sequence[tuple[Did, str]] = ()) -> None:
        """Read the rows, after adding the peers that the settings name."""
        now = int(clock.now())
        known = {row.did: row for row in await self._store.all()}
        for did, url in configured:
            row = known.get(did)
            is_stored = row is not None and (row.url, row.standing) == (url, "added")
            is_blocked = row is not None and row.standing == "blocked"
            if did != self.own and not is_stored and not is_blocked:
                await self._store.put(PeerRow(did, url, "added", now, row.info if row else None))
        await self.refresh()

    async def refresh(self) -> None:
        """Read what other nodes, or the operator through them, have written."""
        before = self.rows
        self.rows = {row.did: row for row in await self._store.all() if row.did != self.own}
        federated = {did for did in self.rows if self.is_federated(did)}
        # in open federation anybody is a peer: relays without a row leave no trace
        self.introduced = Counter(
            {did: n for did, n in self.introduced.items() if did in self.rows}
        )
        self.views = {did: view for did, view in self.views.items() if did in self.rows}
        for peer in self.members:
            if peer.did not in federated:
                self.members.remove(peer.did)
        for did in federated:
            self.members.add(did)
            if did in before and before[did].url != self.rows[did].url:
                self._on_new_address(did)
        self.members.pinned = frozenset(
            did for did, row in self.rows.items() if row.standing == "added"
        )
        self._proven &= self.rows.keys()
        self._disconnect_forbidden()

    def _on_new_address(self, did: Did) -> None:
        self._proven.discard(did)
        self.members.dial_now(did, clock.now())

    def _disconnect_forbidden(self) -> None:
        for did, connections in list(self._inbound.items()):
            if not self.may_contact(did):
                for disconnect in list(connections):
                    disconnect()

    async def add(self, did: Did, url: str, info: str | None = None) -> PeerRow:
        """Add a relay for the operator.

        Raises:
            RejectedError: ``not_federated``: it is this one.
        """
        self._require_other(did)
        current = self.rows.get(did)
        info = info or (current.info if current else None)
        row = PeerRow(did, url, "added", int(clock.now()), info)
        await self._store.put(row)
        await self.refresh()
        self.members.dial_now(did, clock.now())
        log.event("peer_added", peer=did, url=url)
        return row

    async def remove(self, did: Did) -> bool:
        """Forget a relay for the operator; return False if it was not known."""
        was_known = await self._store.remove(did)
        await self.refresh()
        if was_known:
            log.event("peer_removed", peer=did)
        return was_known

    async def block(self, did: Did) -> PeerRow:
        """Refuse a relay, known or not, in both directions, for the operator.

        Raises:
            RejectedError: ``not_federated``: it is this one.
        """
        self._require_other(did)
        current = self.rows.get(did) or PeerRow(did, "", "blocked", 0)
        row = replace(current, standing="blocked", since=int(clock.now()))
        await self._store.put(row)
        await self.refresh()
        log.event("peer_blocked", peer=did)
        return row

    async def unblock(self, did: Did) -> bool:
        """Treat a blocked relay as one that others named; return False if it was not blocked."""
        current = self.rows.get(did)
        if current is None or current.standing != "blocked":
            return False
        if current.url:
            row = replace(current, standing="learned", since=int(clock.now()))
            await self._store.put(row)
        else:
            await self._store.remove(did)
        await self.refresh()
        log.event("peer_unblocked", peer=did)
        return True

    def _require_other(self, did: Did) -> None:
        if did == self.own:
            raise RejectedError(ErrorCode.NOT_FEDERATED, "that is this relay itself")

    async def merge_relay_info(self, compact: str) -> RelayInfo | None:
        """Store relay information if it is new; return None if it is not, or there is no room.

        Raises:
            ProtocolError: no relay has signed this.
            UnavailableError: the store.
        """
        info = relay_info.parse(compact)
        row = self.rows.get(info.did)
        if info.did == self.own or (row is not None and not _is_newer(row, info)):
            return None
        refusal = relay_info.verify(info, clock.now())
        if refusal is not None:
            if refusal.code is ErrorCode.BAD_SIGNATURE:
                raise ProtocolError(refusal.code, refusal.detail)
            return None
        if row is None and not await self._make_room():
            return None
        merged = _with_info(row, info)
        if not await self._store.replace(row, merged):
            # the operator or another node has changed the row meanwhile
            await self.refresh()
            return None
        self._on_info(row, merged)
        return info

    def _on_info(self, before: PeerRow | None, row: PeerRow) -> None:
        self.rows[row.did] = row
        if self.is_federated(row.did):
            self.members.add(row.did)
        self.members.on_info(row.did, clock.now())
        if before is None:
            log.event("peer_learned", peer=row.did, url=row.url)
        elif before.url != row.url:
            self._on_new_address(row.did)

    async def _make_room(self) -> bool:
        """Return True if one more relay may be learned; remove a dead one where that helps."""
        learned = [row for row in self.rows.values() if row.standing == "learned"]
        if len(learned) < MAX_LEARNED:
            return True
        for row in learned:
            member = self.members.get(row.did)
            if (member is not None and member.state == "gone") or _is_expired(row, clock.now()):
                await self._store.remove(row.did)
                self.rows.pop(row.did, None)
                self.members.remove(row.did)
                return True
        return False

    # ------------------------------------------------------------ dials and connections

    def desired_links(self) -> list[tuple[Did, str]]:
        """Return the relays to hold links with, and their origins."""
        desired = self.members.desired(clock.now())
        return [(did, row.url) for did, row in self.rows.items() if did in desired]

    def due_dials(self, linked: Collection[Did]) -> list[tuple[Did, str]]:
        """Return the relays to dial now, and their origins; ``linked`` have a link already."""
        due = self.members.due(clock.now(), linked)
        return [(did, self.rows[did].url) for did in due if did in self.rows]

    def on_link_up(self, did: Did) -> bool:
        """Record a link; return True if it is the first to this peer at its address."""
        self.refusals.pop(did, None)
        self.members.on_link_up(did, clock.now())
        if did in self._proven or did not in self.rows:
            return False
        self._proven.add(did)
        return True

    def is_proven(self, did: Did) -> bool:
        """Return True if this relay may name the peer to others: a link stood, it is not gone."""
        peer = self.members.get(did)
        return did in self._proven and peer is not None and peer.state != "gone"

    def on_dial_failed(self, did: Did, exc: RelayError, url: str | None = None) -> float | None:
        """Record a failed dial or a broken link; return the seconds until the next dial.

        Args:
            did: the peer; None is returned if it is not in the member table.
            exc: the failure.
            url: the origin that was dialled. Any record may claim that a relay is anywhere, so a
                failure at another origin than the peer's own does not count.
        """
        row, now = self.rows.get(did), clock.now()
        if url is not None and row is not None and row.url != url:
            return None
        if exc.code is not ErrorCode.PEER_UNREACHABLE:
            self.refusals[did] = PeerRefusal(exc.code, exc.detail, int(now))
            if len(self.refusals) > MAX_LEARNED:
                del self.refusals[next(iter(self.refusals))]
        reason, min_s = f"{exc.code}: {exc.detail}", float(exc.retry_after or 0)
        self.members.on_dial_failed(did, now, clock.random_fraction(), reason, min_s=min_s)
        peer = self.members.get(did)
        return None if peer is None else peer.dial_at - now

    def on_inbound_login(self, did: Did, disconnect: Callable[[], None]) -> None:
        """Record a login here; ``disconnect`` is called once policy forbids the peer."""
        self._inbound.setdefault(did, set()).add(disconnect)
        self.members.on_inbound_login(did, clock.now())

    def on_inbound_closed(self, did: Did, disconnect: Callable[[], None]) -> None:
        """Record the end of a connection that the peer opened."""
        connections = self._inbound.get(did, set())
        connections.discard(disconnect)
        if not connections:
            self._inbound.pop(did, None)

    @property
    def inbound(self) -> dict[Did, int]:
        """The connections that each peer has opened to this node."""
        return {did: len(connections) for did, connections in self._inbound.items()}

    # ------------------------------------------------------------ reputation

    def strike(self, did: Did) -> None:
        """Count a strike: the peer passed on something that nobody signed."""
        reputation = self.strikes.add(did, clock.now())
        metrics.STRIKES.inc()
        log.event(
            "peer_struck", peer=did, strikes=reputation.strikes, wait_s=reputation.retry_after
        )

    def reputation(self, did: Did) -> Reputation:
        """Return the strikes of a peer, and its ban."""
        return self.strikes.reputation(did, clock.now())

    def view(self, did: Did, ref: str) -> frames.View:
        """Return the answer to a peer that asks how this relay sees it."""
        mine = self.reputation(did)
        return self.members.view(did, ref, strikes=mine.strikes, retry_after=mine.retry_after)


def _is_newer(row: PeerRow, info: RelayInfo) -> bool:
    return row.info is None or info.issued_at >= _times(row.info)[0] + MIN_INFO_AGE_S


def _is_expired(row: PeerRow, now: Timestamp) -> bool:
    return row.info is None or _times(row.info)[1] < now


@lru_cache(maxsize=_MAX_CACHED_INFOS)
def _times(compact: str) -> tuple[int, int]:
    """Return ``iat`` and ``exp``; cached, since making room looks at every known relay."""
    info = relay_info.parse(compact)
    return info.issued_at, info.expires_at


def _with_info(row: PeerRow | None, info: RelayInfo) -> PeerRow:
    """Return the row with newer verified information; the operator's address wins over its own."""
    compact, url = info.jws.compact, info.description.url
    if row is None:
        return PeerRow(info.did, url, "learned", int(clock.now()), compact)
    is_operators = row.url and row.standing != "learned"
    return replace(row, info=compact, url=row.url if is_operators else url)
