"""Bodies, messages, bounces and receipts, as values for the program."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final, Protocol, Self

import orjson

from relay.client.process import not_pickled
from relay.protocol import frames
from relay.protocol.ids import Did, Eid, MessageId
from relay.protocol.receipts import MAX_REASON, BounceItem, Custody, Durability
from relay.protocol.sealing import Content

MAX_OPENED_BODY_BYTES: Final = 1024 * 1024
"""A recipient opens no larger body; no operator allows a larger one (PROTOCOL.md §3.4)."""
TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"

Body = str | bytes | dict[str, Any] | list[Any] | int | float | bool | None
"""A body: text, bytes, or a value that JSON returns unchanged.

That is: objects with text as keys, lists, text, true, false, null, integers from -2^63 to 2^64 - 1
and finite floats. Readers in other languages may round integers beyond 2^53. NaN, infinities,
dates, UUIDs, tuples, sets, enums (except of text or integers) and dataclasses are refused: send
their text, a list or a dict.
"""


def content_of(body: Body, content_type: str | None = None) -> Content:
    """Encode a body: text as UTF-8, bytes unchanged, other values as JSON.

    Raises:
        TypeError: JSON has no such value.
        ValueError: JSON has no such number, or the text is no Unicode.
    """
    if isinstance(body, str):
        return Content(content_type or TEXT, body.encode())
    if isinstance(body, bytes):
        return Content(content_type or BYTES, body)
    return Content(content_type or JSON, _json(body))


def _json(body: object) -> bytes:
    data = orjson.dumps(body)
    back = orjson.loads(data)
    if back != body:
        raise _changed(body, back, "the body")
    return data


def _changed(sent: Any, back: Any, where: str) -> Exception:
    """Return the error for a value that JSON would change; it names the innermost one."""
    if isinstance(sent, dict) and isinstance(back, dict):
        key = next(key for key in sent if key not in back or sent[key] != back[key])
        return _changed(sent[key], back.get(key), f"{where}[{key!r}]")
    if isinstance(sent, list) and isinstance(back, list):
        at = next(at for at, one in enumerate(sent) if one != back[at])
        return _changed(sent[at], back[at], f"{where}[{at}]")
    detail = f"{where} is {sent!r:.80} and would arrive as {back!r:.80}"
    return ValueError(detail) if isinstance(sent, float) else TypeError(detail)


@dataclass(frozen=True, slots=True)
class Sent:
    """A relay's signed receipt that the envelope is stored, not delivered (GUARANTEES.md S1).

    Args:
        eid: which envelope.
        id: the sender's own id, for ``status``.
        to: its recipient.
        relay: the signer of the receipt.
        at: time of the receipt, Unix seconds.
        durability: ``fsync`` is the only one that survives a power cut.
        custody: ``inbox`` of the recipient, or ``outbox`` to another relay.
        expires_at: Unix seconds.
        dup: it was stored before; the first answer was lost.
        receipt: the signed receipt (JWS), as it came.
        state: of the envelope when ``send`` returned; with ``wait="acked"`` also ``acked``,
            ``expired``, ``refused`` or another end.
    """

    eid: Eid
    id: MessageId
    to: Did
    relay: Did
    at: int
    durability: Durability
    custody: Custody
    expires_at: int
    dup: bool
    receipt: str
    state: frames.State = "stored"


class Acknowledger(Protocol):
    """The inbox that a message came from."""

    async def settle(self, eid: Eid, refuse_code: str | None, *, wait: bool) -> None:
        """Ack a message that the program has processed; or refuse it, with a code."""
        ...

    async def fail(self, message: Message) -> bool:
        """Show a message again after a failure (False), or refuse it as poison (True)."""
        ...


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class MessageValues:
    """The content of a verified and decrypted envelope.

    Args:
        sender: the signer.
        body: its content, decrypted if it was sealed.
        content_type: media type of ``body``.
        id: the sender's own id.
        eid: hash of the signed bytes; the same envelope always has the same.
        redelivered: False is a promise: it was never delivered before.
        sealed: True if no relay on the way could read it.
        created_at: Unix seconds, by the sender's clock.
        expires_at: Unix seconds.
        type: URI that says what kind of content it is, or None.
        thid: thread id, or None.
        pthid: parent thread id, or None.
    """

    sender: Did
    body: bytes
    content_type: str
    id: MessageId
    eid: Eid
    redelivered: bool
    sealed: bool
    created_at: int
    expires_at: int
    type: str | None
    thid: str | None
    pthid: str | None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(id={self.id!r}, sender={self.sender!r})"

    def text(self) -> str:
        """Return the body as UTF-8 text.

        Raises:
            UnicodeDecodeError: it is not.
        """
        return self.body.decode()

    def json(self) -> Any:
        """Return the body, parsed as JSON.

        Raises:
            ValueError: it is not.
        """
        return orjson.loads(self.body)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Message(MessageValues):
    """A message, to ack or refuse.

    While the program holds it, it is not shown a second time. A message that is dropped without ack
    or refusal comes again after the next reconnect, with ``redelivered``.

    Args:
        acknowledger: takes the ack or refusal.
    """

    acknowledger: Acknowledger

    __reduce__ = not_pickled(
        "a message is neither pickled nor copied: hand on its body, or its other fields, "
        "and ack it where it was received"
    )

    async def ack(self, *, wait: bool = True) -> None:
        """Ack it: it is durably processed and never shown again.

        Args:
            wait: return when the relay has made the ack durable; False: at once. After a crash in
                the next moments the message comes again, with ``redelivered``.

        Raises:
            InboxResetError: the inbox began a new epoch before the ack was durable.
            ExpiredError: it expired first, and its sender got a bounce.
            SupersededError: a newer session has the inbox.
            ClosedError: the agent was closed.
            InternalError: the state file cannot be written; ack it again.
        """
        await self.acknowledger.settle(self.eid, None, wait=wait)

    async def __aenter__(self) -> Self:
        """Process it in an ``async with`` block: acked if the block ends without exception.

        After an exception, which the program gets, the message comes again a little later, with
        ``redelivered``. After the fifth failure it is refused as ``poison``, and its sender gets
        one bounce. A :class:`Bounce` is never refused for that: it comes again and again.
        """
        return self

    async def __aexit__(self, _: object, exc: BaseException | None, __: object) -> None:
        if exc is None:
            await self.ack()
        elif isinstance(exc, Exception):
            # a cancellation is no failure of the handler: it comes again after the next login
            await self.acknowledger.fail(self)

    async def refuse(self, code: str = "unsupported", *, wait: bool = True) -> None:
        """Refuse it: it is removed, and its sender gets one bounce, unless it is a bounce itself.

        Args:
            code: the reason for the sender, 1 to 64 characters.
            wait: as for :meth:`ack`.

        Raises:
            ValueError: ``code`` is no such text.
            AgentError: as :meth:`ack`.
        """
        # encoded: a lone surrogate is no text
        if not 1 <= len(code.encode().decode()) <= MAX_REASON:
            raise ValueError(f"a reason has 1 to {MAX_REASON} characters")
        await self.acknowledger.settle(self.eid, code, wait=wait)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Bounce(Message):
    """A relay's signed report that envelopes of this agent ended without an ack (GUARANTEES.md R6).

    Args:
        items: the envelopes, the reasons, and if the recipient may have received them.
    """

    items: tuple[BounceItem, ...]

    @classmethod
    def of(cls, message: Message, items: tuple[BounceItem, ...]) -> Bounce:
        """Return the same message as a bounce."""
        values = {item.name: getattr(message, item.name) for item in fields(Message)}
        return cls(**values, items=items)
