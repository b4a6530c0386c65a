"""An agent lives in one process and in real threads: elsewhere it says so, at once."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import sys
from types import SimpleNamespace

import pytest

from relay.client import Agent, sync
from relay.client.errors import CLASS_OF, make_error
from relay.client.message import Message
from tests.client.scripted_relay import new_key
from tests.support.nodes import running_node
from tests.support.patience import within

pytestmark = pytest.mark.timeout(40)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_in_a_forked_child_each_call_is_refused_and_the_parent_goes_on(kind: str):
    async with running_node() as node:
        # -W: of Python 3.12 on, which warns of a fork beside threads
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "ignore", "-m", "tests.client.forking_program", kind, node.url,
            os.urandom(32).hex(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with within(30):
            out, err = await program.communicate()
    child, parent = out.decode().splitlines()
    assert parent == "parent: after", err.decode()
    calls = ["refused"] * (6 if kind == "sync" else 7)
    # to close it there touches nothing
    assert child == " ".join(["child:", *calls, *(["None"] if kind == "sync" else [])])


async def test_what_cannot_leave_its_process_says_what_to_hand_on_instead(tmp_path):
    async with (
        running_node() as node,
        Agent.open(new_key(), node.url, state=tmp_path / "state") as me,
    ):
        envelope = me.sign(me.did, "x")
        sent = await me.submit(envelope)
        message = await anext(me.inbox())
        for kept in (envelope, sent):
            assert pickle.loads(pickle.dumps(kept)) == kept  # noqa: S301
        for leave in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="hand on its body"):
                leave(message)
            with pytest.raises(TypeError, match="open one in the other process"):
                leave(me)
        await message.ack()


def test_so_it_is_without_a_loop():
    assert sync.Message.__reduce__ is Message.__reduce__
    assert sync.Agent.__reduce__ is Agent.__reduce__
    assert sync.Outcome.__reduce__ is not object.__reduce__


def test_errors_cross_processes_as_they_are():
    for code in CLASS_OF:
        exc = make_error(code, "because", retry_after=3, stored="no")
        back = pickle.loads(pickle.dumps(exc))  # noqa: S301
        assert (type(back), str(back), back.stored) == (type(exc), str(exc), "no")


@pytest.mark.parametrize(
    ("library", "module", "asked"),
    [
        ("gevent", "gevent.monkey", "is_module_patched"),
        ("eventlet", "eventlet.patcher", "is_monkey_patched"),
    ],
)
def test_where_threads_are_no_real_ones_it_says_so_at_once(monkeypatch, library, module, asked):
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{asked: lambda _: True}))
    with pytest.raises(RuntimeError, match=f"{library} has replaced"):
        sync.Agent.open(new_key(), "http://127.0.0.1:1").__enter__()
