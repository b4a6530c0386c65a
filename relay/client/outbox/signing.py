"""Sign an envelope; its body is sealed unless the program does not want that.

Entry points: :func:`sign` and :func:`check`. Invariant: an envelope is read here as its relay and
its recipient will read it. If one of them would refuse its form, nothing is sent.
"""

from __future__ import annotations

from dataclasses import replace

from relay import clock
from relay.client.errors import AgentError, from_core, make_error
from relay.client.message import MAX_OPENED_BODY_BYTES, Body, content_of
from relay.protocol import envelope as envelopes
from relay.protocol import jws as jose
from relay.protocol import sealing
from relay.protocol.did import SigningKey, VerificationKey, parse_did
from relay.protocol.envelope import DEFAULT_LIFETIME_S, MAX_BODY_BYTES, Draft, SignedEnvelope
from relay.protocol.errors import ErrorCode, RelayError
from relay.protocol.ids import new_message_id
from relay.protocol.receipts import BOUNCE_CONTENT_TYPE
from relay.protocol.sealing import Content


def sign(
    key: SigningKey,
    to: str,
    body: Body,
    *,
    sealed: bool = True,
    content_type: str | None = None,
    type: str | None = None,  # noqa: A002  the envelope's own word
    thid: str | None = None,
    pthid: str | None = None,
    lifetime_s: int = DEFAULT_LIFETIME_S,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> SignedEnvelope:
    """Sign an envelope of ``key``'s agent; arguments as for :meth:`Agent.send`.

    Raises:
        TooLargeError: the body, sealed if it is, is over ``max_body_bytes``.
        BadEnvelopeError: a type, a thread id or the lifetime is one that no relay or no
            recipient accepts.
        TypeError, ValueError: ``to`` is no DID, or ``body`` has no JSON form.
    """
    recipient = parse_did(to)
    content = content_of(body, content_type)
    try:
        draft = _draft(key, recipient, content, sealed=sealed, max_body_bytes=max_body_bytes)
        draft = replace(draft, lifetime_s=lifetime_s, type=type, thid=thid, pthid=pthid)
        signed = envelopes.sign(draft, key)
        check(signed)
    except RelayError as exc:
        raise _unsent(from_core(exc)) from exc
    except TypeError as exc:
        # text that is no Unicode, as a broken file name may be
        raise _unsent(make_error(ErrorCode.BAD_ENVELOPE, f"it cannot be encoded: {exc}")) from exc
    return signed


def check(envelope: SignedEnvelope) -> None:
    """Read an envelope as its relay and its recipient will.

    Raises:
        ProtocolError: one of them would refuse its form.
    """
    try:
        found = envelopes.parse(jose.loads(envelope.wire), max_body_bytes=MAX_OPENED_BODY_BYTES)
    except RelayError as exc:
        raise _unsent(from_core(exc)) from exc
    except ValueError as exc:
        raise make_error(ErrorCode.BAD_ENVELOPE, f"not an envelope: {exc}", stored="no") from exc
    read = (found.eid, found.id, found.recipient.did, found.expires_at)
    if read != (envelope.eid, envelope.id, envelope.to, envelope.expires_at):
        raise make_error(ErrorCode.BAD_ENVELOPE, "its bytes are of another envelope", stored="no")


def damage(envelope: SignedEnvelope) -> AgentError | None:
    """Return what is wrong with an envelope of a state file, if anything.

    No relay could read the frame that it is in, nor the other envelopes there.
    """
    try:
        check(envelope)
    except AgentError as exc:
        detail = f"the state file is damaged: {exc.detail}"
        return make_error(ErrorCode.CORRUPT, detail, stored="unknown", envelope=envelope)
    return None


def _draft(
    key: SigningKey,
    recipient: VerificationKey,
    content: Content,
    *,
    sealed: bool,
    max_body_bytes: int,
) -> Draft:
    now = clock.now()
    message_id = new_message_id(now, clock.entropy)
    reserved = {BOUNCE_CONTENT_TYPE} if sealed else {BOUNCE_CONTENT_TYPE, sealing.CONTENT_TYPE}
    if content.content_type in reserved:
        raise make_error(
            ErrorCode.BAD_ENVELOPE,
            f"{content.content_type} is reserved: choose another content type",
        )
    wire = content.body
    if sealed:
        wire = sealing.seal(content, sender=key.did, recipient=recipient, message_id=message_id)
    if len(wire) > max_body_bytes:
        detail = f"the body has {len(wire)} bytes on the wire, the relay allows {max_body_bytes}"
        raise make_error(ErrorCode.TOO_LARGE, detail)
    return Draft(
        to=recipient.did,
        id=message_id,
        body=wire,
        content_type=sealing.CONTENT_TYPE if sealed else content.content_type,
        created_at=int(now),
    )


def _unsent(exc: AgentError) -> AgentError:
    exc.stored = "no"
    return exc
