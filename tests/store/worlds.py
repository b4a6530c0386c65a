"""What a store is tested in: each kind of server, a clock that the test moves, several nodes.

The store's clock cannot be set, and no script has a door for tests. So a test edits the *text* of
the scripts: the line that asks the server for its time reads a key instead. The same means serves
the negative controls: take a guard out of a script, and see the test that proves it fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster as ClusterClient
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from relay.inbox.model.types import (
    InboxLimits,
    OpenedSession,
    RulesNow,
    RulesPatch,
)
from relay.inbox.ports import (
    OpenRequest,
)
from relay.protocol.envelope import StoredEnvelope
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
)
from relay.protocol.ids import (
    AgentKey,
    Did,
    Eid,
    NodeId,
    Timestamp,
)
from relay.protocol.jws import b64encode
from relay.protocol.types import (
    Window,
)
from relay.reference.memory_store import MemoryStore
from relay.store.ports import (
    Store,
)
from relay.store.redis import RedisStore, scripts
from relay.store.redis import client as client_module
from relay.store.redis.keys import Kind
from tests.support.redis_page import kind_of_key

RELAY = Did("did:key:z6MkRelay")
NODE = NodeId("node-a")
OTHER = NodeId("node-b")
ALL = Window(1_000, 10_000_000)
"""A window that takes all that a test stores."""
LARGE = InboxLimits(max_count=100_000, sender_count=100_000, max_bytes=2**40, sender_bytes=2**40)
ME = AgentKey("key:me")
ALICE = AgentKey("key:alice")
NOW = 1_800_000_000
HOUR = NOW // 3600
LIMITS = InboxLimits(
    max_count=20, max_bytes=20_000, sender_count=12, sender_bytes=15_000, dedupe_entries=30
)
ASK_TIME = "local clock = redis.call('TIME')"
READ_TIME = "local clock = {redis.call('GET', PREFIX .. 'testclock') or '1', '0'}"


def wire(n: int, size: int = 0) -> bytes:
    """A wire form whose eid can be computed; of ``size`` bytes if that is more than it needs."""
    text = b'{"jws":"head.payload%d.signature","body":"' % n
    return text + b"x" * max(0, size - len(text) - 2) + b'"}'


def eid(n: int) -> Eid:
    return Eid(b64encode(hashlib.sha256(b"head.payload%d" % n).digest()))


def entry(n: int, **changes: Any) -> StoredEnvelope:
    """Envelope number ``n`` for an inbox; equal numbers are the same envelope."""
    size = changes.pop("size", 0)
    made = StoredEnvelope(
        inbox=ME,
        eid=eid(n),
        wire=wire(n, size),
        sender=ALICE,
        dedupe_key=n.to_bytes(16, "big"),
        hour=HOUR,
        created_at=NOW - 10,
        expires_at=NOW + 1_000,
    )
    return made._replace(**changes)


def request(inbox: AgentKey = ME, node: NodeId = NODE, **changes: Any) -> OpenRequest:
    return replace(OpenRequest(inbox, node, Window()), **changes)


async def opened(
    store: Store, inbox: AgentKey = ME, node: NodeId = NODE, **changes: Any
) -> OpenedSession:
    session = await store.inboxes.open(request(inbox, node, **changes))
    assert isinstance(session, OpenedSession), session
    return session


async def ruled(
    store: Store, session: OpenedSession, inbox: AgentKey = ME, **changes: Any
) -> RulesNow | Refusal:
    """Change the rules of an inbox."""
    return await store.rules.change(inbox, session.fence, RulesPatch(**changes))


async def opened_to(store: Store, *known: AgentKey, inbox: AgentKey = ME) -> OpenedSession:
    """A session of an inbox that knows these senders."""
    session = await opened(store, inbox)
    assert isinstance(await ruled(store, session, inbox, allow=known), RulesNow)
    return session


class Mutations:
    """Edits of script texts, while a test runs."""

    def __init__(self) -> None:
        self.edits: list[tuple[str, str]] = []

    def script(self, name: str) -> scripts.Script:
        """What the store runs instead of the file."""
        text = scripts.script(name).text
        for old, new in self.edits:
            text = text.replace(old, new)
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        return scripts.Script(name, text, sha)

    def edit(self, old: str, new: str) -> None:
        """Replace ``old``, which must be somewhere in the scripts."""
        assert any(old in one.text for one in scripts.all_scripts()), f"no script says {old!r}"
        self.edits.append((old, new))

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Let every store of this process run the edited scripts."""
        original = client_module.script
        client_module.script = self.script  # type: ignore[attr-defined]
        try:
            yield
        finally:
            client_module.script = original  # type: ignore[attr-defined]


@dataclass
class Backend:
    """A server that stays up for many tests."""

    kind: str
    url: str = ""
    """For the test, which may do anything."""
    relays_url: str = ""
    """For the store, as the user of docs/OPERATIONS.md."""
    is_cluster: bool = False

    def raw(self) -> Redis | ClusterClient:
        """A client that goes around the store."""
        options: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), "socket_timeout": 5}
        if self.is_cluster:
            return ClusterClient.from_url(self.url, **options)
        return Redis.from_url(self.url, **options)


@dataclass
class World:
    """One empty store, its clock, and as many nodes over it as a test wants."""

    backend: Backend
    directory: Path
    limits: InboxLimits = LIMITS
    mutations: Mutations = field(default_factory=Mutations)
    has_real_clock: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    now: float = NOW
    _stores: list[Store] = field(default_factory=list)
    _raw: Any = None

    @property
    def is_memory(self) -> bool:
        return self.backend.kind == "memory"

    @property
    def raw(self) -> Any:
        assert self._raw is not None, "only a server has one"
        return self._raw

    @property
    def partitions(self) -> int:
        return self.options.get("partitions") or (16 if self.backend.is_cluster else 1)

    def key(self, kind: str, name: str = ME) -> str:
        """A key of an inbox, as the scripts name it."""
        part = 0 if self.partitions == 1 else self.store._partitions.of(AgentKey(name))
        return f"relay:{{{part}}}:{kind}:{name}" if name else f"relay:{{{part}}}:{kind}"

    @property
    def store(self) -> Any:
        """The first node's store."""
        return self._stores[0]

    @property
    def inboxes(self) -> Any:
        return self.store.inboxes

    @property
    def migrations(self) -> Any:
        return self.store.migrations

    @property
    def outboxes(self) -> Any:
        return self.store.outboxes

    @property
    def records(self) -> Any:
        return self.store.records

    @property
    def rules(self) -> Any:
        return self.store.rules

    async def set_time(self, now: float) -> None:
        """Move the store's clock."""
        self.now = now
        if not self.is_memory and not self.has_real_clock:
            for part in range(self.partitions):
                await self.raw.set(f"relay:{{{part}}}:testclock", int(now))

    async def advance(self, seconds: float) -> None:
        await self.set_time(self.now + seconds)

    async def node(self, name: NodeId = NODE, relay: Did = RELAY, **changes: Any) -> Any:
        """Another node's store; for memory there is only one."""
        if self.is_memory:
            if not self._stores:
                ours = {"dedupe_total", "directory", "outbox"}
                options = {k: v for k, v in self.options.items() if k in ours}
                made = MemoryStore(self.limits, lambda: Timestamp(self.now), **options)
                self._stores.append(made)
            return self._stores[0]
        options = {k: v for k, v in self.options.items() if k != "dedupe_total"} | changes
        options.setdefault("rollback_file", self.directory / f"rollback-{name}")
        store = RedisStore(
            self.backend.relays_url, self.limits, cluster=self.backend.is_cluster, **options
        )
        self._stores.append(store)
        await store.start(relay=relay, node=name)
        if "dedupe_total" in self.options:
            store._guard.ids_per_partition = self.options["dedupe_total"]
        return store

    async def restart(self, **changes: Any) -> Any:
        """Stop all nodes; a first one starts again, as if its process had."""
        for store in self._stores:
            await store.stop()
        self._stores.clear()
        return await self.node(**changes)

    @contextlib.asynccontextmanager
    async def running(self, *stores: Any) -> AsyncIterator[None]:
        """Let the background work of stores run."""
        tasks = [asyncio.create_task(store.run()) for store in stores]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        if not self.is_memory:
            self._raw = self.backend.raw()
            await self.flush()
            await self.set_time(self.now)
        return self

    async def flush(self) -> None:
        where = {"target_nodes": ClusterClient.PRIMARIES} if self.backend.is_cluster else {}
        await self.raw.flushall(**where)

    async def check_keys(self) -> set[Kind]:
        """Check that each key of the store is of a kind of keys.py; return the kinds."""
        found: set[Kind] = set()
        async for raw in self.raw.scan_iter(count=1_000):
            name, made = raw.decode(), (await self.raw.type(raw)).decode()
            if not name.startswith("relay:") or name.endswith(":testclock"):
                continue
            kind = kind_of_key(name)
            assert kind is not None, f"keys.py does not know {name}"
            assert kind.type == made, f"{name} is a {made}"
            found.add(kind)
        return found

    async def __aexit__(self, *_: object) -> None:
        for store in self._stores:
            await store.stop()
        if self._raw is not None:
            await self._raw.aclose()


Make = Callable[..., Any]


def code(result: object) -> ErrorCode | None:
    return result.code if isinstance(result, Refusal) else None


def fresh(n: int, **changes: Any) -> Any:
    """An entry that is fresh by the real clock."""
    now = int(time.time())
    return entry(n, created_at=now, expires_at=now + 1_000, hour=now // 3600, **changes)
