"""What is delivered to this agent, by however many homes, and its answers (GUARANTEES.md R1-R3).

Rules of the file: only :meth:`Inbox.next` and the answers to a message await. What was acked is not
shown again, by no home, and with a journal not even after a crash; what the program still holds is
held back when delivered again. With a journal, nothing is shown that is not noted in it, and no
answer is said that is not. What one home says and hears is in
:mod:`relay.client.inbox.relay_inbox`.

::

    deliver ──▶ QUEUED ──next──▶ SHOWN ──ack, refuse──▶ ANSWERED ──acked──▶ done
                  │                └── let go, delivered again ──▶ QUEUED
                  └── lost by every home: forgotten, a relay delivers it again
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Container, Iterable
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

from relay.client.errors import AgentError, ClosedError, MovedError, again, typed
from relay.client.inbox.attempts import (
    FAILURE_PAUSE_S,
    LONGEST_FAILURE_PAUSE_S,
    MOST_FAILURES,
    POISON,
    Failures,
)
from relay.client.inbox.delivery import (
    Entry,
    HomeSide,
    Stage,
    log_failure,
)
from relay.client.inbox.opener import (
    Opened,
    Opener,
)
from relay.client.inbox.unverified import Doubt
from relay.client.message import Bounce, Message
from relay.client.process import Owner
from relay.client.state.journal import Journal, SeenEnvelope
from relay.protocol.backoff import doubling_pause_s
from relay.protocol.errors import (
    ErrorCode,
    RelayError,
    error,
)
from relay.protocol.ids import Eid

T = TypeVar("T")
Judge = Callable[[Opened], Awaitable[Opened | RelayError | None]]

_log: Final = logging.getLogger("relay.client")

REMEMBERED: Final = 8_192
"""Eids acked or shown by this process that it still knows."""


class Inbox:
    """One agent's inbox, as the program sees it.

    Args:
        opener: verifies and opens envelopes.
        judge: finds out what is in doubt about a bounce; None: it cannot be found out now.
        journal: remembers eids over a crash; None: they live as long as this process.
    """

    def __init__(
        self, opener: Opener, journal: Journal | None = None, judge: Judge | None = None
    ) -> None:
        self.refused = 0
        self.opener = opener
        self.judge = judge or _believe_nothing
        self.homes: list[HomeSide] = []
        self._journal = journal
        self._failures = Failures(journal)
        self._by_eid: dict[Eid, Entry] = {}
        self._queue: deque[Message] = deque()
        self._done: OrderedDict[Eid, str | None] = OrderedDict()
        self._seen: OrderedDict[Eid, None] = OrderedDict()
        self._news: deque[AgentError] = deque(maxlen=1)
        self._ended: AgentError | None = None
        self._changed = asyncio.Event()
        self._owner = Owner()

    # ------------------------------------------------------------ the program's side

    async def next(self) -> Message | None:
        """The next message; None once the agent is closed.

        Raises:
            AgentError: the end of this agent; ``inbox_reset``, once a reset; ``moved`` where no
                relay that can be reached holds the inbox.
        """
        self._owner.check()
        while True:
            if self._news:
                raise self._news.popleft()
            message = self._next_shown()
            if message is not None:
                return message
            if isinstance(self._ended, ClosedError):
                return None
            failure = self._ended or self._no_inbox()
            if failure is not None:
                raise again(failure)
            self._changed.clear()
            await self._changed.wait()

    def _next_shown(self) -> Message | None:
        while self._queue:
            message = self._queue.popleft()
            entry = self._by_eid.get(message.eid)
            if entry is not None and entry.stage is Stage.QUEUED:
                if entry.redelivered and not message.redelivered:
                    # another home has said so, after the one that gave it
                    message = replace(message, redelivered=True)
                entry.stage, entry.shown = Stage.SHOWN, weakref.ref(message)
                _add(self._seen, message.eid, None)
                return message
        return None

    def _no_inbox(self) -> AgentError | None:
        """Why nothing can come from anywhere; ``moved`` before all."""
        said = [home.no_inbox for home in self.homes if home.no_inbox is not None]
        if not said or len(said) < len(self.homes):
            return None
        moved = [failure for failure in said if isinstance(failure, MovedError)]
        return moved[0] if moved else None

    async def answer(self, eid: Eid, refuse_code: str | None, *, wait: bool) -> None:
        """Note that the program has processed it, or cannot, and wait until that is durable."""
        self._owner.check()
        entry = self._by_eid.get(eid)
        if entry is None or not entry.places:
            self._answer_adrift(eid)
            return
        if entry.stage is not Stage.ANSWERED:
            entry.stage, entry.refuse_code, entry.noted = Stage.ANSWERED, refuse_code, False
            self._note(eid, entry)
        if self._ended is not None:
            raise again(self._ended)
        if wait:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            entry.waiters.append(waiter)
            await waiter

    def _note(self, eid: Eid, entry: Entry) -> None:
        """The journal first: the relay must not forget what we could still show."""
        if self._journal is None:
            self._noted(entry)
            return
        noting = self._journal.record_settled(eid, entry.expires_at, entry.refuse_code)
        noting.add_done_callback(partial(self._noted, entry))

    def _noted(self, entry: Entry, noting: asyncio.Future[None] | None = None) -> None:
        failure = log_failure(noting) if noting else None
        if isinstance(failure, AgentError):
            entry.stage, entry.noted = Stage.SHOWN, True
            entry.settle(failure)
            return
        entry.noted = True
        for place in entry.places:
            place.home.say(place)

    def _answer_adrift(self, eid: Eid) -> None:
        """Answer one whose place is not known any more: processed, but nothing to tell it to."""
        if eid in self._done:
            return
        _add(self._done, eid, None)
        entry = self._by_eid.pop(eid, None)
        if self._journal is not None and entry is not None:
            # to be said to nobody, so nothing waits for it
            noting = self._journal.record_settled(eid, entry.expires_at, None)
            noting.add_done_callback(log_failure)
        detail = "it is no longer where it was; if it comes again, it is acked unseen"
        raise typed(ErrorCode.INBOX_RESET, detail)

    async def fail(self, message: Message) -> bool:
        """Note that a handler failed; False: it was shown again, later; True: refused for good."""
        count = await self._failures.add(message.eid)
        # the end of a bounce would be told to nobody
        if count >= MOST_FAILURES and not isinstance(message, Bounce):
            await self.answer(message.eid, POISON, wait=True)
            return True
        # the timer holds the message: until it fires, a second delivery is held back
        loop = asyncio.get_running_loop()
        pause = doubling_pause_s(count, FAILURE_PAUSE_S, LONGEST_FAILURE_PAUSE_S)
        loop.call_later(pause, self._show_again, message)
        return False

    def _show_again(self, message: Message) -> None:
        entry = self._by_eid.get(message.eid)
        if entry is not None and entry.stage is Stage.SHOWN and self._ended is None:
            entry.stage = Stage.QUEUED
            self._queue.append(replace(message, redelivered=True))
            self.changed()

    async def flush(self, seconds: float) -> None:
        """Wait until all answers are durable, but not longer than ``seconds``."""
        loop = asyncio.get_running_loop()
        waiters: list[asyncio.Future[None]] = []
        for entry in self._by_eid.values():
            if entry.stage is Stage.ANSWERED and entry.is_here:
                waiters.append(loop.create_future())
                entry.waiters.append(waiters[-1])
        if waiters:
            await asyncio.wait(waiters, timeout=seconds)
        for waiter in waiters:
            # its failure, if any, is nobody's business any more
            if not waiter.cancel() and not waiter.cancelled():
                waiter.exception()

    def end(self, failure: AgentError) -> None:
        """No relay will be dialled again."""
        self._ended = failure
        for home in self.homes:
            home.lost()
        for entry in list(self._by_eid.values()):
            entry.settle(failure)
        self.changed()

    # ------------------------------------------------------------ the homes' side

    def changed(self) -> None:
        """Whoever waits in :meth:`next` looks again."""
        self._changed.set()

    def tell(self, failure: AgentError) -> None:
        """Raise it once, from the next :meth:`next`."""
        self._news.append(failure)
        self.changed()

    def is_elsewhere(self, home: HomeSide) -> bool:
        """Whether another home than this one is connected."""
        return any(other.is_open for other in self.homes if other is not home)

    async def take(self, items: Iterable[Opened]) -> dict[Eid, SeenEnvelope]:
        """Note envelopes that are about to be shown; gives what was known of them before.

        Raises:
            AgentError: the journal cannot be written: nothing is to be shown.
        """
        if self._journal is None:
            return {}
        return await self._journal.record_delivered(
            (one.envelope.eid, one.envelope.expires_at) for one in items
        )

    def admit(self, opened: Opened, before: SeenEnvelope | None, *, redelivered: bool) -> Entry:
        """What is known of an envelope that is delivered, perhaps again; it may be shown now."""
        eid = opened.envelope.eid
        if eid in self._done:
            return self._answered(eid, self._done[eid])
        entry = self._by_eid.get(eid)
        if entry is None and before is not None and before.is_done:
            return self._answered(eid, before.refuse_code)
        if entry is None:
            entry = self._by_eid[eid] = Entry(eid, Stage.DOUBTED)
        elif entry.is_let_go:
            entry.stage = Stage.DOUBTED
        entry.expires_at = opened.envelope.expires_at
        entry.redelivered = entry.redelivered or redelivered
        if entry.stage is Stage.DOUBTED and not opened.doubts:
            self.queue(entry, opened, redelivered=redelivered or before is not None)
        return entry

    def queue(self, entry: Entry, opened: Opened, *, redelivered: bool) -> None:
        """Nothing is in doubt about it (any more): it is shown in its turn."""
        entry.stage = Stage.QUEUED
        was_shown = redelivered or opened.envelope.eid in self._seen
        self._queue.append(opened.message(self, redelivered=was_shown))
        self.changed()

    async def look_at(self, doubt: Doubt) -> bool:
        """Find out whether a bounce is to be believed; False: it cannot be found out now."""
        seen = await self.judge(doubt.opened)
        if doubt.is_over:
            return True
        if seen is None:
            return False
        if isinstance(seen, Opened):
            self.queue(doubt.entry, seen, redelivered=doubt.redelivered)
        else:
            await self._refuse(doubt, seen)
        return True

    async def give_up(self, doubt: Doubt) -> None:
        """Refuse a bounce that nobody could judge, for want of room."""
        detail = "too many bounces that cannot be judged now"
        await self._refuse(doubt, error(ErrorCode.OVERLOADED, detail))

    async def _refuse(self, doubt: Doubt, why: RelayError) -> None:
        envelope = doubt.opened.envelope
        _log.warning("a bounce of %s is refused: %s", envelope.sender.did, why)
        self.refused += 1
        await self.answer(envelope.eid, str(why.code), wait=False)

    @staticmethod
    def _answered(eid: Eid, unsaid: str | None) -> Entry:
        """One that comes again after its answer; ``unsaid`` is a refusal not known to be durable.

        Only that has an eid: when it is durable, this is to be remembered.
        """
        return Entry(eid if unsaid is not None else None, Stage.ANSWERED, unsaid)

    def left(self, entry: Entry, failure: AgentError | None) -> None:
        """No home has a place for it any more; ``failure`` is why its answer did not count."""
        if entry.durable:
            failure = None
        if entry.eid is not None:
            self._forget(entry.eid, entry)
            if entry.stage is Stage.ANSWERED:
                self._remember(entry.eid, entry.refuse_code, is_durable=failure is None)
        entry.settle(failure)

    def _forget(self, eid: Eid, entry: Entry) -> None:
        if self._by_eid.get(eid) is entry:
            del self._by_eid[eid]
        if entry.stage is Stage.QUEUED:
            # should it come again, then with the marks of that time
            self._queue = deque(message for message in self._queue if message.eid != eid)

    def _remember(self, eid: Eid, refuse_code: str | None, *, is_durable: bool) -> None:
        # a refusal that was not durable is said again, or its sender would never be told
        _add(self._done, eid, None if is_durable else refuse_code)
        if self._journal is not None and refuse_code is not None and is_durable:
            self._journal.clear_refusal(eid).add_done_callback(log_failure)

    def expect(self, coming: Container[Eid], failure: AgentError | None) -> None:
        """After a move: what lay at the old home and will not come to the new one is over.

        Args:
            coming: what will.
            failure: why an answer to the others did not count; None: the old home had it.
        """
        for entry in [one for one in self._by_eid.values() if one.is_adrift]:
            if entry.eid not in coming:
                entry.places.clear()
                if entry.stage is Stage.ANSWERED:
                    self.left(entry, failure)

    def sweep(self) -> None:
        """Forget those of an earlier epoch that the program has let go."""
        gone = [entry for entry in self._by_eid.values() if entry.is_let_go and not entry.places]
        for entry in gone:
            self.left(entry, None)


async def _believe_nothing(_: Opened) -> RelayError:
    return error(ErrorCode.BAD_SIGNATURE, "a bounce of a relay that is not ours")


def _add(memory: OrderedDict[Eid, T], eid: Eid, value: T) -> None:
    memory[eid] = value
    while len(memory) > REMEMBERED:
        memory.popitem(last=False)
