"""Checks that all that was at the source is at the target: counts, eids, contradictions.

Invariants: a relay's statement is its own claim and no proof of the other's, so both are compared.
Each eid of the source's inventory is looked up at the target. An unknown number is None, never 0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from relay import clock
from relay.client.directory.own_record import publish
from relay.client.errors import AgentError
from relay.client.migration.handoff import HandoffClient
from relay.client.migration.retry import MigrationProgress, OnProgress
from relay.client.state.migration_log import (
    MigrationLog,
    MigrationReport,
    MigrationStage,
    MigrationState,
)
from relay.protocol.backoff import doubling_pause_s
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.ids import Eid
from relay.protocol.migration_statement import MigrationCounters, MigrationStatement
from relay.protocol.receipts import digest_of
from relay.protocol.types import Mode, WaitingEnvelope

FIRST_PAUSE_S: Final = 0.05
MAX_PAUSE_S: Final = 2.0
_ENDED: Final = frozenset({"acked", "refused", "expired", "corrupt"})


@dataclass(slots=True)
class MigrationVerifier:
    """Observes how the source hands over, and writes the report.

    Args:
        log: has the inventory; the last statements are saved there.
        source: hands over.
        target: takes over.
        on_progress: called at each look.
    """

    log: MigrationLog
    source: HandoffClient
    target: HandoffClient
    on_progress: OnProgress

    async def wait_drained(self, migration: MigrationState, until: float) -> MigrationReport:
        """Wait until nothing is left at the source, or until then (monotonic seconds); report."""
        reasons: tuple[str, ...] = ()
        looks = 0
        while True:
            try:
                await self._publish(migration)
                answer = await self.source.state()
                migration = replace(migration, source_statement=answer.compact)
                await self.log.save(migration)
                reasons = _objections(migration, answer.statement)
                if _is_drained(answer.statement) or reasons:
                    break
                waits_for = answer.statement.reason
            except AgentError as exc:
                waits_for = exc.detail
                is_invalid = isinstance(exc, ProtocolError)
                reasons = (f"the old relay: {exc.detail}",) if is_invalid else ()
            self._notify(migration, waits_for)
            pause = doubling_pause_s(looks, FIRST_PAUSE_S, MAX_PAUSE_S)
            looks += 1
            if clock.monotonic() + pause > until:
                break
            await asyncio.sleep(pause)
        return await self._report(migration, reasons)

    async def _publish(self, migration: MigrationState) -> None:
        """Give the source the record: it hands nothing over before it has that."""
        statement = self.source.verified(migration.source_statement)
        if statement is None or not _has_record(statement):
            await publish(self.source.origin, migration.parsed_order.record)

    def _notify(self, migration: MigrationState, waits_for: str) -> None:
        statement = self.source.verified(migration.source_statement)
        counts = statement.counters if statement is not None else MigrationCounters()
        total = counts.was + counts.late
        # a source may state any number: a progress bar has no negative length
        done = max(total - counts.waiting, 0)
        self.on_progress(MigrationProgress(MigrationStage.COPYING, done, total, waits_for))

    # ------------------------------------------------------------ the report

    async def _report(self, migration: MigrationState, reasons: tuple[str, ...]) -> MigrationReport:
        try:
            answer = await self.target.state()
        except AgentError:
            pass
        else:
            migration = replace(migration, target_statement=answer.compact)
            await self.log.save(migration)
        source = self.source.verified(migration.source_statement)
        target = self.target.verified(migration.target_statement)
        if source is not None and not _has_record(source):
            source = None
        items = await self.log.inventory() if migration.inventory_saved else []
        order = migration.parsed_order
        report = MigrationReport(
            order.id,
            order.source,
            order.target,
            digest=digest_of(one.eid for one in items) if migration.inventory_saved else None,
            inventory_count=len(items),
            seconds=max(0.0, clock.now() - migration.began_at),
            downtime_s=migration.downtime_s,
            source_statement=migration.source_statement,
            target_statement=migration.target_statement,
        ).with_counts(source.counters if source else None, target.counters if target else None)
        missing, unknown = await self._missing(report, items)
        found = _discrepancies(report, source, target, has_inventory=migration.inventory_saved)
        return replace(report, missing=missing, discrepancies=(*reasons, *found, *unknown))

    async def _missing(
        self, report: MigrationReport, items: Sequence[WaitingEnvelope]
    ) -> tuple[tuple[Eid, ...], tuple[str, ...]]:
        """Return the eids that are nowhere, and the reason if that cannot be found out."""
        try:
            states = await self.target.find(items)
        except AgentError as exc:
            return (), (f"the new relay cannot be asked for what it has: {exc.detail}",)
        lost = [one for one, state in zip(items, states, strict=True) if state == "unknown"]
        if lost and report.waiting != 0:
            try:
                present = {one.eid for one in await self.source.inventory()}
            except AgentError:
                # without the source's inventory no eid can be called missing
                return (), ()
            lost = [one for one in lost if one.eid not in present]
        lost = [one for one in lost if one.expires_at > clock.now()]
        if lost and report.expired + report.refused + report.corrupt + report.acked:
            lost = await self._not_ended(lost)
        return tuple(one.eid for one in lost), ()

    async def _not_ended(self, items: Sequence[WaitingEnvelope]) -> list[WaitingEnvelope]:
        """Return those that did not end at the source with a bounce, by its own statement."""
        try:
            states = await self.source.find(items)
        except AgentError:
            return list(items)
        return [one for one, state in zip(items, states, strict=True) if state not in _ENDED]


def _is_drained(source: MigrationStatement) -> bool:
    return _has_record(source) and source.counters.waiting == 0


def _has_record(source: MigrationStatement) -> bool:
    """Return True if the source has the agent's record: earlier counts are not final."""
    return source.mode is Mode.NONE or (source.mode is Mode.FROZEN and source.record_names_target)


def _objections(migration: MigrationState, source: MigrationStatement) -> tuple[str, ...]:
    """Return the reasons why further looks are useless."""
    is_other = source.mode is Mode.FROZEN and source.handoff not in migration.handoffs
    if is_other or source.mode is Mode.INCOMING:
        return (f"the old relay is in another hand-off now: {source.handoff}",)
    return ()


def _discrepancies(
    report: MigrationReport,
    source: MigrationStatement | None,
    target: MigrationStatement | None,
    *,
    has_inventory: bool,
) -> list[str]:
    found: list[str] = []
    received, listed = report.new_at_target + report.duplicates, report.inventory_count
    if source is not None:
        counts = source.counters
        ended = counts.acked + counts.expired + counts.refused + counts.corrupt
        if not counts.is_balanced:
            found.append("the counts of the old relay do not add up")
        if has_inventory and not counts.was - ended <= listed <= counts.was + counts.late:
            found.append(
                f"the old relay listed {listed} envelopes, and states that {counts.was} waited"
            )
    is_counted = target is not None and target.handoff == report.id
    if source is not None and is_counted and received < report.moved:
        found.append(
            f"the old relay states that {report.moved} were taken over, the new one has got "
            f"{received}"
        )
    if target is None:
        found.append(f"the new relay states nothing ({ErrorCode.PEER_UNREACHABLE})")
    return found
