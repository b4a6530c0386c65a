"""The agent for programs without an event loop; each has a thread with one of its own.

Names and arguments are those of :class:`relay.client.Agent`; its coroutines block here. Several
threads may use one agent. Closing it ends their waits with :class:`ClosedError`; Ctrl-C ends a wait
like any other. ::

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
from operator import attrgetter
from pathlib import Path
from typing import Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar, cast

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
from relay.protocol.did import SigningKey
from relay.protocol.envelope import SignedEnvelope
from relay.protocol.receipts import BounceItem

P = ParamSpec("P")
T = TypeVar("T")
Blocking = Callable[Concatenate["Agent", P], T]

_log: Final = logging.getLogger("relay.client")


def _blocking(
    method: Callable[Concatenate[asynchronous.Agent, P], Coroutine[Any, Any, T]],
) -> Blocking[P, T]:
    """Return the same method, which blocks: with one signature the two cannot differ."""

    @wraps(method)
    def call(self: Agent, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._thread.call(lambda: method(self._agent, *args, **kwargs))

    return call


def _at_once(call: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Return the same function for a program without an event loop.

    It raises RuntimeError inside a running event loop.
    """

    @wraps(call)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return asyncio.run(call(*args, **kwargs))

    return run


class _Delegated(property, Generic[T]):
    """A property of the asynchronous agent, with its type and its docstring."""

    def __init__(self, read: Callable[[asynchronous.Agent], T]) -> None:
        there = cast("property", read)
        get = attrgetter("_agent")
        super().__init__(lambda agent: there.__get__(get(agent)), doc=there.__doc__)

    def __get__(  # type: ignore[override]  # narrower than the Any of property
        self, agent: Any, owner: type | None = None, /
    ) -> T:
        return cast("T", super().__get__(agent, owner))


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Message(MessageValues):
    """A :class:`relay.client.Message` whose ack and refusal block.

    Args:
        twin: the same message in the agent's own thread.
        thread: that thread.
    """

    twin: messages.Message
    thread: LoopThread

    __reduce__ = messages.Message.__reduce__

    def ack(self, *, wait: bool = True) -> None:
        """Ack it, as :meth:`relay.client.Message.ack`."""
        self.thread.call(partial(self.twin.ack, wait=wait))

    def refuse(self, code: str = "unsupported", *, wait: bool = True) -> None:
        """Refuse it, as :meth:`relay.client.Message.refuse`."""
        self.thread.call(partial(self.twin.refuse, code, wait=wait))

    def __enter__(self) -> Self:
        """Process it in a ``with`` block, as ``async with`` there."""
        return self

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        self.thread.call(partial(self.twin.__aexit__, kind, exc, trace))


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Bounce(Message):
    """A :class:`relay.client.Bounce`."""

    items: tuple[BounceItem, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome(OutcomeValues):
    """A :class:`relay.client.Outcome` whose ``done`` blocks.

    Args:
        twin: the same outcome in the agent's own thread.
        thread: that thread.
    """

    twin: endings.Outcome = field(repr=False)
    thread: LoopThread = field(repr=False)

    __reduce__ = endings.Outcome.__reduce__

    def done(self) -> None:
        """Record it as processed, as :meth:`relay.client.Outcome.done`."""
        self.thread.call(self.twin.done)


Handler = Callable[[Message], None]
BounceHandler = Callable[[Bounce], None]


accept_relay = _at_once(accept.accept_relay)


class Agent:
    """An agent, logged in at its relays; made by :meth:`open`.

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
        """Log in, as :meth:`relay.client.Agent.open`, with a thread for its event loop.

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

    did = _Delegated(asynchronous.Agent.did)
    relay = _Delegated(asynchronous.Agent.relay)
    welcome = _Delegated(asynchronous.Agent.welcome)
    is_connected = _Delegated(asynchronous.Agent.is_connected)
    warnings = _Delegated(asynchronous.Agent.warnings)
    refused = _Delegated(asynchronous.Agent.refused)
    unanswered = _Delegated(asynchronous.Agent.unanswered)

    @wraps(asynchronous.Agent.sign)
    def sign(self, *args: Any, **kwargs: Any) -> SignedEnvelope:
        """Sign an envelope, as :meth:`relay.client.Agent.sign`; does not block."""
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
        """Iterate outcomes, as :meth:`relay.client.Agent.outcomes`.

        Args:
            timeout: seconds without an outcome after which the iteration ends; None: never.

        Raises:
            ClosedError: the agent was closed.
            ValueError, AgentError: as there.
        """
        source = _Source(self._agent.outcomes(), self._thread)
        return iter(partial(self._next_outcome, source, timeout), None)

    def _next_outcome(
        self, source: _Source[endings.Outcome], timeout: float | None
    ) -> Outcome | None:
        found = source.next(timeout)
        if found is None:
            return None
        values = {item.name: getattr(found, item.name) for item in fields(OutcomeValues)}
        return Outcome(**values, twin=found, thread=self._thread)

    # ------------------------------------------------------------ receive

    def inbox(self, timeout: float | None = None) -> Iterator[Message]:
        """Iterate delivered messages, in order; iterators in several threads share one inbox.

        Args:
            timeout: seconds without a message after which the iteration ends; None: never.

        Raises:
            ClosedError: the agent was closed.
            AgentError: as :meth:`relay.client.Agent.inbox`.
        """
        # no generator: that would hold a message that the program has dropped
        return iter(partial(self.next_message, timeout), None)

    def serve(
        self, handler: Handler, on_bounce: BounceHandler | None = None, *, at_once: int = 1
    ) -> None:
        """Call handlers, as :meth:`relay.client.Agent.serve`; with ``at_once=1`` in this thread.

        Args:
            handler: processes one message, durably; never a bounce.
            on_bounce: processes one bounce, as there.
            at_once: number of threads that call them; 1 keeps the order.

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
        """Return the next message; None: there was none in time.

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
    """Takes items of an iterator in the agent's thread, and loses none."""

    def __init__(self, source: AsyncIterator[T], thread: LoopThread) -> None:
        self._source = source
        self._thread = thread
        # not in the result of a call: Ctrl-C in just that moment would lose it
        self._taken: deque[T] = deque()

    def next(self, timeout: float | None) -> T | None:
        """Return the next item; None: there was none in time."""
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


STOP_CHECK_S: Final = 0.5
"""Pause between checks if the server is over."""


def _serve_in_turn(agent: Agent, handler: Handler, over: threading.Event) -> None:
    while not over.is_set():
        try:
            message = agent.next_message(STOP_CHECK_S)
        except ClosedError:
            return
        if message is not None:
            _handle(message, handler)


def _handle(message: Message, handler: Handler) -> None:
    try:
        with message:
            handler(message)
    except AgentError as exc:
        # of the ack: the iterator raises the end of the agent; after anything else it comes again
        _log.warning("%s: %s", message.eid, exc)
    except Exception:  # noqa: BLE001
        # the handler may raise anything; one message must not end the others
        _log.exception("the handler failed on %s of %s", message.eid, message.sender)
