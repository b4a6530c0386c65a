"""Signed documents of a migration: the order, the record in it, and the record that cancels it.

Invariants: nothing is signed before the reachable relays were asked for the agent's newest record.
A signed document is saved before it is sent. The order contains a record that any holder of the
order can publish, so only a newer record cancels an order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from relay import clock
from relay.client.directory.own_record import OwnRecord, home_at
from relay.client.directory.resolve import resolve_at
from relay.client.errors import AgentError, from_core, make_error
from relay.client.http.origin import Origin
from relay.client.state.agent_state import AgentState
from relay.client.state.migration_log import MigrationReport, MigrationStage, MigrationState
from relay.protocol import endpoint_record, migration_order
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import EndpointRecord, FormerHome, Home
from relay.protocol.envelope import MAX_ENVELOPE_LIFETIME_S
from relay.protocol.errors import ErrorCode, RelayError
from relay.protocol.ids import Did, Timestamp
from relay.protocol.migration_order import MigrationOrder

Dial = Callable[[str], Origin]

DRAIN_S: Final = MAX_ENVELOPE_LIFETIME_S
"""No envelope lives longer: until then a former home may hold some."""


def completed_report(state: AgentState, target: Origin) -> MigrationReport | None:
    """Return the report of the last migration if it led to ``target`` and the agent is there.

    Raises:
        WrongStateError: the agent is there without a migration.
    """
    record, log = state.newest_record, state.migration
    if record is None or [home.url for home in record.relays] != [str(target)]:
        return None
    if log.report is not None and log.report.target.url == str(target):
        return log.report
    raise make_error(ErrorCode.WRONG_STATE, f"this agent lives at {target} already")


def is_home_already(state: AgentState, migration: MigrationState) -> bool:
    """Return True if the target is one of several homes: the agent only leaves the others."""
    record = state.newest_record
    return record is not None and record.names(migration.parsed_order.target.did)


async def find_source(did: Did, state: AgentState, target: Origin, dial: Dial) -> Home:
    """Return the best home of the agent other than ``target``.

    Raises:
        AgentError: ``not_admitted``: no home is known; ``wrong_state``: ``target`` is the only one.
    """
    await _refresh_record(did, state, target)
    for home in _homes(state):
        if home.url != str(target):
            await _refresh_record(did, state, dial(home.url))
    homes = _homes(state)
    others = [home for home in homes if home.url != str(target)]
    if homes and not others:
        raise make_error(ErrorCode.WRONG_STATE, f"this agent lives at {target} already")
    if not others:
        detail = "this agent has no home that it could move from; log in where it is to live"
        raise make_error(ErrorCode.NOT_ADMITTED, detail)
    return others[0]


def _homes(state: AgentState) -> list[Home]:
    record = state.newest_record
    return sorted(record.relays if record else (), key=lambda home: home.prio)


async def _refresh_record(did: Did, state: AgentState, at: Origin) -> None:
    """Ask a relay for the newest record of this agent; ignore a relay that cannot answer."""
    try:
        found = await resolve_at(at, did, is_own=True)
    except AgentError:
        return
    if found.record is not None:
        state.keep_record(found.record.jws.compact)


async def resolve_target(
    did: Did, state: AgentState, source: Home, target: Origin, *, dial: Dial
) -> Home:
    """Return the relay at the target, and ask both relays for the agent's newest record.

    Raises:
        AgentError: the target cannot be reached, or is another relay than before.
    """
    home = await home_at(target, state)
    await _refresh_record(did, state, target)
    await _refresh_record(did, state, dial(source.url))
    return home


async def issue_order(
    key: SigningKey,
    state: AgentState,
    source: Home,
    target: Home,
    *,
    abandon_source: bool = False,
) -> MigrationState:
    """Sign and save the order to move, with the record that it ends with.

    Args:
        key: of the agent.
        state: has the newest record, and the last order.
        source: the present home.
        target: the new home, from :func:`resolve_target`.
        abandon_source: continue without the source if it does not answer.

    Raises:
        AgentError: the order is not possible, or the state file cannot be written.
    """
    now, pending = clock.now(), state.migration.pending
    # also by an order that is being cancelled, which the source does not know
    is_frozen = (
        pending is not None
        and pending.source_frozen
        and pending.stage is not MigrationStage.COPYING
    )
    migration = MigrationState(
        sign_order(key, state, source, target),
        MigrationStage.PREPARING,
        float(now),
        delivery_stopped_at=pending.delivery_stopped_at if pending and is_frozen else 0.0,
        source_frozen=is_frozen,
        source_abandoned=abandon_source,
    )
    await state.migration.save(migration)
    return migration


def sign_order(key: SigningKey, state: AgentState, source: Home, target: Home) -> str:
    """Sign an order to move, and the record in it, newer than all that was signed before.

    Raises:
        WrongStateError: both are one relay.
        ProtocolError: the order, or the record in it, is too long: list fewer handles.
    """
    if source.did == target.did:
        raise make_error(ErrorCode.WRONG_STATE, f"{target.url} and {source.url} are one relay")
    now, own = clock.now(), OwnRecord(key, state)
    drain = _former_homes(own.newest, target, now)
    record = own.sign_next([target], now, drain=drain)
    order = migration_order.sign(
        key,
        source,
        target,
        record.jws.compact,
        now=now,
        entropy=clock.entropy,
        newest_seq=state.migration.order_seq,
    )
    try:
        # parsed as both relays will: an order that they refuse must not be saved
        migration_order.parse(order)
    except RelayError as exc:
        raise from_core(exc) from exc
    return order


async def cancel_order(
    key: SigningKey, state: AgentState, migration: MigrationState
) -> MigrationState:
    """Sign the record that cancels the order: the agent stays at its source.

    Raises:
        AgentError: the state file cannot be written.
    """
    cancelling = replace(migration, stage=MigrationStage.CANCELLING)
    await state.migration.save(cancelling)
    await supersede(key, state, migration.parsed_order)
    return cancelling


async def supersede(key: SigningKey, state: AgentState, order: MigrationOrder) -> EndpointRecord:
    """Sign a record newer than that of an order, with the content of the agent's newest one.

    It is saved; the caller publishes it.

    Raises:
        AgentError: the state file cannot be written.
    """
    own = OwnRecord(key, state)
    homes = own.newest.relays if own.newest is not None else ()
    record = own.sign_next(homes or (order.source,), clock.now(), min_seq=order.record.seq)
    state.keep_record(record.jws.compact)
    await state.flush_record()
    return record


def _former_homes(before: EndpointRecord | None, target: Home, now: Timestamp) -> list[FormerHome]:
    """Return the homes that the agent leaves, and those that it left before; latest first."""
    if before is None:
        return []
    until = int(now) + DRAIN_S
    left = [FormerHome(home.did, home.url, until) for home in before.relays]
    left += [one for one in before.drain if one.did not in {home.did for home in left}]
    return [one for one in left if one.did != target.did][: endpoint_record.MAX_HOMES]
