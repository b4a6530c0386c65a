"""Dispatch: who on this node reads which inbox, and how wake-ups reach them.

A listener learns of commits of this very node, which it may deliver from memory (R4), and of hints.
It reads the inbox itself. A lost hint costs time, never mail: :meth:`Dispatcher.poll` compares
every session with the store, four seconds after the last comparison. A failing listener harms only
itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from relay.inbox.model.types import Accepted, PageItem
from relay.inbox.ports import InboxHead, InboxStore
from relay.protocol.envelope import StoredEnvelope
from relay.protocol.errors import Refusal
from relay.protocol.ids import AgentKey, Epoch, Fence, NodeId
from relay.tasks import isolated


class InboxListener(Protocol):
    """A session on this node."""

    @property
    def fence(self) -> Fence:
        """The fence of its inbox session."""
        ...

    @property
    def epoch(self) -> Epoch:
        """The epoch of its inbox."""
        ...

    def is_current(self, head: InboxHead) -> bool:
        """Return True if it knows all that the store has, under the newest fence."""
        ...

    def on_stored(self, fence: Fence, items: Sequence[PageItem]) -> None:
        """Take what this node stored for its inbox."""
        ...

    def on_superseded(self) -> None:
        """End: a newer session has the inbox."""
        ...

    def on_wakeup(self) -> None:
        """Look: the inbox may have more, or a newer session."""
        ...


@dataclass(slots=True)
class Dispatcher:
    """The listeners of one node."""

    node: NodeId
    _listeners: dict[AgentKey, InboxListener] = field(default_factory=dict)

    def attach(self, inbox: AgentKey, listener: InboxListener, *, forwards: bool = False) -> None:
        """Listen; a listener of an older session ends.

        A forwarder does not end it: an agent that has moved must not learn that a newer session of
        its own came. That session reads, and the store shows how it stands.
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
        """Stop listening, unless another listener has the inbox by now."""
        if self._listeners.get(inbox) is listener:
            del self._listeners[inbox]

    async def store_and_dispatch(
        self, inboxes: InboxStore, items: Sequence[StoredEnvelope]
    ) -> list[Accepted | Refusal]:
        """Store a batch durably, then dispatch it."""
        results = await inboxes.append(items)
        self.dispatch(items, results)
        return results

    def dispatch(
        self, items: Sequence[StoredEnvelope], results: Sequence[Accepted | Refusal]
    ) -> None:
        """Pass on to this node's sessions what this node's commit stored for them."""
        stored: dict[tuple[AgentKey, Fence], list[PageItem]] = {}
        to_read: set[AgentKey] = set()
        for item, result in zip(items, results, strict=True):
            if isinstance(result, Refusal) or result.dup:
                continue
            if result.session is None:
                # flagged as redelivered, so it must be read; and no other node wakes the session
                to_read.add(item.inbox)
            elif result.session.node == self.node:
                entry = PageItem(result.seq, False, item.eid, item.wire)
                stored.setdefault((item.inbox, result.session.fence), []).append(entry)
        for (inbox, fence), entries in stored.items():
            listener = self._listeners.get(inbox)
            if listener is not None:
                with isolated("listener"):
                    listener.on_stored(fence, entries)
        if to_read:
            self.wake(to_read)

    def wake(self, inboxes: Iterable[AgentKey]) -> None:
        """Take hints from other nodes; none at all = look at every inbox."""
        for inbox in list(inboxes) or list(self._listeners):
            listener = self._listeners.get(inbox)
            if listener is not None:
                with isolated("listener"):
                    listener.on_wakeup()

    async def poll(self, inboxes: InboxStore) -> None:
        """Make up for lost hints: wake each session whose inbox is not as the session knows it."""
        owners = list(self._listeners)
        if not owners:
            return
        for inbox, head in zip(owners, await inboxes.heads(owners), strict=True):
            listener = self._listeners.get(inbox)
            if listener is None or (head is not None and listener.is_current(head)):
                continue
            # after a reset the epoch differs: the session reads, and its agent logs in again
            is_newer = head and head.fence > listener.fence and head.epoch == listener.epoch
            # the agent's own record may have ended the session: reading shows it, or the next ack
            with isolated("listener"):
                if is_newer and head and not head.away:
                    listener.on_superseded()
                else:
                    listener.on_wakeup()
