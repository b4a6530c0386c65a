"""The base of every consumer of an inbox on this node: an agent's connection or a forwarder.

It is a listener of the dispatcher, a source of the group commit of acks, and owns the timer. The
delivery decides; a subclass carries out the effects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from relay import clock
from relay.inbox.model.delivery import InboxDelivery
from relay.inbox.model.effects import Effect, Read
from relay.inbox.model.types import AckRequest, AckResult, Page, PageItem
from relay.inbox.ports import InboxHead, InboxStore
from relay.protocol.errors import Refusal, RelayError
from relay.protocol.ids import Epoch, Fence, Timestamp


class Timed(Protocol):
    """A state machine with a timer: a delivery, or the conversation that it belongs to."""

    def next_timer(self) -> Timestamp | None:
        """Return when to call :meth:`on_timer`, monotonic seconds."""
        ...

    def on_timer(self, now: Timestamp) -> list[Effect]:
        """Do what is due."""
        ...


class InboxConsumer:
    """A delivery, its timer, and the hints for it.

    Args:
        delivery: decides what to read and to deliver.
        timed: has the timer.
        store: inboxes.
    """

    def __init__(self, delivery: InboxDelivery, timed: Timed, store: InboxStore) -> None:
        self._delivery = delivery
        self._timed = timed
        self._inboxes = store
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None

    def _perform(self, wanted: Sequence[Effect]) -> None:
        """Carry out effects, in order; end with :meth:`_set_timer`."""
        raise NotImplementedError

    async def read(self, effect: Read) -> None:
        """Read a page and deliver it."""
        page: Page | Refusal
        try:
            page = await self._inboxes.read(effect.inbox, effect.fence, effect.after, effect.window)
        except RelayError as exc:
            page = Refusal.of(exc)
        self._perform(self._delivery.on_page(page, clock.monotonic()))

    def on_committed(self, results: Sequence[tuple[AckRequest, AckResult | Refusal]]) -> None:
        """Take what one commit decided about acks."""
        for request, result in results:
            self._perform(self._delivery.on_acked(request.ack, result))

    # ------------------------------------------------------------ listener

    @property
    def fence(self) -> Fence:
        """The fence of its inbox session."""
        return self._delivery.fence

    @property
    def epoch(self) -> Epoch:
        """The epoch of its inbox."""
        return self._delivery.epoch

    def is_current(self, head: InboxHead) -> bool:
        """Return True if it knows all that the store has."""
        return self._delivery.is_current(head.fence, head.head)

    def on_stored(self, fence: Fence, items: Sequence[PageItem]) -> None:
        """Deliver what this node stored for this inbox."""
        self._perform(self._delivery.on_stored(fence, items))

    def on_superseded(self) -> None:
        """End: a newer session has the inbox."""
        self._perform(self._delivery.on_superseded())

    def on_wakeup(self) -> None:
        """Look at the inbox."""
        self._perform(self._delivery.on_wakeup())

    # ------------------------------------------------------------ timer

    def _set_timer(self) -> None:
        at = self._timed.next_timer()
        if at == self._timer_at:
            return
        self._stop_timer()
        self._timer_at = at
        if at is not None:
            delay = max(0.0, at - clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = self._timer_at = None
        self._perform(self._timed.on_timer(clock.monotonic()))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
