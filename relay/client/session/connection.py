"""One authenticated connection to a relay over a WebSocket (PROTOCOL.md §5).

Rules of the file: the only place in the SDK that knows the ``websockets`` package; whatever that
raises leaves as an :class:`AgentError`; every wait has an end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidProxyStatus,
    InvalidStatus,
    WebSocketException,
)
from websockets.typing import Subprotocol

from relay import clock, sockets
from relay.client.errors import CLOSE_CODES, WrongRelayError, of, typed
from relay.client.http import network
from relay.client.http.network import Route
from relay.client.http.origin import Origin
from relay.protocol import frames
from relay.protocol.client_session import (
    ClientSession,
    Effect,
    Failed,
    FrameReceived,
    LoginOptions,
    Ready,
    Send,
)
from relay.protocol.did import SigningKey
from relay.protocol.errors import (
    ErrorCode,
    RelayError,
)
from relay.protocol.ids import Did

CONNECT_S: Final = 10.0
LOGIN_S: Final = 10.0
WRITE_S: Final = 30.0
CLOSE_S: Final = 2.0
PING_S: Final = 20.0
PONG_S: Final = 25.0
MARGIN_BYTES: Final = 64 * 1024
QUEUED_FRAMES: Final = 4

Said = (
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


class _Connect(connect):
    """A handshake that takes a redirect for what it is here: not a relay."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class Line:
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
        """Who is at the other end."""
        return self.ready.relay

    async def send(self, frame: frames.Frame) -> None:
        """Write a frame.

        Raises:
            AgentError: the connection is gone, or its other end does not read.
        """
        await _write(self._socket, frame)

    async def receive(self) -> list[Said]:
        """The next of what the relay says.

        Raises:
            AgentError: the end of the conversation, by the relay's word or without one.
        """
        data = await _receive(self._socket)
        try:
            frame = frames.parse(data, "relay")
        except RelayError as exc:
            # not by its own code: one frame that is not understood must not end the agent
            detail = f"the relay said what cannot be: {exc.detail}"
            raise typed(ErrorCode.BAD_FRAME, detail) from exc
        effects = self._session.receive(frame, clock.now())
        _raise_failure(effects)
        return [effect.frame for effect in effects if isinstance(effect, FrameReceived)]


def _whoever(_: Did) -> None:
    return


def _found(frame: frames.Frame, login: LoginOptions) -> Did | None:
    """Who says that it is at the address that was dialled."""
    return frame.relay if isinstance(frame, frames.Hello) and frame.url == login.url else None


def _raise_failure(effects: Sequence[Effect], found: Did | None = None) -> None:
    for effect in effects:
        if isinstance(effect, Failed):
            failure = of(effect.error, record=effect.record)
            if isinstance(failure, WrongRelayError):
                failure.found = found
            raise failure from effect.error


@asynccontextmanager
async def dial(
    origin: Origin, key: SigningKey, login: LoginOptions, meet: Callable[[Did], None] = _whoever
) -> AsyncIterator[Line]:
    """Connect and log in; the connection is closed at the end of the block.

    Args:
        origin: where.
        key: who logs in.
        login: what it brings.
        meet: is told, before the login, who is there as it says; may raise to leave.

    Raises:
        AgentError: unreachable, or the login does not hold.
    """
    route = Route.to(origin)
    with translated(route):
        async with asyncio.timeout(CONNECT_S):
            socket = await _connected(route)
    try:
        yield await _log_in(socket, key, login, meet)
    finally:
        try:
            await socket.close()
        finally:
            # a cancellation in mid-close must not leave the socket open
            sockets.cut(socket.transport)


async def _connected(route: Route) -> ClientConnection:
    context = None if route.origin.is_insecure else await network.tls()
    way: dict[str, Any] = {"proxy": None}
    if route.tunnel is None:
        way["sock"] = await network.connect(route)
    else:
        way["proxy"] = route.tunnel.url
        if route.tunnel.scheme == "https":
            way["proxy_ssl"] = await network.tls()
    try:
        return await _Connect(
            route.origin.websocket,
            subprotocols=[Subprotocol(frames.SUBPROTOCOL)],
            compression=None,
            max_size=frames.MAX_FRAME_BYTES + MARGIN_BYTES,
            max_queue=QUEUED_FRAMES,
            open_timeout=None,
            ping_interval=PING_S,
            ping_timeout=PONG_S,
            close_timeout=CLOSE_S,
            ssl=context,
            **way,
        )
    except BaseException:
        if "sock" in way:
            way["sock"].close()
        raise


async def _log_in(
    socket: ClientConnection, key: SigningKey, login: LoginOptions, meet: Callable[[Did], None]
) -> Line:
    session = ClientSession(key, login, clock.entropy)
    try:
        async with asyncio.timeout(LOGIN_S):
            while True:
                frame = await _read(socket)
                effects = session.receive(frame, clock.now())
                _raise_failure(effects, _found(frame, login))
                if isinstance(frame, frames.Hello):
                    meet(frame.relay)
                for effect in effects:
                    if isinstance(effect, Ready):
                        return Line(socket, session, login, effect)
                    if isinstance(effect, Send):
                        await _write(socket, effect.frame)
    except TimeoutError as exc:
        raise typed(ErrorCode.PEER_UNREACHABLE, "the relay does not answer the login") from exc


async def _receive(socket: ClientConnection) -> bytes:
    with translated():
        return await socket.recv(decode=False)


async def _read(socket: ClientConnection) -> frames.Frame:
    data = await _receive(socket)
    try:
        return frames.parse(data, "relay")
    except RelayError as exc:
        raise of(exc) from exc


async def _write(socket: ClientConnection, frame: frames.Frame) -> None:
    with translated():
        async with asyncio.timeout(WRITE_S):
            await socket.send(frames.encode(frame), text=True)


@contextmanager
def translated(route: Route | None = None) -> Iterator[None]:
    """Turn what the network and its library raise into the SDK's own errors."""
    where = f"{route}: " if route else ""
    try:
        yield
    except ConnectionClosed as exc:
        code = CLOSE_CODES.get(exc.rcvd.code) if exc.rcvd else None
        # of what this side ends it for, a ping without an answer say, only this side knows
        ended = exc.rcvd or exc.sent
        said = ended.reason if ended and ended.reason else "the connection is gone"
        raise typed(code or ErrorCode.PEER_UNREACHABLE, f"{where}{said}") from exc
    except InvalidProxyStatus as exc:
        said = network.refused_by_proxy(exc.response.status_code)
        raise typed(ErrorCode.PEER_UNREACHABLE, f"{where}{said}") from exc
    except InvalidStatus as exc:
        detail = f"{where}answered HTTP {exc.response.status_code} instead of a conversation"
        raise typed(ErrorCode.PEER_UNREACHABLE, detail) from exc
    except (OSError, EOFError) as exc:
        raise typed(ErrorCode.PEER_UNREACHABLE, f"{where}{network.reason(exc)}") from exc
    except (WebSocketException, ValueError) as exc:
        # ValueError: a host whose labels no DNS can have
        raise typed(ErrorCode.PEER_UNREACHABLE, f"{where}no relay answers there: {exc}") from exc
