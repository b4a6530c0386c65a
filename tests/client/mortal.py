"""An agent in a process of its own, to be killed: says on stdout what it did, and then waits.

python mortal.py RELAY SEED STATE show|ack|ack-unsaid|fail|send TO TEXT
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from relay.client import Agent, SigningKey


def say(*words: object) -> None:
    sys.stdout.write(" ".join(str(word) for word in words) + "\n")
    sys.stdout.flush()


async def live(relay: str, seed: str, state: str, habit: str, *words: str) -> None:
    async with Agent.open(SigningKey(bytes.fromhex(seed)), relay, state=Path(state)) as me:
        say("open", me.did)
        if habit == "send":
            to, text = words
            envelope = me.sign(to, text)
            say("signed", envelope.eid)
            await me.submit(envelope, deadline_s=60)
            say("sent", envelope.eid)
        else:
            await receive(me, habit)
        await asyncio.Event().wait()


async def receive(me: Agent, habit: str) -> None:
    async for message in me.inbox():
        say("shown", message.text(), message.redelivered)
        if habit == "ack":
            await message.ack()
            say("acked", message.text())
        elif habit == "ack-unsaid":
            await message.ack(wait=False)
        else:
            await asyncio.Event().wait()


asyncio.run(live(*sys.argv[1:]))
