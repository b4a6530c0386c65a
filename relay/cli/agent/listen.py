"""``relay listen`` and ``relay inbox``."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from queue import SimpleQueue
from typing import Any, Final

from relay.cli import output
from relay.cli.agent import locks
from relay.cli.agent.key import KeyFile
from relay.cli.agent.locks import Lock
from relay.cli.agent.outcome_text import tell_earlier
from relay.cli.output import clock_time, members_of, notify, printable, say
from relay.client import Agent, AgentError, Bounce, InboxResetError, Message
from relay.client._util import beside
from relay.client.errors import make_error
from relay.protocol import frames
from relay.protocol import jws as jose
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import Did

OPEN_S: Final = 5.0
PATIENCE_S: Final = 2.0
LOOK_S: Final = 5.0
PREVIEW: Final = 60
RECORDED_ONLY: Final = frozenset(
    {ErrorCode.INBOX_RESET, ErrorCode.MOVED, ErrorCode.PEER_UNREACHABLE}
)
"""No relay has received that ack. The state file has it; the SDK repeats it at redelivery."""
MOVING: Final = (
    "this agent changes relays just now; relay status says where to, relay migrate --to goes on "
    "with it, relay migrate --cancel takes it back"
)
"""Of an agent that could be opened without a login."""


class Writer:
    """Run functions that write, in order, in a thread: a slow reader must not cost the session.

    The thread is a daemon: a full pipe cannot keep an interrupted command from ending.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], None], Future[None]]] = SimpleQueue()
        threading.Thread(target=self._run, name="writer", daemon=True).start()

    async def run(self, write: Callable[[], None]) -> None:
        """Run ``write`` after all earlier ones; raise what it raises.

        A cancelled call that has not begun is not run. One that has begun goes on.
        """
        done: Future[None] = Future()
        self._jobs.put((write, done))
        await asyncio.wrap_future(done)

    def _run(self) -> None:
        while True:
            write, done = self._jobs.get()
            if not done.set_running_or_notify_cancel():
                continue
            try:
                write()
            except Exception as exc:  # noqa: BLE001  the caller of run gets it
                done.set_exception(exc)
            else:
                done.set_result(None)


@asynccontextmanager
async def _agent(file: KeyFile, url: str, *, listens: bool = False) -> AsyncIterator[Agent]:
    """Open the agent; it submits what an earlier command left in its outbox."""
    key = file.load()
    with locks.opened(file.state) as mine:
        if not await locks.wait_for(lambda: mine.exclusive(Lock.SENDING), PATIENCE_S):
            mine.shared(Lock.RESENDING)
        async with Agent.open(key, url, state=file.state, open_timeout_s=OPEN_S) as me:
            mine.release(Lock.SENDING)
            if listens:
                await locks.wait_for(lambda: mine.shared(Lock.LISTENING), PATIENCE_S)
            yield me


async def _tell_outcomes(me: Agent, writer: Writer, *, as_json: bool) -> None:
    """Report the outcomes of envelopes that earlier commands left unanswered."""
    try:
        async for item in me.outcomes():
            answer = (item.stored, item.code)
            await writer.run(partial(tell_earlier, item, answer, as_json=as_json))
            await item.done()
    except AgentError:
        # the inbox raises the same error; unreported outcomes are shown at the next run
        return


async def listen(file: KeyFile, url: str, *, count: int | None, as_json: bool) -> None:
    """Print each delivered envelope, then ack it."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="relay: %(message)s")
    logging.getLogger("websockets").setLevel(logging.WARNING)
    output.begin_line()
    writer = Writer()
    async with (
        _agent(file, url, listens=True) as me,
        beside(_tell_outcomes(me, writer, as_json=as_json)),
    ):
        say(f"Listening as {me.did} at {url}. Ctrl-C ends it.")
        if me.welcome is None:
            say(f"Nothing comes yet: {MOVING}.")
        left = count
        while left is None or left > 0:
            try:
                message = await anext(me.inbox())
            except InboxResetError as exc:
                output.fail(exc, as_json=as_json)
                continue
            await writer.run(partial(_print, message, as_json=as_json))
            await _ack(message, as_json=as_json)
            left = None if left is None else left - 1


async def _ack(message: Message, *, as_json: bool) -> None:
    try:
        await message.ack()
    except AgentError as exc:
        if exc.code not in RECORDED_ONLY:
            raise
        # a closed agent raises at the next message
        output.fail(exc, as_json=as_json)


def _print(message: Message, *, as_json: bool) -> None:
    """Write the whole message; if stdout is a file, sync it to the disk."""
    if as_json:
        output.write_json(message_members(message))
    elif isinstance(message, Bounce):
        for item in message.items:
            maybe = ", though it may have been read" if item.maybe_delivered else ""
            notify(f"Bounce: {item.eid} to {item.to} ended: {printable(item.reason)}{maybe}.")
    else:
        again = ", perhaps not for the first time" if message.redelivered else ""
        open_ = "" if message.sealed else ", not sealed"
        notify(f"{clock_time(message.created_at)} from {message.sender}{open_}{again}:")
        output.write_body(message.body)
    output.sync()


async def look(file: KeyFile, url: str, *, limit: int, as_json: bool) -> None:
    """Show waiting messages and ack none."""
    async with _agent(file, url) as me:
        if me.welcome is None:
            raise make_error(ErrorCode.MIGRATING, MOVING)
        welcome, pending = me.welcome, me.welcome.pending
        messages, reset = await _take(me, min(pending.count, limit, welcome.window_count))
        if as_json:
            members = {
                "did": me.did,
                **members_of(welcome, "epoch cursor head"),
                "pending": pending.count,
                "pending_bytes": pending.bytes,
                "turned_away": pending.refused_count,
                "reset": reset is not None,
                "items": [message_members(message) for message in messages],
            }
            output.write_json(members)
            return
        if reset is not None:
            output.fail(reset, as_json=False)
        _tell_inbox(me.did, welcome, messages)
        if len(messages) < min(pending.count, limit):
            say(f"{len(messages)} are shown. Of what nobody acks this relay hands over at most")
            say(f"{welcome.window_count}, and no more than its window holds: relay listen acks.")


async def _take(me: Agent, count: int) -> tuple[list[Message], InboxResetError | None]:
    """Return the first messages, and the error if the inbox was reset."""
    messages: list[Message] = []
    reset: InboxResetError | None = None
    try:
        # also if nothing waits: the inbox may report its reset
        async with asyncio.timeout(LOOK_S if count else 0):
            while len(messages) < max(count, 1):
                try:
                    messages.append(await anext(me.inbox()))
                except InboxResetError as exc:
                    reset = exc
    except TimeoutError:
        # fewer than announced: the window is full, or some have expired
        return messages, reset
    return messages, reset


def _tell_inbox(did: Did, welcome: frames.Welcome, messages: list[Message]) -> None:
    pending = welcome.pending
    for message in messages:
        first = message.body.decode(errors="replace").partition("\n")[0]
        preview = printable("".join(islice(first, PREVIEW)))
        output.write(f"{clock_time(message.created_at)}  {message.sender}  {preview}")
    if pending.count == 0:
        say(f"Nothing waits for {did}: all up to seq {welcome.head} was acked or ended.")
    else:
        say(f"{pending.count} wait for {did} ({pending.bytes} bytes); nothing was acked.")
    if pending.refused_count:
        say(f"{pending.refused_count} were turned away because the inbox was full.")


def message_members(message: Message) -> dict[str, Any]:
    """Return a message as JSON members: ``text`` if the body is UTF-8, else ``base64url``."""
    members: dict[str, Any] = {
        "kind": "bounce" if isinstance(message, Bounce) else "message",
        **members_of(message, "id eid"),
        "from": message.sender,
        **members_of(message, "content_type type thid pthid created_at expires_at"),
        **members_of(message, "sealed redelivered"),
    }
    if isinstance(message, Bounce):
        names = "eid to reason maybe_delivered"
        members["items"] = [members_of(item, names) for item in message.items]
        return members
    try:
        members["text"] = message.text()
    except UnicodeDecodeError:
        members["base64url"] = jose.b64encode(message.body)
    return members
