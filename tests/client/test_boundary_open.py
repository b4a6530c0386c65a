"""Whatever a relay does in the midst of a conversation, the SDK raises what it documents.

Every public method is listed here, by introspection: one that is new fails until it has a case.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from relay.client import Agent, Bounce, Message, Outcome, sync
from relay.client.http import transport
from relay.client.message import MessageValues
from relay.protocol import frames as frames_
from relay.protocol.did import SigningKey
from relay.protocol.errors import ErrorCode
from relay.protocol.frames import (
    Ack,
    Acked,
    Bye,
    Error,
    Frame,
    Gap,
    Publish,
    Published,
    Resolve,
    Resolved,
    Ruled,
    Rules,
    Statuses,
    Submit,
    Submitted,
)
from relay.protocol.ids import Epoch, Seq
from tests.client.documented_errors import complaints_of_agent, methods, wrong
from tests.client.scripted_relay import LyingRelay, Talk, deliver, envelope_of, lying_relay, new_key
from tests.support.ports import free_port

pytestmark = pytest.mark.timeout(40)

SHORT_S = 0.3
MESSAGES = 4
ID = "01a2075f-685f-7a93-b7ef-4e61fc67d08d"
Lie = Callable[[Talk, Frame], Awaitable[None]]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "session.channel.REQUEST_TIMEOUT_S",
        "session.router.REQUEST_TIMEOUT_S",
        "http.transport.REQUEST_TIMEOUT_S",
    ):
        monkeypatch.setattr(f"relay.client.{name}", SHORT_S)
    for name in (
        "session.connection.LOGIN_S",
        "session.connection.CLOSE_S",
        "outbox.direct.RESOLVE_S",
        "agent.FLUSH_TIMEOUT_S",
    ):
        monkeypatch.setattr(f"relay.client.{name}", SHORT_S)
    monkeypatch.setattr(transport, "MIN_TIMEOUT_S", SHORT_S)


# ---------------------------------------------------------------- what a relay may do


def says(*frames: Callable[[str], Frame]) -> Lie:
    """Answer whatever is said with these frames, which get its ref."""

    async def lie(talk: Talk, frame: Frame) -> None:
        for make in frames:
            await talk.say(make(getattr(frame, "ref", "none")))

    return lie


def writes(data: bytes | str) -> Lie:
    async def lie(talk: Talk, _: Frame) -> None:
        await talk.socket.send(data)

    return lie


def closes(code: int) -> Lie:
    async def lie(talk: Talk, _: Frame) -> None:
        await talk.socket.close(code, "as it likes")

    return lie


async def answers_otherwise(talk: Talk, frame: Frame) -> None:
    ref = getattr(frame, "ref", "none")
    is_rules = isinstance(frame, Rules)
    await talk.say(Statuses(ref, ()) if is_rules else Ruled(ref, "accept", (), (), 0))


async def is_silent(_: Talk, __: Frame) -> None:
    return


async def resets(talk: Talk, _: Frame) -> None:
    talk.socket.transport.abort()


async def half_closes(talk: Talk, _: Frame) -> None:
    talk.socket.transport.write_eof()


async def writes_below(talk: Talk, _: Frame) -> None:
    talk.socket.transport.write(b"\xff" * 99)


LIES: dict[str, Lie] = {
    "is silent": is_silent,
    "answers another question": answers_otherwise,
    "answers what nobody asked": says(lambda _: Resolved("nobody", "absent")),
    "answers nothing in it": says(lambda ref: Statuses(ref, ())),
    "answers twice": says(*[lambda ref: Published(ref, stored=True, kv=1, seq=1)] * 2),
    "shows a record that is none": says(lambda ref: Resolved(ref, "found", "a.b.c")),
    "gives a receipt that is none": says(lambda ref: Submitted((ref,), "a.b.c")),
    "gives no receipt": says(lambda ref: Submitted((ref,), None)),
    "acks what it likes": says(lambda _: Acked(Epoch("e1"), Seq(999_999))),
    "acks in another epoch": says(lambda _: Acked(Epoch("e9"), Seq(1))),
    "has a gap in another epoch": says(lambda _: Gap(Epoch("e9"), ())),
    "delivers an envelope that is none": says(lambda _: deliver((9, b'{"v":1}'))),
    "says no": says(lambda ref: Error(ErrorCode.BLOCKED, "no", ref=ref)),
    "has a bug": says(lambda ref: Error(ErrorCode.INTERNAL, "", ref=ref)),
    "is told to wait": says(lambda ref: Error(ErrorCode.RATE_LIMITED, "", 3600, ref=ref)),
    "has an error of nothing": says(lambda _: Error(ErrorCode.STORAGE_UNAVAILABLE)),
    "says goodbye": says(lambda _: Bye(ErrorCode.DRAINING)),
    "says that it is over": says(lambda _: Bye(ErrorCode.SUPERSEDED)),
    "says that it moved": says(lambda _: Bye(ErrorCode.MOVED, record="a.b.c")),
    "has a frame of nobody": writes('{"t":"new","a":[]}'),
    "speaks no JSON": writes("}{"),
    "speaks binary": writes(b"\x00\xff" * 9),
    "speaks without an end": writes("[" * 3_000_000),
    "resets": resets,
    "half-closes": half_closes,
    "breaks the framing": writes_below,
    **{f"closes with {code}": closes(code) for code in (1000, 1009, 1011, 4000, 4001, 4005, 4999)},
}


ON_QUESTIONS = {
    f"{what}, to a question": LIES[what]
    for what in (
        "answers another question", "answers nothing in it", "answers twice", "says no",
        "shows a record that is none", "has a bug", "is told to wait",
    )
}  # fmt: skip
"""The same, but honest about the agent's own record: what the program asks is reached."""


@dataclass
class Trial:
    """A relay that is honest until :attr:`turned`; the agent ``me`` and what is in its inbox."""

    relay: LyingRelay
    me: SigningKey
    turned: asyncio.Event = field(default_factory=asyncio.Event)


@contextlib.asynccontextmanager
async def trial(lie: Lie, *, spares: bool = False) -> AsyncIterator[Trial]:
    me, turned = new_key(), asyncio.Event()
    waiting = [(seq + 1, envelope_of(new_key(), me.did).wire) for seq in range(MESSAGES)]

    async def script(talk: Talk) -> None:
        await talk.log_in()
        await talk.say(deliver(*waiting))
        with contextlib.suppress(ConnectionClosed):
            while True:
                frame = frames_.parse(await talk.socket.recv(decode=False), "agent")
                is_honest = spares or not turned.is_set()
                if isinstance(frame, Resolve) and is_honest and frame.did == me.did:
                    await talk.say(Resolved(frame.ref, "absent"))
                elif isinstance(frame, Publish) and is_honest:
                    await talk.say(Published(frame.ref, stored=True, kv=1, seq=1))
                elif turned.is_set() and not (spares and isinstance(frame, Submit | Ack)):
                    await lie(talk, frame)
                    talk.relay.heard.append(frame)

    async with lying_relay(script) as relay:
        yield Trial(relay, me, turned)


# ---------------------------------------------------------------- what a program may call


async def nothing(_: object) -> None:
    return


async def sign(me: Agent) -> object:
    return me.sign(me.did, "x")


async def in_block(message: Message) -> None:
    async with message:
        return


async def fails_in_block(message: Message) -> None:
    with contextlib.suppress(ZeroDivisionError):
        async with message:
            raise ZeroDivisionError


def gone() -> str:
    """An origin at which nobody is."""
    return f"http://127.0.0.1:{free_port()}"


CALLS: dict[str, Callable[[Any], Any]] = {
    "sign": lambda me: me.sign(me.did, "x"),
    "send": lambda me: me.send(new_key().did, "x", deadline_s=SHORT_S),
    "send to a handle": lambda me: me.send(f"name@{gone()[7:]}", "x", deadline_s=SHORT_S),
    "send and wait": lambda me: me.send(me.did, "x", wait="acked", deadline_s=SHORT_S),
    "submit": lambda me: me.submit(me.sign(me.did, "x"), deadline_s=SHORT_S),
    "status": lambda me: me.status(new_key().did, ID),
    "resolve": lambda me: me.resolve(new_key().did),
    "resolve a handle": lambda me: me.resolve(f"name@{gone()[7:]}"),
    "publish": lambda me: me.publish(handles=["name@relay.test"]),
    "rules": lambda me: me.rules(first_contact="refuse", allow=[new_key().did]),
    "migrate": lambda me: me.migrate(gone(), deadline_s=SHORT_S),
    "cancel_migration": lambda me: me.cancel_migration(deadline_s=SHORT_S),
}
"""Of an agent of either kind; they end by themselves."""
ENDLESS: dict[str, Callable[[Agent], Awaitable[Any]]] = {
    "inbox": lambda me: anext(me.inbox()),
    "serve": lambda me: me.serve(nothing, at_once=2),
    "outcomes": lambda me: anext(me.outcomes()),
}
SYNC_ENDLESS: dict[str, Callable[[sync.Agent], Any]] = {
    "inbox": lambda me: next(me.inbox(SHORT_S), None),
    "next_message": lambda me: me.next_message(SHORT_S),
    "outcomes": lambda me: next(me.outcomes(SHORT_S), None),
}
ON_MESSAGE: dict[str, Callable[[Message], Awaitable[Any]]] = {
    "ack": lambda message: message.ack(),
    "refuse": lambda message: message.refuse(),
    "__aexit__": in_block,
    "__aenter__": fails_in_block,
}
SYNC_ON_MESSAGE: dict[str, Callable[[sync.Message], Any]] = {
    "ack": lambda message: message.ack(wait=False),
    "refuse": lambda message: message.refuse(wait=False),
}
VALUES = {"text", "json", "of"}
"""What a message says, without a word to anybody."""


def named(*tables: Any) -> set[str]:
    return {name.partition(" ")[0] for table in tables for name in table}


def test_every_public_method_has_a_case():
    assert named(CALLS, ENDLESS) | {"open"} == methods(Agent)
    assert named(CALLS, SYNC_ENDLESS) | {"open", "serve"} == methods(sync.Agent)
    assert named(ON_MESSAGE) | VALUES == methods(Message) | methods(Bounce)
    both = {"__enter__", "__exit__"}
    assert named(SYNC_ON_MESSAGE) | VALUES - {"of"} | both == methods(sync.Message)
    assert methods(Outcome) == methods(sync.Outcome) == {"done"}
    assert methods(MessageValues) == VALUES - {"of"}


def look(me: Agent | sync.Agent) -> None:
    """Read every value that an agent has."""
    for name, value in vars(type(me)).items():
        if isinstance(value, property):
            getattr(me, name)


@pytest.mark.parametrize("what", LIES | ON_QUESTIONS)
async def test_what_a_relay_does_is_a_documented_error(tmp_path: Path, what: str):
    lie, spares = (LIES | ON_QUESTIONS)[what], what in ON_QUESTIONS
    async with trial(lie, spares=spares) as here:
        state, url = tmp_path / "state", here.relay.url
        async with Agent.open(here.me, url, state=state, open_timeout_s=5) as me:
            inbox = me.inbox()
            messages = [await anext(inbox) for _ in range(MESSAGES)]
            here.turned.set()
            calls = {name: awaited(call, me) for name, call in CALLS.items()}
            endless = {name: call(me) for name, call in ENDLESS.items()}
            for message, (name, answer) in zip(messages, ON_MESSAGE.items(), strict=True):
                # an ack waits until a relay has it, over as many connections as that takes
                endless[name] = answer(message)
            assert await complaints_of_agent(calls, endless) == {}
            look(me)
        assert here.relay.heard, "nothing was said to the relay after it had turned"


async def awaited(call: Callable[[Agent], Any], me: Agent) -> object:
    made = call(me)
    return await made if isinstance(made, Awaitable) else made


SYNC_LIES = (
    "is silent",
    "answers another question",
    "speaks no JSON",
    "resets",
    "closes with 4001",
)


@pytest.mark.parametrize("what", SYNC_LIES)
async def test_what_a_relay_does_is_a_documented_error_without_an_event_loop(tmp_path, what):
    loop = asyncio.get_running_loop()

    def program() -> dict[str, str]:
        with (
            ThreadPoolExecutor(20) as threads,
            sync.Agent.open(here.me, here.relay.url, state=tmp_path / "state") as me,
        ):
            messages = [me.next_message(5) for _ in range(MESSAGES)]
            loop.call_soon_threadsafe(here.turned.set)
            works = {name: partial(call, me) for name, call in (CALLS | SYNC_ENDLESS).items()}
            for message, (name, answer) in zip(messages[2:], SYNC_ON_MESSAGE.items(), strict=True):
                works[name] = partial(answer, message)
            made = {name: threads.submit(work) for name, work in works.items()}
            serving = threads.submit(me.serve, lambda _: None)
            found = {name: wrong(one.exception(20)) for name, one in made.items()}
            look(me)
        found["serve"] = wrong(serving.exception(20))
        return {name: said for name, said in found.items() if said is not None}

    async with trial(LIES[what]) as here:
        assert await asyncio.to_thread(program) == {}
