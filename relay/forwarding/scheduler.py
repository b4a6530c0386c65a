"""Forwarding: couriers for every away inbox of this relay that this node was lent (§5.2).

Rules of the file: what is due is the store's word, lent for a while, so that one node carries an
inbox at a time and another goes on when that one is gone. At most :data:`MOST_COURIERS` at once:
what is due beyond waits in the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from relay import clock, metrics
from relay.forwarding.forwarder import (
    BATCH,
    HANDOFF_BATCH,
    ForwarderDeps,
    InboxForwarder,
)
from relay.forwarding.peer_submitter import (
    PeerSubmitter,
)
from relay.forwarding.routing import Routing
from relay.inbox.dispatch import Delivery
from relay.inbox.group_commit import GroupCommit
from relay.inbox.model.store_contract import LEASE_S
from relay.inbox.model.types import (
    Acked,
    AckRequest,
)
from relay.inbox.ports import (
    OpenRequest,
    Store,
)
from relay.migration.digest_sender import (
    DigestSender,
)
from relay.peering.ports import PeerLinks
from relay.protocol.endpoint_record import Home
from relay.protocol.errors import Refusal
from relay.protocol.ids import (
    AgentKey,
    Did,
    NodeId,
)
from relay.protocol.types import (
    Window,
)
from relay.tasks import (
    guarded,
    isolated,
)

LOOK_S: Final = 1.0
MOST_COURIERS: Final = 1_024
MOST_DUE: Final = 256
WINDOW: Final = Window(256, 4 * 1024 * 1024)
HANDOFF_WINDOW: Final = Window(2 * HANDOFF_BATCH[0], 4 * 1024 * 1024)
"""While the target looks at one page, the next one is read, and the last one acked."""


@dataclass(slots=True)
class ForwardScheduler:
    """The couriers and carriers of one node.

    Args:
        me: this relay.
        node: this node.
        store: inboxes.
        acks: the node's group commit of acks.
        delivery: tells of news.
        routing: where agents live.
        links: other relays.
        learn: verifies and keeps a record that a relay told.
        mover: says first what has to be said of an inbox that changes relays.
        due: set by whoever adds mail to forward, so that the next look is now.
    """

    me: Did
    node: NodeId
    store: Store
    acks: GroupCommit[AckRequest, Acked]
    delivery: Delivery
    routing: Routing
    links: PeerLinks
    learn: Callable[[str, Did], Awaitable[object]]
    mover: DigestSender
    due: asyncio.Event = field(default_factory=asyncio.Event)
    _carriers: dict[tuple[Did, str, str, str], PeerSubmitter] = field(default_factory=dict)
    _couriers: dict[AgentKey, InboxForwarder | None] = field(default_factory=dict)
    _again: dict[AgentKey, AgentKey | None] = field(default_factory=dict)
    _is_draining: bool = False
    _left: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Carry until cancelled; couriers then close their inboxes."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                await self._carry_for_ever()
            finally:
                self._tasks = None

    async def _carry_for_ever(self) -> None:
        while True:
            self.due.clear()
            with isolated("forward"):
                await self._look()
            try:
                async with asyncio.timeout(LOOK_S):
                    await self.due.wait()
            except TimeoutError:
                continue

    async def drain(self) -> None:
        """Take no more inboxes, and leave those that are carried to other nodes, cleanly."""
        self._is_draining = True
        while self._couriers:
            for courier in self._couriers.values():
                if courier is not None:
                    courier.stop()
            self._left.clear()
            await self._left.wait()

    async def _look(self) -> None:
        room = min(MOST_DUE, MOST_COURIERS - len(self._couriers))
        if room <= 0:
            self._make_room()
        if room <= 0 or self._is_draining:
            return
        due = await self.store.due_outboxes(self.node, most=room, lease_s=LEASE_S)
        for one in due:
            if one.inbox in self._couriers:
                # it has news that the one before may not see any more: then it is gone on with
                self._again[one.inbox] = one.peer
            else:
                self._begin(one.inbox, one.peer)
        if len(due) == room:
            self.due.set()

    def _begin(self, inbox: AgentKey, peer: AgentKey | None) -> None:
        self._couriers[inbox] = None
        self._spawn(self._carry(inbox, peer))

    def _make_room(self) -> None:
        """Those that have had nothing to do of late make way for what may be due."""
        before = clock.monotonic() - LOOK_S / 2
        for courier in self._couriers.values():
            if courier is not None and courier.idle_since < before:
                courier.stop()

    async def _carry(self, inbox: AgentKey, peer: AgentKey | None) -> None:
        metrics.COURIERS.inc()
        try:
            # after a failure the loan lapses, and it is due again
            with isolated("courier"):
                lead = await self.mover.lead(inbox)
                if lead.may_carry:
                    await self._carry_on(inbox, peer, lead.handoff)
        finally:
            metrics.COURIERS.dec()
            was_full = len(self._couriers) >= MOST_COURIERS
            del self._couriers[inbox]
            self._left.set()
            if was_full:
                self.due.set()
        if inbox in self._again and not self._is_draining:
            self._begin(inbox, self._again.pop(inbox))

    async def _carry_on(self, inbox: AgentKey, peer: AgentKey | None, handoff: str) -> None:
        window = HANDOFF_WINDOW if handoff else WINDOW
        opened = await self.store.open(
            OpenRequest(inbox, self.node, window, create=False, courier=True)
        )
        if isinstance(opened, Refusal):
            return
        needs = self._needs_of(inbox, handoff)
        courier = self._couriers[inbox] = InboxForwarder(needs, inbox, opened, peer)
        if self._is_draining:
            courier.stop()
        await courier.run()

    def _needs_of(self, inbox: AgentKey, handoff: str) -> ForwarderDeps:
        async def target(_: Did) -> Sequence[Home]:
            return await self.mover.homes(inbox, handoff)

        return ForwarderDeps(
            window=HANDOFF_WINDOW if handoff else WINDOW,
            store=self.store,
            acks=self.acks,
            delivery=self.delivery,
            homes=target if handoff else self.routing.all,
            # ids of hand-offs are their agents' choice: what two inboxes have goes apart
            carrier=lambda home: self._carrier(home, handoff, inbox if handoff else ""),
            learn=self.learn,
            spawn=self._spawn,
            batch=HANDOFF_BATCH if handoff else BATCH,
            forgotten=(lambda: self.mover.forgotten(inbox, handoff)) if handoff else None,
        )

    def _carrier(self, home: Home, handoff: str, inbox: str) -> PeerSubmitter:
        key = (home.did, home.url, handoff, inbox)
        found = self._carriers.get(key)
        if found is None:
            idle = [other for other, one in self._carriers.items() if one.is_idle]
            for other in idle:
                del self._carriers[other]
            found = self._carriers[key] = PeerSubmitter(
                self.me, home, self.links, self._spawn, handoff
            )
        return found

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._tasks is None:
            # it has not begun or it is over: another node carries what is due
            work.close()
            return
        self._tasks.create_task(guarded("forward", work))
