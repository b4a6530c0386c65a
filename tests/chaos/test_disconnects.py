"""Thousands of clients hang up at random moments; several hundred agents beside notice nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import pytest

from relay.protocol.ids import Did
from tests.chaos.agents import NO_LETTERS, Agent
from tests.chaos.audit import audit
from tests.chaos.checker import Verdict, judge
from tests.chaos.disconnecting_clients import (
    ENDINGS,
    STAGES,
    HangUps,
)
from tests.chaos.ledger import Ledger
from tests.chaos.restarting_relay import (
    SERVE,
    RelayProcess,
)
from tests.chaos.traffic_plan import (
    CALM,
    Letter,
)
from tests.support.nodes import new_key, speaker
from tests.support.patience import wait_until, within

SENDERS = 24
"""One envelope in flight each, again and again, until the last client has hung up."""
RECIPIENTS = 276
AT_ONCE = 24
AUDITORS = 8
HANGERS = 48
"""Keys of those who hang up."""
ONE_BY_ONE = replace(CALM, window=1)


def seed() -> int:
    return int(os.environ.get("CHAOS_SEED") or int.from_bytes(os.urandom(4)))


@dataclass(slots=True)
class Run:
    """Agents that converse, clients that hang up, and what became of the promises.

    Args:
        directory: where the relay lives.
        count: how many clients hang up.
        seed: of all that is drawn.
        arguments: what is started; a mutant, perhaps.
    """

    directory: Path
    count: int
    seed: int
    arguments: tuple[str, ...] = SERVE
    ledger: Ledger = field(default_factory=Ledger)
    relay: RelayProcess = field(init=False)
    hangups: HangUps = field(init=False)
    bugs: float = 0.0
    failures: float = 0.0
    _agents: list[Agent] = field(default_factory=list)

    async def __call__(self) -> Verdict:
        """Carry it out; the relay is ended whatever happens."""
        few = {"RELAY_MAX_CONNECTIONS_PER_IP": "1000"}
        self.relay = RelayProcess(self.directory, self.arguments, few)
        try:
            await self.relay.start()
            await self._engage()
            await self._converse()
            if self.relay.runs:
                await wait_until(self._is_alone, 30, "everybody's connection is gone")
                self.bugs = await self.relay.metric("relay_internal_errors_total")
                self.failures = await self.relay.metric("relay_loop_failures_total")
                await self._look_at_inboxes()
                await self.relay.stop()
            else:
                self.ledger.surprise("the relay has ended")
        finally:
            self.relay.kill()
        return judge(self.ledger)

    async def _engage(self) -> None:
        rng = Random(self.seed)  # noqa: S311  whims, no keys
        recipients = [new_key() for _ in range(RECIPIENTS)]
        inboxes = [key.did for key in recipients]
        hangers = [new_key() for _ in range(HANGERS)]
        relay = Did(self.relay.did)
        self.hangups = HangUps(self.relay.url, relay, rng, hangers, self.count)
        for key in [*recipients, *(new_key() for _ in range(SENDERS))]:
            is_sender = key not in recipients
            letters = self._letters(Random(rng.random()), inboxes)  # noqa: S311
            self._agents.append(
                Agent(
                    key,
                    self.relay,
                    self.ledger,
                    Random(rng.random()),  # noqa: S311
                    letters=letters if is_sender else iter(NO_LETTERS),
                    habits=ONE_BY_ONE,
                )
            )
        for key in recipients:
            async with speaker(self.relay.url, key):
                pass

    def _letters(self, rng: Random, inboxes: list[Did]) -> Iterator[Letter]:
        number = 0
        while not self.hangups.are_over:
            number += 1
            yield Letter(rng.choice(inboxes), b"food %d %b" % (number, rng.randbytes(16)))

    async def _look_at_inboxes(self) -> None:
        known = {agent.key.did: agent.incoming for agent in self._agents}
        keys = [agent.key for agent in self._agents]
        async with asyncio.TaskGroup() as tasks:
            for first in range(AUDITORS):
                mine = keys[first::AUDITORS]
                tasks.create_task(audit(self.relay.url, self.ledger, mine, known, []))

    async def _is_alone(self) -> bool:
        return not await self.relay.metric("relay_connections")

    async def _converse(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            agents = [tasks.create_task(agent.run()) for agent in self._agents]
            try:
                hanging = tasks.create_task(self.hangups.run(AT_ONCE))
                ended = tasks.create_task(wait_until(lambda: not self.relay.runs, 300, "no end"))
                await asyncio.wait([hanging, ended], return_when=asyncio.FIRST_COMPLETED)
                hanging.cancel()
                ended.cancel()
                if self.relay.runs:
                    async with within(30):
                        await self.ledger.until(lambda: self.ledger.is_over(1))
            finally:
                for agent in agents:
                    agent.cancel()


@pytest.mark.alone
@pytest.mark.timeout(120)
async def test_thousands_of_clients_that_hang_up_end_nothing_and_disturb_nobody(tmp_path):
    run = Run(tmp_path, 3_000, seed())
    verdict = await run()
    report = f"seed {run.seed}: {run.hangups.cuts}\n{verdict}\n{run.relay.log_tail()}"
    assert not verdict.kinds, report
    assert run.relay.starts == 1, report
    assert run.bugs == run.failures == 0, report
    # else the run has not looked at what it is about
    assert min(run.hangups.cuts[which] for which in (*STAGES, *ENDINGS)) > 20, report
    assert run.ledger.receipted > run.hangups.count / 10, report


@pytest.mark.breaks("relay under kills", "not-isolated")
@pytest.mark.timeout(60)
async def test_a_relay_whose_loops_are_not_isolated_is_found_to_end(tmp_path):
    mutant = ("-m", "tests.chaos.relay_mutants", "not-isolated")
    run = Run(tmp_path, 3_000, seed(), mutant)
    verdict = await run()
    assert any("has ended" in report for report in verdict.surprises), verdict
