"""Migrations: what an agent asks of its old relay and its new one (PROTOCOL.md §5.12).

Rules of the file: the signed order is the proof; no session is needed, for there is none at either
relay while an inbox moves. Every step may be repeated, and says again what it said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from relay import clock, log
from relay.directory.publish import Directory
from relay.inbox.login import Registration
from relay.inbox.model.types import (
    InboxLimits,
)
from relay.inbox.ports import (
    InboxStore,
    Keys,
)
from relay.inbox.status import STATES
from relay.migration.digest_sender import (
    DigestSender,
)
from relay.migration.model import machine
from relay.migration.model.state import (
    Freeze,
    MigrationSide,
    OrderRef,
    Prepare,
)
from relay.migration.ports import HandoffStore
from relay.migration.steps import (
    MigrationSteps,
)
from relay.peering.peers import Peers
from relay.protocol import (
    endpoint_record,
    envelope,
    frames,
    migration_order,
)
from relay.protocol import (
    migration_statement as handoffs,
)
from relay.protocol.did import (
    SigningKey,
    did_of,
)
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
    Refusal,
    RejectedError,
    StateError,
    UnavailableError,
)
from relay.protocol.ids import (
    AgentKey,
    Eid,
    Seq,
)
from relay.protocol.migration_order import MigrationOrder
from relay.protocol.migration_statement import (
    MigrationStatement,
)
from relay.protocol.types import (
    DedupKey,
    Mode,
    WaitingEnvelope,
)

FREEZE_S: Final = 6.0
"""Below what clients wait for an answer over HTTP."""
LOOK_S: Final = 0.25
FULL_S: Final = 60
MOST_ITEMS: Final = 1_024


@dataclass(frozen=True, slots=True)
class Room:
    """What an agent says it will bring: envelopes, wire bytes of all, and of the largest."""

    count: int
    bytes: int
    largest: int


class MigrationStore(InboxStore, HandoffStore, Protocol):
    """What this needs of a store."""


@dataclass(slots=True)
class MigrationRequests:
    """Answers agents that move.

    Args:
        key: of this relay; signs statements.
        store: inboxes.
        keys: which keys may act for a DID.
        handoffs: takes the steps.
        mover: says digests.
        directory: takes the record that an agent brings.
        registration: who may have an inbox.
        peers: which relays may be dealt with.
        limits: of an inbox.
        max_body_bytes: largest body.
    """

    key: SigningKey
    store: MigrationStore
    keys: Keys
    handoffs: MigrationSteps
    mover: DigestSender
    directory: Directory
    registration: Registration
    peers: Peers
    limits: InboxLimits
    max_body_bytes: int

    # ------------------------------------------------------------ at the target

    async def offer(self, order: MigrationOrder, room: Room) -> str:
        """Whether :meth:`prepare` would be taken; changes nothing.

        Raises:
            RelayError: why not.
        """
        owner = await self._verify(order)
        self._admit(order, room)
        side = self.handoffs.kept(await self.store.handoff(owner)).side
        done = machine.step(side, Prepare(OrderRef.of(order)), clock.now())
        if isinstance(done, Refusal):
            raise done.to_error()
        return await self._statement(owner)

    async def prepare(self, order: MigrationOrder, room: Room, newest: str) -> str:
        """Get ready: take mail, and deliver nothing.

        Args:
            order: the agent's.
            room: what it will bring.
            newest: the agent's record as it is now.

        Raises:
            RelayError: ``not_admitted``, ``blocked``, ``not_federated``, ``inbox_full``,
                ``too_large``, ``stale_record``, ``wrong_state``, ``expired``, ``overloaded``
                or what is wrong with order or record.
        """
        owner = await self._verify(order)
        self._admit(order, room)
        if self.handoffs.is_full(owner):
            detail = "too many inboxes are being moved to or from this relay"
            raise UnavailableError(ErrorCode.OVERLOADED, detail, retry_after=FULL_S)
        if endpoint_record.parse(newest).did != order.did:
            raise ProtocolError(ErrorCode.BAD_FRAME, "newest is another agent's record")
        [merged] = await self.directory.merge_from_peer([newest], self.key.did)
        if isinstance(merged.outcome, Refusal):
            raise merged.outcome.to_error()
        if merged.version is None:
            detail = "the directory takes no unknown agents just now"
            raise RejectedError(ErrorCode.NOT_ADMITTED, detail)
        await self.handoffs.take(owner, Prepare(OrderRef.of(order)), order=order.jws.compact)
        log.event(
            "handoff", step="prepared", did=order.did, handoff=order.id, peer=order.source.did
        )
        return await self._statement(owner)

    def _admit(self, order: MigrationOrder, room: Room) -> None:
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
        """Stop delivering; answers once the target knows what the agent has seen, or after 6 s.

        Raises:
            RelayError: ``wrong_state``: this relay is not the agent's home; ``stale_record``,
                ``expired``, ``not_federated`` or what is wrong with the order.
        """
        owner = await self._verify(order)
        if order.source.did != self.key.did:
            raise StateError(ErrorCode.WRONG_RELAY, "the order names another source")
        self.peers.require_handoff(order.target.did)
        if (await self.store.handoff(owner)).holding is None:
            raise StateError(ErrorCode.WRONG_STATE, "this relay is not the agent's home")
        # it is tried at once, whatever another target did
        self.mover.why.pop(owner, None)
        kept, _ = await self.handoffs.take(
            owner, Freeze(OrderRef.of(order)), order=order.jws.compact
        )
        log.event("handoff", step="frozen", did=order.did, handoff=order.id, peer=order.target.did)
        self.handoffs.wake_forwarders()
        until = clock.monotonic() + FREEZE_S
        while not kept.side.digest_acked and (left := until - clock.monotonic()) > 0:
            await self.handoffs.wait_for_change(min(left, LOOK_S))
            kept = self.handoffs.kept(await self.store.handoff(owner))
        return await self._statement(owner)

    async def inventory(
        self, order: MigrationOrder, after: Seq, most: int = MOST_ITEMS
    ) -> Sequence[WaitingEnvelope]:
        """What waits here behind ``after``.

        Raises:
            RelayError: what is wrong with the order.
        """
        owner = await self._verify(order, is_reading=True)
        return await self.store.waiting(owner, after, most)

    # ------------------------------------------------------------ at either

    async def state(self, order: MigrationOrder) -> str:
        """How the hand-off stands here, signed.

        Raises:
            RelayError: what is wrong with the order.
        """
        return await self._statement(await self._verify(order, is_reading=True))

    async def find(
        self, order: MigrationOrder, items: Sequence[tuple[DedupKey, Eid]]
    ) -> Sequence[frames.State]:
        """What became of these here.

        Raises:
            RelayError: what is wrong with the order.
        """
        owner = await self._verify(order, is_reading=True)
        found = await self.store.status(owner, [question for question, _ in items])
        return [
            STATES[one.fate] if one is not None and eid.startswith(one.eid) else "unknown"
            for (_, eid), one in zip(items, found, strict=True)
        ]

    async def _verify(self, order: MigrationOrder, *, is_reading: bool = False) -> AgentKey:
        """Whether the agent signed it; what only reads may be asked after it has expired."""
        key = await self.keys.resolve(order.did)
        no = migration_order.verify(order, key, clock.now())
        is_over = is_reading and no is not None and no.code is ErrorCode.EXPIRED
        if no is not None and not is_over:
            raise no.to_error()
        if not order.concerns(self.key.did):
            raise StateError(ErrorCode.WRONG_RELAY, "the order names other relays")
        return key.agent_key

    async def _statement(self, owner: AgentKey) -> str:
        row = await self.store.handoff(owner)
        kept = self.handoffs.kept(row)
        side = kept.side
        return handoffs.sign(
            self.key,
            MigrationStatement(
                relay=self.key.did,
                did=did_of(owner),
                handoff=side.handoff.id if side.handoff else "",
                mode=side.mode,
                at=int(clock.now()),
                digest_received=side.digest_received,
                digest_acked=side.digest_acked,
                record_names_target=_is_named(side),
                awaiting_digests=tuple(sorted(side.awaiting_digests)),
                counters=row.tally,
                reason=self.mover.why.get(owner, "")[:512],
            ),
        )


def _is_named(side: MigrationSide) -> bool:
    return side.names_target if side.mode is Mode.FROZEN else side.is_home
