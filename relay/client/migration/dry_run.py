"""The exit drill: what a move would lose right now, and what the loss of the old relay would.

Rules of the file: nothing moves. The target is shown an order that it could act upon, so at the end
a newer record, which says what the last one did, overtakes it: it is good for nothing any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relay import clock
from relay.client.directory.publish import (
    home_at,
    put,
)
from relay.client.errors import AgentError
from relay.client.http.relay_api import RelayApi
from relay.client.migration import orders as ordering
from relay.client.migration.handoff import (
    Office,
    Room,
)
from relay.client.migration.retry import leniently
from relay.client.migration.runner import Agency
from relay.protocol import migration_order
from relay.protocol.endpoint_record import Home
from relay.protocol.envelope import MAX_JWS_BYTES
from relay.protocol.ids import Eid
from relay.protocol.migration_order import MigrationOrder
from relay.protocol.types import Waiting


@dataclass(frozen=True, slots=True)
class Drill:
    """What was found.

    Args:
        source: where the agent lives.
        target: where it would go.
        waiting: what waits at the source; None: it does not say, so all of it would be lost.
        lost: what a move would not bring, and why.
        source_failure: why the source does not say.
        target_failure: why the target would not take it.
    """

    source: Home
    target: Home
    waiting: tuple[Waiting, ...] | None
    lost: tuple[tuple[Eid, str], ...] = ()
    source_failure: AgentError | None = None
    target_failure: AgentError | None = None

    @property
    def is_safe(self) -> bool:
        """Whether a move could begin now, and would lose nothing."""
        return self.waiting is not None and not self.lost and self.target_failure is None


async def drill(agency: Agency, url: str) -> Drill:
    """Find out what a move to ``url`` would lose, and do nothing.

    Raises:
        AgentError: it is not known where the agent lives, or the target is out of reach;
            ``migrating``: it is on its way already.
        ValueError: ``url`` is no origin.
    """
    agency.state.migration.ensure_record_unlocked()
    state, key, target = agency.state, agency.key, agency.origin(url)
    there = await home_at(target, state)
    here = await ordering.source(key.did, state, target, agency.origin)
    order = migration_order.parse(ordering.sign(key, state, here, there))
    try:
        return await _look(agency, order)
    finally:
        record = await ordering.overtake(key, state, order)
        await leniently(lambda: put(agency.origin(here.url), record))
        await leniently(lambda: put(target, record))


async def _look(agency: Agency, order: MigrationOrder) -> Drill:
    source, target = [
        Office(agency.origin(home.url), home.did, order.did, order.jws.compact)
        for home in (order.source, order.target)
    ]
    waiting: tuple[Waiting, ...] | None = None
    no: AgentError | None = None
    try:
        waiting = tuple(await source.inventory())
    except AgentError as exc:
        no = exc
    limits = (await RelayApi(target.origin).info()).said.limits
    lost = _lost(waiting or (), limits.get("body"))
    refused: AgentError | None = None
    try:
        gone = {eid for eid, _ in lost}
        await target.offer(Room.of([one for one in waiting or () if one.eid not in gone]))
    except AgentError as exc:
        refused = exc
    return Drill(order.source, order.target, waiting, lost, no, refused)


def _lost(waiting: Sequence[Waiting], most_body: int | None) -> tuple[tuple[Eid, str], ...]:
    found: list[tuple[Eid, str]] = []
    for one in waiting:
        if one.expires_at <= clock.now():
            found.append((one.eid, "it has expired"))
        elif most_body is not None and one.size > most_body + MAX_JWS_BYTES:
            found.append((one.eid, f"it has {one.size} bytes: too large there"))
    return tuple(found)
