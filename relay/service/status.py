"""Status: a sender asks what became of its envelopes (PROTOCOL.md §5 ``status``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from relay.core.dedupe import Fate
from relay.core.envelope import dedupe_key
from relay.core.frames import State, StatusAnswer, StatusItem
from relay.core.identity import parse_did
from relay.core.ids import AgentKey, Did, message_id_hour, parse_message_id
from relay.core.inbox_values import Question
from relay.ports import InboxStore

_STATE: Final[dict[Fate, State]] = {
    Fate.STORED: "stored",
    Fate.ACKED: "acked",
    Fate.REFUSED: "refused",
    Fate.EXPIRED: "expired",
    Fate.CORRUPT: "corrupt",
    Fate.MOVED: "moved",
    Fate.FORWARDED: "forwarded",
}


@dataclass(frozen=True, slots=True)
class StatusOf:
    """Answers only the sender: what is asked is looked up under the asker's own DID."""

    store: InboxStore

    async def __call__(self, asker: Did, items: Sequence[StatusItem]) -> list[StatusAnswer]:
        """One answer an item, in order; what cannot be told is ``unknown``."""
        answers = [StatusAnswer(item.to, item.id, "unknown") for item in items]
        asked: dict[AgentKey, dict[int, Question]] = {}
        for place, item in enumerate(items):
            try:
                inbox = parse_did(item.to).agent_key
                message_id = parse_message_id(item.id)
            except ValueError:
                continue
            question = Question(dedupe_key(asker, message_id), message_id_hour(message_id))
            asked.setdefault(inbox, {})[place] = question
        for inbox, questions in asked.items():
            found = await self.store.status(inbox, list(questions.values()))
            for place, one in zip(questions, found, strict=True):
                if one is not None:
                    answers[place] = replace(answers[place], state=_STATE[one.fate])
        return answers
