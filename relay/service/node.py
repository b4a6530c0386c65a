"""One node: what its edges share. Built by ``relay.server``, the only place that knows it all."""

from __future__ import annotations

from dataclasses import dataclass

from relay import clock
from relay.core import envelope, frames
from relay.core.addresses import Networks
from relay.core.frames import Hello
from relay.core.identity import SigningKey
from relay.core.ids import NodeId
from relay.core.inbox_values import Acked, Window
from relay.core.jws import b64encode
from relay.ports import AckRequest, Store
from relay.ports_mesh import Names
from relay.service.accounts import Accounts
from relay.service.clockguard import ClockGuard
from relay.service.commit import GroupCommit
from relay.service.deliver import Delivery
from relay.service.directory import Directory
from relay.service.forwarding import Forwarding
from relay.service.handles import OwnHandles
from relay.service.handoffs import Handoffs
from relay.service.mesh import Mesh
from relay.service.migrations import Migrations
from relay.service.peers import Peers
from relay.service.resolving import Resolving, Routing
from relay.service.returning import Returning
from relay.service.rules import RulesOf
from relay.service.status import StatusOf
from relay.service.submit import Intake

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

    def hello(self) -> Hello:
        """The first frame of a conversation, with a fresh nonce."""
        return Hello(
            relay=self.key.did,
            url=self.settings.url,
            nonce=new_nonce(),
            limits=self.limits(),
            time=int(clock.now()),
        )


def new_nonce() -> str:
    """32 random bytes, base64url."""
    return b64encode(clock.entropy(NONCE_BYTES))
