"""Agents that speak frames by hand and go on by themselves, whatever happens to their relay.

An agent reconnects after each lost connection and resends what has no answer. It may drop a
connection or be absent. Any other end needs a kill as its cause; otherwise it is a surprise.

::

    run ──▶ dial, log in ──▶ send ⇄ receive ──lost, dropped, left──▶ pause ──▶ dial …
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from random import Random

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import WebSocketException

from relay.protocol import frames
from relay.protocol.client_session import Ready
from relay.protocol.did import SigningKey
from relay.protocol.errors import (
    ErrorCode,
    RelayError,
)
from relay.protocol.frames import (
    Acked,
    Bye,
    Deliver,
    Error,
    Frame,
    Gap,
    Submitted,
)
from relay.protocol.ids import Did
from tests.chaos.incoming import Incoming
from tests.chaos.ledger import Ledger
from tests.chaos.outgoing import Outgoing
from tests.chaos.restarting_relay import RelayProcess
from tests.chaos.traffic_plan import (
    UNRULY,
    Habits,
    Letter,
)
from tests.support.nodes import dial, log_in
from tests.support.patience import within

TOLD_S = 20.0
NO_LETTERS: tuple[Letter, ...] = ()


class Dropped(Exception):  # noqa: N818  no error: the agent wants it so
    """The agent drops its connection."""


class TakenOver(Exception):  # noqa: N818  as above
    """The agent logs in again, beside a connection that it still has."""


class Agent:
    """One agent: a sender, a recipient, or both.

    Args:
        key: who it is.
        relay: its relay.
        ledger: where it enters what it sees.
        rng: draws its whims.
        letters: what it sends.
        habits: how it behaves.
    """

    def __init__(
        self,
        key: SigningKey,
        relay: RelayProcess,
        ledger: Ledger,
        rng: Random,
        *,
        letters: Iterator[Letter] | None = None,
        habits: Habits = UNRULY,
    ) -> None:
        self.key = key
        self.outgoing = Outgoing(key, letters or iter(NO_LETTERS), ledger, rng, habits)
        self.incoming = Incoming(key.did, ledger, rng, habits)
        self.resumed_after: list[float] = []
        self.drops = 0
        self.takeovers = 0
        self._relay = relay
        self._ledger = ledger
        self._rng = rng
        self._habits = habits
        self._sockets: set[ClientConnection] = set()
        self._present = asyncio.Event()
        self._present.set()
        self._was_hit = False

    # ------------------------------------------------------------ life

    async def run(self) -> None:
        """Converse until cancelled."""
        async with asyncio.TaskGroup() as older:
            while True:
                await self._present.wait()
                start, was_ready = self._relay.starts, self._relay.is_ready
                try:
                    await self._converse(older)
                except Dropped:
                    self.drops += 1
                except (OSError, TimeoutError, WebSocketException, RelayError) as exc:
                    was_killed = len(self._relay.killed_at) >= start
                    self._was_hit = self._was_hit or was_killed
                    if not was_killed and was_ready and self._present.is_set():
                        self._ledger.surprise(f"{self.key.did} lost its connection: {exc!r}")
                self.outgoing.lost()
                await asyncio.sleep(self._rng.uniform(0.0, 0.2))

    def leave(self) -> None:
        """Go offline, without a word."""
        self._present.clear()
        for socket in self._sockets:
            socket.transport.abort()

    def come_back(self) -> None:
        """Go online."""
        self._was_hit = False
        self._present.set()

    async def _converse(self, older: asyncio.TaskGroup) -> None:
        socket = await dial(self._relay.url)
        self._sockets.add(socket)
        try:
            await self._talk(socket)
        except TakenOver:
            self.takeovers += 1
            older.create_task(self._hear_out(socket, self.incoming.session))
        except BaseException:
            await self._hang_up(socket)
            raise
        else:
            await self._hang_up(socket)

    async def _hang_up(self, socket: ClientConnection) -> None:
        self._sockets.discard(socket)
        socket.transport.abort()
        await socket.wait_closed()

    async def _talk(self, socket: ClientConnection) -> None:
        ready = await self._log_in(socket)
        if ready is None or not self._present.is_set():
            return
        self.incoming.opened(ready.welcome)
        while True:
            await self._speak(socket)
            await self._hear(socket, ready.relay)

    async def _hear_out(self, socket: ClientConnection, session: int) -> None:
        """Read an older connection to its end: the relay must say that it is superseded."""
        try:
            async with within(TOLD_S):
                while True:
                    frame = frames.parse(await socket.recv(decode=False), "relay")
                    if isinstance(frame, Deliver):
                        self.incoming.deliver_late(frame, Did(self._relay.did), session)
                    if isinstance(frame, Bye):
                        break
            if frame.error is not ErrorCode.SUPERSEDED:
                self._ledger.surprise(f"an older session of {self.key.did} was told {frame}")
        except TimeoutError:
            self._ledger.surprise(f"session {session} of {self.key.did} goes on beside a newer one")
        except (OSError, WebSocketException):
            return  # killed, or this agent left
        finally:
            await self._hang_up(socket)

    async def _log_in(self, socket: ClientConnection) -> Ready | None:
        try:
            ready = await log_in(socket, self._relay.url, self.key)
        except RelayError as exc:
            if exc.code is ErrorCode.STORAGE_UNAVAILABLE:
                return None  # while the store is away nobody can log in
            raise
        if self._was_hit:
            self.resumed_after.append(time.monotonic() - self._relay.killed_at[-1])
            self._was_hit = False
        return ready

    # ------------------------------------------------------------ speak and hear

    async def _speak(self, socket: ClientConnection) -> None:
        now = time.monotonic()
        ack = self.incoming.next_ack(now)
        if ack is not None:
            await _say(socket, ack)
            self._perhaps_drop()
        while (submit := self.outgoing.next_submit(now)) is not None:
            await _say(socket, submit)

    def _perhaps_drop(self) -> None:
        if self._rng.random() < self._habits.drops:
            raise Dropped

    async def _hear(self, socket: ClientConnection, relay: Did) -> None:
        now = time.monotonic()
        timers = [at for at in (self.incoming.due, self.outgoing.not_before) if at > now]
        delay = min(timers) - now if timers else None
        try:
            async with asyncio.timeout(delay):
                data = await socket.recv(decode=False)
        except TimeoutError:
            return
        self._take(frames.parse(data, "relay"), relay)

    def _take(self, frame: Frame, relay: Did) -> None:
        now = time.monotonic()
        match frame:
            case Submitted():
                self.outgoing.answered(frame, relay, now)
            case Deliver():
                self.incoming.deliver(frame, relay, now)
                self._perhaps_drop()
                if self._rng.random() < self._habits.takeovers:
                    raise TakenOver
            case Acked():
                self.incoming.acked(frame)
            case Gap():
                self.incoming.gap(frame)
            case Error(ErrorCode.STORAGE_UNAVAILABLE, _, retry_after):
                self.incoming.ack_again(now, retry_after)
            case Bye(code, detail):
                raise RelayError(code, detail)
            case _:
                self._ledger.surprise(f"{self.key.did} was told {frame}")


async def _say(socket: ClientConnection, frame: Frame) -> None:
    await socket.send(frames.encode(frame), text=True)
