"""What is signed for a change of relays: the order, the record in it, and the one that undoes it.

Rules of the file: nothing is signed before the relays that can be reached were asked for the newest
record; what is signed is noted before anybody sees it. The order carries a record that whoever has
the order can publish, so an order is taken back only by a record that is newer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from relay import clock
from relay.client.directory.publish import home_at
from relay.client.directory.resolve import resolve_at
from relay.client.errors import AgentError, of, typed
from relay.client.http.origin import Origin
from relay.client.state.agent_state import AgentState
from relay.client.state.migration_log import MigrationReport, MigrationStage, MigrationState
from relay.protocol import (
    endpoint_record,
    migration_order,
)
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import (
    EndpointRecord,
    Home,
    LeftHome,
)
from relay.protocol.envelope import MAX_LIFETIME_S
from relay.protocol.errors import (
    ErrorCode,
    RelayError,
)
from relay.protocol.ids import (
    Did,
    Timestamp,
)
from relay.protocol.migration_order import MigrationOrder

Dial = Callable[[str], Origin]

LEFT_S: Final = MAX_LIFETIME_S
"""No envelope lives longer: until then a home that was left may hold mail."""


def newest(state: AgentState) -> EndpointRecord | None:
    """The newest record that is known of this agent."""
    return endpoint_record.parse(state.record) if state.record else None


def known(state: AgentState, target: Origin) -> MigrationReport | None:
    """What the last migration came to, where that led to ``target`` and the agent is there."""
    record, log = newest(state), state.migration
    if record is None or [home.url for home in record.relays] != [str(target)]:
        return None
    if log.report is not None and log.report.target.url == str(target):
        return log.report
    raise typed(ErrorCode.WRONG_STATE, f"this agent lives at {target} already")


def is_home_already(state: AgentState, move: MigrationState) -> bool:
    """Whether the target is one of several homes: then the others are just left."""
    record = newest(state)
    return record is not None and record.names(move.parsed_order.target.did)


async def source(did: Did, state: AgentState, target: Origin, dial: Dial) -> Home:
    """Where the agent lives now: its best home but for ``target``.

    Raises:
        AgentError: ``not_admitted``: nowhere, as far as anybody can tell; ``wrong_state``: there.
    """
    await _learn(did, state, target)
    record = newest(state)
    for home in sorted(record.relays if record else (), key=lambda home: home.prio):
        if home.url != str(target):
            await _learn(did, state, dial(home.url))
    record = newest(state)
    homes = sorted(record.relays if record else (), key=lambda home: home.prio)
    others = [home for home in homes if home.url != str(target)]
    if homes and not others:
        raise typed(ErrorCode.WRONG_STATE, f"this agent lives at {target} already")
    if not others:
        detail = "this agent has no home that it could move from; log in where it is to live"
        raise typed(ErrorCode.NOT_ADMITTED, detail)
    return others[0]


async def _learn(did: Did, state: AgentState, at: Origin) -> None:
    """Ask a relay for the newest record of this agent; who cannot say is not waited for."""
    try:
        found = await resolve_at(at, did, is_own=True)
    except AgentError:
        return
    if found.record is not None:
        state.keep_record(found.record.jws.compact)


async def meet(did: Did, state: AgentState, here: Home, target: Origin, *, dial: Dial) -> Home:
    """Who is at the target; both ends were asked for the newest record of this agent then.

    Raises:
        AgentError: the target cannot be reached, or is another relay than before.
    """
    there = await home_at(target, state)
    await _learn(did, state, target)
    await _learn(did, state, dial(here.url))
    return there


async def order(
    key: SigningKey, state: AgentState, here: Home, there: Home, *, without_source: bool = False
) -> MigrationState:
    """Sign the order to move, and the record that it ends with; both are noted.

    Args:
        key: the agent.
        state: knows the newest record, and the last order.
        here: from where.
        there: to where, as :func:`meet` found it.
        without_source: go on without it where it does not answer.

    Raises:
        AgentError: it cannot be ordered, or the state file cannot be written.
    """
    now, held = clock.now(), state.migration.pending
    # also by an order that is being taken back, of which the source has not heard
    is_held = held is not None and held.source_frozen and held.stage is not MigrationStage.COPYING
    move = MigrationState(
        sign(key, state, here, there),
        MigrationStage.PREPARING,
        float(now),
        delivery_stopped_at=held.delivery_stopped_at if held is not None and is_held else 0.0,
        source_frozen=is_held,
        source_abandoned=without_source,
    )
    await state.migration.save(move)
    return move


def sign(key: SigningKey, state: AgentState, here: Home, there: Home) -> str:
    """Sign an order to move, and the record in it, above all that was signed before.

    Raises:
        WrongStateError: both are one relay.
        ProtocolError: the order, or the record in it, is too long: list fewer handles.
    """
    if here.did == there.did:
        raise typed(ErrorCode.WRONG_STATE, f"{there.url} and {here.url} are one relay")
    now, before = clock.now(), newest(state)
    signed = endpoint_record.sign(
        key,
        [there],
        now=now,
        newest_seq=_newest_seq(state),
        handles=before.handles if before else (),
        drain=_left(before, there, now),
        enc=before.enc if before else None,
    )
    made = migration_order.sign(
        key,
        here,
        there,
        signed,
        now=now,
        entropy=clock.entropy,
        newest_seq=state.migration.order_seq,
    )
    try:
        # as both relays will read it: one that they refuse must not be noted
        migration_order.parse(made)
    except RelayError as exc:
        raise of(exc) from exc
    return made


async def take_back(key: SigningKey, state: AgentState, move: MigrationState) -> MigrationState:
    """Sign the record that overtakes the order's own: the agent lives where it did.

    Raises:
        AgentError: the state file cannot be written.
    """
    cancelling = replace(move, stage=MigrationStage.CANCELLING)
    await state.migration.save(cancelling)
    await overtake(key, state, move.parsed_order)
    return cancelling


async def overtake(key: SigningKey, state: AgentState, order: MigrationOrder) -> EndpointRecord:
    """Sign a record above that of an order, which whoever has seen the order could publish.

    It says what the newest one does; it is noted, and still to be published.

    Raises:
        AgentError: the state file cannot be written.
    """
    before, now = newest(state), clock.now()
    signed = endpoint_record.sign(
        key,
        before.relays if before is not None and before.relays else (order.source,),
        now=now,
        newest_seq=max(_newest_seq(state), order.record.seq),
        handles=before.handles if before else (),
        drain=before.drain if before else (),
        enc=before.enc if before else None,
    )
    state.keep_record(signed)
    await state.flush_record()
    return endpoint_record.parse(signed)


def _newest_seq(state: AgentState) -> int:
    """Above all that was signed: an order's record counts, though it may never be published."""
    return max(state.record_seq, state.migration.record_seq)


def _left(before: EndpointRecord | None, there: Home, now: Timestamp) -> list[LeftHome]:
    """The homes that are left now, and those that were before; the latest first."""
    until = int(now) + LEFT_S
    left = [LeftHome(h.did, h.url, until) for h in before.relays] if before else []
    left += [one for one in before.drain if one.did not in {h.did for h in left}] if before else []
    return [one for one in left if one.did != there.did][: endpoint_record.MAX_RELAYS]
