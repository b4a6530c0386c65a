"""One run: agents converse; node, store and agents are killed; then every inbox is examined.

Moments are counted in progress (receipts and ends), never in seconds, and drawn from the seed. The
seed cannot fix the phase of a commit at which a kill falls; that is left to chance on purpose.
Every wait has an end.

::

    register all inboxes ──▶ agents ‖ killers ‖ absences ──all settled, or nothing moves──▶
    end agents ──▶ drain and question every inbox ──▶ log in once more: is it empty? ──▶ judge
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random

from relay.protocol.did import SigningKey
from relay.protocol.ids import Did
from tests.chaos.agents import NO_LETTERS, Agent
from tests.chaos.audit import audit
from tests.chaos.checker import Verdict, ends_of, judge
from tests.chaos.killable_agent import Orders
from tests.chaos.killable_agent_process import (
    MortalAgent,
    Mortals,
)
from tests.chaos.ledger import Ledger
from tests.chaos.restarting_relay import RelayProcess
from tests.chaos.run_plan import Plan
from tests.chaos.sdk_agents import SdkAgent
from tests.chaos.traffic_plan import (
    POISON,
    Habits,
    Letter,
)
from tests.support.nodes import new_key, speaker
from tests.support.patience import SLOWNESS, within


@dataclass(slots=True)
class Run:
    """A plan, carried out.

    Args:
        plan: what to do.
        directory: where the relay lives.
    """

    plan: Plan
    directory: Path
    ledger: Ledger = field(default_factory=Ledger)
    relay: RelayProcess = field(init=False)
    agents: list[Agent] = field(default_factory=list)
    sdk_agents: list[SdkAgent] = field(default_factory=list)
    mortals: Mortals = field(init=False)
    store_kills: int = 0
    took_s: float = 0.0
    _rng: Random = field(init=False)

    def __post_init__(self) -> None:
        self._rng = Random(self.plan.seed)  # noqa: S311  whims, no keys
        self.relay = RelayProcess(self.directory, self.plan.arguments)
        self.mortals = Mortals([], self.ledger)

    async def __call__(self) -> Verdict:
        """Carry it out; processes are ended whatever happens."""
        try:
            await self.relay.start()
            self._engage()
            for key in self._keys():
                async with speaker(self.relay.url, key):
                    pass
            began = time.monotonic()
            await self._converse()
            self.took_s = time.monotonic() - began
            await audit(
                self.relay.url,
                self.ledger,
                [agent.key for agent in (*self.agents, *self.sdk_agents)],
                {agent.key.did: agent.incoming for agent in self.agents},
                [agent.key for agent in self.mortals.agents],
            )
            await self.relay.stop()
        finally:
            self.relay.kill()
            await self.mortals.end_now()
        return judge(self.ledger)

    # ------------------------------------------------------------ agents

    def _engage(self) -> None:
        plan, keys = self.plan, [new_key() for _ in range(self.plan.recipients)]
        sdk_keys = [new_key() for _ in range(plan.sdk_agents)]
        mortal_keys = [new_key() for _ in range(plan.mortals)]
        inboxes = [key.did for key in keys for _ in range(3)]
        inboxes += [key.did for key in (*sdk_keys, *mortal_keys, *mortal_keys)]
        framed, through_sdk = (
            self._letters(count, inboxes) for count in (plan.framed, plan.through_sdk)
        )
        habits = [replace(plan.habits, window=window) for window in plan.windows]
        self.agents = [self._agent(key, iter(NO_LETTERS), plan.habits) for key in keys]
        self.agents += [self._agent(new_key(), framed, habit) for habit in habits]
        self.sdk_agents = [
            SdkAgent(key, self.relay, self.ledger, self._fork(), through_sdk) for key in sdk_keys
        ]
        mortals = [self._mortal(i, key, inboxes) for i, key in enumerate(mortal_keys)]
        self.mortals = Mortals(mortals, self.ledger)

    def _agent(self, key: SigningKey, letters: Iterator[Letter], habits: Habits) -> Agent:
        return Agent(key, self.relay, self.ledger, self._fork(), letters=letters, habits=habits)

    def _mortal(self, number: int, key: SigningKey, inboxes: Sequence[Did]) -> MortalAgent:
        plan = self.plan
        share, left = divmod(plan.through_mortals, plan.mortals)
        orders = Orders(
            url=self.relay.url,
            name=f"mortal-{number}",
            whims=self._rng.random(),
            inboxes=tuple(inboxes),
            letters=share + (number < left),
            poison=plan.poison,
            mutant=plan.mortal_mutant,
        )
        where = self.directory / orders.name
        return MortalAgent(key, orders, where, self.ledger, remembers=plan.mortals_remember)

    def _fork(self) -> Random:
        return Random(self._rng.random())  # noqa: S311  as above

    def _letters(self, count: int, inboxes: Sequence[Did]) -> Iterator[Letter]:
        rng = self._fork()
        for number in range(count):
            kind = POISON if rng.random() < self.plan.poison else b"food"
            yield Letter(rng.choice(inboxes), b"%b %d %b" % (kind, number, rng.randbytes(32)))

    def _keys(self) -> list[SigningKey]:
        return [agent.key for agent in (*self.agents, *self.sdk_agents, *self.mortals.agents)]

    # ------------------------------------------------------------ what happens to them

    async def _converse(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(agent.run()) for agent in self.agents]
            running += [tasks.create_task(agent.run()) for agent in self.sdk_agents]
            absences = [
                tasks.create_task(self._be_absent(agent))
                for agent in self._rng.sample(self.agents[: self.plan.recipients],
                                              self.plan.absences)
            ]  # fmt: skip
            running.append(tasks.create_task(self.mortals.watch()))
            await self.mortals.start()
            killers = [tasks.create_task(self._kill()), tasks.create_task(self._kill_agents())]
            try:
                await self._until_settled(killers)
                for killer in killers:
                    killer.cancel()
                await asyncio.wait(killers)
                await self.mortals.end()
            finally:
                for task in (*running, *absences, *killers):
                    task.cancel()

    async def _until_settled(self, killers: Sequence[asyncio.Task[None]]) -> None:
        """Until all is over; or nothing has happened for a while, which the verdict will tell."""
        deadline = time.monotonic() + self.plan.deadline_s * SLOWNESS
        before = -1
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                async with within(self.plan.stall_s):
                    await self.ledger.until(lambda: self.ledger.is_over(self.plan.envelopes))
                    await asyncio.wait(killers)
                    return
            if before == self.ledger.entries:
                return
            # a relay that is being started again is no sign that nothing moves any more
            before = self.ledger.entries if all(killer.done() for killer in killers) else -1

    async def _be_absent(self, agent: Agent) -> None:
        first = self._rng.uniform(0.05, 0.4)
        last = first + self._rng.uniform(0.1, 0.4)
        await self._receipted(first)
        agent.leave()
        await self._receipted(last)
        agent.come_back()

    async def _receipted(self, share: float) -> None:
        enough = share * self.plan.envelopes
        await self.ledger.until(lambda: self.ledger.receipted >= enough)

    async def _kill(self) -> None:
        plan = self.plan
        victims = ["node"] * plan.node_kills + ["store"] * plan.store_kills
        self._rng.shuffle(victims)
        false_starts = plan.false_starts
        for moment, victim in zip(self._moments(len(victims)), victims, strict=True):
            await self.ledger.until(lambda moment=moment: self.ledger.progress >= moment)
            # not always in the same phase of a commit, namely when its answer has just arrived
            await asyncio.sleep(self._rng.uniform(0, 0.03))
            if victim == "store":
                # every second one while it rewrites its file
                await self.relay.kill_store(rewriting=self.store_kills % 2 == 1)
                self.store_kills += 1
                continue
            self.relay.kill()
            if false_starts:
                false_starts -= 1
                self.relay.spawn()
                await asyncio.sleep(self._rng.uniform(0, 1.2))
                self.relay.kill()
            await self.relay.start()

    async def _kill_agents(self) -> None:
        for number, moment in enumerate(self._moments(self.plan.agent_kills)):
            victim = self._rng.choice(self.mortals.agents)
            await self.ledger.until(lambda moment=moment: self.ledger.progress >= moment)
            await self.ledger.until(
                partial(getattr, victim, "is_busy" if number % 2 else "handling")
            )
            await asyncio.sleep(self._rng.uniform(0, 0.03))
            await victim.kill()
            await victim.start()
            if number % 3 == 1:
                await asyncio.sleep(self._rng.uniform(0, 1.5))
                await victim.kill()
                await victim.start()

    def _moments(self, count: int) -> list[float]:
        """One in each of ``count`` equal parts of the run."""
        first, last = (share * 2 * self.plan.envelopes for share in self.plan.moments)
        part = (last - first) / max(count, 1)
        return [first + (index + self._rng.random()) * part for index in range(count)]

    # ------------------------------------------------------------ what was measured

    def summary(self) -> str:
        """One line of numbers."""
        ledger = self.ledger
        ends = [how for (_, eid), how in ends_of(ledger).items() if eid in ledger.sent]
        acked, refused = ends.count("acked"), ends.count("refused")
        marked = sum(item.redelivered for item in ledger.handed)
        waits = sorted(sent.waited_s for sent in ledger.sent.values())
        nothing = len(ledger.sent) - ledger.counted
        return (
            f"seed {self.plan.seed}: {len(ledger.sent)} meant - {nothing} never sent; "
            f"{ledger.receipted} accepted - {acked} acked - {refused} refused "
            f"= {ledger.receipted - acked - refused}; "
            f"{len({item.eid for item in ledger.bounces})} bounced; "
            f"killed: {len(self.relay.killed_at)} x node, {self.store_kills} x store; "
            f"{len(ledger.handed)} times handed over, {marked} marked; "
            f"ready again <= {max(self.relay.starting_took):.1f} s, "
            f"resumed p99 {self.resumed_p99:.1f} s "
            f"(SDK {self.sdk_resumed_p99:.1f} s), "
            f"slowest answer {self.slowest_answer:.1f} s, "
            f"receipt p50 {waits[len(waits) // 2] * 1000:.0f} ms, worst {waits[-1]:.1f} s; "
            f"{sum(agent.drops for agent in self.agents)} drops, "
            f"{sum(agent.takeovers for agent in self.agents)} takeovers, "
            f"{sum(agent.lives for agent in self.sdk_agents)} SDK lives; {self.mortal_summary}; "
            f"{self.took_s:.1f} s"
        )

    @property
    def mortal_summary(self) -> str:
        """The same of the agents that were killed."""
        agents, ledger = self.mortals.agents, self.ledger
        meant = [sent for sent in ledger.sent.values() if sent.is_mortal]
        return (
            f"{self.agent_kills} x SDK agent: {sum(agent.cut_handlers for agent in agents)} "
            f"handlers cut off, {sum(agent.kept for agent in agents)} found in outboxes; of "
            f"{len(meant)} meant {sum(sent.receipted is None for sent in meant)} without a noted "
            f"receipt, {len(ledger.denied)} of them withdrawn, {len(ledger.void)} never promised"
        )

    @property
    def agent_kills(self) -> int:
        """The number of kills of SDK agents."""
        return sum(agent.kills for agent in self.mortals.agents)

    @property
    def resumed_p99(self) -> float:
        """Seconds from a kill of the node until an agent that it hit is logged in again."""
        return _p99([after for agent in self.agents for after in agent.resumed_after])

    @property
    def sdk_resumed_p99(self) -> float:
        """The same of agents over the SDK, which dials at its own, growing, pace."""
        return _p99([after for agent in self.sdk_agents for after in agent.resumed_after])

    @property
    def slowest_answer(self) -> float:
        """Most seconds that a submit waited for its answer on a connection that stayed."""
        return max(agent.outgoing.slowest_answer for agent in self.agents)


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)] if values else 0.0
