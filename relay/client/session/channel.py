"""Keeps an agent in conversation with one relay: dial, log in, read, write, dial again.

Rules of the file: it decides when to speak and when to give up, the boxes decide what is said. Only
the relay's signed word ends it; any other end, a bug here or a lie there included, is a reason to
dial again, with full jitter.

::

    run ──▶ dial ──▶ read ‖ write ‖ keep the record ‖ look at bounces ──lost──▶ pause ──▶ dial …
                                  └── superseded, wrong_relay, …  ──▶ the end, for good
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from relay import clock
from relay.client._util import task_group
from relay.client.directory.own_record import Homes
from relay.client.directory.resolve import resolve_at
from relay.client.errors import ENDS_THE_AGENT, AgentError, SupersededError, again, bug_of, typed
from relay.client.http.origin import Origin
from relay.client.inbox.inbox import Inbox
from relay.client.inbox.relay_inbox import RelayInbox
from relay.client.outbox.queue import Outbox
from relay.client.session.connection import (
    Line,
    Said,
    dial,
)
from relay.client.session.reconnect import (
    Folded,
    Gate,
    LogInAgain,
    Rest,
    first_of,
    pause_after,
)
from relay.client.session.requests import (
    Answer,
    Question,
    Questions,
)
from relay.client.state.agent_state import AgentState
from relay.protocol import frames
from relay.protocol.client_session import (
    LoginOptions,
)
from relay.protocol.did import SigningKey
from relay.protocol.errors import (
    ErrorCode,
    RelayError,
)
from relay.protocol.ids import (
    Did,
    Timestamp,
)

SETTLED_S: Final = 1.0
"""A connection that lasted so long was a good one: the next pause is short again."""
QUESTION_S: Final = 15.0

_log: Final = logging.getLogger("relay.client")


class Company(Protocol):
    """What the conversations of one agent share; see :mod:`relay.client.session.pool`."""

    key: SigningKey
    state: AgentState
    outbox: Outbox
    inbox: Inbox
    homes: Homes

    @property
    def ended(self) -> AgentError | None:
        """Why the agent is over."""
        ...

    def claims(self, conversation: Conversation, relay: Did) -> bool:
        """Whether this one is to talk to ``relay``; False: another one does, at its origin, too."""
        ...

    def is_sender(self, conversation: Conversation) -> bool:
        """Whether envelopes are submitted through this one."""
        ...

    def line_changed(self) -> None:
        """A connection came or went."""
        ...

    async def all_asked(self) -> None:
        """Wait until each relay that can be reached has said which record it holds."""
        ...


@dataclass(slots=True, eq=False)
class Conversation:
    """All that goes on between an agent and one of its relays.

    Args:
        company: what it shares with the agent's other conversations.
        origins: where the relay is; the first that answers is taken, and where it is lost the next.
        relay: which relay it is; None: whichever proves itself at the first contact.
    """

    company: Company
    origins: list[Origin]
    relay: Did | None = None
    questions: Questions = field(default_factory=Questions)
    line: Line | None = None
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    last_failure: AgentError | None = None
    gate: Gate = field(default_factory=Gate)
    inbox: RelayInbox = field(init=False)
    origin: Origin = field(init=False)
    welcome: frames.Welcome | None = field(default=None, init=False)
    limits: dict[str, int] = field(default_factory=dict, init=False)
    has_asked: bool = field(default=False, init=False)
    is_settled: bool = field(default=False, init=False)
    _holds_inbox: bool = field(default=False, init=False)
    _work: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def __post_init__(self) -> None:
        self.origin = self.origins[0]
        self.inbox = RelayInbox(self.company.inbox, self.wake)

    # ------------------------------------------------------------ for the agent

    def wake(self) -> None:
        """There is something to write."""
        self._work.set()

    @property
    def has_answered(self) -> bool:
        """Whether it is known how this relay stands, or that it cannot be reached now."""
        return self.is_settled or self.last_failure is not None

    async def ask(self, make: Callable[[str], Question]) -> Answer:
        """Ask this relay a question, over reconnects, for at most 15 s.

        Raises:
            AgentError: the relay's no, or no answer in time.
        """
        if self.company.ended is not None:
            raise again(self.company.ended)
        answer = self.questions.ask(make)
        self.wake()
        try:
            async with asyncio.timeout(QUESTION_S):
                return await answer
        except TimeoutError as exc:
            raise typed(ErrorCode.PEER_UNREACHABLE, "no answer from the relay in time") from exc

    # ------------------------------------------------------------ dial, again and again

    async def run(self) -> AgentError | None:
        """Converse until told to stop for good; gives why. None: another one has this relay."""
        failures = at = 0
        while await self.gate.passed():
            self.origin = self.origins[at % len(self.origins)]
            began = clock.monotonic()
            try:
                failure = await self._try(self.origin)
            except Folded:
                return None
            if failure is not None and not self._goes_on(self.origin, failure):
                return failure
            if self.company.ended is not None:
                # not left to a cancellation, which may be lost when a task group fails meanwhile
                return self.company.ended
            if clock.monotonic() - began > SETTLED_S:
                failures = 0
            else:
                failures, at = failures + 1, at + (failure is not None)
            asked = self.last_failure.retry_after if self.last_failure else None
            await self.gate.pause(pause_after(failures, asked))
        return typed(ErrorCode.MOVED, f"this agent has left {self.origin}")

    async def _try(self, origin: Origin) -> AgentError | None:
        """Converse once; gives what ended it, None where this side did."""
        try:
            await self._converse(origin)
        except AgentError as said:
            clear = self.company.state.explain(said, str(self.origin), self.relay)
            exc = await self._with_record(self._credible(clear))
            _log.info("%s", exc)
        except Folded:
            raise
        except Exception as bug:  # noqa: BLE001  other conversations, and the program, go on
            exc = bug_of(bug, f"the conversation with {origin}")
        else:
            return None
        self.last_failure = exc
        if self.welcome is None:
            self.inbox.on_no_inbox(exc)
        self.inbox.unreachable()
        self.company.line_changed()
        return exc

    def _credible(self, exc: AgentError) -> AgentError:
        """Only who has given an inbox can say that a newer session has it."""
        if not isinstance(exc, SupersededError) or self._holds_inbox:
            return exc
        return typed(ErrorCode.PEER_UNREACHABLE, f"{self.origin}: no inbox here to be taken")

    async def _with_record(self, exc: AgentError) -> AgentError:
        """Who is told that the agent moves, but not where to, looks: another program moved it."""
        if exc.code not in {ErrorCode.MOVED, ErrorCode.MIGRATING} or exc.record is not None:
            return exc
        try:
            found = await resolve_at(self.origin, self.company.key.did, is_own=True)
            if found.record is not None:
                exc.record = found.record.jws.compact
                self.company.homes.told(exc.record)
        except RelayError as failure:
            _log.info("where this agent lives is not said: %s", failure)
        return exc

    def _goes_on(self, origin: Origin, exc: AgentError) -> bool:
        if exc.code not in ENDS_THE_AGENT:
            return True
        self.origins = [other for other in self.origins if other != origin]
        return bool(self.origins) and not isinstance(exc, SupersededError)

    async def _converse(self, origin: Origin) -> None:
        self._holds_inbox = False
        async with dial(origin, self.company.key, self._login(origin), self._is_mine) as line:
            self._begin(origin, line)
            try:
                await self._talk(line)
            except (LogInAgain, Rest):
                return
            finally:
                self._lose()

    def _login(self, origin: Origin) -> LoginOptions:
        state = self.company.state
        expected = self.relay or state.relay_at(str(origin))
        # at first contact a liar could gain a record that names somewhere else: proof comes first
        return LoginOptions(str(origin), expected, state.record if expected else None)

    def _is_mine(self, relay: Did) -> None:
        """Two sessions at one relay would supersede each other: asked before the login."""
        if not self.company.claims(self, relay):
            raise Folded

    def _begin(self, origin: Origin, line: Line) -> None:
        ready, state = line.ready, self.company.state
        state.pin(str(origin), line.relay)
        self.line, self.relay, self.welcome = line, line.relay, ready.welcome
        self._holds_inbox, self.last_failure = ready.welcome.inbox, None
        self.limits, self.lost = ready.hello.limits, asyncio.Event()
        self.company.homes.joined(line.relay, str(origin))
        epoch = ready.welcome.epoch
        before = state.see_epoch(line.relay, epoch) if epoch is not None else None
        self.inbox.connected(line.relay, ready.welcome, was_reset=before is not None)
        self.company.line_changed()

    def _lose(self) -> None:
        self.line = None
        self.has_asked = False
        self.company.outbox.lost(self._name)
        self.inbox.disconnected()
        self.questions.lost()
        self.lost.set()
        self.company.line_changed()

    @property
    def _name(self) -> str:
        """Its line in the outbox."""
        return self.relay or ""

    async def _talk(self, line: Line) -> None:
        try:
            async with task_group() as tasks:
                tasks.create_task(self._read(line))
                tasks.create_task(self._write(line))
                tasks.create_task(self._keep_record(line))
                tasks.create_task(self.inbox.verify_bounces())
                tasks.create_task(self.gate.until_shut())
        except BaseExceptionGroup as group:
            first = first_of(group)
            if isinstance(first, RelayError) and not isinstance(first, AgentError):
                # a lie in mid-conversation costs the relay the connection, not us the agent
                detail = f"the relay said what cannot be: {first.detail}"
                raise typed(ErrorCode.BAD_FRAME, detail) from first
            raise first from None

    # ------------------------------------------------------------ read

    async def _read(self, line: Line) -> None:
        while True:
            for frame in await line.receive():
                await self._hear(frame, line)
            self.wake()

    async def _hear(self, frame: Said, line: Line) -> None:
        match frame:
            case frames.Submitted():
                self.company.outbox.answered(frame, line.relay, clock.monotonic(), self._name)
            case frames.Deliver():
                await self.inbox.delivered(frame)
            case frames.Gap():
                self.inbox.gap(frame)
            case frames.Acked():
                self.inbox.acked(frame)
            case frames.Statuses() | frames.Resolved() | frames.Published() | frames.Ruled():
                self.questions.answered(frame)
            case frames.Error():
                self._hear_error(frame)

    def _hear_error(self, frame: frames.Error) -> None:
        exc = typed(frame.error, frame.detail, retry_after=frame.retry_after)
        now = clock.monotonic()
        if frame.ref is not None:
            if not self.company.outbox.failed(frame.ref, exc, now, self._name):
                self.questions.failed(frame.ref, exc)
        elif frame.error is ErrorCode.STORAGE_UNAVAILABLE:
            self.inbox.requeue_acks(now, frame.retry_after)
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
            now = clock.monotonic()
            self.company.outbox.check_answers(now, self._name)
            self.inbox.check_answers(now)
            self.questions.check_answers(now)

    def _next_frame(self) -> frames.Frame | None:
        now = clock.monotonic()
        return self.inbox.next_ack(now) or self.questions.next(now) or self._next_submit(now)

    def _next_submit(self, now: Timestamp) -> frames.Frame | None:
        if not self.company.is_sender(self):
            return None
        most = self.limits.get("envelopes", frames.MAX_ENVELOPES)
        return self.company.outbox.next_submit(now, max(most, 1), line=self._name)

    async def _wait_for_work(self) -> None:
        due = self.company.outbox.next_timer(self._name, sends=self.company.is_sender(self))
        known = (self.inbox.next_timer(), self.questions.next_timer(), due)
        timers = [at for at in known if at]
        delay = max(0.0, min(timers) - clock.monotonic()) if timers else None
        try:
            async with asyncio.timeout(delay):
                await self._work.wait()
        except TimeoutError:
            return

    # ------------------------------------------------------------ the own record

    async def _keep_record(self, line: Line) -> None:
        """See that this relay holds the newest record of this agent, as long as it is its home."""
        homes = self.company.homes
        await self._learn_record(line)
        self.has_asked = True
        self.company.line_changed()
        await self.company.all_asked()
        while True:
            news = homes.news
            await self._publish(line.relay)
            self._settle(line)
            try:
                async with asyncio.timeout(homes.renew_in(clock.now())):
                    await news.wait()
            except TimeoutError:
                # another program of this agent may have published meanwhile
                await self._learn_record(line)

    async def _learn_record(self, line: Line) -> None:
        answer = await self.ask(lambda ref: frames.Resolve(ref, self.company.key.did))
        if isinstance(answer, frames.Resolved):
            self.company.homes.learn(line.relay, answer, has_inbox=line.ready.welcome.inbox)

    async def _publish(self, relay: Did) -> None:
        homes = self.company.homes
        while (record := homes.next_record(relay, clock.now())) is not None:
            await self.company.state.flush_record()
            answer = await self.ask(partial(frames.Publish, record=record))
            if isinstance(answer, frames.Published):
                homes.published(relay, record, answer)
                self.company.line_changed()

    def _settle(self, line: Line) -> None:
        """Begin, now that it is known whether this relay is a home."""
        record = self.company.state.record
        if not line.ready.welcome.inbox:
            if self.company.homes.is_home(line.relay) and line.login.record != record:
                raise LogInAgain
            self.inbox.on_no_inbox(self.company.homes.no_home(line.relay, str(self.origin)))
        self.is_settled = True
        self.company.line_changed()
