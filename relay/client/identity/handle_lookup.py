"""The forward leg of a handle, asked by the agent itself: its relay's word is not enough.

Rules of the file: the same sources and the same judgement as the relay's
(``protocol/handles.py``); the
standard library does it, and TXT records count where ``dnspython`` is there to ask for them.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from relay.client.directory.resolve import ResolveResult, resolve_at
from relay.client.errors import AgentError, typed
from relay.client.http import origin as origins
from relay.client.http.transport import REQUEST_TIMEOUT_S, HttpRequest, request
from relay.protocol import (
    handles,
    hosts,
)
from relay.protocol.errors import ErrorCode
from relay.protocol.handles import (
    Handle,
    LookupResult,
)
from relay.protocol.ids import Did

MAX_BODY_BYTES: Final = 64 * 1024
LOOKUP_S: Final = 5.0


def parse(text: str) -> Handle:
    """Read a handle.

    Raises:
        ProtocolError: ``bad_frame``: not one.
    """
    try:
        return handles.parse(text)
    except ValueError as exc:
        raise typed(ErrorCode.BAD_FRAME, f"{text!r} is not a handle: {exc}") from exc


@dataclass(frozen=True, slots=True)
class Naming:
    """Asks for names on behalf of one agent.

    Args:
        find: asks a relay of its own for the record of a DID.
        learn: takes a record that was found elsewhere.
        plain: as for :func:`forward`.
    """

    find: Callable[[str], Awaitable[ResolveResult]]
    learn: Callable[[Did, str | None], object]
    plain: bool

    async def forward(self, handle: str) -> LookupResult:
        """As :func:`forward`."""
        return await forward(handle, plain=self.plain)

    async def record(self, handle: str, did: str) -> ResolveResult:
        """The record of a DID from an own relay, else from the one that the name is under.

        Raises:
            AgentError: not a handle; or the own relay's no, or no answer.
        """
        asked = parse(handle)
        found = await self.find(did)
        if found.state == "found" or asked.name is None:
            return found
        is_plain = self.plain and hosts.is_loopback(asked.host)
        try:
            there = origins.parse(f"{'http' if is_plain else 'https'}://{asked.authority}")
            elsewhere = await resolve_at(there, did)
        except AgentError:
            return found
        if elsewhere.record is not None:
            self.learn(Did(did), elsewhere.record.jws.compact)
        return elsewhere


async def forward(
    handle: str | Handle, *, plain: bool = False, seconds: float = REQUEST_TIMEOUT_S
) -> LookupResult:
    """Ask where a handle leads: found (its DID), absent or unreadable.

    Args:
        handle: ``name@host`` or a hostname.
        plain: whether this machine may be asked, which is done without TLS: for agents whose own
            relay is here. A stranger's handle must not make others ask around on theirs.
        seconds: for all of it.

    Raises:
        ProtocolError: ``bad_frame``: not a handle.
    """
    asked = parse(handle) if isinstance(handle, str) else handle
    if hosts.is_loopback(asked.host) and not plain:
        return LookupResult(
            "unreadable", why=f"{asked.authority} is another machine for everybody else"
        )
    async with asyncio.TaskGroup() as group:
        web = group.create_task(_web(asked, seconds))
        text = group.create_task(_texts(asked.text_name, seconds))
    return handles.combine([web.result(), *text.result()])


async def _web(handle: Handle, seconds: float) -> LookupResult:
    scheme = "http" if hosts.is_loopback(handle.host) else "https"
    source = "agent-did" if handle.name is None else "WebFinger"
    try:
        origin = origins.parse(f"{scheme}://{handle.authority}")
        status, body = await request(origin, HttpRequest("GET", handle.path), seconds)
    except AgentError as exc:
        return LookupResult("unreadable", why=f"{source}: {exc.detail}")
    if len(body) > MAX_BODY_BYTES:
        return LookupResult("unreadable", why=f"{source}: the answer is too long")
    read = handles.read_well_known if handle.name is None else handles.read_webfinger
    return read(status, body)


async def _texts(name: str | None, seconds: float) -> Sequence[LookupResult]:
    """What DNS says; nothing where it is not asked."""
    try:
        resolver: Any = importlib.import_module("dns.asyncresolver")
        failures: Any = importlib.import_module("dns.exception")
        absent: Any = importlib.import_module("dns.resolver")
    except ImportError:
        return ()
    if name is None:
        return ()
    try:
        limit = min(seconds, LOOKUP_S)
        answer = await resolver.resolve(
            f"{name}.", "TXT", lifetime=limit, search=False, raise_on_no_answer=False
        )
    except absent.NXDOMAIN:
        return [handles.read_txt(())]
    except (failures.DNSException, OSError) as exc:
        return [LookupResult("unreadable", why=f"TXT: DNS does not say: {type(exc).__name__}")]
    texts = [b"".join(item.strings).decode("utf-8", errors="replace") for item in answer]
    return [handles.read_txt(texts)]
