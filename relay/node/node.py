"""One node: its use cases, its settings and its store, wired by :mod:`relay.node.build`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from relay import clock
from relay.directory.answers import PeerQuestions
from relay.directory.gossip import RecordGossip
from relay.directory.local_handles import LocalHandles
from relay.directory.publish import Directory
from relay.directory.pull import PullLoop
from relay.directory.remote_handles import RemoteHandles
from relay.directory.resolve import RecordResolver
from relay.directory.startup_gate import StartupGate
from relay.forwarding.routing import Routing
from relay.forwarding.scheduler import ForwardScheduler
from relay.health import ProblemReason
from relay.inbox.clock_guard import ClockGuard
from relay.inbox.dispatch import Dispatcher
from relay.inbox.group_commit import GroupCommit
from relay.inbox.login import LoginService, new_nonce
from relay.inbox.model.types import AckRequest, AckResult
from relay.inbox.rules import InboxRules
from relay.inbox.status import StatusQueries
from relay.inbox.submit import Intake
from relay.migration.requests import MigrationRequests
from relay.migration.steps import MigrationSteps
from relay.node.housekeeping import Housekeeping
from relay.node.open_store import OpenedStore
from relay.peering.admin import PeerAdmin
from relay.peering.exchange import PeerExchange
from relay.peering.links import Links
from relay.peering.peers import Peers
from relay.protocol import envelope, frames
from relay.protocol.dial_allowlist import Networks
from relay.protocol.did import SigningKey
from relay.protocol.errors import RelayError
from relay.protocol.ids import NodeId
from relay.protocol.types import Window
from relay.settings import Settings
from relay.store.ports import Store


@dataclass(frozen=True, slots=True)
class Node:
    """Use cases and shared state of one node.

    Args:
        settings: of this process.
        url: the relay's origin.
        window: of every session.
        trusted_proxies: networks whose forwarding headers count.
        opened: the store with the processes behind it.
    """

    settings: Settings
    url: str
    window: Window
    trusted_proxies: Networks
    opened: OpenedStore
    intake: Intake
    acks: GroupCommit[AckRequest, AckResult]
    login: LoginService
    directory: Directory
    status: StatusQueries
    rules: InboxRules
    dispatcher: Dispatcher
    peers: Peers
    links: Links
    exchange: PeerExchange
    gossip: RecordGossip
    pulls: PullLoop
    questions: PeerQuestions
    resolver: RecordResolver
    routing: Routing
    forwarding: ForwardScheduler
    clock_guard: ClockGuard
    handles: LocalHandles
    remote_handles: RemoteHandles
    startup_gate: StartupGate
    handoffs: MigrationSteps
    migrations: MigrationRequests
    peer_admin: PeerAdmin
    housekeeping: Housekeeping

    @property
    def key(self) -> SigningKey:
        """The relay's key."""
        return self.opened.key

    @property
    def node_id(self) -> NodeId:
        """The random name of this process among the nodes of the relay."""
        return self.opened.node_id

    @property
    def store(self) -> Store:
        """The store of the relay."""
        return self.opened.store

    def limits(self) -> dict[str, int]:
        """Return ``hello.limits``."""
        return hello_limits(self.settings)

    def hello(self) -> frames.Hello:
        """Return the first frame of a conversation, with a fresh nonce."""
        return frames.Hello(
            relay=self.key.did,
            url=self.url,
            nonce=new_nonce(),
            limits=self.limits(),
            time=int(clock.now()),
        )

    def phase(self) -> Mapping[ProblemReason, str]:
        """Return what the node itself does that keeps agents away: it asks peers, or drains."""
        found: dict[ProblemReason, str] = {}
        if not self.startup_gate.is_open:
            found[ProblemReason.RETURNING] = "other relays are asked where its agents live now"
        if self.intake.draining:
            found[ProblemReason.DRAINING] = "the node is shutting down"
        return found

    async def check_disk(self) -> None:
        """Refuse submits before a full disk can end the embedded store."""
        disk, health = self.opened.disk, self.store.health
        if disk is None:
            return
        try:
            disk.check()
        except RelayError as exc:
            health.found(ProblemReason.DISK_FAILS, exc.detail)
            raise
        health.found(ProblemReason.DISK_FAILS, None)
        refusal = disk.refusal
        health.found(ProblemReason.DISK_FULL, disk.summary if refusal else None)
        self.store.refuse_appends(refusal.detail if refusal else None)
        if refusal is not None and self.opened.embedded is not None:
            # acks only make the append-only file grow; a rewrite of it frees the space
            await self.opened.embedded.compact(disk.spare_bytes)


def hello_limits(settings: Settings) -> dict[str, int]:
    """Return ``hello.limits`` (PROTOCOL.md §3.4), bytes and counts."""
    return {
        "jws": envelope.MAX_JWS_BYTES,
        "body": settings.max_body_bytes,
        "frame": frames.MAX_FRAME_BYTES,
        "envelopes": frames.MAX_ENVELOPES,
    }
