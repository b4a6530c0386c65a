"""Keeps an agent in conversation with a relay: dial, log in, read, write, dial again.

Rules of the file: it decides when to speak and when to give up, the boxes decide what is said. Only
the relay's signed word ends the agent; any other end is a reason to dial again, with full jitter.

::

    run ──▶ dial ──▶ read ‖ write ‖ keep the record ──lost──▶ pause ──▶ dial …
                                  └── superseded, wrong_relay, …  ──▶ the end, for good
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from relay import clock
from relay.client.connection import Line, Said, dial
from relay.client.errors import ENDS_THE_AGENT, AgentError, SupersededError, of, typed
from relay.client.homes import Homes
from relay.client.inbox import Inbox
from relay.client.opening import Opener
from relay.client.origin import Origin
from relay.client.outbox import Outbox
from relay.client.outcomes import Outcomes
from relay.client.questions import Answer, Question, Questions
from relay.client.state import State
from relay.client.tasks import task_group
from relay.core.agent_session import Login
from relay.core.errors import ErrorCode, ProtocolError, RelayError
from relay.core.frames import (
    MAX_ENVELOPES,
    Acked,
    Deliver,
    Error,
    Frame,
    Gap,
    Publish,
    Published,
    Resolve,
    Resolved,
    Ruled,
    Statuses,
    Submitted,
    Welcome,
)
from relay.core.identity import SigningKey
from relay.core.ids import Did

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0
LONGEST_RETRY_AFTER_S: Final = 60
SETTLED_S: Final = 1.0
"""A connection that lasted so long was a good one: the next pause is short again."""
QUESTION_S: Final = 15.0

_log: Final = logging.getLogger("relay.client")


@dataclass(slots=True, eq=False)
class Conversation:
    """All that goes on between an agent and its relays.

    Args:
        key: the agent.
        origins: its relays; the first that answers is taken, and where it is lost the next. One at
            a time: what waits at another home is delivered when that is dialled.
        state: pins, record and epochs.
    """

    key: SigningKey
    origins: list[Origin]
    state: State
    outbox: Outbox = field(default_factory=Outbox)
    questions: Questions = field(default_factory=Questions)
    line: Line | None = None
    last_failure: AgentError | None = None
    ended: AgentError | None = None
    inbox: Inbox = field(init=False)
    outcomes: Outcomes = field(init=False)
    welcome: Welcome | None = field(default=None, init=False)
    relay: Did | None = field(default=None, init=False)
    limits: dict[str, int] = field(default_factory=dict, init=False)
    _named: frozenset[str] = field(init=False)
    _opened: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _work: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def __post_init__(self) -> None:
        self._named = frozenset(map(str, self.origins))
        self.inbox = Inbox(
            Opener(self.key, self.outbox.receipted_by), self.wake, self.state.journal
        )
        self.outcomes = Outcomes(self.state.journal)

    # ------------------------------------------------------------ for the agent

    def wake(self) -> None:
        """There is something to write."""
        self._work.set()

    async def opened(self) -> None:
        """Wait for the first login, its record included.

        Raises:
            AgentError: the agent ended before it.
        """
        await self._opened.wait()
        if self.ended is not None:
            raise self.ended

    async def ask(self, make: Callable[[str], Question]) -> Answer:
        """Ask a question, over reconnects, for at most 15 s.

        Raises:
            AgentError: the relay's no, or no answer in time.
        """
        if self.ended is not None:
            raise self.ended
        answer = self.questions.ask(make)
        self.wake()
        try:
            async with asyncio.timeout(QUESTION_S):
                return await answer
        except TimeoutError as exc:
            raise typed(ErrorCode.PEER_UNREACHABLE, "no answer from the relay in time") from exc

    def end(self, failure: AgentError) -> None:
        """Nobody will dial again: everyone who waits is told why."""
        if self.ended is None:
            self.ended = failure
            self.outbox.end(failure)
            self.inbox.end(failure)
            self.questions.end(failure)
            self.outcomes.end(failure)
            self._opened.set()

    # ------------------------------------------------------------ dial, again and again

    async def run(self) -> None:
        """Converse until cancelled or told to stop for good."""
        failures = at = 0
        while True:
            origin = self.origins[at % len(self.origins)]
            began = clock.monotonic()
            failed = False
            try:
                await self._converse(origin)
            except AgentError as exc:
                _log.info("%s", exc)
                self.last_failure, failed = exc, True
                if not self._goes_on(origin, exc):
                    self.end(exc)
            if self.ended is not None:
                # not left to a cancellation, which may be lost when a task group fails meanwhile
                return
            if clock.monotonic() - began > SETTLED_S:
                failures = 0
            else:
                failures, at = failures + 1, at + failed
            await asyncio.sleep(self._pause(failures))

    def _goes_on(self, origin: Origin, exc: AgentError) -> bool:
        if exc.code not in ENDS_THE_AGENT:
            return True
        self.origins = [other for other in self.origins if other != origin]
        return bool(self.origins) and not isinstance(exc, SupersededError)

    def _pause(self, failures: int) -> float:
        """Full jitter; never earlier than the relay asked for."""
        # not 2**failures as it is: an hour of failures would be a huge number
        longest = min(FIRST_PAUSE_S * 2.0 ** min(failures, 10), LONGEST_PAUSE_S)
        share = int.from_bytes(clock.entropy(4)) / 0xFFFF_FFFF
        asked = self.last_failure.retry_after if self.last_failure else None
        return longest * share + min(asked or 0, LONGEST_RETRY_AFTER_S)

    async def _converse(self, origin: Origin) -> None:
        async with dial(origin, self.key, self._login(origin)) as line:
            self._begin(origin, line)
            try:
                homes = Homes(self.key, line.relay, str(origin), self.state, self._named)
                await self._talk(line, homes)
            except _LogInAgain:
                return
            finally:
                self._lose()

    def _login(self, origin: Origin) -> Login:
        expected = self.state.relay_at(str(origin))
        # at first contact a liar could gain a record that names somewhere else: proof comes first
        return Login(str(origin), expected, self.state.record if expected else None)

    def _begin(self, origin: Origin, line: Line) -> None:
        ready = line.ready
        self.state.pin(str(origin), line.relay)
        self.line, self.relay, self.welcome = line, line.relay, ready.welcome
        self.last_failure = None
        self.limits = ready.hello.limits
        epoch = ready.welcome.epoch
        before = self.state.see_epoch(line.relay, epoch) if epoch is not None else None
        self.inbox.opened(line.relay, ready.welcome, was_reset=before is not None)

    def _lose(self) -> None:
        self.line = None
        self.outbox.lost()
        self.inbox.lost()
        self.questions.lost()

    async def _talk(self, line: Line, homes: Homes) -> None:
        try:
            async with task_group() as tasks:
                tasks.create_task(self._read(line))
                tasks.create_task(self._write(line))
                tasks.create_task(self._keep_record(line, homes))
        except BaseExceptionGroup as group:
            first = _first(group)
            raise (of(first) if isinstance(first, RelayError) else first) from None

    # ------------------------------------------------------------ read

    async def _read(self, line: Line) -> None:
        while True:
            for frame in await line.receive():
                try:
                    await self._hear(frame, line)
                except ProtocolError as exc:
                    # a lie in mid-conversation costs the relay the connection, not us the agent
                    detail = f"the relay said what cannot be: {exc.detail}"
                    raise typed(ErrorCode.BAD_FRAME, detail) from exc
            self.wake()

    async def _hear(self, frame: Said, line: Line) -> None:
        match frame:
            case Submitted():
                self.outbox.answered(frame, line.relay, clock.monotonic())
            case Deliver():
                await self.inbox.deliver(frame)
            case Gap():
                self.inbox.gap(frame)
            case Acked():
                self.inbox.acked(frame)
            case Statuses() | Resolved() | Published() | Ruled():
                self.questions.answered(frame)
            case Error():
                self._hear_error(frame)

    def _hear_error(self, frame: Error) -> None:
        exc = typed(frame.error, frame.detail, retry_after=frame.retry_after)
        now = clock.monotonic()
        if frame.ref is not None:
            if not self.outbox.failed(frame.ref, exc, now):
                self.questions.failed(frame.ref, exc)
        elif frame.error is ErrorCode.STORAGE_UNAVAILABLE:
            self.inbox.say_again(now, frame.retry_after)
        elif frame.error is ErrorCode.INBOX_RESET:
            # the next login shows which epoch it is now
            raise typed(ErrorCode.STORAGE_UNAVAILABLE, frame.detail)
        else:
            _log.info("the relay says: %s", exc)

    # ------------------------------------------------------------ write

    async def _write(self, line: Line) -> None:
        while True:
            self._work.clear()
            while (frame := self._next_frame()) is not None:
                await line.send(frame)
            await self._wait_for_work()
            self.outbox.check_answers(clock.monotonic())

    def _next_frame(self) -> Frame | None:
        now = clock.monotonic()
        most = self.limits.get("envelopes", MAX_ENVELOPES)
        return (
            self.inbox.next_ack(now)
            or self.questions.next()
            or self.outbox.next_submit(now, max(most, 1))
        )

    async def _wait_for_work(self) -> None:
        timers = [at for at in (self.inbox.next_timer(), self.outbox.next_timer()) if at]
        delay = max(0.0, min(timers) - clock.monotonic()) if timers else None
        try:
            async with asyncio.timeout(delay):
                await self._work.wait()
        except TimeoutError:
            return

    # ------------------------------------------------------------ the own record

    async def _keep_record(self, line: Line, homes: Homes) -> None:
        """See that the newest record of this agent names this relay, as long as it is its home."""
        answer = await self.ask(lambda ref: Resolve(ref, self.key.did))
        if isinstance(answer, Resolved):
            homes.learn(answer)
        while True:
            await self._publish(homes)
            self._settle(line, homes)
            await asyncio.sleep(homes.renew_in(clock.now()))

    async def _publish(self, homes: Homes) -> None:
        record = homes.next_record(clock.now())
        while record is not None:
            answer = await self.ask(partial(_publish, record))
            if isinstance(answer, Published):
                homes.published(record, answer)
            record = homes.next_record(clock.now())

    def _settle(self, line: Line, homes: Homes) -> None:
        """Begin, now that it is known whether this relay is a home."""
        if not line.ready.welcome.inbox:
            if homes.is_home and line.login.record != self.state.record:
                raise _LogInAgain
            detail = f"{line.relay} holds no inbox of this agent: its record names another home"
            self.inbox.has_no_home(typed(ErrorCode.MOVED, detail, record=self.state.record))
        self._opened.set()


def _publish(record: str, ref: str) -> Publish:
    return Publish(ref, record)


class _LogInAgain(Exception):  # noqa: N818  a signal, no error
    """The record that names this relay is published now: a new login opens the inbox."""


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What a conversation ended with: a bug before all, then whatever came first."""
    bugs = [exc for exc in group.exceptions if not isinstance(exc, RelayError | _LogInAgain)]
    return (bugs or list(group.exceptions))[0]
