"""Apply events to the migrations of one relay: compare-and-swap on the store.

Several nodes may apply events to one inbox. Each reads the row, asks the state machine for the
transition, and writes it if nobody else has written meanwhile; else it starts again. Nothing is
signed or answered before the write. :meth:`MigrationSteps.apply` is the entry point.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from relay import clock, log, metrics
from relay.inbox.model.types import InboxRole
from relay.inbox.ports import Keys
from relay.migration.model import machine, state, state_json
from relay.migration.model.state import MigrationRecord, MigrationSide, RecordRef, Transition
from relay.migration.ports import MigrationChange, MigrationRow, MigrationStore
from relay.protocol import endpoint_record, frames, jws, migration_order
from relay.protocol.did import VerificationKey, parse_did
from relay.protocol.endpoint_record import EndpointRecord, RecordVersion
from relay.protocol.errors import ErrorCode, ProtocolError, Refusal, RelayError, UnavailableError
from relay.protocol.ids import AgentKey, Did
from relay.protocol.migration_order import MigrationOrder
from relay.protocol.types import Mode
from relay.tasks import guarded

MAX_TRIES: Final = 32
"""After so many lost races this node gives up."""
MAX_OPEN: Final = 10_000
"""Keys are free: beyond this number no further inbox is prepared here."""
_TEXTS_PER_TURN: Final = 64
"""Texts that are read before the event loop runs others."""
_AT_HOME: Final = frozenset({InboxRole.HOME, InboxRole.UNCERTAIN})


def _nothing(*_: object) -> None:
    """Notify nobody."""


@dataclass(slots=True)
class MigrationSteps:
    """The migrations of one relay, as one node applies events to them.

    Args:
        me: this relay.
        store: holds the sides.
        keys: which keys may act for a DID.
        wake_forwarders: called when a digest, or mail, is to be sent.
        on_session_end: called with an inbox whose session a step ended.
        on_handoff_peers: called with :attr:`handoff_peers` when they change.
    """

    me: Did
    store: MigrationStore
    keys: Keys
    wake_forwarders: Callable[[], None] = _nothing
    on_session_end: Callable[[AgentKey], None] = _nothing
    on_handoff_peers: Callable[[frozenset[Did]], None] = _nothing
    handoff_peers: frozenset[Did] = frozenset()
    """The relays that may talk with this one about some inbox, whatever the federation."""
    _open: dict[AgentKey, frozenset[Did]] = field(default_factory=dict)
    _peer_counts: Counter[Did] = field(default_factory=Counter)
    _touched: set[AgentKey] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    # ------------------------------------------------------------ steps

    async def apply_record(self, owner: AgentKey, *, force: bool = False) -> MigrationRecord:
        """Apply the newest record of an agent, if it concerns an inbox here.

        Args:
            owner: the agent.
            force: write the side even if it does not change: then no forwarder is due any more.
        """
        return (await self.apply(owner, None, force=force))[0]

    async def apply(
        self,
        owner: AgentKey,
        event: state.Event | None,
        *,
        order: str = "",
        force: bool = False,
        closes: bool = False,
        before_commit: Callable[[], Awaitable[object]] | None = None,
    ) -> tuple[MigrationRecord, Transition]:
        """Apply the newest record and then an event, in one commit.

        Args:
            owner: the agent.
            event: None: only the record.
            order: the signed order that the event comes from.
            force: as for :meth:`apply_record`.
            closes: write the side if the two relays have nothing more to say to each other.
            before_commit: awaited once, only if there is a commit.

        Raises:
            RelayError: the refusal; or ``storage_unavailable``.
        """
        is_prepared = before_commit is None
        for _ in range(MAX_TRIES):
            row = await self.store.load(owner)
            before = self.load_state(row)
            step = _on_newest_record(before.side, row)
            if event is not None:
                step = _on_event(step, event)
            after = MigrationRecord(step.side, order or before.order)
            change = _change(row, before, after, step, force=force, closes=closes)
            if change is None:
                return after, step
            if not is_prepared and before_commit is not None:
                await before_commit()
                is_prepared = True
            if await self.store.change(owner, row, change):
                self._on_committed(owner, after.side, change)
                return after, step
        detail = "other nodes change this hand-off all the time"
        raise UnavailableError(ErrorCode.STORAGE_UNAVAILABLE, detail, retry_after=1)

    def load_state(self, row: MigrationRow) -> MigrationRecord:
        """Return the side in a row; without a stored one it follows from the inbox."""
        if row.text:
            return state_json.decode(self.me, row.text)
        former = _ref(row.former)
        return MigrationRecord(
            machine.initial_side(self.me, row.role, former, has_left=row.has_left)
        )

    def _on_committed(self, owner: AgentKey, side: MigrationSide, change: MigrationChange) -> None:
        self._touched.add(owner)
        self._set_open(owner, side.handoff_peers if change.is_open else None)
        self._changed.set()
        if side.mode is Mode.FROZEN:
            self.wake_forwarders()
        if change.ends_session:
            self.on_session_end(owner)

    def _set_open(self, owner: AgentKey, peers: frozenset[Did] | None) -> None:
        before = self._open.pop(owner, frozenset())
        if peers is not None:
            self._open[owner] = peers
        now = peers or frozenset()
        self._peer_counts.update(now - before)
        self._peer_counts.subtract(before - now)
        for did in before - now:
            if not self._peer_counts[did]:
                del self._peer_counts[did]
        if self.handoff_peers != self._peer_counts.keys():
            self.handoff_peers = frozenset(self._peer_counts)
            self.on_handoff_peers(self.handoff_peers)

    async def wait_for_change(self, seconds: float) -> None:
        """Return when this node applies an event or reads those of others, or after so long."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def at_capacity(self, owner: AgentKey) -> bool:
        """Return True if no further inbox can be prepared here."""
        return len(self._open) >= MAX_OPEN and owner not in self._open

    async def refresh(self, *, clock_ok: bool = True) -> None:
        """Read the open migrations of all nodes, and apply the passing of time.

        Args:
            clock_ok: the store's clock is believed; else no wait ends.
        """
        self._touched.clear()
        found: dict[AgentKey, frozenset[Did]] = {}
        due: list[AgentKey] = []
        now = clock.now()
        for number, (owner, text) in enumerate(await self.store.list_open(), 1):
            if number % _TEXTS_PER_TURN == 0:
                await asyncio.sleep(0)
            try:
                side = state_json.decode(self.me, text).side
            except ValueError:
                # a damaged text must not stop the others
                log.internal_error("handoffs")
                metrics.INTERNAL.inc()
                continue
            found[owner] = side.handoff_peers
            step = machine.step(side, state.TimePassed(), now)
            is_over = not machine.is_open(side, now, 0)
            if is_over or (isinstance(step, Transition) and step.side != side):
                due.append(owner)
        metrics.HANDOFFS.set(len(found))
        # what this node has committed meanwhile is newer than the store's answer
        for owner in (self._open.keys() | found.keys()) - self._touched:
            self._set_open(owner, found.get(owner))
        self._changed.set()
        for owner in due if clock_ok else ():
            part = self.apply(owner, state.TimePassed(), closes=True)
            # an outage of the store concerns them all
            await guarded("handoffs", part, but=(UnavailableError,))

    # ------------------------------------------------------------ peers

    async def on_digest_page(self, peer: Did, frame: frames.Migrate) -> frames.Migrated:
        """Import a page of a digest from an authenticated relay.

        Raises:
            RelayError: ``wrong_state``: that relay hands nothing over here under that id;
                ``moved``; or the error of the evidence.
        """
        owner = _owner(frame)
        row = await self.store.load(owner)
        if row.role is None:
            # only a login or an order of the agent makes an inbox here
            raise ProtocolError(ErrorCode.WRONG_STATE, "the agent has no inbox here yet")
        handoff, named = await self._authorize(peer, frame, row)
        page = state.DigestPage(
            handoff=handoff,
            digest_id=jws.b64decode(frame.digest_id),
            number=frame.number,
            total=frame.total,
            awaiting_digests=frozenset(frame.awaiting_digests),
            dedup_horizon=frame.dedup_horizon_hour,
            maybe_seen=frame.maybe_seen,
        )
        # once: a former home must not go on writing an agent's rules
        is_first = peer in self.load_state(row).side.awaiting_digests
        known = frame.rules if is_first else None

        async def learn() -> None:
            if known is not None:
                await self.store.add_known(owner, known)

        message = state.PeerMessage(peer, page, named)
        _, step = await self.apply(owner, message, before_commit=learn)
        if step.answer is None:
            raise ProtocolError(ErrorCode.BAD_FRAME, "that is no page of a digest")
        if step.answer.next == frame.total:
            log.event("handoff", step="digested", did=frame.agent, handoff=frame.handoff, peer=peer)
        return frames.Migrated(frame.ref, frame.handoff, frame.digest_id, step.answer.next)

    async def _authorize(
        self, peer: Did, frame: frames.Migrate, row: MigrationRow
    ) -> tuple[str, bool]:
        """Return the id of the hand-off here, and whether the agent signed ``peer``.

        An order and the record that it ends in are one hand-off: a relay that has lost the order
        finds it by the record.

        Raises:
            RelayError: the evidence is not the agent's.
        """
        handoff = self.load_state(row).side.handoff
        if handoff == (frame.handoff, peer) or row.record is None:
            return frame.handoff, False
        key = await self.keys.resolve(frame.agent)
        evidence = _verified_evidence(frame.authorization, key)
        newest = endpoint_record.parse(row.record.compact)
        named = migration_order.authorizes(peer, evidence, newest)
        if isinstance(evidence, MigrationOrder) and evidence.id == frame.handoff:
            is_its_end = evidence.record.version == newest.version
            return (RecordRef.of(newest).handoff if is_its_end else frame.handoff), named
        return frame.handoff, named

    async def accepts_handoff_from(self, peer: Did, agent: AgentKey) -> bool:
        """Return True if a relay's mail for an agent belongs to a hand-off."""
        side = self.load_state(await self.store.load(agent)).side
        return side.accepts_handoff_from(peer)


def _owner(frame: frames.Migrate) -> AgentKey:
    try:
        for relay in frame.awaiting_digests:
            parse_did(relay)
        return parse_did(frame.agent).agent_key
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_FRAME, f"migrate: {exc}") from exc


def _on_newest_record(side: MigrationSide, row: MigrationRow) -> Transition:
    record = _ref(row.record.compact if row.record else None)
    if record is None:
        return Transition(side)
    if side.record is not None and side.record.version > record.version:
        # a record from a wrong clock had the greater version, and the store has replaced it
        side = side._replace(record=None)
    event = state.RecordObserved(record, _former(row), _fork(row, record))
    return _accepted(machine.step(side, event, clock.now()))


def _on_event(before: Transition, event: state.Event) -> Transition:
    step = _accepted(machine.step(before.side, event, clock.now()))
    return step._replace(mark_present=step.mark_present or before.mark_present)


def _accepted(result: Transition | Refusal) -> Transition:
    if isinstance(result, Refusal):
        raise result.to_error()
    return result


def _ref(compact: str | None) -> RecordRef | None:
    return None if compact is None else RecordRef.of(endpoint_record.parse(compact))


def _former(row: MigrationRow) -> RecordRef | None:
    """Return the earlier homes: of the record before, and those that the newest one left."""
    before = _ref(row.former)
    assert row.record is not None  # noqa: S101  the caller has parsed it
    newest = endpoint_record.parse(row.record.compact)
    left = [one.did for one in newest.drain if one.until > clock.now()]
    if not left:
        return before
    version, homes = (before.version, before.homes) if before else (RecordVersion(0, 0, b""), ())
    return RecordRef(version, tuple(dict.fromkeys((*homes, *left))))


def _fork(row: MigrationRow, record: RecordRef) -> RecordRef | None:
    """Return the homes of other records that the agent signed under one seq."""
    refs = [_ref(one) for one in row.evidence or ()]
    others = [ref for ref in refs if ref is not None and ref.version != record.version]
    if not others:
        return None
    homes = dict.fromkeys(home for ref in others for home in ref.homes)
    return RecordRef(max(ref.version for ref in others), tuple(homes))


def _change(
    row: MigrationRow,
    before: MigrationRecord,
    after: MigrationRecord,
    step: Transition,
    *,
    force: bool,
    closes: bool,
) -> MigrationChange | None:
    """Return what to write; None: nothing."""
    side = after.side
    if not row.text and not step.imports and _follows_from_inbox(side, row):
        return None
    is_same = bool(row.text) and after == before and row.role is side.role
    is_open = machine.is_open(side, clock.now(), row.counters.waiting)
    is_due = force or (closes and not is_open)
    if is_same and not (is_due or step.mark_present or step.imports):
        return None
    changes_reader = row.role is not side.role and not {row.role, side.role} <= _AT_HOME
    changes_target = side.mode is Mode.FROZEN and side.handoff != before.side.handoff
    was = before.side.mode
    return MigrationChange(
        text=state_json.encode(*after),
        role=side.role,
        ends_session=changes_reader or changes_target,
        marks_present=step.mark_present,
        is_new=side.mode is not was and (side.mode is not Mode.ACTIVE or was is Mode.NONE),
        is_open=is_open,
        has_work=machine.has_work(side),
        maybe_seen=step.imports.maybe_seen if step.imports else b"",
        dedup_horizon=step.imports.dedup_horizon if step.imports else -1,
    )


def _follows_from_inbox(side: MigrationSide, row: MigrationRow) -> bool:
    """Return True if the inbox and the record say all of this side: nothing need be written."""
    if side.mode is Mode.NONE:
        return True
    if row.role is None and side.mode is Mode.ACTIVE and not side.awaiting_digests:
        return True
    # a digest, or a part of one, is written: its relay may hand its mail over
    has_more = (
        side.handoff is not None
        or side.awaiting_digests
        or side.fork_version is not None
        or side.digest_sources
        or side.partial_digest is not None
    )
    return side.mode is Mode.ACTIVE and not has_more and row.role is InboxRole.HOME


def _verified_evidence(compact: str, key: VerificationKey) -> MigrationOrder | EndpointRecord:
    """Return an order or a record that the agent signed, however long ago."""
    try:
        evidence: MigrationOrder | EndpointRecord = endpoint_record.parse(compact)
    except RelayError:
        evidence = migration_order.parse(compact)
    header = evidence.jws.header
    if header.kid != key.kid or not jws.is_signed_by(evidence.jws, key.public_key):
        raise ProtocolError(ErrorCode.BAD_SIGNATURE, "the evidence is not signed by the agent")
    return evidence
