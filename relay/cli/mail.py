"""``relay listen`` and ``relay inbox``."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any, Final

from relay.cli import claims
from relay.cli.claims import Place
from relay.cli.identity import KeyFile
from relay.cli.output import (
    clock_time,
    printable,
    say,
    write,
    write_body,
    write_json,
)
from relay.cli.states import tell_earlier
from relay.client import Agent, AgentError, Bounce, InboxResetError, Message, SigningKey
from relay.client.errors import typed
from relay.core import jws as jose
from relay.core.errors import ErrorCode

OPEN_S: Final = 5.0
PATIENCE_S: Final = 2.0
LOOK_S: Final = 5.0
PREVIEW: Final = 60
NOTED: Final = frozenset({ErrorCode.INBOX_RESET, ErrorCode.MOVED, ErrorCode.PEER_UNREACHABLE})
"""No relay has heard of that ack; it is noted here, so it is said when the envelope comes again."""
MOVING: Final = (
    "this agent changes relays just now; relay status says where to, relay migrate --to goes on "
    "with it, relay migrate --cancel takes it back"
)
"""Of an agent that could be opened without a login."""


@asynccontextmanager
async def _agent(
    file: KeyFile, url: str, key: SigningKey, *, listens: bool = False
) -> AsyncIterator[Agent]:
    """This agent, online; what an earlier command left in its outbox is submitted."""
    with claims.opened(file.state) as mine:
        if not await claims.wait_for(lambda: mine.alone(Place.SENDING), PATIENCE_S):
            mine.share(Place.RESENDING)
        async with Agent.open(key, url, state=file.state, open_timeout_s=OPEN_S) as me:
            mine.let_go(Place.SENDING)
            if listens:
                await claims.wait_for(lambda: mine.share(Place.LISTENING), PATIENCE_S)
            yield me


@asynccontextmanager
async def _telling_outcomes(me: Agent, *, as_json: bool) -> AsyncIterator[None]:
    """Meanwhile, say what became of what earlier commands had left unanswered."""
    failure: BaseException | None = None
    async with asyncio.TaskGroup() as tasks:
        telling = tasks.create_task(_tell_outcomes(me, as_json=as_json))
        try:
            yield
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001
            # raised again below: from here it would come out wrapped in an exception group
            failure = exc
        finally:
            telling.cancel()
    if failure is not None:
        raise failure


async def _tell_outcomes(me: Agent, *, as_json: bool) -> None:
    try:
        async for item in me.outcomes():
            tell_earlier(item, (item.stored, item.code), as_json=as_json)
            await item.done()
    except (AgentError, OSError):
        # the inbox says the same of the agent, and of a stdout that is gone; it is shown again
        return


async def listen(file: KeyFile, url: str, *, count: int | None, as_json: bool) -> None:
    """Print what is delivered; each envelope is acked once it is written."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="relay: %(message)s")
    logging.getLogger("websockets").setLevel(logging.WARNING)
    async with (
        _agent(file, url, file.load(), listens=True) as me,
        _telling_outcomes(me, as_json=as_json),
    ):
        say(f"Listening as {me.did} at {url}. Ctrl-C ends it.")
        if me.welcome is None:
            say(f"Nothing comes yet: {MOVING}.")
        left = count
        while left is None or left > 0:
            try:
                message = await anext(me.inbox())
            except InboxResetError as exc:
                say(f"relay: {exc.code}: {exc.detail}")
                continue
            _print(message, as_json=as_json)
            await _ack(message)
            left = None if left is None else left - 1


async def _ack(message: Message) -> None:
    try:
        await message.ack()
    except AgentError as exc:
        if exc.code not in NOTED:
            raise
        # an agent that is over says so where the next one is awaited
        say(f"relay: {exc.code}: {exc.detail}")


def _print(message: Message, *, as_json: bool) -> None:
    if as_json:
        write_json(message_members(message))
    elif isinstance(message, Bounce):
        for item in message.items:
            maybe = ", though it may have been read" if item.maybe_delivered else ""
            say(f"Bounce: {item.eid} to {item.to} ended: {printable(item.reason)}{maybe}.")
    else:
        again = ", perhaps not for the first time" if message.redelivered else ""
        open_ = "" if message.sealed else ", not sealed"
        say(f"{clock_time(message.created_at)} from {message.sender}{open_}{again}:")
        write_body(message.body)


async def look(file: KeyFile, url: str, *, limit: int, as_json: bool) -> None:
    """Show what waits and ack nothing."""
    key = file.load()
    async with _agent(file, url, key) as me:
        welcome = me.welcome
        if welcome is None:
            raise typed(ErrorCode.MIGRATING, MOVING)
        pending = welcome.pending
        messages = await _take(me, min(pending.count, limit, welcome.window_count))
        if as_json:
            members = {
                "did": me.did,
                "epoch": welcome.epoch,
                "cursor": welcome.cursor,
                "head": welcome.head,
                "pending": pending.count,
                "pending_bytes": pending.bytes,
                "turned_away": pending.refused_count,
                "items": [message_members(message) for message in messages],
            }
            write_json(members)
            return
        _tell_inbox(me, key, messages)


async def _take(me: Agent, count: int) -> list[Message]:
    messages: list[Message] = []
    try:
        async with asyncio.timeout(LOOK_S):
            while len(messages) < count:
                messages.append(await anext(me.inbox()))
    except TimeoutError:
        # fewer than were announced: some have expired or could not be opened meanwhile
        return messages
    return messages


def _tell_inbox(me: Agent, key: SigningKey, messages: list[Message]) -> None:
    welcome = me.welcome
    if welcome is None:
        return
    pending = welcome.pending
    for message in messages:
        first = message.body.decode(errors="replace").partition("\n")[0]
        preview = printable("".join(islice(first, PREVIEW)))
        write(f"{clock_time(message.created_at)}  {message.sender}  {preview}")
    if pending.count == 0:
        say(f"Nothing waits for {key.did}: all up to seq {welcome.head} was acked or ended.")
    else:
        say(f"{pending.count} wait for {key.did} ({pending.bytes} bytes); nothing was acked.")
    if pending.refused_count:
        say(f"{pending.refused_count} were turned away because the inbox was full.")


def message_members(message: Message) -> dict[str, Any]:
    """A message as JSON members; ``text`` where the body is UTF-8, else ``base64url``."""
    members: dict[str, Any] = {
        "kind": "bounce" if isinstance(message, Bounce) else "message",
        "id": message.id,
        "eid": message.eid,
        "from": message.sender,
        "content_type": message.content_type,
        "type": message.type,
        "thid": message.thid,
        "pthid": message.pthid,
        "created_at": message.created_at,
        "expires_at": message.expires_at,
        "sealed": message.sealed,
        "redelivered": message.redelivered,
    }
    if isinstance(message, Bounce):
        names = ("eid", "to", "reason", "maybe_delivered")
        members["items"] = [{name: getattr(i, name) for name in names} for i in message.items]
        return members
    try:
        members["text"] = message.text()
    except UnicodeDecodeError:
        members["base64url"] = jose.b64encode(message.body)
    return members
