"""Agents move again and again between two relays, and a party is killed at each step.

In a round all agents move to the other relay. One is stopped behind each of its steps, and more run
into the cut, so one kill hits all steps. A killed party is started again at once, as a supervisor
would; nobody intervenes otherwise. Envelopes that agents leave untaken move on with them; every
second round takes them all.

::

    all behind their steps ──▶ a cut is armed, the others go on ──▶ it happens ──▶ all go on
    ──▶ all have moved, the old relay is empty ──▶ (every second) all that was sent has its end
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random

from relay.client import AgentError
from tests.chaos.checker import Verdict, judge
from tests.chaos.kill_points import (
    STORE,
    Cut,
    Cuts,
    Happened,
)
from tests.chaos.ledger import Ledger
from tests.chaos.moving_agent_files import (
    BOUNDARIES,
    Place,
)
from tests.chaos.moving_agent_process import Movers
from tests.chaos.steady_senders import (
    STEADY,
    Letters,
    StaleSender,
    publish,
    repeat_elsewhere,
)
from tests.support.mesh import Mesh, MeshRelay, knows, mesh
from tests.support.nodes import new_key, speaker
from tests.support.patience import wait_until

ENDS_S = 60.0
"""From a cut until all is over and nobody did anything: the longest back-off (GUARANTEES.md §3)."""
REACHED_S = 30.0
LOOK_S = 0.02
MOVER, SOURCE, TARGET = "mover", "source", "target"
PARTIES = (MOVER, SOURCE, SOURCE + STORE, TARGET, TARGET + STORE)


@dataclass(frozen=True, slots=True)
class Round:
    """One move of all, and what happens in it.

    Args:
        cuts: one after the other; places and victims are roles.
        stops: whether an agent is stopped behind each step when the first happens.
    """

    cuts: tuple[Cut, ...] = ()
    stops: bool = True

    def __str__(self) -> str:
        return ", then ".join(map(str, self.cuts)) or "no cut"


@dataclass(frozen=True, slots=True)
class MovePlan:
    """The plan of a run.

    Args:
        seed: of everything that is drawn.
        rounds: one after the other, there and back.
        stale: senders that know the first relay alone.
        others: senders at the second.
        rate: of letters a second, of each sender.
        runners: agents that are not stopped and run into the cut.
        repeats: of each round, envelopes acked before that are submitted at the other relay.
        takes: what an agent takes at either relay on its way.
        hasty: agents publish without waiting for the digest.
        mutants: what both relays do otherwise.
        ends_s: the longest from a cut to the end.
    """

    seed: int
    rounds: Sequence[Round]
    stale: int = 4
    others: int = 2
    rate: float = 12.0
    runners: int = 1
    repeats: int = 6
    takes: int = 12
    hasty: bool = False
    mutants: tuple[str, ...] = ()
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
    late: list[str] = field(default_factory=list)
    ended_s: list[float] = field(default_factory=list)
    repeated: int = 0
    took_s: float = 0.0
    logs: str = ""
    relays: Mesh = field(init=False)
    movers: Movers = field(init=False)
    _cuts: Cuts = field(init=False)
    _rng: Random = field(init=False)
    _letters: list[Letters] = field(default_factory=list)
    _began: float = 0.0

    def __post_init__(self) -> None:
        self._rng = Random(self.plan.seed)  # noqa: S311  whims, no keys
        self._cuts = Cuts(self.directory)

    async def __call__(self) -> Verdict:
        """Carry it out; processes are ended whatever happens."""
        began = time.monotonic()
        words = ("-m", "tests.chaos.kill_points_relay")
        arguments = {
            at: (*words, f"relay{at}", str(self.directory), *self.plan.mutants) for at in range(2)
        }
        async with mesh(2, self.directory, arguments=arguments) as self.relays:
            places = [Place(relay.did, relay.url) for relay in self.relays.relays]
            count = len(BOUNDARIES) + self.plan.runners
            self.movers = Movers(self.directory, self.ledger, places, count)
            try:
                await self.relays.start()
                await self._live()
            finally:
                self.movers.kill()
                self.logs = f"{self.relays.log_tails()}\n--- movers\n{self.movers.log_tail()}"
        self.took_s = time.monotonic() - began
        return self._judged()

    async def _live(self) -> None:
        self.movers.tell(hasty=self.plan.hasty, takes=self.plan.takes)
        self.movers.start()
        async with self._busy():
            await self.movers.have_settled()
            self._flow(on=True)
            for number, one in enumerate(self.plan.rounds):
                if not self.late:
                    await self._round(number, one)
            self._flow(on=False)
            if not self.late:
                self._cuts.arm([])
                self._began = time.monotonic()
                await self._take_all("the last of it")
        if not self.late:
            for number in range(self.movers.count):
                await self._stand(number)

    # ------------------------------------------------------------ beside it all

    @contextlib.asynccontextmanager
    async def _busy(self) -> AsyncIterator[None]:
        """Senders send, notes are entered, whoever died is started again."""
        senders = await self._senders()
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(sender.run()) for sender in senders]
            running += [
                tasks.create_task(self.movers.watch()),
                tasks.create_task(self._start_movers_again()),
                *(tasks.create_task(self._start_again(relay)) for relay in self.relays.relays),
            ]
            try:
                yield
            finally:
                for task in running:
                    task.cancel()

    async def _senders(self) -> list[StaleSender]:
        """Each with an inbox at its relay, of which the other one knows: for bounces."""
        made: list[StaleSender] = []
        a, b = self.relays.relays
        for relay, other, many in ((a, b, self.plan.stale), (b, a, self.plan.others)):
            mine = [self._sender(relay) for _ in range(many)]
            for one in mine:
                await publish(one.key, relay)
                async with speaker(relay.url, one.key):
                    pass
            for one in mine:
                await wait_until(partial(knows, other, one.key.did), REACHED_S, "it is known")
            made += mine
        return made

    def _sender(self, relay: MeshRelay) -> StaleSender:
        letters = Letters(self.movers.dids, self._fork(), self.plan.rate)
        self._letters.append(letters)
        key, rng = new_key(), self._fork()
        relays = [one.did for one in self.relays.relays]
        return StaleSender(relays, key, relay, self.ledger, rng, letters=letters, habits=STEADY)

    def _fork(self) -> Random:
        return Random(self._rng.random())  # noqa: S311  as above

    def _flow(self, *, on: bool) -> None:
        for letters in self._letters:
            letters.flows = on

    async def _start_again(self, relay: MeshRelay) -> None:
        """Start killed nodes again, as a supervisor does; a node brings its store back."""
        while True:
            if not relay.runs:
                relay.killed_at.append(time.monotonic())
                relay.is_ready = False
                with contextlib.suppress(AssertionError):
                    await relay.start()
            self._tell_pids()
            await asyncio.sleep(LOOK_S)

    async def _start_movers_again(self) -> None:
        while True:
            if not self.movers.runs:
                self.movers.died()
                self.movers.start()
            await asyncio.sleep(LOOK_S)

    def _tell_pids(self) -> None:
        self._cuts.tell({**self.relays.pids(), MOVER: self.movers.pid})

    # ------------------------------------------------------------ a round

    async def _round(self, number: int, one: Round) -> None:
        source, target = number % 2, (number + 1) % 2
        self._began = time.monotonic()
        await self._cut(one, source, target)
        self.movers.tell(at=target, pause="")
        await self._in_time(lambda: self._have_moved(number + 1), f"all have moved: {one}")
        self.missed += self._cuts.disarm()
        self.happened += self._cuts.happened()
        if self.late:
            return
        with contextlib.suppress(AgentError):
            self.repeated += await repeat_elsewhere(
                self.ledger, self.relays[target], self.movers.dids, self._rng, self.plan.repeats
            )
        if number % 2:
            self._flow(on=False)
            await self._take_all(str(one))
            self._flow(on=True)
        self.ended_s.append(time.monotonic() - self._last_cut())

    async def _cut(self, one: Round, source: int, target: int) -> None:
        """Let some run into the first one while the others are stopped."""
        self.movers.behind.clear()
        if one.stops:
            for agent, step in enumerate(BOUNDARIES):
                self.movers.set(agent, at=target, pause=step)
            self.movers.write()
            await wait_until(self._are_stopped, REACHED_S, f"all are behind their steps: {one}")
        self._cuts.arm([_placed(cut, source) for cut in one.cuts])
        for agent in range(len(BOUNDARIES), self.movers.count):
            self.movers.set(agent, at=target, pause="")
        self.movers.write()
        if one.cuts:
            with contextlib.suppress(AssertionError):
                await wait_until(self._is_cut_or_passed, REACHED_S, "a cut")

    def _is_cut_or_passed(self) -> bool:
        """It happened; or who could run into it is past it: then another one may."""
        runners = range(len(BOUNDARIES), self.movers.count)
        others = min(self.movers.moves.values())
        passed = all(self.movers.moves[agent] > others for agent in runners)
        return passed or bool(self._cuts.happened())

    def _last_cut(self) -> float:
        """Return when the last one of this round was; or when the round began."""
        return max((one.at for one in self._cuts.happened()), default=self._began)

    def _are_stopped(self) -> bool:
        behind = self.movers.behind
        return all(behind.get(agent) == step for agent, step in enumerate(BOUNDARIES))

    def _have_moved(self, times: int) -> bool:
        return all(moves == times for moves in self.movers.moves.values())

    async def _take_all(self, what: str) -> None:
        self.movers.tell(drains=True)
        await self._in_time(self._is_over, f"all that was sent has its end: {what}")
        self.movers.tell(drains=False)

    async def _in_time(self, condition: Callable[[], bool], what: str) -> None:
        """Report what has not come true and end the run: the verdict names what is missing."""
        while not condition():
            after = time.monotonic() - self._last_cut()
            if after > self.plan.ends_s:
                self.late.append(f"not {after:.0f} s after the last cut: {what}")
                return
            await asyncio.sleep(LOOK_S)

    # ------------------------------------------------------------ the truth

    def _open(self) -> list[str]:
        """Return what was sent and has neither come to its end nor come to nothing."""
        ledger = self.ledger
        answered = {(item.agent, item.eid) for item in (*ledger.answers, *ledger.ended)}
        told = {item.eid for item in ledger.bounces}
        refused = {item.eid for item in (*ledger.answers, *ledger.ended) if item.how == "refused"}
        return [
            eid
            for eid, sent in ledger.sent.items()
            if sent.receipted is None
            or (sent.envelope.to, eid) not in answered
            or (eid in refused and eid not in told)
        ]

    def _is_over(self) -> bool:
        return not self._open()

    async def _stand(self, number: int) -> None:
        """A last login: nothing waits."""
        home = self.relays[len(self.plan.rounds) % 2]
        async with speaker(home.url, self.movers.keys[number]) as who:
            pending = who.ready.welcome.pending.count
        if pending:
            self.ledger.surprise(f"{pending} wait for agent {number} at its home")

    def _judged(self) -> Verdict:
        ledger = self.ledger
        for item in ledger.answers:
            # all inboxes are empty: what an agent sent before it lost its connection arrived
            ledger.states.setdefault(item.eid, item.how)
        # an inbox has another history, and an envelope another place, at each relay
        ledger.epochs.clear()
        ledger.receipts = [replace(item, place=None) for item in ledger.receipts]
        ledger.surprises = [what for what in ledger.surprises if not self._is_excused(what)]
        return judge(ledger)

    def _is_excused(self, what: str) -> bool:
        """Excuse a lost connection of a sender: nobody outside knows who was killed."""
        return " lost its connection: " in what and bool(self.happened)

    def summary(self) -> str:
        """One line of numbers."""
        ledger = self.ledger
        marked = sum(item.redelivered for item in ledger.handed)
        ended = sorted(self.ended_s) or [0.0]
        return (
            f"seed {self.plan.seed}: {sum(self.movers.moves.values())} moves, "
            f"{len(self.happened)} cuts ({len(self.missed)} not reached), "
            f"{len(ledger.sent)} sent, {ledger.receipted} accepted, "
            f"{len(self._open())} without an end, {len(ledger.bounces)} bounced, "
            f"{len(ledger.handed)} times handed over, {marked} marked, "
            f"{self.repeated} stored twice; a round p50 {ended[len(ended) // 2]:.1f} s, "
            f"worst {ended[-1]:.1f} s; {self.took_s:.0f} s"
        )


def _placed(cut: Cut, source: int) -> Cut:
    """By names, in the place of roles."""
    names = {SOURCE: f"relay{source}", TARGET: f"relay{1 - source}", MOVER: MOVER}
    role, store, _ = cut.victim.partition(STORE)
    return Cut(names[cut.where], cut.point, names[role] + store, cut.nth)
