"""Exchange the knowledge of relays with peers: who exists, and how they see this one (§5.10).

A relay names a peer to others only after it has reached that peer itself. Otherwise one lie about
an address would make the whole mesh dial it.

Entry points: ``on_link_up`` and ``on_inbound_login`` of :class:`PeerExchange`; ``relay.node``
repeats ``exchange_peers`` and ``push``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from relay import clock, log
from relay.peering.link import Link
from relay.peering.links import Links
from relay.peering.model.membership import GOSSIP_FANOUT
from relay.peering.model.reputation import is_strike
from relay.peering.peers import Peers, ReceivedView
from relay.protocol import frames, jws, relay_info
from relay.protocol.errors import ErrorCode, ProtocolError, RelayError
from relay.protocol.ids import Did
from relay.tasks import guarded

ASK_INTERVAL_S: Final = 30.0
ANNOUNCE_INTERVAL_S: Final = 3600.0
"""Every linked peer gets this relay's own information so often."""
MAX_PENDING_INFOS: Final = 256


class PeerExchange:
    """Pushes relay information to peers, and asks them for theirs.

    Args:
        peers: the relays that are known.
        links: of this node.
        own_info: returns this relay's signed information as of now.
    """

    def __init__(self, peers: Peers, links: Links, own_info: Callable[[], str]) -> None:
        self.peers = peers
        self.links = links
        self.own_info = own_info
        self.new_links: dict[Did, None] = {}
        """Federated peers whose link came up, until the next pull from them."""
        self.on_new_link = asyncio.Event()
        self.pending: list[str] = []
        """Relay information that waits for the next push."""
        self._announced_at = clock.monotonic()
        self._asked_at: dict[Did, float] = {}

    # ------------------------------------------------------------ links

    def on_link_up(self, link: Link) -> None:
        """Tell the peer who this relay is, and have its directory pulled at once."""
        self.announce(link.peer)
        if not self.peers.is_federated(link.peer):
            return
        link.push(frames.Gossip(relays=(self.own_info(),)))
        self.new_links[link.peer] = None
        self.on_new_link.set()

    def on_inbound_login(self, relay: Did, disconnect: Callable[[], None]) -> None:
        """Record the login of a relay here, and dial it if the operator added it."""
        self.peers.on_inbound_login(relay, disconnect)
        row = self.peers.rows.get(relay)
        # only the operator vouches for addresses; else anybody could have any one dialled
        if row is not None and row.standing == "added":
            self.links.reset_backoff(relay, row.url)

    def link_to(self, relay: Did) -> Link | None:
        """Return the link to a federated relay; None if there is none."""
        return next((link for link in self.links.live() if link.peer == relay), None)

    # ------------------------------------------------------------ what others get

    def announce(self, relay: Did) -> None:
        """Record that a link to a relay stands; after the first one, tell others about it."""
        if self.peers.on_link_up(relay):
            self._enqueue(self.peers.rows[relay].info)

    def known_relays(self, asker: Did) -> tuple[str, ...]:
        """Return the information of this relay and of random peers that it has reached."""
        rows = [row for did, row in self.peers.rows.items() if self.peers.is_proven(did)]
        infos = [row.info for row in rows if row.info and row.did != asker]
        return (self.own_info(), *clock.sample(infos, frames.MAX_GOSSIP_RELAYS - 1))

    def push(self) -> None:
        """Push pending relay information to some peers; now and then this relay's own to all."""
        links = list(self.links.live())
        infos, self.pending = self.pending, []
        is_due = clock.monotonic() - self._announced_at > ANNOUNCE_INTERVAL_S
        if is_due:
            self._announced_at = clock.monotonic()
            infos.append(self.own_info())
        if not infos:
            return
        receivers = links if is_due else clock.sample(links, GOSSIP_FANOUT)
        for at in range(0, len(infos), frames.MAX_GOSSIP_RELAYS):
            for link in receivers:
                link.push(frames.Gossip(relays=tuple(infos[at : at + frames.MAX_GOSSIP_RELAYS])))

    def _enqueue(self, info: str | None) -> None:
        # more than there is room for is left to the questions of others
        if info is not None and len(self.pending) < MAX_PENDING_INFOS:
            self.pending.append(info)

    # ------------------------------------------------------------ what others know

    async def exchange_peers(self, force: Did | None = None) -> None:
        """Ask each linked peer which relays it knows and how it sees this one.

        Args:
            force: ask this peer even if it was asked a moment ago.
        """
        now = clock.monotonic()
        live = {link.peer: link for link in self.links.live()}
        self._asked_at = {did: at for did, at in self._asked_at.items() if did in live}
        async with asyncio.TaskGroup() as tasks:
            for did, link in live.items():
                if did == force or now - self._asked_at.get(did, -ASK_INTERVAL_S) >= ASK_INTERVAL_S:
                    self._asked_at[did] = now
                    tasks.create_task(guarded("meet", self._ask(link)))

    async def _ask(self, link: Link) -> None:
        try:
            view = await link.ask(lambda ref: frames.Want(ref, view=True))
            answer = await link.ask(lambda ref: frames.Want(ref, relays=True))
        except RelayError as exc:
            # the link has ended, or the peer does not know this question
            log.event("pull_failed", peer=link.peer, code=exc.code, detail=exc.detail)
            return
        if isinstance(view, frames.View):
            self.peers.views[link.peer] = ReceivedView(view, int(clock.now()))
        if isinstance(answer, frames.Gossip):
            await self.merge_relay_infos(link.peer, answer.relays)

    async def merge_relay_infos(self, peer: Did, infos: Sequence[str]) -> None:
        """Store what a peer says about relays, and pass on what is new."""
        for compact in infos:
            await asyncio.sleep(0)
            try:
                info = await self.peers.merge_relay_info(compact)
            except ProtocolError as exc:
                if is_strike(exc.code, is_edge_case=_is_edge_case(compact, exc.code)):
                    self.peers.strike(peer)
                continue
            if info is not None and self.peers.is_proven(info.did):
                self._enqueue(compact)


def _is_edge_case(compact: str, code: ErrorCode) -> bool:
    """Return True if another verifier may accept the signature that this relay refused."""
    if code is not ErrorCode.BAD_SIGNATURE:
        return False
    info = relay_info.parse(compact)
    return not jws.is_plainly_forged(info.jws, info.key.public_key)
