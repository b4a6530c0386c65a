"""One node: what its edges share. Built by ``relay.node``, the only place that knows it all."""

from __future__ import annotations

from dataclasses import dataclass

from relay import clock
from relay.directory.local_handles import OwnHandles
from relay.directory.mesh import Mesh
from relay.directory.publish import Directory
from relay.directory.resolve import (
    Resolving,
    Routing,
)
from relay.directory.startup_gate import Returning
from relay.forwarding.scheduler import Forwarding
from relay.inbox.clock_guard import ClockGuard
from relay.inbox.dispatch import Delivery
from relay.inbox.group_commit import GroupCommit
from relay.inbox.login import Accounts
from relay.inbox.model.types import (
    Acked,
)
from relay.inbox.ports import (
    AckRequest,
    Store,
)
from relay.inbox.rules import RulesOf
from relay.inbox.status import StatusOf
from relay.inbox.submit import Intake
from relay.migration.requests import Migrations
from relay.migration.steps import Handoffs
from relay.peering.peers import Peers
from relay.peering.ports import Names
from relay.protocol import envelope, frames
from relay.protocol.dial_allowlist import Networks
from relay.protocol.did import SigningKey
from relay.protocol.ids import NodeId
from relay.protocol.jws import b64encode
from relay.protocol.types import (
    Window,
)

NONCE_BYTES = 32


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What the edges need of the settings; see ``relay.settings`` for meanings and units."""

    url: str
    window: Window
    max_body_bytes: int
    max_connections: int
    max_connections_per_ip: int
    trusted_proxies: Networks
    write_timeout_s: float
    registration: str
    contact: str | None


@dataclass(frozen=True, slots=True)
class Node:
    """Use cases and shared state of one node."""

    node_id: NodeId
    key: SigningKey
    settings: NodeSettings
    store: Store
    intake: Intake
    acks: GroupCommit[AckRequest, Acked]
    accounts: Accounts
    directory: Directory
    status: StatusOf
    rules: RulesOf
    delivery: Delivery
    peers: Peers
    mesh: Mesh
    resolving: Resolving
    routing: Routing
    forwarding: Forwarding
    clock_guard: ClockGuard
    handles: OwnHandles
    names: Names
    returning: Returning
    handoffs: Handoffs
    migrations: Migrations

    def limits(self) -> dict[str, int]:
        """``hello.limits`` (PROTOCOL.md §3.4), bytes and counts."""
        return {
            "jws": envelope.MAX_JWS_BYTES,
            "body": self.settings.max_body_bytes,
            "frame": frames.MAX_FRAME_BYTES,
            "envelopes": frames.MAX_ENVELOPES,
        }

    def hello(self) -> frames.Hello:
        """The first frame of a conversation, with a fresh nonce."""
        return frames.Hello(
            relay=self.key.did,
            url=self.settings.url,
            nonce=new_nonce(),
            limits=self.limits(),
            time=int(clock.now()),
        )


def new_nonce() -> str:
    """32 random bytes, base64url."""
    return b64encode(clock.entropy(NONCE_BYTES))
