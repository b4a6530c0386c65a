"""Whether all that was at the source is at the target: counts, eids, and what does not fit.

Rules of the file: a relay's statement is its own word and no proof of the other's, so both are put
side by side, and each eid that waited at the source is asked for at the target. What cannot be told
is said so; a number that was not stated is None, never 0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from relay import clock
from relay.client.directory.publish import put
from relay.client.errors import AgentError
from relay.client.migration.handoff import (
    Office,
    Said,
)
from relay.client.migration.retry import MigrationProgress
from relay.client.state.migration_log import (
    MigrationLog,
    MigrationReport,
    MigrationStage,
    MigrationState,
)
from relay.protocol import migration_statement
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
    RelayError,
)
from relay.protocol.ids import Eid
from relay.protocol.migration_statement import (
    Statement,
    Tally,
)
from relay.protocol.receipts import digest_of
from relay.protocol.types import (
    Mode,
    Waiting,
)

FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 2.0
_ENDED: Final = frozenset({"acked", "refused", "expired", "corrupt"})


@dataclass(slots=True)
class Watch:
    """Looks on while the source hands over.

    Args:
        log: keeps what waited, and the last statements.
        source: who hands over.
        target: who takes.
        tell: is told how it goes.
    """

    log: MigrationLog
    source: Office
    target: Office
    tell: Callable[[MigrationProgress], None]

    async def until_empty(self, move: MigrationState, until: float) -> MigrationReport:
        """Look until nothing waits at the source, or until then (monotonic seconds); and report."""
        why: tuple[str, ...] = ()
        pause = FIRST_PAUSE_S
        while True:
            try:
                await self._publish(move)
                said = await self.source.state()
                move = replace(move, source_statement=said.compact)
                await self.log.save(move)
                why = _objections(move, said.statement)
                if self._is_empty(said.statement) or why:
                    break
                waits_for = said.statement.why
            except AgentError as exc:
                waits_for = exc.detail
                why = (f"the old relay: {exc.detail}",) if isinstance(exc, ProtocolError) else ()
            self._tell(move, waits_for)
            if clock.monotonic() + pause > until:
                break
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)
        return await self._report(move, why)

    async def _publish(self, move: MigrationState) -> None:
        """See that the source has the record: without it, it lets nothing go."""
        said = self._read(move.source_statement, self.source)
        if said is None or not _has_heard(said):
            await put(self.source.origin, move.parsed_order.record)

    @staticmethod
    def _is_empty(said: Statement) -> bool:
        if said.mode is Mode.NONE:
            return said.tally.waiting == 0
        return said.mode is Mode.FROZEN and said.named and said.tally.waiting == 0

    def _tell(self, move: MigrationState, waits_for: str) -> None:
        said = self._read(move.source_statement, self.source)
        tally = said.tally if said is not None else Tally()
        total = tally.was + tally.late
        # whatever a source states, nobody draws a bar of that length
        done = max(total - tally.waiting, 0)
        self.tell(MigrationProgress(MigrationStage.COPYING, done, total, waits_for))

    # ------------------------------------------------------------ the report

    async def _report(self, move: MigrationState, why: tuple[str, ...]) -> MigrationReport:
        told = await self._ask_target()
        if told is not None:
            move = replace(move, target_statement=told.compact)
            await self.log.save(move)
        source = self._read(move.source_statement, self.source)
        target = self._read(move.target_statement, self.target)
        if source is not None and not _has_heard(source):
            source = None
        items = await self.log.inventory() if move.inventory_saved else []
        order = move.parsed_order
        moved = MigrationReport(
            order.id,
            order.source,
            order.target,
            digest=digest_of(one.eid for one in items) if move.inventory_saved else None,
            inventory_count=len(items),
            seconds=max(0.0, clock.now() - move.began_at),
            downtime_s=move.downtime_s,
            source_statement=move.source_statement,
            target_statement=move.target_statement,
        ).with_counts(source.tally if source else None, target.tally if target else None)
        missing, more = await self._missing(moved, items)
        doubts = (*why, *_complaints(moved, source, target, is_listed=move.inventory_saved), *more)
        return replace(moved, missing=missing, discrepancies=doubts)

    async def _ask_target(self) -> Said | None:
        try:
            return await self.target.state()
        except AgentError:
            return None

    async def _missing(
        self, moved: MigrationReport, items: Sequence[Waiting]
    ) -> tuple[tuple[Eid, ...], tuple[str, ...]]:
        """The eids that are nowhere, and what kept us from finding out."""
        try:
            states = await self.target.find(items)
        except AgentError as exc:
            return (), (f"the new relay cannot be asked for what it has: {exc.detail}",)
        lost = [one for one, state in zip(items, states, strict=True) if state == "unknown"]
        if lost and moved.waiting != 0:
            try:
                there = {one.eid for one in await self.source.inventory()}
            except AgentError:
                # it is not known what is still there, so nothing can be called missing
                return (), ()
            lost = [one for one in lost if one.eid not in there]
        lost = [one for one in lost if one.expires_at > clock.now()]
        if lost and moved.expired + moved.refused + moved.corrupt + moved.acked:
            lost = await self._not_ended(lost)
        return tuple(one.eid for one in lost), ()

    async def _not_ended(self, items: Sequence[Waiting]) -> list[Waiting]:
        """Those of which the source does not say that they ended there, with a bounce."""
        try:
            states = await self.source.find(items)
        except AgentError:
            return list(items)
        return [one for one, state in zip(items, states, strict=True) if state not in _ENDED]

    @staticmethod
    def _read(compact: str | None, office: Office) -> Statement | None:
        if compact is None:
            return None
        try:
            return migration_statement.verify(compact, office.relay)
        except RelayError:
            return None


def _objections(move: MigrationState, said: Statement) -> tuple[str, ...]:
    """What makes further looking useless."""
    is_anothers = said.mode is Mode.FROZEN and said.handoff not in move.handoffs
    if is_anothers or said.mode is Mode.INCOMING:
        return (f"the old relay is in another hand-off now: {said.handoff}",)
    return ()


def _has_heard(said: Statement) -> bool:
    """Whether a source knows where the agent lives: what it counted before says nothing."""
    return said.mode is Mode.NONE or (said.mode is Mode.FROZEN and said.named)


def _complaints(
    moved: MigrationReport, source: Statement | None, target: Statement | None, *, is_listed: bool
) -> list[str]:
    """What does not fit together."""
    found: list[str] = []
    if source is not None:
        tally = source.tally
        ended = tally.acked + tally.expired + tally.refused + tally.corrupt
        if not tally.is_balanced:
            found.append("the counts of the old relay do not add up")
        if is_listed and not tally.was - ended <= moved.inventory_count <= tally.was + tally.late:
            found.append(
                f"the old relay listed {moved.inventory_count} envelopes, "
                f"and states that {tally.was} waited"
            )
    is_counted = target is not None and target.handoff == moved.id
    if source is not None and is_counted and moved.new_at_target + moved.duplicates < moved.moved:
        found.append(
            f"the old relay states that {moved.moved} were taken over, the new one has got "
            f"{moved.new_at_target + moved.duplicates}"
        )
    if target is None:
        found.append(f"the new relay states nothing ({ErrorCode.PEER_UNREACHABLE})")
    return found
