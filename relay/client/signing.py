"""Signs an envelope of an agent, its body sealed unless the program says otherwise."""

from __future__ import annotations

from relay import clock
from relay.client.errors import typed
from relay.client.message import Body, content_of
from relay.core import envelope as envelopes
from relay.core import seal
from relay.core.envelope import DEFAULT_LIFETIME_S, MAX_BODY_BYTES, Draft, SignedEnvelope
from relay.core.errors import ErrorCode
from relay.core.identity import SigningKey, parse_did
from relay.core.ids import new_message_id


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
        ValueError: ``to`` is no DID.
    """
    recipient = parse_did(to)
    now = clock.now()
    message_id = new_message_id(now, clock.entropy)
    content = content_of(body, content_type)
    wire = content.body
    if sealed:
        wire = seal.seal(content, sender=key.did, recipient=recipient, message_id=message_id)
    if len(wire) > max_body_bytes:
        detail = f"the body has {len(wire)} bytes on the wire, the relay takes {max_body_bytes}"
        raise typed(ErrorCode.TOO_LARGE, detail, stored="no")
    draft = Draft(
        to=recipient.did,
        id=message_id,
        body=wire,
        content_type=seal.CONTENT_TYPE if sealed else content.content_type,
        created_at=int(now),
        lifetime_s=lifetime_s,
        type=type,
        thid=thid,
        pthid=pthid,
    )
    return envelopes.sign(draft, key)
