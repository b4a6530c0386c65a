"""One run: agents converse, node and store are killed, and at the end every inbox is looked at.

Rules of the file: moments are counted in progress (receipts and ends), never in seconds, and drawn
from the seed; what the seed cannot fix (the phase of a commit at which a kill falls) is left to
chance on purpose. Every wait has an end.

::

    register all inboxes ──▶ agents ‖ killer ‖ absences ──all settled, or nothing moves──▶
    end agents ──▶ drain and question every inbox ──▶ log in once more: is it empty? ──▶ judge
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from relay.core.errors import RelayError
from relay.core.frames import Acked, Deliver, Gap, Status, Statuses, StatusItem
from relay.core.identity import SigningKey
from relay.core.ids import Did
from tests.chaos.agents import NO_LETTERS, Agent
from tests.chaos.checker import Verdict, judge
from tests.chaos.habits import CALM, POISON, UNRULY, Habits, Letter
from tests.chaos.incoming import Incoming
from tests.chaos.ledger import Ledger
from tests.chaos.relay_process import SERVE, RelayProcess
from tests.chaos.sdk_agents import SdkAgent
from tests.support.nodes import Speaker, new_key, speaker

WINDOWS = (1, 16, 64, 128, 256)
"""One sender each: from one envelope at a time to many submits in flight."""
QUESTIONS = 256
LAST_MOMENT = 0.95


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does.

    Args:
        seed: of everything that is drawn.
        framed: envelopes of agents that speak frames by hand.
        through_sdk: envelopes of agents over the SDK.
        recipients: agents that speak frames and only receive.
        sdk_agents: agents over the SDK; they send and receive.
        node_kills: kill -9 of the node.
        store_kills: kill -9 of the store.
        false_starts: node kills after which the node is killed again while it starts.
        absences: recipients that are offline for a part of the run.
        poison: share of envelopes that their recipient refuses.
        windows: of the agents that speak frames and send, one each.
        habits: of the agents that speak frames.
        moments: between which shares of the run's progress the kills fall.
        arguments: what is started; a mutant, perhaps.
        deadline_s: the longest that the agents may go on.
        stall_s: nothing happened for so long: it is over, whatever is missing.
    """

    seed: int
    framed: int = 18_000
    through_sdk: int = 2_000
    recipients: int = 5
    sdk_agents: int = 2
    node_kills: int = 5
    store_kills: int = 3
    false_starts: int = 1
    absences: int = 2
    poison: float = 0.01
    windows: Sequence[int] = WINDOWS
    habits: Habits = UNRULY
    moments: tuple[float, float] = (0.0, LAST_MOMENT)
    arguments: Sequence[str] = SERVE
    deadline_s: float = 85.0
    stall_s: float = 15.0

    @property
    def envelopes(self) -> int:
        """All of them."""
        return self.framed + self.through_sdk


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
    store_kills: int = 0
    took_s: float = 0.0
    _rng: Random = field(init=False)

    def __post_init__(self) -> None:
        self._rng = Random(self.plan.seed)  # noqa: S311  whims, no keys
        self.relay = RelayProcess(self.directory, self.plan.arguments)

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
            await self._audit()
            await self.relay.stop()
        finally:
            self.relay.kill()
        return judge(self.ledger)

    # ------------------------------------------------------------ agents

    def _engage(self) -> None:
        plan, keys = self.plan, [new_key() for _ in range(self.plan.recipients)]
        sdk_keys = [new_key() for _ in range(plan.sdk_agents)]
        inboxes = [key.did for key in keys for _ in range(3)] + [key.did for key in sdk_keys]
        framed, through_sdk = (
            self._letters(count, inboxes) for count in (plan.framed, plan.through_sdk)
        )
        habits = [replace(plan.habits, window=window) for window in plan.windows]
        self.agents = [self._agent(key, iter(NO_LETTERS), plan.habits) for key in keys]
        self.agents += [self._agent(new_key(), framed, habit) for habit in habits]
        self.sdk_agents = [
            SdkAgent(key, self.relay, self.ledger, self._fork(), through_sdk) for key in sdk_keys
        ]

    def _agent(self, key: SigningKey, letters: Iterator[Letter], habits: Habits) -> Agent:
        return Agent(key, self.relay, self.ledger, self._fork(), letters=letters, habits=habits)

    def _fork(self) -> Random:
        return Random(self._rng.random())  # noqa: S311  as above

    def _letters(self, count: int, inboxes: Sequence[Did]) -> Iterator[Letter]:
        rng = self._fork()
        for number in range(count):
            kind = POISON if rng.random() < self.plan.poison else b"food"
            yield Letter(rng.choice(inboxes), b"%b %d %b" % (kind, number, rng.randbytes(32)))

    def _keys(self) -> list[SigningKey]:
        return [agent.key for agent in (*self.agents, *self.sdk_agents)]

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
            killer = tasks.create_task(self._kill())
            try:
                await self._until_settled(killer)
            finally:
                for task in (*running, *absences, killer):
                    task.cancel()

    async def _until_settled(self, killer: asyncio.Task[None]) -> None:
        """Until all is over; or nothing has happened for a while, which the verdict will tell."""
        deadline = time.monotonic() + self.plan.deadline_s
        before = -1
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.plan.stall_s):
                    await self.ledger.until(lambda: self.ledger.is_over(self.plan.envelopes))
                    await asyncio.wait([killer])
                    return
            if before == self.ledger.entries:
                return
            # a relay that is being started again is no sign that nothing moves any more
            before = self.ledger.entries if killer.done() else -1

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
            # not always in the same phase of a commit, namely when its answer has just been heard
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

    def _moments(self, count: int) -> list[float]:
        """One in each of ``count`` equal parts of the run."""
        first, last = (share * 2 * self.plan.envelopes for share in self.plan.moments)
        part = (last - first) / max(count, 1)
        return [first + (index + self._rng.random()) * part for index in range(count)]

    # ------------------------------------------------------------ the end

    async def _audit(self) -> None:
        known = {agent.key.did: agent.incoming for agent in self.agents}
        for key in self._keys():
            incoming = known.get(key.did) or Incoming(key.did, self.ledger, self._rng, CALM)
            incoming.habits = CALM
            try:
                async with speaker(self.relay.url, key) as who:
                    await self._drain(who, incoming)
                    await self._question(who)
                async with speaker(self.relay.url, key) as who:
                    self.ledger.stand(key.did, who.ready.welcome)
            except (RelayError, TimeoutError) as exc:
                self.ledger.surprise(f"the last look at the inbox of {key.did}: {exc!r}")

    async def _drain(self, who: Speaker, incoming: Incoming) -> None:
        """Take whatever there still is."""
        incoming.opened(who.ready.welcome)
        while incoming.confirmed < who.ready.welcome.head:
            now = time.monotonic()
            ack = incoming.next_ack(now)
            if ack is not None:
                await who.say(ack)
            match await who.hear(Deliver, Gap, Acked):
                case Deliver() as frame:
                    incoming.deliver(frame, who.ready.relay, now)
                case Gap() as frame:
                    incoming.gap(frame)
                case Acked() as frame:
                    incoming.acked(frame)

    async def _question(self, who: Speaker) -> None:
        """Ask what became of all that this agent sent."""
        mine = [sent.envelope for sent in self.ledger.sent.values() if sent.sender == who.key.did]
        for start in range(0, len(mine), QUESTIONS):
            asked = mine[start : start + QUESTIONS]
            items = tuple(StatusItem(envelope.to, envelope.id) for envelope in asked)
            await who.say(Status("what became of these", items))
            answer = await who.hear(Statuses)
            for envelope, item in zip(asked, answer.items, strict=True):
                self.ledger.states[envelope.eid] = item.state

    # ------------------------------------------------------------ what was measured

    def summary(self) -> str:
        """One line of numbers."""
        ledger = self.ledger
        acked = sum(item.how == "acked" and item.eid in ledger.sent for item in ledger.ended)
        refused = sum(item.how == "refused" for item in ledger.ended)
        marked = sum(item.redelivered for item in ledger.handed)
        waits = sorted(sent.waited_s for sent in ledger.sent.values())
        return (
            f"seed {self.plan.seed}: {len(ledger.sent)} sent, {ledger.receipted} receipted "
            f"- {acked} acked - {refused} refused = {ledger.receipted - acked - refused}; "
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
            f"{sum(agent.lives for agent in self.sdk_agents)} SDK lives; {self.took_s:.1f} s"
        )

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
