"""Store the endpoint records of agents, published here or sent by peers (PROTOCOL.md §7).

::

    parse ─▶ compare with the stored version ─▶ verify ─▶ merge in the store ─▶ notify

:meth:`Directory.publish` takes one record from its agent and raises on refusal;
:meth:`Directory.merge_from_peer` takes many and returns a result for each. Nothing is answered or
passed on before it is durable. Found, absent and unreadable are three answers, never confused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from relay import clock, log
from relay.directory.budget import Budget
from relay.directory.local_handles import LocalHandles
from relay.directory.ports import Merged, MergeOutcome, RecordRow, RecordStore
from relay.inbox.ports import Keys
from relay.peering.model.reputation import is_strike
from relay.protocol import endpoint_record, frames, jws
from relay.protocol.did import parse_did
from relay.protocol.endpoint_record import EndpointRecord, RecordVersion
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
    Refusal,
    RejectedError,
    RelayError,
    UnavailableError,
    error,
)
from relay.protocol.ids import AgentKey, Did

_BATCH: Final = 16
"""Records that are parsed or verified before other tasks run."""


@dataclass(frozen=True, slots=True)
class RecordLookup:
    """The answer to a question for an agent's record."""

    state: frames.Resolution
    record: str | None = None
    stale: bool = False


@dataclass(frozen=True, slots=True)
class RecordMergeResult:
    """The result for one record that a peer sent.

    Args:
        compact: the record.
        outcome: of the merge; or the refusal: ``bad_signature``, ``bad_frame``, ``unsupported``,
            ``expired``, ``not_yet_valid``.
        owner: its agent; None if that cannot be read.
        version: the version that the store holds now, if it holds one.
        is_new: the store holds this record now, and did not before.
        record: the refused record, as parsed.
    """

    compact: str
    outcome: MergeOutcome | Refusal
    owner: AgentKey | None = None
    version: RecordVersion | None = None
    is_new: bool = False
    record: EndpointRecord | None = None

    @property
    def label(self) -> str:
        """The outcome or error code, for a metric."""
        return self.outcome.code if isinstance(self.outcome, Refusal) else self.outcome

    @property
    def is_strike(self) -> bool:
        """True if no honest relay passes such a record on."""
        if not isinstance(self.outcome, Refusal):
            return False
        # an honest relay with another verifier may have accepted such a signature
        is_edge_case = (
            self.outcome.code is ErrorCode.BAD_SIGNATURE
            and self.record is not None
            and not jws.is_plainly_forged(self.record.jws, parse_did(self.record.did).public_key)
        )
        return is_strike(self.outcome.code, is_edge_case=is_edge_case)


@dataclass(frozen=True, slots=True)
class Directory:
    """The records of agents, homed here or anywhere.

    Args:
        relay: this one.
        store: holds the records.
        keys: resolves the keys of a DID.
        handles: of agents that live here.
        on_published: called with each new record that an agent published here.
        on_record_change: awaited for each agent whose new record concerns an inbox here.
    """

    relay: Did
    store: RecordStore
    keys: Keys
    handles: LocalHandles | None = None
    on_published: list[Callable[[AgentKey, RecordRow], None]] = field(default_factory=list)
    on_record_change: list[Callable[[AgentKey], Awaitable[object]]] = field(default_factory=list)

    async def publish(
        self, compact: str, *, owner: Did | None = None, only: Did | None = None, ref: str = ""
    ) -> frames.Published:
        """Store a record if it is newer than the stored one.

        Args:
            compact: the signed record.
            owner: the agent that logged in; it may publish its own record only.
            only: without a login, the DID of the record; it must name this relay or be known here.
            ref: of the answer.

        Raises:
            RelayError: ``bad_frame``, ``bad_signature``, ``not_yet_valid``, ``expired``,
                ``unsupported``, ``not_admitted`` or ``storage_unavailable``.
        """
        record = endpoint_record.parse(compact)
        if record.did != (owner or only):
            raise ProtocolError(ErrorCode.BAD_SIGNATURE, "a record is published by its own agent")
        refusal = await self._verify(record, Budget(1.0))
        if refusal is not None:
            raise refusal.to_error()
        agent = parse_did(record.did).agent_key
        names_us = self._names_us(record)
        if owner is None and not names_us and await self.store.get(agent) is None:
            detail = "the record names other relays and this one does not know the agent"
            raise RejectedError(ErrorCode.NOT_ADMITTED, detail)
        # keys are free: all who publish without a login share one introducer's part of the room
        introducer = None if owner else parse_did(self.relay).agent_key
        # with "parked" the last home keeps the inbox and queues (PROTOCOL.md §7.3)
        row = _row(record, names_us=names_us or record.status == "parked", introducer=introducer)
        [merged] = await self._merge([(agent, row)])
        if merged.outcome == "full":
            detail = "the directory takes no unknown agents just now; log in to publish"
            raise RejectedError(ErrorCode.NOT_ADMITTED, detail)
        if _is_new(row, merged):
            for notify in self.on_published:
                notify(agent, row)
        current = merged.held or row
        kv, seq, _ = current.version
        stored = current.version == record.version
        if stored and current.names_us and self.handles is not None:
            await self.handles.claim(record)
        return frames.Published(ref, stored, kv, seq, None if stored else current.compact)

    async def merge_from_peer(
        self, compacts: Sequence[str], introducer: Did, budget: Budget | None = None
    ) -> list[RecordMergeResult]:
        """Store the newer ones of the records that a peer sent; return a result for each, in place.

        Args:
            compacts: the records.
            introducer: the peer.
            budget: bounds the processor time of parsing and verifying.

        Raises:
            UnavailableError: the store; what was merged before stays.
        """
        budget = budget or Budget(1.0)
        results: dict[str, RecordMergeResult] = {}
        parsed: list[tuple[AgentKey, EndpointRecord]] = []
        for number, compact in enumerate(dict.fromkeys(compacts), 1):
            with budget.spending():
                try:
                    record = endpoint_record.parse(compact)
                    parsed.append((parse_did(record.did).agent_key, record))
                except ProtocolError as exc:
                    results[compact] = RecordMergeResult(compact, Refusal.of(exc))
            await _yield(number, budget)
        peer = parse_did(introducer).agent_key
        rows = await self._verified(parsed, peer, results, budget)
        for (owner, row), merged in zip(rows, await self._merge(rows), strict=True):
            version = merged.held.version if merged.held else None
            results[row.compact] = RecordMergeResult(
                row.compact, merged.outcome, owner, version, _is_new(row, merged)
            )
        return [results[compact] for compact in compacts]

    async def _verified(
        self,
        parsed: Sequence[tuple[AgentKey, EndpointRecord]],
        introducer: AgentKey,
        results: dict[str, RecordMergeResult],
        budget: Budget,
    ) -> list[tuple[AgentKey, RecordRow]]:
        """Return rows of the newer records that their agents signed; put the rest into results."""
        stored = await self.store.get_many([owner for owner, _ in parsed])
        rows: list[tuple[AgentKey, RecordRow]] = []
        for number, ((owner, record), row) in enumerate(zip(parsed, stored, strict=True), 1):
            await _yield(number, budget)
            compact = record.jws.compact
            version = row.version if row else None
            # a version that is not newer costs no signature
            verdict = endpoint_record.compare_versions(version, record.version, clock.now())
            if verdict in {"same", "older"}:
                results[compact] = RecordMergeResult(compact, verdict, owner, version)
                continue
            refusal = await self._verify(record, budget)
            if refusal is not None:
                results[compact] = RecordMergeResult(
                    compact, refusal, owner, version, record=record
                )
                continue
            names_us = self._names_us(record)
            rows.append((owner, _row(record, names_us=names_us, introducer=introducer)))
        return rows

    async def _verify(self, record: EndpointRecord, budget: Budget) -> Refusal | None:
        claimed = parse_did(record.did)
        try:
            key = self.keys.known(claimed) or await self.keys.resolve(record.did)
        except RelayError as exc:
            return Refusal.of(exc)
        with budget.spending():
            return endpoint_record.verify(record, key, clock.now())

    async def _merge(self, rows: Sequence[tuple[AgentKey, RecordRow]]) -> list[Merged]:
        """Merge rows into the store, then log equivocations and notify of record changes."""
        merged = await self.store.merge(rows)
        for (owner, row), one in zip(rows, merged, strict=True):
            if one.outcome == "equivocal":
                # the first two records are the evidence; a third one is nothing new
                evidence = await self.store.fork_proof(owner)
                if evidence is not None and row.compact in evidence:
                    log.event("equivocation", owner=owner)
        for (owner, _), one in zip(rows, merged, strict=True):
            for notify in self.on_record_change if one.moves else ():
                try:
                    await notify(owner)
                except RelayError as exc:
                    # the record is stored: a later poll or login acts upon it
                    log.loop_failed("settle", exc.code)
        return merged

    def _names_us(self, record: EndpointRecord) -> bool:
        return record.names(self.relay) and record.status == "active"

    async def evidence(self, did: Did) -> tuple[str, str] | None:
        """Return two records of one ``kv`` and ``seq`` that the agent signed, if it ever did."""
        return await self.store.fork_proof(parse_did(did).agent_key)

    async def resolve(self, did: str) -> RecordLookup:
        """Return the newest stored record of an agent.

        Raises:
            ProtocolError: ``bad_frame`` or ``unsupported``: not a DID that can be resolved.
        """
        try:
            owner = parse_did(did)
        except jws.UnsupportedTypeError as exc:
            raise error(ErrorCode.UNSUPPORTED, f"did: {exc}") from exc
        except ValueError as exc:
            raise error(ErrorCode.BAD_FRAME, f"did: {exc}") from exc
        try:
            row = await self.store.get(owner.agent_key)
        except UnavailableError:
            return RecordLookup("unreadable")
        if row is None:
            return RecordLookup("absent")
        # 0: not known
        stale = row.expires_at > 0 and endpoint_record.is_stale(row.expires_at, clock.now())
        return RecordLookup("found", row.compact, stale)


def _row(
    record: EndpointRecord, *, names_us: bool, introducer: AgentKey | None = None
) -> RecordRow:
    return RecordRow(
        version=record.version,
        compact=record.jws.compact,
        names_us=names_us,
        introducer=introducer,
        expires_at=record.expires_at,
        is_parked=record.status == "parked",
    )


def _is_new(row: RecordRow, merged: Merged) -> bool:
    is_stored = merged.held is not None and merged.held.version == row.version
    return is_stored and merged.outcome in {"newer", "equivocal"}


async def _yield(number: int, budget: Budget) -> None:
    if number % _BATCH == 0:
        await asyncio.sleep(0)
        await budget.rest()
