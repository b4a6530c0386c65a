"""What is delivered to this agent, and its answers (GUARANTEES.md R1-R3, R5, R6).

Rules of the file: only :meth:`Inbox.next` and the answers to a message await. An envelope that
cannot be verified or opened is refused with its code and counted, never shown. What was acked is
not shown again, with a journal not even after a crash or by another home; what the program still
holds is held back when delivered again. With a journal, nothing is shown that is not noted in it,
and no answer is said that is not.

::

    deliver ──▶ QUEUED ──next──▶ SHOWN ──ack, refuse──▶ ANSWERED ──acked──▶ done
                  │                └── let go, delivered again ──▶ QUEUED
                  └── lost: forgotten, the relay delivers it again
"""

from __future__ import annotations

import asyncio
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from relay.client.entry import ADRIFT, GONE, Entry, Stage, answered, log_failure
from relay.client.errors import AgentError, ClosedError, again, typed
from relay.client.failures import FAILURE_PAUSE_S, MOST_FAILURES, POISON, Failures
from relay.client.journal import Journal, Known
from relay.client.message import Message
from relay.client.opening import Opened, Opener
from relay.client.progress import Progress
from relay.core.errors import ErrorCode, ProtocolError, RelayError
from relay.core.frames import MAX_SEQS, Ack, Acked, Deliver, DeliverItem, Gap, Welcome
from relay.core.ids import Did, Eid, Epoch, Seq, Timestamp
from relay.core.ranges import Reason

REMEMBERED: Final = 8_192
"""Eids acked by this process that it still knows."""
WINDOW_SLACK: Final = 64
ACK_AGAIN_S: Final = 1


class Inbox:
    """One agent's inbox as it is seen from here.

    Args:
        opener: verifies and opens envelopes.
        wake: called when there is something to write.
        journal: remembers eids over a crash; None: they live as long as this process.
    """

    def __init__(
        self, opener: Opener, wake: Callable[[], None], journal: Journal | None = None
    ) -> None:
        self.refused = 0
        self._open = opener
        self._wake = wake
        self._journal = journal
        self._failures = Failures(journal)
        self._relay: Did | None = None
        self._epoch: Epoch | None = None
        self._head = Seq(0)
        self._window = 0
        self._progress = Progress(Seq(0))
        self._entries: dict[Seq, Entry] = {}
        self._by_eid: dict[Eid, Entry] = {}
        self._unsaid: list[Entry] = []
        self._say_at = Timestamp(0)
        self._queue: deque[Message] = deque()
        self._done: OrderedDict[Eid, str | None] = OrderedDict()
        self._news: deque[AgentError] = deque(maxlen=1)
        self._no_inbox: AgentError | None = None
        self._ended: AgentError | None = None
        self._changed = asyncio.Event()

    # ------------------------------------------------------------ the program's side

    async def next(self) -> Message | None:
        """The next message; None once the agent is closed.

        Raises:
            AgentError: the end of this agent; ``inbox_reset``, once a reset; ``moved`` where the
                inbox is at another relay.
        """
        while True:
            if self._news:
                raise self._news.popleft()
            message = self._next_shown()
            if message is not None:
                return message
            if isinstance(self._ended, ClosedError):
                return None
            failure = self._ended or self._no_inbox
            if failure is not None:
                raise again(failure)
            self._changed.clear()
            await self._changed.wait()

    def _next_shown(self) -> Message | None:
        while self._queue:
            message = self._queue.popleft()
            entry = self._by_eid.get(message.eid)
            if entry is not None and entry.stage is Stage.QUEUED:
                entry.stage, entry.shown = Stage.SHOWN, weakref.ref(message)
                return message
        return None

    async def answer(self, eid: Eid, refuse_code: str | None, *, wait: bool) -> None:
        """Note that the program has processed it, or cannot, and wait until that is durable."""
        entry = self._by_eid.get(eid)
        if entry is None or entry.seq == ADRIFT:
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
        noting = self._journal.finish(eid, entry.expires_at, entry.refuse_code)
        noting.add_done_callback(partial(self._noted, entry))

    def _noted(self, entry: Entry, noting: asyncio.Future[None] | None = None) -> None:
        failure = log_failure(noting) if noting else None
        if isinstance(failure, AgentError):
            entry.stage, entry.noted = Stage.SHOWN, True
            entry.settle(failure)
            return
        entry.noted = True
        if entry.here:
            self._unsaid.append(entry)
            self._wake()

    def _answer_adrift(self, eid: Eid) -> None:
        """Answer one whose place is not known any more: processed, but nothing to tell it to."""
        if eid in self._done:
            return
        self._remember(eid)
        entry = self._by_eid.pop(eid, None)
        if self._journal is not None and entry is not None:
            # to be said to nobody, so nothing waits for it
            noting = self._journal.finish(eid, entry.expires_at, None)
            noting.add_done_callback(log_failure)
        detail = "it is no longer where it was; if it comes again, it is acked unseen"
        raise typed(ErrorCode.INBOX_RESET, detail)

    async def fail(self, message: Message) -> bool:
        """Note that a handler failed; False: it was shown again, later; True: refused for good."""
        count = await self._failures.add(message.eid)
        if count >= MOST_FAILURES:
            await self.answer(message.eid, POISON, wait=True)
            return True
        # the timer holds the message: until it fires, a second delivery is held back
        loop = asyncio.get_running_loop()
        loop.call_later(FAILURE_PAUSE_S * 2**count, self._show_again, message)
        return False

    def _show_again(self, message: Message) -> None:
        entry = self._by_eid.get(message.eid)
        if entry is not None and entry.stage is Stage.SHOWN and self._ended is None:
            entry.stage = Stage.QUEUED
            self._queue.append(replace(message, redelivered=True))
            self._changed.set()

    async def flush(self, seconds: float) -> None:
        """Wait until all answers are durable, but not longer than ``seconds``."""
        loop = asyncio.get_running_loop()
        waiters: list[asyncio.Future[None]] = []
        for entry in self._entries.values():
            if entry.stage is Stage.ANSWERED and entry.here:
                waiters.append(loop.create_future())
                entry.waiters.append(waiters[-1])
        if waiters:
            await asyncio.wait(waiters, timeout=seconds)
        for waiter in waiters:
            # its failure, if any, is nobody's business any more
            if not waiter.cancel() and not waiter.cancelled():
                waiter.exception()

    # ------------------------------------------------------------ connections

    def opened(self, relay: Did, welcome: Welcome, *, was_reset: bool) -> None:
        """A login holds.

        Args:
            relay: who proved itself.
            welcome: where the inbox stands there.
            was_reset: whether this agent has known another epoch of it.
        """
        self._open.proven.add(relay)
        self._no_inbox = None
        same = relay == self._relay and welcome.epoch == self._epoch
        went_back = same and welcome.head < self._head
        if not same or went_back:
            self._set_adrift()
        if went_back or was_reset:
            detail = "the relay's store was rolled back or lost; acked envelopes may come again"
            self._news.append(typed(ErrorCode.INBOX_RESET, detail))
        self._relay, self._epoch, self._head = relay, welcome.epoch, welcome.head
        self._window = welcome.window_count
        self._progress = Progress(welcome.cursor)
        for entry in [entry for seq, entry in self._entries.items() if seq <= welcome.cursor]:
            self._conclude(entry, None)
        for entry in [entry for entry in self._by_eid.values() if entry.is_let_go]:
            self._forget(entry)
        self._changed.set()

    def has_no_home(self, failure: AgentError) -> None:
        """This relay holds no inbox of ours: :meth:`next` says so."""
        self._no_inbox = failure
        self._changed.set()

    def lost(self) -> None:
        """The connection is gone; what was not shown yet is forgotten, it will come again."""
        self._queue.clear()
        self._unsaid.clear()
        self._say_at = Timestamp(0)
        for entry in list(self._entries.values()):
            entry.here = entry.said = False
            if entry.stage is Stage.QUEUED or entry.eid is None:
                self._forget(entry)

    def end(self, failure: AgentError) -> None:
        """No relay will be dialled again."""
        self.lost()
        self._ended = failure
        for entry in list(self._entries.values()):
            entry.settle(failure)
        self._changed.set()

    def _set_adrift(self) -> None:
        """Another epoch: seqs mean nothing any more, eids still do."""
        for entry in list(self._entries.values()):
            if entry.stage is Stage.ANSWERED:
                detail = "the inbox began a new epoch before this answer was durable"
                self._conclude(entry, typed(ErrorCode.INBOX_RESET, detail))
            else:
                entry.seq = ADRIFT
        self._entries.clear()

    def _forget(self, entry: Entry) -> None:
        self._entries.pop(entry.seq, None)
        if entry.eid is not None and self._by_eid.get(entry.eid) is entry:
            del self._by_eid[entry.eid]

    # ------------------------------------------------------------ delivered

    async def deliver(self, frame: Deliver) -> None:
        """Take what the relay hands over.

        Raises:
            ProtocolError: another epoch than this session's, or far more than its window.
            AgentError: the journal cannot be written: nothing is shown.
        """
        self._expect(frame.epoch)
        new = [item for item in frame.items if not self._is_here(item.seq)]
        opened = [(item, self._open.attempt(item.envelope)) for item in new]
        known: dict[Eid, Known] = {}
        if self._journal is not None:
            envelopes = [one.envelope for _, one in opened if isinstance(one, Opened)]
            known = await self._journal.take((one.eid, one.expires_at) for one in envelopes)
        for item, one in opened:
            self._take(item, one, known)
        if len(self._entries) > 2 * self._window + WINDOW_SLACK:
            raise ProtocolError(ErrorCode.BAD_FRAME, "more was delivered than the window allows")

    def _expect(self, epoch: Epoch) -> None:
        if epoch != self._epoch:
            raise ProtocolError(ErrorCode.BAD_FRAME, "delivered from another epoch")

    def _is_here(self, seq: Seq) -> bool:
        entry = self._entries.get(seq)
        return entry is not None and entry.here

    def _take(
        self, item: DeliverItem, opened: Opened | RelayError, known: dict[Eid, Known]
    ) -> None:
        self._head = Seq(max(self._head, item.seq))
        if isinstance(opened, RelayError):
            self.refused += 1
            entry = Entry(item.seq, None, Stage.ANSWERED, str(opened.code))
            self._entries[item.seq] = entry
            self._unsaid.append(entry)
            return
        before = known.get(opened.envelope.eid)
        entry = self._entry_of(opened.envelope.eid, item.seq, before)
        entry.expires_at = opened.envelope.expires_at
        self._entries[item.seq] = entry
        if entry.stage is Stage.ANSWERED:
            if entry.noted:
                self._unsaid.append(entry)
        elif entry.stage is Stage.QUEUED:
            redelivered = item.redelivered or before is not None
            self._queue.append(opened.message(self, redelivered=redelivered))
            self._changed.set()

    def _entry_of(self, eid: Eid, seq: Seq, before: Known | None) -> Entry:
        """What is known of an envelope that is delivered (again) at ``seq``."""
        if eid in self._done:
            return answered(seq, eid, self._done[eid])
        entry = self._by_eid.get(eid)
        if entry is None and before is not None and before.is_done:
            return answered(seq, eid, before.refuse_code)
        if entry is None:
            entry = self._by_eid[eid] = Entry(seq, eid)
        elif entry.here and entry.seq != seq:
            # twice in one inbox: the second waits for the fate of the first, and comes again
            return Entry(seq, None, Stage.SHOWN)
        else:
            entry.seq, entry.here, entry.said = seq, True, False
            if entry.is_let_go:
                entry.stage = Stage.QUEUED
        return entry

    def gap(self, frame: Gap) -> None:
        """Take the relay's word on seqs that hold nothing any more.

        Raises:
            ProtocolError: another epoch than this session's.
        """
        self._expect(frame.epoch)
        for item in frame.ranges:
            self._progress.add(item.start, item.end)
            self._head = Seq(max(self._head, item.end))
            for entry in [e for s, e in self._entries.items() if item.start <= s <= item.end]:
                kept = entry.stage is Stage.ANSWERED and item.reason in {
                    Reason.ACKED,
                    Reason.REFUSED,
                }
                detail = f"{item.reason} before the answer was durable"
                self._conclude(entry, None if kept else typed(GONE[item.reason], detail))

    # ------------------------------------------------------------ answered

    def next_ack(self, now: Timestamp) -> Ack | None:
        """The next ``ack`` frame, if there is something to say; ``now`` is monotonic seconds."""
        if self._epoch is None or now < self._say_at:
            return None
        batch, self._unsaid = self._unsaid[:MAX_SEQS], self._unsaid[MAX_SEQS:]
        for entry in batch:
            entry.said = True
            # a refusal is passed only when it is durable: a cumulative ack must not overtake it
            if entry.refuse_code is None:
                self._progress.add(entry.seq, entry.seq)
        if not batch and not self._progress.moved:
            return None
        upto = self._progress.take()
        return Ack(
            self._epoch,
            upto,
            tuple(e.seq for e in batch if e.refuse_code is None and e.seq > upto),
            tuple((e.seq, e.refuse_code) for e in batch if e.refuse_code is not None),
        )

    def next_timer(self) -> Timestamp | None:
        """When :meth:`next_ack` has something to say, monotonic seconds; None = when woken."""
        return self._say_at if self._unsaid and self._say_at else None

    def acked(self, frame: Acked) -> None:
        """Take the relay's word on what is durable."""
        if frame.epoch != self._epoch:
            return
        named = {*frame.seqs, *frame.refused}
        for seq, entry in list(self._entries.items()):
            if entry.said and (seq <= frame.upto or seq in named):
                self._progress.add(seq, seq)
                self._conclude(entry, None)

    def say_again(self, now: Timestamp, retry_after: int | None) -> None:
        """The store did not take our answers: say them once more, a little later."""
        self._say_at = Timestamp(now + (retry_after or ACK_AGAIN_S))
        said = [entry for entry in self._entries.values() if entry.said]
        for entry in said:
            entry.said = False
        self._unsaid += said

    def _conclude(self, entry: Entry, failure: AgentError | None) -> None:
        """It is over with this entry; ``failure`` is why our answer did not count."""
        self._forget(entry)
        if entry.eid is not None and entry.stage is Stage.ANSWERED:
            # a refusal that was not durable is said again, or its sender would never be told
            self._remember(entry.eid, entry.refuse_code if failure else None)
            if self._journal is not None and entry.refuse_code is not None and failure is None:
                self._journal.told(entry.eid).add_done_callback(log_failure)
        entry.settle(failure)

    def _remember(self, eid: Eid, unsaid: str | None = None) -> None:
        self._done[eid] = unsaid
        while len(self._done) > REMEMBERED:
            self._done.popitem(last=False)
