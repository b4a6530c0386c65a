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
from relay.client.migration.state import (
    Move,
    Moved,
    Stage,
)
from relay.client.state.agent_state import State
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


def newest(state: State) -> EndpointRecord | None:
    """The newest record that is known of this agent."""
    return endpoint_record.parse(state.record) if state.record else None


def known(state: State, target: Origin) -> Moved | None:
    """What the last migration came to, where that led to ``target`` and the agent is there."""
    record, log = newest(state), state.moves
    if record is None or [home.url for home in record.relays] != [str(target)]:
        return None
    if log.moved is not None and log.moved.target.url == str(target):
        return log.moved
    raise typed(ErrorCode.WRONG_STATE, f"this agent lives at {target} already")


def is_home_already(state: State, move: Move) -> bool:
    """Whether the target is one of several homes: then the others are just left."""
    record = newest(state)
    return record is not None and record.names(move.said.target.did)


async def source(did: Did, state: State, target: Origin, dial: Dial) -> Home:
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


async def _learn(did: Did, state: State, at: Origin) -> None:
    """Ask a relay for the newest record of this agent; who cannot say is not waited for."""
    try:
        found = await resolve_at(at, did, is_own=True)
    except AgentError:
        return
    if found.record is not None:
        state.keep_record(found.record.jws.compact)


async def meet(did: Did, state: State, here: Home, target: Origin, *, dial: Dial) -> Home:
    """Who is at the target; both ends were asked for the newest record of this agent then.

    Raises:
        AgentError: the target cannot be reached, or is another relay than before.
    """
    there = await home_at(target, state)
    await _learn(did, state, target)
    await _learn(did, state, dial(here.url))
    return there


async def order(
    key: SigningKey, state: State, here: Home, there: Home, *, without_source: bool = False
) -> Move:
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
    now, held = clock.now(), state.moves.pending
    # also by an order that is being taken back, of which the source has not heard
    is_held = held is not None and held.is_held and held.stage is not Stage.COPYING
    move = Move(
        sign(key, state, here, there),
        Stage.PREPARING,
        float(now),
        left_at=held.left_at if held is not None and is_held else 0.0,
        is_held=is_held,
        without_source=without_source,
    )
    await state.moves.keep(move)
    return move


def sign(key: SigningKey, state: State, here: Home, there: Home) -> str:
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
        key, here, there, signed, now=now, entropy=clock.entropy, newest_seq=state.moves.order_seq
    )
    try:
        # as both relays will read it: one that they refuse must not be noted
        migration_order.parse(made)
    except RelayError as exc:
        raise of(exc) from exc
    return made


async def take_back(key: SigningKey, state: State, move: Move) -> Move:
    """Sign the record that overtakes the order's own: the agent lives where it did.

    Raises:
        AgentError: the state file cannot be written.
    """
    cancelling = replace(move, stage=Stage.CANCELLING)
    await state.moves.keep(cancelling)
    await overtake(key, state, move.said)
    return cancelling


async def overtake(key: SigningKey, state: State, order: MigrationOrder) -> EndpointRecord:
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
    await state.noted()
    return endpoint_record.parse(signed)


def _newest_seq(state: State) -> int:
    """Above all that was signed: an order's record counts, though it may never be published."""
    ordered = state.moves.move.said.record.seq if state.moves.move is not None else 0
    return max(state.record_seq, ordered)


def _left(before: EndpointRecord | None, there: Home, now: Timestamp) -> list[LeftHome]:
    """The homes that are left now, and those that were before; the latest first."""
    until = int(now) + LEFT_S
    left = [LeftHome(h.did, h.url, until) for h in before.relays] if before else []
    left += [one for one in before.drain if one.did not in {h.did for h in left}] if before else []
    return [one for one in left if one.did != there.did][: endpoint_record.MAX_RELAYS]
