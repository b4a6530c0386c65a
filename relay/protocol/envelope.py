"""An envelope and the stages of its way through a relay (PROTOCOL.md §3).

Each step has its own type, so that storing what nobody verified does not type-check::

    bytes ──parse──▶ Envelope ──verify──▶ VerifiedEnvelope ──policy.admit──▶ AdmittedEnvelope
                                                                   │
                                       StoredEnvelope ◀──inbox.accept
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, NamedTuple

from relay.protocol import jws as jose
from relay.protocol import signed
from relay.protocol.did import SigningKey, VerificationKey, parse_did
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.ids import (
    MAX_DID_BYTES,
    UUID7,
    AgentKey,
    Did,
    Eid,
    MessageId,
    Timestamp,
    message_id_hour,
    message_id_ms,
    parse_message_id,
)

TYP: Final = "agent-envelope+jws"
MAX_JWS_BYTES: Final = 10 * 1024
MAX_BODY_BYTES: Final = 256 * 1024
MAX_ENVELOPE_LIFETIME_S: Final = 30 * 24 * 3600
DEFAULT_LIFETIME_S: Final = 7 * 24 * 3600
MAX_URI_CHARS: Final = 256
MAX_THREAD_ID_CHARS: Final = 64
SHA256_BYTES: Final = 32
_WIRE_HEAD: Final = b'{"jws":"'
_SIGNED: Final = frozenset({"v", "id", "from", "to", "created_time", "expires_time", "kv", "body"})
_BODY: Final = frozenset({"cty", "len", "sha256"})


class Envelope(NamedTuple):
    """A well-formed envelope; nothing in it is believed yet."""

    jws: jose.Jws
    eid: Eid
    id: MessageId
    sender: VerificationKey
    recipient: VerificationKey
    created_at: int
    expires_at: int
    type: str | None
    thid: str | None
    pthid: str | None
    content_type: str
    body_sha256: bytes
    body: bytes
    body_base64: str

    @property
    def wire(self) -> bytes:
        """``{"jws","body"}`` as stored and delivered, UTF-8 JSON."""
        return b'{"jws":"%b","body":"%b"}' % (self.jws.compact.encode(), self.body_base64.encode())


class VerifiedEnvelope(NamedTuple):
    """Signed by its sender, body and all. Made only by :func:`verify`."""

    envelope: Envelope


class AdmittedEnvelope(NamedTuple):
    """Verified, and no rule of this relay objects. Made only by ``policy.admit``."""

    envelope: Envelope
    wire: bytes

    @property
    def inbox(self) -> AgentKey:
        """The inbox it is for."""
        return self.envelope.recipient.agent_key


class StoredEnvelope(NamedTuple):
    """The part of an envelope that an inbox stores: all that delivery needs.

    Args:
        inbox: the inbox it is for.
        eid: its id.
        wire: exact bytes of ``{"jws","body"}``.
        sender: agent key of ``from``.
        dedupe_key: first 16 bytes of SHA-256(from|id) (GUARANTEES.md R3).
        hour: hour of the UUIDv7, Unix hours.
        created_at: Unix seconds, as signed.
        expires_at: Unix seconds, as signed.
        bounces: its sender learns of an end without an ack; a bounce never bounces.
        marked: came with a hand-off: always shown as redelivered.
        barred: refused if its sender is a stranger: too many came from that address just now.
        peer: a relay that it may wait for here, should its recipient live elsewhere.
        via: the relay that brought it; None: its sender did.
        moving: that relay hands over an inbox, of which this is a part: past rules and quotas.
    """

    inbox: AgentKey
    eid: Eid
    wire: bytes
    sender: AgentKey
    dedupe_key: bytes
    hour: int
    created_at: int
    expires_at: int
    bounces: bool = True
    marked: bool = False
    barred: bool = False
    peer: AgentKey | None = None
    via: AgentKey | None = None
    moving: bool = False

    @property
    def size(self) -> int:
        """Wire bytes; what quotas and windows count."""
        return len(self.wire)


def dedupe_key(sender: Did, message_id: MessageId) -> bytes:
    """First 16 bytes of SHA-256(from|id): one entry of an inbox's memory."""
    return hashlib.sha256(f"{sender}|{message_id}".encode()).digest()[:16]


def stored(
    admitted: AdmittedEnvelope, *, bounces: bool = True, barred: bool = False
) -> StoredEnvelope:
    """Return the part of an admitted envelope that is stored."""
    envelope = admitted.envelope
    return StoredEnvelope(
        inbox=admitted.inbox,
        eid=envelope.eid,
        wire=admitted.wire,
        sender=envelope.sender.agent_key,
        dedupe_key=dedupe_key(envelope.sender.did, envelope.id),
        hour=message_id_hour(envelope.id),
        created_at=envelope.created_at,
        expires_at=envelope.expires_at,
        bounces=bounces,
        barred=barred,
    )


def signer_of(wire: bytes) -> str:
    """The key that signed a stored envelope, and with it its sender.

    Raises:
        ValueError: it is no envelope.
    """
    compact, _ = _parts(jose.loads(wire))
    return jose.parse(compact, typ=TYP, max_bytes=MAX_JWS_BYTES).header.kid


def eid_of(wire: bytes) -> Eid:
    """The eid of an envelope in the form in which :attr:`Envelope.wire` writes it."""
    compact = wire[len(_WIRE_HEAD) : wire.index(b'"', len(_WIRE_HEAD))]
    return Eid(jose.b64encode(hashlib.sha256(compact.rpartition(b".")[0]).digest()))


def parse(item: object, *, max_body_bytes: int = MAX_BODY_BYTES) -> Envelope:
    """Read one ``{"jws","body"}`` object: form, purpose, lengths, times' order; no signature yet.

    Raises:
        ProtocolError: ``bad_envelope``, ``too_large`` or ``unsupported``.
    """
    try:
        compact, body_base64 = _parts(item)
    except jose.UnsupportedTypeError as exc:
        raise ProtocolError(ErrorCode.UNSUPPORTED, str(exc)) from exc
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_ENVELOPE, str(exc)) from exc
    if len(compact) > MAX_JWS_BYTES:
        raise ProtocolError(ErrorCode.TOO_LARGE, f"a JWS has at most {MAX_JWS_BYTES} bytes")
    if len(body_base64) > (max_body_bytes * 4 + 2) // 3:
        raise ProtocolError(ErrorCode.TOO_LARGE, f"a body has at most {max_body_bytes} bytes")
    try:
        jws = jose.parse(compact, typ=TYP, max_bytes=MAX_JWS_BYTES)
        return _quick(jws, body_base64) or _parse(jws, body_base64)
    except jose.UnsupportedTypeError as exc:
        raise ProtocolError(ErrorCode.UNSUPPORTED, str(exc)) from exc
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_ENVELOPE, str(exc)) from exc


def _parts(item: object) -> tuple[str, str]:
    members = jose.Members(item)
    return members.text("jws", limit=2**31), members.text("body", limit=2**31, minimum=0)


def _quick(jws: jose.Jws, body_base64: str) -> Envelope | None:
    """Read the usual envelope as :func:`_parse` does, in half the time.

    None says nothing but "read it again, slowly": only :func:`_parse` refuses and names. Each
    member's type is asked for here, so what :func:`jose.loads` checks of values is not repeated.
    """
    try:
        payload = jose.loads_own(jws.payload)
        body = payload["body"]
        sender, recipient = parse_did(payload["from"]), parse_did(payload["to"])
        message_id, created, expires = (
            payload["id"],
            payload["created_time"],
            payload["expires_time"],
        )
        raw, digest = jose.b64decode(body_base64), jose.b64decode(body["sha256"])
        is_plain = (
            payload.keys() == _SIGNED
            and body.keys() == _BODY
            and type(created) is type(expires) is type(payload["v"]) is type(payload["kv"]) is int
            and type(body["len"]) is int
            and payload["v"] == payload["kv"] == 1
            and jws.header.kid == sender.kid
            and UUID7.fullmatch(message_id) is not None
            and 0 <= created < expires <= created + MAX_ENVELOPE_LIFETIME_S
            and abs(message_id_ms(message_id) - created * 1000) <= signed.MAX_SKEW_S * 1000
            and body["len"] == len(raw)
            and len(digest) == SHA256_BYTES
            and 0 < len(body["cty"]) <= MAX_URI_CHARS
            and type(body["cty"]) is str
        )
    except (AttributeError, LookupError, TypeError, ValueError):
        return None
    if not is_plain:
        return None
    return Envelope(
        jws, jws.eid, message_id, sender, recipient, created, expires, None, None, None,
        body["cty"], digest, raw, body_base64,
    )  # fmt: skip


def _parse(jws: jose.Jws, body_base64: str) -> Envelope:
    members = jws.members()
    signed.check_version(members)
    sender = signed.read_signer(jws, members, "from")
    recipient = parse_did(members.text("to", limit=MAX_DID_BYTES))
    members.integer("kv", minimum=1, limit=1)
    message_id = parse_message_id(members.text("id", limit=36))
    created = members.integer("created_time")
    expires = members.integer("expires_time")
    if not 0 < expires - created <= MAX_ENVELOPE_LIFETIME_S:
        raise ValueError("lifetime must be more than 0 and at most 30 days")
    if abs(message_id_ms(message_id) - created * 1000) > signed.MAX_SKEW_S * 1000:
        raise ValueError("the time in id is more than 300 s from created_time")
    body = members.object("body")
    raw = jose.b64decode(body_base64)
    if body.integer("len") != len(raw):
        raise ValueError("body.len is not the length of body")
    return Envelope(
        jws=jws,
        eid=jws.eid,
        id=message_id,
        sender=sender,
        recipient=recipient,
        created_at=created,
        expires_at=expires,
        type=members.optional_text("type", limit=MAX_URI_CHARS),
        thid=members.optional_text("thid", limit=MAX_THREAD_ID_CHARS),
        pthid=members.optional_text("pthid", limit=MAX_THREAD_ID_CHARS),
        content_type=body.text("cty", limit=MAX_URI_CHARS),
        body_sha256=body.base64("sha256", size=SHA256_BYTES),
        body=raw,
        body_base64=body_base64,
    )


def verify(envelope: Envelope, key: VerificationKey) -> VerifiedEnvelope:
    """Check the signature, then that the body is the signed one (PROTOCOL.md §3.3).

    Args:
        envelope: a parsed envelope.
        key: a key that may act for ``from`` now.

    Raises:
        ProtocolError: ``bad_signature``; ``bad_envelope`` where only the body differs.
    """
    if not signed.is_by(envelope.jws, key):
        raise ProtocolError(ErrorCode.BAD_SIGNATURE, "not signed by a key of from")
    if hashlib.sha256(envelope.body).digest() != envelope.body_sha256:
        raise ProtocolError(ErrorCode.BAD_ENVELOPE, "body.sha256 is not the hash of body")
    return VerifiedEnvelope(envelope)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An envelope before it is signed: see :func:`sign`.

    Args:
        to: the recipient.
        id: a fresh UUIDv7.
        body: bytes as they travel (sealed or plain).
        content_type: media type of ``body``.
        created_at: Unix seconds.
        lifetime_s: seconds until it expires.
        type: optional URI that says what kind of content it is.
        thid: optional thread id.
        pthid: optional parent thread id.
    """

    to: Did
    id: MessageId
    body: bytes
    content_type: str
    created_at: int
    lifetime_s: int = DEFAULT_LIFETIME_S
    type: str | None = None
    thid: str | None = None
    pthid: str | None = None


@dataclass(frozen=True, slots=True)
class SignedEnvelope:
    """An envelope as its sender keeps and resends it: never signed again (GUARANTEES.md S2)."""

    eid: Eid
    id: MessageId
    to: Did
    expires_at: int
    wire: bytes


def sign(draft: Draft, key: SigningKey) -> SignedEnvelope:
    """Sign a draft with the sender's key (PROTOCOL.md §3.2)."""
    payload: dict[str, object] = {
        "v": 1,
        "id": draft.id,
        "from": key.did,
        "to": draft.to,
        "created_time": draft.created_at,
        "expires_time": draft.created_at + draft.lifetime_s,
        "kv": 1,
        "body": {
            "cty": draft.content_type,
            "len": len(draft.body),
            "sha256": jose.b64encode(hashlib.sha256(draft.body).digest()),
        },
    }
    optional = {"type": draft.type, "thid": draft.thid, "pthid": draft.pthid}
    payload.update({name: value for name, value in optional.items() if value is not None})
    compact = jose.sign(payload, typ=TYP, kid=key.kid, key=key.sign)
    signing_input = compact.rpartition(".")[0].encode()
    return SignedEnvelope(
        eid=Eid(jose.b64encode(hashlib.sha256(signing_input).digest())),
        id=draft.id,
        to=draft.to,
        expires_at=draft.created_at + draft.lifetime_s,
        wire=jose.dumps({"jws": compact, "body": jose.b64encode(draft.body)}),
    )


def is_too_early(envelope: Envelope, now: Timestamp) -> bool:
    """Return True if it comes from more than 300 s in the future (``not_yet_valid``)."""
    return envelope.created_at > now + signed.MAX_SKEW_S
