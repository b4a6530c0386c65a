"""A house that is moved again and again: agents change relays while somebody is killed at each step.

Rules of the file: one pair of relays for all rounds. In a round all agents move to the other relay,
one stopped behind each step of its own, and one that runs into the cut; so one kill falls into all
steps. Whoever is killed is started again at once, as a supervisor would, and by nobody else is
anything done. What the agents leave untaken moves on with them; every second round takes it all.

::

    all behind their steps ──▶ a cut is armed, one agent goes on ──▶ it happens ──▶ all go on
    ──≤ 60 s──▶ all have moved, the old relay is empty ──▶ (every 2nd) all that was sent has its end
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.chaos.checker import Verdict, judge
from tests.chaos.cuts import STORE, Cut, Cuts, Happened
from tests.chaos.ledger import Ledger
from tests.chaos.movers import Movers
from tests.chaos.moving_house import BOUNDARIES, Place
from tests.chaos.steady import STEADY, Letters, StaleSender, repeat_elsewhere
from tests.support.mesh import Mesh, MeshRelay, mesh
from tests.support.nodes import new_key
from tests.support.servers import wait_until

ENDS_S = 60.0
"""From a cut until all is over, by nobody's help: the longest back-off of a mover, GUARANTEES §3."""
REACHED_S = 30.0
LOOK_S = 0.02
MOVER = "mover"
SOURCE, TARGET = "source", "target"
BETWEEN_PATHS = {"reordered"}
"""Who sends through two relays, or to one that hands over meanwhile, has no order to rely on."""


@dataclass(frozen=True, slots=True)
class Round:
    """One move of all, and what happens in it.

    Args:
        cuts: their places and victims are named by role (source, target); mostly one.
        stops: whether an agent is stopped behind each step while it happens.
    """

    cuts: tuple[Cut, ...] = ()
    stops: bool = True


@dataclass(frozen=True, slots=True)
class MovePlan:
    """What a run does.

    Args:
        seed: of everything that is drawn.
        rounds: one after the other, there and back.
        stale: senders that know the first relay alone.
        others: senders at the second.
        rate: of letters, a second, of each sender.
        extra: agents beyond those that are stopped.
        repeats: of each round, envelopes acked before that are submitted at the other relay.
        hasty: agents publish without waiting for the digest.
        mutant: what both relays do wrong.
        ends_s: the longest from a cut to the end.
    """

    seed: int
    rounds: Sequence[Round]
    stale: int = 4
    others: int = 2
    rate: float = 12.0
    extra: int = 1
    repeats: int = 6
    hasty: bool = False
    mutant: tuple[str, ...] = ()
    ends_s: float = ENDS_S


@dataclass(slots=True)
class MoveRun:
    """A plan, carried out.

    Args:
        plan: what to do.
        directory: where all live.
    """

    plan: MovePlan
    directory: Path
    ledger: Ledger = field(default_factory=Ledger)
    happened: list[Happened] = field(default_factory=list)
    missed: list[Cut] = field(default_factory=list)
    ends_s: list[float] = field(default_factory=list)
    repeated: int = 0
    kills: int = 0
    took_s: float = 0.0
    logs: str = ""
    relays: Mesh = field(init=False)
    movers: Movers = field(init=False)
    _cuts: Cuts = field(init=False)
    _rng: Random = field(init=False)
    _letters: list[Letters] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = Random(self.plan.seed)  # noqa: S311  whims, no keys
        self.directory.mkdir(exist_ok=True)
        self._cuts = Cuts(self.directory)

    async def __call__(self) -> Verdict:
        """Carry it out; processes are ended whatever happens."""
        began = time.monotonic()
        names = ["relay0", "relay1"]
        arguments = {
            at: ("-m", "tests.chaos.cut_relay", name, str(self.directory), *self.plan.mutant)
            for at, name in enumerate(names)
        }
        async with mesh(2, self.directory, arguments=arguments) as self.relays:
            try:
                await self._live()
            finally:
                self.movers.kill()
                self.logs = f"{self.relays.log_tails()}\n--- movers\n{self.movers.log_tail()}"
        self.took_s = time.monotonic() - began
        return self._judge()

    async def _live(self) -> None:
        places = [Place(relay.did, relay.url) for relay in self.relays.relays]
        count = len(BOUNDARIES) + self.plan.extra
        self.movers = Movers(self.directory, self.ledger, places, count)
        self.movers.tell(hasty=self.plan.hasty)
        await self.relays.start()
        self.movers.start()
        async with self._busy():
            await self.movers.have_settled()
            self._flow(on=True)
            for number, one in enumerate(self.plan.rounds):
                await self._round(number, one)
            self._flow(on=False)
            await self._all_over()
            await self._last_look()

    # ------------------------------------------------------------ beside it all

    @contextlib.asynccontextmanager
    async def _busy(self) -> AsyncIterator[None]:
        """Senders send, notes are entered, whoever died is started again."""
        plan = self.plan
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            running = [
                tasks.create_task(self._sender(relay).run())
                for relay, many in zip(self.relays.relays, (plan.stale, plan.others), strict=True)
                for _ in range(many)
            ]
            running.append(tasks.create_task(self.movers.watch()))
            running.append(tasks.create_task(self._start_again()))
            try:
                yield
            finally:
                for task in running:
                    task.cancel()

    def _sender(self, relay: MeshRelay) -> StaleSender:
        letters = Letters(self.movers.dids, self._fork(), self.plan.rate)
        self._letters.append(letters)
        return StaleSender(
            new_key(), relay, self.ledger, self._fork(), letters=letters, habits=STEADY
        )

    def _fork(self) -> Random:
        return Random(self._rng.random())  # noqa: S311  as above

    def _flow(self, *, on: bool) -> None:
        for letters in self._letters:
            letters.flows = on

    async def _start_again(self) -> None:
        """What a supervisor does; a store is brought back by its node."""
        while True:
            for relay in self.relays.relays:
                if not relay.runs:
                    self.kills += 1
                    relay.killed_at.append(time.monotonic())
                    relay.is_ready = False
                    # killed while it starts: then once more
                    with contextlib.suppress(AssertionError):
                        await relay.start()
            if not self.movers.runs:
                self.movers.died()
                self.movers.start()
            self._cuts.tell({**self.relays.pids(), MOVER: self.movers.pid})
            await asyncio.sleep(LOOK_S)

    # ------------------------------------------------------------ a round

    async def _round(self, number: int, one: Round) -> None:
        movers, target = self.movers, (number + 1) % 2
        movers.behind.clear()
        for agent in range(movers.count):
            pause = "" if not one.stops else BOUNDARIES[agent] if agent < len(BOUNDARIES) else "x"
            at = target if pause != "x" else 1 - target
            movers.goals[agent] = self._goal(agent, at, pause if at == target else "")
        movers.write()
        if one.stops:
            await wait_until(self._are_stopped, REACHED_S, f"all agents are stopped: {one}")
        cuts = [self._placed(cut, 1 - target) for cut in one.cuts]
        began = time.monotonic()
        if cuts:
            began = await self._cut(cuts, target)
        movers.tell(at=target, pause="")
        await self._in_time(lambda: self._have_moved(number + 1), began, f"all have moved: {one}")
        with contextlib.suppress(OSError):
            self.repeated += await repeat_elsewhere(
                self.ledger, self.relays[target], movers.dids, self._rng, self.plan.repeats
            )
        if number % 2:
            await self._take_all(began, str(one))
        self.ends_s.append(time.monotonic() - began)

    def _goal(self, agent: int, at: int, pause: str):
        goal = self.movers.goals[agent]
        return type(goal)(at, pause, hasty=goal.hasty, takes=goal.takes)

    def _are_stopped(self) -> bool:
        behind = self.movers.behind
        return all(behind.get(agent) == step for agent, step in enumerate(BOUNDARIES))

    def _have_moved(self, times: int) -> bool:
        return all(moves == times for moves in self.movers.moves.values())

    def _placed(self, cut: Cut, source: int) -> Cut:
        """By names, in the place of roles."""
        names = {SOURCE: f"relay{source}", TARGET: f"relay{1 - source}", MOVER: MOVER}
        role, dot, store = cut.victim.partition(STORE)
        return Cut(names[cut.where], cut.point, f"{names[role]}{dot}{store}", cut.nth)

    async def _cut(self, cuts: Sequence[Cut], target: int) -> float:
        """Let somebody run into it; gives when the last one happened."""
        self._cuts.arm(cuts)
        self.movers.tell(at=target, pause="") if False else self._let_go(target)
        with contextlib.suppress(AssertionError):
            await wait_until(lambda: len(self._cuts.happened()) == len(cuts), REACHED_S, "cut")
        self.missed += self._cuts.disarm()
        happened = self._cuts.happened()
        self.happened += happened
        return happened[-1].at if happened else time.monotonic()

    def _let_go(self, target: int) -> None:
        """Those who are not stopped."""
        for agent in range(len(BOUNDARIES), self.movers.count):
            self.movers.goals[agent] = self._goal(agent, target, "")
        self.movers.write()

    async def _take_all(self, began: float, what: str) -> None:
        """All that was sent comes to its end."""
        self._flow(on=False)
        self.movers.tell(drains=True)
        await self._in_time(self._is_over, began, f"all that was sent has its end: {what}")
        self.movers.tell(drains=False)
        self._flow(on=True)

    async def _in_time(self, condition: Callable[[], bool], began: float, what: str) -> None:
        left = self.plan.ends_s - (time.monotonic() - began)
        await wait_until(condition, max(left, 1.0), what)
...
