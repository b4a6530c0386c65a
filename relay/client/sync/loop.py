"""A thread with the event loop of one agent, which runs calls of other threads.

Entry points: :meth:`LoopThread.open` and :meth:`LoopThread.call`. Invariants: a call ends with its
result, its own error, or :class:`ClosedError`; none waits for a loop that is gone. The thread is a
daemon: a program that forgets to close can end.

::

    open ──▶ running ──call, call──▶ close ──▶ the agent ends, then its calls, then the thread
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, TypeVar

from relay.client.agent import Agent
from relay.client.errors import closed
from relay.client.process import Owner, refuse_green_threads

T = TypeVar("T")
Opening = Callable[[], AbstractAsyncContextManager[Agent]]
Call = Callable[[], Coroutine[Any, Any, T]]

GRACE_S: Final = 2.0
"""For calls that are under way when the agent ends."""


class LoopThread:
    """One agent and the thread in which alone it lives; made by :meth:`open`."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._owner = Owner()
        self._agent: Future[Agent] = Future()
        self._failure: BaseException | None = None
        self._guard = threading.Lock()
        self._is_closing = False
        self._waits: dict[Future[Any], asyncio.Task[None] | None] = {}
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._opener: asyncio.Task[Any] | None = None
        self._thread = threading.Thread(target=self._run, name="relay agent", daemon=True)

    @classmethod
    def open(cls, opening: Opening) -> tuple[LoopThread, Agent]:
        """Start the thread and wait for the login of the agent.

        Raises:
            AgentError: as ``opening`` raises.
            RuntimeError: called inside a running event loop, or threads are no real ones.
        """
        refuse_in_a_loop()
        refuse_green_threads()
        made = cls(opening)
        try:
            made._thread.start()
            return made, made._agent.result()
        except BaseException:
            # of the opening, or Ctrl-C while it waits
            made.close()
            raise

    def call(self, make: Call[T]) -> T:
        """Run a coroutine in the agent's loop and return its result.

        Raises:
            ClosedError: the agent was closed before, or meanwhile.
            WrongStateError: called in a forked child.
            RuntimeError: called inside a running event loop.
        """
        # before any lock is taken: a thread that is not here may have held it
        self._owner.check()
        refuse_in_a_loop()
        future: Future[T] = Future()
        try:
            with self._guard:
                if self._is_closing:
                    raise closed()
                self._waits[future] = None
                self._loop.call_soon_threadsafe(self._begin, make, future)
            return future.result()
        finally:
            # Ctrl-C while it waited: no caller is left for the result
            with self._guard, contextlib.suppress(RuntimeError):
                if not future.done():
                    self._loop.call_soon_threadsafe(self._give_up, future)

    def close(self) -> None:
        """End the agent and wait for its thread; closing again, or in a child, changes nothing.

        Raises:
            BaseException: the failure that ended the agent.
        """
        if not self._owner.is_here:
            return
        refuse_in_a_loop()
        self._end()
        if self._thread.ident is not None:
            self._thread.join()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _end(self) -> None:
        with self._guard:
            if not self._is_closing:
                self._is_closing = True
                self._loop.call_soon_threadsafe(self._halt)

    # ------------------------------------------------------------ in the thread

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._live())
            except BaseException as exc:  # noqa: BLE001
                # raised by open or close, since the traceback of a thread is not read
                self._failed(exc)
        with self._guard:
            self._is_closing = True
            left = list(self._waits)
        for future in left:
            if not future.done():
                future.set_exception(closed())

    def _failed(self, exc: BaseException) -> None:
        if self._agent.done():
            self._failure = exc
        else:
            self._agent.set_exception(exc)

    def _halt(self) -> None:
        self._stop.set()
        if not self._agent.done() and self._opener is not None:
            # no caller waits for the login any more
            self._opener.cancel()

    async def _live(self) -> None:
        failure: BaseException | None = None
        self._opener = asyncio.current_task()
        async with asyncio.TaskGroup() as self._calls:
            try:
                await self._converse()
            except BaseException as exc:  # noqa: BLE001
                # raised again below: from here it would come out wrapped in an exception group
                failure = exc
            finally:
                await self._let_calls_end()
        if failure is not None:
            raise failure

    async def _converse(self) -> None:
        async with self._opening() as agent:
            self._agent.set_result(agent)
            await self._stop.wait()

    async def _let_calls_end(self) -> None:
        with self._guard:
            self._is_closing = True
        # calls that were queued before begin now, and raise ClosedError
        await asyncio.sleep(0)
        tasks = [task for task in self._waits.values() if task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=GRACE_S)
            for task in late:
                task.cancel()

    def _begin(self, make: Call[T], future: Future[T]) -> None:
        if future in self._waits:
            self._waits[future] = self._calls.create_task(self._carry(make, future))

    def _give_up(self, future: Future[Any]) -> None:
        task = self._waits.get(future)
        if task is not None:
            task.cancel()

    async def _carry(self, make: Call[T], future: Future[T]) -> None:
        try:
            future.set_result(await make())
        except asyncio.CancelledError:
            future.set_exception(closed())
        except Exception as exc:  # noqa: BLE001
            # raised in the thread of the caller
            future.set_exception(exc)
        finally:
            del self._waits[future]


def refuse_in_a_loop() -> None:
    """Refuse a blocking call inside a running event loop, which it would stop.

    Raises:
        RuntimeError: there is one in this thread.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    detail = "relay.client.sync blocks, and an event loop runs in this thread"
    raise RuntimeError(f"{detail}: use relay.client.Agent there")
