"""Wire a node: one function for each feature, called in the order of their dependencies.

Callbacks are passed at construction. The exception is ``directory.on_published``: gossip needs the
directory, and the directory reports to gossip. A pulse that two features share is an
:class:`asyncio.Event` made before both: ``due`` wakes the forwarders.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import Final

from relay.directory.answers import PeerQuestions
from relay.directory.change_log import RecordChangeReader
from relay.directory.gossip import RecordGossip
from relay.directory.local_handles import LocalHandles
from relay.directory.publish import Directory
from relay.directory.pull import PullLoop
from relay.directory.remote_handles import RemoteHandles
from relay.directory.resolve import RecordResolver
from relay.directory.startup_gate import StartupGate
from relay.forwarding.remote_status import RemoteStatus
from relay.forwarding.routing import Routing
from relay.forwarding.scheduler import ForwardScheduler
from relay.inbox import submit as submitting
from relay.inbox.accept import BatchAcceptor
from relay.inbox.bounces import BouncePump
from relay.inbox.clock_guard import ClockGuard
from relay.inbox.contacts import Contacts
from relay.inbox.dispatch import Dispatcher
from relay.inbox.group_commit import GroupCommit
from relay.inbox.keys import DidKeys
from relay.inbox.login import LoginService, Registration
from relay.inbox.model.types import AckRequest, AckResult
from relay.inbox.rules import InboxRules
from relay.inbox.status import StatusQueries
from relay.inbox.submit import Intake, RelayIdentity
from relay.limits import TokenBuckets
from relay.migration.digest_sender import DigestSender
from relay.migration.requests import MigrationRequests
from relay.migration.steps import MigrationSteps
from relay.node.housekeeping import Housekeeping, look_at_clocks
from relay.node.node import Node, hello_limits
from relay.node.open_store import OpenedStore, inbox_limits
from relay.peering.admin import PeerAdmin
from relay.peering.dialer import Dialer
from relay.peering.exchange import PeerExchange
from relay.peering.links import Links
from relay.peering.peers import Peers
from relay.peering.relay_info import OwnRelayInfo, RelayInfoFetcher
from relay.protocol.dial_allowlist import Networks
from relay.protocol.did import SigningKey
from relay.protocol.ids import AgentKey, Did
from relay.protocol.types import Window
from relay.settings import Settings, split_peer

ACK_BYTES: Final = 64
"""Size of one ack for the bound of a commit."""


@dataclass(frozen=True, slots=True)
class _Base:
    """The parts that every feature of the node shares.

    Args:
        settings: of this process.
        opened: the store.
        url: the relay's origin.
        registration: who may have an inbox.
        window: of every session.
        keys: which keys may act for a DID.
        dispatcher: the sessions of this node.
        acks: the group commit of acks.
        due: set where mail is to be forwarded.
    """

    settings: Settings
    opened: OpenedStore
    url: str
    registration: Registration
    window: Window
    keys: DidKeys
    dispatcher: Dispatcher
    acks: GroupCommit[AckRequest, AckResult]
    due: asyncio.Event = field(default_factory=asyncio.Event)


async def build(settings: Settings, opened: OpenedStore, url: str) -> Node:
    """Wire a node over an opened store; load its peers and ask its clock."""
    store, key = opened.store, opened.key
    guard = ClockGuard()
    last_time, now = await store.clock.last_time(), await store.clock.time()
    guard.begin(last_time, now, trusted=settings.trust_clock)
    await look_at_clocks(store, guard)
    base = _Base(
        settings,
        opened,
        url,
        _registration(settings),
        Window(settings.window_count, settings.window_bytes),
        DidKeys(),
        Dispatcher(opened.node_id),
        GroupCommit(store.inboxes.ack, lambda _: ACK_BYTES),
    )
    store.wakeups.on_wake(base.dispatcher.wake)
    contacts = Contacts(store.rules)
    peers, dialer, links = await build_peering(base)
    handoffs, digests = build_migration(base, peers, links)
    admits = base.registration.admits
    handles = LocalHandles(url, store.handles, store.records, admits=admits)
    directory = Directory(
        key.did, store.records, base.keys, handles, on_record_change=[handoffs.apply_record]
    )
    own_info = build_own_info(base, peers)
    exchange = PeerExchange(peers, links, own_info.sign)
    gossip = RecordGossip(directory, RecordChangeReader(store.records), exchange)
    directory.on_published.append(gossip.on_published)
    remote_handles = RemoteHandles(dialer, handles)
    resolver = RecordResolver(key.did, directory, links, gossip.on_record_reply, remote_handles)
    routing = Routing(resolver, links)
    startup_gate = await build_startup_gate(base, gossip)
    return Node(
        settings=settings,
        url=url,
        window=base.window,
        trusted_proxies=Networks.of(settings.trusted_proxies),
        opened=opened,
        intake=build_intake(base, contacts, handoffs),
        acks=base.acks,
        login=build_login(base, directory, peers, startup_gate, handoffs),
        directory=directory,
        status=StatusQueries(store.inboxes, RemoteStatus(links, routing)),
        rules=InboxRules(store.rules, contacts),
        dispatcher=base.dispatcher,
        peers=peers,
        links=links,
        exchange=exchange,
        gossip=gossip,
        pulls=PullLoop(gossip),
        questions=PeerQuestions(gossip.changes, exchange),
        resolver=resolver,
        routing=routing,
        forwarding=build_forwarding(base, links, gossip, routing, digests),
        clock_guard=guard,
        handles=handles,
        remote_handles=remote_handles,
        startup_gate=startup_gate,
        handoffs=handoffs,
        migrations=build_requests(base, directory, peers, handoffs, digests),
        peer_admin=PeerAdmin(
            peers, links, exchange, store.outboxes.totals, RelayInfoFetcher(dialer)
        ),
        housekeeping=Housekeeping(
            opened=opened,
            dispatcher=base.dispatcher,
            clock_guard=guard,
            startup_gate=startup_gate,
            handoffs=handoffs,
            bounces=BouncePump(
                key, store.inboxes, store.bounces, store.clock, base.dispatcher, routing
            ),
        ),
    )


async def build_peering(base: _Base) -> tuple[Peers, Dialer, Links]:
    """Make the peers of this relay, loaded, and the links to them."""
    settings, opened = base.settings, base.opened
    deny = base.registration.deny
    peers = Peers(opened.key.did, settings.federation, deny, opened.store.peers)
    await peers.load([*map(split_peer, settings.peers)])
    dialer = Dialer(settings.dial_networks)
    return peers, dialer, Links(opened.key, dialer, peers)


def build_migration(base: _Base, peers: Peers, links: Links) -> tuple[MigrationSteps, DigestSender]:
    """Make the steps of inboxes that move, and the sender of their digests."""
    store = base.opened.store.migrations
    handoffs = MigrationSteps(
        base.opened.key.did,
        store,
        base.keys,
        wake_forwarders=base.due.set,
        on_session_end=lambda inbox: base.dispatcher.wake([inbox]),
        on_handoff_peers=peers.set_handoff_peers,
    )
    return handoffs, DigestSender(handoffs, store, links)


def build_requests(
    base: _Base, directory: Directory, peers: Peers, handoffs: MigrationSteps, digests: DigestSender
) -> MigrationRequests:
    """Make what answers agents that move."""
    return MigrationRequests(
        key=base.opened.key,
        store=base.opened.store.migrations,
        inboxes=base.opened.store.inboxes,
        keys=base.keys,
        steps=handoffs,
        digests=digests,
        directory=directory,
        registration=base.registration,
        peers=peers,
        limits=inbox_limits(base.settings),
        max_body_bytes=base.settings.max_body_bytes,
    )


def build_own_info(base: _Base, peers: Peers) -> OwnRelayInfo:
    """Make what describes this relay to others."""
    settings, store = base.settings, base.opened.store
    return OwnRelayInfo(
        key=base.opened.key,
        url=base.url,
        limits=hello_limits(settings),
        registration=settings.registration,
        contact=settings.contact,
        durability=lambda: store.inboxes.durability,
        peers=peers,
    )


async def build_startup_gate(base: _Base, gossip: RecordGossip) -> StartupGate:
    """Make the gate that keeps agents out until peers have been asked, and begin."""
    store = base.opened.store
    startup_gate = StartupGate(gossip, store.inboxes, store.records, base.settings.return_wait_s)
    store.wakeups.on_renewal(startup_gate.close)
    await startup_gate.begin()
    return startup_gate


def build_forwarding(
    base: _Base, links: Links, gossip: RecordGossip, routing: Routing, digests: DigestSender
) -> ForwardScheduler:
    """Make the forwarders of inboxes whose agents live elsewhere."""
    opened = base.opened
    return ForwardScheduler(
        me=opened.key.did,
        node=opened.node_id,
        inboxes=opened.store.inboxes,
        outboxes=opened.store.outboxes,
        acks=base.acks,
        dispatcher=base.dispatcher,
        routing=routing,
        links=links,
        merge_record=gossip.on_record_reply,
        handoffs=digests,
        due=base.due,
    )


def build_intake(base: _Base, contacts: Contacts, handoffs: MigrationSteps) -> Intake:
    """Make what accepts envelopes."""
    settings, store, key = base.settings, base.opened.store, base.opened.key
    acceptor = BatchAcceptor(store.inboxes, base.dispatcher, contacts, base.due.set)
    return Intake(
        identity=RelayIdentity(key, _position_secret(key)),
        keys=base.keys,
        sender_rates=TokenBuckets.per_minute(settings.sender_rate),
        stranger_rates=TokenBuckets.per_minute(settings.stranger_rate),
        peer_rates=TokenBuckets.per_minute(settings.peer_stranger_rate),
        accepts_handoff_from=handoffs.accepts_handoff_from,
        commits=GroupCommit(acceptor.accept, submitting.size_of),
        durability=lambda: store.inboxes.durability,
        denied=base.registration.deny,
        max_body_bytes=settings.max_body_bytes,
    )


def build_login(
    base: _Base,
    directory: Directory,
    peers: Peers,
    startup_gate: StartupGate,
    handoffs: MigrationSteps,
) -> LoginService:
    """Make what logs agents and peers in."""
    store = base.opened.store

    async def publish(record: str, owner: Did) -> object:
        return await directory.publish(record, owner=owner)

    async def lives_elsewhere(agent: AgentKey) -> bool:
        row = await store.records.get(agent)
        return row is not None and not row.names_us

    return LoginService(
        key=base.opened.key,
        url=base.url,
        node=base.opened.node_id,
        window=base.window,
        store=store.inboxes,
        keys=base.keys,
        publish=publish,
        registration=base.registration,
        require_peer=peers.require_login,
        gate=startup_gate,
        apply_record=handoffs.apply_record,
        lives_elsewhere=lives_elsewhere,
    )


def _registration(settings: Settings) -> Registration:
    allow = frozenset(map(Did, settings.allow)) if settings.registration == "allow" else None
    return Registration(allow, frozenset(map(Did, settings.deny)))


def _position_secret(key: SigningKey) -> bytes:
    """Return a secret that all nodes of a relay share, so that a duplicate has the same ``pos``."""
    return hashlib.blake2b(b"relay position", key=key.seed, digest_size=32).digest()
