"""The migrations of a running agent: sessions close and open, and its program notices nothing.

Invariants: one runner works at a time. A migration that no caller waits for continues by itself,
also in a new process. The steps are in :mod:`relay.client.migration.runner`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from relay.client._util import wait_for_event
from relay.client.directory.own_record import OwnRecord, publish
from relay.client.errors import AgentError, bug_of, clone, from_core, make_error
from relay.client.inbox.inbox import Inbox
from relay.client.migration.runner import Host, MigrationOptions, MigrationRunner
from relay.client.session.pool import ChannelPool
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
        pool: the channels of the agent.
        own_record: of the agent.
        inbox: of the agent.
        insecure_networks: CIDRs that may be dialled without TLS.
        warn: called with warnings for the program.
    """

    def __init__(
        self,
        pool: ChannelPool,
        own_record: OwnRecord,
        inbox: Inbox,
        insecure_networks: Sequence[str],
        warn: Callable[[AgentError], None],
    ) -> None:
        super().__init__(own_record.key, own_record.state, insecure_networks)
        self._pool = pool
        self._own_record = own_record
        self._inbox = inbox
        self._warn = warn
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
        if self._pool.ended is not None:
            raise clone(self._pool.ended)
        self._callers += 1
        try:
            if self._own_task is not None:
                self._own_task.cancel()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._lock.acquire()
            except TimeoutError as exc:
                detail = "another call of migrate is under way"
                raise make_error(ErrorCode.MIGRATING, detail) from exc
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
            await wait_for_event(self._wake, RETRY_PAUSE_S)

    async def _resume(self) -> None:
        try:
            async with self._lock:
                if self.state.migration.pending is not None:
                    await MigrationRunner(self).resume()
        except RelayError as exc:
            self._warn(from_core(exc))
        except Exception as bug:  # noqa: BLE001  it is retried; the agent continues
            self._warn(bug_of(bug, "the migration"))

    async def _notify_old_home(self) -> None:
        """Send the record to an abandoned relay until it answers.

        That relay may know no other relay that has the record, and hands nothing over without it.
        """
        log = self.state.migration
        while not self._wake.is_set() and log.report is not None and log.report.waiting is None:
            if await self._publish_at(log.report.source.url):
                return
            await wait_for_event(self._wake, NOTIFY_PAUSE_S)

    async def _publish_at(self, url: str) -> bool:
        record = self.state.newest_record
        try:
            if record is not None:
                await publish(self.origin(url), record)
        except RelayError:
            return False
        except Exception as bug:  # noqa: BLE001  it is retried; the agent continues
            bug_of(bug, f"telling {url} of the move")
            return False
        return True

    # ------------------------------------------------------------ hooks of the runner

    async def on_freeze(self, source: Did) -> None:
        """Send the acks to the source, and close the session there."""
        there = [one for one in self._pool.channels if one.relay == source]
        if any(one.connection is not None for one in there):
            await self._inbox.flush(FLUSH_TIMEOUT_S)
        for one in there:
            await one.control.pause_and_wait()

    def on_cancelled(self) -> None:
        """Log in at the source again."""
        self._pool.resume_all()

    async def on_published(self) -> None:
        """Wait for the login at the new home."""
        self._pool.follow_migration()
        try:
            async with asyncio.timeout(LOGIN_TIMEOUT_S):
                while not self._is_home() and self._pool.ended is None:
                    await self._pool.changed.wait()
        except TimeoutError:
            # the reconnects continue; what is copied meanwhile waits at the new home
            return

    def _is_home(self) -> bool:
        return any(
            one.connection is not None and one.is_home
            for one in self._pool.channels
            if one.relay is not None and self._own_record.is_home(one.relay)
        )

    def on_manifest(self, eids: frozenset[Eid] | None) -> None:
        """Drop what was delivered by the source and will not arrive at the new home."""
        failure = None
        if eids is None:
            detail = "its relay is out of reach; noted here, and acked unseen when it comes again"
            failure = make_error(ErrorCode.PEER_UNREACHABLE, detail)
        self._inbox.drop_missing(eids or frozenset(), failure)
