"""Movers: what a frozen inbox has to say before its courier may go (GUARANTEES.md §3).

Rules of the file: nothing is let go here. The digest is said page by page, in order, as often as it
takes; the inbox is lent to one node at a time, and a lease that lapses hands it to another. What
failed is tried again within the lease, and then with each new one.

::

    due ──settle──▶ digest said? ──no──▶ pages ──all there──▶ written down
                         └──yes, and the record names the target──▶ courier
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from relay import clock, log, metrics
from relay.forwarding.ports import ForwardDecision
from relay.inbox.model.store_contract import LEASE_S
from relay.inbox.model.types import (
    InboxRole,
)
from relay.migration.model import machine
from relay.migration.model.state import (
    DigestForgotten,
    DigestReceipt,
    MigrationSide,
    PeerMessage,
)
from relay.migration.model.state_json import (
    MigrationRecord,
)
from relay.migration.ports import (
    HandoffStore,
    MigrationRow,
)
from relay.migration.steps import (
    MigrationSteps,
)
from relay.peering.link import Link
from relay.peering.links import Links
from relay.protocol import (
    endpoint_record,
    frames,
    migration_order,
)
from relay.protocol.did import did_of
from relay.protocol.endpoint_record import Home
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
    RelayError,
    UnavailableError,
)
from relay.protocol.ids import AgentKey
from relay.protocol.jws import (
    b64decode,
    b64encode,
)
from relay.protocol.types import (
    MAYBE_SEEN_ID_BYTES,
    Mode,
    MovedRules,
)

PAUSES_S: Final = (0.1, 0.3, 1.0, 2.0, 4.0)
ASKS: Final = 4
"""A digest is begun anew so often at most, should the target forget its pages."""
MOST_REMEMBERED: Final = 1_000
HAND_S: Final = 30.0
"""A target that takes its time gives way: the inbox may be for another one by then."""


@dataclass(slots=True)
class DigestSender:
    """Says digests.

    Args:
        handoffs: the steps.
        store: what they are about.
        links: other relays.
    """

    handoffs: MigrationSteps
    store: HandoffStore
    links: Links
    why: dict[AgentKey, str] = field(default_factory=dict)
    """What keeps a mover of this node from going on, for a person."""

    async def prepare_forward(self, inbox: AgentKey) -> ForwardDecision:
        """Act upon the record, say the digest if it is due; whether a courier may go then."""
        kept = await self.handoffs.settle(inbox, anew=True)
        until = clock.monotonic() + LEASE_S * 0.6
        # a target that has failed for a whole lease is asked once in each: others want their turn
        pauses = () if inbox in self.why else PAUSES_S
        for pause_s in (*pauses, None):
            if not machine.has_work(kept.side):
                break
            try:
                kept = await self._hand_soon(inbox, kept)
                self.why.pop(inbox, None)
            except RelayError as exc:
                self._failed(inbox, exc)
                if pause_s is None or clock.monotonic() + pause_s > until:
                    return ForwardDecision(may_forward=False)
                await asyncio.sleep(pause_s)
                kept = await self.handoffs.settle(inbox)
        side = kept.side
        if side.mode is not Mode.FROZEN or side.handoff is None:
            return ForwardDecision(may_forward=side.holding is InboxRole.FORWARDING)
        may_carry = side.holding is InboxRole.FORWARDING and side.names_target
        is_shown = may_carry and _evidence(side, kept, await self.store.handoff(inbox))
        return ForwardDecision(may_carry, side.handoff.id if is_shown else "")

    def _failed(self, inbox: AgentKey, exc: RelayError) -> None:
        metrics.DIGEST_FAILURES.labels(exc.code).inc()
        if len(self.why) >= MOST_REMEMBERED:
            del self.why[next(iter(self.why))]
        self.why[inbox] = f"{exc.code}: {exc.detail}"
        log.event("digest_failed", did=did_of(inbox), code=exc.code, detail=exc.detail)

    async def homes(self, inbox: AgentKey, handoff: str) -> Sequence[Home]:
        """Where the mail of a hand-off may go: its target, while that is the current one."""
        row = await self.store.handoff(inbox)
        kept = self.handoffs.kept(row)
        side = kept.side
        current = side.handoff is not None and side.handoff.id == handoff
        if not current or side.mode is not Mode.FROZEN or not side.names_target:
            return []
        return [_target(side, kept, row)]

    async def on_unknown_handoff(self, inbox: AgentKey, handoff: str) -> None:
        """The target refuses mail of a hand-off that it does not know: say the digest again."""
        with contextlib.suppress(RelayError):
            await self.handoffs.take(inbox, DigestForgotten(handoff))

    # ------------------------------------------------------------ the digest

    async def _hand_soon(self, inbox: AgentKey, kept: MigrationRecord) -> MigrationRecord:
        try:
            async with asyncio.timeout(HAND_S):
                return await self._hand(inbox, kept)
        except TimeoutError as exc:
            detail = "the target takes too long to take in a digest"
            raise UnavailableError(ErrorCode.PEER_UNREACHABLE, detail) from exc

    async def _hand(self, inbox: AgentKey, kept: MigrationRecord) -> MigrationRecord:
        """Say all of it, then write down that it was heard.

        Raises:
            RelayError: it was not.
        """
        side, row = kept.side, await self.store.handoff(inbox)
        assert side.handoff is not None  # noqa: S101  it has work
        target, evidence = _target(side, kept, row), _evidence(side, kept, row)
        if not evidence:
            # the target cannot take it for a hand-off: what waits goes there like any other mail
            nothing = DigestReceipt(side.handoff.id, b"", 0)
            return (await self.handoffs.take(inbox, PeerMessage(target.did, nothing)))[0]
        link = await self.links.reach(target.did, target.url, handoff=True)
        pages = await self._pages(inbox, side, evidence)
        receipt = await _say(link, pages)
        log.event(
            "handoff", step="handed", did=did_of(inbox), handoff=side.handoff.id, peer=target.did
        )
        return (await self.handoffs.take(inbox, PeerMessage(target.did, receipt)))[0]

    async def _pages(
        self, inbox: AgentKey, side: MigrationSide, evidence: str
    ) -> list[frames.Migrate]:
        assert side.handoff is not None  # noqa: S101  as above
        ids, floor = await self._doubts(inbox)
        known = await self.store.known(inbox)
        missing = tuple(sorted(side.awaiting_digests))
        digest_id = hashlib.sha256()
        digest_id.update(f"{side.handoff.id} {' '.join(missing)}".encode())
        digest_id.update(struct.pack(">q", floor) + ids)
        size = machine.DIGEST_PAGE * MAYBE_SEEN_ID_BYTES
        parts = [ids[at : at + size] for at in range(0, len(ids), size)] or [b""]
        return [
            frames.Migrate(
                ref="",
                agent=did_of(inbox),
                handoff=side.handoff.id,
                evidence=evidence,
                whole=b64encode(digest_id.digest()),
                number=number,
                total=len(parts),
                missing=missing,
                floor=floor,
                doubts=part,
                known=known if number == 0 and known != MovedRules() else None,
            )
            for number, part in enumerate(parts)
        ]

    async def _doubts(self, inbox: AgentKey) -> tuple[bytes, int]:
        ids: dict[bytes, None] = {}
        after, floor = "", -1
        while True:
            found = await self.store.doubts(inbox, after, machine.DIGEST_PAGE)
            some = found.ids
            for at in range(0, len(some), MAYBE_SEEN_ID_BYTES):
                ids[some[at : at + MAYBE_SEEN_ID_BYTES]] = None
            after, floor = found.after, max(floor, found.floor)
            if not after:
                # in one order, so that what is said again after a crash is the same digest; the
                # newest hours first: should there be no room for all, the oldest are marked as such
                return _fitting(sorted(ids, reverse=True), floor)


def _fitting(ids: Sequence[bytes], floor: int) -> tuple[bytes, int]:
    """Ids of as many of the newest hours as a digest has room for; older ones are forgotten."""
    most = machine.DIGEST_PAGE * machine.DIGEST_PAGES
    if len(ids) > most:
        floor = max(floor, int.from_bytes(ids[most][:4], "big"))
    return b"".join(ids[:most]), floor


async def _say(link: Link, pages: Sequence[frames.Migrate]) -> DigestReceipt:
    """Say the pages in order, from where the target wants them.

    Raises:
        RelayError: its refusal, or no answer.
    """
    number, total = 0, len(pages)
    for _ in range(ASKS * total):
        page = pages[number]
        answer = await link.ask(_asking(page))
        if not isinstance(answer, frames.Migrated):
            raise ProtocolError(ErrorCode.BAD_FRAME, "the peer answers another question")
        if (answer.handoff, answer.whole) != (
            page.handoff,
            page.whole,
        ) or answer.next > total:
            raise ProtocolError(ErrorCode.BAD_FRAME, "the peer speaks of another digest")
        if answer.next == total:
            return DigestReceipt(page.handoff, b64decode(page.whole), total)
        number = answer.next
    detail = "the target asks for the same pages again and again"
    raise UnavailableError(ErrorCode.PEER_UNREACHABLE, detail)


def _asking(page: frames.Migrate) -> Callable[[str], frames.Migrate]:
    return lambda ref: replace(page, ref=ref)


def _target(side: MigrationSide, kept: MigrationRecord, row: MigrationRow) -> Home:
    """Where the target is: as the record says, or else as the order does.

    Raises:
        UnavailableError: neither says so.
    """
    assert side.handoff is not None  # noqa: S101  only of a hand-off
    peer = side.handoff.peer
    homes: list[Home] = []
    if row.record is not None:
        homes += endpoint_record.parse(row.record.compact).relays
    if kept.order:
        homes.append(migration_order.parse(kept.order).target)
    for home in homes:
        if home.did == peer:
            return home
    raise UnavailableError(ErrorCode.PEER_UNREACHABLE, "nobody says where the target is")


def _evidence(side: MigrationSide, kept: MigrationRecord, row: MigrationRow) -> str:
    """What shows that the agent's mail lay here: an earlier record, an order, or the newest record.

    "" where nothing does: it lived here without a record.
    """
    assert side.handoff is not None  # noqa: S101  only of a hand-off
    by_order = bool(kept.order) and migration_order.parse(kept.order).id == side.handoff.id
    has_lived = row.former is not None and endpoint_record.parse(row.former).names(side.me)
    if row.former is not None and has_lived and not by_order:
        return row.former
    if kept.order or row.record is None:
        return kept.order
    left = endpoint_record.parse(row.record.compact).drain
    return row.record.compact if any(one.did == side.me for one in left) else ""
