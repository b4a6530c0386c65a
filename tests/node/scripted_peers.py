"""A node's couriers over a store in memory, and other relays whose answers a test writes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from relay import clock
from relay.directory.ports import RecordRow
from relay.directory.publish import Directory
from relay.directory.resolve import RecordResolver
from relay.forwarding.routing import Routing
from relay.forwarding.scheduler import ForwardScheduler
from relay.inbox.dispatch import Dispatcher
from relay.inbox.group_commit import GroupCommit
from relay.inbox.keys import DidKeys
from relay.inbox.model import admission
from relay.inbox.model.types import InboxLimits, RememberedId
from relay.migration.digest_sender import DigestSender
from relay.migration.steps import MigrationSteps
from relay.peering.link import Link, SubmitResult
from relay.protocol import endpoint_record
from relay.protocol import envelope as envelopes
from relay.protocol.client_session import PeerAnswer
from relay.protocol.did import SigningKey, parse_did
from relay.protocol.envelope import SignedEnvelope, StoredEnvelope, eid_of
from relay.protocol.errors import ErrorCode, Refusal, RelayError, error
from relay.protocol.frames import Gossip, Rejection
from relay.protocol.handles import Handle, LookupResult
from relay.protocol.ids import AgentKey, Did, Eid, Epoch, NodeId, Timestamp
from relay.protocol.jws import loads
from relay.protocol.receipts import ReceiptItem, sign_receipt, verify_receipt
from relay.protocol.types import DedupKey
from relay.reference.memory_store import MemoryStore
from tests.support.nodes import make_envelope, new_key
from tests.support.patience import within

Answering = Callable[["Far", Sequence[bytes]], Awaitable[SubmitResult]]


@dataclass
class Far:
    """Another relay; ``answers`` are used up one by one, the last one stays."""

    answers: list[Answering]
    key: SigningKey = field(default_factory=new_key)
    got: list[tuple[bytes, bool]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    handoffs: list[str] = field(default_factory=list)
    down: RelayError | None = None

    @property
    def peer(self) -> Did:
        return self.key.did

    @property
    def url(self) -> str:
        return f"https://r{self.peer[-12:].lower()}.example"

    @property
    def agent_key(self) -> AgentKey:
        return parse_did(self.peer).agent_key

    @property
    def bodies(self) -> list[bytes]:
        return [envelopes.parse(loads(wire)).body for wire, _ in self.got]

    async def submit(
        self,
        envelopes: Sequence[bytes],
        *,
        hops: Sequence[Did] = (),
        marked: Sequence[int] = (),
        handoff: str = "",
    ) -> SubmitResult:
        self.handoffs.append(handoff)
        assert hops
        self.times.append(clock.monotonic())
        self.got += [(wire, at in marked) for at, wire in enumerate(envelopes)]
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await answer(self, envelopes)

    async def ask(self, make: Any) -> PeerAnswer:
        raise error(ErrorCode.PEER_UNREACHABLE, f"it does not answer {make('r')}")

    def push(self, gossip: Gossip) -> bool:
        return not gossip


@dataclass
class FarLinks:
    """Links to such relays."""

    relays: dict[Did, Far] = field(default_factory=dict)
    barred: set[Did] = field(default_factory=set)

    def allows(self, relay: Did) -> bool:
        return relay not in self.barred

    async def reach(self, relay: Did, url: str, *, handoff: bool = False) -> Link:
        assert handoff or self.allows(relay)
        far = self.relays[relay]
        assert far.url == url
        if far.down is not None:
            raise far.down
        return far

    def live(self) -> Sequence[Link]:
        return []

    def wanted(self) -> int:
        return len(self.relays)

    def backoff(self, relay: Did, url: str) -> tuple[float, RelayError] | None:
        raise NotImplementedError(relay, url)

    def reset_backoff(self, relay: Did, url: str) -> None:
        raise NotImplementedError(relay, url)

    def reconcile_now(self) -> None:
        raise NotImplementedError


class Nameless:
    """No handle leads anywhere."""

    async def resolve(self, handle: Handle) -> LookupResult:
        return LookupResult("absent", why=str(handle))


# ---------------------------------------------------------------- answers


def receipt(
    far: Far, wires: Sequence[bytes], *, custody: Any = "inbox", durability: Any = "memory"
) -> tuple[str, tuple[ReceiptItem, ...]]:
    items = [
        ReceiptItem(eid_of(wire), Did("did:x:y"), Epoch("e"), "p", 1, False, custody)
        for wire in wires
    ]
    compact = sign_receipt(far.key, items, durability=durability, now=Timestamp(time.time()))
    return compact, verify_receipt(compact, far.peer).items


def takes(**promises: Any) -> Answering:
    async def answer(far: Far, wires: Sequence[bytes]) -> SubmitResult:
        compact, items = receipt(far, wires, **promises)
        return SubmitResult(verify_receipt(compact, far.peer), compact, items)

    return answer


def refuses(code: ErrorCode, **more: Any) -> Answering:
    async def answer(_: Far, wires: Sequence[bytes]) -> SubmitResult:
        stored = Refusal(code).stored
        noes = [Rejection("r", at, code, stored, **more) for at in range(len(wires))]
        return SubmitResult(None, None, noes)

    return answer


def fails(exc: BaseException) -> Answering:
    async def answer(_: Far, __: Sequence[bytes]) -> SubmitResult:
        raise exc

    return answer


def hangs(until: asyncio.Event, then: Answering) -> Answering:
    async def answer(far: Far, wires: Sequence[bytes]) -> SubmitResult:
        await until.wait()
        return await then(far, wires)

    return answer


def no_answer() -> Answering:
    return fails(error(ErrorCode.PEER_UNREACHABLE, "no answer"))


# ---------------------------------------------------------------- the node


@dataclass
class Here:
    """The relay under test: its store and its couriers."""

    me: SigningKey
    store: MemoryStore
    links: FarLinks
    directory: Directory
    delivery: Dispatcher
    forwarding: ForwardScheduler
    alice: SigningKey = field(default_factory=new_key)
    bob: SigningKey = field(default_factory=new_key)
    seq: int = 0

    async def lives_at(self, *homes: Far, agent: SigningKey | None = None) -> str:
        """A newer record: bob lives at these relays, in this order; at none of them: here."""
        agent = agent or self.bob
        self.seq += 1_000
        here = [endpoint_record.Home(self.me.did, "https://here.example")]
        named = [
            endpoint_record.Home(far.peer, far.url, prio) for prio, far in enumerate(homes)
        ] or here
        for far in homes:
            self.links.relays[far.peer] = far
        now = Timestamp(time.time())
        newest = int(now * 1000) + self.seq
        compact = endpoint_record.sign(agent, named, now=now, newest_seq=newest)
        order = endpoint_record.parse(compact).version
        row = RecordRow(order, compact, names_us=not homes)
        await self.store.records.merge([(agent.agent_key, row)])
        return compact

    async def accepts(
        self, *bodies: bytes, sender: SigningKey | None = None, to: SigningKey | None = None
    ) -> list[Eid]:
        """Alice's envelopes to bob, taken into custody."""
        sender, to = sender or self.alice, to or self.bob
        made = [make_envelope(sender, to.did, body) for body in bodies]
        results = await self.delivery.store_and_dispatch(
            self.store.inboxes, [self.stored(one) for one in made]
        )
        assert not any(isinstance(one, Refusal) for one in results), results
        self.forwarding.due.set()
        return [one.eid for one in made]

    def stored(self, made: SignedEnvelope) -> StoredEnvelope:
        admitted = admission.admit_own(envelopes.parse(loads(made.wire)))
        peer = next(iter(self.links.relays.values())).agent_key
        return envelopes.stored(admitted)._replace(peer=peer)

    async def disposition(self, wire: bytes) -> RememberedId | None:
        stored = envelopes.stored(admission.admit_own(envelopes.parse(loads(wire))))
        question = DedupKey(stored.dedupe_key, stored.hour)
        [found] = await self.store.inboxes.status(stored.inbox, [question])
        return found

    async def waiting(self, of: SigningKey | None = None) -> int:
        """How many envelopes wait for an agent, bob."""
        return len(self.store.state.inboxes[(of or self.bob).agent_key].live)

    async def until_empty(self, seconds: float = 8, of: SigningKey | None = None) -> None:
        async with within(seconds):
            while await self.waiting(of):  # noqa: ASYNC110  any store
                await asyncio.sleep(0.01)

    async def bounces(self) -> list[tuple[Eid, str, bool]]:
        """(eid, reason, maybe delivered) of all that is to be told to senders."""
        return [
            (intent.eid, intent.reason, intent.maybe_delivered)
            for batch in await self.store.bounces.claim()
            for intent in batch.intents
        ]


@contextlib.asynccontextmanager
async def here(store: MemoryStore | None = None) -> AsyncIterator[Here]:
    """A relay whose couriers are at work; ended by force."""
    me, node = new_key(), NodeId("n")
    store = store or MemoryStore(InboxLimits(), clock.now)
    links = FarLinks()
    keys = DidKeys()
    handoffs = MigrationSteps(me.did, store.migrations, keys)
    directory = Directory(me.did, store.records, keys, on_record_change=[handoffs.apply_record])

    async def learn(compact: str, peer: Did) -> object:
        return await directory.merge_from_peer([compact], peer)

    delivery = Dispatcher(node)
    resolving = RecordResolver(me.did, directory, links, learn, Nameless())
    acks = GroupCommit(store.inboxes.ack, lambda _: 64)
    forwarding = ForwardScheduler(
        me=me.did,
        node=node,
        inboxes=store.inboxes,
        outboxes=store.outboxes,
        acks=acks,
        dispatcher=delivery,
        routing=Routing(resolving, links),
        links=links,
        merge_record=learn,
        handoffs=DigestSender(handoffs, store.migrations, links),
    )
    async with asyncio.TaskGroup() as tasks:
        work = [tasks.create_task(acks.run()), tasks.create_task(forwarding.run())]
        try:
            yield Here(me, store, links, directory, delivery, forwarding)
        finally:
            for task in work:
                task.cancel()


async def until(condition: Callable[[], object], seconds: float = 8) -> None:
    async with within(seconds):
        while not condition():  # noqa: ASYNC110  any condition
            await asyncio.sleep(0.01)
