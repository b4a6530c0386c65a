"""An agent in a process of its own, to be killed: says on stdout what it did, and then waits.

python agent_program.py RELAY SEED STATE show|ack|ack-unsaid|outcomes|outcomes-done
python agent_program.py RELAY SEED STATE send|send-acked|give-up TO TEXT
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from relay.client import Agent, OutcomeUnknownError, SigningKey


def say(*words: object) -> None:
    sys.stdout.write(" ".join(str(word) for word in words) + "\n")
    sys.stdout.flush()


async def live(relay: str, seed: str, state: str, habit: str, *words: str) -> None:
    async with Agent.open(SigningKey(bytes.fromhex(seed)), relay, state=Path(state)) as me:
        say("open", me.did)
        if words:
            await send(me, habit, *words)
        elif habit.startswith("outcomes"):
            await read_outcomes(me, habit)
        else:
            await receive(me, habit)
        await asyncio.Event().wait()


async def send(me: Agent, habit: str, to: str, text: str) -> None:
    if habit == "send-acked":
        await me.send(to, text, wait="acked", deadline_s=60)
        return
    envelope = me.sign(to, text)
    say("signed", envelope.eid)
    try:
        await me.submit(envelope, deadline_s=0.3 if habit == "give-up" else 60)
    except OutcomeUnknownError:
        say("gave-up", envelope.eid)
    else:
        say("sent", envelope.eid)


async def read_outcomes(me: Agent, habit: str) -> None:
    async for outcome in me.outcomes():
        say("outcome", outcome.eid, outcome.stored, outcome.code)
        if habit == "outcomes-done":
            await outcome.done()
            say("done", outcome.eid)


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
