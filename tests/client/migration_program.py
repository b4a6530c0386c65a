"""An agent in a process of its own that moves, and stops for its killer at one stage.

python migration_program.py SOURCE SEED STATE TARGET STAGE before|after

It says ``open``, and ``at STAGE`` before that stage is noted, or after; then it waits to be killed,
with everything that it had under way.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from relay.client import Agent, SigningKey
from relay.client.state.migration_log import MigrationLog, MigrationState


def say(*words: object) -> None:
    sys.stdout.write(" ".join(str(word) for word in words) + "\n")
    sys.stdout.flush()


def stop_at(stage: str, when: str) -> None:
    keep = MigrationLog.save

    async def stopping(self: MigrationLog, move: MigrationState) -> None:
        if when == "after":
            await keep(self, move)
        if str(move.stage) == stage:
            say("at", stage)
            await asyncio.Event().wait()
        if when == "before":
            await keep(self, move)

    MigrationLog.save = stopping  # type: ignore[method-assign]  # this process is there to be killed


async def live(source: str, seed: str, state: str, target: str, *stop: str) -> None:
    async with Agent.open(SigningKey(bytes.fromhex(seed)), source, state=Path(state)) as me:
        say("open", me.did)
        stop_at(*stop)
        reading = asyncio.ensure_future(read(me))
        await me.migrate(target, deadline_s=30)
        say("moved")
        await reading


async def read(me: Agent) -> None:
    async for message in me.inbox():
        say("shown", message.text(), message.redelivered)
        await message.ack()


asyncio.run(live(*sys.argv[1:]))
