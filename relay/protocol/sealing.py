"""Sealed bodies: the SDK's default, so that a relay cannot read what it carries (PROTOCOL.md §3.6).

A libsodium sealed box has no sender, so the plaintext repeats from, to and id, and opening compares
them with the signed envelope around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import nacl.bindings

from relay.protocol import jws as jose
from relay.protocol.did import SigningKey, VerificationKey, encryption_key
from relay.protocol.envelope import MAX_URI_CHARS, Envelope
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.ids import Did, MessageId

CONTENT_TYPE: Final = "application/vnd.agent-relay.sealed"


@dataclass(frozen=True, slots=True)
class Content:
    """The content that the sender wrote: media type and bytes."""

    content_type: str
    body: bytes


def seal(
    content: Content,
    *,
    sender: Did,
    recipient: VerificationKey,
    message_id: MessageId,
    enc: bytes | None = None,
) -> bytes:
    """Seal ``content`` for ``enc`` (32-byte X25519), else for the X25519 form of the did:key.

    Raises:
        ProtocolError: ``bad_envelope``: its recipient could not read it.
    """
    plain = jose.dumps(
        {
            "from": sender,
            "to": recipient.did,
            "id": message_id,
            "cty": content.content_type,
            "body": jose.b64encode(content.body),
        }
    )
    _read(plain)
    if enc is None:
        enc = encryption_key(recipient.public_key)
    return nacl.bindings.crypto_box_seal(plain, enc)


def open_body(envelope: Envelope, key: SigningKey) -> Content:
    """The content of a verified envelope; a body that is not sealed is passed through.

    Raises:
        ProtocolError: ``bad_envelope``: sealed for another key, or its inside belongs elsewhere.
    """
    if envelope.content_type != CONTENT_TYPE:
        return Content(envelope.content_type, envelope.body)
    try:
        plain = key.open_sealed(envelope.body)
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_ENVELOPE, f"sealed body: {exc}") from exc
    inside, content = _read(plain)
    if inside != (envelope.sender.did, envelope.recipient.did, envelope.id):
        raise ProtocolError(ErrorCode.BAD_ENVELOPE, "the sealed body belongs to another envelope")
    return content


def _read(plain: bytes) -> tuple[tuple[str, ...], Content]:
    """From, to and id, and the content: one reader for who seals and who opens."""
    try:
        members = jose.Members(jose.loads(plain))
        inside = tuple(members.text(name, limit=512) for name in ("from", "to", "id"))
        content = Content(
            members.text("cty", limit=MAX_URI_CHARS),
            jose.b64decode(members.text("body", limit=2**31, minimum=0)),
        )
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_ENVELOPE, f"sealed body: {exc}") from exc
    return inside, content
