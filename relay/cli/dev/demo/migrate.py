"""``relay demo migrate``: 2,000 waiting envelopes, three busy senders, a killed relay.

The senders do not know of the migration. At the end the demo checks every envelope that has a
receipt, by its eid.

::

    three senders ──▶ A ──2,000, and what comes meanwhile──▶ B ──▶ Maria
                      + killed half-way, started again
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from relay import clock
from relay.cli.dev.demo import relays
from relay.cli.dev.demo.relays import DemoError, RelayProcess, Story, check, relay_process
from relay.cli.output import first_of
from relay.client import Agent, SigningKey
from relay.client.migration.retry import MigrationProgress
from relay.client.state.migration_log import MigrationReport, MigrationStage
from relay.protocol.ids import Did, Eid

WAITING: Final = 2_000
SENDERS: Final = 3
LANES: Final = 24
PAUSE_S: Final = 0.05
STEP_S: Final = 25.0
SETTINGS: Final = {
    "RELAY_FEDERATION": "open",
    "RELAY_DIAL_NETWORKS": "127.0.0.0/8",
    # three strangers who write as fast as they can
    "RELAY_SENDER_RATE": "100000",
    "RELAY_STRANGER_RATE": "100000",
    "RELAY_SENDER_COUNT": "5000",
    "RELAY_STRANGER_COUNT": "5000",
}


@dataclass(slots=True)
class Accounts:
    """Envelopes with a receipt, and envelopes that arrived."""

    accepted: set[Eid] = field(default_factory=set)
    arrived: Counter[Eid] = field(default_factory=Counter)
    marked: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def all_arrived(self) -> None:
        """Wait until every accepted envelope has arrived."""
        while self.accepted - self.arrived.keys():
            self.news.clear()
            await self.news.wait()


@dataclass(frozen=True, slots=True)
class Scene:
    """The participants: two relays and the senders."""

    story: Story
    a: RelayProcess
    b: RelayProcess
    accounts: Accounts
    senders: list[Agent] = field(default_factory=list)


@dataclass(slots=True)
class Journey:
    """The progress of the migration, as the SDK reports it."""

    began: float
    stages: dict[MigrationStage, float] = field(default_factory=dict)
    half: asyncio.Event = field(default_factory=asyncio.Event)
    copied: MigrationProgress = field(
        default_factory=lambda: MigrationProgress(MigrationStage.PREPARING)
    )

    def __call__(self, progress: MigrationProgress) -> None:
        """Record one progress report."""
        self.stages.setdefault(progress.stage, clock.monotonic())
        if progress.stage is MigrationStage.COPYING and progress.done and not self.half.is_set():
            self.copied = progress
            self.half.set()


async def tell(story: Story) -> int:
    """Run it and return the number of envelopes that were accepted and arrived."""
    try:
        return await _tell(story)
    except ExceptionGroup as several:
        raise first_of(several) from several


async def _tell(story: Story) -> int:
    maria, accounts = relays.new_key(), Accounts()
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(relay_process(story.home / "A", settings=SETTINGS))
        b = relay_process(story.home / "B", settings=SETTINGS, knows=a)
        scene = Scene(story, a, await stack.enter_async_context(b), accounts)
        story.tell(f"Two relays run, each with a store of its own: A {a.url}, B {scene.b.url}.")
        async with asyncio.timeout(STEP_S), Agent.open(maria, a.url):
            pass
        for _ in range(SENDERS):
            sender = Agent.open(relays.new_key(), a.url)
            scene.senders.append(await stack.enter_async_context(sender))
        await _fill(scene, maria.did)
        async with asyncio.timeout(2 * STEP_S):
            await _move(scene, stack, maria)
        await _last_look(scene, maria)
    return len(accounts.accepted)


async def _fill(scene: Scene, maria: Did) -> None:
    accounts, numbers, began = scene.accounts, iter(range(WAITING)), clock.monotonic()
    async with asyncio.timeout(STEP_S), asyncio.TaskGroup() as tasks:
        for agent in scene.senders:
            for _ in range(LANES):
                tasks.create_task(_write(agent, maria, numbers, accounts))
    took = clock.monotonic() - began
    check(len(accounts.accepted) == WAITING, f"{len(accounts.accepted)} were accepted")
    scene.story.tell(
        f"Maria is offline. Three senders wrote her {WAITING:,} sealed envelopes in {took:.1f} s; "
        "A signed for each: on disk."
    )


async def _write(
    agent: Agent, to: Did, numbers: Iterable[int], accounts: Accounts, pause_s: float = 0.0
) -> None:
    for number in numbers:
        sent = await agent.send(to, f"letter {number}", deadline_s=STEP_S)
        check(sent.durability == "fsync", f"a receipt promises only {sent.durability}")
        accounts.accepted.add(sent.eid)
        if pause_s:
            await asyncio.sleep(pause_s)


async def _move(scene: Scene, stack: AsyncExitStack, maria: SigningKey) -> None:
    """Migrate while the senders write and A is killed."""
    story, a, b, accounts = scene.story, scene.a, scene.b, scene.accounts
    state = story.home / "maria.state"
    async with Agent.open(maria, a.url, state=state) as moving, asyncio.TaskGroup() as tasks:
        story.tell("Maria comes online and asks to move to B. The three go on writing to A.")
        stop = asyncio.Event()
        before = len(accounts.accepted)
        lanes = [
            tasks.create_task(_write(agent, maria.did, _until(stop), accounts, PAUSE_S))
            for agent in scene.senders
        ]
        journey = Journey(clock.monotonic())
        migration = tasks.create_task(moving.migrate(b.url, on_progress=journey))
        await journey.half.wait()
        await a.kill()
        _tell_half(story, journey)
        reading = [tasks.create_task(_read(moving, accounts)) for _ in range(LANES)]
        back = relay_process(story.home / "A", a.address, SETTINGS)
        again = await stack.enter_async_context(back)
        check(again.did == a.did, "another relay came back")
        story.tell(f"A was started again (process {again.process.pid}) and goes on by itself.")
        moved = await migration
        _tell_moved(story, moved)
        stop.set()
        await asyncio.wait(lanes)
        meanwhile = len(accounts.accepted) - before
        story.tell(f"The three have written {meanwhile} more meanwhile, and noticed nothing.")
        await accounts.all_arrived()
        for hand in reading:
            hand.cancel()
    _check_arrived(accounts)
    story.tell(
        f"Maria has read all {len(accounts.arrived):,} at B, each once; "
        f"{accounts.marked:,} were marked: perhaps shown before."
    )


def _until(stop: asyncio.Event) -> Iterable[int]:
    for number in count(WAITING):
        if stop.is_set():
            return
        yield number


async def _read(agent: Agent, accounts: Accounts) -> None:
    async for message in agent.inbox():
        accounts.arrived[message.eid] += 1
        accounts.marked += message.redelivered
        await message.ack()
        accounts.news.set()


def _tell_half(story: Story, journey: Journey) -> None:
    published = journey.stages[MigrationStage.COPYING] - journey.began
    copied = journey.copied
    check(copied.done < copied.total, "all was at B before A could be killed")
    story.tell(
        f"{published:.1f} s later B knew what she has seen, and her new record said B. "
        f"A was killed half-way, kill -9: {copied.done:,} of {copied.total:,} had gone over."
    )


def _tell_moved(story: Story, moved: MigrationReport) -> None:
    check(not moved.discrepancies, "; ".join(moved.discrepancies))
    check(not moved.missing, f"{len(moved.missing)} envelopes are nowhere")
    check(moved.waiting == 0, f"{moved.waiting} still wait at A")
    ended = moved.moved + moved.acked + moved.expired + moved.refused + moved.corrupt
    check(moved.initial + moved.late == ended, "A does not account for all that it had")
    story.tell(
        f"Moved in {moved.seconds:.1f} s, without delivery for {moved.downtime_s:.1f} s. "
        f"A signed: {moved.initial:,} waited, {moved.late} came late, {moved.moved:,} handed over, "
        f"{moved.waiting} wait; and of {moved.inventory_count:,} eids that she "
        "noted none is missing."
    )


def _check_arrived(accounts: Accounts) -> None:
    twice = sum(times > 1 for times in accounts.arrived.values())
    strange = len(accounts.arrived.keys() - accounts.accepted)
    check(not twice, f"{twice} were shown twice")
    check(not strange, f"{strange} arrived that nobody was promised")


async def _last_look(scene: Scene, maria: SigningKey) -> None:
    state = scene.story.home / "maria.state"
    async with asyncio.timeout(STEP_S), Agent.open(maria, scene.b.url, state=state) as agent:
        welcome = agent.welcome
    if welcome is None:
        raise DemoError("B did not say where Maria's inbox stands")
    check(welcome.pending.count == 0, f"{welcome.pending.count} still wait at B")
    scene.story.tell("Maria looked again at B: her inbox is empty.")
