"""The state of one delivered envelope until its ack or refusal is durable (GUARANTEES.md R2, R3).

Entry point: :class:`Delivery`. Invariants: one envelope is one delivery, at however many relays it
is; a :class:`DeliveryCopy` is its position in the inbox at one relay. Only the delivery changes its
state and its copies; a :class:`~relay.client.inbox.relay_inbox.RelayInbox` reports the events of a
connection. A refusal is sent by one copy at a time, so it bounces once.

::

    VERIFYING ──verified──▶ QUEUED ──shown──▶ DELIVERED ──settled──▶ SETTLING ──durable──▶ removed
        ▲                      ▲── retried ───────┤ ▲                   │
        └──── redelivered (the program has dropped it)└── not journaled ──┘

Example: an envelope is at two relays. The program refuses it: SETTLING. The copy at the first relay
sends the refusal; that connection is lost, so the second copy sends it. When the second relay
confirms it, the delivery is durable. A later delivery by the first relay is acked.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from relay.client.errors import AgentError, clone, make_error
from relay.client.message import Message
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import Eid, Seq, Timestamp
from relay.protocol.types import Reason

_ENDED_AS: Final[dict[Reason, ErrorCode]] = {
    Reason.EXPIRED: ErrorCode.EXPIRED,
    Reason.MOVED: ErrorCode.MOVED,
    Reason.CORRUPT: ErrorCode.CORRUPT,
    Reason.REFUSED: ErrorCode.INBOX_RESET,
    Reason.ACKED: ErrorCode.INBOX_RESET,
}
"""The error of an ack if the relay says that the envelope is gone."""


class DeliveryState(Enum):
    """The state of a delivery."""

    VERIFYING = "verifying"
    """A bounce whose relay is not known to have held the envelope."""
    QUEUED = "queued"
    DELIVERED = "delivered"
    """The program has the message."""
    SETTLING = "settling"
    """The program has acked or refused it."""


class DeliveryEvent(Enum):
    """An event that changes the state of a delivery."""

    VERIFIED = "verified"
    SHOWN = "shown"
    RETRIED = "retried"
    REDELIVERED = "redelivered"
    SETTLED = "settled"
    NOT_JOURNALED = "not journaled"


_TRANSITIONS: Final = {
    (DeliveryState.VERIFYING, DeliveryEvent.VERIFIED): DeliveryState.QUEUED,
    (DeliveryState.QUEUED, DeliveryEvent.SHOWN): DeliveryState.DELIVERED,
    (DeliveryState.DELIVERED, DeliveryEvent.RETRIED): DeliveryState.QUEUED,
    (DeliveryState.DELIVERED, DeliveryEvent.REDELIVERED): DeliveryState.VERIFYING,
    (DeliveryState.VERIFYING, DeliveryEvent.SETTLED): DeliveryState.SETTLING,
    (DeliveryState.QUEUED, DeliveryEvent.SETTLED): DeliveryState.SETTLING,
    (DeliveryState.DELIVERED, DeliveryEvent.SETTLED): DeliveryState.SETTLING,
    (DeliveryState.SETTLING, DeliveryEvent.NOT_JOURNALED): DeliveryState.DELIVERED,
}


@dataclass(slots=True, eq=False)
class DeliveryCopy:
    """An envelope in the inbox at one relay.

    Args:
        seq: its position there.
        delivery: of the envelope.
        queue_ack: called when its ack or refusal may be sent there.
        is_current: it was delivered on the present connection.
        ack_sent: so was its ack or refusal sent.
        ack_sent_at: when, monotonic seconds.
        is_detached: the inbox has moved away from that relay.
    """

    seq: Seq
    delivery: Delivery
    queue_ack: Callable[[DeliveryCopy], None]
    is_current: bool = True
    ack_sent: bool = False
    ack_sent_at: Timestamp = Timestamp(0)
    is_detached: bool = False


@dataclass(slots=True, eq=False)
class Delivery:
    """One envelope that was delivered and has no durable ack or refusal yet.

    Args:
        eid: of the envelope; None: it could not be opened, or it is settled already.
        on_removed: called when its last copy is removed, with the failure of its ack.
        state: see :class:`DeliveryState`.
        refuse_code: of a refusal.
        expires_at: Unix seconds.
        is_journaled: its ack or refusal is in the journal, so it may be sent.
        is_durable: a relay has made that durable.
        redelivered: a relay says that it may have been delivered before.
        refusing_copy: the copy that sends the refusal.
        shown: the message, while the program holds it.
        copies: none: its inbox began a new epoch, and only its eid still counts.
        waiters: done when the ack or refusal is durable.
    """

    eid: Eid | None
    on_removed: Callable[[Delivery, AgentError | None], None]
    state: DeliveryState = DeliveryState.QUEUED
    refuse_code: str | None = None
    expires_at: int = 0
    is_journaled: bool = True
    is_durable: bool = False
    redelivered: bool = False
    refusing_copy: DeliveryCopy | None = None
    shown: weakref.ref[Message] | None = None
    copies: list[DeliveryCopy] = field(default_factory=list)
    waiters: list[asyncio.Future[None]] = field(default_factory=list)

    def apply(self, event: DeliveryEvent) -> bool:
        """Change the state by an event; return False if the event changes nothing in it."""
        after = _TRANSITIONS.get((self.state, event))
        if after is not None:
            self.state = after
        return after is not None

    @property
    def is_settling(self) -> bool:
        """True if the program has acked or refused it."""
        return self.state is DeliveryState.SETTLING

    @property
    def unsent_code(self) -> str | None:
        """The refusal to send; once it is durable at one relay, the others get an ack."""
        return None if self.is_durable else self.refuse_code

    @property
    def is_dropped(self) -> bool:
        """True if the program has dropped the message without ack or refusal."""
        is_delivered = self.state is DeliveryState.DELIVERED
        return is_delivered and (self.shown is None or self.shown() is None)

    @property
    def is_orphaned(self) -> bool:
        """True if all its copies are at relays that the inbox has moved away from."""
        return bool(self.copies) and all(copy.is_detached for copy in self.copies)

    @property
    def is_current(self) -> bool:
        """True if a relay has delivered it on the present connection."""
        return any(copy.is_current for copy in self.copies)

    # ------------------------------------------------------------ events of a relay

    def delivered(self, seq: Seq, queue_ack: Callable[[DeliveryCopy], None]) -> DeliveryCopy:
        """Add the copy at a relay; copies at relays that the inbox has left are gone."""
        copy = DeliveryCopy(seq, self, queue_ack)
        self.copies[:] = [one for one in self.copies if not one.is_detached]
        self.copies.append(copy)
        return copy

    def acked(self, copy: DeliveryCopy) -> None:
        """Note that a relay has made the ack or refusal of a copy durable."""
        self.is_durable = self.is_durable or self.is_settling
        self.remove(copy)

    def ended(self, copy: DeliveryCopy, reason: Reason) -> None:
        """Remove a copy that the relay has no longer."""
        if self.is_settling and reason in {Reason.ACKED, Reason.REFUSED}:
            self.acked(copy)
        else:
            detail = f"{reason} before the answer was durable"
            self.remove(copy, make_error(_ENDED_AS[reason], detail))

    def disconnected(self, copy: DeliveryCopy) -> bool:
        """Note that the connection of a copy is lost; return False if the copy is removed."""
        copy.is_current = copy.ack_sent = False
        is_shown = self.state in {DeliveryState.DELIVERED, DeliveryState.SETTLING}
        if is_shown and self.eid is not None and not self.is_durable:
            self._hand_on_refusal(copy)
            return True
        self.remove(copy)
        return False

    def epoch_reset(self, copy: DeliveryCopy) -> None:
        """Remove a copy whose inbox began a new epoch: its seq is void, the eid still counts."""
        if self.is_settling:
            detail = "the inbox began a new epoch before this answer was durable"
            self.remove(copy, make_error(ErrorCode.INBOX_RESET, detail))
        else:
            self.copies.remove(copy)

    def remove(self, copy: DeliveryCopy, failure: AgentError | None = None) -> None:
        """Remove a copy; ``failure`` is the reason if its ack or refusal did not count."""
        self.copies.remove(copy)
        if self.copies:
            self._hand_on_refusal(copy)
        else:
            self.on_removed(self, None if self.is_durable else failure)

    # ------------------------------------------------------------ ack and refusal

    def may_send(self, copy: DeliveryCopy) -> bool:
        """Return True if a copy may send the ack or refusal; a refusal becomes that copy's."""
        is_others = self.refusing_copy is not None and self.refusing_copy is not copy
        if not copy.is_current or (is_others and self.unsent_code is not None):
            return False
        self.refusing_copy = copy
        return True

    def queue_acks(self) -> None:
        """Send the ack or refusal, which is in the journal now, from every copy that may."""
        for copy in self.copies:
            copy.queue_ack(copy)

    def _hand_on_refusal(self, copy: DeliveryCopy) -> None:
        """Let another copy send the refusal of one that can no longer send it."""
        if self.refusing_copy is not copy:
            return
        self.refusing_copy = None
        if self.is_settling and self.refuse_code is not None and self.is_journaled:
            for other in self.copies:
                if other is not copy and not other.ack_sent:
                    other.queue_ack(other)

    def wait_durable(self) -> asyncio.Future[None]:
        """Return a future that is done when the ack or refusal is durable."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiters.append(waiter)
        return waiter

    def finish(self, failure: AgentError | None = None) -> None:
        """End the futures of :meth:`wait_durable`."""
        for waiter in self.waiters:
            if waiter.done():
                continue
            if failure is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(clone(failure))
        self.waiters.clear()
