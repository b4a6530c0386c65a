"""One authenticated connection to a relay over a WebSocket (PROTOCOL.md §5).

Entry point: :func:`dial`. Invariants: only this module of the SDK reads and writes WebSockets. Each
exception of the ``websockets`` package leaves as an :class:`AgentError`. Every wait has a timeout.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import (
    ConnectionClosed,
    InvalidProxyStatus,
    InvalidStatus,
    WebSocketException,
)

from relay import clock, sockets
from relay.client.errors import CLOSE_CODES, WrongRelayError, from_core, make_error
from relay.client.http import network
from relay.client.http.network import Route
from relay.client.http.origin import Origin
from relay.protocol import frames
from relay.protocol.client_session import (
    ClientEffect,
    ClientSession,
    Failed,
    FrameReceived,
    LoginOptions,
    Ready,
    Send,
)
from relay.protocol.did import SigningKey
from relay.protocol.errors import ErrorCode, RelayError
from relay.protocol.ids import Did

CONNECT_S: Final = 10.0
LOGIN_S: Final = 10.0
WRITE_S: Final = 30.0
CLOSE_S: Final = 2.0

Incoming = (
    frames.Submitted
    | frames.Deliver
    | frames.Gap
    | frames.Acked
    | frames.Statuses
    | frames.Resolved
    | frames.Published
    | frames.Ruled
    | frames.Error
)


class RelayConnection:
    """A connection whose other end has proved to be the relay ``ready`` names."""

    def __init__(
        self, socket: ClientConnection, session: ClientSession, login: LoginOptions, ready: Ready
    ) -> None:
        self.login = login
        self.ready = ready
        self._socket = socket
        self._session = session

    @property
    def relay(self) -> Did:
        """The relay at the other end."""
        return self.ready.relay

    async def send(self, frame: frames.Frame) -> None:
        """Write a frame.

        Raises:
            AgentError: the connection is gone, or its other end does not read.
        """
        await _write(self._socket, frame)

    async def receive(self) -> list[Incoming]:
        """Receive the next frames of the relay.

        Raises:
            AgentError: the end of the session, with or without an error of the relay.
        """
        data = await _receive(self._socket)
        try:
            frame = frames.parse(data, "relay")
        except RelayError as exc:
            # not with its own code: one wrong frame must not end the agent
            detail = f"the relay sent a wrong frame: {exc.detail}"
            raise make_error(ErrorCode.BAD_FRAME, detail) from exc
        effects = self._session.receive(frame, clock.now())
        _raise_failure(effects)
        return [effect.frame for effect in effects if isinstance(effect, FrameReceived)]


def _accept_any(_: Did) -> None:
    return


def _found(frame: frames.Frame, login: LoginOptions) -> Did | None:
    """Return the relay that claims to be at the address that was dialled."""
    return frame.relay if isinstance(frame, frames.Hello) and frame.url == login.url else None


def _raise_failure(effects: Sequence[ClientEffect], found: Did | None = None) -> None:
    for effect in effects:
        if isinstance(effect, Failed):
            failure = from_core(effect.error, record=effect.record)
            if isinstance(failure, WrongRelayError):
                failure.found = found
            raise failure from effect.error


@asynccontextmanager
async def dial(
    origin: Origin,
    key: SigningKey,
    login: LoginOptions,
    on_hello: Callable[[Did], None] = _accept_any,
) -> AsyncIterator[RelayConnection]:
    """Connect and log in; the connection is closed at the end of the block.

    Args:
        origin: of the relay.
        key: of the agent.
        login: the expected relay and the record.
        on_hello: called before the login with the relay that claims to be there; may raise.

    Raises:
        AgentError: unreachable, or the login does not hold.
    """
    route = Route.to(origin)
    with translated_errors(route):
        async with asyncio.timeout(CONNECT_S):
            socket = await _connect(route)
    try:
        yield await _log_in(socket, key, login, on_hello)
    finally:
        try:
            await socket.close()
        finally:
            # a cancellation in mid-close must not leave the socket open
            sockets.cut(socket.transport)


async def _connect(route: Route) -> ClientConnection:
    context = None if route.origin.is_insecure else await network.tls()
    options: dict[str, Any] = {"proxy": None}
    if route.tunnel is None:
        options["sock"] = await network.connect(route)
    else:
        options["proxy"] = route.tunnel.url
        if route.tunnel.scheme == "https":
            options["proxy_ssl"] = await network.tls()
    try:
        return await sockets.websocket(
            route.origin.websocket,
            open_timeout=None,
            close_timeout=CLOSE_S,
            ssl=context,
            **options,
        )
    except BaseException:
        if "sock" in options:
            options["sock"].close()
        raise


async def _log_in(
    socket: ClientConnection, key: SigningKey, login: LoginOptions, on_hello: Callable[[Did], None]
) -> RelayConnection:
    session = ClientSession(key, login, clock.entropy)
    try:
        async with asyncio.timeout(LOGIN_S):
            while True:
                frame = await _read(socket)
                effects = session.receive(frame, clock.now())
                _raise_failure(effects, _found(frame, login))
                if isinstance(frame, frames.Hello):
                    on_hello(frame.relay)
                for effect in effects:
                    if isinstance(effect, Ready):
                        return RelayConnection(socket, session, login, effect)
                    if isinstance(effect, Send):
                        await _write(socket, effect.frame)
    except TimeoutError as exc:
        raise make_error(ErrorCode.PEER_UNREACHABLE, "the relay does not answer the login") from exc


async def _receive(socket: ClientConnection) -> bytes:
    with translated_errors():
        return await socket.recv(decode=False)


async def _read(socket: ClientConnection) -> frames.Frame:
    data = await _receive(socket)
    try:
        return frames.parse(data, "relay")
    except RelayError as exc:
        raise from_core(exc) from exc


async def _write(socket: ClientConnection, frame: frames.Frame) -> None:
    with translated_errors():
        async with asyncio.timeout(WRITE_S):
            await socket.send(frames.encode(frame), text=True)


@contextmanager
def translated_errors(route: Route | None = None) -> Iterator[None]:
    """Translate the exceptions of the network and its library into the SDK's own errors."""
    prefix = f"{route}: " if route else ""
    try:
        yield
    except ConnectionClosed as exc:
        code = CLOSE_CODES.get(exc.rcvd.code) if exc.rcvd else None
        # the reason of an end by this side, such as a ping without an answer, is known here only
        ended = exc.rcvd or exc.sent
        reason = ended.reason if ended and ended.reason else "the connection is gone"
        raise make_error(code or ErrorCode.PEER_UNREACHABLE, f"{prefix}{reason}") from exc
    except InvalidProxyStatus as exc:
        reason = network.refused_by_proxy(exc.response.status_code)
        raise make_error(ErrorCode.PEER_UNREACHABLE, f"{prefix}{reason}") from exc
    except InvalidStatus as exc:
        detail = f"{prefix}answered HTTP {exc.response.status_code} instead of a WebSocket"
        raise make_error(ErrorCode.PEER_UNREACHABLE, detail) from exc
    except (OSError, EOFError) as exc:
        raise make_error(ErrorCode.PEER_UNREACHABLE, f"{prefix}{network.reason(exc)}") from exc
    except (WebSocketException, ValueError) as exc:
        # ValueError: a host name that DNS does not allow
        raise make_error(
            ErrorCode.PEER_UNREACHABLE, f"{prefix}no relay answers there: {exc}"
        ) from exc
