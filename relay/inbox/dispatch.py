"""Deliver: who on this node waits for which inbox, and how news reach them.

Rules of the file: a listener is told of commits of this very node (it may hand over from memory,
R4) and of hints; it reads the inbox itself. Losing a hint costs time, never mail: :meth:`poll`
compares every session with the store at least every 5 s. A listener that fails harms itself only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from relay.inbox.model.types import Accepted, PageItem
from relay.inbox.ports import (
    InboxHead,
    InboxStore,
)
from relay.protocol.envelope import StoredEnvelope
from relay.protocol.errors import Refusal
from relay.protocol.ids import AgentKey, Epoch, Fence, NodeId
from relay.tasks import isolated


class InboxListener(Protocol):
    """A session on this node."""

    @property
    def fence(self) -> Fence:
        """Its number."""
        ...

    @property
    def epoch(self) -> Epoch:
        """The epoch of its inbox."""
        ...

    def is_current(self, head: InboxHead) -> bool:
        """Whether it has seen all that the store has, under the newest fence."""
        ...

    def on_stored(self, fence: Fence, items: Sequence[PageItem]) -> None:
        """This node stored these for its inbox."""
        ...

    def on_superseded(self) -> None:
        """A newer session has the inbox."""
        ...

    def on_wakeup(self) -> None:
        """The inbox may have news, or a newer session."""
        ...


@dataclass(slots=True)
class Dispatcher:
    """The listeners of one node."""

    node: NodeId
    _listeners: dict[AgentKey, InboxListener] = field(default_factory=dict)

    def attach(self, inbox: AgentKey, listener: InboxListener, *, forwards: bool = False) -> None:
        """Listen; a listener of an older session is told that it is superseded.

        Not by a courier: an agent that has moved must not hear that a newer session of its own
        came. It reads, and hears where it stands.
        """
        other = self._listeners.get(inbox)
        if other is not None and other.fence > listener.fence:
            listener.on_superseded()
            return
        self._listeners[inbox] = listener
        if other is None or other is listener:
            return
        if other.fence < listener.fence and not forwards:
            other.on_superseded()
        else:
            other.on_wakeup()

    def detach(self, inbox: AgentKey, listener: InboxListener) -> None:
        """Stop listening, unless somebody else has taken over."""
        if self._listeners.get(inbox) is listener:
            del self._listeners[inbox]

    def dispatch(
        self, items: Sequence[StoredEnvelope], results: Sequence[Accepted | Refusal]
    ) -> None:
        """Tell this node's sessions what this node's commit stored for them."""
        news: dict[tuple[AgentKey, Fence], list[PageItem]] = {}
        marked: set[AgentKey] = set()
        for item, result in zip(items, results, strict=True):
            if isinstance(result, Refusal) or result.dup:
                continue
            if result.session is None:
                marked.add(item.inbox)
            elif result.session.node == self.node:
                entry = PageItem(result.seq, False, item.eid, item.wire)
                news.setdefault((item.inbox, result.session.fence), []).append(entry)
        for (inbox, fence), entries in news.items():
            listener = self._listeners.get(inbox)
            if listener is not None:
                with isolated("listener"):
                    listener.on_stored(fence, entries)
        # what may have been handed over before is read back with its mark; and nobody else tells
        if marked:
            self.wake(marked)

    def wake(self, inboxes: Iterable[AgentKey]) -> None:
        """Hints from other nodes; none at all means: look at everything."""
        for inbox in list(inboxes) or list(self._listeners):
            listener = self._listeners.get(inbox)
            if listener is not None:
                with isolated("listener"):
                    listener.on_wakeup()

    async def store_and_dispatch(
        self, store: InboxStore, items: Sequence[StoredEnvelope]
    ) -> list[Accepted | Refusal]:
        """Store a batch durably, then tell this node's sessions."""
        results = await store.append(items)
        self.dispatch(items, results)
        return results

    async def poll(self, store: InboxStore) -> None:
        """Make up for lost hints: wake each session whose inbox is not as the session thinks."""
        inboxes = list(self._listeners)
        if not inboxes:
            return
        for inbox, head in zip(inboxes, await store.heads(inboxes), strict=True):
            listener = self._listeners.get(inbox)
            if listener is None or (head is not None and listener.is_current(head)):
                continue
            # after a reset the epoch differs: its agent must log in again, and find out by reading
            is_over = head and head.fence > listener.fence and head.epoch == listener.epoch
            # the agent's own record may have ended it: reading tells, or its next ack
            with isolated("listener"):
                if is_over and head and not head.away:
                    listener.on_superseded()
                else:
                    listener.on_wakeup()
