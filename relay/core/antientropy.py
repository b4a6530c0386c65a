"""Anti-entropy: which records one relay holds and another lacks (PROTOCOL.md §5.10).

Rules of the file: an index is a copy of orders, never the truth: a store decides what is held, and
the records themselves are judged by whoever asked for them. Only the side that dialled asks.

::

    asker   digest (1,024 buckets) ─▶ digest of parts of full ones ─▶ want bucket ─▶ want agents
    other                   ◀─ digests                  ◀─ digests      ◀─ have        ◀─ gossip

A bucket is the agents whose SHA-256 of the agent key begins with the same ``bits`` bits. Its digest
is the first 16 bytes of SHA-256 over its rows by agent key; a row is the agent key, a zero byte,
kv and seq in 8 bytes each, and the first 16 bytes of the record's hash.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from relay.core.errors import ErrorCode, ProtocolError
from relay.core.frames import (
    MAX_BUCKETS,
    MAX_HAVE,
    BucketDigest,
    Digest,
    Digests,
    Gossip,
    Have,
    HaveItem,
    Want,
)
from relay.core.ids import AgentKey
from relay.core.jws import b64decode, b64encode

TOP_BITS: Final = 10
STEP_BITS: Final = 6
DEPTHS: Final = (10, 16, 22, 28)
SPLIT_ABOVE: Final = 512
"""A bucket with more records on either side is asked about by its parts."""
MAX_TOPS: Final = 16
"""A deep question costs its answerer a look at whole top buckets: so many at most."""
KEPT_SPLIT: Final = 64
MAX_PAGES: Final = 8
MAX_OUTSTANDING: Final = 8
MAX_QUESTIONS: Final = 100_000
HASH_BYTES: Final = 16

_TAIL: Final = struct.Struct(f">QQ{HASH_BYTES}s")
_WORD_BITS: Final = 32

Order = tuple[int, int, bytes]
"""(kv, seq, SHA-256 of the signing input, or its first 16 bytes): greater wins."""


def place(key: bytes, bits: int) -> int:
    """The bucket of an agent: the first ``bits`` bits of SHA-256(agent key)."""
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") >> (_WORD_BITS - bits)


def _summary(bucket: int, rows: list[bytes]) -> BucketDigest:
    digest = hashlib.sha256(b"".join(rows)).digest()[:HASH_BYTES]
    return BucketDigest(bucket, len(rows), b64encode(digest))


def _key(row: bytes) -> bytes:
    return row[: -_TAIL.size - 1]


def _item(row: bytes) -> HaveItem:
    kv, seq, digest = _TAIL.unpack_from(row, len(row) - _TAIL.size)
    return HaveItem(AgentKey(_key(row).decode()), kv, seq, b64encode(digest))


class Index:
    """The orders of all records held: some 150 bytes each, sorted within 1,024 buckets.

    A change spoils the digest of its own bucket only; the others are not computed again.
    """

    def __init__(self) -> None:
        self._rows: list[list[bytes]] = [[] for _ in range(2**TOP_BITS)]
        self._digests: dict[int, BucketDigest] = {}
        self._parts: dict[tuple[int, int], dict[int, BucketDigest]] = {}
        self._split: dict[tuple[int, int], dict[int, list[bytes]]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, agent: AgentKey, order: Order) -> bool:
        """Take the greater of the order held and this one; True if that changed anything."""
        kv, seq, digest = order
        prefix = agent.encode() + b"\0"
        row = prefix + _TAIL.pack(kv, seq, digest[:HASH_BYTES])
        top = place(prefix[:-1], TOP_BITS)
        rows = self._rows[top]
        at = bisect_left(rows, prefix)
        if not _is_of(rows, at, prefix):
            rows.insert(at, row)
            self._size += 1
        elif rows[at] < row:  # the tails are big-endian: they compare as the orders do
            rows[at] = row
        else:
            return False
        self._spoil(top)
        return True

    def remove(self, agent: AgentKey) -> bool:
        """Forget an agent; False if it was not known."""
        prefix = agent.encode() + b"\0"
        top = place(prefix[:-1], TOP_BITS)
        rows = self._rows[top]
        at = bisect_left(rows, prefix)
        if not _is_of(rows, at, prefix):
            return False
        del rows[at]
        self._size -= 1
        self._spoil(top)
        return True

    def clear(self) -> None:
        """Forget everything: the store's history is another one now."""
        self._rows = [[] for _ in range(2**TOP_BITS)]
        self._digests, self._parts, self._split, self._size = {}, {}, {}, 0

    def order(self, agent: AgentKey) -> Order | None:
        """(kv, seq, first 16 bytes of the hash) of the record held."""
        prefix = agent.encode() + b"\0"
        rows = self._rows[place(prefix[:-1], TOP_BITS)]
        at = bisect_left(rows, prefix)
        if not _is_of(rows, at, prefix):
            return None
        kv, seq, digest = _TAIL.unpack_from(rows[at], len(prefix))
        return kv, seq, digest

    def digests(self, bits: int, buckets: Sequence[int] = ()) -> tuple[BucketDigest, ...]:
        """Digests of those that are not empty; no ``buckets`` means all, at the top only.

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

    def have(
        self, bits: int, bucket: int, after: str = "", most: int = MAX_HAVE
    ) -> tuple[tuple[HaveItem, ...], bool]:
        """The orders in a bucket behind the agent key ``after``, and whether there are more.

        Raises:
            ProtocolError: ``bad_frame``: no such depth.
        """
        _check_question(bits, (bucket,))
        top = bucket >> (bits - TOP_BITS)
        rows = self._rows[top] if bits == TOP_BITS else self._rows_of(top, bits).get(bucket, [])
        rows = rows[bisect_left(rows, after.encode() + b"\1") if after else 0 :]
        return tuple(map(_item, rows[:most])), len(rows) > most

    def newer(self, items: Iterable[HaveItem]) -> list[AgentKey]:
        """Of which agents the other side holds a record that is unknown here, or greater."""
        return [item.agent for item in items if self._lacks(item)]

    def _lacks(self, item: HaveItem) -> bool:
        held = self.order(item.agent)
        return held is None or held < (item.kv, item.seq, b64decode(item.hash))

    def _top(self, top: int) -> BucketDigest:
        found = self._digests.get(top)
        if found is None:
            found = self._digests[top] = _summary(top, self._rows[top])
        return found

    def _parts_of(self, top: int, bits: int) -> dict[int, BucketDigest]:
        found = self._parts.get((top, bits))
        if found is None:
            rows = self._rows_of(top, bits)
            found = {bucket: _summary(bucket, part) for bucket, part in rows.items()}
            self._parts[top, bits] = found
        return found

    def _rows_of(self, top: int, bits: int) -> dict[int, list[bytes]]:
        """The rows of a top bucket by its parts; kept for a while: their lists are asked next."""
        found = self._split.get((top, bits))
        if found is None:
            found = {}
            for row in self._rows[top]:
                found.setdefault(place(_key(row), bits), []).append(row)
            if len(self._split) >= KEPT_SPLIT:
                del self._split[next(iter(self._split))]
            self._split[top, bits] = found
        return found

    def _spoil(self, top: int) -> None:
        self._digests.pop(top, None)
        if self._parts or self._split:
            for bits in DEPTHS[1:]:
                self._parts.pop((top, bits), None)
                self._split.pop((top, bits), None)


def _is_of(rows: list[bytes], at: int, prefix: bytes) -> bool:
    """Whether the row there is this agent's; the length tells a key with a zero byte in it."""
    return (
        at < len(rows) and rows[at].startswith(prefix) and len(rows[at]) == len(prefix) + _TAIL.size
    )


def _check_question(bits: int, buckets: Sequence[int]) -> None:
    if bits not in DEPTHS:
        raise _wrong("bits must be 10, 16, 22 or 28")
    if any(not 0 <= bucket < 2**bits for bucket in buckets):
        raise _wrong("no such bucket")
    if bits > TOP_BITS:
        tops = {bucket >> (bits - TOP_BITS) for bucket in buckets}
        if not 1 <= len(tops) <= MAX_TOPS:
            raise _wrong(f"a question about parts is about 1 to {MAX_TOPS} top buckets")


def _wrong(detail: str) -> ProtocolError:
    return ProtocolError(ErrorCode.BAD_FRAME, detail)


def answer(index: Index, question: Digest | Want) -> Digests | Have:
    """What a relay says to a ``digest``, or to a ``want`` that names a bucket.

    Raises:
        ProtocolError: ``bad_frame``: no such depth, too many top buckets, or another wish.
    """
    match question:
        case Digest(ref, bits, buckets):
            return Digests(ref, bits, index.digests(bits, buckets))
        case Want(ref=ref, bits=int(bits), bucket=int(bucket), after=after):
            items, more = index.have(bits, bucket, after or "")
            return Have(ref, bits, bucket, items, more)
        case _:
            raise _wrong("this wish names no bucket")


Question = Digest | Want


class Pull:
    """One exchange as the side that asks: what the other relay holds and this one lacks.

    Feed it each answer; it gives the questions to send next. After a ``gossip`` the caller merges
    its records and puts them into the index. What was wanted and did not come is not asked for
    again. Work that waits is a stack, so it stays small however much differs.

    Args:
        index: what is held here; read at each answer.
        new_ref: makes a name for a question.
        want_most: records asked for at once.
    """

    def __init__(self, index: Index, new_ref: Callable[[], str], want_most: int = 256) -> None:
        self._index = index
        self._new_ref = new_ref
        self._want_most = want_most
        self._asked: dict[str, Question] = {}
        self._waiting: list[Question] = []
        self._lacking: list[AgentKey] = []
        self._pages: dict[tuple[int, int], int] = {}
        self._questions = 0
        self.wanted = 0
        self.received = 0
        self.error: ProtocolError | None = None

    @property
    def is_done(self) -> bool:
        """Nothing is asked and nothing waits to be; or it ended with :attr:`error`."""
        return not (self._asked or self._waiting or self._lacking)

    def start(self) -> list[Question]:
        """The first question."""
        self._waiting.append(Digest("", TOP_BITS))
        return self._next()

    def agents_asked(self, ref: str | None) -> tuple[AgentKey, ...]:
        """Whose records this answer may bring; look before :meth:`receive`."""
        asked = self._asked.get(ref or "")
        return asked.agents if isinstance(asked, Want) else ()

    def receive(self, frame: Digests | Have | Gossip) -> list[Question]:
        """Take an answer; gives the next questions. A wrong one ends it: :attr:`error`."""
        try:
            self._take(frame, self._asked.pop(frame.ref or "", None))
        except ProtocolError as exc:
            self._asked, self._waiting, self._lacking = {}, [], []
            self.error = exc
        return self._next()

    def skip(self, ref: str) -> list[Question]:
        """The other side refused a question, or let it lie: go on without its answer."""
        self._asked.pop(ref, None)
        return self._next()

    def _take(self, frame: Digests | Have | Gossip, asked: Question | None) -> None:
        match asked, frame:
            case Digest() as question, Digests() if question.bits == frame.bits:
                self._compare(question, frame)
            case Want(bucket=int()) as wish, Have() if _is_about(wish, frame):
                self._read(wish, frame)
            case Want(agents=(_, *_) as agents), Gossip(records):
                if len(records) > len(agents):
                    raise _wrong("more records than were asked for")
                self.received += len(records)
            case _:
                raise _wrong("an answer to nothing that was asked")

    def _compare(self, asked: Digest, said: Digests) -> None:
        theirs = {item.bucket: item for item in said.items}
        if len(theirs) != len(said.items) or (asked.buckets and theirs.keys() - set(asked.buckets)):
            raise _wrong("a bucket that was not asked about, or twice")
        if any(bucket >> asked.bits for bucket in theirs):
            raise _wrong("no such bucket")
        ours = {item.bucket: item for item in self._index.digests(asked.bits, asked.buckets)}
        full: list[int] = []
        for bucket, item in theirs.items():
            mine = ours.get(bucket)
            if item == mine or item.records == 0:
                continue
            most = max(item.records, mine.records if mine else 0)
            if most > SPLIT_ABOVE and asked.bits < DEPTHS[-1]:
                full.append(bucket)
            else:
                self._waiting.append(Want("", bits=asked.bits, bucket=bucket))
        self._split(full, asked.bits)

    def _split(self, buckets: list[int], bits: int) -> None:
        many = 2**STEP_BITS
        at_once = MAX_BUCKETS // many
        for start in range(0, len(buckets), at_once):
            parts = tuple(
                bucket * many + part
                for bucket in buckets[start : start + at_once]
                for part in range(many)
            )
            self._waiting.append(Digest("", bits + STEP_BITS, parts))

    def _read(self, asked: Want, said: Have) -> None:
        keys = [item.agent for item in said.items]
        behind = [asked.after or "", *keys]
        if any(one >= other for one, other in zip(behind, keys, strict=False)):
            raise _wrong("agents that are not in order")
        if any(place(key.encode(), said.bits) != said.bucket for key in keys):
            raise _wrong("an agent of another bucket")
        self._lacking += self._index.newer(said.items)
        pages = self._pages.pop((said.bits, said.bucket), 0) + 1
        if not said.more:
            return
        if not keys or pages >= MAX_PAGES:
            raise _wrong("a list that does not end")
        self._pages[said.bits, said.bucket] = pages
        self._waiting.append(Want("", bits=said.bits, bucket=said.bucket, after=keys[-1]))

    def _next(self) -> list[Question]:
        said: list[Question] = []
        while len(self._asked) < MAX_OUTSTANDING and (question := self._pop()):
            named = _named(question, self._new_ref())
            self._asked[named.ref] = named
            said.append(named)
        return said

    def _pop(self) -> Question | None:
        if self._questions >= MAX_QUESTIONS:
            self._waiting.clear()
        is_last = not self._waiting and not any(map(_may_bring_more, self._asked.values()))
        if len(self._lacking) >= self._want_most or (self._lacking and is_last):
            agents = tuple(self._lacking[: self._want_most])
            del self._lacking[: self._want_most]
            self.wanted += len(agents)
            return Want("", agents=agents)
        if not self._waiting:
            return None
        self._questions += 1
        return self._waiting.pop()


def _is_about(wish: Want, said: Have) -> bool:
    return (wish.bits, wish.bucket) == (said.bits, said.bucket)


def _may_bring_more(question: Question) -> bool:
    return not (isinstance(question, Want) and question.agents)


def _named(question: Question, ref: str) -> Question:
    return replace(question, ref=ref)
