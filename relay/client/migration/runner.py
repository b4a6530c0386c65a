"""The stages of a migration: order, prepare, freeze, digest, publish, copy (GUARANTEES.md M1-M4).

Entry points: :meth:`MigrationRunner.start`, :meth:`~MigrationRunner.resume` and
:meth:`~MigrationRunner.cancel`. Invariants: each stage is saved before its requests are sent, and
may be repeated after a crash. Nothing is published before the target has the digest, unless the
program abandons the source. The statements of the two relays are compared
(:mod:`relay.client.migration.verify`) and trusted only as far as their signatures go. The states
are shown in :mod:`relay.client.state.migration_log`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from relay import clock
from relay.client.directory.own_record import publish
from relay.client.errors import AgentError, make_error
from relay.client.http import origin as origins
from relay.client.http.origin import Origin
from relay.client.migration import orders
from relay.client.migration.handoff import Capacity, HandoffClient
from relay.client.migration.retry import MigrationProgress, OnProgress, RetryUntil, best_effort
from relay.client.migration.verify import MigrationVerifier
from relay.client.state.agent_state import AgentState
from relay.client.state.migration_log import (
    MigrationLog,
    MigrationReport,
    MigrationStage,
    MigrationState,
)
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import EndpointRecord, Home
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import Did, Eid
from relay.protocol.types import Mode

T = TypeVar("T")

DEADLINE_S: Final = 600.0
DEAD_SOURCE_TIMEOUT_S: Final = 5.0
"""A source that the program has abandoned is asked all the same, but only for so long."""
READY: Final = (Mode.INCOMING, Mode.ACTIVE)
"""A target that got ready; ACTIVE: another program of this agent has published already."""
MAX_TRIES: Final = 3
"""Another program of this agent may publish, or order, at the same time."""
_SUPERSEDED: Final = frozenset({ErrorCode.EXPIRED, ErrorCode.STALE_RECORD})
_NO_MIGRATION: Final = "this agent does not change relays just now"


@dataclass(slots=True, eq=False)
class Host:
    """The agent that migrates. This class has no session; a running agent overrides the hooks.

    Args:
        key: of the agent.
        state: of the agent.
        insecure_networks: CIDRs that may be dialled without TLS.
    """

    key: SigningKey
    state: AgentState
    insecure_networks: Sequence[str] = ()

    def origin(self, url: str) -> Origin:
        """Parse the origin of a relay.

        Raises:
            ValueError: it is no origin.
            AgentError: it must not be dialled.
        """
        return origins.parse(url, insecure_networks=self.insecure_networks)

    async def on_freeze(self, source: Did) -> None:
        """Close the session at the source, after its acks; open none until it is cancelled."""

    def on_cancelled(self) -> None:
        """Allow a session at the source again."""

    async def on_published(self) -> None:
        """Log in where the published record says, and nowhere else."""

    def on_manifest(self, eids: frozenset[Eid] | None) -> None:
        """Learn the envelopes that will arrive from the source; None: not known."""


def ignore_progress(_: MigrationProgress) -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class MigrationOptions:
    """Options of one call.

    Args:
        on_progress: called at each step.
        abandon_source: continue without the source if it does not answer at once.
        deadline_s: seconds to go on.
    """

    on_progress: OnProgress = ignore_progress
    abandon_source: bool = False
    deadline_s: float = DEADLINE_S


@dataclass(slots=True)
class MigrationRunner:
    """One call that moves an agent; the next call continues where it ends.

    Args:
        host: the agent.
        options: of the call.
    """

    host: Host
    options: MigrationOptions = field(default_factory=MigrationOptions)
    until: float = field(init=False)

    def __post_init__(self) -> None:
        self.until = clock.monotonic() + self.options.deadline_s

    # ------------------------------------------------------------ entry points

    async def start(self, url: str) -> MigrationReport:
        """Move to ``url``, or continue a move there.

        Raises:
            AgentError: it does not continue; ``.detail`` says what to do.
            ValueError: ``url`` is no origin.
        """
        target = self.host.origin(url)
        pending = self._log.pending
        if pending is not None and pending.stage is MigrationStage.CANCELLING:
            # the next order supersedes this one, so an abandoned source need not learn of it
            is_source = str(target) == pending.parsed_order.source.url
            if is_source or not self.options.abandon_source:
                await self._rollback(pending)
            pending = None
        if pending is None:
            report = orders.completed_report(self.host.state, target)
            if report is not None:
                return report if report.waiting == 0 else await self._copy(self._current)
            await self._order(target)
        elif str(target) == pending.parsed_order.target.url:
            if self.options.abandon_source and not pending.source_abandoned:
                await self._save(pending, source_abandoned=True)
        elif pending.locks_record and str(target) == pending.parsed_order.source.url:
            return await self.cancel()
        else:
            await self._order(target)
        return await self.resume()

    async def resume(self) -> MigrationReport:
        """Continue the pending migration.

        Raises:
            AgentError: as :meth:`start`.
        """
        for n in range(MAX_TRIES):
            try:
                return await self._run_stages()
            except AgentError as exc:
                migration = self._current
                is_last = n == MAX_TRIES - 1
                if exc.code not in _SUPERSEDED or not migration.locks_record or is_last:
                    raise
                await self._order(self.host.origin(migration.parsed_order.target.url))
        raise AssertionError

    async def cancel(self) -> MigrationReport:
        """Cancel the migration: the agent stays at its source.

        Raises:
            WrongStateError: there is none, or its record is published.
            AgentError: the source, which may have stopped delivering, does not take the record.
        """
        migration = self._log.pending
        if migration is None:
            raise make_error(ErrorCode.WRONG_STATE, _NO_MIGRATION)
        order = migration.parsed_order
        if migration.stage is MigrationStage.COPYING:
            detail = f"it lives at {order.target.url} already; it can move back from there"
            raise make_error(ErrorCode.WRONG_STATE, detail)
        if migration.stage is not MigrationStage.CANCELLING:
            migration = await orders.cancel_order(self.host.key, self.host.state, migration)
        await self._rollback(migration)
        return MigrationReport(order.id, order.source, order.source, waiting=0)

    # ------------------------------------------------------------ stages

    async def _run_stages(self) -> MigrationReport:
        stages: dict[MigrationStage, Callable[[MigrationState], Awaitable[None]]] = {
            MigrationStage.PREPARING: self._prepare,
            MigrationStage.FREEZING: self._freeze,
            MigrationStage.DIGEST: self._digest,
            MigrationStage.PUBLISHING: self._publish,
        }
        while (migration := self._current).stage in stages:
            self.options.on_progress(MigrationProgress(migration.stage))
            try:
                await stages[migration.stage](migration)
            except AgentError as exc:
                is_preparing = migration.stage is MigrationStage.PREPARING
                if is_preparing and exc.code not in _SUPERSEDED:
                    await self._abort(migration)
                raise
        if migration.stage is MigrationStage.CANCELLING:
            return await self.cancel()
        return await self._copy(migration)

    async def _prepare(self, migration: MigrationState) -> None:
        if orders.is_home_already(self.host.state, migration):
            # no hand-off to a home: the other homes forward by the record alone
            await self._save(migration, stage=MigrationStage.PUBLISHING)
            return
        source, target = self._clients(migration)
        items = await self._ask_source(migration, source.inventory)
        # also without the source: the target learns whose digest it lacks, and marks everything
        newest = self.host.state.record or ""
        capacity = Capacity.of(items or ())
        answer = await self._retry(migration).call(lambda: target.prepare(capacity, newest))
        target.expect(answer, migration, *READY)
        step: dict[str, Any] = {"target_statement": answer.compact}
        if items is None:
            step |= {"stage": MigrationStage.PUBLISHING, "source_abandoned": True}
        else:
            # saved before the request: after it the source may have stopped delivering
            stopped_at = migration.delivery_stopped_at or float(clock.now())
            step |= {"stage": MigrationStage.FREEZING, "source_frozen": True}
            step["delivery_stopped_at"] = stopped_at
        await self._save(migration, **step)

    async def _freeze(self, migration: MigrationState) -> None:
        source, _ = self._clients(migration)
        await self.host.on_freeze(source.relay)
        answer = await self._ask_source(migration, source.freeze)
        if answer is None:
            await self._save(migration, stage=MigrationStage.PUBLISHING, source_abandoned=True)
            return
        source.expect(answer, migration, Mode.FROZEN)
        await self._save(migration, stage=MigrationStage.DIGEST, source_statement=answer.compact)

    async def _digest(self, migration: MigrationState) -> None:
        source, target = self._clients(migration)
        await self.host.on_freeze(source.relay)
        if not migration.inventory_saved:
            items = await self._ask_source(migration, source.inventory)
            if items is not None:
                await self._log.save_inventory(items)
                migration = await self._save(migration, inventory_saved=True)
        sent = await self._ask_source(
            migration, lambda: self._digest_sent(migration, source, target)
        )
        if sent is None:
            migration = await self._save(migration, source_abandoned=True)
        await self._save(migration, stage=MigrationStage.PUBLISHING)

    async def _digest_sent(
        self, migration: MigrationState, source: HandoffClient, target: HandoffClient
    ) -> bool:
        """Return True once both relays state that the target has the digest.

        Raises:
            AgentError: ``migrating``: not yet.
        """
        answer = await target.state()
        target.expect(answer, migration, *READY)
        if answer.statement.digest_received:
            return True
        answer = await source.freeze()
        source.expect(answer, migration, Mode.FROZEN)
        if not answer.statement.digest_acked:
            default = "the old relay has not told the new one what was seen"
            raise make_error(ErrorCode.MIGRATING, answer.statement.reason or default)
        answer = await target.state()
        target.expect(answer, migration, *READY)
        if not answer.statement.digest_received:
            detail = "the new relay says that it was not told what was seen"
            raise make_error(ErrorCode.MIGRATING, detail)
        return True

    async def _publish(self, migration: MigrationState) -> None:
        record = migration.parsed_order.record
        _, target = self._clients(migration)
        newer = await self._retry(migration).call(lambda: publish(target.origin, record))
        if newer is not None:
            self.host.state.keep_record(newer.jws.compact)
            raise make_error(ErrorCode.STALE_RECORD, "another program of this agent has published")
        self.host.state.keep_record(record.jws.compact)
        await self.host.state.flush_record()
        migration = await self._save(migration, stage=MigrationStage.COPYING)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(self._left_s, 0.0)):
                await self.host.on_published()
        await self._save(migration, delivery_resumed_at=float(clock.now()))
        self.host.on_manifest(await self._manifest(migration, ()))

    async def _copy(self, migration: MigrationState) -> MigrationReport:
        source, target = self._clients(migration)
        verifier = MigrationVerifier(self._log, source, target, self.options.on_progress)
        wait_s = DEAD_SOURCE_TIMEOUT_S if migration.source_abandoned else self._left_s
        report = await verifier.wait_drained(migration, clock.monotonic() + wait_s)
        self.host.on_manifest(await self._manifest(migration, report.missing))
        if report.waiting == 0 or migration.source_abandoned:
            await self._log.save_report(report)
            await self._save(self._current, stage=MigrationStage.DONE)
            self.options.on_progress(MigrationProgress(MigrationStage.DONE))
        return report

    async def _manifest(
        self, migration: MigrationState, missing: Collection[Eid]
    ) -> frozenset[Eid] | None:
        """Return the eids that will arrive at the target; None: not known."""
        if not migration.inventory_saved:
            return None
        now, items = clock.now(), await self._log.inventory()
        return frozenset(one.eid for one in items if one.expires_at > now) - frozenset(missing)

    # ------------------------------------------------------------ endings

    async def _abort(self, migration: MigrationState) -> None:
        """Cancel an order that no relay has acted upon."""
        if not migration.source_frozen:
            await self._rollback(
                await orders.cancel_order(self.host.key, self.host.state, migration)
            )

    async def _rollback(self, migration: MigrationState) -> None:
        """Publish the record that supersedes the order's own at both relays."""
        record = self.host.state.newest_record
        source, target = self._clients(migration)
        if record is not None and migration.source_frozen:
            await self._retry(migration).call(lambda: self._put(source, record))
        if record is not None:
            # also after the deadline: a holder of the order must not be able to publish its record
            timeout_s = max(self._left_s, DEAD_SOURCE_TIMEOUT_S) / 2
            await best_effort(lambda: publish(source.origin, record), timeout_s)
            await best_effort(lambda: publish(target.origin, record), timeout_s)
        await self._save(migration, stage=MigrationStage.DROPPED)
        self.host.on_cancelled()

    async def _put(self, relay: HandoffClient, record: EndpointRecord) -> None:
        newer = await publish(relay.origin, record)
        if newer is not None:
            self.host.state.keep_record(newer.jws.compact)

    # ------------------------------------------------------------ parts

    @property
    def _log(self) -> MigrationLog:
        return self.host.state.migration

    @property
    def _left_s(self) -> float:
        return self.until - clock.monotonic()

    @property
    def _current(self) -> MigrationState:
        if self._log.state is None:
            raise make_error(ErrorCode.WRONG_STATE, _NO_MIGRATION)
        return self._log.state

    async def _save(self, migration: MigrationState, **values: Any) -> MigrationState:
        changed = replace(migration, **values)
        await self._log.save(changed)
        return changed

    async def _order(self, target: Origin) -> None:
        """Sign the order, and save it."""
        host = self.host
        try:
            async with asyncio.timeout(max(self._left_s, 0.0)):
                source = await self._source(target)
                home = await orders.resolve_target(
                    host.key.did, host.state, source, target, dial=host.origin
                )
        except TimeoutError as exc:
            detail = f"{target}, or a home of this agent, did not answer in time"
            raise make_error(ErrorCode.PEER_UNREACHABLE, f"{detail}. Nothing was changed") from exc
        await orders.issue_order(
            host.key, host.state, source, home, abandon_source=self.options.abandon_source
        )

    async def _source(self, target: Origin) -> Home:
        pending = self._log.pending
        if pending is not None and pending.locks_record:
            return pending.parsed_order.source
        host = self.host
        return await orders.find_source(host.key.did, host.state, target, host.origin)

    def _clients(self, migration: MigrationState) -> tuple[HandoffClient, HandoffClient]:
        """Return the clients of source and target."""
        order = migration.parsed_order
        source, target = [
            HandoffClient(self.host.origin(home.url), home.did, order.did, migration.order)
            for home in (order.source, order.target)
        ]
        return source, target

    async def _ask_source(
        self, migration: MigrationState, request: Callable[[], Awaitable[T]]
    ) -> T | None:
        """Send a request to the source; None: it is abandoned, and does not answer."""
        if not (migration.source_abandoned or self.options.abandon_source):
            return await self._retry(migration).call(request)
        until = min(self.until, clock.monotonic() + DEAD_SOURCE_TIMEOUT_S)
        try:
            return await RetryUntil(migration, until, self.options.on_progress).call(request)
        except AgentError as exc:
            if exc.code in _SUPERSEDED:
                raise
            return None

    def _retry(self, migration: MigrationState) -> RetryUntil:
        return RetryUntil(migration, self.until, self.options.on_progress)
