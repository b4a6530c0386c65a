"""Hand-offs: an inbox changes relays, seen from either of the two (GUARANTEES.md §3).

Rules of the file: :mod:`relay.migration.model.machine` decides, the store takes each step in one
commit if
nobody else took one meanwhile, and whatever is said is said afterwards. Before any other step the
newest record held is acted upon. Every step may be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from relay import clock, log, metrics
from relay.inbox.model.types import (
    InboxRole,
)
from relay.inbox.ports import Keys
from relay.migration.model import machine, state_json
from relay.migration.model.state import (
    DigestPage,
    Event,
    MigrationSide,
    PeerMessage,
    RecordObserved,
    RecordRef,
    TimePassed,
    Transition,
)
from relay.migration.model.state_json import (
    MigrationRecord,
)
from relay.migration.ports import (
    HandoffStore,
    MigrationChange,
    MigrationRow,
)
from relay.protocol import (
    endpoint_record,
    frames,
    migration_order,
)
from relay.protocol import jws as jose
from relay.protocol.did import (
    VerificationKey,
    parse_did,
)
from relay.protocol.endpoint_record import EndpointRecord, RecordVersion
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
    Refusal,
    RelayError,
    UnavailableError,
)
from relay.protocol.ids import (
    AgentKey,
    Did,
)
from relay.protocol.migration_order import MigrationOrder
from relay.protocol.types import (
    Mode,
)
from relay.tasks import guarded

TRIES: Final = 32
"""Nodes of one relay that take steps at once take turns; this often none has won."""
MOST_OPEN: Final = 10_000
"""Keys are free: so many inboxes are on their way at once, beyond them none begins to come here."""
_AT_ONCE: Final = 64
"""Texts that are read before everybody else has a turn."""
_AT_HOME: Final = frozenset({InboxRole.HOME, InboxRole.UNCERTAIN})


def _nothing(*_: object) -> None:
    """Notify nobody."""


@dataclass(slots=True)
class MigrationSteps:
    """The hand-offs of one relay, as one node takes part in them.

    Args:
        me: this relay.
        store: takes the steps.
        keys: which keys may act for a DID.
        wake_forwarders: called when a digest, or mail, is to be sent.
        on_session_end: called with an inbox whose session a step ended.
        on_handoff_peers: called with :attr:`partners` when they may have changed.
    """

    me: Did
    store: HandoffStore
    keys: Keys
    wake_forwarders: Callable[[], None] = _nothing
    on_session_end: Callable[[AgentKey], None] = _nothing
    on_handoff_peers: Callable[[frozenset[Did]], None] = _nothing
    handoff_peers: frozenset[Did] = frozenset()
    """Relays that may talk with this one about some hand-off, whatever the federation."""
    _open: dict[AgentKey, frozenset[Did]] = field(default_factory=dict)
    _noted: set[AgentKey] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    # ------------------------------------------------------------ steps

    async def settle(self, owner: AgentKey, *, anew: bool = False) -> MigrationRecord:
        """Act upon the newest record held of an agent, if an inbox here is concerned.

        Args:
            owner: the agent.
            anew: write the side down even if nothing changes: then no mover is due any more.
        """
        return (await self.take(owner, None, anew=anew))[0]

    async def take(
        self,
        owner: AgentKey,
        said: Event | None,
        *,
        order: str = "",
        anew: bool = False,
        closes: bool = False,
        first: Callable[[], Awaitable[object]] | None = None,
    ) -> tuple[MigrationRecord, Transition]:
        """Act upon the newest record, then take one step; both in one commit.

        Args:
            owner: whose inbox.
            said: the step; None: the record alone.
            order: what the step is taken for, as signed.
            anew: as for :meth:`settle`.
            closes: write it down if the two relays have no more to say to each other.
            first: awaited once before the commit, and only where there is one.

        Raises:
            RelayError: why not; or ``storage_unavailable``.
        """
        is_done = first is None
        for _ in range(TRIES):
            row = await self.store.handoff(owner)
            before = self.kept(row)
            learned = _learn(before.side, row)
            taken = learned if said is None else _next(learned, said)
            kept = MigrationRecord(taken.side, order or before.order)
            change = _change(row, before, kept, taken, anew=anew, closes=closes)
            if change is None:
                return kept, taken
            if not is_done and first is not None:
                await first()
                is_done = True
            if await self.store.change_handoff(owner, row, change):
                self._note(owner, kept.side, is_open=change.is_open)
                if change.ends_session:
                    self.on_session_end(owner)
                return kept, taken
        detail = "other nodes change this hand-off all the time"
        raise UnavailableError(ErrorCode.STORAGE_UNAVAILABLE, detail, retry_after=1)

    def kept(self, row: MigrationRow) -> MigrationRecord:
        """A side as its store has it; what was never written down follows from the inbox."""
        if row.text:
            return state_json.decode(self.me, row.text)
        former = _ref(row.former)
        return MigrationRecord(
            machine.initial_side(self.me, row.holding, former, has_left=row.has_left)
        )

    def _note(self, owner: AgentKey, side: MigrationSide, *, is_open: bool) -> None:
        self._noted.add(owner)
        if is_open:
            self._open[owner] = side.handoff_peers
        else:
            self._open.pop(owner, None)
        self._tell()
        if side.mode is Mode.FROZEN:
            self.wake_forwarders()

    def _tell(self) -> None:
        self.handoff_peers = frozenset(did for dids in self._open.values() for did in dids)
        self.on_handoff_peers(self.handoff_peers)
        self._changed.set()

    async def wait_for_change(self, seconds: float) -> None:
        """Return when this node takes a step or looks at those of others, or after so long."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def is_full(self, owner: AgentKey) -> bool:
        """Whether one more inbox has no room on its way here."""
        return len(self._open) >= MOST_OPEN and owner not in self._open

    async def refresh(self, *, clock_ok: bool = True) -> None:
        """Look at what is open, at all nodes' doing, and at what time does to it.

        Args:
            clock_ok: whether the clock is to be believed; else no wait is over.
        """
        self._noted.clear()
        known: dict[AgentKey, frozenset[Did]] = {}
        due: list[AgentKey] = []
        now = clock.now()
        for number, (owner, text) in enumerate(await self.store.handoffs(), 1):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
            try:
                side = state_json.decode(self.me, text).side
            except ValueError:
                # one that is damaged must not keep the others from going on
                log.internal_error("handoffs")
                metrics.INTERNAL.inc()
                continue
            known[owner] = side.handoff_peers
            ticked = machine.step(side, TimePassed(), now)
            is_over = not machine.is_open(side, now, 0)
            if is_over or (isinstance(ticked, Transition) and ticked.side != side):
                due.append(owner)
        metrics.HANDOFFS.set(len(known))
        # what was noted while the store was asked is newer than its answer
        noted = {owner: self._open.get(owner) for owner in self._noted}
        self._open = {owner: dids for owner, dids in known.items() if owner not in noted}
        self._open |= {owner: dids for owner, dids in noted.items() if dids is not None}
        self._tell()
        for owner in due if clock_ok else ():
            tick = self.take(owner, TimePassed(), closes=True)
            # a store that is away is away for all of them
            await guarded("handoffs", tick, but=(UnavailableError,))

    # ------------------------------------------------------------ what peers say

    async def hear(self, peer: Did, said: frames.Migrate) -> frames.Migrated:
        """Take a page of a digest from a relay that has proven itself.

        Raises:
            RelayError: ``wrong_state``: nothing is handed over here by that relay under that id;
                ``moved``; or what is wrong with the evidence.
        """
        owner = _agent(said)
        row = await self.store.handoff(owner)
        if row.holding is None:
            # its agent makes an inbox here by logging in, or by an order; nobody else does
            raise ProtocolError(ErrorCode.WRONG_STATE, "the agent has no inbox here yet")
        handoff, named = await self._evidence(peer, said, row)
        page = DigestPage(
            handoff=handoff,
            digest_id=jose.b64decode(said.whole),
            number=said.number,
            total=said.total,
            awaiting_digests=frozenset(said.missing),
            floor=said.floor,
            doubts=said.doubts,
        )
        # once: a relay that was left must not go on writing an agent's rules
        is_first = peer in self.kept(row).side.awaiting_digests
        known = said.known if is_first else None

        async def learn() -> None:
            if known is not None:
                await self.store.learn_known(owner, known)

        _, step = await self.take(owner, PeerMessage(peer, page, named), first=learn)
        if step.answer is None:
            raise ProtocolError(ErrorCode.BAD_FRAME, "that is no page of a digest")
        if step.answer.next == said.total:
            log.event("handoff", step="digested", did=said.agent, handoff=said.handoff, peer=peer)
        return frames.Migrated(said.ref, said.handoff, said.whole, step.answer.next)

    async def _evidence(
        self, peer: Did, said: frames.Migrate, row: MigrationRow
    ) -> tuple[str, bool]:
        """Which hand-off it is here, and whether the agent itself has said that mail lay there.

        An order and the record that it ended in are one hand-off: a relay that has lost what it
        knew of the order knows the record.

        Raises:
            RelayError: what is shown for it is not the agent's.
        """
        handoff = self.kept(row).side.handoff
        if handoff == (said.handoff, peer) or row.record is None:
            return said.handoff, False
        key = await self.keys.resolve(said.agent)
        evidence = _evidence(said.evidence, key)
        newest = endpoint_record.parse(row.record.compact)
        named = migration_order.authorizes(peer, evidence, newest)
        if isinstance(evidence, MigrationOrder) and evidence.id == said.handoff:
            is_its_end = evidence.record.version == newest.version
            return (RecordRef.of(newest).handoff if is_its_end else said.handoff), named
        return said.handoff, named

    async def may_bring(self, peer: Did, agent: AgentKey) -> bool:
        """Return whether a relay's mail for an agent belongs to a hand-off."""
        return self.kept(await self.store.handoff(agent)).side.takes_from(peer)


def _agent(said: frames.Migrate) -> AgentKey:
    try:
        for relay in said.missing:
            parse_did(relay)
        return parse_did(said.agent).agent_key
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_FRAME, f"migrate: {exc}") from exc


def _learn(side: MigrationSide, row: MigrationRow) -> Transition:
    """What the newest record makes of a side."""
    record = _ref(row.record.compact if row.record else None)
    if record is None:
        return Transition(side)
    if side.record is not None and side.record.version > record.version:
        # one whose seq no right clock can have given had to give way in the store
        side = side._replace(record=None)
    done = machine.step(side, RecordObserved(record, _former(row), _fork(row, record)), clock.now())
    return _taken(done)


def _former(row: MigrationRow) -> RecordRef | None:
    """Where the agent lived before: as the record before says, and the newest itself."""
    before = _ref(row.former)
    assert row.record is not None  # noqa: S101  it is what is learned
    left = [
        one.did
        for one in endpoint_record.parse(row.record.compact).drain
        if one.until > clock.now()
    ]
    if not left:
        return before
    version, homes = (before.version, before.homes) if before else (RecordVersion(0, 0, b""), ())
    return RecordRef(version, tuple(dict.fromkeys((*homes, *left))))


def _next(learned: Transition, said: Event) -> Transition:
    done = _taken(machine.step(learned.side, said, clock.now()))
    return done._replace(mark_present=done.mark_present or learned.mark_present)


def _taken(done: Transition | Refusal) -> Transition:
    if isinstance(done, Refusal):
        raise done.to_error()
    return done


def _ref(compact: str | None) -> RecordRef | None:
    return None if compact is None else RecordRef.of(endpoint_record.parse(compact))


def _fork(row: MigrationRow, record: RecordRef) -> RecordRef | None:
    """What else the agent signed under one seq: all homes that such records name."""
    refs = [_ref(one) for one in row.evidence or ()]
    others = [ref for ref in refs if ref is not None and ref.version != record.version]
    if not others:
        return None
    homes = dict.fromkeys(home for ref in others for home in ref.homes)
    return RecordRef(max(ref.version for ref in others), tuple(homes))


def _change(
    row: MigrationRow,
    before: MigrationRecord,
    kept: MigrationRecord,
    step: Transition,
    *,
    anew: bool,
    closes: bool,
) -> MigrationChange | None:
    """What a step does to the store; None: nothing at all."""
    side = kept.side
    if not row.text and not step.imports and _is_plain(side, row):
        return None
    is_same = bool(row.text) and kept == before and row.holding is side.holding
    is_open = machine.is_open(side, clock.now(), row.tally.waiting)
    is_due = anew or (closes and not is_open)
    if is_same and not (is_due or step.mark_present or step.imports):
        return None
    turns = row.holding is not side.holding and not {row.holding, side.holding} <= _AT_HOME
    hands_over = side.mode is Mode.FROZEN and side.handoff != before.side.handoff
    was = before.side.mode
    begins = side.mode is not was and (side.mode is not Mode.ACTIVE or was is Mode.NONE)
    return MigrationChange(
        text=state_json.encode(*kept),
        holding=side.holding,
        ends_session=turns or hands_over,
        marks_present=step.mark_present,
        is_new=begins,
        is_open=is_open,
        has_work=machine.has_work(side),
        doubts=step.imports.doubts if step.imports else b"",
        floor=step.imports.floor if step.imports else -1,
    )


def _is_plain(side: MigrationSide, row: MigrationRow) -> bool:
    """Whether there is no more to say of it than its inbox and its record do."""
    if side.mode is Mode.NONE:
        return True
    if row.holding is None and side.mode is Mode.ACTIVE and not side.awaiting_digests:
        return True
    # a digest that came, or a part of one, is to be kept: its relay may bring what it holds
    has_heard = side.digest_sources or side.partial_digest is not None
    is_bare = (
        side.handoff is None
        and not side.awaiting_digests
        and side.fork_version is None
        and not has_heard
    )
    return side.mode is Mode.ACTIVE and is_bare and row.holding is InboxRole.HOME


def _evidence(compact: str, key: VerificationKey) -> MigrationOrder | EndpointRecord:
    """An order or a record that the agent signed, however long ago."""
    try:
        evidence: MigrationOrder | EndpointRecord = endpoint_record.parse(compact)
    except RelayError:
        evidence = migration_order.parse(compact)
    jws = evidence.jws
    if jws.header.kid != key.kid or not jose.is_signed_by(jws, key.public_key):
        raise ProtocolError(ErrorCode.BAD_SIGNATURE, "the evidence is not signed by the agent")
    return evidence
