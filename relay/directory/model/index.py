"""Index the versions of all records by buckets that two relays can compare (PROTOCOL.md §5.10).

The store decides which records exist; the index only repeats their versions.

A bucket holds the agents whose SHA-256 of the agent key begins with the same ``bits`` bits. Its
digest is the first 16 bytes of SHA-256 over its rows, ordered by agent key. A row is the agent key,
a zero byte, kv and seq in 8 bytes each, and the first 16 bytes of the record's hash.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from relay.protocol import frames
from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.ids import AgentKey
from relay.protocol.jws import b64decode, b64encode

TOP_BITS: Final = 10
STEP_BITS: Final = 6
DEPTHS: Final = (10, 16, 22, 28)
MAX_TOPS: Final = 16
"""Whole top buckets that one deep question may touch: each costs the answerer time."""
MAX_CACHED_SPLITS: Final = 64
MAX_CACHED_PARTS: Final = 128
"""Deep digests are larger than their rows: a peer that asks for all must not fill the memory."""
_STEP: Final = 32
HASH_BYTES: Final = 16

_TAIL: Final = struct.Struct(f">QQ{HASH_BYTES}s")
_WORD_BITS: Final = 32


def place(key: bytes, bits: int) -> int:
    """Return the bucket of an agent: the first ``bits`` bits of SHA-256(agent key)."""
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") >> (_WORD_BITS - bits)


def _summary(bucket: int, rows: list[bytes]) -> frames.BucketDigest:
    digest = hashlib.sha256(b"".join(rows)).digest()[:HASH_BYTES]
    return frames.BucketDigest(bucket, len(rows), b64encode(digest))


def _key(row: bytes) -> bytes:
    return row[: -_TAIL.size - 1]


def _item(row: bytes) -> frames.HaveItem:
    kv, seq, digest = _TAIL.unpack_from(row, len(row) - _TAIL.size)
    return frames.HaveItem(AgentKey(_key(row).decode()), kv, seq, b64encode(digest))


class Index:
    """The versions of all stored records: some 150 bytes each, sorted within 1,024 buckets.

    A change invalidates the cached digests of its own bucket only.
    """

    def __init__(self) -> None:
        self._rows: list[list[bytes]] = [[] for _ in range(2**TOP_BITS)]
        self._digests: dict[int, frames.BucketDigest] = {}
        self._parts: dict[tuple[int, int], dict[int, frames.BucketDigest]] = {}
        self._split: dict[tuple[int, int], dict[int, list[bytes]]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, agent: AgentKey, version: RecordVersion) -> bool:
        """Raise the version of an agent; return True if it changed."""
        return self._put(agent, version, lower=False)

    def set(self, agent: AgentKey, version: RecordVersion) -> bool:
        """Set the version of an agent as in the store, also a lower one; return True on a change.

        A store replaces a version that its clock voids by a lower one (PROTOCOL.md §7.2).
        """
        return self._put(agent, version, lower=True)

    def _put(self, agent: AgentKey, version: RecordVersion, *, lower: bool) -> bool:
        kv, seq, digest = version
        prefix = agent.encode() + b"\0"
        row = prefix + _TAIL.pack(kv, seq, digest[:HASH_BYTES])
        top = place(prefix[:-1], TOP_BITS)
        rows = self._rows[top]
        at = bisect_left(rows, prefix)
        if not _is_of(rows, at, prefix):
            rows.insert(at, row)
            self._size += 1
        elif rows[at] < row or (
            lower and rows[at] != row
        ):  # the tails are big-endian: they compare as the versions do
            rows[at] = row
        else:
            return False
        self._invalidate(top)
        return True

    def remove(self, agent: AgentKey) -> bool:
        """Forget an agent; return False if it was not known."""
        prefix = agent.encode() + b"\0"
        top = place(prefix[:-1], TOP_BITS)
        rows = self._rows[top]
        at = bisect_left(rows, prefix)
        if not _is_of(rows, at, prefix):
            return False
        del rows[at]
        self._size -= 1
        self._invalidate(top)
        return True

    def clear(self) -> None:
        """Forget everything: the store has another lineage now."""
        self._rows = [[] for _ in range(2**TOP_BITS)]
        self._digests, self._parts, self._split, self._size = {}, {}, {}, 0

    def version(self, agent: AgentKey) -> RecordVersion | None:
        """Return the version of the current record, with the first 16 bytes of its digest."""
        prefix = agent.encode() + b"\0"
        rows = self._rows[place(prefix[:-1], TOP_BITS)]
        at = bisect_left(rows, prefix)
        if not _is_of(rows, at, prefix):
            return None
        kv, seq, digest = _TAIL.unpack_from(rows[at], len(prefix))
        return RecordVersion(kv, seq, digest)

    def digests(self, bits: int, buckets: Sequence[int] = ()) -> tuple[frames.BucketDigest, ...]:
        """Return the digests of buckets that are not empty; no ``buckets`` means all top ones.

        Raises:
            ProtocolError: ``bad_frame``: no such depth, or a question that costs too much.
        """
        _check_question(bits, buckets)
        if bits == TOP_BITS:
            named = dict.fromkeys(buckets) if buckets else range(2**TOP_BITS)
            return tuple(self._top(top) for top in named if self._rows[top])
        return tuple(
            found
            for bucket in dict.fromkeys(buckets)
            if (found := self._parts_of(bucket >> (bits - TOP_BITS), bits).get(bucket))
        )

    def prepare(self, bits: int, buckets: Sequence[int] = ()) -> Iterator[None]:
        """Compute the digests for :meth:`digests` in steps, so that other tasks run in between.

        Raises:
            ProtocolError: as there.
        """
        _check_question(bits, buckets)
        if bits == TOP_BITS:
            for top in range(2**TOP_BITS):
                self._top(top)
                if top % _STEP == 0:
                    yield
            return
        for top in dict.fromkeys(bucket >> (bits - TOP_BITS) for bucket in buckets):
            self._parts_of(top, bits)
            yield

    def have(
        self, bits: int, bucket: int, after: str = "", limit: int = frames.MAX_HAVE_ITEMS
    ) -> tuple[tuple[frames.HaveItem, ...], bool]:
        """Return the versions in a bucket behind the agent key ``after``, and True if more follow.

        Raises:
            ProtocolError: ``bad_frame``: no such depth.
        """
        _check_question(bits, (bucket,))
        top = bucket >> (bits - TOP_BITS)
        rows = self._rows[top] if bits == TOP_BITS else self._rows_of(top, bits).get(bucket, [])
        rows = rows[bisect_left(rows, after.encode() + b"\1") if after else 0 :]
        return tuple(map(_item, rows[:limit])), len(rows) > limit

    def newer(self, items: Iterable[frames.HaveItem]) -> list[AgentKey]:
        """Return the agents whose version on the other side is greater, or unknown here."""
        return [item.agent for item in items if self._lacks(item)]

    def _lacks(self, item: frames.HaveItem) -> bool:
        held = self.version(item.agent)
        return held is None or held < (item.kv, item.seq, b64decode(item.hash))

    def _top(self, top: int) -> frames.BucketDigest:
        found = self._digests.get(top)
        if found is None:
            found = self._digests[top] = _summary(top, self._rows[top])
        return found

    def _parts_of(self, top: int, bits: int) -> dict[int, frames.BucketDigest]:
        found = self._parts.get((top, bits))
        if found is None:
            rows = self._rows_of(top, bits)
            found = {bucket: _summary(bucket, part) for bucket, part in rows.items()}
            if len(self._parts) >= MAX_CACHED_PARTS:
                del self._parts[next(iter(self._parts))]
            self._parts[top, bits] = found
        return found

    def _rows_of(self, top: int, bits: int) -> dict[int, list[bytes]]:
        """Return the rows of a top bucket by its parts; cached, since their lists come next."""
        found = self._split.get((top, bits))
        if found is None:
            found = {}
            for row in self._rows[top]:
                found.setdefault(place(_key(row), bits), []).append(row)
            if len(self._split) >= MAX_CACHED_SPLITS:
                del self._split[next(iter(self._split))]
            self._split[top, bits] = found
        return found

    def _invalidate(self, top: int) -> None:
        self._digests.pop(top, None)
        if self._parts or self._split:
            for bits in DEPTHS[1:]:
                self._parts.pop((top, bits), None)
                self._split.pop((top, bits), None)


def _is_of(rows: list[bytes], at: int, prefix: bytes) -> bool:
    """Return True if that row is of this agent; its length excludes a key with a zero byte."""
    return (
        at < len(rows) and rows[at].startswith(prefix) and len(rows[at]) == len(prefix) + _TAIL.size
    )


def _check_question(bits: int, buckets: Sequence[int]) -> None:
    if bits not in DEPTHS:
        raise bad_frame("bits must be 10, 16, 22 or 28")
    if any(not 0 <= bucket < 2**bits for bucket in buckets):
        raise bad_frame("no such bucket")
    if bits > TOP_BITS:
        tops = {bucket >> (bits - TOP_BITS) for bucket in buckets}
        if not 1 <= len(tops) <= MAX_TOPS:
            raise bad_frame(f"a question about parts is about 1 to {MAX_TOPS} top buckets")


def bad_frame(detail: str) -> ProtocolError:
    """Return the error for a frame that no correct relay sends."""
    return ProtocolError(ErrorCode.BAD_FRAME, detail)
