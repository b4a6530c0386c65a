"""Agents with a state file, in this process or in one of their own that can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from relay.client import Agent, SigningKey
from relay.protocol.ids import Did
from relay.store.embedded.process import dying_with_us
from tests.support.patience import within

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("agent_program.py")


@dataclass
class Mortal:
    """A running agent process."""

    process: asyncio.subprocess.Process

    async def says(self) -> list[str]:
        assert self.process.stdout is not None
        async with within(20):
            line = await self.process.stdout.readline()
        return line.decode().split()

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@dataclass
class Identity:
    """A key and a state file."""

    key: SigningKey
    state: Path

    @property
    def did(self) -> Did:
        return self.key.did

    def opened(self, url: str) -> contextlib.AbstractAsyncContextManager[Agent]:
        """The agent in this process."""
        return Agent.open(self.key, url, state=self.state)

    @contextlib.asynccontextmanager
    async def alive(self, url: str, *habit: str) -> AsyncIterator[Mortal]:
        """The agent in a process, killed at the end."""
        process = await asyncio.create_subprocess_exec(
            *dying_with_us(
                [sys.executable, str(PROGRAM), url, self.key.seed.hex(), str(self.state), *habit]
            ),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.PIPE,
        )
        mortal = Mortal(process)
        try:
            assert (await mortal.says())[0] == "open"
            yield mortal
        finally:
            if process.returncode is None:
                await mortal.kill()
