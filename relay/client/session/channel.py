"""One relay of an agent and the connection to it: dial, log in, read, write, dial again.

Entry point: :meth:`Channel.run`. The channel decides when to write and when to dial; outbox, inbox
and requests decide what is written. Invariants: only a signed error of the relay ends it. After any
other end, a bug here included, it dials again, with full jitter and not before the relay allows.
Example of a channel whose relay restarts: ``dial, read, lost, pause, dial, read``.

::

    run ──▶ dial ──▶ read ‖ write ‖ keep the record ‖ verify bounces ──lost──▶ pause ──▶ dial …
              ▲                    └── superseded, wrong_relay, …  ──▶ the end, for good
              └─resume── paused ◀──pause── (the agent migrates)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from relay import clock
from relay.client._util import Backoff, task_group, wait_for_event
from relay.client.directory.own_record import OwnRecord
from relay.client.errors import (
    ENDS_THE_AGENT,
    AgentError,
    SupersededError,
    bug_of,
    clone,
    make_error,
)
from relay.client.http.origin import Origin
from relay.client.inbox.inbox import Inbox
from relay.client.inbox.relay_inbox import RelayInbox
from relay.client.outbox.queue import Outbox
from relay.client.session.connection import Incoming, RelayConnection, dial
from relay.client.session.requests import PendingRequests, Request, Response
from relay.client.state.agent_state import AgentState
from relay.protocol import frames
from relay.protocol.client_session import LoginOptions
from relay.protocol.did import SigningKey
from relay.protocol.errors import ErrorCode, RelayError
from relay.protocol.ids import Did, Timestamp

STABLE_S: Final = 1.0
"""A connection that lasted so long was a good one: the next pause is short again."""
REQUEST_TIMEOUT_S: Final = 15.0
MIN_PAUSE_S: Final = 0.2
MAX_PAUSE_S: Final = 5.0
MAX_RETRY_AFTER_S: Final = 60
CLOSE_TIMEOUT_S: Final = 5.0
"""A clean close takes two seconds at most."""

_log: Final = logging.getLogger("relay.client")


class Relogin(Exception):  # noqa: N818  a signal, no error
    """The record that names this relay is published now: a new login opens the inbox."""


class Paused(Exception):  # noqa: N818  a signal, no error
    """The agent migrates: there must be no session at this relay now."""


class DuplicateRelay(Exception):  # noqa: N818  a signal, no error
    """Another channel has this relay, and now has this one's origin."""


@dataclass(slots=True)
class ReconnectControl:
    """Decides when a channel may dial: now, after a pause, once it is resumed, or never more.

    A channel that is paused closes its connection in the clean way first: then the relay knows
    exactly what it has delivered.
    """

    is_stopped: bool = False
    backoff: Backoff = field(default_factory=lambda: Backoff(MIN_PAUSE_S, MAX_PAUSE_S))
    _allowed: asyncio.Event = field(default_factory=asyncio.Event)
    _paused: asyncio.Event = field(default_factory=asyncio.Event)
    _at_rest: asyncio.Event = field(default_factory=asyncio.Event)
    _retry_now: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._allowed.set()

    # ------------------------------------------------------------ for the agent

    def pause(self) -> None:
        """Do not dial; close the connection."""
        self._allowed.clear()
        self._paused.set()
        self._retry_now.set()

    async def pause_and_wait(self) -> None:
        """Pause, and wait until the connection is closed, but not for ever."""
        self.pause()
        await wait_for_event(self._at_rest, CLOSE_TIMEOUT_S)

    def stop(self) -> None:
        """Never dial again; close the connection."""
        self.is_stopped = True
        self.pause()
        self._allowed.set()

    def resume(self) -> None:
        """Dial, and now."""
        self._paused.clear()
        self._allowed.set()
        self._retry_now.set()

    # ------------------------------------------------------------ for the channel

    async def wait_allowed(self) -> bool:
        """Wait until the channel may dial; False: never more."""
        if not self._allowed.is_set():
            self._at_rest.set()
            await self._allowed.wait()
            self._at_rest.clear()
        return not self.is_stopped

    async def wait_paused(self) -> None:
        """Wait until the connection must be closed.

        Raises:
            Paused: now.
        """
        await self._paused.wait()
        raise Paused

    async def wait_to_retry(self, retry_after: int | None) -> None:
        """Wait before the next dial, unless there is a reason to dial sooner."""
        seconds = self.backoff.next_s() + min(retry_after or 0, MAX_RETRY_AFTER_S)
        if await wait_for_event(self._retry_now, seconds):
            self._retry_now.clear()


@dataclass(slots=True, eq=False)
class Channel:
    """Everything between an agent and one of its relays.

    Args:
        key: the agent.
        state: pins and epochs.
        outbox: of the agent, shared by its channels.
        agent_inbox: of the agent, shared by its channels.
        own_record: of the agent, shared by its channels.
        claim_relay: asks for a relay; False: another channel has it, and now has this origin, too.
        on_connection_change: called when a connection is made or lost, or when more is known.
        wait_records_known: waits until each reachable relay has shown the record that it holds.
        origins: of the relay; the first that answers is used, and where it is lost the next.
        relay: its DID; None: whichever proves itself at the first contact.
        is_active: envelopes are submitted through this channel.
    """

    key: SigningKey
    state: AgentState
    outbox: Outbox
    agent_inbox: Inbox
    own_record: OwnRecord
    claim_relay: Callable[[Channel, Did], bool]
    on_connection_change: Callable[[], None]
    wait_records_known: Callable[[], Awaitable[None]]
    origins: list[Origin]
    relay: Did | None = None
    is_active: bool = False
    requests: PendingRequests = field(default_factory=PendingRequests)
    connection: RelayConnection | None = None
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    last_failure: AgentError | None = None
    control: ReconnectControl = field(default_factory=ReconnectControl)
    inbox: RelayInbox = field(init=False)
    origin: Origin = field(init=False)
    welcome: frames.Welcome | None = field(default=None, init=False)
    limits: dict[str, int] = field(default_factory=dict, init=False)
    record_known: bool = field(default=False, init=False)
    is_ready: bool = field(default=False, init=False)
    _has_inbox: bool = field(default=False, init=False)
    _work: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def __post_init__(self) -> None:
        self.origin = self.origins[0]
        self.inbox = RelayInbox(self.agent_inbox, self.wake)

    # ------------------------------------------------------------ for the agent

    def wake(self) -> None:
        """Look for something to write."""
        self._work.set()

    @property
    def has_answered(self) -> bool:
        """True once the relay has opened a session or refused it, or is known to be unreachable."""
        return self.is_ready or self.last_failure is not None

    @property
    def is_home(self) -> bool:
        """True if the relay has opened an inbox of this agent, at the latest login."""
        return self.welcome is not None and self.welcome.inbox

    async def request(self, make: Callable[[str], Request]) -> Response:
        """Send a request to this relay, over reconnects, for at most 15 s.

        Raises:
            AgentError: the relay's refusal, or no answer in time.
        """
        if self.outbox.ended is not None:
            raise clone(self.outbox.ended)
        response = self.requests.add(make)
        self.wake()
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                return await response
        except TimeoutError as exc:
            raise make_error(
                ErrorCode.PEER_UNREACHABLE, "no answer from the relay in time"
            ) from exc

    # ------------------------------------------------------------ dial, again and again

    async def run(self) -> AgentError | None:
        """Keep the connection up until an end for good, and return its reason.

        None: another channel has this relay.
        """
        at = 0
        while await self.control.wait_allowed():
            self.origin = self.origins[at % len(self.origins)]
            began = clock.monotonic()
            try:
                failure = await self._connect_once(self.origin)
            except DuplicateRelay:
                return None
            if failure is not None and not self._goes_on(self.origin, failure):
                return failure
            if self.outbox.ended is not None:
                # not left to a cancellation, which may be lost when a task group fails meanwhile
                return self.outbox.ended
            if clock.monotonic() - began > STABLE_S:
                self.control.backoff.reset()
            else:
                at += failure is not None
            await self.control.wait_to_retry(
                self.last_failure.retry_after if self.last_failure else None
            )
        return make_error(ErrorCode.MOVED, f"this agent has left {self.origin}")

    async def _connect_once(self, origin: Origin) -> AgentError | None:
        """Connect once, and return the reason for the end; None: this side has ended it."""
        try:
            await self._use_connection(origin)
        except AgentError as failure:
            explained = self.state.explain(failure, str(self.origin), self.relay)
            exc = await self._with_record(self._credible(explained))
            _log.info("%s", exc)
        except DuplicateRelay:
            raise
        except Exception as bug:  # noqa: BLE001  other channels, and the program, go on
            exc = bug_of(bug, f"the conversation with {origin}")
        else:
            return None
        self.last_failure = exc
        if self.welcome is None:
            self.inbox.on_no_inbox(exc)
        self.inbox.unreachable()
        self.on_connection_change()
        return exc

    def _credible(self, exc: AgentError) -> AgentError:
        """Return the error; a relay without an inbox cannot know that a newer session has it."""
        if not isinstance(exc, SupersededError) or self._has_inbox:
            return exc
        return make_error(ErrorCode.PEER_UNREACHABLE, f"{self.origin}: no inbox here to be taken")

    async def _with_record(self, exc: AgentError) -> AgentError:
        """Add the newest record to an error that says only that the agent has moved.

        Another program of this agent has moved it, then.
        """
        if exc.code not in {ErrorCode.MOVED, ErrorCode.MIGRATING} or exc.record is not None:
            return exc
        try:
            found = await self.own_record.refresh_from(self.origin)
            exc.record = found.record.jws.compact if found.record is not None else None
        except RelayError as failure:
            _log.info("the record of this agent is not known: %s", failure)
        return exc

    def _goes_on(self, origin: Origin, exc: AgentError) -> bool:
        if exc.code not in ENDS_THE_AGENT:
            return True
        self.origins = [other for other in self.origins if other != origin]
        return bool(self.origins) and not isinstance(exc, SupersededError)

    async def _use_connection(self, origin: Origin) -> None:
        self._has_inbox = False
        async with dial(origin, self.key, self._login(origin), self._ensure_claimed) as connection:
            self._begin(origin, connection)
            try:
                await self._run_tasks(connection)
            except (Relogin, Paused):
                return
            finally:
                self._lose()

    def _login(self, origin: Origin) -> LoginOptions:
        expected = self.relay or self.state.relay_at(str(origin))
        # at first contact a liar could use a record that names another relay: proof comes first
        return LoginOptions(str(origin), expected, self.state.record if expected else None)

    def _ensure_claimed(self, relay: Did) -> None:
        """Claim the relay before the login: two sessions there would supersede each other."""
        if not self.claim_relay(self, relay):
            raise DuplicateRelay

    def _begin(self, origin: Origin, connection: RelayConnection) -> None:
        ready, relay = connection.ready, connection.relay
        self.state.pin(str(origin), relay)
        self.connection, self.relay, self.welcome = connection, relay, ready.welcome
        self._has_inbox, self.last_failure = ready.welcome.inbox, None
        self.limits, self.lost = ready.hello.limits, asyncio.Event()
        self.own_record.add_relay(relay, str(origin))
        epoch = ready.welcome.epoch
        before = self.state.see_epoch(relay, epoch) if epoch is not None else None
        self.inbox.connected(relay, ready.welcome, was_reset=before is not None)
        self.on_connection_change()

    def _lose(self) -> None:
        self.connection = None
        self.record_known = False
        self.outbox.lost(self._id)
        self.inbox.disconnected()
        self.requests.lost()
        self.lost.set()
        self.on_connection_change()

    @property
    def _id(self) -> str:
        """Its name in the outbox."""
        return self.relay or ""

    async def _run_tasks(self, connection: RelayConnection) -> None:
        try:
            async with task_group() as tasks:
                tasks.create_task(self._read(connection))
                tasks.create_task(self._write(connection))
                tasks.create_task(self._keep_record(connection))
                tasks.create_task(self.inbox.verify_bounces())
                tasks.create_task(self.control.wait_paused())
        except BaseExceptionGroup as group:
            first = _first_of(group)
            if isinstance(first, RelayError) and not isinstance(first, AgentError):
                # a wrong frame in a session costs the relay the connection, not us the agent
                detail = f"the relay sent a wrong frame: {first.detail}"
                raise make_error(ErrorCode.BAD_FRAME, detail) from first
            raise first from None

    # ------------------------------------------------------------ read

    async def _read(self, connection: RelayConnection) -> None:
        while True:
            for frame in await connection.receive():
                await self._process(frame, connection)
            self.wake()

    async def _process(self, frame: Incoming, connection: RelayConnection) -> None:
        match frame:
            case frames.Submitted():
                self.outbox.answered(frame, connection.relay, clock.monotonic(), self._id)
            case frames.Deliver():
                await self.inbox.delivered(frame)
            case frames.Gap():
                self.inbox.gap(frame)
            case frames.Acked():
                self.inbox.acked(frame)
            case frames.Statuses() | frames.Resolved() | frames.Published() | frames.Ruled():
                self.requests.answered(frame)
            case frames.Error():
                self._process_error(frame)

    def _process_error(self, frame: frames.Error) -> None:
        exc = make_error(frame.error, frame.detail, retry_after=frame.retry_after)
        now = clock.monotonic()
        if frame.ref is not None:
            if not self.outbox.failed(frame.ref, exc, now, self._id):
                self.requests.failed(frame.ref, exc)
        elif frame.error is ErrorCode.STORAGE_UNAVAILABLE:
            self.inbox.requeue_acks(now, frame.retry_after)
        elif frame.error is ErrorCode.INBOX_RESET:
            # the next login shows the new epoch
            raise make_error(ErrorCode.STORAGE_UNAVAILABLE, frame.detail)
        else:
            _log.info("the relay reports: %s", exc)

    # ------------------------------------------------------------ write

    async def _write(self, connection: RelayConnection) -> None:
        while True:
            self._work.clear()
            while (frame := self._next_frame()) is not None:
                await connection.send(frame)
            await self._wait_for_work()
            now = clock.monotonic()
            self.outbox.check_answers(now, self._id)
            self.inbox.check_answers(now)
            self.requests.check_answers(now)

    def _next_frame(self) -> frames.Frame | None:
        now = clock.monotonic()
        frame = self.inbox.next_ack(now) or self.requests.next_request(now)
        if frame is not None or not self.is_active:
            return frame
        max_count = max(self.limits.get("envelopes", frames.MAX_ENVELOPES), 1)
        return self.outbox.next_submit(now, max_count, channel_id=self._id)

    async def _wait_for_work(self) -> None:
        due: list[Timestamp | None] = [self.inbox.next_timer(), self.requests.next_timer()]
        due.append(self.outbox.next_timer(self._id, is_active=self.is_active))
        timers = [at for at in due if at]
        await wait_for_event(
            self._work, max(0.0, min(timers) - clock.monotonic()) if timers else None
        )

    # ------------------------------------------------------------ the own record

    async def _keep_record(self, connection: RelayConnection) -> None:
        """Publish the newest record of this agent, as long as the relay is one of its homes."""
        own = self.own_record
        await self._ask_record(connection)
        self.record_known = True
        self.on_connection_change()
        await self.wait_records_known()
        while True:
            changed = own.changed.upcoming()
            await self._publish(connection.relay)
            self._settle(connection)
            if not await wait_for_event(changed, own.renew_in(clock.now())):
                # another program of this agent may have published meanwhile
                await self._ask_record(connection)

    async def _ask_record(self, connection: RelayConnection) -> None:
        answer = await self.request(lambda ref: frames.Resolve(ref, self.key.did))
        if isinstance(answer, frames.Resolved):
            has_inbox = connection.ready.welcome.inbox
            self.own_record.add_resolved(connection.relay, answer, has_inbox=has_inbox)

    async def _publish(self, relay: Did) -> None:
        while (record := self.own_record.next_record(relay, clock.now())) is not None:
            await self.state.flush_record()
            answer = await self.request(partial(frames.Publish, record=record))
            if isinstance(answer, frames.Published):
                self.own_record.add_published(relay, record, answer)
                self.on_connection_change()

    def _settle(self, connection: RelayConnection) -> None:
        """Become ready, now that it is known whether this relay is a home.

        Raises:
            Relogin: it has become one after the login.
        """
        if not connection.ready.welcome.inbox:
            shown = connection.login.record
            if self.own_record.is_home(connection.relay) and shown != self.state.record:
                raise Relogin
            self.inbox.on_no_inbox(
                self.own_record.not_home_error(connection.relay, str(self.origin))
            )
        self.is_ready = True
        self.on_connection_change()


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the reason for the end: a bug before all, then whatever came first."""
    known = RelayError | Relogin | Paused
    bugs = [exc for exc in group.exceptions if not isinstance(exc, known)]
    return (bugs or list(group.exceptions))[0]
