"""Handles: from a name such as ``bob@relay.example`` to a DID to rely on (PROTOCOL.md §7.5).

Entry points: :class:`HandleResolver` and :func:`lookup`. Invariants: the agent asks the sources of
a handle itself, since its relay's claim is not enough. A handle counts only if the record of its
DID lists it, too. The first envelope to a handle pins its DID, and from then on no source redirects
what is sent to it. The sources and the rules are those of the relay (``protocol/handles.py``); TXT
records count if ``dnspython`` is installed.

::

    handle ──pinned──▶ the same DID, or HandleChangedError
       └──not pinned──▶ lookup ──DID──▶ its record lists the handle ──first send──▶ pinned
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from relay import clock
from relay.client.directory.resolve import ResolveResult, resolve_at
from relay.client.errors import AgentError, HandleChangedError, make_error
from relay.client.http import origin as origins
from relay.client.http.transport import REQUEST_TIMEOUT_S, HttpRequest, request
from relay.client.state.peers import PeerStore
from relay.protocol import handles, hosts
from relay.protocol.errors import ErrorCode
from relay.protocol.handles import Handle, LookupResult
from relay.protocol.ids import Did

DID_PREFIX: Final = "did:"
HANDLE_CHARACTERS: Final = frozenset("@.")
"""Every handle has one of these."""
RECHECK_S: Final = 300.0
MAX_BODY_BYTES: Final = 64 * 1024
DNS_TIMEOUT_S: Final = 5.0

_log: Final = logging.getLogger("relay.client")


def parse(text: str) -> Handle:
    """Parse a handle.

    Raises:
        ProtocolError: ``bad_frame``: not one.
    """
    try:
        return handles.parse(text)
    except ValueError as exc:
        raise make_error(ErrorCode.BAD_FRAME, f"{text!r} is not a handle: {exc}") from exc


# ---------------------------------------------------------------- from a handle to a DID


@dataclass(slots=True, eq=False)
class HandleResolver:
    """Resolves and pins handles for one agent.

    Args:
        find: asks a relay of the agent for the record of a DID.
        learn: called with a record that another relay returned.
        peers: keeps pins over a restart; None: they end with this process.
        is_local: this machine may be asked; see :func:`lookup`.
        lookup: asks the sources of a handle; None: :func:`lookup`.
    """

    find: Callable[[str], Awaitable[ResolveResult]]
    learn: Callable[[Did, str | None], object]
    peers: PeerStore | None = None
    is_local: bool = False
    lookup: Callable[[str], Awaitable[LookupResult]] | None = None
    _pins: dict[str, Did] = field(default_factory=dict)
    _checked_at: dict[str, float] = field(default_factory=dict)

    async def resolve(self, handle: str) -> ResolveResult:
        """Find the record of a handle; ``verified``: the record lists the handle.

        Raises:
            AgentError: not a handle; or a relay's refusal, or no answer in time.
        """
        found = await self._lookup(handle)
        if found.state != "found" or found.did is None:
            return ResolveResult(found.state, reason=found.why)
        result = await self.record_of(handle, found.did)
        listed = {one.casefold() for one in result.record.handles} if result.record else set()
        return replace(result, did=Did(found.did), verified=handle.casefold() in listed)

    async def _lookup(self, handle: str) -> LookupResult:
        if self.lookup is not None:
            return await self.lookup(handle)
        return await lookup(handle, is_local=self.is_local)

    async def record_of(self, handle: str, did: str) -> ResolveResult:
        """Find the record of a DID at an own relay, else at the host of its handle.

        Raises:
            AgentError: the own relay's refusal, or no answer.
        """
        parsed = parse(handle)
        found = await self.find(did)
        if found.state == "found" or parsed.name is None:
            return found
        is_plain = self.is_local and hosts.is_loopback(parsed.host)
        try:
            origin = origins.parse(f"{'http' if is_plain else 'https'}://{parsed.authority}")
            elsewhere = await resolve_at(origin, did)
        except AgentError:
            return found
        if elsewhere.record is not None:
            self.learn(Did(did), elsewhere.record.jws.compact)
        return elsewhere

    async def resolve_recipient(self, to: str, timeout_s: float | None = None) -> str:
        """Return the DID to send to; a handle is pinned.

        Args:
            to: a DID or a handle.
            timeout_s: for the whole call; None: as long as the sources take.

        Raises:
            HandleChangedError: the handle leads to another DID than before.
            AgentError: it leads to no DID, or the record of its DID does not list it, or no answer
                in time.
        """
        if to.startswith(DID_PREFIX) or not HANDLE_CHARACTERS.intersection(to):
            return to
        try:
            async with asyncio.timeout(timeout_s):
                return await self._resolve_pinned(to.casefold(), timeout_s)
        except TimeoutError as exc:
            detail = f"{to}: no answer about where it leads in time"
            raise make_error(ErrorCode.IDENTITY_UNAVAILABLE, detail, stored="no") from exc

    async def _resolve_pinned(self, handle: str, timeout_s: float | None) -> Did:
        pinned = await self._pinned(handle)
        if pinned is None:
            pinned = await self._pin(handle, _verified(handle, await self.resolve(handle)))
            self._checked_at[handle] = clock.monotonic()
        await self._recheck(handle, pinned, timeout_s)
        return pinned

    async def accept(self, handle: str, did: Did) -> None:
        """Pin a handle to another DID, which the agent's user has accepted.

        Raises:
            HandleChangedError: it leads to another one.
            AgentError: as :meth:`resolve_recipient`.
        """
        handle = handle.casefold()
        leads_to = _verified(handle, await self.resolve(handle))
        if leads_to != did:
            raise _changed(f"{handle} leads to {leads_to}, not to {did}")
        if self.peers is not None:
            await self.peers.accept_handle(handle, did)
        self._pins[handle] = did

    async def _recheck(self, handle: str, pinned: Did, timeout_s: float | None) -> None:
        """Check now and then that a handle leads to its pin; no answer changes nothing."""
        now = clock.monotonic()
        if now - self._checked_at.get(handle, -RECHECK_S) < RECHECK_S:
            return
        try:
            # the other half of the time is for sending
            async with asyncio.timeout(None if timeout_s is None else timeout_s / 2):
                found = await self._lookup(handle)
        except (AgentError, TimeoutError) as exc:
            _log.warning("%s cannot be asked again: %s", handle, exc)
            return
        if found.state == "found" and found.did != pinned:
            raise _changed(
                f"{handle} was {pinned}, and now leads to {found.did}. Ask whose it is; relay "
                "accept HANDLE DID writes to the new one from now on"
            )
        self._checked_at[handle] = now

    async def _pinned(self, handle: str) -> Did | None:
        known = self._pins.get(handle)
        if known is None and self.peers is not None:
            known = await self.peers.handle(handle)
        return known

    async def _pin(self, handle: str, did: Did) -> Did:
        if self.peers is not None:
            did = await self.peers.pin_handle(handle, did)
        return self._pins.setdefault(handle, did)


def _changed(detail: str) -> HandleChangedError:
    changed = HandleChangedError(ErrorCode.STALE_RECORD, detail)
    changed.stored = "no"
    return changed


def _verified(handle: str, found: ResolveResult) -> Did:
    """Return the DID of a handle that is not pinned yet."""
    if found.did is None:
        code = ErrorCode.UNKNOWN_INBOX
        if found.state == "unreadable":
            code = ErrorCode.IDENTITY_UNAVAILABLE
        raise make_error(code, f"{handle}: {found.reason or found.state}", stored="no")
    if not found.verified:
        detail = f"{handle} leads to {found.did}, whose record does not list it"
        raise make_error(ErrorCode.IDENTITY_UNAVAILABLE, detail, stored="no")
    return found.did


# ---------------------------------------------------------------- the sources of a handle


async def lookup(
    handle: str | Handle, *, is_local: bool = False, timeout_s: float = REQUEST_TIMEOUT_S
) -> LookupResult:
    """Ask the sources of a handle: found (its DID), absent or unreadable.

    Args:
        handle: ``name@host`` or a hostname.
        is_local: this machine may be asked, without TLS, since the agent's own relay is here. A
            stranger's handle must not make other agents send requests to their own machine.
        timeout_s: for the whole call.

    Raises:
        ProtocolError: ``bad_frame``: not a handle.
    """
    parsed = parse(handle) if isinstance(handle, str) else handle
    if hosts.is_loopback(parsed.host) and not is_local:
        reason = f"{parsed.authority} is another machine for everybody else"
        return LookupResult("unreadable", why=reason)
    async with asyncio.TaskGroup() as group:
        web = group.create_task(_ask_web(parsed, timeout_s))
        txt = group.create_task(_ask_dns(parsed.text_name, timeout_s))
    return handles.combine([web.result(), *txt.result()])


async def _ask_web(handle: Handle, timeout_s: float) -> LookupResult:
    scheme = "http" if hosts.is_loopback(handle.host) else "https"
    source = "agent-did" if handle.name is None else "WebFinger"
    try:
        origin = origins.parse(f"{scheme}://{handle.authority}")
        status, body = await request(origin, HttpRequest("GET", handle.path), timeout_s)
    except AgentError as exc:
        return LookupResult("unreadable", why=f"{source}: {exc.detail}")
    if len(body) > MAX_BODY_BYTES:
        return LookupResult("unreadable", why=f"{source}: the answer is too long")
    read = handles.read_well_known if handle.name is None else handles.read_webfinger
    return read(status, body)


async def _ask_dns(name: str | None, timeout_s: float) -> Sequence[LookupResult]:
    """Return the answer of DNS; nothing without ``dnspython``."""
    try:
        resolver: Any = importlib.import_module("dns.asyncresolver")
        failures: Any = importlib.import_module("dns.exception")
        absent: Any = importlib.import_module("dns.resolver")
    except ImportError:
        return ()
    if name is None:
        return ()
    try:
        answer = await resolver.resolve(
            f"{name}.",
            "TXT",
            lifetime=min(timeout_s, DNS_TIMEOUT_S),
            search=False,
            raise_on_no_answer=False,
        )
    except absent.NXDOMAIN:
        return [handles.read_txt(())]
    except (failures.DNSException, OSError) as exc:
        return [LookupResult("unreadable", why=f"TXT: DNS does not say: {type(exc).__name__}")]
    texts = [b"".join(item.strings).decode("utf-8", errors="replace") for item in answer]
    return [handles.read_txt(texts)]
