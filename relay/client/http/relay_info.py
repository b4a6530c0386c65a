"""What a relay says of itself, signed (PROTOCOL.md §8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relay.client.errors import typed
from relay.client.http.origin import Origin
from relay.client.http.transport import ask
from relay.protocol import relay_info
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
)
from relay.protocol.ids import (
    Did,
    Timestamp,
)

PATH: Final = "/.well-known/agent-relay.json"


@dataclass(frozen=True, slots=True)
class Information:
    """Relay information whose signature holds: it is of whoever has the key of ``did``."""

    did: Did
    url: str
    software: str
    version: str
    limits: dict[str, int]
    registration: str
    federation: str
    durability: str
    contact: str | None


async def information(origin: Origin) -> Information:
    """Ask a relay what it is.

    Raises:
        AgentError: unreachable; ``bad_frame`` or ``bad_signature``: not signed as it should be.
    """
    answer = await ask(origin, "GET", PATH)
    try:
        info = relay_info.parse(answer.text("jws", most=relay_info.MAX_BYTES))
    except ProtocolError as exc:
        raise typed(exc.code, exc.detail) from exc
    except ValueError as exc:
        raise typed(ErrorCode.BAD_FRAME, f"relay information: {exc}") from exc
    # the relay itself said it just now, so its own clock decides; `relay check` compares the clocks
    no = relay_info.verify(info, Timestamp(info.issued_at))
    if no is not None:
        raise typed(no.code, no.detail)
    said = info.said
    return Information(
        did=info.did,
        url=said.url,
        software=said.software,
        version=said.version,
        limits=said.limits,
        registration=said.registration,
        federation=said.federation,
        durability=said.durability,
        contact=said.contact,
    )
