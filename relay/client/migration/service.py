"""The migrations of a running agent: sessions close and open, and its program notices nothing.

Invariants: one runner works at a time. A migration that no caller waits for continues by itself,
also in a new process. The steps are in :mod:`relay.client.migration.runner`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from relay.client._util import wait_at_most
from relay.client.directory.publish import put
from relay.client.errors import again, bug_of, of, typed
from relay.client.migration.runner import Host, MigrationOptions, MigrationRunner
from relay.client.session.pool import Sessions
from relay.client.state.migration_log import MigrationReport
from relay.protocol.errors import ErrorCode, RelayError
from relay.protocol.ids import Did, Eid

FLUSH_TIMEOUT_S: Final = 1.0
LOGIN_TIMEOUT_S: Final = 10.0
RETRY_PAUSE_S: Final = 2.0
NOTIFY_PAUSE_S: Final = 60.0


class MigrationService(Host):
    """Migrates one running agent.

    Args:
        sessions: of the agent.
    """

    def __init__(self, sessions: Sessions) -> None:
        super().__init__(sessions.key, sessions.state, sessions.insecure_networks)
        self._sessions = sessions
        self._lock = asyncio.Lock()
        self._callers = 0
        self._wake = asyncio.Event()
        self._own_task: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ for the program

    async def migrate(self, url: str, options: MigrationOptions) -> MigrationReport:
        """Migrate to ``url``; see :meth:`relay.client.Agent.migrate`."""
        runner = MigrationRunner(self, options)
        return await self._exclusive(lambda: runner.start(url), options.deadline_s)

    async def cancel(self, options: MigrationOptions) -> None:
        """Cancel the migration; see :meth:`relay.client.Agent.cancel_migration`."""
        runner = MigrationRunner(self, options)
        await self._exclusive(runner.cancel, options.deadline_s)

    async def _exclusive(
        self, work: Callable[[], Coroutine[Any, Any, MigrationReport]], timeout_s: float
    ) -> MigrationReport:
        if self._sessions.ended is not None:
            raise again(self._sessions.ended)
        self._callers += 1
        try:
            if self._own_task is not None:
                self._own_task.cancel()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._lock.acquire()
            except TimeoutError as exc:
                detail = "another call of migrate is under way"
                raise typed(ErrorCode.MIGRATING, detail) from exc
            try:
                return await work()
            finally:
                self._lock.release()
        finally:
            self._callers -= 1
            self._wake.set()

    # ------------------------------------------------------------ by itself

    async def run(self) -> None:
        """Continue migrations that no caller waits for; until cancelled."""
        while True:
            self._wake.clear()
            if self._callers or self.state.migration.pending is None:
                await self._notify_old_home()
                await self._wake.wait()
                continue
            self._own_task = asyncio.ensure_future(self._resume())
            try:
                await asyncio.wait([self._own_task])
            finally:
                self._own_task.cancel()
                await asyncio.wait([self._own_task])
            self._own_task = None
            await wait_at_most(self._wake, RETRY_PAUSE_S)

    async def _resume(self) -> None:
        try:
            async with self._lock:
                if self.state.migration.pending is not None:
                    await MigrationRunner(self).resume()
        except RelayError as exc:
            self._sessions.warn(of(exc))
        except Exception as bug:  # noqa: BLE001  it is retried; the agent continues
            self._sessions.warn(bug_of(bug, "the migration"))

    async def _notify_old_home(self) -> None:
        """Send the record to an abandoned relay until it answers.

        That relay may know no other relay that has the record, and hands nothing over without it.
        """
        log = self.state.migration
        while not self._wake.is_set() and log.report is not None and log.report.waiting is None:
            if await self._publish_at(log.report.source.url):
                return
            await wait_at_most(self._wake, NOTIFY_PAUSE_S)

    async def _publish_at(self, url: str) -> bool:
        record = self.state.newest_record
        try:
            if record is not None:
                await put(self.origin(url), record)
        except RelayError:
            return False
        except Exception as bug:  # noqa: BLE001  it is retried; the agent continues
            bug_of(bug, f"telling {url} of the move")
            return False
        return True

    # ------------------------------------------------------------ hooks of the runner

    async def on_freeze(self, source: Did) -> None:
        """Send the acks to the source, and close the session there."""
        there = [one for one in self._sessions.conversations if one.relay == source]
        if any(one.line is not None for one in there):
            await self._sessions.inbox.flush(FLUSH_TIMEOUT_S)
        for one in there:
            await one.gate.rest()

    def on_cancelled(self) -> None:
        """Log in at the source again."""
        for one in self._sessions.conversations:
            one.gate.reopen()
        self._sessions.homes.announce()

    async def on_published(self) -> None:
        """Wait for the login at the new home."""
        self._sessions.follow_move()
        try:
            async with asyncio.timeout(LOGIN_TIMEOUT_S):
                while not self._is_home() and self._sessions.ended is None:
                    await self._sessions.changed()
        except TimeoutError:
            # the reconnects continue; what is copied meanwhile waits at the new home
            return

    def _is_home(self) -> bool:
        return any(
            one.line is not None and one.line.ready.welcome.inbox
            for one in self._sessions.conversations
            if one.relay is not None and self._sessions.homes.is_home(one.relay)
        )

    def on_manifest(self, eids: frozenset[Eid] | None) -> None:
        """Drop what was delivered by the source and will not arrive at the new home."""
        failure = None
        if eids is None:
            detail = "its relay is out of reach; noted here, and acked unseen when it comes again"
            failure = typed(ErrorCode.PEER_UNREACHABLE, detail)
        self._sessions.inbox.drop_missing(eids or frozenset(), failure)
