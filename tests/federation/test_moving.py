"""An inbox changes relays over real sockets: what waits arrives once, and nobody delivers twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest

from relay.core.envelope import SignedEnvelope
from relay.core.frames import Ack, Deliver, Submit, Submitted
from relay.core.identity import SigningKey
from relay.core.ids import Eid
from relay.core.migration_values import Mode
from relay.core.records import Home
from tests.federation.relays import Place, places, record_of, relay_at
from tests.support.nodes import RunningNode, Speaker, make_envelope, new_key, speaker
from tests.support.steps import Traveller

pytestmark = pytest.mark.timeout(60)


@dataclass
class Two:
    """Two relays, an agent that lives at the first, and one that writes to it."""

    a: Place
    b: Place
    at_a: RunningNode
    at_b: RunningNode
    agent: SigningKey
    sender: SigningKey
    record: str

    def traveller(self, *, back: bool = False, newest: str = "", order_seq: int = 0) -> Traveller:
        source, target = (self.b, self.a) if back else (self.a, self.b)
        return Traveller(self.agent, _home(source), _home(target), newest or self.record, order_seq)

    async def write(self, place: Place, count: int, first: int = 0) -> list[SignedEnvelope]:
        """Send so many to the agent, through one relay; all are taken."""
        made = [
            make_envelope(self.sender, self.agent.did, str(n).encode())
            for n in range(first, first + count)
        ]
        await self.submit(place, made)
        return made

    async def submit(self, place: Place, made: Sequence[SignedEnvelope]) -> Submitted:
        async with speaker(place.url, self.sender) as one:
            await one.say(Submit("s", [envelope.wire for envelope in made]))
            answer = await one.hear(Submitted)
            assert not answer.rejected, answer
            return answer


def _home(place: Place) -> Home:
    return Home(place.did, place.url)


@contextlib.asynccontextmanager
async def two(*, federated: bool = True, **values) -> AsyncIterator[Two]:
    a, b = places(2)
    agent, sender = new_key(), new_key()
    peers_a, peers_b = ([b], [a]) if federated else ([], [])
    async with relay_at(a, peers_a, **values) as at_a, relay_at(b, peers_b, **values) as at_b:
        record = record_of(agent, a)
        async with speaker(a.url, agent, record=record):
            pass
        yield Two(a, b, at_a, at_b, agent, sender, record)


async def take_all(one: Speaker, count: int) -> list[tuple[Eid, bool]]:
    """So many envelopes, acked; their eids and marks."""
    found: list[tuple[Eid, bool]] = []
    while len(found) < count:
        frame = await one.hear(Deliver)
        for item in frame.items:
            found.append((_eid(item.envelope), item.redelivered))
        await one.say(Ack(frame.epoch, frame.items[-1].seq))
    return found


def _eid(raw: object) -> Eid:
    from relay.core import envelope  # noqa: PLC0415

    return envelope.parse(raw, max_body_bytes=2**20).eid


async def until_empty(world: Two, traveller: Traveller) -> None:
    async with asyncio.timeout(20):
        while (await traveller.state(traveller.source)).tally.waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("federated", [True, False])
async def test_what_waits_moves_with_the_agent(federated):
    async with two(federated=federated) as world:
        made = await world.write(world.a, 600 // 1 if federated else 5)
        move = world.traveller()
        frozen = await move.move()
        assert (frozen.mode, frozen.tally.was) == (Mode.FROZEN, len(made))
        items = await move.inventory()
        async with speaker(world.b.url, world.agent) as one:
            found = await take_all(one, len(made))
        assert sorted(eid for eid, _ in found) == sorted(envelope.eid for envelope in made)
        assert not any(mark for _, mark in found)
        await until_empty(world, move)
        source, target = await move.state(move.source), await move.state(move.target)
        assert source.tally.is_balanced
        assert (source.tally.moved, source.named, source.handed) == (len(made), True, True)
        assert (target.tally.kept, target.mode) == (len(made), Mode.ACTIVE)
        if items:
            assert set(await move.find(items)) <= {"acked", "stored"}
