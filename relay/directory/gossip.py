"""Receive records from peers, and pass on what is new (PROTOCOL.md §5.10).

The relay verifies and stores a record before it passes it on. A push costs no more than the
allowance of its peer. A peer gets a strike for what nobody signed; never for expiry, for version
order, or for a signature that verifiers judge differently.

Entry points of :class:`RecordGossip`: ``on_push`` for unsolicited gossip, ``merge_fetched`` for the
answers of a pull, ``on_record_reply`` for one record, ``on_published`` for agents of this relay;
``relay.node`` repeats ``push``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from relay import clock, metrics
from relay.directory.budget import Budget
from relay.directory.change_log import RecordChangeReader
from relay.directory.model import rumors
from relay.directory.model.index import bad_frame
from relay.directory.ports import RecordRow
from relay.directory.publish import Directory, RecordMergeResult
from relay.limits import TokenBuckets
from relay.peering.exchange import PeerExchange
from relay.peering.link import Link
from relay.peering.model.reputation import MAX_PEERS
from relay.protocol import frames
from relay.protocol.ids import AgentKey, Did

PAUSE_PER_DROPPED_S: Final = 0.001
MAX_PAUSE_S: Final = 2.0
MAX_FRESH_FETCH: Final = 32
"""So few records are recent, and worth passing on; more mean that this relay was offline."""


def push_allowance() -> TokenBuckets[Did]:
    """Return the buckets that bound unsolicited records and relay information of each peer."""
    return TokenBuckets(rumors.PUSHED_PER_S, rumors.PUSHED_BURST, MAX_PEERS)


@dataclass(slots=True)
class RecordGossip:
    """Receives records, and queues what is new for the next push.

    Args:
        directory: verifies and stores records.
        changes: the owner of the index.
        exchange: takes what peers say about relays.
    """

    directory: Directory
    changes: RecordChangeReader
    exchange: PeerExchange
    rumors: rumors.Rumors = field(default_factory=rumors.Rumors)
    _allowance: TokenBuckets[Did] = field(default_factory=push_allowance)
    _fetch_budget: Budget = field(default_factory=Budget)
    _push_budget: Budget = field(default_factory=Budget)

    def trusted_links(self) -> list[Link]:
        """Return the links to peers that are not banned: this relay asks them for records."""
        peers = self.exchange.peers
        live = self.exchange.links.live()
        return [link for link in live if not peers.reputation(link.peer).is_banned]

    async def push(self) -> None:
        """Push rumors to a few random peers each, then pending relay information."""
        links = {link.peer: link for link in self.exchange.links.live()}
        for peer, frame in self.rumors.pop_frames(list(links), clock.sample):
            if links[peer].push(frame):
                metrics.GOSSIP.labels("out", "pushed").inc(len(frame.records))
        self.exchange.push()

    def on_published(self, owner: AgentKey, row: RecordRow) -> None:
        """Index and pass on a record that an agent published here."""
        self.changes.on_merged(owner, row.version)
        self.rumors.add(owner, row.compact)

    async def on_push(self, peer: Did, gossip: frames.Gossip) -> None:
        """Merge unsolicited gossip, as far as the peer's allowance goes.

        Raises:
            UnavailableError: the store.
        """
        count = len(gossip.records) + len(gossip.relays)
        allowed = self._allowance.acquire_up_to(peer, count, clock.monotonic())
        dropped = count - allowed
        if dropped:
            metrics.GOSSIP_DROPPED.labels("allowance").inc(dropped)
            # reading costs, too: the relay reads on from a flooding peer only after a pause
            await asyncio.sleep(min(MAX_PAUSE_S, dropped * PAUSE_PER_DROPPED_S))
        relays = gossip.relays[:allowed]
        await self.exchange.merge_relay_infos(peer, relays)
        records = gossip.records[: allowed - len(relays)]
        if records:
            self._pass_on(peer, await self._merge(peer, records, self._push_budget))

    async def merge_fetched(
        self, peer: Did, gossip: frames.Gossip, asked: Sequence[AgentKey]
    ) -> int:
        """Merge the records that a peer returned for ``asked``; return how many are new.

        Raises:
            ProtocolError: ``bad_frame``: records that this relay did not ask for.
            RejectedError: ``blocked``: the peer is banned.
            UnavailableError: the store.
        """
        if len(gossip.records) > len(asked):
            raise bad_frame("more records than were asked for")
        results = await self._merge(peer, gossip.records, self._fetch_budget)
        self.exchange.peers.require_unbanned(peer)
        wanted = set(asked)
        if any(one.owner is not None and one.owner not in wanted for one in results):
            raise bad_frame("records that were not asked for")
        if len(asked) <= MAX_FRESH_FETCH:
            # the pull was quicker than the push, which then finds nothing new to pass on
            self._pass_on(peer, results)
        return sum(one.is_new for one in results)

    async def on_record_reply(self, compact: str, peer: Did) -> None:
        """Merge the one record of a peer's answer, and pass it on if it is new.

        Raises:
            UnavailableError: the store.
        """
        self._pass_on(peer, await self._merge(peer, [compact], self._fetch_budget))

    async def _merge(
        self, peer: Did, compacts: Sequence[str], budget: Budget
    ) -> list[RecordMergeResult]:
        results = await self.directory.merge_from_peer(compacts, peer, budget)
        peers = self.exchange.peers
        for one in results:
            metrics.GOSSIP.labels("in", one.label).inc()
            if one.is_strike:
                peers.strike(peer)
            if one.is_new and one.owner is not None and one.version is not None:
                peers.introduced[peer] += 1
                self.changes.on_merged(one.owner, one.version)
        return results

    def _pass_on(self, peer: Did, results: Sequence[RecordMergeResult]) -> None:
        for one in results:
            if one.is_new and one.owner is not None:
                self.rumors.add(one.owner, one.compact, not_to=peer)
