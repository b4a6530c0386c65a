"""Hearing: what peers tell of agents and relays is checked, kept, and only then passed on (§5.10).

Rules of the file: what a peer pushes costs no more than its allowance, whatever it is; what nobody
signed is held against whom it came from, and against nobody else. Expiry, order and a signature
that verifiers judge differently are held against nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from relay import clock, metrics
from relay.directory.budget import Budget
from relay.directory.model.anti_entropy import Index
from relay.directory.model.rumors import (
    Rumors,
)
from relay.directory.publish import (
    Directory,
    Kept,
)
from relay.peering.model.reputation import (
    Allowance,
    is_strike,
)
from relay.peering.peers import Peers
from relay.peering.ports import RecordRow
from relay.protocol import (
    endpoint_record,
    frames,
    jws,
    relay_info,
)
from relay.protocol.did import parse_did
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
    Refusal,
    RelayError,
)
from relay.protocol.ids import (
    AgentKey,
    Did,
)

MAX_NEWS_OF_RELAYS: Final = 256
PAUSE_S: Final = 0.001
LONGEST_PAUSE_S: Final = 2.0
FEW: Final = 32
"""So few records that were lacking are fresh; more were missed, and others may have them all."""


@dataclass(slots=True)
class Hearing:
    """Takes in gossip; what is news waits in ``rumors`` and ``relays`` to be passed on.

    Args:
        directory: keeps records.
        index: the versions held.
        peers: who told.
    """

    directory: Directory
    index: Index
    peers: Peers
    rumors: Rumors = field(default_factory=Rumors)
    relays: list[str] = field(default_factory=list)
    _allowance: Allowance = field(default_factory=Allowance)
    _budget: Budget = field(default_factory=Budget)
    _push_budget: Budget = field(default_factory=Budget)

    def published(self, owner: AgentKey, row: RecordRow) -> None:
        """An agent published a record here."""
        self.index.put(owner, row.version)
        self.rumors.add(owner, row.compact)

    async def pushed(self, peer: Did, gossip: frames.Gossip) -> None:
        """A peer passes on what it has heard, unasked.

        Raises:
            UnavailableError: the store.
        """
        said = len(gossip.records) + len(gossip.relays)
        allowed = self._allowance.take(peer, said, clock.monotonic())
        dropped = said - allowed
        if dropped:
            metrics.GOSSIP_DROPPED.labels("allowance").inc(dropped)
            # reading costs, too: who floods is read on only after a while
            await asyncio.sleep(min(LONGEST_PAUSE_S, dropped * PAUSE_S))
        relays = gossip.relays[:allowed]
        await self.told_of_relays(peer, relays)
        told = gossip.records[: allowed - len(relays)]
        if told:
            kept = await self.directory.keep(told, peer, self._push_budget)
            self._judge(peer, kept)
            self._pass_on(peer, kept)

    async def fetched(self, peer: Did, gossip: frames.Gossip, asked: Sequence[AgentKey]) -> int:
        """A peer answers with records that were asked for; gives how many are news.

        Raises:
            RejectedError: ``blocked``: it lies too often.
            UnavailableError: the store.
        """
        if len(gossip.records) > len(asked):
            raise ProtocolError(ErrorCode.BAD_FRAME, "more records than were asked for")
        kept = await self.directory.keep(gossip.records, peer, self._budget)
        self._judge(peer, kept)
        self.peers.listen_to(peer)
        wanted = set(asked)
        if any(one.owner is not None and one.owner not in wanted for one in kept):
            raise ProtocolError(ErrorCode.BAD_FRAME, "records that were not asked for")
        if len(asked) <= FEW:
            # the pull was quicker than the push, which is then no news and not passed on
            self._pass_on(peer, kept)
        return sum(one.is_news for one in kept)

    async def told(self, compact: str, peer: Did) -> None:
        """A peer answers with one record, in a place where it matters at once.

        Raises:
            UnavailableError: the store.
        """
        kept = await self.directory.keep([compact], peer, self._budget)
        self._judge(peer, kept)
        self._pass_on(peer, kept)

    async def told_of_relays(self, peer: Did, infos: Sequence[str]) -> None:
        """A peer tells of relays; others have a turn in between."""
        for compact in infos:
            await asyncio.sleep(0)
            try:
                info = await self.peers.heard_of(compact)
            except ProtocolError as exc:
                is_edge_case = _is_edge_case_of_relays(compact, exc.code)
                if is_strike(exc.code, is_edge_case=is_edge_case):
                    self.peers.strike(peer)
                continue
            if info is not None and self.peers.is_proved(info.did):
                # whoever was not reached from here would be dialled by all on hearsay
                self.pass_on(compact)

    def pass_on(self, info: str | None) -> None:
        """Tell others of a relay; more news than there is room for is left to their questions."""
        if info is not None and len(self.relays) < MAX_NEWS_OF_RELAYS:
            self.relays.append(info)

    def _judge(self, peer: Did, kept: Sequence[Kept]) -> None:
        for one in kept:
            metrics.GOSSIP.labels("in", _outcome(one)).inc()
            if one.is_strike and not _is_edge_case(one):
                self.peers.strike(peer)
            if one.is_news and one.owner is not None and one.version is not None:
                self.peers.introduced[peer] += 1
                self.index.put(one.owner, one.version)

    def _pass_on(self, peer: Did, kept: Sequence[Kept]) -> None:
        for one in kept:
            if one.is_news and one.owner is not None:
                self.rumors.add(one.owner, one.compact, not_to=peer)


def _outcome(kept: Kept) -> str:
    return kept.outcome.code if isinstance(kept.outcome, Refusal) else kept.outcome


def _is_edge_case(kept: Kept) -> bool:
    """Whether an honest relay, with another verifier, may have taken this signature for good."""
    if not isinstance(kept.outcome, Refusal) or kept.outcome.code is not ErrorCode.BAD_SIGNATURE:
        return False
    try:
        record = endpoint_record.parse(kept.compact)
        return not jws.is_plainly_forged(record.jws, parse_did(record.did).public_key)
    except (RelayError, ValueError):
        return False


def _is_edge_case_of_relays(compact: str, code: ErrorCode) -> bool:
    """The same of relay information."""
    if code is not ErrorCode.BAD_SIGNATURE:
        return False
    info = relay_info.parse(compact)
    return not jws.is_plainly_forged(info.jws, info.key.public_key)
