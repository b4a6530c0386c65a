"""Find the records that another relay holds and this one lacks (PROTOCOL.md §5.10).

::

    asker   digest (1,024 buckets) ─▶ digest of parts of full ones ─▶ want bucket ─▶ want agents
    other                   ◀─ digests                  ◀─ digests      ◀─ have        ◀─ gossip

Only the side that dialled asks. The caller verifies and stores the records.

Entry points: :class:`Pull` asks, :func:`answer` answers, :func:`differing` compares the top level.

Example: this relay holds 3 records, the other one a newer version of one of them. Their digests
differ in one of 1,024 buckets, which holds 2 records, so the pull wants that bucket. ``have`` lists
both versions. The pull wants the agent whose version is greater there, and is done after the
``gossip`` with its record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from relay.directory.model.index import DEPTHS, STEP_BITS, TOP_BITS, Index, bad_frame, place
from relay.protocol import frames
from relay.protocol.errors import ProtocolError
from relay.protocol.ids import AgentKey

__all__ = ["Index", "Pull", "Question", "answer", "differing"]

SPLIT_ABOVE: Final = 512
"""A bucket with more records on either side is compared by its parts."""
MAX_PAGES: Final = 8
MAX_OUTSTANDING: Final = 8
MAX_QUESTIONS: Final = 100_000
MAX_USELESS: Final = 512
"""Records that were fetched and not new; the pull stops here unless more were new."""


def answer(index: Index, question: frames.Digest | frames.Want) -> frames.Digests | frames.Have:
    """Return the answer to a ``digest``, or to a ``want`` that names a bucket.

    Raises:
        ProtocolError: ``bad_frame``: no such depth, too many top buckets, or another request.
    """
    match question:
        case frames.Digest(ref, bits, buckets):
            return frames.Digests(ref, bits, index.digests(bits, buckets))
        case frames.Want(ref=ref, bits=int(bits), bucket=int(bucket), after=after):
            items, more = index.have(bits, bucket, after or "")
            return frames.Have(ref, bits, bucket, items, more)
        case _:
            raise bad_frame("this want names no bucket")


def differing(index: Index, digests: frames.Digests) -> list[int]:
    """Return the buckets with records on the other side that are not the same as here."""
    ours = {item.bucket: item for item in index.digests(digests.bits)}
    return [item.bucket for item in digests.items if item.records and item != ours.get(item.bucket)]


Question = frames.Digest | frames.Want


class Pull:
    """The asking side of one exchange.

    :meth:`receive` takes an answer and returns the questions to send next. After a ``gossip`` the
    caller merges its records and updates the index. The pull does not want a record twice, and
    stops at a peer that claims much and sends little. Waiting work is a stack, so it stays small
    however much differs.

    Args:
        index: of this relay; read at each answer.
        new_ref: returns a new ref for a question.
        max_wanted: records of one question.
        first: the first bucket, 0 … 1,023; random, so that pulls which end early do not always
            compare the same part.
    """

    def __init__(
        self, index: Index, new_ref: Callable[[], str], max_wanted: int = 256, *, first: int = 0
    ) -> None:
        self._first = first
        self.index = index
        self._new_ref = new_ref
        self._max_wanted = max_wanted
        self._asked: dict[str, Question] = {}
        self._waiting: list[Question] = []
        self._lacking: list[AgentKey] = []
        self._pages: dict[tuple[int, int], int] = {}
        self._questions = 0
        self.wanted = 0
        self.received = 0
        self.gained = 0
        self._useless = 0
        self.error: ProtocolError | None = None

    @property
    def is_done(self) -> bool:
        """True after the last answer, or after :attr:`error`."""
        return not (self._asked or self._waiting or self._lacking)

    def start(self) -> list[Question]:
        """Return the first question."""
        self._waiting.append(frames.Digest("", TOP_BITS))
        return self._next()

    def agents_asked(self, ref: str | None) -> tuple[AgentKey, ...]:
        """Return the agents that the question wanted; call it before :meth:`receive`."""
        asked = self._asked.get(ref or "")
        return asked.agents if isinstance(asked, frames.Want) else ()

    def receive(
        self, frame: frames.Digests | frames.Have | frames.Gossip, *, gained: int | None = None
    ) -> list[Question]:
        """Take an answer and return the next questions; a wrong one sets :attr:`error`.

        Args:
            frame: the answer.
            gained: of a gossip, the number of records that were new; None if unknown.
        """
        if gained is not None:
            self._count(gained, len(self.agents_asked(frame.ref)))
        try:
            self._on_answer(frame, self._asked.pop(frame.ref or "", None))
        except ProtocolError as exc:
            self._asked, self._waiting, self._lacking = {}, [], []
            self.error = exc
        return self._next()

    def _count(self, gained: int, asked: int) -> None:
        self.gained += gained
        self._useless += asked - gained
        if self._useless > max(MAX_USELESS, self.gained):
            self._waiting, self._lacking = [], []

    def skip(self, ref: str) -> list[Question]:
        """Go on without an answer, and return the next questions."""
        self._asked.pop(ref, None)
        return self._next()

    def _on_answer(
        self, frame: frames.Digests | frames.Have | frames.Gossip, asked: Question | None
    ) -> None:
        match asked, frame:
            case frames.Digest() as question, frames.Digests() if question.bits == frame.bits:
                self._compare(question, frame)
            case frames.Want(bucket=int()) as want, frames.Have() if _is_about(want, frame):
                self._read(want, frame)
            case frames.Want(agents=(_, *_) as agents), frames.Gossip(records):
                if len(records) > len(agents):
                    raise bad_frame("more records than were asked for")
                self.received += len(records)
            case _:
                raise bad_frame("an answer to nothing that was asked")

    def _compare(self, asked: frames.Digest, reply: frames.Digests) -> None:
        theirs = {item.bucket: item for item in reply.items}
        if len(theirs) != len(reply.items) or (
            asked.buckets and theirs.keys() - set(asked.buckets)
        ):
            raise bad_frame("a bucket that was not asked about, or twice")
        if any(bucket >> asked.bits for bucket in theirs):
            raise bad_frame("no such bucket")
        ours = {item.bucket: item for item in self.index.digests(asked.bits, asked.buckets)}
        full: list[int] = []
        for bucket in sorted(theirs, key=self._rotation_key):
            item = theirs[bucket]
            mine = ours.get(bucket)
            if item == mine or item.records == 0:
                continue
            records = max(item.records, mine.records if mine else 0)
            if records > SPLIT_ABOVE and asked.bits < DEPTHS[-1]:
                full.append(bucket)
            else:
                self._waiting.append(frames.Want("", bits=asked.bits, bucket=bucket))
        self._split(full, asked.bits)

    def _rotation_key(self, bucket: int) -> int:
        # descending from the first bucket: the stack pops the last one first
        return (self._first - bucket - 1) % 2**TOP_BITS

    def _split(self, buckets: list[int], bits: int) -> None:
        parts_each = 2**STEP_BITS
        step = frames.MAX_BUCKETS // parts_each
        for start in range(0, len(buckets), step):
            parts = tuple(
                bucket * parts_each + part
                for bucket in buckets[start : start + step]
                for part in range(parts_each)
            )
            self._waiting.append(frames.Digest("", bits + STEP_BITS, parts))

    def _read(self, asked: frames.Want, reply: frames.Have) -> None:
        keys = [item.agent for item in reply.items]
        behind = [asked.after or "", *keys]
        if any(one >= other for one, other in zip(behind, keys, strict=False)):
            raise bad_frame("agents that are not in order")
        if any(place(key.encode(), reply.bits) != reply.bucket for key in keys):
            raise bad_frame("an agent of another bucket")
        self._lacking += self.index.newer(reply.items)
        pages = self._pages.pop((reply.bits, reply.bucket), 0) + 1
        if not reply.more:
            return
        if not keys or pages >= MAX_PAGES:
            raise bad_frame("a list that does not end")
        self._pages[reply.bits, reply.bucket] = pages
        self._waiting.append(frames.Want("", bits=reply.bits, bucket=reply.bucket, after=keys[-1]))

    def _next(self) -> list[Question]:
        questions: list[Question] = []
        while len(self._asked) < MAX_OUTSTANDING and (question := self._pop()):
            ref = self._new_ref()
            self._asked[ref] = replace(question, ref=ref)
            questions.append(self._asked[ref])
        return questions

    def _pop(self) -> Question | None:
        if self._questions >= MAX_QUESTIONS:
            self._waiting.clear()
        is_last = not self._waiting and not any(map(_may_bring_more, self._asked.values()))
        if len(self._lacking) >= self._max_wanted or (self._lacking and is_last):
            agents = tuple(self._lacking[: self._max_wanted])
            del self._lacking[: self._max_wanted]
            self.wanted += len(agents)
            return frames.Want("", agents=agents)
        if not self._waiting:
            return None
        self._questions += 1
        return self._waiting.pop()


def _is_about(want: frames.Want, answer: frames.Have) -> bool:
    return (want.bits, want.bucket) == (answer.bits, answer.bucket)


def _may_bring_more(question: Question) -> bool:
    return not (isinstance(question, frames.Want) and question.agents)
