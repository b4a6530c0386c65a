"""The frames of the WebSocket protocol (PROTOCOL.md §5).

Users write ``from relay.protocol import frames`` and ``frames.Ack``. :func:`parse` reads a frame,
:func:`encode` writes one; :func:`read` and :func:`to_members` are for the same objects over HTTP.
"""

from __future__ import annotations

from typing import Any, TypeVar

from relay.protocol import jws as jose
from relay.protocol.frames import codec, codec_rules
from relay.protocol.frames.codec import encode, parse
from relay.protocol.frames.frames import (
    MAX_BUCKETS,
    MAX_ENVELOPES,
    MAX_FRAME_BYTES,
    MAX_GOSSIP_BYTES,
    MAX_HAVE,
    MAX_HOPS,
    MAX_RECORDS,
    MAX_REF,
    MAX_RELAYS,
    MAX_RULES,
    MAX_SEQS,
    MAX_STATUS,
    MAX_WANT,
    SUBPROTOCOL,
    Ack,
    Acked,
    Auth,
    BucketDigest,
    Bye,
    Deliver,
    DeliverItem,
    Digest,
    Digests,
    Error,
    Frame,
    Gap,
    Gossip,
    Have,
    HaveItem,
    Hello,
    Membership,
    Publish,
    Published,
    Rejection,
    Resolution,
    Resolve,
    Resolved,
    Ruled,
    Rules,
    State,
    Status,
    StatusAnswer,
    Statuses,
    StatusItem,
    Submit,
    Submitted,
    View,
    Want,
    Welcome,
    WelcomePending,
)
from relay.protocol.frames.frames_migrate import (
    MAX_DIGEST_PAGES,
    MAX_DOUBTS,
    MAX_KNOWN,
    MAX_MISSING,
    Migrate,
    Migrated,
)
from relay.protocol.frames.submits import quick_submit
from relay.protocol.types import Range

__all__ = [
    "BY_SIDE",
    "MAX_BUCKETS",
    "MAX_DIGEST_PAGES",
    "MAX_DOUBTS",
    "MAX_ENVELOPES",
    "MAX_FRAME_BYTES",
    "MAX_GOSSIP_BYTES",
    "MAX_HAVE",
    "MAX_HOPS",
    "MAX_KNOWN",
    "MAX_MISSING",
    "MAX_RECORDS",
    "MAX_REF",
    "MAX_RELAYS",
    "MAX_RULES",
    "MAX_SEQS",
    "MAX_STATUS",
    "MAX_WANT",
    "SUBPROTOCOL",
    "WRITERS",
    "Ack",
    "Acked",
    "Auth",
    "BucketDigest",
    "Bye",
    "Deliver",
    "DeliverItem",
    "Digest",
    "Digests",
    "Error",
    "Frame",
    "Gap",
    "Gossip",
    "Have",
    "HaveItem",
    "Hello",
    "Membership",
    "Migrate",
    "Migrated",
    "Publish",
    "Published",
    "Rejection",
    "Resolution",
    "Resolve",
    "Resolved",
    "Ruled",
    "Rules",
    "State",
    "Status",
    "StatusAnswer",
    "StatusItem",
    "Statuses",
    "Submit",
    "Submitted",
    "View",
    "Want",
    "Welcome",
    "WelcomePending",
    "encode",
    "parse",
    "quick_submit",
    "read",
    "to_members",
]  # fmt: skip

BY_SIDE = codec._PARSE  # noqa: SLF001
WRITERS = codec._ENCODE  # noqa: SLF001
_T = TypeVar("_T")
_READ: dict[type, Any] = {
    Auth: codec.read_auth, Ack: codec.read_ack, Welcome: codec.read_welcome,
    Rules: codec_rules.read_rules, Ruled: codec_rules.read_ruled,
}  # fmt: skip


def read(kind: type[_T], value: object, **given: Any) -> _T:
    """Read an object of this kind; ``given`` members are not looked for in it.

    Raises:
        ValueError: its form.
    """
    if kind is Rejection:
        return codec.read_rejection(value)  # type: ignore[return-value]
    members = value if isinstance(value, jose.Members) else jose.Members(value)
    frame: _T = _READ[kind](members, **given)
    return frame


def to_members(value: Any) -> dict[str, Any]:
    """Return the members of a frame, or of a part of one, as JSON shows them."""
    if isinstance(value, Range):
        return codec.encode_range(value)
    return codec._ENCODE.get(type(value), codec.plain)(value)  # noqa: SLF001
