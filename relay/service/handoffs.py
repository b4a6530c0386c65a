"""Hand-offs: an inbox changes relays, seen from either of the two (GUARANTEES.md §3).

Rules of the file: :mod:`relay.core.migration` decides, the store takes each step in one commit if
nobody else took one meanwhile, and whatever is said is said afterwards. Every step may be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from relay.core.frames import State
from relay.core.frames_migrate import Migrate, Migrated
from relay.core.ids import AgentKey, Did, Eid, Seq
from relay.core.inbox_values import Question, Waiting
from relay.core.orders import MigrationOrder


class Room(NamedTuple):
    """What an agent says it will bring: envelopes, wire bytes of all, and of the largest."""

    count: int
    bytes: int
    largest: int


class Handoffs:
    """See the module."""

    @property
    def partners(self) -> frozenset[Did]:
        """Relays that may talk with this one about some hand-off, whatever the federation."""
        raise NotImplementedError

    async def refresh(self) -> None:
        """Look at what is open, and at what time does to it."""
        raise NotImplementedError

    async def settle(self, owner: AgentKey) -> None:
        """Act upon the newest record held of an agent, if an inbox here is concerned."""
        raise NotImplementedError

    async def offer(self, order: MigrationOrder, room: Room) -> str:
        """Whether :meth:`prepare` would be taken; gives a signed statement."""
        raise NotImplementedError

    async def prepare(self, order: MigrationOrder, room: Room, newest: str) -> str:
        """Get ready as the target; gives a signed statement."""
        raise NotImplementedError

    async def freeze(self, order: MigrationOrder) -> str:
        """Stop delivering as the source; gives a signed statement, within 10 s."""
        raise NotImplementedError

    async def state(self, order: MigrationOrder) -> str:
        """How the hand-off stands here, signed."""
        raise NotImplementedError

    async def inventory(self, order: MigrationOrder, after: Seq) -> Sequence[Waiting]:
        """What waits here behind ``after``."""
        raise NotImplementedError

    async def find(
        self, order: MigrationOrder, items: Sequence[tuple[Question, Eid]]
    ) -> Sequence[State]:
        """What became of these here."""
        raise NotImplementedError

    async def hear(self, peer: Did, said: Migrate) -> Migrated:
        """Take a page of a digest from a relay that has proven itself."""
        raise NotImplementedError

    async def may_bring(self, peer: Did, agent: AgentKey, handoff: str) -> bool:
        """Whether what this relay brings is part of a hand-off: past rules and quotas."""
        raise NotImplementedError
