"""Questions to the relay that one frame answers: status, resolve, publish, rules.

Rules of the file: a question may be asked twice, so one without an answer is asked again on the
next connection, until its asker stops waiting. One that a relay could not read is never asked: that
would end each connection. Whatever a relay says, an asker gets an answer or an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from relay.client.errors import AgentError, again, of, typed
from relay.protocol import frames
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
    RelayError,
)
from relay.protocol.ids import Timestamp

Question = frames.Status | frames.Resolve | frames.Publish | frames.Rules
Answer = frames.Statuses | frames.Resolved | frames.Published | frames.Ruled

MOST_AT_ONCE: Final = 8
ANSWER_S: Final = 60.0
"""A relay may ask others first; one that takes longer is left for another connection."""


@dataclass(slots=True)
class Questions:
    """What was asked and not answered yet."""

    _count: int = 0
    _unsaid: list[Question] = field(default_factory=list)
    _asked: dict[str, tuple[Question, asyncio.Future[Answer]]] = field(default_factory=dict)
    _said: dict[str, Timestamp] = field(default_factory=dict)

    def ask(self, make: Callable[[str], Question]) -> asyncio.Future[Answer]:
        """Ask; ``make`` gets the ref. Cancel the future to stop waiting.

        Raises:
            ProtocolError: no relay could read it; it is not asked.
        """
        self._forget_given_up()
        self._count += 1
        ref = f"q{self._count}"
        question = make(ref)
        _refuse_unreadable(question)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[ref] = (question, answer)
        self._unsaid.append(question)
        return answer

    def _forget_given_up(self) -> None:
        """A relay that answers nothing must not make those pile up that nobody waits for."""
        for question in [one for one in self._unsaid if self._asked[one.ref][1].done()]:
            self._unsaid.remove(question)
            del self._asked[question.ref]

    def next(self, now: Timestamp) -> Question | None:
        """The next frame; only a few are under way at once. ``now`` is monotonic seconds."""
        while self._unsaid and len(self._said) < MOST_AT_ONCE:
            question = self._unsaid.pop(0)
            if self._asked[question.ref][1].done():
                del self._asked[question.ref]
                continue
            self._said[question.ref] = now
            return question
        return None

    def answered(self, answer: Answer) -> None:
        """Take an answer.

        Raises:
            ProtocolError: nobody asked, or it answers another kind of question.
        """
        question, future = self._take(answer.ref)
        if _ANSWER[type(question)] is not type(answer):
            lie = ProtocolError(ErrorCode.BAD_FRAME, "an answer to another question")
            self._tell(future, of(lie))
            raise lie
        if not future.done():
            future.set_result(answer)

    def failed(self, ref: str, exc: RelayError) -> None:
        """A question was answered by an error.

        Raises:
            ProtocolError: nobody asked.
        """
        _, future = self._take(ref)
        self._tell(future, of(exc))

    @staticmethod
    def _tell(future: asyncio.Future[Answer], failure: AgentError) -> None:
        if not future.done():
            future.set_exception(failure)

    def _take(self, ref: str) -> tuple[Question, asyncio.Future[Answer]]:
        if ref not in self._said:
            raise ProtocolError(ErrorCode.BAD_FRAME, "an answer to what was not asked")
        del self._said[ref]
        return self._asked.pop(ref)

    def next_timer(self) -> Timestamp | None:
        """When :meth:`check_answers` has work, monotonic seconds."""
        return Timestamp(min(self._said.values()) + ANSWER_S) if self._said else None

    def check_answers(self, now: Timestamp) -> None:
        """Notice a relay that answers no questions: what it leaves open leaves no room for others.

        Raises:
            UnavailableError: one has waited for too long.
        """
        if any(at + ANSWER_S <= now for at in self._said.values()):
            raise typed(ErrorCode.PEER_UNREACHABLE, "the relay does not answer questions")

    def lost(self) -> None:
        """The connection is gone: ask again on the next one."""
        self._said.clear()
        self._unsaid = [question for question, _ in self._asked.values()]

    def end(self, failure: AgentError) -> None:
        """Nobody will answer."""
        for _, future in self._asked.values():
            self._tell(future, again(failure))
        self._asked.clear()
        self._unsaid.clear()
        self._said.clear()


def _refuse_unreadable(question: Question) -> None:
    """Read it as the relay will.

    Raises:
        ProtocolError: it cannot be read.
    """
    try:
        frames.parse(frames.encode(question), "agent")
    except RelayError as exc:
        raise of(exc) from exc
    except TypeError as exc:
        # text that is no Unicode, as a broken file name may be
        raise typed(ErrorCode.BAD_FRAME, f"it cannot be said: {exc}") from exc


_ANSWER: Final[dict[type[Question], type[Answer]]] = {
    frames.Status: frames.Statuses,
    frames.Resolve: frames.Resolved,
    frames.Publish: frames.Published,
    frames.Rules: frames.Ruled,
}
