"""Agents as a program would write them, over the SDK; each lives several short lives.

They know nothing of the wire. An agent believes the SDK and enters what it shows into the ledger.
It leaves some messages without an answer, so that they must come again, marked.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from relay.client import Agent as Sdk
from relay.client import AgentError, Bounce, Message
from relay.protocol.did import SigningKey
from tests.chaos.ledger import Ledger, Sent
from tests.chaos.restarting_relay import RelayProcess
from tests.chaos.traffic_plan import (
    POISON,
    Letter,
)

LANES = 32
LOOK_S = 0.02
QUIET_S = 1.0
RETRY_S = 0.1
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Life:
    """The habits of an agent: messages until it ends, and the share that it never answers.

    It sends ``lanes`` envelopes at once; each lane rests ``rest_s`` after one.
    """

    messages: tuple[int, int] = (100, 400)
    let_go: float = 0.03
    lanes: int = LANES
    rest_s: float = 0.0


class SdkAgent:
    """One agent, opened again and again with the same key."""

    def __init__(
        self,
        key: SigningKey,
        relay: RelayProcess,
        ledger: Ledger,
        rng: Random,
        letters: Iterator[Letter],
        *,
        insecure_networks: Sequence[str] = (),
        state: Path | None = None,
        life: Life | None = None,
    ) -> None:
        self.key = key
        self.relay = relay
        self.lives = 0
        self.resumed_after: list[float] = []
        self._me: Sdk | None = None
        self._insecure_networks = insecure_networks
        self._state = state
        self._ledger = ledger
        self._rng = rng
        self._letters = letters
        self._unanswered: deque[Sent] = deque()
        self._life = life or Life()

    def opened(self) -> AbstractAsyncContextManager[Sdk]:
        """Open it."""
        return Sdk.open(
            self.key, self.relay.url, state=self._state, open_timeout_s=PATIENCE_S,
            insecure_networks=self._insecure_networks,
        )  # fmt: skip

    async def run(self) -> None:
        """Live until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            while True:
                try:
                    async with self.opened() as me:
                        self.lives, self._me = self.lives + 1, me
                        await self._live(me)
                except AgentError as exc:
                    self._ledger.surprise(f"{self.key.did}, life {self.lives}: {exc!r}")
                    await asyncio.sleep(RETRY_S)

    async def _watch(self) -> None:
        """Measure how long after a kill of the node the SDK converses again."""
        seen, was_down = len(self.relay.killed_at), False
        while True:
            is_down = self._me is None or not self._me.is_connected
            kills = len(self.relay.killed_at)
            if was_down and not is_down and kills > seen:
                seen = kills
                self.resumed_after.append(time.monotonic() - self.relay.killed_at[-1])
            was_down = is_down
            await asyncio.sleep(LOOK_S)

    async def _live(self, me: Sdk) -> None:
        """One life: it ends by itself, with all answers durable and all submits undecided."""
        async with asyncio.TaskGroup() as tasks:
            lanes = [tasks.create_task(self._send(me)) for _ in range(self._life.lanes)]
            await self._receive(me)
            for lane in lanes:
                lane.cancel()

    # ------------------------------------------------------------ send

    async def _send(self, me: Sdk) -> None:
        while (sent := self._next(me)) is not None:
            is_answered = False
            try:
                receipt = await me.submit(sent.envelope, deadline_s=PATIENCE_S)
                is_answered = True
            except AgentError as exc:
                self._ledger.surprise(f"{sent.envelope.eid} of {self.key.did}: {exc!r}")
                await asyncio.sleep(RETRY_S)
                continue
            finally:
                if not is_answered:
                    self._unanswered.append(sent)
            self._ledger.receipt(
                receipt.eid, receipt.to, durability=receipt.durability, dup=receipt.dup
            )
            if self._life.rest_s:
                await asyncio.sleep(self._life.rest_s)

    def _next(self, me: Sdk) -> Sent | None:
        if self._unanswered:
            return self._unanswered.popleft()
        letter = next(self._letters, None)
        if letter is None:
            return None
        made = me.sign(letter.to, letter.body)
        sent = self._ledger.submit(me.did, made, letter.body, poison=letter.is_poison)
        sent.maybe_stored = True  # the SDK resends unseen
        return sent

    # ------------------------------------------------------------ receive

    async def _receive(self, me: Sdk) -> None:
        left = self._rng.randint(*self._life.messages)
        messages, ignored = me.inbox(), False
        async with asyncio.TaskGroup() as answers:
            while left:
                # a message that was let go comes only with the next connection
                quiet = asyncio.timeout(QUIET_S if ignored else None)
                try:
                    async with quiet:
                        message = await anext(messages)
                except TimeoutError:
                    return
                left -= 1
                self._enter(message)
                if self._rng.random() < self._life.let_go:
                    ignored = True
                else:
                    answers.create_task(self._answer(message))

    def _enter(self, message: Message) -> None:
        me = self.key.did
        if isinstance(message, Bounce):
            for item in message.items:
                self._ledger.bounce(me, message.eid, item.eid, item.reason)
        self._ledger.hand_over(me, message.eid, redelivered=message.redelivered, body=message.body)

    async def _answer(self, message: Message) -> None:
        if message.body.startswith(POISON):
            await message.refuse("poison")
        else:
            await message.ack()
        how = "refused" if message.body.startswith(POISON) else "acked"
        self._ledger.end(self.key.did, message.eid, how)
