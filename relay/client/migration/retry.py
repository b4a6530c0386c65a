"""Asking a relay again and again while an agent moves, and what to make of what it says.

Rules of the file: only what may pass is asked again; a definite no, and a statement that says
something else than was asked for, end it at once. Whoever gives up says what can be done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from relay import clock
from relay.client.errors import AgentError, MigrationStalledError, typed
from relay.client.migration.handoff import (
    Office,
    Said,
)
from relay.client.state.migration_log import MigrationStage, MigrationState
from relay.protocol.errors import (
    ErrorCode,
    UnavailableError,
)
from relay.protocol.types import (
    Mode,
)


class MigrationProgress(NamedTuple):
    """Where a migration stands.

    Args:
        stage: what is being done.
        done: of ``copying``: envelopes that the target has taken over, or that have ended.
        total: of those; 0: it is not counted.
        detail: what it waits for, for a person; "" = nothing special.
    """

    stage: MigrationStage
    done: int = 0
    total: int = 0
    detail: str = ""


T = TypeVar("T")
Tell = Callable[[MigrationProgress], None]

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
SHORTEST_S: Final = 0.1
_AGAIN: Final = frozenset({
    ErrorCode.INTERNAL, ErrorCode.RATE_LIMITED, ErrorCode.OVERLOADED, ErrorCode.MIGRATING,
})  # fmt: skip
STALLED: Final = (
    "{why}. Nothing is lost: what waits at {source} stays there. Go on by migrating to {target} "
    "again, cancel it, or give the old relay up (dead_source)"
)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to go on.

    Args:
        move: in which migration.
        until: monotonic seconds.
        tell: is told what is waited for.
    """

    move: MigrationState
    until: float
    tell: Tell

    async def insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask until there is an answer, or for so long.

        Raises:
            AgentError: a definite no.
            MigrationStalledError: no answer in time.
        """
        pause = FIRST_PAUSE_S
        last = typed(ErrorCode.PEER_UNREACHABLE, "no answer in time")
        while True:
            try:
                # a source takes its time to answer; what it did is seen when it is asked again
                async with asyncio.timeout(max(self.until - clock.monotonic(), SHORTEST_S)):
                    return await ask()
            except TimeoutError as exc:
                raise _stalled(self.move, last) from exc
            except AgentError as exc:
                last = exc
                if not is_passing(exc):
                    raise
                wait = max(clock.jitter(pause), exc.retry_after or 0)
                if clock.monotonic() + wait > self.until:
                    raise _stalled(self.move, exc) from exc
                self.tell(MigrationProgress(self.move.stage, detail=exc.detail))
                await asyncio.sleep(wait)
                pause = min(pause * 2, LONGEST_PAUSE_S)


def is_passing(exc: AgentError) -> bool:
    """Whether it says only that it cannot be done now."""
    return isinstance(exc, UnavailableError) or exc.code in _AGAIN


def expect(office: Office, said: Said, move: MigrationState, *modes: Mode) -> None:
    """What was asked for is what is said.

    Raises:
        ProtocolError: it is not.
    """
    found = said.statement
    if found.mode not in modes or found.handoff != move.parsed_order.id:
        detail = f"{office.origin} says {found.mode} of hand-off {found.handoff or 'none'}"
        raise typed(ErrorCode.BAD_FRAME, f"{detail}, and was asked to be {modes[0]}")


def _stalled(move: MigrationState, exc: AgentError) -> AgentError:
    order = move.parsed_order
    if not move.source_frozen and move.stage is MigrationStage.PREPARING:
        return typed(exc.code, f"{exc.detail}. Nothing was changed", retry_after=exc.retry_after)
    detail = STALLED.format(why=exc.detail, source=order.source.url, target=order.target.url)
    return MigrationStalledError(ErrorCode.MIGRATING, detail, retry_after=exc.retry_after)


async def leniently(ask: Callable[[], Awaitable[object]], seconds: float | None = None) -> None:
    """Ask once, for so long; who does not answer hears it from other relays."""
    try:
        async with asyncio.timeout(seconds):
            await ask()
    except (AgentError, TimeoutError):
        return
