"""Verify and open what a relay delivered: nothing that it says of an envelope is believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from relay.client.errors import bug_of
from relay.client.message import Bounce, Desk, Message
from relay.protocol import envelope as envelopes
from relay.protocol import sealing
from relay.protocol.did import SigningKey
from relay.protocol.envelope import Envelope
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
    RelayError,
)
from relay.protocol.ids import (
    Did,
    Eid,
)
from relay.protocol.receipts import (
    BOUNCE_CONTENT_TYPE,
    BounceItem,
    verify_bounce,
)
from relay.protocol.sealing import Content

MAX_BODY_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Opened:
    """An envelope whose signature holds, addressed to us, and its content.

    ``bounced`` of a bounce is what is believed of it; ``doubts`` is what its relay may be in the
    chain of receipts of, which is to be found out before it is shown.
    """

    envelope: Envelope
    content: Content
    bounced: tuple[BounceItem, ...] | None
    doubts: tuple[BounceItem, ...] = ()

    def message(self, desk: Desk, *, redelivered: bool) -> Message:
        """What the program gets of it."""
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
            desk=desk,
        )
        return message if self.bounced is None else Bounce.of(message, self.bounced)


def _surely_not(_: Eid) -> bool:
    return False


@dataclass(slots=True)
class Opener:
    """Opens envelopes for one agent.

    Args:
        key: the agent's.
        receipted_by: which relay gave a receipt for an envelope of ours, None where not known.
        may_be_ours: whether this agent may have sent what a bounce names; False: surely not.
        proven: relays that have proved themselves to this agent.
    """

    key: SigningKey
    receipted_by: Callable[[Eid], Did | None]
    may_be_ours: Callable[[Eid], bool] = _surely_not
    proven: set[Did] = field(default_factory=set)

    def __call__(self, item: object) -> Opened:
        """Verify and open one raw envelope.

        Raises:
            RelayError: what is wrong with it.
        """
        envelope = envelopes.parse(item, max_body_bytes=MAX_BODY_BYTES)
        if envelope.recipient.did != self.key.did:
            raise ProtocolError(ErrorCode.BAD_ENVELOPE, "addressed to somebody else")
        envelopes.verify(envelope, envelope.sender)
        content = sealing.open_body(envelope, self.key)
        if content.content_type != BOUNCE_CONTENT_TYPE:
            return Opened(envelope, content, None)
        return Opened(envelope, content, *self._bounced(envelope.sender.did, content.body))

    def attempt(self, item: object) -> Opened | RelayError:
        """As a call, but what is wrong with it is a value; a bug on one ends nothing else."""
        try:
            return self(item)
        except RelayError as exc:
            return exc
        except Exception as bug:  # noqa: BLE001  its sender is told: internal
            return bug_of(bug, "the opening of an envelope")

    def _bounced(self, sender: Did, body: bytes) -> tuple[tuple[BounceItem, ...], ...]:
        """What is believed of a bounce and what is in doubt (GUARANTEES.md R6).

        A relay that proved itself to us is believed about what it gave us the receipt for.
        """
        items = verify_bounce(body.decode("ascii", errors="replace"), sender)
        holders = {None, sender} if sender in self.proven else {sender}
        believed = tuple(item for item in items if self.receipted_by(item.eid) in holders)
        doubts = tuple(i for i in items if i not in believed and self.may_be_ours(i.eid))
        if not believed and not doubts:
            if sender not in self.proven:
                detail = "a bounce of a relay that is not ours"
                raise ProtocolError(ErrorCode.BAD_SIGNATURE, detail)
            raise ProtocolError(ErrorCode.BAD_ENVELOPE, "a bounce of what another relay keeps")
        return believed, doubts
