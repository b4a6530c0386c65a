"""Answer the questions of peers about the directory and about relays (PROTOCOL.md §5.10)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from relay import clock, metrics
from relay.directory.change_log import RecordChangeReader
from relay.directory.model import anti_entropy
from relay.directory.model.rumors import pack_records
from relay.limits import TokenBuckets
from relay.peering.exchange import PeerExchange
from relay.peering.model.reputation import MAX_PEERS
from relay.protocol import frames
from relay.protocol.ids import Did

QUESTIONS_PER_S: Final = 200.0
QUESTIONS_BURST: Final = 400.0
ITEMS_PER_QUESTION: Final = 64
"""An answer with more items counts as several questions."""


def _question_rate() -> TokenBuckets[Did]:
    return TokenBuckets(QUESTIONS_PER_S, QUESTIONS_BURST, MAX_PEERS)


@dataclass(slots=True)
class PeerQuestions:
    """Answers from this relay's own store, never by asking others.

    Args:
        changes: the index, and the store behind it.
        exchange: the relays that this one knows.
    """

    changes: RecordChangeReader
    exchange: PeerExchange
    _rate: TokenBuckets[Did] = field(default_factory=_question_rate)

    async def answer(self, peer: Did, question: frames.Digest | frames.Want) -> frames.Frame:
        """Return the answer; a peer that asks fast waits.

        Raises:
            RelayError: ``bad_frame`` or ``storage_unavailable``.
        """
        while wait_s := self._rate.try_acquire(peer, clock.monotonic()):  # noqa: ASYNC110  a rate
            await asyncio.sleep(wait_s)
        answer = await self._answer(peer, question)
        self._rate.charge(peer, _size(answer) // ITEMS_PER_QUESTION, clock.monotonic())
        return answer

    async def _answer(self, peer: Did, question: frames.Digest | frames.Want) -> frames.Frame:
        if not self.changes.is_current:
            # a node that has just started must not answer that it holds nothing
            await self.changes.read()
        index = self.changes.index
        match question:
            case frames.Want(ref=ref, view=True):
                return self.exchange.peers.view(peer, ref)
            case frames.Want(ref=ref, relays=True):
                return frames.Gossip(relays=self.exchange.known_relays(peer), ref=ref)
            case frames.Want(ref=ref, agents=agents) if agents:
                rows = await self.changes.store.get_many(agents)
                packed = pack_records([row.compact for row in rows if row is not None], ref)
                answer = packed[0] if packed else frames.Gossip(ref=ref)
                metrics.GOSSIP.labels("out", "asked").inc(len(answer.records))
                return answer
            case frames.Digest(bits=bits, buckets=buckets):
                for _ in index.prepare(bits, buckets):
                    await asyncio.sleep(0)
                return anti_entropy.answer(index, question)
            case _:
                return anti_entropy.answer(index, question)


def _size(answer: frames.Frame) -> int:
    match answer:
        case frames.Digests(items=items) | frames.Have(items=items):
            return len(items)
        case frames.Gossip(records=records, relays=relays):
            return len(records) + len(relays)
        case _:
            return 0
