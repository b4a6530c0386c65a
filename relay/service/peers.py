"""Peers: which relays this one knows and deals with, and how it gets on with them (§5.10).

Rules of the file: closed federation takes only who the operator added, both ways; open takes whom
nobody has blocked; off takes none. A relay is known by its DID, never by its address. What is known
is in the store, and shared by all nodes; how the links fare is each node's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, NamedTuple

from relay import clock, log, metrics
from relay.core import relay_info
from relay.core.errors import ErrorCode, ProtocolError, RejectedError, RelayError
from relay.core.frames import View
from relay.core.gossip import Conduct, PeerStanding
from relay.core.ids import Did, Timestamp
from relay.core.membership import Roster
from relay.core.relay_info import Federation, RelayInfo
from relay.ports_mesh import PeerRow, PeerStore

MAX_LEARNED: Final = 1_000
"""Relays that others told of; beyond them one is learned only where one is past hope."""
FRESH_S: Final = 60


class Refused(NamedTuple):
    """A relay would not deal with this one."""

    code: ErrorCode
    detail: str
    at: int


@dataclass(frozen=True, slots=True)
class SeenBy:
    """How a peer sees this relay, and when it said so."""

    view: View
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
        self.conduct = Conduct()
        self._guests: dict[Did, set[Callable[[], None]]] = {}
        self.partners: frozenset[Did] = frozenset()
        """Relays that some agent's inbox moves from or to; see :meth:`is_full`."""
        self.introduced: Counter[Did] = Counter()
        self.refusals: dict[Did, Refused] = {}
        self.views: dict[Did, SeenBy] = {}
        self._denied = denied
        self._store = store

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
        if self.federation == "closed" and standing != "added" and not is_partner:
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
        wait_s = self.standing(did).retry_after
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
        log.peer_added(did, url)
        return row

    async def remove(self, did: Did) -> bool:
        """The operator forgets a relay; False if it was not known."""
        was_known = await self._store.remove_peer(did)
        await self.refresh()
        if was_known:
            log.peer_removed(did)
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
        log.peer_blocked(did)
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
        log.peer_unblocked(did)
        return True

    async def heard_of(self, compact: str) -> RelayInfo | None:
        """Keep relay information that is news; None: it is not, or cannot be kept.

        Raises:
            ProtocolError: no relay has signed this.
            UnavailableError: the store.
        """
        info = relay_info.parse(compact)
        row = self.rows.get(info.did)
        if info.did == self.own or (row is not None and not _is_newer(row, info)):
            return None
        no = relay_info.verify(info, clock.now())
        if no is not None:
            if no.code is ErrorCode.BAD_SIGNATURE:
                raise ProtocolError(no.code, no.detail)
            return None
        if row is None and not await self._has_room():
            return None
        known = _with_info(row, info)
        if not await self._store.replace_peer(row, known):
            # the operator, or another node, has decided otherwise since this one looked
            await self.refresh()
            return None
        self.rows[info.did] = known
        if self.is_full(info.did):
            self.roster.add(info.did)
        self.roster.heard(info.did, clock.now())
        if row is None:
            log.peer_learned(info.did, info.said.url)
        return info

    async def _has_room(self) -> bool:
        """Whether one more may be learned; the first that is past hope makes room for it."""
        learned = [row for row in self.rows.values() if row.standing == "learned"]
        if len(learned) < MAX_LEARNED:
            return True
        for row in learned:
            member = self.roster.peer(row.did)
            if _is_over(row, clock.now()) or (member is not None and member.state == "gone"):
                await self._store.remove_peer(row.did)
                self.rows.pop(row.did, None)
                self.roster.remove(row.did)
                return True
        return False

    # ------------------------------------------------------------ how it goes

    def chosen(self) -> list[tuple[Did, str]]:
        """To whom links are kept."""
        if self.federation == "off":
            return []
        kept = self.roster.kept(clock.now())
        return [
            (did, row.url)
            for did, row in self.rows.items()
            # whom the operator added is never crowded out by whom others told of
            if did in kept or (row.standing == "added" and did in self.roster)
        ]

    def reached(self, did: Did) -> None:
        """A link stands."""
        self.refusals.pop(did, None)
        self.roster.reached(did, clock.now())

    def missed(self, did: Did, why: RelayError) -> None:
        """A dial failed, or a link broke."""
        now = clock.now()
        if why.code is not ErrorCode.PEER_UNREACHABLE:
            self.refusals[did] = Refused(why.code, why.detail, int(now))
            if len(self.refusals) > MAX_LEARNED:
                del self.refusals[next(iter(self.refusals))]
        self.roster.missed(did, now, clock.share(), f"{why.code}: {why.detail}")

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
        standing = self.conduct.strike(did, clock.now())
        metrics.STRIKES.inc()
        log.peer_struck(did, standing.strikes, standing.retry_after)

    def standing(self, did: Did) -> PeerStanding:
        """What is held against it."""
        return self.conduct.standing(did, clock.now())

    def view_of(self, did: Did, ref: str) -> View:
        """What it hears when it asks how it is seen."""
        standing = self.standing(did)
        return self.roster.view_of(
            did, ref, strikes=standing.strikes, retry_after=standing.retry_after
        )


def _is_newer(row: PeerRow, info: RelayInfo) -> bool:
    """News only once a minute: who signs anew all the time makes work for all."""
    if row.info is None:
        return True
    return info.issued_at >= _times(row.info)[0] + FRESH_S


def _is_over(row: PeerRow, now: Timestamp) -> bool:
    return row.info is None or _times(row.info)[1] < now


@lru_cache(maxsize=2 * MAX_LEARNED)
def _times(compact: str) -> tuple[int, int]:
    """``iat`` and ``exp``: room for one more is sought among all that are known."""
    info = relay_info.parse(compact)
    return info.issued_at, info.expires_at


def _with_info(row: PeerRow | None, info: RelayInfo) -> PeerRow:
    """The operator's word on where a relay is stands over that relay's own."""
    compact, url = info.jws.compact, info.said.url
    if row is None:
        return PeerRow(info.did, url, "learned", int(clock.now()), compact)
    is_said = row.url and row.standing != "learned"
    return replace(row, info=compact, url=row.url if is_said else url)
