"""Let an operator look at peers, and add, remove, block or join them (PROTOCOL.md §9).

A peer is added by its DID. If the operator names only an address, the relay there signs who it is,
and that DID is pinned.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Final

from relay import clock
from relay.peering.exchange import PeerExchange
from relay.peering.links import Links
from relay.peering.peers import Peers
from relay.peering.ports import PeerRow, WaitingMail
from relay.peering.relay_info import RelayInfoFetcher
from relay.protocol import relay_info
from relay.protocol.did import did_of, parse_did
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
    RejectedError,
    RelayError,
    error,
    unreachable,
)
from relay.protocol.ids import ORIGIN, AgentKey, Did
from relay.protocol.relay_info import RelayInfo

JOIN_S: Final = 10.0
NOT_ADDED: Final = "; it was not added. relay peers add URL adds it, and dials until it answers"


@dataclass(frozen=True, slots=True)
class PeerAdmin:
    """The operator's use cases.

    Args:
        peers: the rows and the policy.
        links: of this node.
        exchange: asks a joined peer for others.
        waiting: returns (peer, envelopes, wire bytes) of the mail that waits for peers.
        fetcher: asks an address which relay is there.
    """

    peers: Peers
    links: Links
    exchange: PeerExchange
    waiting: WaitingMail
    fetcher: RelayInfoFetcher

    async def show(self) -> list[dict[str, Any]]:
        """Return all relays that are known or for which mail waits; added ones first."""
        rows = sorted(self.peers.rows.values(), key=lambda row: (row.standing, row.url))
        waiting = await self._waiting()
        others = [did_of(key) for key in waiting if did_of(key) not in self.peers.rows]
        return [self._members(row, waiting) for row in (*rows, *map(_unknown, others))]

    async def show_one(self, did: Did) -> dict[str, Any] | None:
        """Return one of them."""
        return next((one for one in await self.show() if one["did"] == did), None)

    async def _waiting(self) -> dict[AgentKey, tuple[int, int]]:
        return {peer: (count, size) for peer, count, size in await self.waiting()}

    async def add(self, url: str, did: str | None = None) -> dict[str, Any]:
        """Deal with a relay from now on.

        Args:
            url: its origin.
            did: the relay that must prove to be there; None: whichever is there now.

        Raises:
            RelayError: ``bad_frame``, ``wrong_relay``, ``not_federated``, ``peer_unreachable``, or
                ``unsupported``: an address that is not dialled.
        """
        self._check(url)
        if did is None:
            info = await self._fetch_info(url)
            row = await self.peers.add(info.did, url, info.jws.compact)
        else:
            row = await self.peers.add(_did(did), url)
        self.links.reset_backoff(row.did, url)
        return self._members(row, await self._waiting())

    async def remove(self, did: str) -> bool:
        """Forget a relay; return False if it was not known."""
        was_known = await self.peers.remove(_did(did))
        self.links.reconcile_now()
        return was_known

    async def block(self, did: str) -> dict[str, Any]:
        """Refuse a relay in both directions, and end its links at once.

        Raises:
            RelayError: ``bad_frame``, or ``not_federated``: it is this one.
        """
        row = await self.peers.block(_did(did))
        self.links.reconcile_now()
        return self._members(row, await self._waiting())

    async def unblock(self, did: str) -> bool:
        """Take a block back; return False if there was none."""
        return await self.peers.unblock(_did(did))

    async def join(self, url: str) -> dict[str, Any]:
        """Link with one live relay, add it, and learn from it which others there are.

        Nothing is written before the link stands, so a failed or interrupted join leaves no trace.

        Raises:
            RelayError: as :meth:`add`; or the other relay refuses this one.
        """
        self._check(url)
        info = await self._fetch_info(url)
        with self.peers.inviting(info.did):
            try:
                await self._link(info.did, url)
                await self.peers.add(info.did, url, info.jws.compact)
            finally:
                self.links.reconcile_now()
        self.exchange.announce(info.did)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(JOIN_S):
                await self.exchange.exchange_peers(force=info.did)
        others = [row.did for row in self.peers.rows.values() if row.did != info.did]
        return {"peer": await self.show_one(info.did), "known": sorted(others)}

    async def _link(self, did: Did, url: str) -> None:
        self.links.reset_backoff(did, url)
        try:
            async with asyncio.timeout(JOIN_S):
                await self.links.reach(did, url)
        except TimeoutError as exc:
            raise unreachable(f"no link to {url} within {JOIN_S:.0f} s{NOT_ADDED}") from exc
        except RelayError as exc:
            raise error(exc.code, f"{exc.detail}{NOT_ADDED}") from exc

    def _check(self, url: str) -> None:
        if ORIGIN.fullmatch(url) is None:
            raise ProtocolError(ErrorCode.BAD_FRAME, "url is an origin: https://host[:port]")
        if self.peers.federation == "off":
            raise RejectedError(ErrorCode.NOT_FEDERATED, "federation is off at this relay")

    async def _fetch_info(self, url: str) -> RelayInfo:
        info = relay_info.parse(await self.fetcher.fetch(url))
        refusal = relay_info.verify(info, clock.now())
        if refusal is not None:
            raise refusal.to_error()
        if info.description.url != url:
            detail = f"the relay there says that it is dialled at {info.description.url}"
            raise ProtocolError(ErrorCode.WRONG_RELAY, detail)
        return info

    # ------------------------------------------------------------ presentation

    def _members(self, row: PeerRow, waiting: Mapping[AgentKey, tuple[int, int]]) -> dict[str, Any]:
        peers, did = self.peers, row.did
        count, size = waiting.get(parse_did(did).agent_key, (0, 0))
        member, reputation = peers.members.get(did), peers.reputation(did)
        return {
            "did": did,
            "url": row.url,
            "standing": row.standing if row.url or row.standing == "blocked" else "unknown",
            "since": row.since,
            "state": member.state if member else None,
            "state_since": (member.since or None) if member else None,
            "reason": member.reason if member else None,
            "linked": self.exchange.link_to(did) is not None,
            "inbound": peers.inbound.get(did, 0),
            "strikes": reputation.strikes,
            "out_s": reputation.retry_after,
            "back_off": self._backoff(row),
            "refused": self._refusal(did),
            "sees_us": self._received_view(did),
            "records": peers.introduced.get(did, 0),
            "outbox": {"count": count, "bytes": size},
        }

    def _backoff(self, row: PeerRow) -> dict[str, Any] | None:
        backoff = self.links.backoff(row.did, row.url)
        if backoff is None:
            return None
        wait_s, exc = backoff
        return {"wait_s": ceil(wait_s), "error": exc.code, "detail": exc.detail}

    def _refusal(self, did: Did) -> dict[str, Any] | None:
        refusal = self.peers.refusals.get(did)
        if refusal is None:
            return None
        return {"error": refusal.code, "detail": refusal.detail, "at": refusal.at}

    def _received_view(self, did: Did) -> dict[str, Any] | None:
        received = self.peers.views.get(did)
        if received is None:
            return None
        view = received.view
        return {
            "state": view.state,
            "since": view.since,
            "strikes": view.strikes,
            "retry_after": view.retry_after,
            "reason": view.reason,
            "age_s": max(0, int(clock.now()) - received.at),
        }


def _unknown(did: Did) -> PeerRow:
    """Return a row for a relay without one: mail may wait for a removed relay."""
    return PeerRow(did, "", "learned", 0)


def _did(text: str) -> Did:
    try:
        return parse_did(text).did
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_FRAME, f"did: {exc}") from exc
