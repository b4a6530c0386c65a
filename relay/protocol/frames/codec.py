"""Frames as JSON: :func:`encode` writes one, :func:`parse` reads what the other side may say.

Rules of the file: a frame is a JSON object with ``t`` (PROTOCOL.md §5); whatever is wrong with it
is ``bad_frame``, an unknown ``t`` is ``unsupported``, and nothing else is ever raised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal, get_args

import orjson

from relay.protocol import jws as jose
from relay.protocol import relay_info
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
    Stored,
)
from relay.protocol.frames.codec_mesh import (
    encode_digests,
    encode_gossip,
    encode_have,
    encode_want,
    read_digest,
    read_digests,
    read_gossip,
    read_have,
    read_view,
    read_want,
)
from relay.protocol.frames.codec_migrate import (
    encode_migrate,
    read_migrate,
    read_migrated,
)
from relay.protocol.frames.codec_records import (
    read_publish,
    read_published,
    read_resolve,
    read_resolved,
)
from relay.protocol.frames.codec_rules import (
    read_ruled,
    read_rules,
)
from relay.protocol.frames.codec_status import (
    encode_status,
    encode_statuses,
    read_status,
    read_statuses,
)
from relay.protocol.frames.frames import (
    MAX_ENVELOPES,
    MAX_FRAME_BYTES,
    MAX_REF,
    MAX_SEQS,
    Ack,
    Acked,
    Auth,
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
    Hello,
    Publish,
    Published,
    Rejection,
    Resolve,
    Resolved,
    Ruled,
    Rules,
    Status,
    Statuses,
    Submit,
    Submitted,
    View,
    Want,
    Welcome,
    WelcomePending,
)
from relay.protocol.frames.frames_migrate import (
    Migrate,
    Migrated,
)
from relay.protocol.frames.submits import quick_submit
from relay.protocol.ids import (
    MAX_DID_BYTES,
    MAX_HANDOFF_ID_CHARS,
    Did,
    Epoch,
    Fence,
    Seq,
)
from relay.protocol.types import (
    Range,
    Reason,
)

# ---------------------------------------------------------------- write


def encode(frame: Frame) -> bytes:
    """The frame as JSON, UTF-8."""
    return orjson.dumps({"t": type(frame).__name__.lower(), **_ENCODE[type(frame)](frame)})


def plain(frame: Any) -> dict[str, Any]:
    """Member for member; what is None or empty text is left out."""
    found = ((name, getattr(frame, name)) for name in type(frame).__slots__)
    return {name: value for name, value in found if value is not None and value != ""}


def welcome_members(frame: Welcome) -> dict[str, Any]:
    pending = frame.pending
    return {
        "inbox": frame.inbox,
        "session": frame.session,
        "epoch": frame.epoch,
        "cursor": frame.cursor,
        "head": frame.head,
        "pending": {
            "count": pending.count,
            "bytes": pending.bytes,
            "oldest_age": pending.oldest_age,
            "refused": {
                "count": pending.refused_count,
                "first_at": pending.refused_first_at,
                "last_at": pending.refused_last_at,
            },
        },
        "window": {"count": frame.window_count, "bytes": frame.window_bytes},
        "proof": frame.proof,
    }


def _raw(envelope: object) -> object:
    return orjson.Fragment(envelope) if isinstance(envelope, bytes) else envelope


def _submit(frame: Submit) -> dict[str, Any]:
    said: dict[str, Any] = {"ref": frame.ref, "envelopes": [_raw(one) for one in frame.envelopes]}
    if frame.hops:
        said["hops"] = frame.hops
    if frame.marked:
        said["marked"] = frame.marked
    if frame.handoff:
        said["handoff"] = frame.handoff
    return said


def _submitted(frame: Submitted) -> dict[str, Any]:
    return {
        "refs": frame.refs,
        "receipt": frame.receipt,
        "rejected": [plain(item) for item in frame.rejected],
    }


def _deliver(frame: Deliver) -> dict[str, Any]:
    return {
        "epoch": frame.epoch,
        "items": [
            {"seq": item.seq, "redelivered": item.redelivered, "envelope": _raw(item.envelope)}
            for item in frame.items
        ],
    }


def encode_range(item: Range) -> dict[str, Any]:
    """One range of a ``gap``."""
    return {"from_seq": item.start, "to_seq": item.end, "reason": item.reason}


def _gap(frame: Gap) -> dict[str, Any]:
    return {"epoch": frame.epoch, "ranges": [encode_range(item) for item in frame.ranges]}


def _ack(frame: Ack) -> dict[str, Any]:
    return {
        "epoch": frame.epoch,
        "upto": frame.upto,
        "seqs": frame.seqs,
        "refuse": [{"seq": seq, "code": code} for seq, code in frame.refuse],
    }


_ENCODE: Final[dict[type, Callable[[Any], dict[str, Any]]]] = {
    Hello: plain, Auth: plain, Welcome: welcome_members, Submit: _submit, Submitted: _submitted,
    Deliver: _deliver, Gap: _gap, Ack: _ack, Acked: plain, Status: encode_status,
    Statuses: encode_statuses, Resolve: plain, Resolved: plain, Publish: plain, Published: plain,
    Error: plain, Bye: plain, Rules: plain, Ruled: plain, Gossip: encode_gossip, Digest: plain,
    Digests: encode_digests, Want: encode_want, Have: encode_have, View: plain,
    Migrate: encode_migrate, Migrated: plain,
}  # fmt: skip


# ---------------------------------------------------------------- read

_STORED: Final = frozenset(get_args(Stored))
MAX_HOPS_READ: Final = 16


def parse(data: bytes, side: Literal["relay", "agent"]) -> Frame:
    """Read a frame that the ``side`` at the other end may say.

    Raises:
        ProtocolError: ``too_large``, ``bad_frame`` or, for an unknown ``t``, ``unsupported``.
    """
    if len(data) > MAX_FRAME_BYTES:
        raise ProtocolError(ErrorCode.TOO_LARGE, f"a frame has at most {MAX_FRAME_BYTES} bytes")
    try:
        if side == "agent" and (submit := quick_submit(data)):
            return submit
        members = jose.Members(jose.loads(data))
        kind = members.text("t", most=32)
        reader = _PARSE[side].get(kind)
        if reader is None:
            raise ProtocolError(ErrorCode.UNSUPPORTED, f"frame {kind!r} is not understood here")
        return reader(members)
    except jose.UnsupportedError as exc:
        raise ProtocolError(ErrorCode.UNSUPPORTED, str(exc)) from exc
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_FRAME, str(exc)) from exc


def _read_hello(m: jose.Members) -> Hello:
    m.base64("nonce", size=32)
    return Hello(
        relay=Did(m.text("relay", most=512)),
        url=m.text("url", most=512),
        nonce=m.text("nonce", most=64),
        limits=relay_info.read_limits(m),
        time=m.integer("time"),
    )


def read_auth(m: jose.Members) -> Auth:
    return Auth(
        jws=m.text("jws", most=8192),
        record=m.optional_text("record", most=4096),
        invite=m.optional_text("invite", most=512),
    )


def read_welcome(m: jose.Members) -> Welcome:
    pending, window = m.object("pending"), m.object("window")
    refused = pending.object("refused")
    inbox = m.boolean("inbox")
    return Welcome(
        inbox=inbox,
        session=Fence(m.integer("session", least=1)) if inbox else None,
        epoch=Epoch(m.text("epoch", most=64)) if inbox else None,
        cursor=Seq(m.integer("cursor")),
        head=Seq(m.integer("head")),
        pending=WelcomePending(
            count=pending.integer("count"),
            bytes=pending.integer("bytes"),
            oldest_age=pending.integer("oldest_age") if pending.has("oldest_age") else None,
            refused_count=refused.integer("count"),
            refused_first_at=refused.integer("first_at") if refused.has("first_at") else None,
            refused_last_at=refused.integer("last_at") if refused.has("last_at") else None,
        ),
        window_count=window.integer("count", least=1),
        window_bytes=window.integer("bytes", least=1),
        proof=m.text("proof", most=8192),
    )


def _read_submit(m: jose.Members) -> Submit:
    envelopes = m.array("envelopes", least=1, most=MAX_ENVELOPES)
    # more than MAX_HOPS is refused by name, in the session
    hops = m.optional_array("hops", most=MAX_HOPS_READ)
    if any(not isinstance(did, str) or not 0 < len(did) <= MAX_DID_BYTES for did in hops):
        raise ValueError("hops must be DIDs")
    marked = m.optional_array("marked", most=MAX_ENVELOPES)
    if any(type(place) is not int or not 0 <= place < len(envelopes) for place in marked):
        raise ValueError("marked must be places in envelopes")
    handoff = m.optional_text("handoff", most=MAX_HANDOFF_ID_CHARS) or ""
    return Submit(m.text("ref", most=MAX_REF), envelopes, tuple(hops), tuple(marked), handoff)


def _code(m: jose.Members) -> ErrorCode:
    """A code that a newer relay may have invented is taken as ``internal``."""
    text = m.text("error", most=64)
    return ErrorCode(text) if text in ErrorCode.__members__.values() else ErrorCode.INTERNAL


def read_rejection(value: object) -> Rejection:
    """One member of ``rejected``.

    Raises:
        ValueError: its form.
    """
    m = jose.Members(value)
    return Rejection(
        ref=m.text("ref", most=MAX_REF),
        i=m.integer("i", most=MAX_ENVELOPES - 1),
        error=_code(m),
        stored=m.one_of("stored", _STORED),
        detail=m.optional_text("detail", most=1024) or "",
        retry_after=_retry_after(m),
        record=m.optional_text("record", most=4096),
    )


def _retry_after(m: jose.Members) -> int | None:
    return m.integer("retry_after") if m.has("retry_after") else None


def _refs(values: list[object]) -> tuple[str, ...]:
    refs = tuple(ref for ref in values if isinstance(ref, str) and 0 < len(ref) <= MAX_REF)
    if len(refs) != len(values):
        raise ValueError(f"refs must be strings of 1 to {MAX_REF} characters")
    return refs


def _read_submitted(m: jose.Members) -> Submitted:
    return Submitted(
        refs=_refs(m.array("refs", least=1, most=4096)),
        receipt=m.optional_text("receipt", most=1024 * 1024),
        rejected=tuple(read_rejection(item) for item in m.array("rejected", most=4096)),
    )


def _read_deliver_item(value: object) -> DeliverItem:
    """One member of ``deliver.items``; its envelope stays raw."""
    m = jose.Members(value)
    m.object("envelope")
    envelope: object = value["envelope"]  # type: ignore[index]  # Members checked it
    return DeliverItem(Seq(m.integer("seq", least=1)), m.boolean("redelivered"), envelope)


def _read_range(value: object) -> Range:
    m = jose.Members(value)
    start = m.integer("from_seq", least=1)
    end = m.integer("to_seq", least=start)
    return Range(Seq(start), Seq(end), Reason(m.text("reason", most=16)))


def _read_deliver(m: jose.Members) -> Deliver:
    items = m.array("items", least=1, most=MAX_SEQS)
    return Deliver(_epoch(m), tuple(_read_deliver_item(item) for item in items))


def _read_gap(m: jose.Members) -> Gap:
    ranges = m.array("ranges", least=1, most=MAX_SEQS)
    return Gap(_epoch(m), tuple(_read_range(item) for item in ranges))


def _epoch(m: jose.Members) -> Epoch:
    return Epoch(m.text("epoch", most=64))


def _seqs(m: jose.Members, name: str) -> tuple[Seq, ...]:
    values = m.optional_array(name, most=MAX_SEQS)
    if any(type(value) is not int or value < 1 for value in values):
        raise ValueError(f"{name} must be positive integers")
    return tuple(Seq(value) for value in values)


def read_ack(m: jose.Members) -> Ack:
    refuse: list[tuple[Seq, str]] = []
    for value in m.optional_array("refuse", most=MAX_SEQS):
        item = jose.Members(value)
        refuse.append((Seq(item.integer("seq", least=1)), item.text("code", most=64)))
    upto = m.integer("upto") if m.has("upto") else 0
    return Ack(_epoch(m), Seq(upto), _seqs(m, "seqs"), tuple(refuse))


def _read_acked(m: jose.Members) -> Acked:
    return Acked(_epoch(m), Seq(m.integer("upto")), _seqs(m, "seqs"), _seqs(m, "refused"))


def _said(m: jose.Members) -> tuple[ErrorCode, str, int | None]:
    code, detail = _code(m), m.optional_text("detail", most=1024)
    return code, detail or "", _retry_after(m)


def _read_error(m: jose.Members) -> Error:
    return Error(*_said(m), m.optional_text("ref", most=MAX_REF))


def _read_bye(m: jose.Members) -> Bye:
    return Bye(*_said(m), m.optional_text("record", most=4096))


_Reader = Callable[[jose.Members], Frame]
_BOTH: Final[dict[str, _Reader]] = {"error": _read_error, "bye": _read_bye}
_PARSE: Final[dict[str, dict[str, _Reader]]] = {
    "agent": {
        **_BOTH, "auth": read_auth, "submit": _read_submit, "ack": read_ack, "rules": read_rules,
        "status": read_status, "resolve": read_resolve, "publish": read_publish,
        "gossip": read_gossip, "digest": read_digest, "want": read_want,
        "migrate": read_migrate,
    },
    "relay": {
        **_BOTH, "hello": _read_hello, "welcome": read_welcome, "submitted": _read_submitted,
        "deliver": _read_deliver, "gap": _read_gap, "acked": _read_acked, "ruled": read_ruled,
        "statuses": read_statuses, "resolved": read_resolved, "published": read_published,
        "gossip": read_gossip, "digests": read_digests, "have": read_have, "view": read_view,
        "migrated": read_migrated,
    },
}  # fmt: skip
