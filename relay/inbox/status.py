"""Status: a sender asks what became of its envelopes (PROTOCOL.md §5 ``status``).

Rules of the file: it answers only the sender, or a peer that knows sender, recipient and id; what
another relay took over is asked of that relay for a local sender, and where it does not answer in
time, ``forwarded`` is what is known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from relay.forwarding.routing import Routing
from relay.inbox.model.types import (
    Disposition,
)
from relay.inbox.ports import InboxStore
from relay.peering.link import Link
from relay.peering.links import Links
from relay.protocol import frames
from relay.protocol.did import (
    did_of,
    parse_did,
)
from relay.protocol.envelope import dedupe_key
from relay.protocol.errors import RelayError
from relay.protocol.ids import (
    AgentKey,
    Did,
    message_id_hour,
    parse_message_id,
)
from relay.protocol.jws import b64encode
from relay.protocol.types import (
    DedupKey,
)
from relay.tasks import side_by_side

FOLLOW_S: Final = 3.0
STATES: Final[dict[Disposition, frames.State]] = {
    Disposition.STORED: "stored",
    Disposition.ACKED: "acked",
    Disposition.REFUSED: "refused",
    Disposition.EXPIRED: "expired",
    Disposition.CORRUPT: "corrupt",
    Disposition.MOVED: "moved",
    Disposition.FORWARDED: "forwarded",
    Disposition.DOUBTFUL: "unknown",
}
_FINAL: Final = frozenset({"acked", "refused", "expired", "corrupt"})


@dataclass(frozen=True, slots=True)
class StatusOf:
    """Answers only the sender: what is asked is looked up under the asker's own DID.

    A peer asks for the senders whose envelopes it brought: it names them, and the ids, which nobody
    else can guess.
    """

    store: InboxStore
    links: Links | None = None
    routing: Routing | None = None

    async def __call__(
        self, asker: Did | None, items: Sequence[frames.StatusItem]
    ) -> list[frames.StatusAnswer]:
        """One answer an item, in order; what cannot be told is ``unknown``; no asker: a peer."""
        answers = [frames.StatusAnswer(item.to, item.id, "unknown") for item in items]
        asked: dict[AgentKey, dict[int, DedupKey]] = {}
        for place, item in enumerate(items):
            sender = asker or item.sender
            if sender is None:
                continue
            try:
                inbox = parse_did(item.to).agent_key
                message_id = parse_message_id(item.id)
            except ValueError:
                continue
            question = DedupKey(dedupe_key(sender, message_id), message_id_hour(message_id))
            asked.setdefault(inbox, {})[place] = question
        for inbox, questions in asked.items():
            found = await self.store.status(inbox, list(questions.values()))
            for place, one in zip(questions, found, strict=True):
                if one is None:
                    continue
                answers[place] = replace(answers[place], state=STATES[one.fate])
                if one.forwarded is not None:
                    peer, receipt = did_of(one.forwarded.peer), b64encode(one.forwarded.receipt)
                    answers[place] = replace(answers[place], peer=peer, receipt=receipt)
        return answers

    async def follow(
        self, asker: Did, items: Sequence[frames.StatusItem]
    ) -> list[frames.StatusAnswer]:
        """As a call, and what became of those that another relay took over, as that one says."""
        answers = await self(asker, items)
        by_peer: dict[Did, list[int]] = {}
        for place, answer in enumerate(answers):
            if answer.state == "forwarded" and answer.peer is not None:
                by_peer.setdefault(answer.peer, []).append(place)
        said = await side_by_side(
            self._ask(peer, asker, [items[at] for at in places]) for peer, places in by_peer.items()
        )
        for places, theirs in zip(by_peer.values(), said, strict=True):
            for place, state in zip(places, theirs, strict=False):
                if state in _FINAL:
                    answers[place] = replace(answers[place], state=state)
        return answers

    async def _ask(
        self, peer: Did, asker: Did, items: Sequence[frames.StatusItem]
    ) -> list[frames.State]:
        """What a peer says; nothing where it does not, or says it of something else."""
        named = tuple(frames.StatusItem(item.to, item.id, asker) for item in items)
        try:
            async with asyncio.timeout(FOLLOW_S):
                link = await self._link(peer, items)
                answer = await link.ask(lambda ref: frames.Status(ref, named)) if link else None
        except (RelayError, TimeoutError):
            return []
        if not isinstance(answer, frames.Statuses):
            return []
        pairs = [(one.to, one.id) for one in answer.items]
        return (
            [one.state for one in answer.items]
            if pairs == [(item.to, item.id) for item in items]
            else []
        )

    async def _link(self, peer: Did, items: Sequence[frames.StatusItem]) -> Link | None:
        """A link to the peer: one that is up, or one to where a recipient's record says it is."""
        if self.links is None or self.routing is None:
            return None
        for link in self.links.live():
            if link.peer == peer:
                return link
        for item in items:
            for home in await self.routing.all(item.to):
                if home.did == peer:
                    return await self.links.reach(home.did, home.url)
        return None
