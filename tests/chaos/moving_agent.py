"""Agents that move until they are killed: ``python -m tests.chaos.moving_agent DIR``.

One process runs several agents. Each follows the goals of the run step by step, over the wire and
without an SDK. Before each step it writes down what it will send, so that after a kill it sends the
same again. Each line of its journal is an entry of the ledger, with arguments.

::

    visit the old home ─▶ ordered ─▶ prepare ─▶ freeze ─▶ publish ─▶ tell ─▶ login ─▶ empty
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from websockets.exceptions import WebSocketException

from relay.client import AgentError
from relay.protocol import endpoint_record
from relay.protocol.did import SigningKey
from relay.protocol.errors import (
    ErrorCode,
    RelayError,
)
from relay.protocol.frames import (
    Ack,
    Acked,
    Deliver,
    Gap,
)
from relay.protocol.ids import (
    Did,
    Eid,
    Timestamp,
)
from tests.chaos.incoming import Incoming
from tests.chaos.journal import NoteWriter
from tests.chaos.kill_points import Cuts
from tests.chaos.moving_agent_files import (
    Goal,
    Goals,
    Move,
    Place,
    Standing,
)
from tests.chaos.traffic_plan import CALM
from tests.support.migration_steps import Traveller
from tests.support.nodes import Speaker, speaker

LOOK_S = 0.02
AGAIN_S = 0.1
QUIET_S = 0.3
NOT_YET = frozenset({
    ErrorCode.STORAGE_UNAVAILABLE, ErrorCode.DRAINING, ErrorCode.OVERLOADED, ErrorCode.MIGRATING,
    ErrorCode.RATE_LIMITED, ErrorCode.PEER_UNREACHABLE,
})  # fmt: skip
"""A relay that was killed a moment ago may say so; any other no is a surprise."""

PICKY = replace(CALM, picks=1.0)
ROOM = {"count": 1_000, "size": 4_000_000, "largest": 100_000}


class Noting:
    """Stands in for a ledger: what is entered becomes notes."""

    def __init__(self, note: NoteWriter) -> None:
        self._note = note

    def find(self, _: Eid) -> None:
        """Resolve what is uncertain by asking the relays."""

    def see_epoch(self, *_: object) -> None:
        """Each relay has its own."""

    def hand_over(self, agent: Did, eid: Eid, **facts: Any) -> None:
        """As in the ledger; the bytes are proved by their eid and were verified."""
        facts.pop("wire")
        self._note("hand_over", [agent, eid], facts)

    def end(self, agent: Did, eid: Eid, how: str, *, session: int) -> None:
        """As in the ledger."""
        self._note("end", [agent, eid, how], {"session": session})

    def bounce(self, *words: str) -> None:
        """As in the ledger."""
        self._note("bounce", list(words), {})

    def surprise(self, what: str) -> None:
        """As in the ledger."""
        self._note("surprise", [what], {})

    def answering(self, agent: Did, eid: Eid, how: str) -> None:
        """As in the ledger."""
        self._note("answering", [agent, eid, how], {})


class Mover:
    """One agent."""

    def __init__(self, directory: Path, number: int, ledger: Noting, note: NoteWriter) -> None:
        self._goals = Goals(directory / "goals.json")
        self._cuts = Cuts(directory)
        self._file = directory / f"mover{number}.json"
        self._number = number
        self._ledger = ledger
        self._note = note
        self._rng = Random(f"{directory} {number}")  # noqa: S311  whims, no keys
        _, seeds, _ = self._goals.read()
        self._key = SigningKey(bytes.fromhex(seeds[number]))
        self._me = Standing.read(self._file, self._goal.at)

    @property
    def _goal(self) -> Goal:
        return self._goals.read()[2][self._number]

    def _place(self, number: int) -> Place:
        return self._goals.read()[0][number]

    async def run(self) -> None:
        """Follow the goals until killed."""
        if not self._me.record:
            await self._settle()
        while True:
            goal = self._goal
            if self._me.move is not None or self._me.at != goal.at:
                await self._move(goal)
            elif goal.drains:
                await self._drain()
            else:
                await asyncio.sleep(LOOK_S)

    async def _settle(self) -> None:
        """The first record, and an inbox."""
        at = self._place(self._me.at)
        record = endpoint_record.sign(self._key, [at.home], now=_now())
        me = Traveller(self._key, at.home, at.home, record)
        await self._until_done(partial(me.publish, at.home, record))
        self._me.record = record
        self._me.write(self._file)
        await self._visit(at, 0)
        self._say("settled")

    # ------------------------------------------------------------ moving

    async def _move(self, goal: Goal) -> None:
        me = self._me
        if me.move is None:
            await self._visit(self._place(me.at), goal.takes)
            signed = Traveller(
                self._key, self._place(me.at).home, self._place(goal.at).home, me.record
            )
            me.move = Move(me.at, goal.at, signed.order, signed.record, ["ordered"])
            me.write(self._file)
            await self._behind("ordered")
        move = me.move
        assert move is not None
        while step := move.step:
            self._cuts.reached("mover", f"before {step}")
            await getattr(self, f"_{step}")(move)
            move.done.append(step)
            me.write(self._file)
            await self._behind(step)
        me.at, me.record, me.move, me.moves = move.target, move.record, None, me.moves + 1
        me.write(self._file)
        self._say("moved", me.moves)

    async def _behind(self, step: str) -> None:
        """A place to be cut, or to wait."""
        self._cuts.reached("mover", f"after {step}")
        self._say("behind", step)
        while self._goal.pause == step:  # noqa: ASYNC110  a file, written by another process
            await asyncio.sleep(LOOK_S)

    async def _prepare(self, move: Move) -> None:
        await self._until_done(partial(self._traveller(move).prepare, **ROOM))

    async def _freeze(self, move: Move) -> None:
        while True:
            statement = await self._until_done(self._traveller(move).freeze)
            if statement.digest_acked or self._goal.hasty:
                return
            await asyncio.sleep(AGAIN_S)

    async def _publish(self, move: Move) -> None:
        me = self._traveller(move)
        await self._until_done(partial(me.publish, me.target))

    async def _tell(self, move: Move) -> None:
        me = self._traveller(move)
        await self._until_done(partial(me.publish, me.source))

    async def _login(self, move: Move) -> None:
        await self._visit(self._place(move.target), self._goal.takes)

    async def _empty(self, move: Move) -> None:
        """Until the source says that nothing waits there any more."""
        me = self._traveller(move)
        while True:
            statement = await self._until_done(partial(me.state, me.source))
            if not statement.counters.is_balanced:
                self._ledger.surprise(
                    f"{me.source.url} does not account for all: {statement.counters}"
                )
            if not statement.counters.waiting:
                return
            await asyncio.sleep(AGAIN_S)

    def _traveller(self, move: Move) -> Traveller:
        """Return a client that sends what was signed when the move began."""
        source, target = (self._place(at).home for at in (move.source, move.target))
        me = Traveller(self._key, source, target, self._me.record)
        me.order, me.record = move.order, move.record
        return me

    async def _until_done(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """Ask until there is an answer."""
        errors: set[str] = set()
        while True:
            try:
                return await ask()
            except AgentError as exc:
                if exc.code not in NOT_YET and str(exc) not in errors:
                    errors.add(str(exc))
                    self._ledger.surprise(f"{self._key.did} in {self._me.move}: {exc!r}")
            await asyncio.sleep(AGAIN_S)

    # ------------------------------------------------------------ sessions

    async def _visit(self, place: Place, most: int) -> None:
        """Take up to so many, ack some of them, and leave the rest without a word."""
        while True:
            try:
                async with speaker(place.url, self._key) as who:
                    await self._take(who, place, most)
            except (OSError, TimeoutError, WebSocketException, RelayError) as exc:
                self._look_at(exc)
                await asyncio.sleep(AGAIN_S)
            else:
                return

    async def _take(self, who: Speaker, place: Place, most: int) -> None:
        incoming = self._opened(who, replace(PICKY))
        count = 0
        while count < min(most, who.ready.welcome.pending.count):
            match await who.hear(Deliver, Gap):
                case Deliver() as frame:
                    incoming.deliver(frame, Did(place.did), time.monotonic())
                    count += len(frame.items)
                case Gap() as frame:
                    incoming.gap(frame)
        ack = incoming.next_ack(time.monotonic())
        if ack is not None and (ack.seqs or ack.refuse):
            await self._say_ack(who, incoming, ack)
            incoming.acked(await who.hear(Acked))

    async def _drain(self) -> None:
        """Take and ack all that comes until the goal is another one."""
        place = self._place(self._me.at)
        try:
            async with speaker(place.url, self._key) as who:
                incoming = self._opened(who, CALM)
                while self._goal.drains:
                    await self._hear_some(who, incoming, place)
        except (OSError, TimeoutError, WebSocketException, RelayError) as exc:
            self._look_at(exc)
            await asyncio.sleep(AGAIN_S)

    async def _hear_some(self, who: Speaker, incoming: Incoming, place: Place) -> None:
        try:
            async with asyncio.timeout(QUIET_S):
                frame = await who.hear(Deliver, Gap, Acked)
        except TimeoutError:
            return
        match frame:
            case Deliver():
                incoming.deliver(frame, Did(place.did), time.monotonic())
            case Gap():
                incoming.gap(frame)
            case Acked():
                incoming.acked(frame)
        ack = incoming.next_ack(time.monotonic())
        if ack is not None:
            await self._say_ack(who, incoming, ack)

    def _opened(self, who: Speaker, habits: Any) -> Incoming:
        self._me.sessions += 1
        self._me.write(self._file)
        incoming = Incoming(self._key.did, self._ledger, self._rng, habits)  # type: ignore[arg-type]
        incoming.opened(who.ready.welcome)
        # fences of two relays do not compare
        incoming.session = self._me.sessions
        return incoming

    async def _say_ack(self, who: Speaker, incoming: Incoming, ack: Ack) -> None:
        for entry in incoming._open.values():
            if entry.answered:
                how = "refused" if entry.refuse else "acked"
                self._ledger.answering(self._key.did, entry.eid, how)
        await who.say(ack)

    def _look_at(self, exc: Exception) -> None:
        if isinstance(exc, RelayError) and exc.code not in NOT_YET:
            self._ledger.surprise(f"{self._key.did}: {exc!r}")

    def _say(self, *words: object) -> None:
        self._note(words[0], [self._number, *words[1:]], {})


def _now() -> Timestamp:
    return Timestamp(time.time())


async def main(directory: Path) -> None:
    """Run all agents."""
    note = NoteWriter(directory / "notes")
    _, seeds, _ = Goals(directory / "goals.json").read()
    async with asyncio.TaskGroup() as tasks:
        for number in range(len(seeds)):
            tasks.create_task(Mover(directory, number, Noting(note), note).run())


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
