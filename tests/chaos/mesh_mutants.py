"""Relays that break one promise between relays: ``python -m tests.chaos.mesh_mutants NAME``.

A mutant is the real relay without one rule, as a plausible bug would leave it (see
``relay_mutants.py``). The test beside each proof says what the checker must find.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

from relay.directory import publish
from relay.directory.publish import Directory
from relay.forwarding import (
    forwarder,
    model,
)
from relay.forwarding.forwarder import (
    InboxForwarder,
)
from relay.forwarding.model import (
    ForwardItem,
    ForwardResult,
)
from relay.inbox.model.types import (
    Forwarded,
    OutboxLimits,
)
from relay.node import (
    open_store,
    serve,
)
from relay.protocol import endpoint_record
from relay.protocol.did import parse_did
from relay.protocol.endpoint_record import Home, RecordVersion
from relay.protocol.envelope import StoredEnvelope
from relay.protocol.errors import (
    Refusal,
    RelayError,
)
from relay.settings import load
from relay.store.redis import store as redis_store
from tests.chaos.relay_mutants import Misfiled


def no_signatures() -> None:
    """Whoever brings a record is believed."""

    async def believe(*_: Any) -> Refusal | None:
        return None

    Directory._verify = believe  # type: ignore[method-assign]


def any_order() -> None:
    """The last record that comes is the newest."""
    count = itertools.count(1)
    row_of = publish._row

    def as_newest(record: Any, **values: Any) -> Any:
        row = row_of(record, **values)
        kv, seq, digest = row.version
        return type(row)(
            RecordVersion(kv, seq + 120_000 + next(count), digest), row.compact, row.names_us
        )

    publish._row = as_newest  # type: ignore[assignment]
    endpoint_record.compare_versions = lambda *_: "newer"  # type: ignore[assignment]


def ack_before_receipt() -> None:
    """A forwarder sends and acks as if it had the receipt, before it is there."""

    async def believe(
        self: InboxForwarder, home: Home, items: Sequence[ForwardItem], _: object
    ) -> ForwardResult:
        async def send() -> None:
            with contextlib.suppress(RelayError):
                await self._deps.submitters.get(home, self._handoff, self._inbox).submit(items)

        self._deps.spawn(send())
        self._window._in_flight = []
        self._proof = Forwarded(parse_did(home.did).agent_key, bytes(32))
        return ForwardResult(tuple(item.seq for item in items))

    InboxForwarder._submit = believe  # type: ignore[method-assign]


def tries_for_ever() -> None:
    """A forwarder keeps the order strictly, and retries permanent refusals."""
    model.PERMANENT = frozenset()  # type: ignore[misc]
    forwarder.BATCH = (1, forwarder.MAX_SUBMIT_BYTES)  # type: ignore[misc]


def no_bound() -> None:
    """An outbox takes whatever comes."""
    open_store.OutboxLimits = lambda *_: OutboxLimits(10**9, 10**12, 1)  # type: ignore[assignment,misc]


class MisfiledAtHome(Misfiled):
    """Stores every 20th envelope for an agent that lives here in the inbox of another one."""

    def misfile(self, item: StoredEnvelope) -> StoredEnvelope:
        return item if item.peer is not None else super().misfile(item)


def misfiled() -> None:
    """Envelopes are put into another agent's inbox, at the end of their way."""
    redis_store.RedisInboxes = MisfiledAtHome  # type: ignore[misc]


MUTANTS: dict[str, Callable[[], None]] = {
    "misfiled": misfiled,
    "ack-before-receipt": ack_before_receipt,
    "tries-for-ever": tries_for_ever,
    "no-bound": no_bound,
    "no-signatures": no_signatures,
    "any-order": any_order,
}


if __name__ == "__main__":
    MUTANTS[sys.argv[1]]()
    sys.exit(serve(load()))
