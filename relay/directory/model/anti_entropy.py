"""Anti-entropy: which records one relay holds and another lacks (PROTOCOL.md §5.10).

Rules of the file: the records themselves are judged by whoever asked for them. Only the side that
dialled asks.

::

    asker   digest (1,024 buckets) ─▶ digest of parts of full ones ─▶ want bucket ─▶ want agents
    other                   ◀─ digests                  ◀─ digests      ◀─ have        ◀─ gossip
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from relay.directory.model.index import (
    DEPTHS,
    STEP_BITS,
    TOP_BITS,
    Index,
    place,
    wrong,
)
from relay.protocol import frames
from relay.protocol.errors import ProtocolError
from relay.protocol.ids import AgentKey

__all__ = ["Index", "Pull", "Question", "answer", "differing"]

SPLIT_ABOVE: Final = 512
"""A bucket with more records on either side is asked about by its parts."""
MAX_PAGES: Final = 8
MAX_OUTSTANDING: Final = 8
MAX_QUESTIONS: Final = 100_000
MOST_VAIN: Final = 512
"""Records asked for that were no news, where they are more than the news: enough."""


def answer(index: Index, question: frames.Digest | frames.Want) -> frames.Digests | frames.Have:
    """What a relay says to a ``digest``, or to a ``want`` that names a bucket.

    Raises:
        ProtocolError: ``bad_frame``: no such depth, too many top buckets, or another wish.
    """
    match question:
        case frames.Digest(ref, bits, buckets):
            return frames.Digests(ref, bits, index.digests(bits, buckets))
        case frames.Want(ref=ref, bits=int(bits), bucket=int(bucket), after=after):
            items, more = index.have(bits, bucket, after or "")
            return frames.Have(ref, bits, bucket, items, more)
        case _:
            raise wrong("this wish names no bucket")


def differing(index: Index, said: frames.Digests) -> list[int]:
    """The buckets in which the other side holds anything, and not the same as is held here."""
    ours = {item.bucket: item for item in index.digests(said.bits)}
    return [item.bucket for item in said.items if item.records and item != ours.get(item.bucket)]


Question = frames.Digest | frames.Want


class Pull:
    """One exchange as the side that asks: what the other relay holds and this one lacks.

    Feed it each answer; it gives the questions to send next. After a ``gossip`` the caller merges
    its records and puts them into the index. What was wanted and did not come is not asked for
    again, and who claims much and brings little is left alone for this time. Work that waits is a
    stack, so it stays small however much differs.

    Args:
        index: what is held here; read at each answer.
        new_ref: makes a name for a question.
        want_most: records asked for at once.
        first: the bucket to begin with, 0 … 1,023; random, so that an exchange that is given up has
            not always seen the same part.
    """

    def __init__(
        self, index: Index, new_ref: Callable[[], str], want_most: int = 256, *, first: int = 0
    ) -> None:
        self._first = first
        self.index = index
        self._new_ref = new_ref
        self._want_most = want_most
        self._asked: dict[str, Question] = {}
        self._waiting: list[Question] = []
        self._lacking: list[AgentKey] = []
        self._pages: dict[tuple[int, int], int] = {}
        self._questions = 0
        self.wanted = 0
        self.received = 0
        self.gained = 0
        self._vain = 0
        self.error: ProtocolError | None = None

    @property
    def is_done(self) -> bool:
        """Nothing is asked and nothing waits to be; or it ended with :attr:`error`."""
        return not (self._asked or self._waiting or self._lacking)

    def start(self) -> list[Question]:
        """The first question."""
        self._waiting.append(frames.Digest("", TOP_BITS))
        return self._next()

    def agents_asked(self, ref: str | None) -> tuple[AgentKey, ...]:
        """Whose records this answer may bring; look before :meth:`receive`."""
        asked = self._asked.get(ref or "")
        return asked.agents if isinstance(asked, frames.Want) else ()

    def receive(
        self, frame: frames.Digests | frames.Have | frames.Gossip, *, kept: int | None = None
    ) -> list[Question]:
        """Take an answer; gives the next questions. A wrong one ends it: :attr:`error`.

        Args:
            frame: as it came.
            kept: of a gossip, how many of its records were news and are held now, if known.
        """
        if kept is not None:
            self._count(kept, len(self.agents_asked(frame.ref)))
        try:
            self._take(frame, self._asked.pop(frame.ref or "", None))
        except ProtocolError as exc:
            self._asked, self._waiting, self._lacking = {}, [], []
            self.error = exc
        return self._next()

    def _count(self, kept: int, asked: int) -> None:
        self.gained += kept
        self._vain += asked - kept
        if self._vain > max(MOST_VAIN, self.gained):
            self._waiting, self._lacking = [], []

    def skip(self, ref: str) -> list[Question]:
        """The other side refused a question, or let it lie: go on without its answer."""
        self._asked.pop(ref, None)
        return self._next()

    def _take(
        self, frame: frames.Digests | frames.Have | frames.Gossip, asked: Question | None
    ) -> None:
        match asked, frame:
            case frames.Digest() as question, frames.Digests() if question.bits == frame.bits:
                self._compare(question, frame)
            case frames.Want(bucket=int()) as wish, frames.Have() if _is_about(wish, frame):
                self._read(wish, frame)
            case frames.Want(agents=(_, *_) as agents), frames.Gossip(records):
                if len(records) > len(agents):
                    raise wrong("more records than were asked for")
                self.received += len(records)
            case _:
                raise wrong("an answer to nothing that was asked")

    def _compare(self, asked: frames.Digest, said: frames.Digests) -> None:
        theirs = {item.bucket: item for item in said.items}
        if len(theirs) != len(said.items) or (asked.buckets and theirs.keys() - set(asked.buckets)):
            raise wrong("a bucket that was not asked about, or twice")
        if any(bucket >> asked.bits for bucket in theirs):
            raise wrong("no such bucket")
        ours = {item.bucket: item for item in self.index.digests(asked.bits, asked.buckets)}
        full: list[int] = []
        for bucket in sorted(theirs, key=self._turn):
            item = theirs[bucket]
            mine = ours.get(bucket)
            if item == mine or item.records == 0:
                continue
            most = max(item.records, mine.records if mine else 0)
            if most > SPLIT_ABOVE and asked.bits < DEPTHS[-1]:
                full.append(bucket)
            else:
                self._waiting.append(frames.Want("", bits=asked.bits, bucket=bucket))
        self._split(full, asked.bits)

    def _turn(self, bucket: int) -> int:
        """Later ones are taken first, since what waits is a stack."""
        return (self._first - bucket - 1) % 2**TOP_BITS

    def _split(self, buckets: list[int], bits: int) -> None:
        many = 2**STEP_BITS
        at_once = frames.MAX_BUCKETS // many
        for start in range(0, len(buckets), at_once):
            parts = tuple(
                bucket * many + part
                for bucket in buckets[start : start + at_once]
                for part in range(many)
            )
            self._waiting.append(frames.Digest("", bits + STEP_BITS, parts))

    def _read(self, asked: frames.Want, said: frames.Have) -> None:
        keys = [item.agent for item in said.items]
        behind = [asked.after or "", *keys]
        if any(one >= other for one, other in zip(behind, keys, strict=False)):
            raise wrong("agents that are not in order")
        if any(place(key.encode(), said.bits) != said.bucket for key in keys):
            raise wrong("an agent of another bucket")
        self._lacking += self.index.newer(said.items)
        pages = self._pages.pop((said.bits, said.bucket), 0) + 1
        if not said.more:
            return
        if not keys or pages >= MAX_PAGES:
            raise wrong("a list that does not end")
        self._pages[said.bits, said.bucket] = pages
        self._waiting.append(frames.Want("", bits=said.bits, bucket=said.bucket, after=keys[-1]))

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
            return frames.Want("", agents=agents)
        if not self._waiting:
            return None
        self._questions += 1
        return self._waiting.pop()


def _is_about(wish: frames.Want, said: frames.Have) -> bool:
    return (wish.bits, wish.bucket) == (said.bits, said.bucket)


def _may_bring_more(question: Question) -> bool:
    return not (isinstance(question, frames.Want) and question.agents)


def _named(question: Question, ref: str) -> Question:
    return replace(question, ref=ref)
