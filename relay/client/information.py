"""What a relay says of itself, signed (PROTOCOL.md §8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relay.client.errors import typed
from relay.client.exchange import ask
from relay.client.origin import Origin
from relay.core import codec
from relay.core import jws as jose
from relay.core.errors import ErrorCode
from relay.core.identity import parse_did
from relay.core.ids import Did

PATH: Final = "/.well-known/agent-relay.json"
TYP: Final = "agent-relay-info+jws"
MAX_BYTES: Final = 16_384


@dataclass(frozen=True, slots=True)
class Information:
    """Relay information whose signature holds: it is of whoever has the key of ``did``."""

    did: Did
    url: str
    software: str
    version: str
    limits: dict[str, int]
    registration: str
    durability: str
    contact: str | None


async def information(origin: Origin) -> Information:
    """Ask a relay what it is.

    Raises:
        AgentError: unreachable; ``bad_frame`` or ``bad_signature``: not signed as it should be.
    """
    answer = await ask(origin, "GET", PATH)
    try:
        compact = answer.text("jws", most=MAX_BYTES)
        jws = jose.parse(compact, typ=TYP, max_bytes=MAX_BYTES)
        members = jws.members()
        key = parse_did(members.text("did", most=512))
        said = Information(
            did=key.did,
            url=members.text("url", most=512),
            software=members.text("software", most=64),
            version=members.text("version", most=64),
            limits=codec.read_limits(members),
            registration=members.text("registration", most=16),
            durability=members.text("durability", most=16),
            contact=members.optional_text("contact", most=512),
        )
    except ValueError as exc:
        raise typed(ErrorCode.BAD_FRAME, f"relay information: {exc}") from exc
    if jws.header.kid != key.kid or not jose.is_signed_by(jws, key.public_key):
        raise typed(ErrorCode.BAD_SIGNATURE, f"relay information: not signed by {key.did}")
    return said
