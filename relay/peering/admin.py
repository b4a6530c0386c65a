"""What an operator does about peers: look, add, remove, join (PROTOCOL.md §9).

Rules of the file: a relay is added by its DID; where only an address is given, the relay there says
who it is, signed, and that DID is pinned.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Final

from relay import clock
from relay.directory.mesh import Mesh
from relay.peering.peers import Peers
from relay.peering.ports import (
    Introducing,
    OutboxStore,
    PeerLinks,
    PeerRow,
)
from relay.protocol import relay_info
from relay.protocol.did import (
    did_of,
    parse_did,
)
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
    RejectedError,
    RelayError,
    UnavailableError,
    error,
)
from relay.protocol.ids import (
    ORIGIN,
    AgentKey,
    Did,
)
from relay.protocol.relay_info import RelayInfo

JOIN_S: Final = 10.0
NOTHING_KEPT: Final = "; it was not added. relay peers add URL adds it, and dials until it answers"


@dataclass(frozen=True, slots=True)
class Operating:
    """Use cases of the operator's side."""

    peers: Peers
    links: PeerLinks
    mesh: Mesh
    store: OutboxStore
    introductions: Introducing

    async def show(self) -> list[dict[str, Any]]:
        """All relays that are known, or for which something waits; added ones first."""
        rows = sorted(self.peers.rows.values(), key=lambda row: (row.standing, row.url))
        waiting = await self._waiting()
        others = [did_of(key) for key in waiting if did_of(key) not in self.peers.rows]
        return [self._members(row, waiting) for row in (*rows, *map(_unknown, others))]

    async def show_one(self, did: Did) -> dict[str, Any] | None:
        """One of them."""
        return next((one for one in await self.show() if one["did"] == did), None)

    async def _waiting(self) -> dict[AgentKey, tuple[int, int]]:
        """Envelopes and wire bytes that wait for each peer."""
        return {peer: (count, size) for peer, count, size in await self.store.outboxes()}

    async def add(self, url: str, did: str | None = None) -> dict[str, Any]:
        """Deal with a relay from now on.

        Args:
            url: its origin.
            did: who must prove to be there; None: who is there now.

        Raises:
            RelayError: ``bad_frame``, ``wrong_relay``, ``not_federated``, ``peer_unreachable``, or
                ``unsupported``: an address that is not dialled.
        """
        self._check(url)
        if did is None:
            info = await self._who_is_there(url)
            row = await self.peers.add(info.did, url, info.jws.compact)
        else:
            row = await self.peers.add(_did(did), url)
        self.links.retry(row.did, url)
        return self._members(row, await self._waiting())

    async def remove(self, did: str) -> bool:
        """Deal with it no more; False if it was not known."""
        was_known = await self.peers.remove(_did(did))
        self.links.review()
        return was_known

    async def block(self, did: str) -> dict[str, Any]:
        """Deal with it no more, both ways, whoever tells of it; its links end at once.

        Raises:
            RelayError: ``bad_frame``, or ``not_federated``: it is this one.
        """
        row = await self.peers.block(_did(did))
        self.links.review()
        return self._members(row, await self._waiting())

    async def unblock(self, did: str) -> bool:
        """Take that back; False if it was not blocked."""
        return await self.peers.unblock(_did(did))

    async def join(self, url: str) -> dict[str, Any]:
        """Link with one live relay, add it, and learn from it which others there are.

        Nothing is written down before the link stands: a join that fails, or is interrupted at any
        moment, leaves nothing behind.

        Raises:
            RelayError: as :meth:`add`; or the other relay refuses this one.
        """
        self._check(url)
        info = await self._who_is_there(url)
        with self.peers.inviting(info.did):
            try:
                await self._link(info.did, url)
                await self.peers.add(info.did, url, info.jws.compact)
            finally:
                self.links.review()
        self.mesh.introduce(info.did)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(JOIN_S):
                await self.mesh.meet(anew=info.did)
        others = [row.did for row in self.peers.rows.values() if row.did != info.did]
        return {"peer": await self.show_one(info.did), "known": sorted(others)}

    async def _link(self, did: Did, url: str) -> None:
        self.links.retry(did, url)
        try:
            async with asyncio.timeout(JOIN_S):
                await self.links.reach(did, url)
        except TimeoutError as exc:
            detail = f"no link to {url} within {JOIN_S:.0f} s{NOTHING_KEPT}"
            raise UnavailableError(ErrorCode.PEER_UNREACHABLE, detail) from exc
        except RelayError as exc:
            raise error(exc.code, f"{exc.detail}{NOTHING_KEPT}") from exc

    def _check(self, url: str) -> None:
        if ORIGIN.fullmatch(url) is None:
            raise ProtocolError(ErrorCode.BAD_FRAME, "url is an origin: https://host[:port]")
        if self.peers.federation == "off":
            raise RejectedError(ErrorCode.NOT_FEDERATED, "federation is off at this relay")

    async def _who_is_there(self, url: str) -> RelayInfo:
        info = relay_info.parse(await self.introductions.information(url))
        no = relay_info.verify(info, clock.now())
        if no is not None:
            raise no.to_error()
        if info.said.url != url:
            detail = f"the relay there says that it is dialled at {info.said.url}"
            raise ProtocolError(ErrorCode.WRONG_RELAY, detail)
        return info

    # ------------------------------------------------------------ what is shown

    def _members(self, row: PeerRow, waiting: Mapping[AgentKey, tuple[int, int]]) -> dict[str, Any]:
        peers, did = self.peers, row.did
        count, size = waiting.get(parse_did(did).agent_key, (0, 0))
        member, reputation = peers.roster.peer(did), peers.reputation(did)
        return {
            "did": did,
            "url": row.url,
            "standing": row.standing if row.url or row.standing == "blocked" else "unknown",
            "since": row.since,
            "state": member.state if member else None,
            "state_since": (member.since or None) if member else None,
            "reason": member.reason if member else None,
            "linked": self.mesh.link_to(did) is not None,
            "inbound": peers.inbound.get(did, 0),
            "strikes": reputation.strikes,
            "out_s": reputation.retry_after,
            "back_off": self._back_off(row),
            "refused": self._refused(did),
            "sees_us": self._sees_us(did),
            "records": peers.introduced.get(did, 0),
            "outbox": {"count": count, "bytes": size},
        }

    def _back_off(self, row: PeerRow) -> dict[str, Any] | None:
        waits = self.links.waits(row.did, row.url)
        if waits is None:
            return None
        wait_s, why = waits
        return {"wait_s": ceil(wait_s), "error": why.code, "detail": why.detail}

    def _refused(self, did: Did) -> dict[str, Any] | None:
        no = self.peers.refusals.get(did)
        return None if no is None else {"error": no.code, "detail": no.detail, "at": no.at}

    def _sees_us(self, did: Did) -> dict[str, Any] | None:
        seen = self.peers.views.get(did)
        if seen is None:
            return None
        view = seen.view
        return {
            "state": view.state,
            "since": view.since,
            "strikes": view.strikes,
            "retry_after": view.retry_after,
            "reason": view.reason,
            "age_s": max(0, int(clock.now()) - seen.at),
        }


def _unknown(did: Did) -> PeerRow:
    """A relay that was removed, or that only a record names: mail may wait for it all the same."""
    return PeerRow(did, "", "learned", 0)


def _did(text: str) -> Did:
    try:
        return parse_did(text).did
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_FRAME, f"did: {exc}") from exc
