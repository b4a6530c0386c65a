"""Peers: which relays this one knows and deals with, and how it gets on with them (§5.10).

Rules of the file: closed federation takes only who the operator added, both ways; open takes whom
nobody has blocked; off takes none. A relay is known by its DID, never by its address. What is known
is in the store, and shared by all nodes; how the links fare is each node's own.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from relay import clock, log, metrics
from relay.peering import peer_rows
from relay.peering.model.membership import Roster
from relay.peering.model.reputation import (
    Reputation,
    StrikeCounter,
)
from relay.peering.ports import (
    PeerRow,
    PeerStore,
)
from relay.protocol import frames, relay_info
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
    RejectedError,
    RelayError,
)
from relay.protocol.ids import Did
from relay.protocol.relay_info import (
    Federation,
    RelayInfo,
)

MAX_LEARNED: Final = 1_000
"""Relays that others told of; beyond them one is learned only where one is past hope."""


@dataclass(frozen=True, slots=True)
class SeenBy:
    """How a peer sees this relay, and when it said so."""

    view: frames.View
    at: int


class Peers:
    """The relays that this one knows of.

    Args:
        own: this relay.
        federation: which relays may be dealt with.
        denied: DIDs that the operator does not serve.
        store: where they are written down.
    """

    def __init__(
        self, own: Did, federation: Federation, denied: frozenset[Did], store: PeerStore
    ) -> None:
        self.own = own
        self.federation = federation
        self.rows: dict[Did, PeerRow] = {}
        self.roster = Roster(own)
        self.strike_counter = StrikeCounter()
        self._guests: dict[Did, set[Callable[[], None]]] = {}
        self.partners: frozenset[Did] = frozenset()
        """Relays that some agent's inbox moves from or to; see :meth:`is_full`."""
        self.introduced: Counter[Did] = Counter()
        self.refusals: dict[Did, peer_rows.Refused] = {}
        self.views: dict[Did, SeenBy] = {}
        self._denied = denied
        self._store = store
        self._invited: Counter[Did] = Counter()
        self._proved: set[Did] = set()

    def set_handoff_peers(self, dids: frozenset[Did]) -> None:
        """Deal with these relays about inboxes that move, and with no others."""
        self.partners = dids

    # ------------------------------------------------------------ policy

    def admit(self, did: Did) -> None:
        """Let a relay log in here, or be dialled, and be it for a hand-off alone.

        Raises:
            RejectedError: ``not_federated`` or ``blocked``.
        """
        self._admit(did, is_partner=did in self.partners)

    def admit_fully(self, did: Did) -> None:
        """Deal with a relay in all things.

        Raises:
            RejectedError: ``not_federated`` or ``blocked``.
        """
        self._admit(did, is_partner=False)

    def admit_handoff(self, did: Did) -> None:
        """Let an inbox move between here and a relay: an agent's order is enough where none is off.

        Raises:
            RejectedError: ``not_federated`` or ``blocked``.
        """
        self._admit(did, is_partner=True)

    def _admit(self, did: Did, *, is_partner: bool) -> None:
        row = self.rows.get(did)
        standing = row.standing if row else None
        if did == self.own:
            raise RejectedError(ErrorCode.NOT_FEDERATED, "that is this relay itself")
        if self.federation == "off":
            raise RejectedError(ErrorCode.NOT_FEDERATED, "this relay has no peers")
        if did in self._denied or standing == "blocked":
            raise RejectedError(ErrorCode.BLOCKED, "the operator does not deal with this relay")
        is_welcome = standing == "added" or did in self._invited or is_partner
        if self.federation == "closed" and not is_welcome:
            detail = "this relay deals only with relays that its operator added"
            raise RejectedError(ErrorCode.NOT_FEDERATED, detail)

    def admit_login(self, did: Did) -> None:
        """Let a relay log in here, or go on; one that told lies of late stays out for a while.

        Raises:
            RejectedError: as :meth:`admit`.
        """
        self.admit(did)
        self.listen_to(did)

    def listen_to(self, did: Did) -> None:
        """Raise where this peer's gossip is not looked at.

        Raises:
            RejectedError: ``blocked``.
        """
        wait_s = self.reputation(did).retry_after
        if wait_s is not None:
            detail = "it passed on records that nobody signed"
            raise RejectedError(ErrorCode.BLOCKED, detail, retry_after=wait_s)

    def is_admitted(self, did: Did) -> bool:
        """Whether it may be dealt with, and be it for a hand-off alone."""
        return self._admits(did, is_partner=did in self.partners)

    def is_full(self, did: Did) -> bool:
        """Whether it may be dealt with in all things: gossip, mail, questions.

        An agent's order lets its two relays talk about its inbox, and about nothing else.
        """
        return self._admits(did, is_partner=False)

    def is_partner(self, did: Did) -> bool:
        """Whether some hand-off waits for it."""
        return did in self.partners

    @contextlib.contextmanager
    def inviting(self, did: Did) -> Iterator[None]:
        """Deal with a relay for this block as if it were added; nothing is written down."""
        self._invited[did] += 1
        try:
            yield
        finally:
            self._invited -= Counter({did: 1})
            self._dismiss()

    def _admits(self, did: Did, *, is_partner: bool) -> bool:
        try:
            self._admit(did, is_partner=is_partner)
        except RejectedError:
            return False
        return True

    # ------------------------------------------------------------ what is known

    async def load(self, given: Sequence[tuple[Did, str]] = ()) -> None:
        """Take in what is written down, after what the settings name, which counts as added."""
        now = int(clock.now())
        known = {row.did: row for row in await self._store.peers()}
        for did, url in given:
            row = known.get(did)
            is_as_given = row is not None and (row.url, row.standing) == (url, "added")
            is_blocked = row is not None and row.standing == "blocked"
            if did != self.own and not is_as_given and not is_blocked:
                await self._store.put_peer(
                    PeerRow(did, url, "added", now, row.info if row else None)
                )
        await self.refresh()

    async def refresh(self) -> None:
        """Look at what other nodes, and the operator at them, have written down."""
        before = self.rows
        self.rows = {row.did: row for row in await self._store.peers() if row.did != self.own}
        wanted = {did for did in self.rows if self.is_full(did)}
        # in open federation anybody is a peer: of whom is not written down, nothing is remembered
        self.introduced = Counter(
            {did: n for did, n in self.introduced.items() if did in self.rows}
        )
        self.views = {did: view for did, view in self.views.items() if did in self.rows}
        for peer in self.roster.peers():
            if peer.did not in wanted:
                self.roster.remove(peer.did)
        for did in wanted:
            self.roster.add(did)
            if did in before and before[did].url != self.rows[did].url:
                self._proved.discard(did)
                self.roster.hurry(did, clock.now())
        added = (did for did, row in self.rows.items() if row.standing == "added")
        self.roster.pinned = frozenset(added)
        self._proved &= self.rows.keys()
        self._dismiss()

    def _dismiss(self) -> None:
        """End the connections of relays that are not dealt with any more."""
        for did, guests in list(self._guests.items()):
            if not self.is_admitted(did):
                for dismiss in list(guests):
                    dismiss()

    async def add(self, did: Did, url: str, info: str | None = None) -> PeerRow:
        """The operator adds a relay.

        Raises:
            RejectedError: ``not_federated``: it is this one.
        """
        if did == self.own:
            raise RejectedError(ErrorCode.NOT_FEDERATED, "that is this relay itself")
        held = self.rows.get(did)
        info = info or (held.info if held else None)
        row = PeerRow(did, url, "added", int(clock.now()), info)
        await self._store.put_peer(row)
        await self.refresh()
        self.roster.hurry(did, clock.now())
        log.event("peer_added", peer=did, url=url)
        return row

    async def remove(self, did: Did) -> bool:
        """The operator forgets a relay; False if it was not known."""
        was_known = await self._store.remove_peer(did)
        await self.refresh()
        if was_known:
            log.event("peer_removed", peer=did)
        return was_known

    async def block(self, did: Did) -> PeerRow:
        """The operator wants nothing to do with a relay, known or not: it is refused, both ways.

        Raises:
            RejectedError: ``not_federated``: it is this one.
        """
        if did == self.own:
            raise RejectedError(ErrorCode.NOT_FEDERATED, "that is this relay itself")
        held = self.rows.get(did) or PeerRow(did, "", "blocked", 0)
        row = replace(held, standing="blocked", since=int(clock.now()))
        await self._store.put_peer(row)
        await self.refresh()
        log.event("peer_blocked", peer=did)
        return row

    async def unblock(self, did: Did) -> bool:
        """It is as if others had told of it: closed federation wants it added again.

        False: it was not blocked.
        """
        held = self.rows.get(did)
        if held is None or held.standing != "blocked":
            return False
        if held.url:
            await self._store.put_peer(replace(held, standing="learned", since=int(clock.now())))
        else:
            await self._store.remove_peer(did)
        await self.refresh()
        log.event("peer_unblocked", peer=did)
        return True

    async def heard_of(self, compact: str) -> RelayInfo | None:
        """Keep relay information that is news; None: it is not, or cannot be kept.

        Raises:
            ProtocolError: no relay has signed this.
            UnavailableError: the store.
        """
        info = relay_info.parse(compact)
        row = self.rows.get(info.did)
        if info.did == self.own or (row is not None and not peer_rows.is_newer(row, info)):
            return None
        no = relay_info.verify(info, clock.now())
        if no is not None:
            if no.code is ErrorCode.BAD_SIGNATURE:
                raise ProtocolError(no.code, no.detail)
            return None
        if row is None and not await self._has_room():
            return None
        known = peer_rows.with_info(row, info)
        if not await self._store.replace_peer(row, known):
            # the operator, or another node, has decided otherwise since this one looked
            await self.refresh()
            return None
        self._heard(row, known)
        return info

    def _heard(self, before: PeerRow | None, known: PeerRow) -> None:
        did, now = known.did, clock.now()
        self.rows[did] = known
        if self.is_full(did):
            self.roster.add(did)
        self.roster.heard(did, now)
        if before is None:
            log.event("peer_learned", peer=did, url=known.url)
        elif before.url != known.url:
            self._proved.discard(did)
            self.roster.hurry(did, now)

    async def _has_room(self) -> bool:
        """Whether one more may be learned; the first that is past hope makes room for it."""
        learned = [row for row in self.rows.values() if row.standing == "learned"]
        if len(learned) < MAX_LEARNED:
            return True
        for row in learned:
            member = self.roster.peer(row.did)
            is_gone = member is not None and member.state == "gone"
            if is_gone or peer_rows.is_over(row, clock.now()):
                await self._store.remove_peer(row.did)
                self.rows.pop(row.did, None)
                self.roster.remove(row.did)
                return True
        return False

    # ------------------------------------------------------------ how it goes

    def chosen(self) -> list[tuple[Did, str]]:
        """To whom links are kept: all whom the operator added, and some of the others."""
        kept = self.roster.kept(clock.now())
        return [(did, row.url) for did, row in self.rows.items() if did in kept]

    def due(self, linked: Collection[Did]) -> list[tuple[Did, str]]:
        """Whom to dial now; ``linked``: to whom there is a link."""
        due = self.roster.due(clock.now(), linked)
        return [(did, self.rows[did].url) for did in due if did in self.rows]

    def reached(self, did: Did) -> bool:
        """A link stands; True if it is the first to this peer at its address."""
        self.refusals.pop(did, None)
        self.roster.reached(did, clock.now())
        if did in self._proved or did not in self.rows:
            return False
        self._proved.add(did)
        return True

    def is_proved(self, did: Did) -> bool:
        """Whether others are told of it: a link to it has stood, and it is not gone."""
        peer = self.roster.peer(did)
        return did in self._proved and peer is not None and peer.state != "gone"

    def missed(self, did: Did, why: RelayError, url: str | None = None) -> float | None:
        """A dial failed, or a link broke; gives the seconds until it is due, None: it is no peer.

        Args:
            did: whom.
            why: for its standing.
            url: what was dialled. Any record may say that a relay is anywhere: where a peer is not
                at an origin that only a record names, that tells nothing of it.
        """
        row, now = self.rows.get(did), clock.now()
        if url is not None and row is not None and row.url != url:
            return None
        if why.code is not ErrorCode.PEER_UNREACHABLE:
            self.refusals[did] = peer_rows.Refused(why.code, why.detail, int(now))
            if len(self.refusals) > MAX_LEARNED:
                del self.refusals[next(iter(self.refusals))]
        least_s = float(why.retry_after or 0)
        self.roster.missed(did, now, clock.share(), f"{why.code}: {why.detail}", least_s=least_s)
        peer = self.roster.peer(did)
        return None if peer is None else peer.dial_at - now

    def arrived(self, did: Did, dismiss: Callable[[], None]) -> None:
        """A peer has logged in here; ``dismiss`` ends that should it not be dealt with any more."""
        self._guests.setdefault(did, set()).add(dismiss)
        self.roster.seen(did, clock.now())

    def left(self, did: Did, dismiss: Callable[[], None]) -> None:
        """That connection is gone."""
        guests = self._guests.get(did, set())
        guests.discard(dismiss)
        if not guests:
            self._guests.pop(did, None)

    @property
    def inbound(self) -> dict[Did, int]:
        """Who is logged in at this node, and how often."""
        return {did: len(guests) for did, guests in self._guests.items()}

    def strike(self, did: Did) -> None:
        """It passed on what plainly nobody signed."""
        reputation = self.strike_counter.add(did, clock.now())
        metrics.STRIKES.inc()
        log.event(
            "peer_struck", peer=did, strikes=reputation.strikes, wait_s=reputation.retry_after
        )

    def reputation(self, did: Did) -> Reputation:
        """What is held against it."""
        return self.strike_counter.reputation(did, clock.now())

    def view_of(self, did: Did, ref: str) -> frames.View:
        """What it hears when it asks how it is seen."""
        reputation = self.reputation(did)
        return self.roster.view_of(
            did, ref, strikes=reputation.strikes, retry_after=reputation.retry_after
        )
