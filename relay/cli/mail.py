"""``relay send``, ``relay listen`` and ``relay inbox``."""

from __future__ import annotations

import asyncio
import logging
import sys
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from relay.cli.identity import KeyFile
from relay.cli.output import (
    clock_time,
    printable,
    say,
    write,
    write_body,
    write_json,
)
from relay.client import Agent, Bounce, InboxResetError, Message, SigningKey, UnknownInboxError
from relay.client import origin as origins
from relay.client import state as states
from relay.client.agent import sign
from relay.client.message import Sent
from relay.client.post import post
from relay.core import jws as jose

OPEN_S: Final = 5.0
LOOK_S: Final = 5.0
PREVIEW: Final = 60


@dataclass(frozen=True, slots=True)
class Letter:
    """What ``relay send`` is asked to send."""

    to: str
    body: bytes
    content_type: str
    seal: bool
    type: str | None
    thid: str | None
    lifetime_s: int


async def send(
    file: KeyFile, url: str, letter: Letter, *, deadline_s: float, as_json: bool
) -> None:
    """Send one envelope and show the receipt."""
    key = file.load()
    envelope = sign(
        key,
        letter.to,
        letter.body,
        sealed=letter.seal,
        content_type=letter.content_type,
        type=letter.type,
        thid=letter.thid,
        lifetime_s=letter.lifetime_s,
    )
    try:
        with states.opened(file.state, key.did) as state:
            sent = await post(envelope, origins.parse(url), state, deadline_s=deadline_s)
    except UnknownInboxError:
        say("An agent gets its inbox when it first logs in: relay listen, or relay inbox.")
        raise
    _tell_sent(sent, as_json=as_json)


def _tell_sent(sent: Sent, *, as_json: bool) -> None:
    if as_json:
        names = ("id", "eid", "to", "relay", "at", "durability", "custody", "expires_at", "dup")
        write_json({**{name: getattr(sent, name) for name in names}, "receipt": sent.receipt})
        return
    write(sent.id)
    until = clock_time(sent.expires_at)
    say(f"{sent.relay} has it ({sent.durability}) and keeps it until it is acked or {until}.")


async def listen(file: KeyFile, url: str, *, count: int | None, as_json: bool) -> None:
    """Print what is delivered; each envelope is acked once it is written."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="relay: %(message)s")
    logging.getLogger("websockets").setLevel(logging.WARNING)
    key = file.load()
    async with Agent.open(key, url, state=file.state, open_timeout_s=OPEN_S) as me:
        say(f"Listening as {me.did} at {url}. Ctrl-C ends it.")
        left = count
        while left is None or left > 0:
            try:
                message = await anext(me.inbox())
            except InboxResetError as exc:
                say(f"relay: {exc.code}: {exc.detail}")
                continue
            _print(message, as_json=as_json)
            await message.ack()
            left = None if left is None else left - 1


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
    async with Agent.open(key, url, state=file.state, open_timeout_s=OPEN_S) as me:
        welcome = me.welcome
        if welcome is None:
            raise RuntimeError("open without a welcome")
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
