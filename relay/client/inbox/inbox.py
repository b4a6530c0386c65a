"""The inbox of one agent, from all its relays, as its program sees it (GUARANTEES.md R1-R3).

Entry points: :meth:`Inbox.next` and :meth:`Inbox.settle`. Invariants: an acked envelope is not
shown again, from any relay, and with a journal not even after a crash. While the program holds a
message, a redelivery of it is held back. With a journal, an eid is recorded before its message is
shown, and an ack or refusal before it is sent. The states of an envelope are in
:mod:`relay.client.inbox.delivery`; the protocol with one relay is in
:mod:`relay.client.inbox.relay_inbox`.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Container, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from relay.client._util import BoundedDict, failure_of, log_failure
from relay.client.errors import AgentError, ClosedError, MovedError, clone, make_error
from relay.client.inbox.delivery import Delivery, DeliveryEvent, DeliveryState
from relay.client.inbox.opener import EnvelopeOpener, Opened
from relay.client.message import Bounce, Message
from relay.client.process import Owner
from relay.client.state.journal import Journal, SeenEnvelope
from relay.protocol.backoff import doubling_pause_s
from relay.protocol.errors import ErrorCode, RelayError, error
from relay.protocol.ids import Eid

VerifyBounce = Callable[[Opened], Awaitable[Opened | RelayError | None]]

CACHE_SIZE: Final = 8_192
"""Eids acked, shown or failed in this process that it still knows."""
MAX_ATTEMPTS: Final = 5
POISON: Final = "poison"
"""The reason that the sender of a poison envelope reads in its bounce."""
RETRY_PAUSE_S: Final = 0.1
MAX_RETRY_PAUSE_S: Final = 60.0
_NOT_SAVED: Final = "an ack or refusal could not be saved"
_log: Final = logging.getLogger("relay.client")


@dataclass(slots=True, eq=False)
class RelaySide:
    """The inbox at one relay, as the program's side sees it.

    Args:
        disconnected: ends the deliveries of the present connection.
        is_open: there is a session with the inbox.
        failure: the reason why this relay has no inbox for this agent.
    """

    disconnected: Callable[[], None]
    is_open: bool = False
    failure: AgentError | None = None


class AttemptCounter:
    """Counts failures of the handler by eid; with a journal the count survives a crash."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._counts: BoundedDict[Eid, int] = BoundedDict(CACHE_SIZE)

    async def add(self, eid: Eid) -> int:
        """Count one more failure; return the number so far.

        Raises:
            AgentError: the journal cannot be written.
        """
        if self._journal is not None:
            return await self._journal.count_attempt(eid)
        self._counts[eid] = self._counts.get(eid, 0) + 1
        return self._counts[eid]


class Inbox:
    """One agent's inbox, as the program sees it.

    Args:
        opener: verifies and opens envelopes.
        journal: remembers eids over a crash; None: they end with this process.
        verify_bounce: decides on an unverified bounce; returns None if it cannot now.
    """

    def __init__(
        self,
        opener: EnvelopeOpener,
        journal: Journal | None = None,
        verify_bounce: VerifyBounce | None = None,
    ) -> None:
        self.refused = 0
        self.opener = opener
        self.verify_bounce = verify_bounce or _refuse_unverified
        self.relays: list[RelaySide] = []
        self._journal = journal
        self._attempts = AttemptCounter(journal)
        self._by_eid: dict[Eid, Delivery] = {}
        self._queue: deque[Message] = deque()
        self._settled: BoundedDict[Eid, str | None] = BoundedDict(CACHE_SIZE)
        self._seen: BoundedDict[Eid, None] = BoundedDict(CACHE_SIZE)
        self._notices: deque[AgentError] = deque(maxlen=1)
        self._ended: AgentError | None = None
        self._changed = asyncio.Event()
        self._owner = Owner()

    # ------------------------------------------------------------ the program's side

    async def next(self) -> Message | None:
        """Return the next message; None once the agent is closed.

        Raises:
            AgentError: the end of this agent; ``inbox_reset``, once a reset; ``moved`` if no
                reachable relay has the inbox.
        """
        self._owner.check()
        while True:
            if self._notices:
                raise self._notices.popleft()
            message = self._next_shown()
            if message is not None:
                return message
            if isinstance(self._ended, ClosedError):
                return None
            failure = self._ended or self._no_inbox()
            if failure is not None:
                raise clone(failure)
            self._changed.clear()
            await self._changed.wait()

    def _next_shown(self) -> Message | None:
        while self._queue:
            message = self._queue.popleft()
            delivery = self._by_eid.get(message.eid)
            if delivery is not None and delivery.apply(DeliveryEvent.SHOWN):
                if delivery.redelivered and not message.redelivered:
                    # another relay has marked it since
                    message = replace(message, redelivered=True)
                delivery.shown = weakref.ref(message)
                self._seen[message.eid] = None
                return message
        return None

    def _no_inbox(self) -> AgentError | None:
        """Return ``moved`` if no relay has the inbox, and one of them says so."""
        failures = [side.failure for side in self.relays if side.failure is not None]
        if not failures or len(failures) < len(self.relays):
            return None
        return next((one for one in failures if isinstance(one, MovedError)), None)

    async def settle(self, eid: Eid, refuse_code: str | None, *, wait: bool) -> None:
        """Record the program's ack, or its refusal, and wait until that is durable.

        Raises:
            AgentError: it did not become durable; ``.detail`` says why.
        """
        self._owner.check()
        delivery = self._by_eid.get(eid)
        if delivery is None or not delivery.copies:
            self._settle_without_copies(eid)
            return
        if delivery.apply(DeliveryEvent.SETTLED):
            delivery.refuse_code, delivery.is_journaled = refuse_code, False
            self._journal_settled(eid, delivery)
        if self._ended is not None:
            raise clone(self._ended)
        if wait:
            await delivery.wait_durable()

    def _journal_settled(self, eid: Eid, delivery: Delivery) -> None:
        """Record it before it is sent: the relay must not forget what could still be shown."""
        if self._journal is None:
            self._journaled(delivery)
            return
        saving = self._journal.record_settled(eid, delivery.expires_at, delivery.refuse_code)
        saving.add_done_callback(partial(self._journaled, delivery))

    def _journaled(self, delivery: Delivery, saving: asyncio.Future[None] | None = None) -> None:
        failure = failure_of(saving) if saving else None
        delivery.is_journaled = True
        if failure is not None:
            _log.warning("%s: %s", _NOT_SAVED, failure)
        if isinstance(failure, AgentError):
            delivery.apply(DeliveryEvent.NOT_JOURNALED)
            delivery.finish(failure)
        else:
            delivery.queue_acks()

    def _settle_without_copies(self, eid: Eid) -> None:
        """Record the ack of an envelope without a known position: no relay can receive it."""
        if eid in self._settled:
            return
        self._settled[eid] = None
        delivery = self._by_eid.pop(eid, None)
        if self._journal is not None and delivery is not None:
            saving = self._journal.record_settled(eid, delivery.expires_at, None)
            saving.add_done_callback(log_failure(_NOT_SAVED))
        detail = "it is no longer where it was; if it comes again, it is acked unseen"
        raise make_error(ErrorCode.INBOX_RESET, detail)

    async def fail(self, message: Message) -> bool:
        """Count a failure of the handler; return True if the message is refused for good.

        Otherwise it is shown again after a pause.
        """
        count = await self._attempts.add(message.eid)
        # a refused bounce would be reported to no agent
        if count >= MAX_ATTEMPTS and not isinstance(message, Bounce):
            await self.settle(message.eid, POISON, wait=True)
            return True
        # the timer holds the message: until it fires, a redelivery is held back
        pause = doubling_pause_s(count, RETRY_PAUSE_S, MAX_RETRY_PAUSE_S)
        asyncio.get_running_loop().call_later(pause, self._retry, message)
        return False

    def _retry(self, message: Message) -> None:
        delivery = self._by_eid.get(message.eid)
        if delivery is None or self._ended is not None:
            return
        if delivery.apply(DeliveryEvent.RETRIED):
            self._queue.append(replace(message, redelivered=True))
            self.changed()

    async def flush(self, timeout_s: float) -> None:
        """Wait until all acks and refusals are durable, but no longer than the timeout."""
        waiters = [
            delivery.wait_durable()
            for delivery in self._by_eid.values()
            if delivery.is_settling and delivery.is_current
        ]
        if waiters:
            await asyncio.wait(waiters, timeout=timeout_s)
        for waiter in waiters:
            # retrieved, so that asyncio does not log it
            if not waiter.cancel() and not waiter.cancelled():
                waiter.exception()

    def end(self, failure: AgentError) -> None:
        """End the inbox: no relay will be dialled again."""
        self._ended = failure
        for side in self.relays:
            side.disconnected()
        for delivery in list(self._by_eid.values()):
            delivery.finish(failure)
        self.changed()

    # ------------------------------------------------------------ the relays' side

    def changed(self) -> None:
        """Let :meth:`next` look again."""
        self._changed.set()

    def raise_once(self, failure: AgentError) -> None:
        """Raise an error once, from :meth:`next`."""
        self._notices.append(failure)
        self.changed()

    async def record_delivered(self, items: Iterable[Opened]) -> dict[Eid, SeenEnvelope]:
        """Record envelopes before they are shown; return those recorded before.

        Raises:
            AgentError: the journal cannot be written: nothing may be shown.
        """
        if self._journal is None:
            return {}
        return await self._journal.record_delivered(
            (one.envelope.eid, one.envelope.expires_at) for one in items
        )

    def admit(self, opened: Opened, seen: SeenEnvelope | None, *, redelivered: bool) -> Delivery:
        """Return the delivery of an envelope, new or known; queue it if it may be shown."""
        eid = opened.envelope.eid
        if eid in self._settled:
            return self._settled_before(eid, self._settled[eid])
        delivery = self._by_eid.get(eid)
        if delivery is None and seen is not None and seen.is_done:
            return self._settled_before(eid, seen.refuse_code)
        if delivery is None:
            delivery = Delivery(eid, self.on_removed, DeliveryState.VERIFYING)
            self._by_eid[eid] = delivery
        elif delivery.is_dropped:
            delivery.apply(DeliveryEvent.REDELIVERED)
        delivery.expires_at = opened.envelope.expires_at
        delivery.redelivered = delivery.redelivered or redelivered
        if not opened.unverified:
            self.show(delivery, opened, redelivered=redelivered or seen is not None)
        return delivery

    def show(self, delivery: Delivery, opened: Opened, *, redelivered: bool) -> None:
        """Queue a verified envelope for the program, unless it is queued or shown already."""
        if delivery.apply(DeliveryEvent.VERIFIED):
            was_shown = redelivered or opened.envelope.eid in self._seen
            self._queue.append(opened.message(self, redelivered=was_shown))
            self.changed()

    async def refuse_bounce(self, opened: Opened, reason: RelayError) -> None:
        """Refuse a bounce that is not proven."""
        envelope = opened.envelope
        _log.warning("a bounce of %s is refused: %s", envelope.sender.did, reason)
        self.refused += 1
        await self.settle(envelope.eid, str(reason.code), wait=False)

    def refused_on_arrival(self, code: str) -> Delivery:
        """Return the delivery of an envelope that could not be opened."""
        self.refused += 1
        return Delivery(None, self.on_removed, DeliveryState.SETTLING, code)

    def _settled_before(self, eid: Eid, unsent: str | None) -> Delivery:
        """Return the delivery of a settled envelope; ``unsent``: a refusal not known as durable.

        Only with that it has an eid, since its end is to be remembered.
        """
        eid_or_none = eid if unsent is not None else None
        return Delivery(eid_or_none, self.on_removed, DeliveryState.SETTLING, unsent)

    def on_removed(self, delivery: Delivery, failure: AgentError | None) -> None:
        """Forget a delivery without copies; ``failure``: its ack or refusal did not count."""
        eid = delivery.eid
        if eid is not None:
            if self._by_eid.get(eid) is delivery:
                del self._by_eid[eid]
            if delivery.state is DeliveryState.QUEUED:
                # a redelivery has marks of its own
                self._queue = deque(message for message in self._queue if message.eid != eid)
            if delivery.is_settling:
                self._remember(eid, delivery.refuse_code, is_durable=failure is None)
        delivery.finish(failure)

    def _remember(self, eid: Eid, refuse_code: str | None, *, is_durable: bool) -> None:
        # a refusal that was not durable is sent again, or its sender would get no bounce
        self._settled[eid] = None if is_durable else refuse_code
        if self._journal is not None and refuse_code is not None and is_durable:
            self._journal.clear_refusal(eid).add_done_callback(log_failure(_NOT_SAVED))

    def drop_missing(self, manifest: Container[Eid], failure: AgentError | None) -> None:
        """Forget deliveries of the old home that will not arrive at the new one.

        Args:
            manifest: eids that will arrive.
            failure: of the acks of the others; None: the old home had them.
        """
        for delivery in [one for one in self._by_eid.values() if one.is_orphaned]:
            if delivery.eid not in manifest:
                delivery.copies.clear()
                if delivery.is_settling:
                    self.on_removed(delivery, None if delivery.is_durable else failure)

    def sweep(self) -> None:
        """Forget deliveries of an earlier epoch that the program has dropped."""
        for delivery in list(self._by_eid.values()):
            if delivery.is_dropped and not delivery.copies:
                self.on_removed(delivery, None)


async def _refuse_unverified(_: Opened) -> RelayError:
    return error(ErrorCode.BAD_SIGNATURE, "a bounce of a relay that is not ours")
