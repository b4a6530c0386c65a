"""Resolve handles of anybody: WebFinger, well-known files and DNS, asked through the dialer.

``protocol/handles.py`` judges the answers. Names under this relay are read from the store, not
dialled. Results are cached, good ones longer; a host that cannot be reached is left alone for all
handles that name it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final

from relay import clock
from relay.directory.local_handles import LocalHandles
from relay.limits import BoundedTtl
from relay.peering.dialer import Dialer, NoAddressError
from relay.protocol import handles
from relay.protocol.errors import RelayError
from relay.protocol.handles import Handle, LookupResult

MAX_CACHED: Final = 10_000
UNREACHABLE_HOST_S: Final = 30.0
MAX_ASKED: Final = 4
"""Handles of one host that are looked up at once."""
FOUND_S: Final = 300.0
ABSENT_S: Final = 60.0
UNREADABLE_S: Final = 15.0
_CACHED_S: Final = {"found": FOUND_S, "absent": ABSENT_S, "unreadable": UNREADABLE_S}


class RemoteHandles:
    """Finds the DID of a handle."""

    def __init__(
        self,
        dialer: Dialer,
        local: LocalHandles | None = None,
        monotonic: Callable[[], float] = clock.monotonic,
    ) -> None:
        """Ask nothing yet.

        Args:
            dialer: the way out.
            local: names under this relay.
            monotonic: seconds, for the caches.
        """
        self._dialer = dialer
        self._local = local
        self._monotonic = monotonic
        self._results: BoundedTtl[Handle, LookupResult] = BoundedTtl(MAX_CACHED)
        self._unreachable: BoundedTtl[str, str] = BoundedTtl(MAX_CACHED)
        self._asking: Counter[str] = Counter()

    async def resolve(self, handle: Handle) -> LookupResult:
        """Return the DID of a handle, absent, or unreadable; never raise for the network.

        The caller checks that the record of that DID lists the handle, too (PROTOCOL.md §7.5).
        """
        if self._local is not None and self._local.is_ours(handle):
            return await self._local.resolve(handle)
        cached = self._results.get(handle, self._monotonic())
        if cached is not None:
            return cached
        if self._asking[handle.authority] >= MAX_ASKED:
            detail = f"{handle.authority} is being asked about {MAX_ASKED} other handles"
            return LookupResult("unreadable", why=detail)
        self._asking[handle.authority] += 1
        try:
            result = await self._ask(handle)
        finally:
            self._asking[handle.authority] -= 1
            self._asking += Counter()  # drops those at zero
        self._results.put(handle, result, self._monotonic() + _CACHED_S[result.state])
        return result

    async def _ask(self, handle: Handle) -> LookupResult:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._ask_web(handle))]
            if handle.text_name is not None:
                asked.append(group.create_task(self._ask_dns(handle.text_name)))
        return handles.combine([task.result() for task in asked])

    async def _ask_web(self, handle: Handle) -> LookupResult:
        source = "agent-did" if handle.name is None else "WebFinger"
        problem = self._unreachable.get(handle.authority, self._monotonic())
        if problem is not None:
            return LookupResult("unreadable", why=problem)
        accept = "text/plain" if handle.name is None else handles.JRD
        try:
            origin = self._dialer.origin_of(handle.authority)
            answer = await self._dialer.get(f"{origin}{handle.path}", accept=accept)
        except NoAddressError as exc:
            return LookupResult("absent", why=f"{source}: {exc.detail}")
        except RelayError as exc:
            problem = f"{source}: {exc.detail}"
            until = self._monotonic() + UNREACHABLE_HOST_S
            self._unreachable.put(handle.authority, problem, until)
            return LookupResult("unreadable", why=problem)
        read = handles.read_well_known if handle.name is None else handles.read_webfinger
        return read(answer.status, answer.body)

    async def _ask_dns(self, name: str) -> LookupResult:
        try:
            return handles.read_txt(await self._dialer.texts(name))
        except RelayError as exc:
            return LookupResult("unreadable", why=f"TXT: {exc.detail}")
