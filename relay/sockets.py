"""Connect to a host with several addresses, and open WebSockets to relays.

The first address that answers wins (RFC 8305). The caller has looked up and checked the addresses,
and sets the deadline. No other address is dialled.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any, Final, NamedTuple

from websockets.asyncio import client
from websockets.typing import Subprotocol

from relay.protocol import frames

STAGGER_S: Final = 0.25
"""The head start of an attempt before the next address is tried, too."""
MAX_TRIED: Final = 4
PING_S: Final = 20.0
PONG_S: Final = 25.0
MARGIN_BYTES: Final = 64 * 1024
MAX_QUEUED_FRAMES: Final = 4


class Address(NamedTuple):
    """A socket address: of ``getaddrinfo``, or a literal address and a port."""

    family: int
    where: tuple[Any, ...]


class _Connect(client.connect):
    """A handshake that treats a redirect as an error: a relay sends none."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


def websocket(uri: str, **options: Any) -> client.connect:
    """Return the handshake of a WebSocket to a relay, to be awaited (PROTOCOL.md §5).

    Args:
        uri: ``ws://`` or ``wss://``.
        options: of ``websockets.asyncio.client.connect``: the way, TLS and the time limits.
    """
    return _Connect(
        uri,
        subprotocols=[Subprotocol(frames.SUBPROTOCOL)],
        compression=None,
        max_size=frames.MAX_FRAME_BYTES + MARGIN_BYTES,
        max_queue=MAX_QUEUED_FRAMES,
        ping_interval=PING_S,
        ping_timeout=PONG_S,
        **options,
    )


def cut(transport: asyncio.WriteTransport) -> None:
    """End a connection at once, if it has not ended."""
    # Python 3.11: one with TLS that was closed twice has nothing left to abort
    with contextlib.suppress(AttributeError):
        transport.abort()


@dataclass(slots=True)
class _Race:
    """Several attempts, one of which wins."""

    winner: socket.socket | None = None
    failures: list[OSError] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, address: Address) -> None:
        try:
            connected = await _connected(address)
        except OSError as exc:
            self.failures.append(exc)
        else:
            if self.winner is None:
                self.winner = connected
            else:
                connected.close()
        self.ended.set()

    async def next(self, seconds: float | None) -> None:
        """Wait for the end of an attempt, at most ``seconds``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.ended.wait()
        self.ended.clear()


async def connect(addresses: Sequence[Address]) -> socket.socket:
    """Connect to the first address that answers; alternate the families, try at most four.

    Raises:
        OSError: none answers; the error of the first that failed.
    """
    race = _Race()
    try:
        async with asyncio.TaskGroup() as tasks:
            left = _in_turn(addresses)[:MAX_TRIED]
            running: list[asyncio.Task[None]] = []
            while race.winner is None and (left or len(race.failures) < len(running)):
                if left:
                    running.append(tasks.create_task(race.run(left.pop(0))))
                await race.next(STAGGER_S if left else None)
            for task in running:
                task.cancel()
    except BaseException:
        if race.winner is not None:
            race.winner.close()
        raise
    if race.winner is None:
        raise race.failures[0] if race.failures else OSError("the host has no address")
    return race.winner


def _in_turn(addresses: Sequence[Address]) -> list[Address]:
    """Alternate the families, that of the first address first; else keep the order."""
    first = [one for one in addresses if one.family == addresses[0].family]
    other = [one for one in addresses if one.family != addresses[0].family]
    return [one for one in chain(*zip_longest(first, other)) if one is not None]


async def _connected(address: Address) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address.where)
    except BaseException:
        sock.close()
        raise
    return sock
