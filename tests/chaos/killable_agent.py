"""A program over the SDK, run until it is killed: ``python -m tests.chaos.killable_agent FILE``.

It uses only the public SDK. Before and after each call it writes a line to its journal;
``journal.py`` says what each order of lines proves. A new life continues where the journal ends.
The program ends by itself only after SIGTERM, with an empty inbox and an empty outbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from relay.client import Agent, AgentError, Bounce, Message, OutcomeUnknownError, SigningKey
from relay.protocol.ids import (
    Did,
    MessageId,
)
from tests.chaos import sdk_mutants
from tests.chaos.journal import (
    NoteReader,
    NoteWriter,
)
from tests.chaos.traffic_plan import POISON

PATIENCE_S = 60.0
ASK_AGAIN_S = 0.2
QUIET_S = 0.5


@dataclass(frozen=True, slots=True)
class Orders:
    """The orders of a killable agent.

    Args:
        url: its relay.
        name: is part of all that it sends.
        whims: seeds what it draws.
        inboxes: to whom it sends.
        letters: how many envelopes it sends, those not counted that came to nothing.
        poison: share of them that their recipient refuses.
        lanes: how many submits wait at the same time.
        hands: how many handlers run at the same time.
        hasty: share of submits that wait only for an instant.
        long_s: how long one handler in 10 takes; the others take up to a hundredth of it.
        all_long: whether all take so long.
        mutant: which promise the SDK does not keep; empty: none.
        seed: of its signing key, hex.
        notes: its notes.
        state: the SDK's file; None: an SDK without memory.
    """

    url: str
    name: str
    whims: float
    inboxes: tuple[str, ...]
    letters: int
    poison: float = 0.0
    lanes: int = 16
    hands: int = 16
    hasty: float = 0.1
    long_s: float = 0.5
    all_long: bool = False
    mutant: str = ""
    seed: str = ""
    notes: str = ""
    state: str | None = None

    def write(self, path: Path) -> None:
        """Keep them in a file."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Orders:
        """As they were written."""
        return cls(**json.loads(path.read_text()))


@dataclass(slots=True)
class Memory:
    """The state that the journal of earlier lives leads to.

    ``loose``: meant, with no word on what became of it; ``sent``: of what was meant, what counts.
    """

    lives: int = 0
    sent: int = 0
    loose: dict[str, tuple[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> Memory:
        """Read the notes."""
        memory = cls()
        for kind, *words in NoteReader(path):
            if kind == "life":
                memory.lives += 1
            elif kind == "meant":
                memory.sent += 1
                memory.loose[words[0]] = (words[2], words[1])
            elif kind in {"receipt", "left", "withdrawn", "void"}:
                memory.loose.pop(words[0], None)
                memory.sent -= kind in {"withdrawn", "void"}
        return memory


class Mortal:
    """One life."""

    def __init__(self, orders: Orders) -> None:
        path = Path(orders.notes)
        self._orders = orders
        self._memory = Memory.of(path)
        self._rng = Random(f"{orders.whims} {self._memory.lives}")  # noqa: S311  whims, no keys
        self._note = NoteWriter(path)
        self._key = SigningKey(bytes.fromhex(orders.seed))
        self._told_to_end = asyncio.Event()

    async def live(self) -> None:
        """Run until killed, or until asked to end and at rest."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._told_to_end.set)
        self._note("life", self._memory.lives + 1)
        while not self._told_to_end.is_set():
            async with self._open() as me:
                await self._converse(me)
        while not await self._is_at_rest():
            pass
        self._note("over")

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[Agent]:
        state = Path(self._orders.state) if self._orders.state is not None else None
        async with Agent.open(
            self._key, self._orders.url, state=state, open_timeout_s=PATIENCE_S
        ) as me:
            yield me

    async def _converse(self, me: Agent) -> None:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(self._send(me))]
            running += [tasks.create_task(self._receive(me)) for _ in range(self._orders.hands)]
            await self._told_to_end.wait()
            for task in running:
                task.cancel()

    async def _is_at_rest(self) -> bool:
        """One more session; only a fresh login shows that nothing waits on either side."""
        async with self._open() as me:
            assert me.welcome is not None
            if me.welcome.pending.count == 0 and me.unanswered == 0:
                return True
            with contextlib.suppress(TimeoutError):
                while True:
                    async with asyncio.timeout(QUIET_S):
                        message = await anext(me.inbox())
                    await self._handle(message)
        return False

    # ------------------------------------------------------------ send

    async def _send(self, me: Agent) -> None:
        await self._look_after(me)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._orders.lanes):
                tasks.create_task(self._lane(me))

    async def _look_after(self, me: Agent) -> None:
        """Of what an earlier life meant to send: did the SDK take it before that life ended?"""
        while me.unanswered:  # noqa: ASYNC110  what a program can do: it is a number
            await asyncio.sleep(ASK_AGAIN_S)
        for eid, (to, id_) in self._memory.loose.items():
            if await self._state_of(me, to, id_) == "unknown":
                self._note("void", eid)
                self._memory.sent -= 1

    async def _state_of(self, me: Agent, to: str, id_: str) -> str:
        while True:
            try:
                return await me.status(Did(to), MessageId(id_))
            except AgentError:
                await asyncio.sleep(ASK_AGAIN_S)  # the relay or its store is away

    async def _lane(self, me: Agent) -> None:
        while self._memory.sent < self._orders.letters:
            self._memory.sent += 1
            rng = self._rng
            kind = POISON if rng.random() < self._orders.poison else b"food"
            body = b"%b %b %b" % (kind, self._orders.name.encode(), rng.randbytes(32))
            envelope = me.sign(rng.choice(self._orders.inboxes), body)
            is_hasty = rng.random() < self._orders.hasty
            self._note(
                "meant", envelope.eid, envelope.id, envelope.to, envelope.expires_at,
                envelope.wire.decode(), b64encode(body).decode(),
            )  # fmt: skip
            try:
                sent = await me.submit(
                    envelope, deadline_s=rng.uniform(0.0, 0.05) if is_hasty else PATIENCE_S
                )
            except OutcomeUnknownError:
                self._note("left", envelope.eid)
            except AgentError as exc:
                self._refused(envelope.eid, exc)
            else:
                self._note("receipt", sent.eid, sent.to, sent.durability, sent.dup)

    def _refused(self, eid: str, exc: AgentError) -> None:
        if exc.stored != "no":
            self._note("surprise", f"{eid}: {exc!r}, stored: {exc.stored}")
            return
        self._note("withdrawn", eid)
        self._memory.sent -= 1

    # ------------------------------------------------------------ receive

    async def _receive(self, me: Agent) -> None:
        async for message in me.inbox():
            await self._handle(message)

    async def _handle(self, message: Message) -> None:
        ends = None
        if isinstance(message, Bounce):
            ends = [[item.eid, item.reason] for item in message.items]
        body = b64encode(message.body).decode()
        self._note("shown", message.eid, message.redelivered, body, ends)
        is_long = self._orders.all_long or self._rng.random() < 1 / 10
        await asyncio.sleep(self._orders.long_s * (1.0 if is_long else self._rng.random() / 100))
        how = "refused" if message.body.startswith(POISON) else "acked"
        self._note("answering", message.eid, how)
        if how == "refused":
            await message.refuse(POISON.decode())
        else:
            await message.ack()
        self._note("ended", message.eid, how)


def main(words: list[str]) -> None:
    """Live."""
    orders = Orders.read(Path(words[0]))
    sdk_mutants.become(orders.mutant)
    mortal = Mortal(orders)
    try:
        asyncio.run(mortal.live())
    except BaseException as exc:
        mortal._note("surprise", f"{orders.name} ended: {exc!r}")
        raise


if __name__ == "__main__":
    main(sys.argv[1:])
