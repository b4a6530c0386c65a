"""An agent that moves between real relays while its program goes on, and while others write."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from relay import clock
from relay.client import (
    Agent,
    AgentError,
    MigrationProgress,
    MigrationReport,
    MigrationStalledError,
    WrongStateError,
    sync,
)
from relay.client.migration.runner import MigrationRunner
from relay.client.state import agent_state as states
from relay.client.state.migration_log import MigrationStage
from relay.inbox.model.types import InboxLimits
from relay.protocol.ids import Did
from relay.reference.memory_store import MemoryStore
from tests.client.migration_relays import Alone
from tests.client.scripted_relay import new_key
from tests.federation.linked_nodes import Place, places, relay_at
from tests.support.nodes import RunningNode
from tests.support.patience import within

pytestmark = pytest.mark.timeout(60)


@contextlib.asynccontextmanager
async def relays(count: int = 2) -> AsyncIterator[list[RunningNode]]:
    """Relays that know each other."""
    there = places(count)
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(relay_at(one, _but(there, one))) for one in there]


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
        async with within(20):
            while len(self.texts) < count:  # noqa: ASYNC110  what was read
                await asyncio.sleep(0.01)


def did(node: RunningNode) -> Did:
    return node.parts.key.did


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
        told: list[MigrationProgress] = []
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
        assert told[-1].stage is MigrationStage.DONE


async def test_what_waits_and_what_is_in_hand_follows(tmp_path: Path):
    count = 150
    async with (
        relays() as (one, two),
        Agent.open(new_key(), one.url, state=tmp_path / "state") as me,
        Agent.open(new_key(), one.url) as alice,
    ):
        texts = [f"{n:03}" for n in range(count)]
        for text in texts:
            await alice.send(me.did, text)
        async with within(30):
            in_hand = await anext(me.inbox())
            let_go = [(await anext(me.inbox())).text() for _ in range(3)]
            acked = await anext(me.inbox())
            await acked.ack()
            moved = await me.migrate(two.url, deadline_s=20)
            assert moved.is_complete, moved
            assert moved.initial == moved.new_at_target == moved.inventory_count == count - 1
            # answered only now: it is said where it came again, and it never comes a second time
            await in_hand.ack()
            got = []
            while len(got) < count - 2:
                message = await anext(me.inbox())
                got.append((message.text(), message.redelivered))
                await message.ack()
        assert {text for text, _ in got} == {*texts} - {in_hand.text(), acked.text()}
        assert {text for text, marked in got if marked} >= {*let_go}
        fresh = [text for text, marked in got if not marked]
        assert fresh == sorted(fresh)
        assert fresh, "most of it nobody was handed"
        assert await alice.status(me.did, in_hand.id) == "acked"


async def test_handlers_and_sends_go_on_while_it_moves(tmp_path: Path):
    done: list[str] = []

    async def handle(message: Any) -> None:
        await asyncio.sleep(0)
        done.append(message.text())

    async def write(who: Agent, to: Did, name: str) -> int:
        n = 0
        while not stop.is_set():
            await who.send(to, f"{name}{n:04}")
            n += 1
            # so many wait at a relay for another one; who floods it is refused
            await asyncio.sleep(0.01)
        return n

    stop = asyncio.Event()
    async with (
        relays(3) as (one, two, three),
        Agent.open(new_key(), one.url, state=tmp_path / "state") as me,
        Agent.open(new_key(), one.url) as near,
        Agent.open(new_key(), three.url) as far,
    ):
        serving = asyncio.ensure_future(me.serve(handle, at_once=4))
        writing = [
            asyncio.ensure_future(write(who, to, name))
            for who, to, name in ((near, me.did, "n"), (far, me.did, "f"), (me, far.did, "m"))
        ]
        moved = await me.migrate(two.url, deadline_s=20)
        assert moved.missing == ()
        assert moved.discrepancies == ()
        back = await me.migrate(one.url, deadline_s=20)
        assert back.missing == ()
        stop.set()
        near_count, far_count, mine = await asyncio.gather(*writing)
        expected = {f"n{n:04}" for n in range(near_count)} | {f"f{n:04}" for n in range(far_count)}
        async with within(20):
            while not {*done} >= expected:  # noqa: ASYNC110  what was handled
                await asyncio.sleep(0.02)
        assert not serving.done()
        serving.cancel()
        assert sorted(done) == sorted(expected), "a handler was given one twice"
        assert min(near_count, far_count, mine) > 0


@pytest.mark.parametrize("names", ["the old relay", "both"])
async def test_a_program_that_still_names_its_old_relay_lives_at_the_new_one(
    tmp_path: Path, names: str
):
    key, state = new_key(), tmp_path / "state"
    async with relays() as (one, two), Agent.open(new_key(), two.url) as alice:
        async with Agent.open(key, one.url, state=state) as me:
            assert (await me.migrate(two.url, deadline_s=20)).is_complete
        named = one.url if names == "the old relay" else [one.url, two.url]
        async with Agent.open(key, named, state=state) as me:
            reader = Reader(me)
            async with reader.reading():
                await alice.send(me.did, "at the new one")
                await reader.has(1)
            assert await homes_of(me) == [two.url]
            await me.publish()
            assert await homes_of(me) == [two.url]


async def test_one_of_several_homes_moves_and_the_others_hand_over(tmp_path: Path):
    async with (
        relays(3) as (one, two, three),
        Agent.open(new_key(), [one.url, two.url], state=tmp_path / "state") as me,
        Agent.open(new_key(), two.url) as alice,
    ):
        await alice.send(me.did, "waits at the second home")
        moved = await me.migrate(three.url, deadline_s=20)
        assert moved.missing == ()
        assert await homes_of(me) == [three.url]
        reader = Reader(me)
        async with reader.reading():
            await reader.has(1)
        assert reader.texts == ["waits at the second home"]


async def test_to_one_of_its_own_homes_the_others_are_left(tmp_path: Path):
    async with (
        relays() as (one, two),
        Agent.open(new_key(), [one.url, two.url], state=tmp_path / "state") as me,
        Agent.open(new_key(), one.url) as alice,
    ):
        await alice.send(me.did, "at the first")
        moved = await me.migrate(two.url, deadline_s=20)
        assert (moved.missing, moved.discrepancies, moved.waiting) == ((), (), 0), moved
        assert await homes_of(me) == [two.url]
        reader = Reader(me)
        async with reader.reading():
            await reader.has(1)
            await alice.send(me.did, "follows")
            await reader.has(2)


async def test_a_life_that_begins_in_the_middle_goes_on_by_itself(tmp_path: Path):
    key, state = new_key(), tmp_path / "state"
    async with relays() as (one, two), Agent.open(new_key(), one.url) as alice:
        async with Agent.open(key, one.url, state=state) as me:
            await alice.send(me.did, "in between")
            moving = asyncio.ensure_future(
                me.migrate(two.url, on_progress=lambda at: seen.append(at.stage), deadline_s=20)
            )
            seen: list[MigrationStage] = []
            async with within(10):
                while MigrationStage.FREEZING not in seen:  # noqa: ASYNC110  what was told
                    await asyncio.sleep(0)
            moving.cancel()
        with states.opened(state, key.did) as left:
            assert left.migration.pending is not None
        async with Agent.open(key, one.url, state=state) as me:
            reader = Reader(me)
            async with reader.reading():
                await reader.has(1)
            again: MigrationReport = await me.migrate(two.url, deadline_s=20)
            assert again.is_complete
            assert await homes_of(me) == [two.url]


async def test_it_is_taken_back_and_the_program_goes_on_where_it_was(tmp_path: Path):
    here, there = places(2)
    async with (
        # one that may dial nobody cannot tell the other what was seen
        relay_at(here, dial_networks=()) as one,
        relay_at(there) as two,
        Agent.open(new_key(), one.url, state=tmp_path / "state") as me,
        Agent.open(new_key(), one.url) as alice,
    ):
        reader = Reader(me)
        async with reader.reading():
            with pytest.raises(MigrationStalledError):
                await me.migrate(two.url, deadline_s=1)
            await alice.send(me.did, "while it was held")
            assert reader.texts == []
            await me.cancel_migration(deadline_s=10)
            await reader.has(1)
            await alice.send(me.did, "still here")
            await reader.has(2)
            assert await homes_of(me) == [one.url]


async def test_in_closed_federation_the_order_lets_two_strangers_hand_over(tmp_path: Path):
    here, there = places(2)
    async with (
        relay_at(here, federation="closed") as one,
        relay_at(there, federation="closed") as two,
        Agent.open(new_key(), one.url, state=tmp_path / "state") as me,
        Agent.open(new_key(), one.url) as alice,
    ):
        for n in range(5):
            await alice.send(me.did, str(n))
        moved = await me.migrate(two.url, deadline_s=20)
        assert (moved.is_complete, moved.moved) == (True, 5)
        reader = Reader(me)
        async with reader.reading():
            await reader.has(5)
            # who has an old record, or none, is forwarded
            await alice.send(me.did, "late")
            await reader.has(6)


async def test_a_dead_relay_is_left_and_the_program_goes_on(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("relay.client.migration.runner.DEAD_SOURCE_TIMEOUT_S", 1.0)
    key, state = new_key(), tmp_path / "state"
    here, there = places(2)
    store = MemoryStore(InboxLimits(), clock.now)
    async with relay_at(there, [here]) as two, Agent.open(new_key(), two.url) as alice:
        async with (
            relay_at(here, [there], store) as one,
            Agent.open(key, one.url, state=state) as me,
        ):
            await me.send(me.did, "in hand")
            await me.send(me.did, "never seen")
            in_hand = await anext(me.inbox())
            one.stop.set()
            moved = await me.migrate(two.url, dead_source=True, deadline_s=20)
            assert (moved.waiting, moved.is_complete) == (None, False)
            # it cannot be told to anybody now, and the program is not kept waiting
            with pytest.raises(AgentError):
                await in_hand.ack()
            await alice.send(me.did, "at the new one")
            message = await anext(me.inbox())
            assert message.text() == "at the new one"
            await message.ack()
        # the old one returns, and hands over what it holds
        async with relay_at(here, [there], store), Agent.open(key, two.url, state=state) as me:
            reader = Reader(me)
            async with reader.reading():
                await reader.has(1)
            assert (reader.texts, reader.marked) == (["never seen"], ["never seen"])


async def test_a_dead_relay_that_returns_and_knows_no_other_is_told_by_the_agent(
    tmp_path: Path, monkeypatch
):
    monkeypatch.setattr("relay.client.migration.runner.DEAD_SOURCE_TIMEOUT_S", 0.5)
    monkeypatch.setattr("relay.client.migration.service.NOTIFY_PAUSE_S", 0.2)
    here, there = places(2)
    store = MemoryStore(InboxLimits(), clock.now)
    async with relay_at(there, federation="closed") as two, contextlib.AsyncExitStack() as stack:
        async with relay_at(here, store=store, federation="closed") as one:
            me = await stack.enter_async_context(
                Agent.open(new_key(), one.url, state=tmp_path / "state")
            )
            await me.send(me.did, "waits there")
            one.stop.set()
            moved = await me.migrate(two.url, dead_source=True, deadline_s=20)
            assert moved.waiting is None
        reader = Reader(me)
        async with relay_at(here, store=store, federation="closed"), reader.reading():
            await reader.has(1)
        assert reader.marked == ["waits there"]


async def test_two_programs_that_go_on_with_one_move_do_not_stop_each_other(tmp_path: Path):
    key = new_key()
    async with relays() as (one, two), Agent.open(new_key(), one.url) as alice:
        async with Agent.open(key, one.url, state=tmp_path / "state") as me:
            await alice.send(me.did, "once")
        with states.opened(tmp_path / "state", key.did) as state:
            first = MigrationRunner(Alone(key, state))
            await first._order(first.host.origin(two.url))
        shutil.copy(tmp_path / "state", tmp_path / "copy")
        with (
            states.opened(tmp_path / "state", key.did) as state,
            states.opened(tmp_path / "copy", key.did) as copy,
        ):
            done = await asyncio.gather(
                MigrationRunner(Alone(key, state)).resume(),
                MigrationRunner(Alone(key, copy)).resume(),
            )
        assert [(moved.is_complete, moved.new_at_target) for moved in done] == [(True, 1)] * 2
        async with Agent.open(key, two.url, state=tmp_path / "state") as me:
            reader = Reader(me)
            async with reader.reading():
                await reader.has(1)


def test_the_twin_moves_too(tmp_path: Path):
    async def work() -> None:
        async with relays() as (one, two):
            await asyncio.to_thread(program, one.url, two.url)

    def program(source: str, target: str) -> None:
        with sync.Agent.open(new_key(), source, state=tmp_path / "state") as me:
            told: list[MigrationProgress] = []
            assert me.migrate(target, on_progress=told.append).is_complete
            assert told[-1].stage is MigrationStage.DONE
            me.send(me.did, "there")
            assert next(me.inbox(timeout=5)).text() == "there"
            with pytest.raises(WrongStateError):
                me.cancel_migration()

    asyncio.run(work())
