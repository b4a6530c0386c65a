"""Retries of the requests of a migration, and its progress as the program sees it.

Invariants: only a failure that may pass is retried. A definite refusal ends the call at once. The
error after the deadline says what the user can do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from relay import clock
from relay.client._util import Backoff
from relay.client.errors import AgentError, MigrationStalledError, make_error
from relay.client.state.migration_log import MigrationStage, MigrationState
from relay.protocol.errors import ErrorCode, UnavailableError

T = TypeVar("T")

FIRST_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 5.0
MIN_TIMEOUT_S: Final = 0.1
_TRANSIENT: Final = frozenset({
    ErrorCode.INTERNAL, ErrorCode.RATE_LIMITED, ErrorCode.OVERLOADED, ErrorCode.MIGRATING,
})  # fmt: skip
_STALLED: Final = (
    "{reason}. Nothing is lost: what waits at {source} stays there. Go on by migrating to {target} "
    "again, cancel it, or give the old relay up (dead_source)"
)


class MigrationProgress(NamedTuple):
    """The position of a migration.

    Args:
        stage: the step that is under way.
        done: of ``copying``: envelopes that the target has taken over, or that have ended.
        total: of those; 0: not counted.
        detail: the reason for waiting, for a person; "" = nothing special.
    """

    stage: MigrationStage
    done: int = 0
    total: int = 0
    detail: str = ""


OnProgress = Callable[[MigrationProgress], None]


@dataclass(frozen=True, slots=True)
class RetryUntil:
    """Retries requests until a deadline.

    Args:
        migration: the requests belong to it.
        until: the deadline, monotonic seconds.
        on_progress: called before each pause with its reason.
    """

    migration: MigrationState
    until: float
    on_progress: OnProgress

    async def call(self, request: Callable[[], Awaitable[T]]) -> T:
        """Call ``request`` until it succeeds, and return its result.

        Raises:
            AgentError: a definite refusal.
            MigrationStalledError: no success before the deadline.
        """
        backoff = Backoff(FIRST_PAUSE_S, MAX_PAUSE_S)
        last = make_error(ErrorCode.PEER_UNREACHABLE, "no answer in time")
        while True:
            try:
                # a slow source may have acted without an answer: the next request shows it
                async with asyncio.timeout(max(self.until - clock.monotonic(), MIN_TIMEOUT_S)):
                    return await request()
            except TimeoutError as exc:
                raise self._stalled(last) from exc
            except AgentError as exc:
                last = exc
                if not is_transient(exc):
                    raise
                pause = max(backoff.next_s(), exc.retry_after or 0)
                if clock.monotonic() + pause > self.until:
                    raise self._stalled(exc) from exc
                self.on_progress(MigrationProgress(self.migration.stage, detail=exc.detail))
                await asyncio.sleep(pause)

    def _stalled(self, exc: AgentError) -> AgentError:
        migration = self.migration
        if not migration.source_frozen and migration.stage is MigrationStage.PREPARING:
            detail = f"{exc.detail}. Nothing was changed"
            return make_error(exc.code, detail, retry_after=exc.retry_after)
        order = migration.parsed_order
        detail = _STALLED.format(
            reason=exc.detail, source=order.source.url, target=order.target.url
        )
        return MigrationStalledError(ErrorCode.MIGRATING, detail, retry_after=exc.retry_after)


def is_transient(exc: AgentError) -> bool:
    """Return True if the same request may succeed later."""
    return isinstance(exc, UnavailableError) or exc.code in _TRANSIENT


async def best_effort(
    request: Callable[[], Awaitable[object]], timeout_s: float | None = None
) -> None:
    """Call ``request`` once; ignore its failure, since other relays forward the record."""
    try:
        async with asyncio.timeout(timeout_s):
            await request()
    except (AgentError, TimeoutError):
        return
