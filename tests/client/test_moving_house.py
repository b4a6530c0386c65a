"""An agent that moves between real relays while its program goes on, and while others write."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from relay.client import Agent, Moved, MoveProgress
from relay.client import state as states
from relay.client.moves import Stage
from relay.core.ids import Did
from tests.client.support import new_key
from tests.federation.relays import Place, places, relay_at
from tests.support.nodes import RunningNode

pytestmark = pytest.mark.timeout(60)


@contextlib.asynccontextmanager
async def relays(count: int = 2) -> AsyncIterator[list[RunningNode]]:
    """Relays that know each other."""
    there = places(count)
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(relay_at(one, _but(there, one))) for one in there
        ]


def _but(there: list[Place], one: Place) -> list[Place]:
    return [other for other in there if other is not one]


@dataclass
class Reader:
    """Takes what is delivered and acks it."""

    me: Agent
    texts: list[str] = field(default_factory=list)
    marked: list[str] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        task = asyncio.ensure_future(self._read())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _read(self) -> None:
        async for message in self.me.inbox():
            self.texts.append(message.text())
            if message.redelivered:
                self.marked.append(message.text())
            await message.ack()

    async def has(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.texts) < count:  # noqa: ASYNC110  what was read
                await asyncio.sleep(0.01)


def did(node: RunningNode) -> Did:
    return node.built.node.key.did


async def homes_of(me: Agent) -> list[str]:
    found = await me.resolve(me.did)
    assert found.record is not None
    return [home.url for home in found.record.relays]


async def test_the_program_goes_on_over_a_move_and_back(tmp_path: Path):
    async with (
        relays() as (one, two),
        Agent.open(new_key(), one.url, state=tmp_path / "state") as me,
        Agent.open(new_key(), two.url) as alice,
    ):
        reader = Reader(me)
        told: list[MoveProgress] = []
        async with reader.reading():
            await alice.send(me.did, "before")
            await reader.has(1)
            moved = await me.migrate(two.url, on_progress=told.append, deadline_s=20)
            assert moved.is_complete, moved
            assert await homes_of(me) == [two.url]
            await alice.send(me.did, "after")
            await me.send(alice.did, "from there")
            await reader.has(2)
            assert me.relay == did(two)
            back = await me.migrate(one.url, deadline_s=20)
            assert back.is_complete, back
            await alice.send(me.did, "back again")
            await reader.has(3)
            assert me.relay == did(one)
        assert reader.texts == ["before", "after", "back again"]
        assert reader.marked == []
        assert told[-1].stage is Stage.DONE
