"""A dry run of a migration: what it would lose now, and what the loss of the old relay would.

Invariants: nothing moves. The target sees an order that it could act upon, so at the end a newer
record with the same content supersedes it: the order is void.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relay import clock
from relay.client.directory.own_record import home_at, publish
from relay.client.errors import AgentError
from relay.client.http.relay_api import RelayApi
from relay.client.migration import orders
from relay.client.migration.handoff import Capacity, HandoffClient
from relay.client.migration.retry import best_effort
from relay.client.migration.runner import Host
from relay.protocol import migration_order
from relay.protocol.endpoint_record import Home
from relay.protocol.envelope import MAX_JWS_BYTES
from relay.protocol.ids import Eid
from relay.protocol.migration_order import MigrationOrder
from relay.protocol.types import WaitingEnvelope


@dataclass(frozen=True, slots=True)
class DryRun:
    """The result of a dry run.

    Args:
        source: the present home.
        target: the new home.
        waiting: all that waits at the source; None: the source does not say, so it could be lost.
        lost: eids that a migration would not bring, with the reason.
        source_failure: the answer of the source, if it does not list what waits.
        target_failure: the answer of the target, if it would not accept.
    """

    source: Home
    target: Home
    waiting: tuple[WaitingEnvelope, ...] | None
    lost: tuple[tuple[Eid, str], ...] = ()
    source_failure: AgentError | None = None
    target_failure: AgentError | None = None

    @property
    def is_safe(self) -> bool:
        """True if a migration could begin now, and would lose nothing."""
        return self.waiting is not None and not self.lost and self.target_failure is None


async def dry_run(host: Host, url: str) -> DryRun:
    """Find out what a migration to ``url`` would lose, without migrating.

    Raises:
        AgentError: no home of the agent is known, or the target is out of reach;
            ``migrating``: a migration is under way.
        ValueError: ``url`` is no origin.
    """
    host.state.migration.ensure_record_unlocked()
    state, key, target = host.state, host.key, host.origin(url)
    new_home = await home_at(target, state)
    home = await orders.find_source(key.did, state, target, host.origin)
    order = migration_order.parse(orders.sign_order(key, state, home, new_home))
    try:
        return await _look(host, order)
    finally:
        record = await orders.supersede(key, state, order)
        await best_effort(lambda: publish(host.origin(home.url), record))
        await best_effort(lambda: publish(target, record))


async def _look(host: Host, order: MigrationOrder) -> DryRun:
    source, target = [
        HandoffClient(host.origin(home.url), home.did, order.did, order.jws.compact)
        for home in (order.source, order.target)
    ]
    waiting: tuple[WaitingEnvelope, ...] | None = None
    source_failure: AgentError | None = None
    try:
        waiting = tuple(await source.inventory())
    except AgentError as exc:
        source_failure = exc
    limits = (await RelayApi(target.origin).info()).description.limits
    lost = _lost(waiting or (), limits.get("body"))
    target_failure: AgentError | None = None
    try:
        eids = {eid for eid, _ in lost}
        await target.offer(Capacity.of([one for one in waiting or () if one.eid not in eids]))
    except AgentError as exc:
        target_failure = exc
    return DryRun(order.source, order.target, waiting, lost, source_failure, target_failure)


def _lost(waiting: Sequence[WaitingEnvelope], max_body: int | None) -> tuple[tuple[Eid, str], ...]:
    found: list[tuple[Eid, str]] = []
    for one in waiting:
        if one.expires_at <= clock.now():
            found.append((one.eid, "it has expired"))
        elif max_body is not None and one.size > max_body + MAX_JWS_BYTES:
            found.append((one.eid, f"it has {one.size} bytes: too large there"))
    return tuple(found)
