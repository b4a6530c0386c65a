"""The frames between relays: gossip, digest, want and their answers (PROTOCOL.md §5.10)."""

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, NamedTuple

from relay.protocol import jws as jose
from relay.protocol.endpoint_record import MAX_RECORD_BYTES
from relay.protocol.frames.fields import (
    MAX_DETAIL_CHARS,
    MAX_REF_CHARS,
    Codec,
    Field,
    SenderField,
    array,
    boolean,
    integer,
    one_of,
    optional,
    text,
    texts,
)
from relay.protocol.frames.mail import Ref
from relay.protocol.frames.session import RetryAfter
from relay.protocol.ids import MAX_AGENT_KEY_CHARS, AgentKey
from relay.protocol.relay_info import MAX_INFO_BYTES

MAX_GOSSIP_BYTES: Final = 1024 * 1024
MAX_GOSSIP_RECORDS: Final = 1_024
MAX_GOSSIP_RELAYS: Final = 64
MAX_BUCKETS: Final = 1_024
MAX_HAVE_ITEMS: Final = 2_048
MAX_WANTED_RECORDS: Final = 1_024
MAX_BUCKET_BITS: Final = 30
HASH_BYTES: Final = 16
"""Records and buckets are compared by so many bytes of SHA-256."""

Membership = Literal["alive", "suspect", "gone"]
Bits = Annotated[int, integer(MAX_BUCKET_BITS)]


def _hash(value: str) -> str:
    if len(jose.b64decode(value)) != HASH_BYTES:
        raise ValueError(f"a hash has {HASH_BYTES} bytes")
    return value


def _check_buckets(bits: int, *buckets: int) -> None:
    if any(not 0 <= bucket < 2**bits for bucket in buckets):
        raise ValueError("a bucket is an integer of so many bits")


@dataclass(frozen=True, slots=True)
class Gossip:
    """Endpoint records and relay information, as signed; pushed, or with ``ref`` an answer."""

    records: Annotated[tuple[str, ...], texts(MAX_GOSSIP_RECORDS, MAX_RECORD_BYTES)] = ()
    relays: Annotated[tuple[str, ...], texts(MAX_GOSSIP_RELAYS, MAX_INFO_BYTES)] = ()
    ref: Annotated[str | None, optional(text(MAX_REF_CHARS))] = None


class _GossipCodec(Codec[Gossip]):
    def write(self, value: Gossip) -> dict[str, Any]:
        members = {"ref": value.ref, "records": value.records, "relays": value.relays}
        return {name: member for name, member in members.items() if member}


def _read_buckets(m: jose.Members, name: str) -> tuple[int, ...]:
    values = m.optional_array(name, limit=MAX_BUCKETS)
    if any(type(value) is not int for value in values):
        raise ValueError(f"{name} must be integers")
    return tuple(values)


@dataclass(frozen=True, slots=True)
class Digest:
    """Ask for digests of buckets by the first ``bits`` bits; no bucket means all."""

    ref: Ref
    bits: Bits
    buckets: Annotated[tuple[int, ...], Field(_read_buckets)] = ()


class BucketDigest(NamedTuple):
    """The number of records in a bucket, and b64url of 16 bytes that differ where they differ."""

    bucket: int
    records: int
    digest: str


def _bucket_digest(value: object) -> BucketDigest:
    match value:
        case [bucket, count, str(digest)] if type(bucket) is type(count) is int and count >= 0:
            return BucketDigest(bucket, count, _hash(digest))
        case _:
            raise ValueError("a digest is [bucket, count, digest]")


def _lists(items: tuple[tuple[Any, ...], ...]) -> list[list[Any]]:
    return [*map(list, items)]


@dataclass(frozen=True, slots=True)
class Digests:
    """The answer to ``digest``; a bucket that is not named is empty."""

    ref: Ref
    bits: Bits
    items: Annotated[tuple[BucketDigest, ...], array(_bucket_digest, MAX_BUCKETS, write=_lists)]


@dataclass(frozen=True, slots=True)
class Want:
    """Ask for exactly one of four: a bucket's list, records, relay information, or a view.

    Args:
        ref: named by the answer.
        bits: with ``bucket``: its depth; answered by ``have``.
        bucket: the bucket.
        after: continue behind this agent key.
        agents: whose records; answered by ``gossip``.
        relays: the relays that you know; answered by ``gossip``.
        view: how you see me; answered by ``view``.
    """

    ref: Ref
    bits: Annotated[int | None, optional(integer(MAX_BUCKET_BITS))] = None
    bucket: Annotated[int | None, optional(integer())] = None
    after: Annotated[AgentKey | None, optional(text(MAX_AGENT_KEY_CHARS))] = None
    agents: Annotated[tuple[AgentKey, ...], texts(MAX_WANTED_RECORDS, MAX_AGENT_KEY_CHARS)] = ()
    relays: Annotated[bool, optional(boolean(), default=False)] = False
    view: Annotated[bool, optional(boolean(), default=False)] = False


class _WantCodec(Codec[Want]):
    def read(self, value: object, **given: Any) -> Want:
        m = value if isinstance(value, jose.Members) else jose.Members(value)
        # without a bucket, its depth means nothing, whatever it is
        return super().read(m, **given) if m.has("bucket") else super().read(m, bits=None, **given)


def _check_want(frame: Want) -> None:
    named = [frame.bucket is not None, bool(frame.agents), frame.relays, frame.view]
    if named.count(True) != 1:
        raise ValueError("want names one of bucket, agents, relays, view")
    if frame.bucket is not None:
        if frame.bits is None:
            raise ValueError("a bucket has bits")
        _check_buckets(frame.bits, frame.bucket)


class HaveItem(NamedTuple):
    """A record by its version: agent key, kv, seq, b64url of the first 16 bytes of its hash."""

    agent: AgentKey
    kv: int
    seq: int
    hash: str


def _have_item(value: object) -> HaveItem:
    match value:
        case [str(agent), kv, seq, str(digest)] if (
            0 < len(agent) <= MAX_AGENT_KEY_CHARS
            and type(kv) is type(seq) is int
            and kv >= 1
            and seq >= 0
        ):
            return HaveItem(AgentKey(agent), kv, seq, _hash(digest))
        case _:
            raise ValueError("an item is [agent key, kv, seq, hash]")


@dataclass(frozen=True, slots=True)
class Have:
    """The records of a bucket, by agent key; ``more``: it continues behind the last one."""

    ref: Ref
    bits: Bits
    bucket: Annotated[int, integer()]
    items: Annotated[tuple[HaveItem, ...], array(_have_item, MAX_HAVE_ITEMS, write=_lists)]
    more: Annotated[bool, boolean()] = False


@dataclass(frozen=True, slots=True)
class View:
    """The answering relay's view of the one that asks.

    Args:
        ref: of the question.
        state: whether it reaches the asker when it dials.
        since: when that began, Unix seconds; 0 = it never dialled.
        strikes: recent forged records that the asker introduced.
        retry_after: seconds until it takes the asker's gossip again; None = it does now.
        reason: why it backs off, for a person.
    """

    ref: Ref
    state: Annotated[Membership, one_of(Membership)]
    since: Annotated[int, integer()]
    strikes: Annotated[int, integer()] = 0
    retry_after: RetryAfter = None
    reason: Annotated[str | None, optional(text(MAX_DETAIL_CHARS))] = None


CODECS: Final[tuple[Codec[Any], ...]] = (
    _GossipCodec(Gossip, SenderField.PEER, SenderField.HOST_TO_PEER),
    Codec(Digest, SenderField.PEER, check=lambda frame: _check_buckets(frame.bits, *frame.buckets)),
    Codec(
        Digests,
        SenderField.HOST_TO_PEER,
        check=lambda frame: _check_buckets(frame.bits, *(item.bucket for item in frame.items)),
    ),
    _WantCodec(Want, SenderField.PEER, is_sparse=True, check=_check_want),
    Codec(
        Have, SenderField.HOST_TO_PEER, check=lambda frame: _check_buckets(frame.bits, frame.bucket)
    ),
    Codec(View, SenderField.HOST_TO_PEER),
)
