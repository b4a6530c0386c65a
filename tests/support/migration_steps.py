"""The steps of a migration over plain HTTP, for tests that stop between any two of them.

A refusal raises :class:`AgentError` with its code. Nothing is repeated here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from relay.client.http import origin as origins
from relay.client.http.transport import request_json
from relay.protocol import endpoint_record, migration_order, migration_statement
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import Home
from relay.protocol.ids import Did, Timestamp
from relay.protocol.migration_statement import MigrationStatement


@dataclass
class Traveller:
    """An agent that moves its inbox from one relay to another.

    Args:
        key: whose inbox.
        source: where it lives.
        target: where it goes.
        newest: its record as it is now.
    """

    key: SigningKey
    source: Home
    target: Home
    newest: str
    order_seq: int = 0
    record: str = field(init=False)
    order: str = field(init=False)

    def __post_init__(self) -> None:
        now = Timestamp(time.time())
        seq = endpoint_record.parse(self.newest).seq
        self.record = endpoint_record.sign(self.key, [self.target], now=now, newest_seq=seq)
        self.order = migration_order.sign(
            self.key,
            self.source,
            self.target,
            self.record,
            now=now,
            entropy=os.urandom,
            newest_seq=self.order_seq,
        )

    @property
    def id(self) -> str:
        """Of the hand-off."""
        return migration_order.parse(self.order).id

    # ------------------------------------------------------------ steps

    async def offer(self, count: int = 0, size: int = 0, largest: int = 0) -> MigrationStatement:
        return await self._stated(self.target, "offer", _room(count, size, largest))

    async def prepare(self, count: int = 0, size: int = 0, largest: int = 0) -> MigrationStatement:
        room = {**_room(count, size, largest), "newest": self.newest}
        return await self._stated(self.target, "prepare", room)

    async def freeze(self) -> MigrationStatement:
        return await self._stated(self.source, "freeze", {})

    async def state(self, at: Home) -> MigrationStatement:
        return await self._stated(at, "state", {})

    async def publish(self, at: Home, record: str = "") -> Any:
        """Publish the record that ends the move, or another one."""
        body = {"record": record or self.record}
        return await request_json(_origin(at), "PUT", f"/v1/agents/{self.key.did}", body=body)

    async def inventory(self) -> list[list[Any]]:
        """All that waits at the source: [seq, eid, hour, key, size, expires] each."""
        items: list[list[Any]] = []
        while True:
            after = items[-1][0] if items else 0
            answer = await self.step(self.source, "inventory", {"after": after})
            items += answer.array("items", limit=1024)
            if not answer.boolean("more"):
                return items

    async def find(self, items: list[list[Any]]) -> list[str]:
        """Return what became of these at the target."""
        states: list[str] = []
        for at in range(0, len(items), 1024):
            asked = [[hour, key, eid] for _, eid, hour, key, *_ in items[at : at + 1024]]
            answer = await self.step(self.target, "find", {"items": asked})
            states += answer.array("states", limit=1024)
        return states

    async def move(self) -> MigrationStatement:
        """Take all steps but the login; return the source's statement once the target knows."""
        await self.prepare()
        said = await self.freeze()
        assert said.digest_acked, said.reason
        await self.publish(self.target)
        await self.publish(self.source)
        return said

    # ------------------------------------------------------------ wire

    async def step(self, at: Home, name: str, members: Mapping[str, Any]) -> Any:
        body = {"order": self.order, "step": name, **members}
        return await request_json(_origin(at), "POST", "/v1/migrations", body=body, timeout_s=20)

    async def _stated(self, at: Home, name: str, members: Mapping[str, Any]) -> MigrationStatement:
        answer = await self.step(at, name, members)
        return migration_statement.verify(
            answer.text("statement", limit=migration_statement.MAX_STATEMENT_BYTES), Did(at.did)
        )


def _room(count: int, size: int, largest: int) -> dict[str, int]:
    return {"count": count, "bytes": size, "largest": largest}


def _origin(home: Home) -> origins.Origin:
    return origins.parse(home.url)
