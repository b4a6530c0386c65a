"""Sessions that end since their agent moved, as the listeners of a node hear of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from relay.directory.ports import RecordRow
from relay.inbox.dispatch import Dispatcher
from relay.inbox.model.types import InboxLimits, OpenedSession
from relay.inbox.ports import InboxHead, OpenRequest
from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.ids import AgentKey, Epoch, Fence, NodeId, Timestamp
from relay.protocol.types import Window
from relay.reference.memory_store import MemoryStore

ME, NODE = AgentKey("key:me"), NodeId("a")


@dataclass
class Listening:
    """A session that notes what it hears."""

    fence: Fence
    epoch: Epoch
    heard: list[str] = field(default_factory=list)

    def is_current(self, head: InboxHead) -> bool:
        return head.fence == self.fence

    def on_stored(self, fence: Fence, items: object) -> None:
        self.heard.append(f"committed {fence} {items}")

    def on_superseded(self) -> None:
        self.heard.append("superseded")

    def on_wakeup(self) -> None:
        self.heard.append("woken")


async def listening(store: MemoryStore, *, courier: bool = False) -> Listening:
    session = await store.inboxes.open(OpenRequest(ME, NODE, Window(), forwards=courier))
    assert isinstance(session, OpenedSession)
    return Listening(session.fence, session.epoch)


def new_store() -> MemoryStore:
    return MemoryStore(InboxLimits(), lambda: Timestamp(1_000))


async def move(store: MemoryStore, seq: int, *, home: bool) -> None:
    row = RecordRow(RecordVersion(1, seq, b"h" * 32), "record", names_us=home)
    await store.records.merge([(ME, row)])


async def test_a_poll_never_calls_an_agent_superseded_that_has_moved() -> None:
    store, delivery = new_store(), Dispatcher(NODE)
    agent = await listening(store)
    delivery.attach(ME, agent)
    await move(store, 1, home=False)
    await delivery.poll(store.inboxes)
    assert agent.heard == ["woken"]


async def test_a_poll_tells_a_session_that_another_one_has_the_inbox() -> None:
    store, delivery = new_store(), Dispatcher(NODE)
    agent = await listening(store)
    delivery.attach(ME, agent)
    await listening(store)
    await delivery.poll(store.inboxes)
    assert agent.heard == ["superseded"]


async def test_a_courier_never_calls_an_agent_superseded_that_has_moved() -> None:
    store, delivery = new_store(), Dispatcher(NODE)
    agent = await listening(store)
    delivery.attach(ME, agent)
    await move(store, 1, home=False)
    carrier = await listening(store, courier=True)
    delivery.attach(ME, carrier, forwards=True)
    assert agent.heard == ["woken"]
    await move(store, 2, home=True)
    back = await listening(store)
    delivery.attach(ME, back)
    assert (carrier.heard, back.heard) == (["superseded"], [])
