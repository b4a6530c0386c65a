"""Senders that go on while their recipients move: stale ones, and one that uses both relays.

A stale sender knows its own relay and nothing else; it never looks up its recipient's home.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from random import Random
from typing import Any

from websockets.asyncio.client import ClientConnection

from relay.client.http import origin as origins
from relay.client.http.transport import request_json
from relay.protocol import (
    endpoint_record,
    envelope,
    frames,
)
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import Home
from relay.protocol.ids import (
    Did,
    Timestamp,
)
from relay.protocol.receipts import verify_receipt
from tests.chaos.agents import Agent
from tests.chaos.checker import ends_of
from tests.chaos.incoming import Incoming
from tests.chaos.ledger import Ledger
from tests.chaos.restarting_relay import RelayProcess
from tests.chaos.traffic_plan import (
    POISON,
    Habits,
    Letter,
)

POISONED = 0.02
LOOK_S = 0.1
STEADY = Habits(window=16, batch=4, replays=0.02, holds=0, picks=0, takeovers=0, drops=0)


class Letters(Iterator[Letter]):
    """Letters at a rate; while there is none it ends, and goes on later.

    Args:
        inboxes: to whom.
        rng: draws to whom, and which are poison.
        rate: of them, a second.
    """

    def __init__(self, inboxes: Sequence[Did], rng: Random, rate: float) -> None:
        self.flows = False
        self._inboxes = inboxes
        self._rng = rng
        self._pause_s = 1 / rate
        self._due = time.monotonic()
        self._count = 0

    def __next__(self) -> Letter:
        now = time.monotonic()
        if not self.flows or now < self._due:
            raise StopIteration
        self._due = max(self._due + self._pause_s, now - 2 * self._pause_s)
        self._count += 1
        rng = self._rng
        kind = POISON if rng.random() < POISONED else b"food"
        return Letter(
            rng.choice(self._inboxes), b"%b %d %b" % (kind, self._count, rng.randbytes(32))
        )


class AnyRelay(Incoming):
    """An inbox to which any relay may tell how an envelope ended: that is where it ended."""

    relays: frozenset[Did] = frozenset()

    def _look_closely(self, item: object, relay: Did) -> bool:
        by = envelope.parse(item).sender.did
        return super()._look_closely(item, by if by in self.relays else relay)


class StaleSender(Agent):
    """Sends by the wire through one relay, at the pace of its letters.

    Args:
        relays: all there are.
        values: as of any agent.
    """

    def __init__(self, relays: Iterable[Did], *values: Any, **options: Any) -> None:
        super().__init__(*values, **options)
        mine = self.incoming
        self.incoming = AnyRelay(mine.did, mine.ledger, mine.rng, mine.habits)
        self.incoming.relays = frozenset(relays)

    async def _hear(self, socket: ClientConnection, relay: Did) -> None:
        try:
            async with asyncio.timeout(LOOK_S):
                data = await socket.recv(decode=False)
        except TimeoutError:
            return
        self._take(frames.parse(data, "relay"), relay)


async def publish(key: SigningKey, relay: RelayProcess) -> None:
    """Its first record: it lives there."""
    record = endpoint_record.sign(
        key, [Home(Did(relay.did), relay.url)], now=Timestamp(time.time())
    )
    origin = origins.parse(relay.url)
    await request_json(origin, "PUT", f"/v1/agents/{key.did}", body={"record": record})


async def repeat_elsewhere(
    ledger: Ledger, relay: RelayProcess, inboxes: Sequence[Did], rng: Random, most: int
) -> int:
    """Submit at another relay what was acked already, as a sender does that heard no receipt.

    Gives how many were taken there. They may come a second time, with a mark.
    """
    ended = [eid for (agent, eid), how in ends_of(ledger).items() if how == "acked"]
    known = [ledger.sent[eid] for eid in ended if eid in ledger.sent]
    mine = [sent for sent in known if sent.envelope.to in inboxes]
    some = rng.sample(mine, min(most, len(mine)))
    if not some:
        return 0
    wires = [json.loads(sent.envelope.wire) for sent in some]
    answer = await request_json(
        origins.parse(relay.url), "POST", "/v1/envelopes", body={"envelopes": wires}
    )
    if not answer.has("receipt"):
        return 0
    receipt = verify_receipt(answer.text("receipt", limit=2**20), Did(relay.did))
    for item in receipt.items:
        ledger.receipt(item.eid, item.to, durability=receipt.durability, dup=item.dup)
    return sum(not item.dup for item in receipt.items)
