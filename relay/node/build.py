"""Wire a node: one function for each feature, called in the order of their dependencies.

Every callback is passed at construction. A pulse that two features share is an
:class:`asyncio.Event` made before both: ``due`` wakes the forwarders.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import Final

from relay.directory.local_handles import OwnHandles
from relay.directory.mesh import Mesh
from relay.directory.publish import Directory
from relay.directory.remote_handles import Naming
from relay.directory.resolve import (
    Resolving,
    Routing,
)
from relay.directory.startup_gate import Returning
from relay.forwarding.scheduler import (
    ForwardScheduler,
)
from relay.inbox import submit as submitting
from relay.inbox.accept import BatchAcceptor
from relay.inbox.bounces import BouncePump
from relay.inbox.clock_guard import ClockGuard
from relay.inbox.contacts import Contacts
from relay.inbox.dispatch import Delivery
from relay.inbox.group_commit import GroupCommit
from relay.inbox.keys import DidKeys
from relay.inbox.login import (
    Accounts,
    Registration,
)
from relay.inbox.model.types import Acked, AckRequest
from relay.inbox.rules import RulesOf
from relay.inbox.status import StatusOf
from relay.inbox.submit import (
    Intake,
    RelayIdentity,
)
from relay.limits import TokenBuckets
from relay.migration.digest_sender import (
    DigestSender,
)
from relay.migration.requests import (
    MigrationRequests,
)
from relay.migration.steps import (
    MigrationSteps,
)
from relay.node.housekeeping import (
    Housekeeping,
    look_at_clocks,
)
from relay.node.node import Node
from relay.node.open_store import OpenedStore, inbox_limits
from relay.peering.admin import Operating
from relay.peering.dialer import Dialer
from relay.peering.introduce import Introductions
from relay.peering.links import Links
from relay.peering.peers import Peers
from relay.peering.relay_info import relay_information
from relay.protocol.dial_allowlist import Networks
from relay.protocol.did import SigningKey
from relay.protocol.ids import Did
from relay.protocol.types import Window
from relay.settings import Settings, split_peer

ACK_BYTES: Final = 64
"""Size of one ack for the bound of a commit."""


@dataclass(frozen=True, slots=True)
class _Base:
    """What every feature of the node shares.

    Args:
        settings: of this process.
        opened: the store.
        url: the relay's origin.
        registration: who may have an inbox.
        window: of every session.
        keys: which keys may act for a DID.
        delivery: the sessions of this node.
        acks: the group commit of acks.
        due: set where mail is to be forwarded.
    """

    settings: Settings
    opened: OpenedStore
    url: str
    registration: Registration
    window: Window
    keys: DidKeys
    delivery: Delivery
    acks: GroupCommit[AckRequest, Acked]
    due: asyncio.Event = field(default_factory=asyncio.Event)


async def build(settings: Settings, opened: OpenedStore, url: str) -> Node:
    """Wire a node over an opened store; load its peers and ask its clock."""
    store, key = opened.store, opened.key
    guard = ClockGuard()
    guard.begin(await store.last_time(), await store.time(), trusted=settings.trust_clock)
    await look_at_clocks(store, guard)
    base = _Base(
        settings,
        opened,
        url,
        _registration(settings),
        Window(settings.window_count, settings.window_bytes),
        DidKeys(),
        Delivery(opened.node_id),
        GroupCommit(store.ack, lambda _: ACK_BYTES),
    )
    store.on_wake(base.delivery.wake)
    contacts = Contacts(store)
    peers, dialer, links = await build_peering(base)
    handoffs, mover = build_migration(base, peers, links)
    names = OwnHandles(url, store, admits=base.registration.admits)
    directory = Directory(key.did, store, base.keys, names, movers=[handoffs.settle])
    mesh = Mesh(peers, links, store, directory, lambda: relay_information(node))
    naming = Naming(dialer, names)
    resolving = Resolving(key.did, directory, links, mesh.hearing.told, naming)
    routing = Routing(resolving, links)
    returning = await build_startup_gate(base, mesh)
    node = Node(
        settings=settings,
        url=url,
        window=base.window,
        trusted_proxies=Networks.of(settings.trusted_proxies),
        opened=opened,
        intake=build_intake(base, contacts, handoffs),
        acks=base.acks,
        accounts=build_accounts(base, directory, peers, returning, handoffs),
        directory=directory,
        status=StatusOf(store, links, routing),
        rules=RulesOf(store, contacts),
        delivery=base.delivery,
        peers=peers,
        links=links,
        mesh=mesh,
        resolving=resolving,
        routing=routing,
        forwarding=build_forwarding(base, links, mesh, routing, mover),
        clock_guard=guard,
        handles=names,
        names=naming,
        returning=returning,
        handoffs=handoffs,
        migrations=build_requests(base, directory, peers, handoffs, mover),
        operating=Operating(peers, links, mesh, store, Introductions(dialer)),
        housekeeping=Housekeeping(
            opened=opened,
            delivery=base.delivery,
            clock_guard=guard,
            returning=returning,
            handoffs=handoffs,
            bounces=BouncePump(key, store, base.delivery, routing),
        ),
    )
    return node


async def build_peering(base: _Base) -> tuple[Peers, Dialer, Links]:
    """Make the peers of this relay, loaded, and the links to them."""
    settings, opened = base.settings, base.opened
    deny = base.registration.deny
    peers = Peers(opened.key.did, settings.federation, deny, opened.store)
    await peers.load([*map(split_peer, settings.peers)])
    dialer = Dialer(settings.dial_networks)
    return peers, dialer, Links(opened.key, dialer, peers)


def build_migration(base: _Base, peers: Peers, links: Links) -> tuple[MigrationSteps, DigestSender]:
    """Make the steps of inboxes that move, and the sender of their digests."""
    store = base.opened.store
    handoffs = MigrationSteps(
        base.opened.key.did,
        store,
        base.keys,
        wake_forwarders=base.due.set,
        on_session_end=lambda inbox: base.delivery.wake([inbox]),
        on_handoff_peers=peers.set_handoff_peers,
    )
    return handoffs, DigestSender(handoffs, store, links)


def build_requests(
    base: _Base, directory: Directory, peers: Peers, handoffs: MigrationSteps, mover: DigestSender
) -> MigrationRequests:
    """Make what answers agents that move."""
    return MigrationRequests(
        key=base.opened.key,
        store=base.opened.store,
        keys=base.keys,
        handoffs=handoffs,
        mover=mover,
        directory=directory,
        registration=base.registration,
        peers=peers,
        limits=inbox_limits(base.settings),
        max_body_bytes=base.settings.max_body_bytes,
    )


async def build_startup_gate(base: _Base, mesh: Mesh) -> Returning:
    """Make the gate that keeps agents out until peers have been asked, and begin."""
    store = base.opened.store
    returning = Returning(mesh, store, base.settings.return_wait_s)
    store.on_renewal(returning.renewed)
    await returning.begin()
    return returning


def build_forwarding(
    base: _Base, links: Links, mesh: Mesh, routing: Routing, mover: DigestSender
) -> ForwardScheduler:
    """Make the forwarders of inboxes whose agents live elsewhere."""
    opened = base.opened
    return ForwardScheduler(
        me=opened.key.did,
        node=opened.node_id,
        store=opened.store,
        acks=base.acks,
        delivery=base.delivery,
        routing=routing,
        links=links,
        learn=mesh.hearing.told,
        mover=mover,
        due=base.due,
    )


def build_intake(base: _Base, contacts: Contacts, handoffs: MigrationSteps) -> Intake:
    """Make what accepts envelopes."""
    settings, store, key = base.settings, base.opened.store, base.opened.key
    acceptor = BatchAcceptor(store, base.delivery, contacts, base.due.set)
    return Intake(
        identity=RelayIdentity(key, _position_secret(key)),
        keys=base.keys,
        rates=TokenBuckets.per_minute(settings.sender_rate),
        strangers=TokenBuckets.per_minute(settings.stranger_rate),
        brought=TokenBuckets.per_minute(settings.peer_stranger_rate),
        may_bring=handoffs.may_bring,
        commits=GroupCommit(acceptor.accept, submitting.size_of),
        durability=lambda: store.durability,
        denied=base.registration.deny,
        max_body_bytes=settings.max_body_bytes,
    )


def build_accounts(
    base: _Base, directory: Directory, peers: Peers, returning: Returning, handoffs: MigrationSteps
) -> Accounts:
    """Make what logs agents and peers in."""
    return Accounts(
        key=base.opened.key,
        url=base.url,
        node=base.opened.node_id,
        window=base.window,
        store=base.opened.store,
        keys=base.keys,
        directory=directory,
        registration=base.registration,
        peers=peers,
        returning=returning,
        settle=handoffs.settle,
    )


def _registration(settings: Settings) -> Registration:
    allow = frozenset(map(Did, settings.allow)) if settings.registration == "allow" else None
    return Registration(allow, frozenset(map(Did, settings.deny)))


def _position_secret(key: SigningKey) -> bytes:
    """Return a secret that all nodes of a relay share, so that a duplicate has the same ``pos``."""
    return hashlib.blake2b(b"relay position", key=key.seed, digest_size=32).digest()
