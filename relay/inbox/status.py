"""Status: a sender asks what became of its envelopes (PROTOCOL.md §5 ``status``).

Only the sender gets an answer, or a peer that names sender, recipient and id. For a local sender
this relay also asks the peer that took an envelope over. Without an answer in time the state stays
``forwarded``.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from relay.inbox.model.types import Disposition
from relay.inbox.ports import InboxStore
from relay.protocol import frames
from relay.protocol.did import did_of, parse_did
from relay.protocol.envelope import dedupe_key
from relay.protocol.ids import AgentKey, Did, message_id_hour, parse_message_id
from relay.protocol.jws import b64encode
from relay.protocol.types import DedupKey
from relay.tasks import side_by_side

QueryPeer = Callable[
    [Did, Did, Sequence[frames.StatusItem]], Coroutine[Any, Any, Sequence[frames.State]]
]
"""Asks a peer for the envelopes of a sender; returns a state for each, or none at all."""

STATES: Final[dict[Disposition, frames.State]] = {
    Disposition.STORED: "stored",
    Disposition.ACKED: "acked",
    Disposition.REFUSED: "refused",
    Disposition.EXPIRED: "expired",
    Disposition.CORRUPT: "corrupt",
    Disposition.MOVED: "moved",
    Disposition.FORWARDED: "forwarded",
    Disposition.MAYBE_SEEN: "unknown",
}
_FINAL: Final = frozenset({"acked", "refused", "expired", "corrupt"})


@dataclass(frozen=True, slots=True)
class StatusQueries:
    """Answers status queries.

    Args:
        store: inboxes.
        query_peer: asks the peer that took an envelope over.
    """

    store: InboxStore
    query_peer: QueryPeer | None = None

    async def local(
        self, sender: Did | None, items: Sequence[frames.StatusItem]
    ) -> list[frames.StatusAnswer]:
        """Return an answer for each item, in order; ``unknown`` where nothing is known.

        Args:
            sender: who asks; None for a peer, whose items name the senders.
            items: the envelopes, by recipient and id. Nobody else can guess the ids.
        """
        answers = [frames.StatusAnswer(item.to, item.id, "unknown") for item in items]
        asked: dict[AgentKey, dict[int, DedupKey]] = {}
        for place, item in enumerate(items):
            author = sender or item.sender
            if author is None:
                continue
            try:
                inbox = parse_did(item.to).agent_key
                message_id = parse_message_id(item.id)
            except ValueError:
                continue
            question = DedupKey(dedupe_key(author, message_id), message_id_hour(message_id))
            asked.setdefault(inbox, {})[place] = question
        for inbox, questions in asked.items():
            found = await self.store.status(inbox, list(questions.values()))
            for place, one in zip(questions, found, strict=True):
                if one is None:
                    continue
                answers[place] = replace(answers[place], state=STATES[one.disposition])
                if one.forwarded is not None:
                    peer, receipt = did_of(one.forwarded.peer), b64encode(one.forwarded.receipt)
                    answers[place] = replace(answers[place], peer=peer, receipt=receipt)
        return answers

    async def query_remote(
        self, sender: Did, items: Sequence[frames.StatusItem]
    ) -> list[frames.StatusAnswer]:
        """Return the same for a local sender, with the final states that peers report."""
        answers = await self.local(sender, items)
        if self.query_peer is None:
            return answers
        by_peer: dict[Did, list[int]] = {}
        for place, answer in enumerate(answers):
            if answer.state == "forwarded" and answer.peer is not None:
                by_peer.setdefault(answer.peer, []).append(place)
        reports = await side_by_side(
            self.query_peer(peer, sender, [items[at] for at in places])
            for peer, places in by_peer.items()
        )
        for places, states in zip(by_peer.values(), reports, strict=True):
            for place, state in zip(places, states, strict=False):
                if state in _FINAL:
                    answers[place] = replace(answers[place], state=state)
        return answers
