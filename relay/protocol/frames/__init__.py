"""The frames of the WebSocket protocol: JSON objects with a type ``t`` (PROTOCOL.md §5).

Users write ``from relay.protocol import frames`` and ``frames.Ack``. :func:`parse` reads a frame,
:func:`encode` writes one; :func:`read` and :func:`to_members` serve the same objects over HTTP.
Each family of frames has a file here, which declares their members, bounds and senders.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeVar

import orjson

from relay.protocol import jws as jose
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.frames import directory, mail, migration, peers, session
from relay.protocol.frames.directory import Publish, Published, Resolution, Resolve, Resolved
from relay.protocol.frames.fields import MAX_FRAME_BYTES, MAX_REF_CHARS, Codec, SenderField
from relay.protocol.frames.mail import (
    MAX_ENVELOPES,
    MAX_HOPS,
    MAX_RULES,
    MAX_SEQS,
    MAX_STATUS_ITEMS,
    Ack,
    Acked,
    Deliver,
    DeliverItem,
    Gap,
    Rejection,
    Ruled,
    Rules,
    State,
    Status,
    StatusAnswer,
    Statuses,
    StatusItem,
    Submit,
    Submitted,
    quick_submit,
)  # fmt: skip
from relay.protocol.frames.migration import (
    MAX_AWAITED_DIGESTS,
    MAX_CONTACTS,
    MAX_DIGEST_PAGES,
    MAX_MAYBE_SEEN_IDS,
    Migrate,
    Migrated,
)  # fmt: skip
from relay.protocol.frames.peers import (
    MAX_BUCKETS,
    MAX_GOSSIP_BYTES,
    MAX_GOSSIP_RECORDS,
    MAX_GOSSIP_RELAYS,
    MAX_HAVE_ITEMS,
    MAX_WANTED_RECORDS,
    BucketDigest,
    Digest,
    Digests,
    Gossip,
    Have,
    HaveItem,
    Membership,
    View,
    Want,
)  # fmt: skip
from relay.protocol.frames.session import (
    SUBPROTOCOL,
    Auth,
    Bye,
    Error,
    Hello,
    Welcome,
    WelcomePending,
)  # fmt: skip
from relay.protocol.handshake import Role
from relay.protocol.types import Range

Frame = (
    Hello | Auth | Welcome | Submit | Submitted | Deliver | Gap | Ack | Acked | Status | Statuses
    | Resolve | Resolved | Publish | Published | Rules | Ruled | Gossip | Digest | Digests | Want
    | Have | View | Migrate | Migrated | Error | Bye
)  # fmt: skip
Side = Literal["relay", "agent"]
"""The side that sends: the relay that was dialled, or whoever dialled it."""
_T = TypeVar("_T")

CODECS: Final[dict[type, Codec[Any]]] = {
    codec.kind: codec
    for family in (session, mail, directory, peers, migration)
    for codec in family.CODECS
}
BY_SIDE: Final[dict[Side, dict[str, Codec[Any]]]] = {
    "agent": {one.name: one for one in CODECS.values() if one.sender & SenderField.DIALER},
    "relay": {one.name: one for one in CODECS.values() if one.sender & SenderField.HOST},
}


def _sent_by(sender: SenderField) -> frozenset[type[Any]]:
    return frozenset(codec.kind for codec in CODECS.values() if codec.sender & sender)


SENT_BY_DIALER: Final[dict[Role, frozenset[type[Any]]]] = {
    "agent": _sent_by(SenderField.AGENT),
    "peer": _sent_by(SenderField.PEER),
}
"""The frames that a dialler of each role may send once it has logged in, beside ``bye``."""
SENT_TO_DIALER: Final[dict[Role, frozenset[type[Any]]]] = {
    "agent": _sent_by(SenderField.HOST_TO_AGENT),
    "peer": _sent_by(SenderField.HOST_TO_PEER),
}
"""The frames that a relay may send to a dialler of each role after its login, beside ``bye``."""

_PARTS: Final = {codec.kind: codec for codec in mail.PARTS} | CODECS


def encode(frame: Frame) -> bytes:
    """Return the frame as JSON, UTF-8."""
    codec = CODECS[type(frame)]
    return orjson.dumps({"t": codec.name, **codec.write(frame)})


def parse(data: bytes, side: Side) -> Frame:
    """Read a frame that ``side``, at the other end, may send.

    Raises:
        ProtocolError: ``too_large``, ``bad_frame`` or, for an unknown ``t``, ``unsupported``.
    """
    if len(data) > MAX_FRAME_BYTES:
        raise ProtocolError(ErrorCode.TOO_LARGE, f"a frame has at most {MAX_FRAME_BYTES} bytes")
    try:
        if side == "agent" and (submit := quick_submit(data)):
            return submit
        members = jose.Members(jose.loads(data))
        kind = members.text("t", limit=32)
        codec = BY_SIDE[side].get(kind)
        if codec is None:
            raise ProtocolError(ErrorCode.UNSUPPORTED, f"frame {kind!r} is not understood here")
        frame: Frame = codec.read(members)
    except jose.UnsupportedTypeError as exc:
        raise ProtocolError(ErrorCode.UNSUPPORTED, str(exc)) from exc
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_FRAME, str(exc)) from exc
    return frame


def read(kind: type[_T], value: object, **given: Any) -> _T:
    """Read an object of this kind; ``given`` members are not looked for in it.

    Raises:
        ValueError: its form is wrong.
    """
    found: _T = _PARTS[kind].read(value, **given)
    return found


def to_members(value: Any) -> dict[str, Any]:
    """Return the members of a frame, or of a part of one, as JSON shows them."""
    return mail.write_range(value) if isinstance(value, Range) else _PARTS[type(value)].write(value)


__all__ = [
    "BY_SIDE", "CODECS", "MAX_AWAITED_DIGESTS", "MAX_BUCKETS", "MAX_CONTACTS", "MAX_DIGEST_PAGES",
    "MAX_ENVELOPES", "MAX_FRAME_BYTES", "MAX_GOSSIP_BYTES", "MAX_GOSSIP_RECORDS",
    "MAX_GOSSIP_RELAYS", "MAX_HAVE_ITEMS", "MAX_HOPS", "MAX_MAYBE_SEEN_IDS", "MAX_REF_CHARS",
    "MAX_RULES", "MAX_SEQS", "MAX_STATUS_ITEMS", "MAX_WANTED_RECORDS", "SENT_BY_DIALER",
    "SENT_TO_DIALER", "SUBPROTOCOL", "Ack", "Acked", "Auth", "BucketDigest", "Bye", "Deliver",
    "DeliverItem", "Digest", "Digests", "Error", "Frame", "Gap", "Gossip", "Have", "HaveItem",
    "Hello", "Membership", "Migrate", "Migrated", "Publish", "Published", "Rejection",
    "Resolution", "Resolve", "Resolved", "Ruled", "Rules", "Side", "State", "Status",
    "StatusAnswer", "StatusItem", "Statuses", "Submit", "Submitted", "View", "Want", "Welcome",
    "WelcomePending", "encode", "parse", "quick_submit", "read", "to_members",
]  # fmt: skip
