"""How an agent changes relays: order, prepare, freeze, digest, publish, and then it looks on.

Rules of the file: each stage is noted before anything of it is said, and may be said again after a
crash. Nothing is published before the target has the digest, but where the program gives the source
up. What two relays say is compared (:mod:`relay.client.migration.verify`), and never believed
further than
a signature goes. Without a session: closing and opening those is the :class:`Agency`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol, TypeVar

from relay import clock
from relay.client.directory.publish import put
from relay.client.errors import AgentError, typed
from relay.client.http.origin import Origin
from relay.client.migration import orders, verify
from relay.client.migration.handoff import (
    Office,
    Room,
)
from relay.client.migration.retry import MigrationProgress, Patience, Tell, expect, leniently
from relay.client.state.agent_state import AgentState
from relay.client.state.migration_log import MigrationReport, MigrationStage, MigrationState
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import (
    EndpointRecord,
    Home,
)
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import (
    Did,
    Eid,
)
from relay.protocol.types import (
    Mode,
)

T = TypeVar("T")

DEADLINE_S: Final = 600.0
BRIEFLY_S: Final = 5.0
"""So long a source that the program has given up is asked all the same."""
READY: Final = (Mode.INCOMING, Mode.ACTIVE)
"""A target that got ready; delivering already, where another program of this agent was faster."""
TRIES: Final = 3
"""Another program of this agent may publish, or order, at the same time."""
_OVERTAKEN: Final = frozenset({ErrorCode.EXPIRED, ErrorCode.STALE_RECORD})


class Agency(Protocol):
    """Whose migration it is: a running agent, or a command without a session."""

    @property
    def key(self) -> SigningKey:
        """The agent's."""
        ...

    @property
    def state(self) -> AgentState:
        """What it remembers."""
        ...

    def origin(self, url: str) -> Origin:
        """Where a relay is dialled.

        Raises:
            ValueError: it is no origin.
            AgentError: it is not to be dialled.
        """
        ...

    async def leave(self, source: Did) -> None:
        """Close the session there in the clean way, its acks said; there is none until it stays."""
        ...

    def stay(self) -> None:
        """It is cancelled: there may be a session at the source again."""
        ...

    async def arrive(self) -> None:
        """The record is published: log in where it says, and nowhere else."""
        ...

    def expect(self, coming: frozenset[Eid] | None) -> None:
        """What comes from the old home; None: nobody knows."""
        ...


def silent(_: MigrationProgress) -> None:
    """Nobody is told."""


@dataclass(frozen=True, slots=True)
class Wish:
    """How it is to be done.

    Args:
        tell: is told how it goes.
        without_source: give the source up where it does not answer at once.
        deadline_s: seconds to go on.
    """

    tell: Tell = silent
    without_source: bool = False
    deadline_s: float = DEADLINE_S


@dataclass(slots=True)
class Migration:
    """One try at moving an agent; the next one goes on where it ends.

    Args:
        agency: whose.
        wish: how.
    """

    agency: Agency
    wish: Wish = field(default_factory=Wish)
    until: float = field(init=False)

    def __post_init__(self) -> None:
        self.until = clock.monotonic() + self.wish.deadline_s

    # ------------------------------------------------------------ beginning

    async def to(self, url: str) -> MigrationReport:
        """Move to ``url``, or go on moving there.

        Raises:
            AgentError: it does not go on; ``.detail`` says what to do.
            ValueError: ``url`` is no origin.
        """
        target = self.agency.origin(url)
        pending = self._pending
        if pending is not None and pending.stage is MigrationStage.CANCELLING:
            # a source that is given up need not hear it: the next order overtakes this one, too
            if not self.wish.without_source or str(target) == pending.parsed_order.source.url:
                await self._undo(pending)
            pending = None
        if pending is None:
            known = orders.known(self.agency.state, target)
            if known is not None:
                return known if known.waiting == 0 else await self._copy(self._move)
            await self._plan(target)
        elif str(target) == pending.parsed_order.target.url:
            if self.wish.without_source and not pending.source_abandoned:
                await self._keep(pending, source_abandoned=True)
        elif pending.locks_record and str(target) == pending.parsed_order.source.url:
            return await self.back()
        else:
            await self._plan(target)
        return await self.resume()

    async def resume(self) -> MigrationReport:
        """Go on with the one that is under way.

        Raises:
            AgentError: as :meth:`to`.
        """
        for n in range(TRIES):
            try:
                return await self._drive()
            except AgentError as exc:
                move = self._move
                if exc.code not in _OVERTAKEN or not move.locks_record or n == TRIES - 1:
                    raise
                await self._plan(self.agency.origin(move.parsed_order.target.url))
        raise AssertionError

    async def back(self) -> MigrationReport:
        """Take it back: the agent stays where it is.

        Raises:
            WrongStateError: there is none, or it is published already.
            AgentError: the source, which may have stopped delivering, does not take the record.
        """
        move = self._pending
        if move is None:
            raise typed(ErrorCode.WRONG_STATE, "this agent does not change relays just now")
        if move.stage is MigrationStage.COPYING:
            url = move.parsed_order.target.url
            detail = f"it lives at {url} already; it can move back from there"
            raise typed(ErrorCode.WRONG_STATE, detail)
        if move.stage is not MigrationStage.CANCELLING:
            move = await orders.take_back(self.agency.key, self.agency.state, move)
        await self._undo(move)
        order = move.parsed_order
        return MigrationReport(order.id, order.source, order.source, waiting=0)

    # ------------------------------------------------------------ stages

    async def _drive(self) -> MigrationReport:
        stages: dict[MigrationStage, Callable[[MigrationState], Awaitable[None]]] = {
            MigrationStage.PREPARING: self._prepare,
            MigrationStage.FREEZING: self._freeze,
            MigrationStage.DIGEST: self._digest,
            MigrationStage.PUBLISHING: self._publish,
        }
        while (move := self._move).stage in stages:
            self.wish.tell(MigrationProgress(move.stage))
            try:
                await stages[move.stage](move)
            except AgentError as exc:
                if move.stage is MigrationStage.PREPARING and exc.code not in _OVERTAKEN:
                    await self._give_up(move)
                raise
        if move.stage is MigrationStage.CANCELLING:
            return await self.back()
        return await self._copy(move)

    async def _prepare(self, move: MigrationState) -> None:
        if orders.is_home_already(self.agency.state, move):
            # nothing is prepared where it is at home: the others hand over by the record alone
            await self._keep(move, stage=MigrationStage.PUBLISHING)
            return
        source, target = self._offices(move)
        items = await self._of_source(move, source.inventory)
        # without the source, too: so the target knows whose digest it lacks, and marks everything
        newest = self.agency.state.record or ""
        room = Room.of(items or ())
        said = await self._patience(move).insist(lambda: target.prepare(room, newest))
        expect(target, said, move, *READY)
        if items is None:
            step: dict[str, Any] = {"stage": MigrationStage.PUBLISHING, "source_abandoned": True}
        else:
            # noted before it is asked: from here on the source may have stopped delivering
            step = {"stage": MigrationStage.FREEZING, "source_frozen": True}
            step["delivery_stopped_at"] = move.delivery_stopped_at or float(clock.now())
        await self._keep(move, target_statement=said.compact, **step)

    async def _freeze(self, move: MigrationState) -> None:
        source, _ = self._offices(move)
        await self.agency.leave(source.relay)
        said = await self._of_source(move, source.freeze)
        if said is None:
            await self._keep(move, stage=MigrationStage.PUBLISHING, source_abandoned=True)
            return
        expect(source, said, move, Mode.FROZEN)
        await self._keep(move, stage=MigrationStage.DIGEST, source_statement=said.compact)

    async def _digest(self, move: MigrationState) -> None:
        source, target = self._offices(move)
        await self.agency.leave(source.relay)
        if not move.inventory_saved:
            items = await self._of_source(move, source.inventory)
            if items is not None:
                await self.agency.state.migration.save_inventory(items)
                move = await self._keep(move, inventory_saved=True)
        if await self._of_source(move, lambda: self._handed(move, source, target)) is None:
            move = await self._keep(move, source_abandoned=True)
        await self._keep(move, stage=MigrationStage.PUBLISHING)

    async def _handed(self, move: MigrationState, source: Office, target: Office) -> bool:
        """Both say that the target has the digest.

        Raises:
            AgentError: ``migrating``: not yet.
        """
        said = await target.state()
        expect(target, said, move, *READY)
        if said.statement.digested:
            return True
        said = await source.freeze()
        expect(source, said, move, Mode.FROZEN)
        if not said.statement.handed:
            why = said.statement.why or "the old relay has not told the new one what was seen"
            raise typed(ErrorCode.MIGRATING, why)
        said = await target.state()
        expect(target, said, move, *READY)
        if not said.statement.digested:
            raise typed(
                ErrorCode.MIGRATING, "the new relay says that it was not told what was seen"
            )
        return True

    async def _publish(self, move: MigrationState) -> None:
        record = move.parsed_order.record
        _, target = self._offices(move)
        newer = await self._patience(move).insist(lambda: put(target.origin, record))
        if newer is not None:
            self.agency.state.keep_record(newer.jws.compact)
            raise typed(ErrorCode.STALE_RECORD, "another program of this agent has published")
        self.agency.state.keep_record(record.jws.compact)
        await self.agency.state.flush_record()
        move = await self._keep(move, stage=MigrationStage.COPYING)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(self._left_s, 0.0)):
                await self.agency.arrive()
        await self._keep(move, delivery_resumed_at=float(clock.now()))
        self.agency.expect(await self._coming(move, ()))

    async def _copy(self, move: MigrationState) -> MigrationReport:
        source, target = self._offices(move)
        watch = verify.Watch(self.agency.state.migration, source, target, self.wish.tell)
        patience_s = BRIEFLY_S if move.source_abandoned else self._left_s
        moved = await watch.until_empty(move, clock.monotonic() + patience_s)
        self.agency.expect(await self._coming(move, moved.missing))
        if moved.waiting == 0 or move.source_abandoned:
            await self.agency.state.migration.save_report(moved)
            await self._keep(self._move, stage=MigrationStage.DONE)
            self.wish.tell(MigrationProgress(MigrationStage.DONE))
        return moved

    async def _coming(
        self, move: MigrationState, missing: Collection[Eid]
    ) -> frozenset[Eid] | None:
        if not move.inventory_saved:
            return None
        now, items = clock.now(), await self.agency.state.migration.inventory()
        return frozenset(one.eid for one in items if one.expires_at > now) - frozenset(missing)

    # ------------------------------------------------------------ endings

    async def _give_up(self, move: MigrationState) -> None:
        """Nobody has stopped anything yet: as if it had never been asked for."""
        if not move.source_frozen:
            await self._undo(await orders.take_back(self.agency.key, self.agency.state, move))

    async def _undo(self, move: MigrationState) -> None:
        """Let both relays know the record that overtakes the order's own."""
        record = orders.newest(self.agency.state)
        source, target = self._offices(move)
        if record is not None and move.source_frozen:
            await self._patience(move).insist(lambda: self._give(source, record))
        if record is not None:
            # also after the deadline: whoever has the order must not publish it
            seconds = max(self._left_s, BRIEFLY_S) / 2
            await leniently(lambda: put(source.origin, record), seconds)
            await leniently(lambda: put(target.origin, record), seconds)
        await self._keep(move, stage=MigrationStage.DROPPED)
        self.agency.stay()

    async def _give(self, office: Office, record: EndpointRecord) -> None:
        newer = await put(office.origin, record)
        if newer is not None:
            self.agency.state.keep_record(newer.jws.compact)

    # ------------------------------------------------------------ parts

    @property
    def _left_s(self) -> float:
        return self.until - clock.monotonic()

    @property
    def _pending(self) -> MigrationState | None:
        return self.agency.state.migration.pending

    @property
    def _move(self) -> MigrationState:
        move = self.agency.state.migration.state
        if move is None:
            raise typed(ErrorCode.WRONG_STATE, "this agent does not change relays just now")
        return move

    async def _keep(self, move: MigrationState, **values: Any) -> MigrationState:
        kept = replace(move, **values)
        await self.agency.state.migration.save(kept)
        return kept

    async def _plan(self, target: Origin) -> None:
        """Sign the order, and note it."""
        agency, pending = self.agency, self._pending
        did, dial = agency.key.did, agency.origin
        try:
            async with asyncio.timeout(max(self._left_s, 0.0)):
                source = await self._source(pending, target)
                there = await orders.meet(did, agency.state, source, target, dial=dial)
        except TimeoutError as exc:
            detail = f"{target}, or a home of this agent, did not answer in time"
            raise typed(ErrorCode.PEER_UNREACHABLE, f"{detail}. Nothing was changed") from exc
        await orders.order(
            agency.key, agency.state, source, there, without_source=self.wish.without_source
        )

    async def _source(self, pending: MigrationState | None, target: Origin) -> Home:
        if pending is not None and pending.locks_record:
            return pending.parsed_order.source
        return await orders.source(
            self.agency.key.did, self.agency.state, target, self.agency.origin
        )

    def _offices(self, move: MigrationState) -> tuple[Office, Office]:
        order = move.parsed_order
        source, target = [
            Office(self.agency.origin(home.url), home.did, order.did, move.order)
            for home in (order.source, order.target)
        ]
        return source, target

    async def _of_source(self, move: MigrationState, ask: Callable[[], Awaitable[T]]) -> T | None:
        """Ask the source; None: the program has given it up, and it does not answer."""
        if not (move.source_abandoned or self.wish.without_source):
            return await self._patience(move).insist(ask)
        try:
            until = min(self.until, clock.monotonic() + BRIEFLY_S)
            return await Patience(move, until, self.wish.tell).insist(ask)
        except AgentError as exc:
            if exc.code in _OVERTAKEN:
                raise
            return None

    def _patience(self, move: MigrationState) -> Patience:
        return Patience(move, self.until, self.wish.tell)
