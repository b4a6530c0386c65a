"""The frames between relays, written and read: gossip, digest, want and their answers (§5.10).

Rules of the file: as in ``protocol/frames/codec.py``, which registers these: ValueError for any
form that is
wrong; what is signed inside stays as it came, and is judged by who asked for it.
"""

from __future__ import annotations

from typing import Any, Final, get_args

from relay.protocol import jws as jose
from relay.protocol.frames.frames import (
    MAX_BUCKETS,
    MAX_HAVE,
    MAX_RECORDS,
    MAX_REF,
    MAX_RELAYS,
    MAX_WANT,
    BucketDigest,
    Digest,
    Digests,
    Gossip,
    Have,
    HaveItem,
    Membership,
    View,
    Want,
)
from relay.protocol.ids import AgentKey

MAX_BITS: Final = 30
MAX_AGENT_KEY: Final = 600
MAX_RECORD_CHARS: Final = 4096
MAX_INFO_CHARS: Final = 4096
HASH_BYTES: Final = 16
_MEMBERSHIP: Final = frozenset(get_args(Membership))


def encode_gossip(frame: Gossip) -> dict[str, Any]:
    """Its members; an empty list is left out."""
    said = {"ref": frame.ref, "records": frame.records, "relays": frame.relays}
    return {name: value for name, value in said.items() if value}


def encode_digests(frame: Digests) -> dict[str, Any]:
    """Its members; a triple a bucket."""
    return {"ref": frame.ref, "bits": frame.bits, "items": [list(item) for item in frame.items]}


def encode_want(frame: Want) -> dict[str, Any]:
    """Its members; only what is wished for."""
    said = {
        "ref": frame.ref, "bits": frame.bits, "bucket": frame.bucket, "after": frame.after,
        "agents": frame.agents or None, "relays": frame.relays or None, "view": frame.view or None,
    }  # fmt: skip
    return {name: value for name, value in said.items() if value is not None}


def encode_have(frame: Have) -> dict[str, Any]:
    """Its members; four values a record."""
    return {
        "ref": frame.ref,
        "bits": frame.bits,
        "bucket": frame.bucket,
        "items": [list(item) for item in frame.items],
        "more": frame.more,
    }


def read_gossip(m: jose.Members) -> Gossip:
    """Signed records and relay information."""
    return Gossip(
        read_texts(m, "records", most=MAX_RECORDS, longest=MAX_RECORD_CHARS),
        read_texts(m, "relays", most=MAX_RELAYS, longest=MAX_INFO_CHARS),
        m.optional_text("ref", most=MAX_REF),
    )


def read_digest(m: jose.Members) -> Digest:
    """Which buckets are asked about."""
    bits = m.integer("bits", most=MAX_BITS)
    values = m.optional_array("buckets", most=MAX_BUCKETS)
    if any(type(value) is not int or not 0 <= value < 2**bits for value in values):
        raise ValueError("buckets must be integers of so many bits")
    return Digest(m.text("ref", most=MAX_REF), bits, tuple(values))


def read_digests(m: jose.Members) -> Digests:
    """What each bucket holds."""
    bits = m.integer("bits", most=MAX_BITS)
    items = tuple(_bucket_digest(item, bits) for item in m.array("items", most=MAX_BUCKETS))
    return Digests(m.text("ref", most=MAX_REF), bits, items)


def _bucket_digest(value: object, bits: int) -> BucketDigest:
    match value:
        case [bucket, count, str(digest)] if (
            type(bucket) is type(count) is int and 0 <= bucket < 2**bits and count >= 0
        ):
            return BucketDigest(bucket, count, _hash(digest))
        case _:
            raise ValueError("a digest is [bucket, count, digest]")


def read_want(m: jose.Members) -> Want:
    """Exactly one wish."""
    has_bucket = m.has("bucket")
    bits = m.integer("bits", most=MAX_BITS) if has_bucket else None
    after = m.optional_text("after", most=MAX_AGENT_KEY)
    agents = read_texts(m, "agents", most=MAX_WANT, longest=MAX_AGENT_KEY)
    want = Want(
        ref=m.text("ref", most=MAX_REF),
        bits=bits,
        bucket=m.integer("bucket", most=2**bits - 1) if bits is not None else None,
        after=AgentKey(after) if after else None,
        agents=tuple(map(AgentKey, agents)),
        relays=m.boolean("relays") if m.has("relays") else False,
        view=m.boolean("view") if m.has("view") else False,
    )
    if [has_bucket, bool(agents), want.relays, want.view].count(True) != 1:
        raise ValueError("want names one of bucket, agents, relays, view")
    return want


def read_have(m: jose.Members) -> Have:
    """What a bucket holds."""
    bits = m.integer("bits", most=MAX_BITS)
    return Have(
        m.text("ref", most=MAX_REF),
        bits,
        m.integer("bucket", most=2**bits - 1),
        tuple(_have_item(item) for item in m.array("items", most=MAX_HAVE)),
        m.boolean("more"),
    )


def _have_item(value: object) -> HaveItem:
    match value:
        case [str(agent), kv, seq, str(digest)] if (
            0 < len(agent) <= MAX_AGENT_KEY
            and type(kv) is type(seq) is int
            and kv >= 1
            and seq >= 0
        ):
            return HaveItem(AgentKey(agent), kv, seq, _hash(digest))
        case _:
            raise ValueError("an item is [agent key, kv, seq, hash]")


def read_view(m: jose.Members) -> View:
    """How the other side sees the one who asked."""
    return View(
        m.text("ref", most=MAX_REF),
        m.one_of("state", _MEMBERSHIP),
        m.integer("since"),
        m.integer("strikes"),
        m.integer("retry_after") if m.has("retry_after") else None,
        m.optional_text("reason", most=1024),
    )


def _hash(text: str) -> str:
    if len(jose.b64decode(text)) != HASH_BYTES:
        raise ValueError(f"a hash has {HASH_BYTES} bytes")
    return text


def read_texts(m: jose.Members, name: str, *, most: int, longest: int) -> tuple[str, ...]:
    """An array of so many texts at most; an empty one where it is left out."""
    values = m.optional_array(name, most=most)
    texts = tuple(one for one in values if isinstance(one, str) and 0 < len(one) <= longest)
    if len(texts) != len(values):
        raise ValueError(f"{name} must be strings of 1 to {longest} characters")
    return texts
