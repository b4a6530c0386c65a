"""Directory: an agent's endpoint record is published, passed on and resolved (PROTOCOL.md §7).

Rules of the file: check, then persist, then answer; found, absent and unreadable are three answers;
what peers bring is judged record by record, and the loop has its turn in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from relay import clock, log
from relay.directory.budget import Budget
from relay.directory.local_handles import OwnHandles
from relay.inbox.ports import Keys
from relay.peering.model.reputation import is_strike
from relay.peering.ports import (
    Merged,
    MergeOutcome,
    RecordRow,
    RecordStore,
)
from relay.protocol import endpoint_record, frames
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
from relay.protocol.ids import (
    AgentKey,
    Did,
)
from relay.protocol.jws import UnsupportedError

_AT_ONCE: Final = 16
"""Records that are read or verified before everybody else has a turn."""


@dataclass(frozen=True, slots=True)
class Found:
    """What resolving came to."""

    state: frames.Resolution
    record: str | None = None
    stale: bool = False


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of one record that a peer brought.

    Args:
        compact: the record.
        outcome: what merging it came to; or why it was not merged: ``bad_signature`` (forged),
            ``bad_frame`` (malformed), ``unsupported``, ``expired``, ``not_yet_valid``.
        owner: whose it is; None where that cannot be read.
        version: of the current record of that agent, if there is one.
        is_news: it is held now, and was not before: to be passed on.
    """

    compact: str
    outcome: MergeOutcome | Refusal
    owner: AgentKey | None = None
    version: RecordVersion | None = None
    is_news: bool = False

    @property
    def is_strike(self) -> bool:
        """Whether no honest relay passes such a thing on."""
        return isinstance(self.outcome, Refusal) and is_strike(self.outcome.code)


@dataclass(frozen=True, slots=True)
class Directory:
    """Records of agents, homed here or anywhere.

    Args:
        relay: this one.
        store: keeps them.
        keys: which keys may act for a DID.
        names: under this relay, for the agents that live here.
        listeners: told of each record that an agent published here and that is news.
        movers: awaited for each agent of whom news concern an inbox here.
    """

    relay: Did
    store: RecordStore
    keys: Keys
    names: OwnHandles | None = None
    listeners: list[Callable[[AgentKey, RecordRow], None]] = field(default_factory=list)
    movers: list[Callable[[AgentKey], Awaitable[object]]] = field(default_factory=list)

    async def publish(
        self, compact: str, *, owner: Did | None = None, only: Did | None = None, ref: str = ""
    ) -> frames.Published:
        """Keep a record if it is newer than the one held.

        Args:
            compact: the signed record.
            owner: the agent that logged in; only its own record is taken.
            only: without a login, the DID it must be of; it must name this relay or be known here.
            ref: goes into the answer.

        Raises:
            RelayError: ``bad_frame``, ``bad_signature``, ``not_yet_valid``, ``expired``,
                ``unsupported``, ``not_admitted`` or ``storage_unavailable``.
        """
        record = endpoint_record.parse(compact)
        # keys are free: who has not logged in shares what the directory takes with all such
        introducer = None if owner else parse_did(self.relay).agent_key
        if record.did != (owner or only):
            raise ProtocolError(ErrorCode.BAD_SIGNATURE, "a record is published by its own agent")
        key = await self.keys.resolve(record.did)
        no = endpoint_record.verify(record, key, clock.now())
        if no is not None:
            raise no.to_error()
        names_us = record.names(self.relay) and record.status == "active"
        if owner is None and not names_us and await self._held(key.agent_key) is None:
            detail = "the record names other relays and this one does not know the agent"
            raise RejectedError(ErrorCode.NOT_ADMITTED, detail)
        # with "parked" the last home keeps the inbox and queues (PROTOCOL.md §7.3)
        at_home = names_us or record.status == "parked"
        row = _row(record, names_us=at_home, introducer=introducer)
        merged = (await self.store.merge_records([(key.agent_key, row)]))[0]
        if merged.outcome == "full":
            detail = "the directory takes no unknown agents just now; log in to publish"
            raise RejectedError(ErrorCode.NOT_ADMITTED, detail)
        await self._tell(key.agent_key, row, merged)
        await self._move([key.agent_key] if merged.moves else [])
        if _is_news(row, merged):
            for listener in self.listeners:
                listener(key.agent_key, row)
        kept = merged.held or row
        kv, seq, _ = kept.version
        stored = kept.version == record.version
        if stored and kept.names_us and self.names is not None:
            await self.names.claim(record)
        return frames.Published(ref, stored, kv, seq, None if stored else kept.compact)

    async def keep(
        self, compacts: Sequence[str], introducer: Did, budget: Budget | None = None
    ) -> list[Kept]:
        """Keep the newer ones of the records that a peer brought; a result for each, in place.

        Args:
            compacts: the records.
            introducer: the peer.
            budget: what judging them may cost.

        Raises:
            UnavailableError: the store cannot tell; what was merged before stays.
        """
        budget = budget or Budget(1.0)
        results: dict[str, Kept] = {}
        readable: list[tuple[AgentKey, EndpointRecord]] = []
        for number, compact in enumerate(dict.fromkeys(compacts), 1):
            with budget.spending():
                try:
                    record = endpoint_record.parse(compact)
                    readable.append((parse_did(record.did).agent_key, record))
                except ProtocolError as exc:
                    results[compact] = Kept(compact, Refusal.of(exc))
            await _turn(number, budget)
        peer = parse_did(introducer).agent_key
        rows = await self._verified(readable, peer, results, budget)
        merged = await self.store.merge_records(rows)
        for (owner, row), one in zip(rows, merged, strict=True):
            await self._tell(owner, row, one)
            version = one.held.version if one.held else None
            kept = Kept(row.compact, one.outcome, owner, version, _is_news(row, one))
            results[row.compact] = kept
        await self._move([owner for (owner, _), one in zip(rows, merged, strict=True) if one.moves])
        return [results[compact] for compact in compacts]

    async def _move(self, owners: Sequence[AgentKey]) -> None:
        """Act upon the record. It is kept: where that fails now, a mover, or a login, does it."""
        for owner in owners:
            for mover in self.movers:
                try:
                    await mover(owner)
                except RelayError as exc:
                    log.loop_failed("settle", exc.code)

    async def _verified(
        self,
        given: Sequence[tuple[AgentKey, EndpointRecord]],
        introducer: AgentKey,
        results: dict[str, Kept],
        budget: Budget,
    ) -> list[tuple[AgentKey, RecordRow]]:
        """Rows of those that the agents signed; what is known already costs no signature."""
        held = await self.store.records([owner for owner, _ in given])
        rows: list[tuple[AgentKey, RecordRow]] = []
        for number, ((owner, record), row) in enumerate(zip(given, held, strict=True), 1):
            await _turn(number, budget)
            compact, now = record.jws.compact, clock.now()
            version = row.version if row else None
            verdict = endpoint_record.compare_versions(version, record.version, now)
            if verdict in {"same", "older"}:
                results[compact] = Kept(compact, verdict, owner, version)
                continue
            no = await self._objection(record, budget)
            if no is not None:
                results[compact] = Kept(compact, no, owner, version)
                continue
            names_us = record.names(self.relay) and record.status == "active"
            rows.append((owner, _row(record, names_us=names_us, introducer=introducer)))
        return rows

    async def _objection(self, record: EndpointRecord, budget: Budget) -> Refusal | None:
        claimed = parse_did(record.did)
        try:
            key = self.keys.known(claimed) or await self.keys.resolve(record.did)
        except RelayError as exc:
            return Refusal.of(exc)
        with budget.spending():
            return endpoint_record.verify(record, key, clock.now())

    async def _tell(self, owner: AgentKey, row: RecordRow, merged: Merged) -> None:
        if merged.outcome == "equivocal":
            # the first two are evidence; more of them are no news
            evidence = await self.store.evidence(owner)
            if evidence is not None and row.compact in evidence:
                log.event("equivocation", owner=owner)

    async def evidence(self, did: Did) -> tuple[str, str] | None:
        """Two records of one ``kv`` and ``seq`` that the agent has signed, if it ever did."""
        return await self.store.evidence(parse_did(did).agent_key)

    async def _held(self, owner: AgentKey) -> RecordRow | None:
        return (await self.store.records([owner]))[0]

    async def resolve(self, did: str) -> Found:
        """The newest record held of an agent.

        Raises:
            ProtocolError: ``bad_frame`` or ``unsupported``: not a DID that can be resolved.
        """
        try:
            owner = parse_did(did)
        except UnsupportedError as exc:
            raise error(ErrorCode.UNSUPPORTED, f"did: {exc}") from exc
        except ValueError as exc:
            raise error(ErrorCode.BAD_FRAME, f"did: {exc}") from exc
        try:
            row = await self._held(owner.agent_key)
        except UnavailableError:
            return Found("unreadable")
        if row is None:
            return Found("absent")
        stale = endpoint_record.is_stale(endpoint_record.parse(row.compact), clock.now())
        return Found("found", row.compact, stale)


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


def _is_news(row: RecordRow, merged: Merged) -> bool:
    is_kept = merged.held is not None and merged.held.version == row.version
    return is_kept and merged.outcome in {"newer", "equivocal"}


async def _turn(number: int, budget: Budget) -> None:
    if number % _AT_ONCE == 0:
        await asyncio.sleep(0)
        await budget.rest()
