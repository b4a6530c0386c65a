"""kill -9 of an agent between any two steps of its move: the next life ends it, nothing is lost."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from random import Random

import pytest

from relay.client import Agent
from relay.client.state.migration_log import MigrationStage
from tests.client.agent_process import ROOT, Identity, Mortal
from tests.client.scripted_relay import new_key
from tests.client.test_migration import Reader, homes_of, relays
from tests.support.patience import within

pytestmark = pytest.mark.timeout(60)

PROGRAM = Path(__file__).with_name("migration_program.py")
KILLED_AT = [
    one for one in MigrationStage if one not in {MigrationStage.CANCELLING, MigrationStage.DROPPED}
]
COUNT = 40


@pytest.mark.parametrize("stage", KILLED_AT)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_agent_that_is_killed_at_any_stage_moves_in_its_next_life(
    tmp_path: Path, stage: MigrationStage, when: str
):
    bob = Identity(new_key(), tmp_path / "state")
    async with relays() as (one, two), Agent.open(new_key(), one.url) as alice:
        async with bob.opened(one.url):
            pass
        for n in range(COUNT):
            await alice.send(bob.did, f"{n:03}")
        shown = await _killed(bob, one.url, two.url, stage, when)
        await alice.send(bob.did, "since")
        async with bob.opened(one.url) as me:
            reader = Reader(me)
            async with reader.reading():
                # with nobody who asks for it, unless nothing of it was noted
                moved = await me.migrate(two.url, deadline_s=20)
                expected = {*(f"{n:03}" for n in range(COUNT)), "since"}
                await reader.has(len(expected - {*shown}))
            assert moved.missing == ()
            assert moved.discrepancies == ()
            assert moved.waiting == 0
            assert await homes_of(me) == [two.url]
        # acked by the first life, or by the second; never shown by both without a mark
        assert {*shown, *reader.texts} == expected
        twice = [text for text in reader.texts if text in shown]
        assert {*twice} <= {*reader.marked}
        assert len(reader.texts) == len({*reader.texts})


async def _killed(
    bob: Identity, source: str, target: str, stage: MigrationStage, when: str
) -> list[str]:
    """What the first life was shown."""
    words = (source, bob.key.seed.hex(), str(bob.state), target, str(stage), when)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAM), *words),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
    )
    mortal = Mortal(process)
    shown: list[str] = []
    try:
        while (said := await mortal.says())[:1] != ["at"]:
            assert said, "it ended by itself"
            if said[0] == "shown":
                shown.append(said[1])
    finally:
        await mortal.kill()
    assert process.stdout is not None
    rest = (await process.stdout.read()).decode().splitlines()
    return [*shown, *(line.split()[1] for line in rest if line.startswith("shown"))]


async def test_lives_that_end_at_any_moment_and_lead_to_and_fro_lose_nothing(tmp_path: Path):
    """kill -9 at moments that are drawn from a seed; what a test of stages may not think of."""
    seed = int(os.environ.get("CHAOS_SEED") or time.time_ns())
    print(f"CHAOS_SEED={seed}")  # noqa: T201  repeats the choices of this run
    drawn = Random(seed)  # noqa: S311  not a secret
    bob, texts = Identity(new_key(), tmp_path / "state"), [f"{n:03}" for n in range(COUNT)]
    shown: list[tuple[str, bool]] = []
    async with relays() as (one, two), Agent.open(new_key(), one.url) as alice:
        async with bob.opened(one.url):
            pass
        for text in texts:
            await alice.send(bob.did, text)
        for life in range(5):
            ends = drawn.sample([one.url, two.url], 2)
            shown += await _lived(bob, ends[0], ends[1], drawn.random() * 0.4)
            texts.append(f"since life {life}".replace(" ", "-"))
            await alice.send(bob.did, texts[-1])
        async with bob.opened(one.url) as me:
            reader = Reader(me)
            async with reader.reading():
                left = {*texts} - {text for text, _ in shown}
                async with within(30):
                    while not {*reader.texts} >= left:  # noqa: ASYNC110  what was read
                        await asyncio.sleep(0.02)
                    while me._parts.state.migration.pending is not None:  # noqa: ASYNC110  by itself
                        await asyncio.sleep(0.02)
            assert len(await homes_of(me)) == 1
        shown += [(text, text in reader.marked) for text in reader.texts]
    seen: set[str] = set()
    for text, is_marked in shown:
        assert is_marked or text not in seen, f"{text} came twice without a mark"
        seen.add(text)
    assert seen == {*texts}


async def _lived(bob: Identity, named: str, target: str, seconds: float) -> list[tuple[str, bool]]:
    """A life of so long; gives what it was shown, and whether that was marked."""
    words = (named, bob.key.seed.hex(), str(bob.state), target, "never", "after")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAM), *words),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    mortal = Mortal(process)
    assert (await mortal.says())[0] == "open"
    # not to wait for anything: this is the moment that was drawn
    await asyncio.sleep(seconds)
    if process.returncode is None:
        await mortal.kill()
    assert process.stdout is not None
    said = [line.split() for line in (await process.stdout.read()).decode().splitlines()]
    return [(words[1], words[2] == "True") for words in said if words[0] == "shown"]
