"""The twin for programs without an event loop: same names, same errors, and no wait without end."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from relay.client import (
    Agent,
    ClosedError,
    Outcome,
    OutcomeUnknownError,
    SupersededError,
    UnknownInboxError,
    UnreachableError,
    sync,
)
from relay.client.message import Message
from relay.client.state.journal import Journal
from tests.client.scripted_relay import Talk, lying_relay, new_key
from tests.support.nodes import running_node

pytestmark = pytest.mark.timeout(30)


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def arguments(method: Callable[..., Any], *but: str) -> list[str]:
    """Names, kinds and defaults; the types of what is awaited there are other ones here."""
    found = inspect.signature(method).parameters.values()
    return [
        str(one.replace(annotation=inspect.Parameter.empty)) for one in found if one.name not in but
    ]


def test_the_twin_has_the_same_methods_with_the_same_arguments():
    assert public(sync.Agent) - public(Agent) == {"next_message"}
    assert public(Agent) <= public(sync.Agent)
    for name in public(Agent):
        there, here = getattr(Agent, name), getattr(sync.Agent, name)
        if isinstance(there, property):
            assert isinstance(here, property), name
        else:
            assert arguments(here, "timeout") == arguments(there), name
            assert not inspect.iscoroutinefunction(here), name


def test_the_twin_of_a_message_has_the_same_members_and_blocks():
    assert public(sync.Message) - {"twin", "thread"} == public(Message) - {"acknowledger"}
    for name in ("ack", "refuse"):
        assert arguments(getattr(sync.Message, name)) == arguments(getattr(Message, name))
    assert hasattr(sync.Message, "__enter__")


async def in_thread(work: Callable[..., Any], *values: Any) -> Any:
    return await asyncio.to_thread(work, *values)


async def test_what_is_sent_arrives_and_is_acked_without_a_loop_of_the_program():
    def program(url: str) -> None:
        with sync.Agent.open(new_key(), url) as bob, sync.Agent.open(new_key(), [url]) as alice:
            sent = alice.send(bob.did, {"n": 1})
            [message] = bob.inbox(timeout=0.5)
            assert (message.sender, message.json(), message.eid) == (alice.did, {"n": 1}, sent.eid)
            message.ack()
            assert alice.status(bob.did, sent.id) == "acked"
            refused = alice.send(bob.did, "no")
            next(bob.inbox()).refuse("unsupported")
            assert alice.status(bob.did, refused.id) == "refused"
            assert alice.resolve(bob.did).state == "found"
            with pytest.raises(UnknownInboxError) as caught:
                alice.send(new_key().did, "x")
            assert caught.value.stored == "no"
            with pytest.raises(ZeroDivisionError), sync.Agent.open(new_key(), url):
                raise ZeroDivisionError

    async with running_node() as node:
        await in_thread(program, node.url)


async def test_it_serves_from_several_threads_and_returns_when_it_is_closed():
    def program(url: str, at_once: int) -> set[int]:
        seen: set[int] = set()
        enough = threading.Event()

        def handler(message: sync.Message) -> None:
            seen.add(message.json())
            if len(seen) == 12:
                enough.set()

        with sync.Agent.open(new_key(), url) as me, ThreadPoolExecutor(5) as threads:
            list(threads.map(lambda n: me.send(me.did, n), range(12)))
            serving = threads.submit(me.serve, handler, at_once=at_once)
            assert enough.wait(10)
            me._thread.close()
            serving.result(10)
        return seen

    async with running_node() as node:
        for at_once in (1, 3):
            assert await in_thread(program, node.url, at_once) == set(range(12))


async def test_its_bounces_go_to_their_own_handler_and_come_again_where_that_fails():
    def program(url: str, bounce: Callable[[], None]) -> None:
        seen: list[object] = []
        enough = threading.Event()

        def on_bounce(message: sync.Bounce) -> None:
            seen.append(message.items[0].reason)
            if len(seen) == 1:
                raise ZeroDivisionError
            enough.set()

        def handler(message: sync.Message) -> None:
            seen.append(message)

        with sync.Agent.open(new_key(), url) as me, ThreadPoolExecutor(1) as threads:
            sent = me.send(me.did, "no")
            next(me.inbox()).refuse("unsupported")
            assert me.status(me.did, sent.id) == "refused"
            bounce()
            serving = threads.submit(me.serve, handler, on_bounce)
            assert enough.wait(10)
            me._thread.close()
            serving.result(10)
        assert seen == ["unsupported"] * 2

    async with running_node() as node:
        loop = asyncio.get_running_loop()
        made = node.parts.housekeeping.bounces
        await in_thread(
            program, node.url, lambda: asyncio.run_coroutine_threadsafe(made(), loop).result(10)
        )


async def test_closing_ends_what_other_threads_wait_for_with_a_named_error():
    async def script(talk: Talk) -> None:
        await talk.log_in()
        await talk.submit()
        waiting.set()
        await talk.until_closed()

    def program(url: str) -> None:
        with ThreadPoolExecutor(2) as threads:
            with sync.Agent.open(new_key(), url) as me:
                taking = threads.submit(next, me.inbox())
                sending = threads.submit(me.send, me.did, "x")
                assert waiting.wait(10)
            for wait in (taking, sending):
                with pytest.raises(ClosedError):
                    wait.result(10)
        with pytest.raises(ClosedError):
            me.send(me.did, "x")

    waiting = threading.Event()
    async with lying_relay(script) as relay:
        await in_thread(program, relay.url)


async def test_inside_a_running_loop_it_says_what_to_use_instead():
    with pytest.raises(RuntimeError, match=r"use relay\.client\.Agent"):
        sync.Agent.open(new_key(), "http://127.0.0.1:1").__enter__()


def test_a_failed_opening_keeps_its_type_and_leaves_no_thread():
    before = threading.active_count()
    with (
        pytest.raises(UnreachableError),
        sync.Agent.open(new_key(), "http://127.0.0.1:1", open_timeout_s=0.3),
    ):
        pass
    assert threading.active_count() == before


async def test_a_superseded_twin_stops_and_raises():
    def program(url: str) -> None:
        key = new_key()
        with (
            sync.Agent.open(key, url) as old,
            sync.Agent.open(key, url),
            pytest.raises(SupersededError),
        ):
            next(old.inbox())

    async with running_node() as node:
        await in_thread(program, node.url)


@contextlib.contextmanager
def relay_in_a_thread(made: Callable[[], contextlib.AbstractAsyncContextManager[Any]]):
    """A relay beside the main thread, in which alone Ctrl-C is heard."""
    there: list[Any] = []
    ready, over = threading.Event(), threading.Event()

    async def live() -> None:
        async with made() as relay:
            there.append(relay)
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=asyncio.run, args=(live(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield there[0]
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def ctrl_c_as_soon_as(condition: Callable[[], bool]):
    """The main thread is interrupted when ``condition`` holds, and not before."""
    over = threading.Event()

    def watch() -> None:
        while not condition():
            if over.wait(0.005):
                return
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        over.set()
        watching.join()


def test_ctrl_c_ends_a_wait_and_the_agent_can_still_be_closed():
    with relay_in_a_thread(running_node) as node, sync.Agent.open(new_key(), node.url) as me:
        with ctrl_c_as_soon_as(lambda: any(list(me._thread._waits.values()))):
            next(me.inbox())
        me.send(me.did, "after it")
        assert next(me.inbox()).text() == "after it"


def test_ctrl_c_while_it_opens_leaves_no_thread():
    async def silent(talk: Talk) -> None:
        await talk.socket.wait_closed()

    with relay_in_a_thread(partial(lying_relay, silent)) as relay:
        with ctrl_c_as_soon_as(lambda: relay.talks > 0):
            sync.Agent.open(new_key(), relay.url).__enter__()
        assert "relay agent" not in {thread.name for thread in threading.enumerate()}


async def test_with_a_state_file_the_twin_remembers_and_tells_late_outcomes(tmp_path):
    key, path = new_key(), tmp_path / "state"

    async def script(talk: Talk) -> None:
        await talk.log_in()
        if talk.number > 1:
            await talk.accept()
        await talk.until_closed()

    def gives_up(url: str) -> str:
        with sync.Agent.open(key, url, state=path) as me:
            with pytest.raises(OutcomeUnknownError) as caught:
                me.send(new_key().did, "slow", deadline_s=0.3)
            return caught.value.envelope.eid

    def is_told(url: str) -> list[str]:
        with sync.Agent.open(key, url, state=path) as me:
            seen = [next(me.outcomes()) for _ in range(2)]
            assert [outcome.stored for outcome in seen] == ["yes", "yes"]
            seen[0].done()
            assert list(me.outcomes(timeout=0.1)) == []
            waiting = me.outcomes()
        with pytest.raises(ClosedError):
            next(waiting)
        return [outcome.eid for outcome in seen]

    def acks(url: str) -> None:
        with sync.Agent.open(key, url, state=path) as me:
            me.send(me.did, "once")
            message = next(me.inbox())
            message.ack()
            assert list(me.inbox(timeout=0.1)) == []

    async with lying_relay(script) as relay:
        eid = await in_thread(gives_up, relay.url)
        assert await in_thread(is_told, relay.url) == [eid, eid]
    async with running_node() as node:
        await in_thread(acks, node.url)
    known = Journal.open(path, key.did)
    assert known._database.run(
        lambda file: file.execute("SELECT is_done FROM eids").fetchall()
    ).result()
    known.close()


def test_the_twin_of_an_outcome_has_the_same_members_and_blocks():
    assert public(sync.Outcome) - {"twin", "thread"} == public(Outcome) - {"place", "outcomes"}
    assert arguments(sync.Outcome.done) == arguments(Outcome.done)
    assert not inspect.iscoroutinefunction(sync.Outcome.done)
