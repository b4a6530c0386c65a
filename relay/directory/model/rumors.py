"""Decide which news a relay pushes to which peers (PROTOCOL.md §5.10).

A relay passes each record on once, to a few random peers, and then forgets it ("infect and die").
Anti-entropy brings it to the peers that were missed, so a dropped rumor is only late. A record that
was published here goes to every linked peer: three peers of twenty could all fail to pass it on.

Entry points: :class:`Rumors` and :func:`pack_records`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from relay.peering.model.membership import GOSSIP_FANOUT, MAX_DESIRED_LINKS
from relay.protocol import frames
from relay.protocol.ids import AgentKey, Did

MAX_RUMORS: Final = 10_000
PUSHED_PER_S: Final = 200.0
"""Unsolicited records that a relay takes from each peer."""
PUSHED_BURST: Final = 400.0
MAX_PUSHED_RECORDS: Final = 100
"""Per push; pushes come every 0.5 s, so no peer exceeds its allowance."""
_FRAME_BYTES: Final = 64
_RECORD_BYTES: Final = 3  # two quotes and a comma

Sample = Callable[[Sequence[Did], int], Sequence[Did]]
"""``sample(peers, k)`` returns k random peers, or all of them if there are fewer."""


class _Rumor(NamedTuple):
    compact: str
    not_to: Did | None


class Rumors:
    """Records that this node has not passed on yet: bounded, one per agent, oldest first.

    Args:
        limit: maximum number of agents; further records are dropped and counted.
        fanout: number of peers that get a record which another peer sent.
    """

    def __init__(self, limit: int = MAX_RUMORS, fanout: int = GOSSIP_FANOUT) -> None:
        self._fanout = fanout
        self._limit = limit
        self._rumors: dict[AgentKey, _Rumor] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._rumors)

    def add(self, agent: AgentKey, compact: str, *, not_to: Did | None = None) -> bool:
        """Queue a record in place of an older one of its agent; return False if it was dropped.

        Args:
            agent: the owner of the record.
            compact: the signed record, verified and stored.
            not_to: the peer that sent it; None if it was published here.
        """
        if agent not in self._rumors and len(self._rumors) >= self._limit:
            self.dropped += 1
            return False
        self._rumors[agent] = _Rumor(compact, not_to)
        return True

    def pop_frames(
        self, peers: Sequence[Did], sample: Sample, limit: int = MAX_PUSHED_RECORDS
    ) -> list[tuple[Did, frames.Gossip]]:
        """Return the frames to push now, and forget the records in them.

        Args:
            peers: the linked peers; without any, nothing is removed.
            sample: chooses peers at random.
            limit: maximum number of records, so that no peer exceeds its allowance.
        """
        if not peers:
            return []
        queues: dict[Did, list[str]] = {}
        for agent in list(self._rumors)[:limit]:
            rumor = self._rumors.pop(agent)
            others = [peer for peer in peers if peer != rumor.not_to]
            fanout = MAX_DESIRED_LINKS if rumor.not_to is None else self._fanout
            for peer in sample(others, min(fanout, len(others))):
                queues.setdefault(peer, []).append(rumor.compact)
        return [
            (peer, frame) for peer, records in queues.items() for frame in pack_records(records)
        ]


def pack_records(records: Sequence[str], ref: str | None = None) -> list[frames.Gossip]:
    """Return gossip frames that hold the records in order, each within the frame's bounds."""
    packed: list[frames.Gossip] = []
    part: list[str] = []
    size = _FRAME_BYTES
    for compact in records:
        cost = len(compact) + _RECORD_BYTES
        if part and (
            size + cost > frames.MAX_GOSSIP_BYTES or len(part) == frames.MAX_GOSSIP_RECORDS
        ):
            packed.append(frames.Gossip(tuple(part), ref=ref))
            part, size = [], _FRAME_BYTES
        part.append(compact)
        size += cost
    if part:
        packed.append(frames.Gossip(tuple(part), ref=ref))
    return packed
