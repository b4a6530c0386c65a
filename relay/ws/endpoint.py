"""``GET /v1/ws``: a raw ASGI route that hands the socket to a :class:`Connection`."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from relay import metrics
from relay.inbox.client_ip import client_ip, network_of
from relay.protocol import frames
from relay.ws.connection import AsgiReceive, AsgiSend, Connection
from relay.ws.protocol import EXTENSION, RelaySocket
from relay.ws.services import WsServices


class Endpoint:
    """Counts connections, refuses what cannot be served, runs the rest."""

    def __init__(self, services: WsServices) -> None:
        self._services = services
        self._connections: set[Connection] = set()
        self._per_address: Counter[str] = Counter()
        self._left = asyncio.Event()

    async def __call__(self, scope: dict[str, Any], receive: AsgiReceive, send: AsgiSend) -> None:
        """Serve one WebSocket."""
        socket = scope["extensions"].get(EXTENSION)
        await receive()  # websocket.connect
        peer = client_ip(scope, self._services.trusted_proxies)
        address = network_of(peer, v4=32, v6=64)
        status = self._refusal(scope, address)
        if status is not None or not isinstance(socket, RelaySocket):
            await _refuse(send, status or 500)
            return
        socket.write_timeout_s = self._services.settings.write_timeout_s
        await send({"type": "websocket.accept", "subprotocol": frames.SUBPROTOCOL})
        connection = Connection(self._services, socket, send, peer)
        self._connections.add(connection)
        self._per_address[address] += 1
        metrics.CONNECTIONS.inc()
        try:
            await connection.run(receive)
        finally:
            metrics.CONNECTIONS.dec()
            self._connections.discard(connection)
            self._left.set()
            self._per_address[address] -= 1
            if not self._per_address[address]:
                del self._per_address[address]

    def _refusal(self, scope: dict[str, Any], address: str) -> int | None:
        settings = self._services.settings
        if frames.SUBPROTOCOL not in scope.get("subprotocols", ()):
            return 400
        if self._services.intake.draining:
            return 503
        if len(self._connections) >= settings.max_connections:
            return 503
        if self._per_address[address] >= settings.max_connections_per_ip:
            return 429
        return None

    async def drain(self) -> None:
        """End every conversation and wait until all connections are gone."""
        for connection in list(self._connections):
            connection.drain()
        while self._connections:
            self._left.clear()
            await self._left.wait()

    @property
    def count(self) -> int:
        """Open connections."""
        return len(self._connections)


async def _refuse(send: AsgiSend, status: int) -> None:
    await send({"type": "websocket.http.response.start", "status": status, "headers": []})
    await send({"type": "websocket.http.response.body", "body": b""})
