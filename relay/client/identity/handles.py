"""From a handle to a DID that this agent can rely on (PROTOCOL.md §7.5).

Rules of the file: the forward leg is asked here, no relay's word is enough; a handle counts only
where the record of its DID lists it, too. The first envelope to a handle pins its DID, and from
then on nothing that is said of the handle redirects what is sent to it.

::

    handle ──pinned──▶ the same DID, or HandleChangedError
       └──not pinned──▶ forward leg ──DID──▶ its record lists the handle ──first send──▶ pinned
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from relay import clock
from relay.client.directory.resolve import ResolveResult
from relay.client.errors import AgentError, HandleChangedError, typed
from relay.client.state.peers import PeerStore
from relay.protocol import frames
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import Did

DID: Final = "did:"
NAMES: Final = frozenset("@.")
"""One of these is in every handle."""
CHECKED_AGAIN_S: Final = 300.0

_log: Final = logging.getLogger("relay.client")


class Heard(Protocol):
    """What the sources of a handle say."""

    @property
    def state(self) -> frames.Resolution:
        """Which of three answers it is."""
        ...

    @property
    def did(self) -> str | None:
        """With ``found``: whose handle it is."""
        ...

    @property
    def why(self) -> str:
        """Otherwise: why not."""
        ...


Forward = Callable[[str], Awaitable[Heard]]
Find = Callable[[str, str], Awaitable[ResolveResult]]
"""From a handle and the DID to which it leads, to the record of that."""


async def nowhere(handle: str) -> Heard:
    """The forward leg of a program that asks no names.

    Raises:
        UnsupportedError: always.
    """
    raise typed(ErrorCode.UNSUPPORTED, f"{handle}: this agent asks no names; use a DID")


@dataclass(slots=True, eq=False)
class Handles:
    """Names that lead to DIDs.

    Args:
        find: finds the record of a DID, given the handle, too.
        forward: asks the sources of a handle.
        knowledge: keeps pins over a restart; None: they live as long as this process.
    """

    find: Find
    forward: Forward = nowhere
    knowledge: PeerStore | None = None
    _pins: dict[str, Did] = field(default_factory=dict)
    _checked_at: dict[str, float] = field(default_factory=dict)

    async def resolve(self, handle: str) -> ResolveResult:
        """Where the agent of a handle lives; ``verified``: its record lists the handle.

        Raises:
            AgentError: not a handle; or a relay's no, or no answer in time.
        """
        heard = await self.forward(handle)
        if heard.state != "found" or heard.did is None:
            return ResolveResult(heard.state, reason=heard.why)
        found = await self.find(handle, heard.did)
        listed = {one.casefold() for one in found.record.handles} if found.record else set()
        return replace(found, did=Did(heard.did), verified=handle.casefold() in listed)

    async def did_of(self, to: str, seconds: float | None = None) -> str:
        """The DID to send to; a handle is pinned.

        Args:
            to: a DID or a handle.
            seconds: for all of it; None: as long as its sources take.

        Raises:
            HandleChangedError: the handle leads to another DID than it did.
            AgentError: it leads nowhere, or the record of its DID does not list it, or nobody has
                told in time.
        """
        if to.startswith(DID) or not NAMES.intersection(to):
            return to
        try:
            async with asyncio.timeout(seconds):
                return await self._did_of(to.casefold(), seconds)
        except TimeoutError as exc:
            detail = f"{to}: no answer about where it leads in time"
            raise typed(ErrorCode.IDENTITY_UNAVAILABLE, detail, stored="no") from exc

    async def _did_of(self, handle: str, seconds: float | None) -> Did:
        pinned = await self._pinned(handle)
        if pinned is None:
            pinned = await self._pin(handle, _verified(handle, await self.resolve(handle)))
            self._checked_at[handle] = clock.monotonic()
        await self._check(handle, pinned, seconds)
        return pinned

    async def accept(self, handle: str, did: Did) -> None:
        """The agent's user says whose a handle is from now on; it must lead there, and be listed.

        Raises:
            HandleChangedError: it leads elsewhere.
            AgentError: as :meth:`did_of`.
        """
        handle = handle.casefold()
        leads_to = _verified(handle, await self.resolve(handle))
        if leads_to != did:
            raise _changed(f"{handle} leads to {leads_to}, not to {did}")
        if self.knowledge is not None:
            await self.knowledge.accept_handle(handle, did)
        self._pins[handle] = did

    async def _check(self, handle: str, pinned: Did, seconds: float | None) -> None:
        """See, now and then, that a handle still leads where it did; silence changes nothing."""
        now = clock.monotonic()
        if now - self._checked_at.get(handle, -CHECKED_AGAIN_S) < CHECKED_AGAIN_S:
            return
        try:
            # half of the time is left for what is sent
            async with asyncio.timeout(None if seconds is None else seconds / 2):
                heard = await self.forward(handle)
        except (AgentError, TimeoutError) as exc:
            _log.warning("%s cannot be asked again: %s", handle, exc)
            return
        if heard.state == "found" and heard.did != pinned:
            detail = f"{handle} was {pinned}, and now leads to {heard.did}"
            raise _changed(
                f"{detail}. Ask whose it is; relay accept HANDLE DID writes to the new one from "
                "now on"
            )
        self._checked_at[handle] = now

    async def _pinned(self, handle: str) -> Did | None:
        known = self._pins.get(handle)
        if known is None and self.knowledge is not None:
            known = await self.knowledge.handle(handle)
        return known

    async def _pin(self, handle: str, did: Did) -> Did:
        if self.knowledge is not None:
            did = await self.knowledge.pin_handle(handle, did)
        return self._pins.setdefault(handle, did)


def _changed(detail: str) -> HandleChangedError:
    changed = HandleChangedError(ErrorCode.STALE_RECORD, detail)
    changed.stored = "no"
    return changed


def _verified(handle: str, found: ResolveResult) -> Did:
    """The DID of a handle that nobody was written to before."""
    if found.did is None:
        code = ErrorCode.UNKNOWN_INBOX
        if found.state == "unreadable":
            code = ErrorCode.IDENTITY_UNAVAILABLE
        raise typed(code, f"{handle}: {found.reason or found.state}", stored="no")
    if not found.verified:
        detail = f"{handle} leads to {found.did}, whose record does not list it"
        raise typed(ErrorCode.IDENTITY_UNAVAILABLE, detail, stored="no")
    return found.did
