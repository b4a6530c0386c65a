"""Who is at this address? A relay's signed information, fetched from it (PROTOCOL.md §8)."""

from __future__ import annotations

from typing import Final

from relay.peering.dialer import Dialer
from relay.protocol import jws as jose
from relay.protocol import relay_info
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
    UnavailableError,
)

PATH: Final = "/.well-known/agent-relay.json"
OK: Final = 200


class Introductions:
    """Meets the port ``Introducing``."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer

    async def information(self, url: str) -> str:
        """What the relay there says of itself, as signed; not verified."""
        answer = await self._dialer.get(f"{url}{PATH}", accept="application/json")
        if answer.status != OK:
            detail = f"{url}: no relay answers there (HTTP {answer.status})"
            raise UnavailableError(ErrorCode.PEER_UNREACHABLE, detail)
        try:
            said = jose.Members(jose.loads(answer.body))
            return said.text("jws", most=relay_info.MAX_BYTES)
        except ValueError as exc:
            raise ProtocolError(ErrorCode.BAD_FRAME, f"{url}: {exc}") from exc
