"""Follower: what every consumer of an inbox on this node does, an agent's socket or a courier.

Rules of the file: it is a listener of the node's deliveries and a source of its acks; the session
decides, the follower carries out; what is said to whom is left to who it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from relay import clock
from relay.inbox.model.effects import (
    Effect,
    Read,
)
from relay.inbox.model.session import RelaySession
from relay.inbox.model.types import (
    Acked,
    Page,
    PageItem,
)
from relay.inbox.ports import (
    AckRequest,
    Head,
    InboxStore,
)
from relay.protocol.errors import (
    Refusal,
    RelayError,
)
from relay.protocol.ids import (
    Epoch,
    Fence,
)


class Follower:
    """A session of an inbox, its timer and its news.

    Args:
        session: decides.
        store: inboxes.
    """

    def __init__(self, session: RelaySession, store: InboxStore) -> None:
        self._session = session
        self._inboxes = store
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None

    def _perform(self, effects: Sequence[Effect]) -> None:
        """Carry out effects, in order; ends with :meth:`_set_timer`."""
        raise NotImplementedError

    async def _read(self, effect: Read) -> None:
        page: Page | Refusal
        try:
            page = await self._inboxes.read(effect.inbox, effect.fence, effect.after, effect.window)
        except RelayError as exc:
            page = Refusal.of(exc)
        self._perform(self._session.page(page, clock.monotonic()))

    def decided(self, results: Sequence[tuple[AckRequest, Acked | Refusal]]) -> None:
        """One commit decided these acks."""
        now = clock.monotonic()
        for request, result in results:
            self._perform(self._session.acked(request.ack, result, now))

    # ------------------------------------------------------------ news

    @property
    def fence(self) -> Fence:
        """The fence of its inbox session."""
        who = self._session.who
        return Fence(0) if who is None or who.fence is None else who.fence

    @property
    def epoch(self) -> Epoch:
        """The epoch of its inbox."""
        return self._session.epoch

    def is_current(self, head: Head) -> bool:
        """Whether the session knows all that the store has."""
        return self._session.is_current(head.fence, head.head)

    def committed(self, fence: Fence, items: Sequence[PageItem]) -> None:
        """This node stored these for this inbox."""
        self._perform(self._session.committed(fence, items))

    def superseded(self) -> None:
        """A newer session has the inbox."""
        self._perform(self._session.superseded())

    def woken(self) -> None:
        """A hint."""
        self._perform(self._session.woken())

    # ------------------------------------------------------------ timer

    def _set_timer(self) -> None:
        at = self._session.next_timer()
        if at == self._timer_at:
            return
        self._stop_timer()
        self._timer_at = at
        if at is not None:
            delay = max(0.0, at - clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = self._timer_at = None
        self._perform(self._session.on_timer(clock.monotonic()))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
