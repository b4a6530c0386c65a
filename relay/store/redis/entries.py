"""One stored envelope as bytes: what the scripts read of it, and what proves that it is whole.

Layout of the facts, big-endian (scripts/lib/entries.lua reads the same)::

    digest 8 | flags 1 | hour 4 | created 8 | expires 8 | dedupe key 16 | eid 32 | sender [ via]

The digest is over all that follows it and the wire bytes; the eid is over the signed part of the
wire. A disk that flips a bit in either is found out when the entry is read (GUARANTEES.md R5).
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from relay.protocol.envelope import StoredEnvelope
from relay.protocol.ids import (
    AgentKey,
    Eid,
    Seq,
)
from relay.protocol.jws import b64encode

_REST: Final = struct.Struct(">BIqq16s32s")
_HEAD: Final = struct.Struct(">BHHHI")
_DIGEST_BYTES: Final = 8
FACTS_BYTES: Final = _DIGEST_BYTES + _REST.size
"""The facts without the sender's name."""
FACTS_LUA: Final = ">c8BI4i8i8c16c32"
"""The same layout for ``struct.unpack`` in a script."""
_BOUNCES, _MARKED, _BROUGHT = 1, 2, 4
_BARRED, _MOVING = 1, 2
_FACTS_NAMES: Final = frozenset((b"m", b"s"))
"""``s``: the script that stored it found its sender a stranger, which the facts cannot know."""
_WIRE_HEAD: Final = b'{"jws":"'
_EID_CHARS: Final = 43


def encode_all(items: Iterable[StoredEnvelope]) -> bytes:
    """Envelopes one after another, as append.lua reads them."""
    parts: list[bytes] = []
    for item in items:
        inbox, facts, wire = item.inbox.encode(), encode(item), item.wire
        peer = item.peer.encode() if item.peer else b""
        how = item.barred * _BARRED | item.moving * _MOVING
        head = _HEAD.pack(how, len(inbox), len(peer), len(facts), len(wire))
        parts += (head, inbox, peer, facts, wire)
    return b"".join(parts)


def encode(item: StoredEnvelope) -> bytes:
    """The facts of an envelope, to be stored beside its wire bytes."""
    eid = eid_bytes(item.eid)
    flags = item.bounces | item.marked << 1 | (item.via is not None) * _BROUGHT
    rest = _REST.pack(flags, item.hour, item.created_at, item.expires_at, item.dedupe_key, eid)
    rest += item.sender.encode() if item.via is None else f"{item.sender} {item.via}".encode()
    return _digest(rest, item.wire) + rest


def _digest(rest: bytes, wire: bytes) -> bytes:
    hasher = hashlib.sha256(rest)
    hasher.update(wire)
    return hasher.digest()[:_DIGEST_BYTES]


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry that was read and found whole."""

    seq: Seq
    eid: Eid
    created_at: int
    expires_at: int
    is_marked: bool
    sender: AgentKey
    wire: bytes


def decode(stream_id: bytes, fields: list[bytes]) -> Entry | None:
    """Read one stream entry; None if a single bit of it is not what was stored."""
    if len(fields) != 4 or fields[0] not in _FACTS_NAMES or fields[2] != b"w":  # noqa: PLR2004
        return None
    facts, wire = fields[1], fields[3]
    rest = facts[_DIGEST_BYTES:]
    if len(facts) < FACTS_BYTES or facts[:_DIGEST_BYTES] != _digest(rest, wire):
        return None
    flags, _, created, expires, _, eid = _REST.unpack_from(facts, _DIGEST_BYTES)
    sender, _, _ = facts[FACTS_BYTES:].partition(b" ")
    if eid != _eid_of(wire):
        return None
    return Entry(
        seq=seq_of(stream_id),
        eid=eid_text(eid),
        created_at=created,
        expires_at=expires,
        is_marked=bool(flags & _MARKED),
        sender=AgentKey(sender.decode()),
        wire=wire,
    )


def _eid_of(wire: bytes) -> bytes:
    """SHA-256 of the signing input: the JWS up to its last dot (PROTOCOL.md §1.6)."""
    head = len(_WIRE_HEAD)
    end = wire.find(b'"', head)
    signed = wire[head : wire.rfind(b".", head, end)]
    return hashlib.sha256(signed).digest()


def seq_of(stream_id: bytes) -> Seq:
    """The seq in a stream id ``<seq>-0``."""
    return Seq(int(stream_id.partition(b"-")[0]))


def eid_bytes(eid: Eid) -> bytes:
    """The 32 bytes of an eid.

    Raises:
        ValueError: not an eid.
    """
    raw = base64.urlsafe_b64decode(eid + "=") if len(eid) == _EID_CHARS else b""
    if len(raw) != hashlib.sha256().digest_size:
        raise ValueError("not an eid")
    return raw


def eid_text(raw: bytes) -> Eid:
    """An eid from its bytes, or from as many of its first bytes as are known."""
    return Eid(b64encode(raw))
