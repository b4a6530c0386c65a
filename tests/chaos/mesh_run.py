"""One run over a mesh: agents write across it under network faults, relays and stores are killed.

It works as ``chaos_run.py``. All envelopes are out before the last fault is healed. So what happens
after it is the mesh's own work, and has a minute.

::

    relays up, agents known everywhere ──▶ envelopes ‖ faults ‖ kills ──▶ one relay is alone
    ──all receipted──▶ heal ──≤ 60 s──▶ all ended ──▶ outboxes empty? inboxes empty? ──▶ judge
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from relay.protocol.errors import RelayError
from relay.protocol.ids import Did
from tests.chaos.audit import audit
from tests.chaos.checker import Verdict, ends_of, judge
from tests.chaos.ledger import Ledger
from tests.chaos.network_faults import (
    Sky,
    Weather,
)
from tests.chaos.sdk_agents import Life, SdkAgent
from tests.chaos.traffic_plan import (
    POISON,
    Letter,
)
from tests.support.mesh import Mesh, MeshRelay, knows, mesh
from tests.support.namespaces import Namespaces
from tests.support.nodes import new_key
from tests.support.patience import wait_until

KNOWN_S = 30.0
HEALED_S = 60.0
LOOK_S = 0.5
UNFOLLOWED = frozenset({"unknown", "forwarded"})
"""What a relay may say of what it did not end itself."""


UNHURRIED = Life(messages=(60, 200), lanes=6, rest_s=0.35)
"""So that there is something to send in any weather."""


@dataclass(frozen=True, slots=True)
class MeshPlan:
    """The plan of a run.

    Args:
        seed: of everything that is drawn.
        envelopes: all of them.
        relays: how many.
        agents: at each.
        node_kills: kill -9 of a node, drawn among all.
        store_kills: the same of a store.
        poison: share of envelopes that their recipient refuses.
        spaces: whether each relay has a network namespace of its own; else it is behind a proxy.
        alone: whether the last fault is a relay that is parted from all others.
        arguments: what is started instead of a relay, by number: mutants.
        settings: more ``RELAY_*`` variables.
        life: how agents live.
        lasts_s: shortest and longest episode of bad weather.
        deadline_s: the longest until all letters are out.
        healed_s: the longest from the heal until all is over.
    """

    seed: int
    envelopes: int = 1_200
    relays: int = 5
    agents: int = 2
    node_kills: int = 2
    store_kills: int = 1
    poison: float = 0.01
    spaces: bool = False
    alone: bool = True
    arguments: Mapping[int, Sequence[str]] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    life: Life = UNHURRIED
    lasts_s: tuple[float, float] = (0.4, 1.2)
    deadline_s: float = 60.0
    healed_s: float = HEALED_S

    @property
    def names(self) -> list[str]:
        """Of the relays."""
        return [f"relay{number}" for number in range(self.relays)]


@dataclass(slots=True)
class MeshRun:
    """A plan, carried out.

    Args:
        plan: what to do.
        directory: where the relays live.
    """

    plan: MeshPlan
    directory: Path
    ledger: Ledger = field(default_factory=Ledger)
    agents: list[SdkAgent] = field(default_factory=list)
    most_waiting: int = 0
    healed_s: float = -1.0
    took_s: float = 0.0
    node_kills: int = 0
    store_kills: int = 0
    logs: str = ""
    relays: Mesh = field(init=False)
    weather: Weather = field(init=False)
    _rng: Random = field(init=False)

    def __post_init__(self) -> None:
        self._rng = Random(self.plan.seed)  # noqa: S311  whims, no keys

    async def __call__(self) -> Verdict:
        """Carry it out; processes are ended whatever happens."""
        plan = self.plan
        async with AsyncExitStack() as stack:
            spaces = None
            if plan.spaces:
                spaces = stack.enter_context(Namespaces(plan.names).made())
            self.relays = await stack.enter_async_context(
                mesh(
                    plan.relays, self.directory, namespaces=spaces,
                    faults=None if plan.spaces else self._fork(),
                    arguments=plan.arguments, settings=plan.settings,
                )
            )  # fmt: skip
            sky: Sky | None = spaces or self.relays.faults
            assert sky is not None
            self.weather = Weather(sky, plan.names, self._fork(), plan.lasts_s)
            try:
                await self._live()
                await self._look()
            finally:
                self.logs = self.relays.log_tails()
        return judge(self.ledger)

    async def _live(self) -> None:
        await self.relays.start()
        self._engage()
        await self._introduce()
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(agent.run()) for agent in self.agents]
            watching = tasks.create_task(self._watch())
            try:
                await self._converse()
                await self._heal()
            finally:
                for task in (*running, watching):
                    task.cancel()
        self.took_s = time.monotonic() - began

    def _engage(self) -> None:
        plan = self.plan
        keys = {new_key(): relay for relay in self.relays.relays for _ in range(plan.agents)}
        letters = self._letters([key.did for key in keys])
        spaces = self.relays.namespaces
        plain = [spaces.network] if spaces else []
        for number, (key, relay) in enumerate(keys.items()):
            # what says who holds what they sent must outlive their short lives
            agent = SdkAgent(
                key, relay, self.ledger, self._fork(), letters, insecure_networks=plain,
                state=self.directory / f"agent{number}.state", life=plan.life,
            )  # fmt: skip
            self.agents.append(agent)

    def _letters(self, inboxes: Sequence[Did]) -> Iterator[Letter]:
        rng = self._fork()
        for number in range(self.plan.envelopes):
            kind = POISON if rng.random() < self.plan.poison else b"food"
            yield Letter(rng.choice(inboxes), b"%b %d %b" % (kind, number, rng.randbytes(32)))

    def _fork(self) -> Random:
        return Random(self._rng.random())  # noqa: S311  as above

    async def _introduce(self) -> None:
        """Every agent comes once, until every relay holds its record."""

        async def is_known() -> bool:
            for relay in self.relays.relays:
                for agent in self.agents:
                    if not await knows(relay, agent.key.did):
                        return False
            return True

        async with AsyncExitStack() as stack:
            for agent in self.agents:
                await stack.enter_async_context(agent.opened())
            await wait_until(is_known, KNOWN_S, "every relay knows every agent")

    # ------------------------------------------------------------ what happens to them

    async def _converse(self) -> None:
        """Until every letter is out and has its receipt; in the end one relay is alone."""
        plan = self.plan
        async with asyncio.TaskGroup() as tasks:
            playing = tasks.create_task(self.weather.run())
            killing = tasks.create_task(self._kill())
            try:
                # the verdict names what is missing then
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(plan.deadline_s):
                        await self._until_out(playing, killing)
            finally:
                playing.cancel()
                killing.cancel()

    async def _until_out(self, playing: asyncio.Task[None], killing: asyncio.Task[None]) -> None:
        plan, ledger = self.plan, self.ledger
        await ledger.until(lambda: ledger.receipted >= 0.7 * plan.envelopes)
        await killing
        await self.weather.all_seen.wait()
        playing.cancel()
        await asyncio.wait([playing])
        if plan.alone:
            self.weather.isolate(self._rng.choice(plan.names))
        await ledger.until(lambda: ledger.receipted >= ledger.counted >= plan.envelopes)

    async def _heal(self) -> None:
        """All is well from now on: how long until everything has come to its end?"""
        self.weather.sky.heal()
        began = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.plan.healed_s):
                await self.ledger.until(lambda: self.ledger.is_over(self.plan.envelopes))
                await self.relays.drained(self.plan.healed_s)
                self.healed_s = time.monotonic() - began

    async def _kill(self) -> None:
        plan = self.plan
        victims = ["node"] * plan.node_kills + ["store"] * plan.store_kills
        self._rng.shuffle(victims)
        part = 1.2 * plan.envelopes / max(len(victims), 1)
        for number, victim in enumerate(victims):
            moment = (number + self._rng.random()) * part
            await self.ledger.until(lambda moment=moment: self.ledger.progress >= moment)
            await asyncio.sleep(self._rng.uniform(0, 0.03))
            relay = self._rng.choice(self.relays.relays)
            if victim == "store":
                await relay.kill_store()
                self.store_kills += 1
            else:
                relay.kill()
                await relay.start()
                self.node_kills += 1

    async def _watch(self) -> None:
        """Sample how much waits in outboxes."""
        while True:
            with contextlib.suppress(OSError, RelayError):
                self.most_waiting = max(self.most_waiting, await self.relays.waiting())
            await asyncio.sleep(LOOK_S)

    # ------------------------------------------------------------ the last look

    async def _look(self) -> None:
        for relay in self.relays.relays:
            keys = [agent.key for agent in self._at(relay)]
            await audit(relay.url, self.ledger, keys, {}, [])
        self.ledger.states = {
            eid: state for eid, state in self.ledger.states.items() if state not in UNFOLLOWED
        }

    def _at(self, relay: MeshRelay) -> list[SdkAgent]:
        return [agent for agent in self.agents if agent.relay is relay]

    def summary(self) -> str:
        """One line of numbers."""
        ledger = self.ledger
        ends = [how for (_, eid), how in ends_of(ledger).items() if eid in ledger.sent]
        marked = sum(item.redelivered for item in ledger.handed)
        weather = ", ".join(f"{count} x {name}" for name, count in self.weather.seen.items())
        return (
            f"seed {self.plan.seed}: {len(ledger.sent)} meant, {ledger.receipted} accepted - "
            f"{ends.count('acked')} acked - {ends.count('refused')} refused "
            f"= {ledger.receipted - len(ends)}; {len(ledger.bounces)} bounced; "
            f"{len(ledger.handed)} times handed over, {marked} marked; "
            f"killed: {self.node_kills} x node, {self.store_kills} x store; {weather}; "
            f"most in outboxes {self.most_waiting}, all over {self.healed_s:.1f} s after the heal; "
            f"{len(ledger.states)} followed; {self.took_s:.1f} s"
        )
