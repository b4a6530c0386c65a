"""Small makers of the things that core tests talk about; every key and time in them is fixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from relay.protocol import envelope, jws
from relay.protocol.did import SigningKey
from relay.protocol.envelope import Draft, Envelope, SignedEnvelope, StoredEnvelope
from relay.protocol.ids import AgentKey, Eid, MessageId, Timestamp, new_message_id

ALICE = SigningKey(b"a" * 32)
BOB = SigningKey(b"b" * 32)
MALLORY = SigningKey(b"m" * 32)
RELAY = SigningKey(b"r" * 32)
NOW = Timestamp(1_750_000_000)


def numbered_entropy(start: int = 0) -> Callable[[int], bytes]:
    """Bytes that look random and are the same in every run."""
    calls = iter(range(start, start + 1_000_000))
    return lambda count: hashlib.shake_256(str(next(calls)).encode()).digest(count)


def message_id(n: int = 0, at: float = NOW) -> MessageId:
    return new_message_id(Timestamp(at), numbered_entropy(n))


def draft(**changes: Any) -> Draft:
    given: dict[str, Any] = {
        "to": BOB.did,
        "id": message_id(),
        "body": b"hello",
        "content_type": "text/plain",
        "created_at": int(NOW),
    }
    return Draft(**{**given, **changes})


def signed(key: SigningKey = ALICE, **changes: Any) -> SignedEnvelope:
    return envelope.sign(draft(**changes), key)


def wire_object(made: SignedEnvelope) -> dict[str, str]:
    return json.loads(made.wire)


def parsed(key: SigningKey = ALICE, **changes: Any) -> Envelope:
    return envelope.parse(wire_object(signed(key, **changes)))


def payload_of(compact: str) -> dict[str, Any]:
    return json.loads(jws.b64decode(compact.split(".")[1]))


def header_of(compact: str) -> dict[str, Any]:
    return json.loads(jws.b64decode(compact.split(".", maxsplit=1)[0]))


def compact(header: object, payload: object, key: SigningKey) -> str:
    """A JWS with any header and payload at all, rightly signed; bytes are taken as they are."""
    segments = [
        jws.b64encode(part if isinstance(part, bytes) else json.dumps(part).encode())
        for part in (header, payload)
    ]
    signing_input = ".".join(segments)
    return f"{signing_input}.{jws.b64encode(key.sign(signing_input.encode()))}"


def resigned(text: str, key: SigningKey, **changes: object) -> str:
    """The same JWS with other payload members, signed again; ``...`` removes a member."""
    payload = {**payload_of(text), **changes}
    payload = {name: value for name, value in payload.items() if value is not ...}
    return compact(header_of(text), payload, key)


def entry(  # noqa: PLR0917  a table of small numbers reads best in one line
    n: int,
    size: int = 10,
    sender: str = "s",
    expires: int = 2_000_000_000,
    hour: int = 1,
    created: int = 1_000,
    *,
    bounces: bool = True,
    marked: bool = False,
) -> StoredEnvelope:
    """Entry number ``n`` for an inbox; equal numbers are the same envelope."""
    return StoredEnvelope(
        inbox=AgentKey("key:me"),
        eid=Eid(f"eid{n}"),
        wire=b"x" * size,
        sender=AgentKey(f"key:{sender}"),
        dedupe_key=n.to_bytes(16, "big"),
        hour=hour,
        created_at=created,
        expires_at=expires,
        bounces=bounces,
        marked=marked,
    )
