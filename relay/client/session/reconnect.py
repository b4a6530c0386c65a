"""When a conversation may dial: at once, after a pause, not for now, or never more.

Rules of the file: full jitter, and never earlier than the relay asked for. A conversation that is
to rest ends in the clean way first, so that the relay knows exactly what it has handed over.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from relay import clock
from relay.protocol.backoff import doubling_pause_s
from relay.protocol.errors import RelayError

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0
LONGEST_RETRY_AFTER_S: Final = 60
REST_S: Final = 5.0
"""A goodbye takes two seconds at most."""


def pause_after(failures: int, retry_after: int | None) -> float:
    """Seconds until the next dial."""
    longest = doubling_pause_s(failures, FIRST_PAUSE_S, LONGEST_PAUSE_S)
    share = int.from_bytes(clock.entropy(4)) / 0xFFFF_FFFF
    return longest * share + min(retry_after or 0, LONGEST_RETRY_AFTER_S)


@dataclass(slots=True)
class Gate:
    """Between a conversation and its relay."""

    has_left: bool = False
    _open: asyncio.Event = field(default_factory=asyncio.Event)
    _shut: asyncio.Event = field(default_factory=asyncio.Event)
    _resting: asyncio.Event = field(default_factory=asyncio.Event)
    _hurry: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._open.set()

    # ------------------------------------------------------------ for the agent

    def shut(self) -> None:
        """Do not dial; one that is under way ends."""
        self._open.clear()
        self._shut.set()
        self._hurry.set()

    async def rest(self) -> None:
        """As :meth:`shut`, and wait for its end, but not for ever."""
        self.shut()
        try:
            async with asyncio.timeout(REST_S):
                await self._resting.wait()
        except TimeoutError:
            return

    def leave(self) -> None:
        """Never dial again; one that is under way ends."""
        self.has_left = True
        self.shut()
        self._open.set()

    def reopen(self) -> None:
        """Dial, and now."""
        self._shut.clear()
        self._open.set()
        self._hurry.set()

    # ------------------------------------------------------------ for the conversation

    async def passed(self) -> bool:
        """Wait until it may dial; False: never more."""
        if not self._open.is_set():
            self._resting.set()
            await self._open.wait()
            self._resting.clear()
        return not self.has_left

    async def until_shut(self) -> None:
        """Wait until it is to end.

        Raises:
            Rest: now.
        """
        await self._shut.wait()
        raise Rest

    async def pause(self, seconds: float) -> None:
        """Wait for so long, unless there is a reason to look sooner."""
        try:
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        except TimeoutError:
            return
        self._hurry.clear()


# ---------------------------------------------------------------- why one ends without an error


class LogInAgain(Exception):  # noqa: N818  a signal, no error
    """The record that names this relay is published now: a new login opens the inbox."""


class Rest(Exception):  # noqa: N818  a signal, no error
    """The agent changes relays: nobody is to converse here now."""


class Folded(Exception):  # noqa: N818  a signal, no error
    """Another conversation has this relay, and got this one's origin."""


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What a conversation ended with: a bug before all, then whatever came first."""
    known = RelayError | LogInAgain | Rest
    bugs = [exc for exc in group.exceptions if not isinstance(exc, known)]
    return (bugs or list(group.exceptions))[0]
