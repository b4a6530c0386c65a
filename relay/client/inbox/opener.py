"""Verification and decryption of delivered envelopes: no claim of a relay about one is trusted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from relay.client.errors import bug_of
from relay.client.message import MAX_OPENED_BODY_BYTES, Acknowledger, Bounce, Message
from relay.protocol import envelope as envelopes
from relay.protocol import sealing
from relay.protocol.did import SigningKey
from relay.protocol.envelope import Envelope
from relay.protocol.errors import ErrorCode, ProtocolError, RelayError
from relay.protocol.ids import Did, Eid
from relay.protocol.receipts import BOUNCE_CONTENT_TYPE, BounceItem, verify_bounce
from relay.protocol.sealing import Content


@dataclass(frozen=True, slots=True)
class Opened:
    """A verified envelope, addressed to this agent, and its content.

    Args:
        envelope: as it was signed.
        content: decrypted.
        bounced: items of a bounce that are proven; None: no bounce.
        unverified: items that are proven once their relay is found in the envelope's custody.
    """

    envelope: Envelope
    content: Content
    bounced: tuple[BounceItem, ...] | None
    unverified: tuple[BounceItem, ...] = ()

    def message(self, acknowledger: Acknowledger, *, redelivered: bool) -> Message:
        """Return the message for the program."""
        envelope = self.envelope
        message = Message(
            sender=envelope.sender.did,
            body=self.content.body,
            content_type=self.content.content_type,
            id=envelope.id,
            eid=envelope.eid,
            redelivered=redelivered,
            sealed=envelope.content_type == sealing.CONTENT_TYPE,
            created_at=envelope.created_at,
            expires_at=envelope.expires_at,
            type=envelope.type,
            thid=envelope.thid,
            pthid=envelope.pthid,
            acknowledger=acknowledger,
        )
        return message if self.bounced is None else Bounce.of(message, self.bounced)


def _never(_: Eid) -> bool:
    return False


@dataclass(slots=True)
class EnvelopeOpener:
    """Opens envelopes for one agent.

    Args:
        key: of the agent.
        receipted_by: returns the relay that issued the receipt of a sent envelope; None: not known.
        may_be_ours: returns True if this agent may have sent an envelope that a bounce names.
        authenticated_relays: relays that have proved themselves to this agent.
    """

    key: SigningKey
    receipted_by: Callable[[Eid], Did | None]
    may_be_ours: Callable[[Eid], bool] = _never
    authenticated_relays: set[Did] = field(default_factory=set)

    def open(self, item: object) -> Opened | RelayError:
        """Verify and open one raw envelope; return its defect, also if that is a bug here."""
        try:
            return self._open(item)
        except RelayError as exc:
            return exc
        except Exception as bug:  # noqa: BLE001  its sender gets the code: internal
            return bug_of(bug, "the opening of an envelope")

    def _open(self, item: object) -> Opened:
        envelope = envelopes.parse(item, max_body_bytes=MAX_OPENED_BODY_BYTES)
        if envelope.recipient.did != self.key.did:
            raise ProtocolError(ErrorCode.BAD_ENVELOPE, "addressed to somebody else")
        envelopes.verify(envelope, envelope.sender)
        content = sealing.open_body(envelope, self.key)
        if content.content_type != BOUNCE_CONTENT_TYPE:
            return Opened(envelope, content, None)
        return Opened(envelope, content, *self._bounced(envelope.sender.did, content.body))

    def _bounced(self, sender: Did, body: bytes) -> tuple[tuple[BounceItem, ...], ...]:
        """Return the proven and the unverified items of a bounce (GUARANTEES.md R6).

        A relay that proved itself to this agent proves items for which it issued the receipt.
        """
        items = verify_bounce(body.decode("ascii", errors="replace"), sender)
        is_ours = sender in self.authenticated_relays
        holders = {None, sender} if is_ours else {sender}
        proven = tuple(item for item in items if self.receipted_by(item.eid) in holders)
        unverified = tuple(i for i in items if i not in proven and self.may_be_ours(i.eid))
        if proven or unverified:
            return proven, unverified
        if is_ours:
            raise ProtocolError(ErrorCode.BAD_ENVELOPE, "a bounce of what another relay keeps")
        raise ProtocolError(ErrorCode.BAD_SIGNATURE, "a bounce of a relay that is not ours")
