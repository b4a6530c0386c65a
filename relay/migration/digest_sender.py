"""Send the digest of a frozen inbox before its forwarder may start (GUARANTEES.md §3).

A digest is the list of ids that the agent may have seen here. Its pages go to the target in order,
as often as necessary. Nothing here ends mail. The store leases an inbox to one node at a time; what
failed is tried again within the lease, and then with each new lease.

::

    due ──apply the record──▶ digest acked? ──no──▶ send pages ──all received──▶ written
                                  └──yes, and the record names the target──▶ forward
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
from relay.inbox.model.types import InboxRole
from relay.migration.model import machine
from relay.migration.model.state import (
    DigestForgotten,
    DigestReceipt,
    Handoff,
    MigrationRecord,
    MigrationSide,
    PeerMessage,
)
from relay.migration.ports import MigrationRow, MigrationStore
from relay.migration.steps import MigrationSteps
from relay.peering.link import Link
from relay.peering.links import Links
from relay.protocol import endpoint_record, frames, migration_order
from relay.protocol.did import did_of
from relay.protocol.endpoint_record import Home
from relay.protocol.errors import ErrorCode, ProtocolError, RelayError, UnavailableError
from relay.protocol.frames import MAX_DIGEST_PAGES, MAX_MAYBE_SEEN_IDS
from relay.protocol.ids import AgentKey
from relay.protocol.jws import b64decode, b64encode
from relay.protocol.types import MAYBE_SEEN_ID_BYTES, Mode, MovedRules

PAUSES_S: Final = (0.1, 0.3, 1.0, 2.0, 4.0)
MAX_RESTARTS: Final = 4
"""How often a digest starts again, should the target forget its pages."""
MAX_REASONS: Final = 1_000
SEND_TIMEOUT_S: Final = 30.0
"""A slow target must not hold the inbox: the agent may have chosen another one by then."""


@dataclass(slots=True)
class DigestSender:
    """Sends digests, and decides when mail may follow.

    Args:
        steps: applies events.
        store: holds what digests contain.
        links: other relays.
    """

    steps: MigrationSteps
    store: MigrationStore
    links: Links
    reasons: dict[AgentKey, str] = field(default_factory=dict)
    """Why a digest of this node was not sent, for a person."""

    async def prepare_forward(self, inbox: AgentKey) -> ForwardDecision:
        """Apply the newest record and send the digest if it is due; then decide."""
        record = await self.steps.apply_record(inbox, force=True)
        until = clock.monotonic() + LEASE_S * 0.6
        # after a lease of failures: one try in each, so that other inboxes get their turn
        pauses = () if inbox in self.reasons else PAUSES_S
        for pause_s in (*pauses, None):
            if not machine.has_work(record.side):
                break
            try:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    record = await self._send_digest(inbox, record)
                self.reasons.pop(inbox, None)
            except (RelayError, TimeoutError) as exc:
                self._on_failure(inbox, exc)
                if pause_s is None or clock.monotonic() + pause_s > until:
                    return ForwardDecision(may_forward=False)
                await asyncio.sleep(pause_s)
                record = await self.steps.apply_record(inbox)
        side = record.side
        if side.mode is not Mode.FROZEN or side.handoff is None:
            return ForwardDecision(may_forward=side.role is InboxRole.FORWARDING)
        may_forward = side.role is InboxRole.FORWARDING and side.names_target
        is_proven = may_forward and _evidence(record, await self.store.load(inbox))
        return ForwardDecision(may_forward, side.handoff.id if is_proven else "")

    def _on_failure(self, inbox: AgentKey, exc: RelayError | TimeoutError) -> None:
        if not isinstance(exc, RelayError):
            detail = "the target takes too long to take in a digest"
            exc = UnavailableError(ErrorCode.PEER_UNREACHABLE, detail)
        metrics.DIGEST_FAILURES.labels(exc.code).inc()
        if len(self.reasons) >= MAX_REASONS:
            del self.reasons[next(iter(self.reasons))]
        self.reasons[inbox] = f"{exc.code}: {exc.detail}"
        log.event("digest_failed", did=did_of(inbox), code=exc.code, detail=exc.detail)

    async def homes(self, inbox: AgentKey, handoff: str) -> Sequence[Home]:
        """Return the target of a hand-off; nothing if another hand-off is the current one."""
        row = await self.store.load(inbox)
        record = self.steps.load_state(row)
        side = record.side
        is_current = side.handoff is not None and side.handoff.id == handoff
        if not is_current or side.mode is not Mode.FROZEN or not side.names_target:
            return []
        return [_target(record, row)]

    async def on_unknown_handoff(self, inbox: AgentKey, handoff: str) -> None:
        """Send the digest again: the target does not know a hand-off."""
        with contextlib.suppress(RelayError):
            await self.steps.apply(inbox, DigestForgotten(handoff))

    # ------------------------------------------------------------ the digest

    async def _send_digest(self, inbox: AgentKey, record: MigrationRecord) -> MigrationRecord:
        """Send all pages, then write that the target has them.

        Raises:
            RelayError: the target has not got them.
        """
        row = await self.store.load(inbox)
        target, evidence = _target(record, row), _evidence(record, row)
        handoff = _handoff(record)
        if not evidence:
            # the target cannot recognize a hand-off: the mail goes there like any other
            receipt = DigestReceipt(handoff.id, b"", 0)
        else:
            link = await self.links.reach(target.did, target.url, handoff=True)
            receipt = await _send_pages(link, await self._pages(inbox, record.side, evidence))
            log.event(
                "handoff", step="handed", did=did_of(inbox), handoff=handoff.id, peer=target.did
            )
        return (await self.steps.apply(inbox, PeerMessage(target.did, receipt)))[0]

    async def _pages(
        self, inbox: AgentKey, side: MigrationSide, evidence: str
    ) -> list[frames.Migrate]:
        handoff = _handoff(MigrationRecord(side))
        ids, floor = await self._ids(inbox)
        known = await self.store.known(inbox)
        missing = tuple(sorted(side.awaiting_digests))
        digest = hashlib.sha256(f"{handoff.id} {' '.join(missing)}".encode())
        digest.update(struct.pack(">q", floor) + ids)
        size = MAX_MAYBE_SEEN_IDS * MAYBE_SEEN_ID_BYTES
        parts = [ids[at : at + size] for at in range(0, len(ids), size)] or [b""]
        first = frames.Migrate(
            ref="",
            agent=did_of(inbox),
            handoff=handoff.id,
            authorization=evidence,
            digest_id=b64encode(digest.digest()),
            number=0,
            total=len(parts),
            awaiting_digests=missing,
            dedup_horizon_hour=floor,
            maybe_seen=parts[0],
            rules=known if known != MovedRules() else None,
        )
        later = enumerate(parts[1:], 1)
        return [
            first,
            *(replace(first, number=n, maybe_seen=part, rules=None) for n, part in later),
        ]

    async def _ids(self, inbox: AgentKey) -> tuple[bytes, int]:
        ids: dict[bytes, None] = {}
        after, floor = "", -1
        while True:
            found = await self.store.maybe_seen_ids(inbox, after, MAX_MAYBE_SEEN_IDS)
            for at in range(0, len(found.ids), MAYBE_SEEN_ID_BYTES):
                ids[found.ids[at : at + MAYBE_SEEN_ID_BYTES]] = None
            after, floor = found.after, max(floor, found.floor)
            if not after:
                # one order, so that a repeat after a crash is the same digest; the newest hours
                # first: if there is no room for all, the oldest count as forgotten
                return _newest_ids(sorted(ids, reverse=True), floor)


def _newest_ids(ids: Sequence[bytes], floor: int) -> tuple[bytes, int]:
    """Return the ids that fit into a digest, newest first; older hours are forgotten."""
    limit = MAX_MAYBE_SEEN_IDS * MAX_DIGEST_PAGES
    if len(ids) > limit:
        floor = max(floor, int.from_bytes(ids[limit][:4], "big"))
    return b"".join(ids[:limit]), floor


async def _send_pages(link: Link, pages: Sequence[frames.Migrate]) -> DigestReceipt:
    """Send the pages in order, from where the target needs them.

    Raises:
        RelayError: the target's refusal, or no answer.
    """
    number, total = 0, len(pages)
    for _ in range(MAX_RESTARTS * total):
        page = pages[number]
        answer = await link.ask(_with_ref(page))
        if not isinstance(answer, frames.Migrated):
            raise ProtocolError(ErrorCode.BAD_FRAME, "the peer answers another question")
        if (answer.handoff, answer.digest_id) != (
            page.handoff,
            page.digest_id,
        ) or answer.next > total:
            raise ProtocolError(ErrorCode.BAD_FRAME, "the peer speaks of another digest")
        if answer.next == total:
            return DigestReceipt(page.handoff, b64decode(page.digest_id), total)
        number = answer.next
    detail = "the target asks for the same pages again and again"
    raise UnavailableError(ErrorCode.PEER_UNREACHABLE, detail)


def _with_ref(page: frames.Migrate) -> Callable[[str], frames.Migrate]:
    return lambda ref: replace(page, ref=ref)


def _handoff(record: MigrationRecord) -> Handoff:
    handoff = record.side.handoff
    assert handoff is not None  # noqa: S101  a side with work has one
    return handoff


def _target(record: MigrationRecord, row: MigrationRow) -> Home:
    """Return the target's address, from the newest record or else from the order.

    Raises:
        UnavailableError: neither names it.
    """
    homes: list[Home] = []
    if row.record is not None:
        homes += endpoint_record.parse(row.record.compact).relays
    if record.order:
        homes.append(migration_order.parse(record.order).target)
    for home in homes:
        if home.did == _handoff(record).peer:
            return home
    raise UnavailableError(ErrorCode.PEER_UNREACHABLE, "nobody says where the target is")


def _evidence(record: MigrationRecord, row: MigrationRow) -> str:
    """Return what proves that the agent's mail was here: a record or an order.

    The former record comes first, then the order, then the newest record. Return "" if the agent
    lived here without a record.
    """
    me, order = record.side.me, record.order
    by_order = bool(order) and migration_order.parse(order).id == _handoff(record).id
    if row.former is not None and not by_order and endpoint_record.parse(row.former).names(me):
        return row.former
    if order or row.record is None:
        return order
    left = endpoint_record.parse(row.record.compact).drain
    return row.record.compact if any(one.did == me for one in left) else ""
