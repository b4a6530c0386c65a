"""Wire ports to implementations."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from relay import clock, log
from relay.directory.local_handles import OwnHandles
from relay.directory.mesh import Mesh
from relay.directory.publish import Directory
from relay.directory.remote_handles import Naming
from relay.directory.resolve import (
    Resolving,
    Routing,
)
from relay.directory.startup_gate import Returning
from relay.forwarding.scheduler import Forwarding
from relay.health import Health, ProblemReason
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
from relay.inbox.model.types import (
    Acked,
    InboxLimits,
    OutboxLimits,
)
from relay.inbox.ports import (
    AckRequest,
    Store,
)
from relay.inbox.rules import RulesOf
from relay.inbox.status import StatusOf
from relay.inbox.submit import (
    Intake,
    RelayIdentity,
)
from relay.limits import TokenBuckets
from relay.migration.digest_sender import Mover
from relay.migration.requests import Migrations
from relay.migration.steps import Handoffs
from relay.node import keyfile
from relay.node.loops import (
    Housekeeping,
    look_at_clocks,
)
from relay.node.node import (
    Node,
    NodeSettings,
)
from relay.peering.admin import Operating
from relay.peering.dialer import Dialer
from relay.peering.introduce import Introductions
from relay.peering.links import Links
from relay.peering.peers import Peers
from relay.peering.ports import DirectoryLimits
from relay.peering.relay_info import relay_information
from relay.protocol.dial_allowlist import Networks
from relay.protocol.did import SigningKey
from relay.protocol.errors import (
    RelayError,
    UnavailableError,
)
from relay.protocol.ids import (
    Did,
    NodeId,
)
from relay.protocol.types import (
    Window,
)
from relay.settings import Settings, split_peer
from relay.store.disk import DiskGuard
from relay.store.embedded import EmbeddedStore
from relay.store.redis import RedisStore, is_lasting

ACK_BYTES = 64
WAIT_S = 0.5
"""Between two attempts to reach a store that is not there yet."""


class Component(Protocol):
    """Something that runs as long as the node."""

    async def run(self) -> None:
        """Run until cancelled."""
        ...


@dataclass(frozen=True, slots=True)
class OpenedStore:
    """The store, started, and what keeps it going."""

    key: SigningKey
    node_id: NodeId
    store: Store
    embedded: EmbeddedStore | None
    disk: DiskGuard | None


@dataclass(frozen=True, slots=True)
class Built:
    """A node, wired."""

    settings: Settings
    node: Node
    housekeeping: Housekeeping
    links: Links
    operating: Operating
    opened: OpenedStore

    @property
    def components(self) -> Sequence[Component]:
        """What the store needs running."""
        embedded = self.opened.embedded
        return [self.opened.store, *([embedded] if embedded else [])]

    def phase(self) -> Mapping[ProblemReason, str]:
        """What the node is busy with that keeps agents away."""
        found: dict[ProblemReason, str] = {}
        if not self.node.returning.is_over:
            found[ProblemReason.RETURNING] = "other relays are asked where its agents live now"
        if self.node.intake.draining:
            found[ProblemReason.DRAINING] = "the node is shutting down"
        return found

    async def check_disk(self) -> None:
        """Refuse submits before a full disk can end the embedded store."""
        disk, health = self.opened.disk, self.opened.store.health
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
        self.opened.store.refuse_appends(refusal.detail if refusal else None)
        if refusal is not None and self.opened.embedded is not None:
            # acks only make the append-only file grow; this is what gives the room back
            await self.opened.embedded.compact(disk.spare_bytes)


class StoppedError(Exception):
    """The node was told to stop before its store was open."""


@contextlib.asynccontextmanager
async def open_store(
    settings: Settings, health: Health, stop: asyncio.Event
) -> AsyncIterator[OpenedStore]:
    """Start the store, embedded or external; stop it at the end.

    An external store that is away, or follows another server, is waited for; ``health`` says so.

    Raises:
        RelayError: the directory is in use, the key is unreadable, or the store is unsafe, of
            another relay, or does not let us in.
        StoppedError: ``stop`` was set meanwhile.
    """
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = keyfile.load_or_make(settings.relay_key_file)
    async with contextlib.AsyncExitStack() as stack:
        embedded, disk, url = None, None, None
        if settings.redis_url is None:
            directory = settings.data / "store"
            directory.mkdir(exist_ok=True, mode=0o700)
            floor = settings.disk_floor
            disk = DiskGuard(directory, floor_bytes=floor, ballast_bytes=floor // 4)
            # before the start: a released ballast may be the room that the store needs
            disk.check()
            embedded = EmbeddedStore(
                directory,
                binary=settings.store_binary,
                maxmemory=settings.store_maxmemory,
                on_event=log.store_event,
            )
            stack.push_async_callback(embedded.stop)
            await embedded.start()
            url = embedded.url
        else:
            url = settings.redis_url.get_secret_value()
        store = RedisStore(
            url,
            _limits(settings),
            cluster=settings.redis_cluster,
            rollback_file=settings.data / "rollback",
            allow_unsafe=settings.redis_unsafe,
            directory=DirectoryLimits(settings.directory_records),
            outbox=OutboxLimits(settings.outbox_count, settings.outbox_bytes),
            health=health,
            is_own=embedded is not None,
        )
        node_id = NodeId(clock.entropy(9).hex())
        stack.push_async_callback(store.stop)
        while not await _is_started(store, key.did, node_id, is_own=embedded is not None):
            if await _is_set_within(stop, WAIT_S):
                raise StoppedError
        if embedded is not None:
            await store.free_outboxes()
        yield OpenedStore(key, node_id, store, embedded, disk)


async def _is_started(store: RedisStore, relay: Did, node: NodeId, *, is_own: bool) -> bool:
    """Start a store; False: an external one that is not there yet."""
    try:
        await store.start(relay=relay, node=node)
    except UnavailableError as exc:
        # retry_after: it may come back by itself; the rest is for the operator to mend
        if is_own or exc.retry_after is None or is_lasting(exc):
            raise
        return False
    return True


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


def _limits(settings: Settings) -> InboxLimits:
    return InboxLimits(
        max_count=settings.inbox_count,
        max_bytes=settings.inbox_bytes,
        sender_count=settings.sender_count,
        sender_bytes=settings.sender_bytes,
        stranger_count=settings.stranger_count,
        stranger_bytes=settings.stranger_bytes,
        dedupe_entries=settings.dedupe_entries,
    )


async def build(settings: Settings, opened: OpenedStore, url: str) -> Built:
    """Wire a node over an opened store."""
    key, store, node_id = opened.key, opened.store, opened.node_id
    guard = ClockGuard()
    guard.begin(await store.last_time(), await store.time(), trusted=settings.trust_clock)
    await look_at_clocks(store, guard)
    delivery = Delivery(node_id)
    store.on_wake(delivery.wake)
    contacts = Contacts(store)
    keys = DidKeys()
    window = Window(settings.window_count, settings.window_bytes)
    deny = frozenset(Did(did) for did in settings.deny)
    registration = _registration(settings, deny)
    names = OwnHandles(url, store, admits=registration.admits)
    directory = Directory(key.did, store, keys, names)
    peers = Peers(key.did, settings.federation, deny, store)
    await peers.load([*map(split_peer, settings.peers)])
    dialer = Dialer(settings.dial_networks)
    links = Links(key, dialer, peers)
    mesh = Mesh(peers, links, store, directory, lambda: relay_information(node))
    naming = Naming(dialer, names)
    resolving = Resolving(key.did, directory, links, mesh.hearing.told, naming)
    routing = Routing(resolving, links)
    returning = Returning(mesh, store, settings.return_wait_s)
    store.on_renewal(returning.renewed)
    await returning.begin()
    handoffs = Handoffs(key.did, store, keys)
    mover = Mover(handoffs, store, links)
    directory.movers.append(handoffs.settle)
    acks: GroupCommit[AckRequest, Acked] = GroupCommit(store.ack, lambda _: ACK_BYTES)
    forwarding = Forwarding(
        me=key.did,
        node=node_id,
        store=store,
        acks=acks,
        delivery=delivery,
        routing=routing,
        links=links,
        learn=mesh.hearing.told,
        mover=mover,
    )
    migrations = Migrations(
        key=key,
        store=store,
        keys=keys,
        handoffs=handoffs,
        mover=mover,
        directory=directory,
        registration=registration,
        peers=peers,
        limits=_limits(settings),
        max_body_bytes=settings.max_body_bytes,
        wake=forwarding.wake,
    )
    handoffs.changed += [_sharing(peers, handoffs), migrations.changed]
    handoffs.work.append(forwarding.wake)
    handoffs.ended.append(lambda owner: delivery.wake([owner]))
    acceptor = BatchAcceptor(store, delivery, contacts, forwarding.wake)
    node = Node(
        node_id=node_id,
        key=key,
        settings=_node_settings(settings, window, url),
        store=store,
        intake=Intake(
            identity=RelayIdentity(key, _position_secret(key)),
            keys=keys,
            rates=TokenBuckets.per_minute(settings.sender_rate),
            strangers=TokenBuckets.per_minute(settings.stranger_rate),
            brought=TokenBuckets.per_minute(settings.peer_stranger_rate),
            may_bring=handoffs.may_bring,
            commits=GroupCommit(acceptor.accept, submitting.size_of),
            durability=lambda: store.durability,
            denied=deny,
            max_body_bytes=settings.max_body_bytes,
        ),
        acks=acks,
        accounts=Accounts(
            key=key,
            url=url,
            node=node_id,
            window=window,
            store=store,
            keys=keys,
            directory=directory,
            registration=registration,
            peers=peers,
            returning=returning,
            settle=handoffs.settle,
        ),
        directory=directory,
        status=StatusOf(store, links, routing),
        rules=RulesOf(store, contacts),
        delivery=delivery,
        peers=peers,
        mesh=mesh,
        resolving=resolving,
        routing=routing,
        forwarding=forwarding,
        clock_guard=guard,
        handles=names,
        names=naming,
        returning=returning,
        handoffs=handoffs,
        migrations=migrations,
    )
    house = Housekeeping(node, BouncePump(key, store, delivery, routing))
    operating = Operating(peers, links, mesh, store, Introductions(dialer))
    return Built(settings, node, house, links, operating, opened)


def _sharing(peers: Peers, handoffs: Handoffs) -> Callable[[], None]:
    """Relays that may be talked with about a hand-off, whatever the federation."""

    def changed() -> None:
        peers.partners = handoffs.partners

    return changed


def _registration(settings: Settings, deny: frozenset[Did]) -> Registration:
    allow = None
    if settings.registration == "allow":
        allow = frozenset(Did(did) for did in settings.allow)
    return Registration(allow, deny)


def _node_settings(settings: Settings, window: Window, url: str) -> NodeSettings:
    return NodeSettings(
        url=url,
        window=window,
        max_body_bytes=settings.max_body_bytes,
        max_connections=settings.max_connections,
        max_connections_per_ip=settings.max_connections_per_ip,
        trusted_proxies=Networks.of(settings.trusted_proxies),
        write_timeout_s=settings.write_timeout_s,
        registration=settings.registration,
        contact=settings.contact,
    )


def _position_secret(key: SigningKey) -> bytes:
    """All nodes of a relay derive the same one, so that a duplicate's ``pos`` is the same."""
    return hashlib.blake2b(b"relay position", key=key.seed, digest_size=32).digest()
