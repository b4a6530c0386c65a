"""A running agent that changes relays: sessions close and open, and its program notices nothing.

Rules of the file: one try at a time; where the program does not wait for one, or its process began
while one was under way, it goes on by itself. What is done is in
:mod:`relay.client.migration.runner`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Protocol

from relay.client.directory.own_record import Homes
from relay.client.directory.publish import put
from relay.client.errors import AgentError, again, bug_of, of, typed
from relay.client.http import origin as origins
from relay.client.http.origin import Origin
from relay.client.inbox.inbox import Inbox
from relay.client.migration import orders
from relay.client.migration.runner import (
    Migration,
    Wish,
)
from relay.client.session.channel import Conversation
from relay.client.state.agent_state import AgentState
from relay.client.state.migration_log import MigrationReport, MigrationState
from relay.protocol.did import SigningKey
from relay.protocol.errors import (
    ErrorCode,
    RelayError,
)
from relay.protocol.ids import (
    Did,
    Eid,
)

FLUSH_S: Final = 1.0
ARRIVE_S: Final = 10.0
AGAIN_S: Final = 2.0
REMIND_S: Final = 60.0


class Company(Protocol):
    """What a migration needs of the agent."""

    key: SigningKey
    state: AgentState
    insecure_networks: Sequence[str]
    conversations: list[Conversation]
    homes: Homes
    inbox: Inbox

    @property
    def ended(self) -> AgentError | None:
        """Why the agent is over."""
        ...

    async def changed(self) -> None:
        """Wait until a connection comes or goes, or the agent is over."""
        ...

    def follow_move(self) -> None:
        """Converse with the homes that the newest record names, and with none that it left."""
        ...

    def warn(self, warning: AgentError) -> None:
        """Tell the program something that does not end the agent."""
        ...


class Migrations:
    """The migrations of one agent; see :class:`relay.client.migration.runner.Agency`."""

    def __init__(self, company: Company) -> None:
        self.key = company.key
        self.state = company.state
        self._company = company
        self._turn = asyncio.Lock()
        self._asked = 0
        self._due = asyncio.Event()
        self._own: asyncio.Task[None] | None = None

    @property
    def pending(self) -> MigrationState | None:
        """The one that is under way."""
        return self.state.migration.pending

    def rests(self, relay: Did | None, origin: Origin) -> bool:
        """Whether there is to be no session at a relay just now."""
        move = self.pending
        if move is None or not move.pauses_source:
            return False
        source = move.parsed_order.source
        return relay == source.did or (relay is None and str(origin) == source.url)

    # ------------------------------------------------------------ for the program

    async def migrate(self, url: str, wish: Wish) -> MigrationReport:
        """See :meth:`relay.client.Agent.migrate`."""
        migration = Migration(self, wish)
        return await self._in_turn(lambda: migration.to(url), wish.deadline_s)

    async def cancel(self, wish: Wish) -> None:
        """See :meth:`relay.client.Agent.cancel_migration`."""
        migration = Migration(self, wish)
        await self._in_turn(migration.back, wish.deadline_s)

    async def _in_turn(
        self, work: Callable[[], Coroutine[Any, Any, MigrationReport]], seconds: float
    ) -> MigrationReport:
        if self._company.ended is not None:
            raise again(self._company.ended)
        self._asked += 1
        try:
            if self._own is not None:
                self._own.cancel()
            try:
                async with asyncio.timeout(seconds):
                    await self._turn.acquire()
            except TimeoutError as exc:
                detail = "another call of migrate is under way"
                raise typed(ErrorCode.MIGRATING, detail) from exc
            try:
                return await work()
            finally:
                self._turn.release()
        finally:
            self._asked -= 1
            self._due.set()

    # ------------------------------------------------------------ by itself

    async def run(self) -> None:
        """Go on with what nobody waits for; until cancelled."""
        while True:
            self._due.clear()
            if self._asked or self.pending is None:
                await self._remind()
                await self._due.wait()
                continue
            self._own = asyncio.ensure_future(self._go_on())
            try:
                await asyncio.wait([self._own])
            finally:
                self._own.cancel()
                await asyncio.wait([self._own])
            self._own = None
            await self._pause()

    async def _remind(self) -> None:
        """Show a relay that was given up where the agent lives, until it has heard it.

        It may know no other relay that could tell it, and hands nothing over before.
        """
        moves = self.state.migration
        while not self._due.is_set() and moves.report is not None and moves.report.waiting is None:
            if await self._is_told(moves.report.source.url):
                return
            await self._pause(REMIND_S)

    async def _is_told(self, url: str) -> bool:
        record = orders.newest(self.state)
        try:
            if record is not None:
                await put(self.origin(url), record)
        except RelayError:
            return False
        except Exception as bug:  # noqa: BLE001  as above
            bug_of(bug, f"telling {url} of the move")
            return False
        return True

    async def _go_on(self) -> None:
        try:
            async with self._turn:
                if self.pending is not None:
                    await Migration(self).resume()
        except RelayError as exc:
            self._company.warn(of(exc))
        except Exception as bug:  # noqa: BLE001  it is tried again; the agent goes on
            self._company.warn(bug_of(bug, "the migration"))

    async def _pause(self, seconds: float = AGAIN_S) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._due.wait()
        except TimeoutError:
            return

    # ------------------------------------------------------------ the agency

    def origin(self, url: str) -> Origin:
        """See :class:`relay.client.migration.runner.Agency`."""
        return origins.parse(url, insecure_networks=self._company.insecure_networks)

    async def leave(self, source: Did) -> None:
        """See :class:`relay.client.migration.runner.Agency`."""
        there = [one for one in self._company.conversations if one.relay == source]
        if any(one.line is not None for one in there):
            await self._company.inbox.flush(FLUSH_S)
        for one in there:
            await one.gate.rest()

    def stay(self) -> None:
        """See :class:`relay.client.migration.runner.Agency`."""
        for one in self._company.conversations:
            one.gate.reopen()
        self._company.homes.announce()

    async def arrive(self) -> None:
        """See :class:`relay.client.migration.runner.Agency`."""
        self._company.follow_move()
        try:
            async with asyncio.timeout(ARRIVE_S):
                while not self._is_home() and self._company.ended is None:
                    await self._company.changed()
        except TimeoutError:
            # it goes on dialling; what is copied meanwhile waits there
            return

    def _is_home(self) -> bool:
        return any(
            one.line is not None and one.line.ready.welcome.inbox
            for one in self._company.conversations
            if one.relay is not None and self._company.homes.is_home(one.relay)
        )

    def expect(self, coming: frozenset[Eid] | None) -> None:
        """See :class:`relay.client.migration.runner.Agency`."""
        failure = None
        if coming is None:
            detail = "its relay is out of reach; noted here, and acked unseen when it comes again"
            failure = typed(ErrorCode.PEER_UNREACHABLE, detail)
        self._company.inbox.expect(coming or frozenset(), failure)
