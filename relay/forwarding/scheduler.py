"""Forwarding: a forwarder for each due inbox that the store leased to this node (§5.2).

The store decides what is due and leases it: one node forwards an inbox at a time, and another goes
on when the lease lapses. At most :data:`MAX_FORWARDERS` run at once; other inboxes wait in the
store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from relay import clock, metrics
from relay.forwarding.forwarder import HANDOFF_WINDOW, WINDOW, ForwarderDeps, InboxForwarder
from relay.forwarding.peer_submitter import SubmitterPool
from relay.forwarding.ports import HandoffGate, OutboxStore
from relay.forwarding.routing import Routing
from relay.inbox.dispatch import Dispatcher
from relay.inbox.group_commit import GroupCommit
from relay.inbox.model.store_contract import LEASE_S
from relay.inbox.model.types import AckRequest, AckResult
from relay.inbox.ports import InboxStore, OpenRequest
from relay.peering.links import Links
from relay.protocol.errors import Refusal
from relay.protocol.ids import AgentKey, Did, NodeId
from relay.tasks import guarded, isolated

POLL_INTERVAL_S: Final = 1.0
MAX_FORWARDERS: Final = 1_024
MAX_DUE: Final = 256


@dataclass(slots=True)
class ForwardScheduler:
    """The forwarders of one node.

    Args:
        me: this relay.
        node: this node.
        inboxes: their sessions.
        outboxes: when they are due.
        acks: the node's group commit of acks.
        dispatcher: the listeners of this node.
        routing: finds the homes of agents.
        links: other relays.
        merge_record: verifies and merges a newer record that a relay sent.
        handoffs: decides about inboxes that move.
        due: set by whoever adds mail to forward; then the next poll is now.
    """

    me: Did
    node: NodeId
    inboxes: InboxStore
    outboxes: OutboxStore
    acks: GroupCommit[AckRequest, AckResult]
    dispatcher: Dispatcher
    routing: Routing
    links: Links
    merge_record: Callable[[str, Did], Awaitable[object]]
    handoffs: HandoffGate
    due: asyncio.Event = field(default_factory=asyncio.Event)
    _deps: ForwarderDeps = field(init=False)
    _running: dict[AgentKey, InboxForwarder | None] = field(default_factory=dict)
    _again: dict[AgentKey, AgentKey | None] = field(default_factory=dict)
    _is_draining: bool = False
    _left: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: asyncio.TaskGroup | None = None

    def __post_init__(self) -> None:
        """Put together what every forwarder needs."""
        self._deps = ForwarderDeps(
            self.inboxes,
            self.outboxes,
            self.acks,
            self.dispatcher,
            self.routing,
            SubmitterPool(self.me, self.links, self._spawn),
            self.handoffs,
            self.merge_record,
            self._spawn,
        )

    async def run(self) -> None:
        """Forward until cancelled; the forwarders then close their inboxes."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                await self._poll_until_cancelled()
            finally:
                self._tasks = None

    async def _poll_until_cancelled(self) -> None:
        while True:
            self.due.clear()
            with isolated("forward"):
                await self._poll()
            try:
                async with asyncio.timeout(POLL_INTERVAL_S):
                    await self.due.wait()
            except TimeoutError:
                continue

    async def drain(self) -> None:
        """Start no more forwarders, and leave the inboxes cleanly to other nodes."""
        self._is_draining = True
        while self._running:
            for forwarder in self._running.values():
                if forwarder is not None:
                    forwarder.stop()
            self._left.clear()
            await self._left.wait()

    async def _poll(self) -> None:
        room = min(MAX_DUE, MAX_FORWARDERS - len(self._running))
        if room <= 0:
            self._make_room()
        if room <= 0 or self._is_draining:
            return
        due = await self.outboxes.due(self.node, limit=room, lease_s=LEASE_S)
        for one in due:
            if one.inbox in self._running:
                # the running forwarder may not see this mail any more: start another one after it
                self._again[one.inbox] = one.peer
            else:
                self._start(one.inbox, one.peer)
        if len(due) == room:
            self.due.set()

    def _start(self, inbox: AgentKey, peer: AgentKey | None) -> None:
        self._running[inbox] = None
        self._spawn(self._forward(inbox, peer))

    def _make_room(self) -> None:
        """Stop forwarders that are idle, so that due inboxes get theirs."""
        before = clock.monotonic() - POLL_INTERVAL_S / 2
        for forwarder in self._running.values():
            if forwarder is not None and forwarder.idle_since < before:
                forwarder.stop()

    async def _forward(self, inbox: AgentKey, peer: AgentKey | None) -> None:
        metrics.FORWARDERS.inc()
        try:
            # after a failure the lease lapses, and the inbox is due again
            with isolated("courier"):
                decision = await self.handoffs.prepare_forward(inbox)
                if decision.may_forward:
                    await self._run_forwarder(inbox, peer, decision.handoff)
        finally:
            metrics.FORWARDERS.dec()
            was_full = len(self._running) >= MAX_FORWARDERS
            del self._running[inbox]
            self._left.set()
            if was_full:
                self.due.set()
        if inbox in self._again and not self._is_draining:
            self._start(inbox, self._again.pop(inbox))

    async def _run_forwarder(self, inbox: AgentKey, peer: AgentKey | None, handoff: str) -> None:
        window = HANDOFF_WINDOW if handoff else WINDOW
        request = OpenRequest(inbox, self.node, window, create=False, forwards=True)
        opened = await self.inboxes.open(request)
        if isinstance(opened, Refusal):
            return
        forwarder = InboxForwarder(self._deps, inbox, opened, peer, handoff)
        self._running[inbox] = forwarder
        if self._is_draining:
            forwarder.stop()
        await forwarder.run()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._tasks is None:
            # not started, or over: another node forwards what is due
            work.close()
            return
        self._tasks.create_task(guarded("forward", work))
