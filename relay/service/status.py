"""Status: a sender asks what became of its envelopes (PROTOCOL.md §5 ``status``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from relay.core.dedupe import Fate
from relay.core.envelope import dedupe_key
from relay.core.frames import State, StatusAnswer, StatusItem
from relay.core.identity import parse_did
from relay.core.ids import Did, message_id_hour, parse_message_id
from relay.core.inbox import Question
from relay.ports import InboxStore

_STATE: Final[dict[Fate, State]] = {
    Fate.STORED: "stored",
    Fate.ACKED: "acked",
    Fate.REFUSED: "refused",
    Fate.EXPIRED: "expired",
    Fate.CORRUPT: "corrupt",
    Fate.MOVED: "moved",
}


@dataclass(frozen=True, slots=True)
class StatusOf:
    """Answers only the sender: what is asked is looked up under the asker's own DID."""

    store: InboxStore

    async def __call__(self, asker: Did, items: Sequence[StatusItem]) -> list[StatusAnswer]:
        """One answer an item, in order; what cannot be told is ``unknown``."""
        return [await self._one(asker, item) for item in items]

    async def _one(self, asker: Did, item: StatusItem) -> StatusAnswer:
        unknown = StatusAnswer(item.to, item.id, "unknown")
        try:
            inbox = parse_did(item.to).agent_key
            message_id = parse_message_id(item.id)
        except ValueError:
            return unknown
        question = Question(dedupe_key(asker, message_id), message_id_hour(message_id))
        [found] = await self.store.status(inbox, [question])
        return StatusAnswer(item.to, item.id, _STATE[found[0]]) if found else unknown
