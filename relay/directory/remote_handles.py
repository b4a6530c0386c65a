"""Handles of anybody: WebFinger, well-known files and DNS, asked through the dialer.

Rules of the file: what a source answers is judged in ``protocol/handles.py``; names under this
relay
are read from the store, not dialled. Answers are remembered for a while, good ones longer; a host
that cannot be reached is left alone for all handles that name it; everything kept is bounded.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, Generic, Protocol, TypeVar

from relay import clock
from relay.peering.dialer import (
    Dialer,
    NoAddressError,
)
from relay.peering.ports import Names
from relay.protocol import handles
from relay.protocol.errors import RelayError
from relay.protocol.handles import (
    Handle,
    Heard,
)

FOUND_S: Final = 300.0
ABSENT_S: Final = 60.0
UNREADABLE_S: Final = 15.0
HOST_AWAY_S: Final = 30.0
REMEMBERED: Final = 10_000
ASKED_AT_ONCE: Final = 4

_KEPT_S: Final = {"found": FOUND_S, "absent": ABSENT_S, "unreadable": UNREADABLE_S}

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class OwnNames(Names, Protocol):
    """Names under this relay."""

    @property
    def authority(self) -> str:
        """``host[:port]`` that stands behind the ``@`` of such a name."""
        ...


class Naming:
    """Finds the DID of a handle; meets the port ``Names``."""

    def __init__(
        self,
        dialer: Dialer,
        own: OwnNames | None = None,
        monotonic: Callable[[], float] = clock.monotonic,
    ) -> None:
        """Ask nothing yet.

        Args:
            dialer: the way out.
            own: names under this relay.
            monotonic: seconds, for what is remembered.
        """
        self._dialer = dialer
        self._own = own
        self._heard: Memory[Handle, Heard] = Memory(monotonic)
        self._away: Memory[str, str] = Memory(monotonic)
        self._asking: Counter[str] = Counter()

    async def resolve(self, handle: Handle) -> Heard:
        """Where a handle leads."""
        if self._own is not None and handle.name and handle.authority == self._own.authority:
            return await self._own.resolve(handle)
        known = self._heard.get(handle)
        if known is not None:
            return known
        if self._asking[handle.authority] >= ASKED_AT_ONCE:
            why = f"{handle.authority} is being asked about {ASKED_AT_ONCE} other handles"
            return Heard("unreadable", why=why)
        self._asking[handle.authority] += 1
        try:
            heard = await self._ask(handle)
        finally:
            self._asking[handle.authority] -= 1
            self._asking += Counter()  # without those at zero
        self._heard.put(handle, heard, _KEPT_S[heard.state])
        return heard

    async def _ask(self, handle: Handle) -> Heard:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._web(handle))]
            if handle.text_name is not None:
                asked.append(group.create_task(self._texts(handle.text_name)))
        return handles.agreed([task.result() for task in asked])

    async def _web(self, handle: Handle) -> Heard:
        source = "agent-did" if handle.name is None else "WebFinger"
        away = self._away.get(handle.authority)
        if away is not None:
            return Heard("unreadable", why=away)
        accept = "text/plain" if handle.name is None else handles.JRD
        try:
            origin = self._dialer.origin_of(handle.authority)
            answer = await self._dialer.get(f"{origin}{handle.path}", accept=accept)
        except NoAddressError as exc:
            return Heard("absent", why=f"{source}: {exc.detail}")
        except RelayError as exc:
            why = f"{source}: {exc.detail}"
            self._away.put(handle.authority, why, HOST_AWAY_S)
            return Heard("unreadable", why=why)
        read = handles.heard_text if handle.name is None else handles.heard_finger
        return read(answer.status, answer.body)

    async def _texts(self, name: str) -> Heard:
        try:
            return handles.heard_records(await self._dialer.texts(name))
        except RelayError as exc:
            return Heard("unreadable", why=f"TXT: {exc.detail}")


class Memory(Generic[K, V]):
    """A bounded dictionary whose entries end; the oldest gives way."""

    def __init__(self, monotonic: Callable[[], float], most: int = REMEMBERED) -> None:
        """Hold at most ``most`` entries."""
        self._monotonic = monotonic
        self._most = most
        self._entries: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """The value, while it is good."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        until, value = entry
        if until > self._monotonic():
            return value
        del self._entries[key]
        return None

    def put(self, key: K, value: V, seconds: float) -> None:
        """Remember a value for some seconds."""
        self._entries[key] = (self._monotonic() + seconds, value)
        self._entries.move_to_end(key)
        if len(self._entries) > self._most:
            self._entries.popitem(last=False)
