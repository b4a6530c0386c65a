"""One authenticated connection to a relay over a WebSocket (PROTOCOL.md §5).

Rules of the file: the only place in the SDK that knows the ``websockets`` package; whatever that
raises leaves as an :class:`AgentError`; every wait has an end.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import websockets.asyncio.client
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from relay import clock
from relay.client.errors import CLOSE_CODES, WrongRelayError, of, typed
from relay.client.origin import Origin
from relay.core import codec
from relay.core.agent_session import AgentSession, Effect, Failed, Heard, Login, Ready
from relay.core.effects import Send
from relay.core.errors import ErrorCode, RelayError
from relay.core.frames import (
    MAX_FRAME_BYTES,
    SUBPROTOCOL,
    Acked,
    Deliver,
    Error,
    Frame,
    Gap,
    Hello,
    Published,
    Resolved,
    Ruled,
    Statuses,
    Submitted,
)
from relay.core.identity import SigningKey
from relay.core.ids import Did

CONNECT_S: Final = 10.0
LOGIN_S: Final = 10.0
WRITE_S: Final = 30.0
CLOSE_S: Final = 2.0
PING_S: Final = 20.0
PONG_S: Final = 25.0
MARGIN_BYTES: Final = 64 * 1024
QUEUED_FRAMES: Final = 4

Said = Submitted | Deliver | Gap | Acked | Statuses | Resolved | Published | Ruled | Error
Socket = websockets.asyncio.client.ClientConnection


class Line:
    """A connection whose other end has proved to be the relay ``ready`` names."""

    def __init__(self, socket: Socket, session: AgentSession, login: Login, ready: Ready) -> None:
        self.login = login
        self.ready = ready
        self._socket = socket
        self._session = session

    @property
    def relay(self) -> Did:
        """Who is at the other end."""
        return self.ready.relay

    async def send(self, frame: Frame) -> None:
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
        effects = self._session.receive(await _read(self._socket), clock.now())
        _raise_failure(effects)
        return [effect.frame for effect in effects if isinstance(effect, Heard)]


def _whoever(_: Did) -> None:
    return


def _found(frame: Frame, login: Login) -> Did | None:
    """Who says that it is at the address that was dialled."""
    return frame.relay if isinstance(frame, Hello) and frame.url == login.url else None


def _raise_failure(effects: Sequence[Effect], found: Did | None = None) -> None:
    for effect in effects:
        if isinstance(effect, Failed):
            failure = of(effect.error, record=effect.record)
            if isinstance(failure, WrongRelayError):
                failure.found = found
            raise failure from effect.error


@asynccontextmanager
async def dial(
    origin: Origin, key: SigningKey, login: Login, meet: Callable[[Did], None] = _whoever
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
    with translated(origin):
        socket = await websockets.asyncio.client.connect(
            origin.websocket,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            compression=None,
            max_size=MAX_FRAME_BYTES + MARGIN_BYTES,
            max_queue=QUEUED_FRAMES,
            open_timeout=CONNECT_S,
            ping_interval=PING_S,
            ping_timeout=PONG_S,
            close_timeout=CLOSE_S,
            # a proxy is for the way out, never for this machine
            proxy=None if origin.is_loopback else True,
        )
    try:
        yield await _log_in(socket, key, login, meet)
    finally:
        try:
            await socket.close()
        finally:
            # a cancellation in mid-close must not leave the socket open
            socket.transport.abort()


async def _log_in(
    socket: Socket, key: SigningKey, login: Login, meet: Callable[[Did], None]
) -> Line:
    session = AgentSession(key, login, clock.entropy)
    try:
        async with asyncio.timeout(LOGIN_S):
            while True:
                frame = await _read(socket)
                effects = session.receive(frame, clock.now())
                _raise_failure(effects, _found(frame, login))
                if isinstance(frame, Hello):
                    meet(frame.relay)
                for effect in effects:
                    if isinstance(effect, Ready):
                        return Line(socket, session, login, effect)
                    if isinstance(effect, Send):
                        await _write(socket, effect.frame)
    except TimeoutError as exc:
        raise typed(ErrorCode.PEER_UNREACHABLE, "the relay does not answer the login") from exc


async def _read(socket: Socket) -> Frame:
    with translated():
        data = await socket.recv(decode=False)
    try:
        return codec.parse(data, "relay")
    except RelayError as exc:
        raise of(exc) from exc


async def _write(socket: Socket, frame: Frame) -> None:
    with translated():
        async with asyncio.timeout(WRITE_S):
            await socket.send(codec.encode(frame), text=True)


@contextmanager
def translated(origin: Origin | None = None) -> Iterator[None]:
    """Turn what the network and its library raise into the SDK's own errors."""
    where = f"{origin}: " if origin else ""
    try:
        yield
    except ConnectionClosed as exc:
        code = CLOSE_CODES.get(exc.rcvd.code) if exc.rcvd else None
        said = exc.rcvd.reason if exc.rcvd and exc.rcvd.reason else "the connection is gone"
        raise typed(code or ErrorCode.PEER_UNREACHABLE, f"{where}{said}") from exc
    except InvalidStatus as exc:
        detail = f"{where}answered HTTP {exc.response.status_code} instead of a conversation"
        raise typed(ErrorCode.PEER_UNREACHABLE, detail) from exc
    except (InvalidHandshake, UnicodeError) as exc:
        raise typed(ErrorCode.PEER_UNREACHABLE, f"{where}no relay answers there: {exc}") from exc
    except ssl.SSLError as exc:
        raise typed(ErrorCode.PEER_UNREACHABLE, f"{where}TLS: {exc.reason}") from exc
    except TimeoutError as exc:
        raise typed(ErrorCode.PEER_UNREACHABLE, f"{where}no answer in time") from exc
    except OSError as exc:
        # asyncio puts its own words, and the address once more, into strerror
        reason = os.strerror(exc.errno) if exc.errno else str(exc)
        raise typed(ErrorCode.PEER_UNREACHABLE, f"{where}{reason}") from exc
