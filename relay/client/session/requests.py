"""Requests of one frame and their responses: status, resolve, publish, rules.

Entry point: :class:`PendingRequests`, one per channel. Invariants: a request may be sent twice, so
one without a response is sent again on the next connection, until its task stops waiting. A request
that a relay cannot parse is never sent: it would end each connection. Every task gets a response or
an error, whatever the relay sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from relay.client.errors import AgentError, clone, from_core, make_error
from relay.protocol import frames
from relay.protocol.errors import ErrorCode, ProtocolError, RelayError
from relay.protocol.ids import Timestamp

Request = frames.Status | frames.Resolve | frames.Publish | frames.Rules
Response = frames.Statuses | frames.Resolved | frames.Published | frames.Ruled

MAX_UNDER_WAY: Final = 8
RESPONSE_TIMEOUT_S: Final = 60.0
"""A relay may ask others first; one that takes longer is left for another connection."""
_RESPONSE: Final[dict[type[Request], type[Response]]] = {
    frames.Status: frames.Statuses,
    frames.Resolve: frames.Resolved,
    frames.Publish: frames.Published,
    frames.Rules: frames.Ruled,
}


@dataclass(slots=True)
class PendingRequests:
    """The requests to one relay that have no response yet."""

    _count: int = 0
    _queued: list[Request] = field(default_factory=list)
    _pending: dict[str, tuple[Request, asyncio.Future[Response]]] = field(default_factory=dict)
    _sent_at: dict[str, Timestamp] = field(default_factory=dict)

    def add(self, make: Callable[[str], Request]) -> asyncio.Future[Response]:
        """Queue a request; ``make`` gets the ref. Cancel the future to stop waiting.

        Raises:
            ProtocolError: no relay could parse it; it is not sent.
        """
        self._remove_cancelled()
        self._count += 1
        ref = f"q{self._count}"
        request = make(ref)
        _ensure_readable(request)
        response: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._pending[ref] = (request, response)
        self._queued.append(request)
        return response

    def _remove_cancelled(self) -> None:
        """Forget requests that nobody waits for: a silent relay must not make them pile up."""
        for request in [one for one in self._queued if self._pending[one.ref][1].done()]:
            self._queued.remove(request)
            del self._pending[request.ref]

    def next_request(self, now: Timestamp) -> Request | None:
        """Return the next frame; few are under way at once. ``now`` is monotonic seconds."""
        while self._queued and len(self._sent_at) < MAX_UNDER_WAY:
            request = self._queued.pop(0)
            if self._pending[request.ref][1].done():
                del self._pending[request.ref]
                continue
            self._sent_at[request.ref] = now
            return request
        return None

    def answered(self, response: Response) -> None:
        """Process a response.

        Raises:
            ProtocolError: there is no such request, or it needs another kind of response.
        """
        request, future = self._pop(response.ref)
        if _RESPONSE[type(request)] is not type(response):
            error = ProtocolError(ErrorCode.BAD_FRAME, "a response to another kind of request")
            _fail(future, from_core(error))
            raise error
        if not future.done():
            future.set_result(response)

    def failed(self, ref: str, exc: RelayError) -> None:
        """Process an error in the place of a response.

        Raises:
            ProtocolError: there is no such request.
        """
        _, future = self._pop(ref)
        _fail(future, from_core(exc))

    def _pop(self, ref: str) -> tuple[Request, asyncio.Future[Response]]:
        if ref not in self._sent_at:
            raise ProtocolError(ErrorCode.BAD_FRAME, "a response without a request")
        del self._sent_at[ref]
        return self._pending.pop(ref)

    def next_timer(self) -> Timestamp | None:
        """Return when :meth:`check_answers` has work, monotonic seconds."""
        if not self._sent_at:
            return None
        return Timestamp(min(self._sent_at.values()) + RESPONSE_TIMEOUT_S)

    def check_answers(self, now: Timestamp) -> None:
        """Detect a relay that responds no more: its open requests leave no room for others.

        Raises:
            UnavailableError: one has waited for too long.
        """
        if any(at + RESPONSE_TIMEOUT_S <= now for at in self._sent_at.values()):
            raise make_error(ErrorCode.PEER_UNREACHABLE, "the relay does not answer requests")

    def lost(self) -> None:
        """Queue everything again for the next connection."""
        self._sent_at.clear()
        self._queued = [request for request, _ in self._pending.values()]

    def end(self, failure: AgentError) -> None:
        """Fail everything: no relay will respond."""
        for _, future in self._pending.values():
            _fail(future, clone(failure))
        self._pending.clear()
        self._queued.clear()
        self._sent_at.clear()


def _fail(future: asyncio.Future[Response], failure: AgentError) -> None:
    if not future.done():
        future.set_exception(failure)


def _ensure_readable(request: Request) -> None:
    """Parse a request as the relay will.

    Raises:
        ProtocolError: it cannot be parsed.
    """
    try:
        frames.parse(frames.encode(request), "agent")
    except RelayError as exc:
        raise from_core(exc) from exc
    except TypeError as exc:
        # text that is no Unicode, as a broken file name may be
        raise make_error(ErrorCode.BAD_FRAME, f"it cannot be encoded: {exc}") from exc
