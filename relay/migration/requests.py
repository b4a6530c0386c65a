"""Migration requests: what an agent asks of its old and its new relay (PROTOCOL.md §5.12).

The signed order authorizes each request: no session exists at either relay while an inbox moves.
Every request may be repeated, and returns the same answer again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from relay import clock, log
from relay.directory.publish import Directory
from relay.inbox.login import Registration
from relay.inbox.model.types import InboxLimits
from relay.inbox.ports import InboxStore, Keys
from relay.inbox.status import STATES
from relay.migration.digest_sender import DigestSender
from relay.migration.model import machine
from relay.migration.model.state import Freeze, OrderRef, Prepare
from relay.migration.ports import MigrationStore
from relay.migration.steps import MigrationSteps
from relay.peering.peers import Peers
from relay.protocol import endpoint_record, envelope, frames, migration_order, migration_statement
from relay.protocol.did import SigningKey, did_of
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
    Refusal,
    RejectedError,
    StateError,
    UnavailableError,
)
from relay.protocol.ids import AgentKey, Eid, Seq
from relay.protocol.migration_order import MigrationOrder
from relay.protocol.types import DedupKey, Mode, WaitingEnvelope

FREEZE_WAIT_S: Final = 6.0
"""How long a freeze waits for the digest: less than clients wait for an answer over HTTP."""
POLL_INTERVAL_S: Final = 0.25
RETRY_AT_CAPACITY_S: Final = 60
MAX_ITEMS: Final = 1_024
MAX_REASON_CHARS: Final = 512


@dataclass(frozen=True, slots=True)
class Room:
    """The mail that an agent will bring: envelopes, bytes of all, and of the largest."""

    count: int
    bytes: int
    largest: int


@dataclass(slots=True)
class MigrationRequests:
    """Answers agents that move.

    Args:
        key: of this relay; signs statements.
        store: inboxes that move.
        inboxes: answers what became of envelopes.
        keys: which keys may act for a DID.
        steps: applies events.
        digests: sends digests.
        directory: merges the record that an agent brings.
        registration: who may have an inbox.
        peers: which relays may hand over.
        limits: of an inbox.
        max_body_bytes: the largest body.
    """

    key: SigningKey
    store: MigrationStore
    inboxes: InboxStore
    keys: Keys
    steps: MigrationSteps
    digests: DigestSender
    directory: Directory
    registration: Registration
    peers: Peers
    limits: InboxLimits
    max_body_bytes: int

    # ------------------------------------------------------------ at the target

    async def offer(self, order: MigrationOrder, room: Room) -> str:
        """Return a statement if :meth:`prepare` would succeed; change nothing.

        Raises:
            RelayError: the refusal.
        """
        owner = await self._verify(order)
        self._require_room(order, room)
        side = self.steps.load_state(await self.store.load(owner)).side
        result = machine.step(side, Prepare(OrderRef.of(order)), clock.now())
        if isinstance(result, Refusal):
            raise result.to_error()
        return await self._statement(owner)

    async def prepare(self, order: MigrationOrder, room: Room, newest: str) -> str:
        """Make the target ready: it accepts mail and delivers nothing.

        Args:
            order: the agent's.
            room: what the agent will bring.
            newest: the agent's current record.

        Raises:
            RelayError: ``not_admitted``, ``blocked``, ``not_federated``, ``inbox_full``,
                ``too_large``, ``stale_record``, ``wrong_state``, ``expired``, ``overloaded``
                or the error of order or record.
        """
        owner = await self._verify(order)
        self._require_room(order, room)
        if self.steps.at_capacity(owner):
            detail = "too many inboxes are being moved to or from this relay"
            raise UnavailableError(ErrorCode.OVERLOADED, detail, retry_after=RETRY_AT_CAPACITY_S)
        if endpoint_record.parse(newest).did != order.did:
            raise ProtocolError(ErrorCode.BAD_FRAME, "newest is another agent's record")
        [merged] = await self.directory.merge_from_peer([newest], self.key.did)
        if isinstance(merged.outcome, Refusal):
            raise merged.outcome.to_error()
        if merged.version is None:
            detail = "the directory takes no unknown agents just now"
            raise RejectedError(ErrorCode.NOT_ADMITTED, detail)
        await self.steps.apply(owner, Prepare(OrderRef.of(order)), order=order.jws.compact)
        log.event(
            "handoff", step="prepared", did=order.did, handoff=order.id, peer=order.source.did
        )
        return await self._statement(owner)

    def _require_room(self, order: MigrationOrder, room: Room) -> None:
        if order.target.did != self.key.did:
            raise StateError(ErrorCode.WRONG_RELAY, "the order names another target")
        if order.did in self.registration.deny:
            raise RejectedError(ErrorCode.BLOCKED, "the operator does not serve this agent")
        if not self.registration.admits(order.did):
            detail = "registration is not open to this agent"
            raise RejectedError(ErrorCode.NOT_ADMITTED, detail)
        self.peers.require_handoff(order.source.did)
        if room.count > self.limits.max_count or room.bytes > self.limits.max_bytes:
            raise RejectedError(ErrorCode.INBOX_FULL, "an inbox here has not so much room")
        if room.largest > self.max_body_bytes + envelope.MAX_JWS_BYTES:
            raise ProtocolError(ErrorCode.TOO_LARGE, "an envelope that waits is too large here")

    # ------------------------------------------------------------ at the source

    async def freeze(self, order: MigrationOrder) -> str:
        """Stop deliveries; answer when the target has the digest, or after 6 s.

        Raises:
            RelayError: ``wrong_state``: this relay is not the agent's home; ``stale_record``,
                ``expired``, ``not_federated`` or the error of the order.
        """
        owner = await self._verify(order)
        if order.source.did != self.key.did:
            raise StateError(ErrorCode.WRONG_RELAY, "the order names another source")
        self.peers.require_handoff(order.target.did)
        if (await self.store.load(owner)).role is None:
            raise StateError(ErrorCode.WRONG_STATE, "this relay is not the agent's home")
        # the new target gets its digest at once, whatever another target did
        self.digests.reasons.pop(owner, None)
        freeze = Freeze(OrderRef.of(order))
        record, _ = await self.steps.apply(owner, freeze, order=order.jws.compact)
        log.event("handoff", step="frozen", did=order.did, handoff=order.id, peer=order.target.did)
        self.steps.wake_forwarders()
        until = clock.monotonic() + FREEZE_WAIT_S
        while not record.side.digest_acked and (left := until - clock.monotonic()) > 0:
            await self.steps.wait_for_change(min(left, POLL_INTERVAL_S))
            record = self.steps.load_state(await self.store.load(owner))
        return await self._statement(owner)

    async def inventory(
        self, order: MigrationOrder, after: Seq, limit: int = MAX_ITEMS
    ) -> Sequence[WaitingEnvelope]:
        """Return the mail that waits here behind ``after``.

        Raises:
            RelayError: the error of the order.
        """
        owner = await self._verify(order, is_reading=True)
        return await self.store.waiting(owner, after, limit)

    # ------------------------------------------------------------ at either

    async def state(self, order: MigrationOrder) -> str:
        """Return the signed state of the migration here.

        Raises:
            RelayError: the error of the order.
        """
        return await self._statement(await self._verify(order, is_reading=True))

    async def find(
        self, order: MigrationOrder, items: Sequence[tuple[DedupKey, Eid]]
    ) -> Sequence[frames.State]:
        """Return the states of these envelopes here.

        Raises:
            RelayError: the error of the order.
        """
        owner = await self._verify(order, is_reading=True)
        found = await self.inboxes.status(owner, [question for question, _ in items])
        return [
            STATES[one.disposition] if one is not None and eid.startswith(one.eid) else "unknown"
            for (_, eid), one in zip(items, found, strict=True)
        ]

    async def _verify(self, order: MigrationOrder, *, is_reading: bool = False) -> AgentKey:
        """Check that the agent signed the order; an expired one may still read."""
        key = await self.keys.resolve(order.did)
        refusal = migration_order.verify(order, key, clock.now())
        has_expired = refusal is not None and refusal.code is ErrorCode.EXPIRED
        if refusal is not None and not (is_reading and has_expired):
            raise refusal.to_error()
        if not order.concerns(self.key.did):
            raise StateError(ErrorCode.WRONG_RELAY, "the order names other relays")
        return key.agent_key

    async def _statement(self, owner: AgentKey) -> str:
        row = await self.store.load(owner)
        side = self.steps.load_state(row).side
        statement = migration_statement.MigrationStatement(
            relay=self.key.did,
            did=did_of(owner),
            handoff=side.handoff.id if side.handoff else "",
            mode=side.mode,
            at=int(clock.now()),
            digest_received=side.digest_received,
            digest_acked=side.digest_acked,
            record_names_target=side.names_target if side.mode is Mode.FROZEN else side.is_home,
            awaiting_digests=tuple(sorted(side.awaiting_digests)),
            counters=row.counters,
            reason=self.digests.reasons.get(owner, "")[:MAX_REASON_CHARS],
        )
        return migration_statement.sign(self.key, statement)
