"""The agent for programs without an event loop: each has a thread with one of its own.

Same names and arguments as :class:`relay.client.Agent`; what is awaited there blocks here. It may
be used from several threads. Closing it ends what they wait for with :class:`ClosedError`; Ctrl-C
ends a wait like any other. ::

    with Agent.open(key, relays=["https://relay.example"]) as me:
        me.send(to, "hello")
        for message in me.inbox(timeout=5):
            ...
            message.ack()
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar

from relay.client import accept
from relay.client import agent as asynchronous
from relay.client import message as messages
from relay.client.agent import OPEN_TIMEOUT_S
from relay.client.errors import AgentError, ClosedError, closed
from relay.client.inbox.serve import log_bounce
from relay.client.message import MessageValues
from relay.client.outbox import outcomes as endings
from relay.client.outbox.outcomes import OutcomeValues
from relay.client.sync.loop import LoopThread
from relay.protocol import frames
from relay.protocol.did import SigningKey
from relay.protocol.envelope import SignedEnvelope
from relay.protocol.ids import Did
from relay.protocol.receipts import BounceItem

P = ParamSpec("P")
T = TypeVar("T")
Blocking = Callable[Concatenate["Agent", P], T]

_log: Final = logging.getLogger("relay.client")


def _blocking(
    method: Callable[Concatenate[asynchronous.Agent, P], Coroutine[Any, Any, T]],
) -> Blocking[P, T]:
    """The same method, waited for: one signature, so the two cannot drift apart."""

    @wraps(method)
    def call(self: Agent, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._thread.call(lambda: method(self._agent, *args, **kwargs))

    return call


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Message(MessageValues):
    """As :class:`relay.client.Message`, answered without ``await``.

    Args:
        twin: the same message in the agent's own thread.
        thread: that thread.
    """

    twin: messages.Message
    thread: LoopThread

    __reduce__ = messages.Message.__reduce__

    def ack(self, *, wait: bool = True) -> None:
        """As :meth:`relay.client.Message.ack`."""
        self.thread.call(partial(self.twin.ack, wait=wait))

    def refuse(self, code: str = "unsupported", *, wait: bool = True) -> None:
        """As :meth:`relay.client.Message.refuse`."""
        self.thread.call(partial(self.twin.refuse, code, wait=wait))

    def __enter__(self) -> Self:
        """Process it in a ``with`` block: as ``async with`` there."""
        return self

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        self.thread.call(partial(self.twin.__aexit__, kind, exc, trace))


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Bounce(Message):
    """As :class:`relay.client.Bounce`."""

    items: tuple[BounceItem, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome(OutcomeValues):
    """As :class:`relay.client.Outcome`, with a ``done`` that blocks.

    Args:
        twin: the same outcome in the agent's own thread.
        thread: that thread.
    """

    twin: endings.Outcome = field(repr=False)
    thread: LoopThread = field(repr=False)

    __reduce__ = endings.Outcome.__reduce__

    def done(self) -> None:
        """As :meth:`relay.client.Outcome.done`."""
        self.thread.call(self.twin.done)


Handler = Callable[[Message], None]
BounceHandler = Callable[[Bounce], None]


accept_relay = accept.accept_relay_at_once


class Agent:
    """An identity in conversation with its relay; made by :meth:`open`.

    It lives in one process: in a forked child each call raises :class:`WrongStateError`.
    """

    def __init__(self, agent: asynchronous.Agent, thread: LoopThread) -> None:
        self._agent = agent
        self._thread = thread
        self._inbox = _Source(agent.inbox(), thread)

    __reduce__ = asynchronous.Agent.__reduce__

    @classmethod
    @contextmanager
    def open(
        cls,
        key: SigningKey | Path | str,
        relays: str | Sequence[str],
        *,
        state: str | os.PathLike[str] | None = None,
        open_timeout_s: float = OPEN_TIMEOUT_S,
        insecure_networks: Sequence[str] = (),
    ) -> Iterator[Agent]:
        """As :meth:`relay.client.Agent.open`, with a thread for its event loop.

        Raises:
            RuntimeError: called inside a running event loop: use :class:`relay.client.Agent` there;
                or gevent or eventlet has replaced the threads.
        """
        thread, agent = LoopThread.open(
            lambda: asynchronous.Agent.open(
                key,
                relays,
                state=state,
                open_timeout_s=open_timeout_s,
                insecure_networks=insecure_networks,
            )
        )
        try:
            yield cls(agent, thread)
        finally:
            thread.close()

    @property
    def did(self) -> Did:
        """Who this is."""
        return self._agent.did

    @property
    def relay(self) -> Did | None:
        """The relay that is sent through, or was the last time; it has proved itself."""
        return self._agent.relay

    @property
    def welcome(self) -> frames.Welcome | None:
        """Where the inbox stood at the latest login there."""
        return self._agent.welcome

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection just now."""
        return self._agent.is_connected

    @property
    def warnings(self) -> tuple[AgentError, ...]:
        """The latest of what the program should know and what does not end the agent."""
        return self._agent.warnings

    @property
    def refused(self) -> int:
        """Envelopes that could not be verified or opened, and were refused."""
        return self._agent.refused

    @property
    def unanswered(self) -> int:
        """Envelopes in the outbox: submitted, or about to be, and not definitely answered."""
        return self._agent.unanswered

    @wraps(asynchronous.Agent.sign)
    def sign(self, *args: Any, **kwargs: Any) -> SignedEnvelope:
        """As :meth:`relay.client.Agent.sign`: it waits for nothing there either."""
        return self._agent.sign(*args, **kwargs)

    send = _blocking(asynchronous.Agent.send)
    submit = _blocking(asynchronous.Agent.submit)
    status = _blocking(asynchronous.Agent.status)
    resolve = _blocking(asynchronous.Agent.resolve)
    publish = _blocking(asynchronous.Agent.publish)
    rules = _blocking(asynchronous.Agent.rules)
    migrate = _blocking(asynchronous.Agent.migrate)
    cancel_migration = _blocking(asynchronous.Agent.cancel_migration)

    def outcomes(self, timeout: float | None = None) -> Iterator[Outcome]:
        """As :meth:`relay.client.Agent.outcomes`.

        Args:
            timeout: seconds without an outcome after which the iteration ends; None: never.

        Raises:
            ClosedError: the agent was closed.
            ValueError, AgentError: as there.
        """
        return _Outcomes(self._agent.outcomes(), self._thread, timeout)

    # ------------------------------------------------------------ receive

    def inbox(self, timeout: float | None = None) -> Iterator[Message]:
        """What is delivered, in order; several iterators, in several threads, share one inbox.

        Args:
            timeout: seconds without a message after which the iteration ends; None: never.

        Raises:
            ClosedError: the agent was closed.
            AgentError: as :meth:`relay.client.Agent.inbox`.
        """
        return _Messages(self, timeout)

    def serve(
        self, handler: Handler, on_bounce: BounceHandler | None = None, *, at_once: int = 1
    ) -> None:
        """As :meth:`relay.client.Agent.serve`; with ``at_once=1`` in the thread that calls it.

        Args:
            handler: processes one message, durably; it is never given a bounce.
            on_bounce: processes one bounce, as there.
            at_once: how many threads call them; 1 keeps the order.

        Raises:
            AgentError: as :meth:`inbox`, but when it is closed, this returns.
        """

        def process(message: Message) -> None:
            if not isinstance(message, Bounce):
                handler(message)
            elif on_bounce is not None:
                on_bounce(message)
            else:
                log_bounce(message.items)

        _serve(self, process, at_once)

    def next_message(self, timeout: float | None) -> Message | None:
        """The next one; None where there was none in time.

        Raises:
            AgentError: as :meth:`inbox`.
        """
        message = self._inbox.next(timeout)
        return None if message is None else self._shown(message)

    def _shown(self, message: messages.Message) -> Message:
        values = {item.name: getattr(message, item.name) for item in fields(MessageValues)}
        if isinstance(message, messages.Bounce):
            return Bounce(**values, twin=message, thread=self._thread, items=message.items)
        return Message(**values, twin=message, thread=self._thread)


class _Source(Generic[T]):
    """Takes from what is iterated in the agent's thread; loses nothing that it was given."""

    def __init__(self, source: AsyncIterator[T], thread: LoopThread) -> None:
        self._source = source
        self._thread = thread
        # not in the result of a call: Ctrl-C in just that moment would lose it
        self._taken: deque[T] = deque()

    def next(self, timeout: float | None) -> T | None:
        """The next one; None where there was none in time."""
        while True:
            with contextlib.suppress(IndexError):
                return self._taken.popleft()
            if not self._thread.call(partial(self._take, timeout)):
                return None

    async def _take(self, timeout: float | None) -> bool:  # noqa: ASYNC109  the program's word
        try:
            async with asyncio.timeout(timeout):
                self._taken.append(await anext(self._source))
        except TimeoutError:
            return False
        except StopAsyncIteration:
            raise closed() from None
        return True


class _Outcomes(Iterator[Outcome]):
    """Iterates outcomes."""

    def __init__(
        self, source: AsyncIterator[endings.Outcome], thread: LoopThread, timeout: float | None
    ) -> None:
        self._source = _Source(source, thread)
        self._thread = thread
        self._timeout = timeout

    def __next__(self) -> Outcome:
        found = self._source.next(self._timeout)
        if found is None:
            raise StopIteration
        values = {item.name: getattr(found, item.name) for item in fields(OutcomeValues)}
        return Outcome(**values, twin=found, thread=self._thread)


class _Messages(Iterator[Message]):
    """Iterates an inbox. No generator: that would hold the message which the program let go."""

    def __init__(self, agent: Agent, timeout: float | None) -> None:
        self._agent = agent
        self._timeout = timeout

    def __next__(self) -> Message:
        message = self._agent.next_message(self._timeout)
        if message is None:
            raise StopIteration
        return message


# ---------------------------------------------------------------- serve


def _serve(agent: Agent, handler: Handler, at_once: int) -> None:
    if at_once == 1:
        _serve_in_turn(agent, handler, threading.Event())
        return
    over = threading.Event()
    failures: list[AgentError] = []

    def work() -> None:
        try:
            _serve_in_turn(agent, handler, over)
        except AgentError as exc:
            failures.append(exc)
        finally:
            over.set()

    workers = [threading.Thread(target=work, daemon=True) for _ in range(at_once)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    finally:
        # after Ctrl-C those that wait take nothing more
        over.set()
    if failures:
        raise failures[0]


LOOK_S: Final = 0.5
"""How often a server that has nothing to do looks whether it is over."""


def _serve_in_turn(agent: Agent, handler: Handler, over: threading.Event) -> None:
    while not over.is_set():
        try:
            message = agent.next_message(LOOK_S)
        except ClosedError:
            return
        if message is not None:
            _handle(message, handler)


def _handle(message: Message, handler: Handler) -> None:
    try:
        with message:
            handler(message)
    except AgentError as exc:
        # of the ack: the end of the agent is told by the inbox, anything else makes it come again
        _log.warning("%s: %s", message.eid, exc)
    except Exception:  # noqa: BLE001
        # whatever a program raises is its own; one message must not end the others
        _log.exception("the handler failed on %s of %s", message.eid, message.sender)
