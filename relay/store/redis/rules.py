"""Rules of inboxes and whom they know, each in its inbox's partition (GUARANTEES.md R7)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from relay.inbox.model.store_contract import too_many_rules
from relay.inbox.model.types import (
    InboxLimits,
    RulesNow,
    RulesPatch,
)
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
    RelayError,
)
from relay.protocol.ids import (
    AgentKey,
    Fence,
    Partition,
)
from relay.store.redis.inboxes import broken, refusal_of
from relay.store.redis.partitions import Partitions

_LISTS = 5
"""Where the lists begin in a reply of change_rules.lua."""


class RedisRules:
    """Rules and contacts; see :class:`relay.inbox.ports.RuleStore`."""

    def __init__(self, partitions: Partitions, limits: InboxLimits) -> None:
        self._partitions = partitions
        self._limits = limits

    async def change(self, inbox: AgentKey, fence: Fence, patch: RulesPatch) -> RulesNow | Refusal:
        """Change the rules of an inbox, by its session, or just read them."""
        marks = [("-", one) for one in patch.forget]
        marks += [("A", one) for one in patch.allow] + [("D", one) for one in patch.deny]
        args = [inbox, fence, self._limits.rules, patch.first_contact or "", *chain(*marks)]
        reply = await self._partitions.call("change_rules", self._partitions.of(inbox), args)
        if reply[0] != inbox.encode():
            return broken("rules")
        if reply[1] == b"too_many":
            return too_many_rules(self._limits)
        return _ruled(reply) if reply[1] == b"ruled" else refusal_of(reply)

    async def add_contacts(self, pairs: Sequence[tuple[AgentKey, AgentKey]]) -> list[bool]:
        """Note whom agents have written to; False where there is no such inbox."""
        return await self._partitions.spread(pairs, lambda pair: pair[0], self._add_contacts)

    async def _add_contacts(
        self, part: Partition, pairs: Sequence[tuple[AgentKey, AgentKey]]
    ) -> list[bool]:
        args = [self._limits.contacts, *chain(*pairs)]
        replies = await self._partitions.call("add_contacts", part, args)
        for pair, reply in zip(pairs, replies, strict=True):
            if reply[0] != pair[0].encode():
                raise RelayError(ErrorCode.INTERNAL, "store: a reply speaks of another inbox")
        return [reply[1] == 1 for reply in replies]


def _ruled(reply: Any) -> RulesNow:
    names = [AgentKey(name.decode()) for name in reply[_LISTS:]]
    allowed = reply[_LISTS - 1]
    return RulesNow(
        first_contact="refuse" if reply[2] == b"refuse" else "accept",
        allow=frozenset(names[:allowed]),
        deny=frozenset(names[allowed:]),
        contacts=reply[3],
    )
