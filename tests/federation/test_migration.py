"""An inbox changes relays over real sockets: what waits arrives once, and nobody delivers twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest

from relay.client.errors import AgentError
from relay.protocol import endpoint_record, migration_order
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import Home
from relay.protocol.envelope import SignedEnvelope
from relay.protocol.errors import ErrorCode, RelayError
from relay.protocol.frames import Ack, Acked, Deliver, Ruled, Rules, Submit, Submitted
from relay.protocol.ids import Eid
from relay.protocol.types import Mode
from tests.federation.linked_nodes import Place, places, record_of, relay_at
from tests.support.migration_steps import Traveller
from tests.support.nodes import RunningNode, Speaker, make_envelope, new_key, speaker
from tests.support.patience import within

pytestmark = pytest.mark.timeout(60)
CLOSES_MIGRATING = 4002


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

    async def submit(self, place: Place, made: Sequence[SignedEnvelope]) -> None:
        async with speaker(place.url, self.sender) as one:
            for at in range(0, len(made), 256):
                await one.say(Submit("s", [each.wire for each in made[at : at + 256]]))
                answer = await one.hear(Submitted)
                assert not answer.rejected, answer


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
        found += [(_eid(item.envelope), item.redelivered) for item in frame.items]
        await one.say(Ack(frame.epoch, frame.items[-1].seq))
        await one.hear(Acked)
    return found


def _eid(raw: object) -> Eid:
    from relay.protocol import envelope  # noqa: PLC0415

    return envelope.parse(raw, max_body_bytes=2**20).eid


async def until_empty(traveller: Traveller) -> None:
    async with within(20):
        while (await traveller.state(traveller.source)).counters.waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("federated", [True, False])
async def test_what_waits_moves_with_the_agent(federated):
    async with two(federated=federated) as world:
        made = await world.write(world.a, 600 if federated else 5)
        move = world.traveller()
        frozen = await move.move()
        assert (frozen.mode, frozen.counters.was) == (Mode.FROZEN, len(made))
        items = await move.inventory()
        async with speaker(world.b.url, world.agent) as one:
            found = await take_all(one, len(made))
        assert sorted(eid for eid, _ in found) == sorted(envelope.eid for envelope in made)
        assert not any(mark for _, mark in found)
        await until_empty(move)
        source, target = await move.state(move.source), await move.state(move.target)
        assert source.counters.is_balanced
        assert (source.counters.moved, source.record_names_target, source.digest_acked) == (
            len(made),
            True,
            True,
        )
        assert (target.counters.kept, target.mode) == (len(made), Mode.ACTIVE)
        if items:
            assert set(await move.find(items)) <= {"acked", "stored"}


async def test_what_was_acked_at_the_old_home_comes_marked_if_it_is_sent_again():
    async with two() as world:
        [seen] = await world.write(world.a, 1)
        async with speaker(world.a.url, world.agent, record=world.record) as one:
            assert await take_all(one, 1) == [(seen.eid, False)]
        move = world.traveller()
        await move.move()
        # its sender had no answer, and has learned where the agent lives now
        await world.submit(world.b, [seen])
        [fresh] = await world.write(world.b, 1, first=1)
        async with speaker(world.b.url, world.agent) as one:
            assert await take_all(one, 2) == [(seen.eid, True), (fresh.eid, False)]


async def test_what_was_handed_over_and_not_acked_comes_marked():
    async with two() as world:
        made = await world.write(world.a, 3)
        async with speaker(world.a.url, world.agent, record=world.record) as one:
            frame = await one.hear(Deliver)
            assert len(frame.items) == len(made)
            move = world.traveller()
            await move.move()
            assert await one.closed() == CLOSES_MIGRATING
        async with speaker(world.b.url, world.agent) as one:
            assert await take_all(one, 3) == [(envelope.eid, True) for envelope in made]


async def test_a_frozen_inbox_takes_mail_and_hands_it_over():
    async with two() as world:
        move = world.traveller()
        await move.prepare()
        await move.freeze()
        early = [*await world.write(world.a, 2), *await world.write(world.b, 2, first=2)]
        with pytest.raises(RelayError) as no:
            async with speaker(world.a.url, world.agent, record=world.record):
                pass
        assert no.value.code is ErrorCode.MIGRATING
        await move.publish(move.target)
        await move.publish(move.source)
        async with speaker(world.b.url, world.agent) as one:
            found = await take_all(one, 4)
        assert sorted(found) == sorted((envelope.eid, False) for envelope in early)
        await until_empty(move)
        tally = (await move.state(move.source)).counters
        assert (tally.was, tally.late, tally.moved) == (0, 2, 2)


async def test_moving_back_brings_everything_back_unmarked():
    async with two() as world:
        made = await world.write(world.a, 20)
        there = world.traveller()
        await there.move()
        await until_empty(there)
        late = await world.write(world.b, 5, first=20)
        back = world.traveller(back=True, newest=there.record)
        await back.move()
        await until_empty(back)
        async with speaker(world.a.url, world.agent) as one:
            found = await take_all(one, 25)
        assert found == [(envelope.eid, False) for envelope in (*made, *late)]
        assert (await back.state(back.source)).counters.is_balanced


async def test_who_stays_after_a_freeze_gets_all_of_it_marked():
    async with two() as world:
        made = await world.write(world.a, 3)
        move = world.traveller()
        await move.prepare()
        await move.freeze()
        stays = record_of(world.agent, world.a, seq=endpoint_record.parse(move.record).seq)
        await move.publish(move.source, stays)
        async with speaker(world.a.url, world.agent, record=stays) as one:
            assert await take_all(one, 3) == [(envelope.eid, True) for envelope in made]
        # the target heard of it by gossip: what it took goes to where the agent lives
        [late] = await world.write(world.b, 1, first=3)
        async with speaker(world.a.url, world.agent, record=stays) as one:
            assert [eid for eid, _ in await take_all(one, 1)] == [late.eid]


async def test_without_the_old_relay_all_is_marked_until_it_says_what_was_seen():
    async with two() as world:
        made = await world.write(world.a, 3)
        move = world.traveller()
        await move.publish(move.target)
        async with speaker(world.b.url, world.agent) as one:
            found = await take_all(one, 3)
            assert sorted(eid for eid, _ in found) == sorted(envelope.eid for envelope in made)
            await until_known(move)
            [late] = await world.write(world.b, 1, first=4)
            assert await take_all(one, 1) == [(late.eid, False)]


async def test_rules_and_contacts_move_along():
    async with two() as world:
        friend, foe = new_key(), new_key()
        await world.write(world.a, 1)
        async with speaker(world.a.url, world.agent, record=world.record) as one:
            await one.say(Rules("r", "refuse", (friend.did,), (foe.did,)))
            await one.hear(Ruled)
            await one.say(Submit("s", [make_envelope(world.agent, world.sender.did).wire]))
            await one.hear(Submitted)
        move = world.traveller()
        await move.move()
        async with speaker(world.b.url, world.agent) as one:
            await one.say(Rules("r"))
            ruled = await one.hear(Ruled)
        assert (ruled.first_contact, ruled.allow, ruled.deny) == (
            "refuse",
            (friend.did,),
            (foe.did,),
        )
        # the one that the agent has written to
        await world.write(world.b, 1, first=1)


# ---------------------------------------------------------------- who may do what


async def test_an_order_is_for_its_two_relays_in_its_turn():
    async with two() as world:
        first = world.traveller()
        second = world.traveller(order_seq=migration_order.parse(first.order).seq)
        await second.prepare()
        with pytest.raises(AgentError) as no:
            await first.prepare()
        assert no.value.code is ErrorCode.STALE_RECORD
        with pytest.raises(AgentError) as no:
            await second.step(second.source, "prepare", {"count": 0, "bytes": 0, "largest": 0,
                                                         "newest": world.record})  # fmt: skip
        assert no.value.code is ErrorCode.WRONG_RELAY
        with pytest.raises(AgentError) as no:
            await second.step(second.target, "freeze", {})
        assert no.value.code is ErrorCode.WRONG_RELAY


async def test_a_strangers_order_moves_nobody():
    async with two() as world:
        stranger = new_key()
        forged = Traveller(stranger, _home(world.a), _home(world.b), record_of(stranger, world.a))
        with pytest.raises(AgentError) as no:
            await forged.freeze()
        assert no.value.code is ErrorCode.WRONG_STATE
        async with speaker(world.a.url, world.agent, record=world.record):
            pass


@pytest.mark.parametrize(
    ("room", "code"),
    [
        ((20_000, 0, 0), ErrorCode.INBOX_FULL),
        ((1, 2**30, 0), ErrorCode.INBOX_FULL),
        ((1, 2**20, 2**23), ErrorCode.TOO_LARGE),
    ],
)
async def test_what_has_no_room_is_refused_before_anything_happens(room, code):
    async with two() as world:
        move = world.traveller()
        for step in (move.offer, move.prepare):
            with pytest.raises(AgentError) as no:
                await step(*room)
            assert no.value.code is code
        async with speaker(world.a.url, world.agent, record=world.record):
            pass


async def test_a_relay_without_peers_takes_part_in_no_move():
    async with two(federated=False, federation="off") as world:
        move = world.traveller()
        for step in (move.prepare, move.freeze):
            with pytest.raises(AgentError) as no:
                await step()
            assert no.value.code is ErrorCode.NOT_FEDERATED


async def until_known(move: Traveller) -> None:
    async with within(20):
        while (await move.state(move.target)).awaiting_digests:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
