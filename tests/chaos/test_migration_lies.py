"""Liars on either side, and strangers, can delay a migration and cause marks, nothing else.

The honest relay is a real one over real sockets. The liar is a relay by hand, or a real one without
one promise. No lie may lose anything that was promised.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from relay.client import AgentError
from relay.protocol import (
    endpoint_record,
    migration_order,
    migration_statement,
)
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import Home
from relay.protocol.envelope import SignedEnvelope
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
)
from relay.protocol.frames import (
    Ack,
    Acked,
    Deliver,
    Error,
    Migrated,
    Submit,
    Submitted,
)
from relay.protocol.ids import (
    Did,
    Timestamp,
)
from relay.protocol.migration_statement import (
    MigrationStatement,
)
from relay.protocol.types import (
    Mode,
)
from tests.chaos.lying_source import Liar, doubt, lying_source
from tests.federation.linked_nodes import (
    Place,
    peer,
    places,
    relay_at,
)
from tests.support.broken_rules import each
from tests.support.mesh import mesh
from tests.support.migration_steps import Traveller
from tests.support.nodes import RunningNode, Speaker, make_envelope, new_key, speaker
from tests.support.patience import wait_until

pytestmark = pytest.mark.timeout(60)


@contextlib.asynccontextmanager
async def lied_to() -> AsyncIterator[tuple[RunningNode, Liar]]:
    """A real relay in closed federation, to which an agent moves from a liar."""
    [place] = places(1)
    async with relay_at(place) as node, lying_source(node, home_of(place)) as liar:
        yield node, liar


def home_of(place: Place) -> Home:
    return Home(place.did, place.url)


async def send(node: RunningNode, sender: SigningKey, *letters: SignedEnvelope) -> Submitted:
    async with speaker(node.url, sender) as who:
        await who.say(Submit("1", [letter.wire for letter in letters]))
        found: Submitted = await who.hear(Submitted)
        return found


async def arrive(liar: Liar) -> None:
    """Publish the record at the target."""
    await liar.me.publish(liar.me.target)


async def take(node: RunningNode, key: SigningKey, count: int) -> dict[bytes, bool]:
    """Take and ack so many; return the body of each, and whether it was marked."""
    taken: dict[bytes, bool] = {}
    async with speaker(node.url, key) as who:
        while len(taken) < count:
            frame = await who.hear(Deliver)
            taken |= {item.envelope["body"].encode(): item.redelivered for item in frame.items}
            await ack(who, frame)
        await who.hear(Acked)
    return taken


async def ack(who: Speaker, frame: Deliver) -> None:
    epoch = who.ready.welcome.epoch
    assert epoch is not None
    await who.say(Ack(epoch, frame.items[-1].seq))


async def pending(node: RunningNode, key: SigningKey) -> int:
    async with speaker(node.url, key) as who:
        count: int = who.ready.welcome.pending.count
        return count


def letters(sender: SigningKey, to: SigningKey, *bodies: bytes) -> list[SignedEnvelope]:
    return [make_envelope(sender, to.did, body) for body in bodies]


# ---------------------------------------------------------------- a source that lies


async def test_a_source_that_says_that_nothing_was_seen_keeps_nothing_from_the_agent() -> None:
    """It may make the agent see again what it has seen; that costs no envelope."""
    sender = new_key()
    async with lied_to() as (node, liar):
        assert isinstance(await liar.digest([]), Migrated)
        mine = letters(sender, liar.me.key, b"one", b"two")
        taken = await liar.copy(mine)
        assert isinstance(taken, Submitted)
        assert not taken.rejected
        await arrive(liar)
        assert len(await take(node, liar.me.key, 2)) == 2
        assert await pending(node, liar.me.key) == 0


async def test_a_source_that_says_that_all_was_seen_only_marks() -> None:
    """Ids that the agent never saw: of mail that is here, that it brings, that comes later."""
    sender = new_key()
    async with lied_to() as (node, liar):
        here, copied, later = letters(sender, liar.me.key, b"here", b"copied", b"later")
        await send(node, sender, here)
        answer = await liar.digest([doubt(one, sender) for one in (here, copied, later)])
        assert isinstance(answer, Migrated)
        taken = await liar.copy([copied])
        assert isinstance(taken, Submitted)
        assert not taken.rejected
        await arrive(liar)
        assert not (await send(node, sender, later)).rejected
        marks = await take(node, liar.me.key, 3)
        assert len(marks) == 3
        assert all(marks.values())


async def test_pages_and_copies_that_a_source_says_again_change_nothing() -> None:
    sender = new_key()
    async with lied_to() as (node, liar):
        mine = letters(sender, liar.me.key, b"one", b"two")
        assert isinstance(await liar.digest([]), Migrated)
        await liar.copy(mine)
        await arrive(liar)
        assert len(await take(node, liar.me.key, 2)) == 2
        fresh = letters(sender, liar.me.key, b"three")
        await send(node, sender, *fresh)
        # what was acked here is not shown again, whoever brings it
        await liar.copy(mine)
        await liar.digest([])
        assert list((await take(node, liar.me.key, 1)).values()) == [False]
        assert await pending(node, liar.me.key) == 0


async def test_a_source_whose_digest_never_ends_only_makes_everything_marked() -> None:
    """It begins one digest after the other; the agent gives up waiting, and publishes."""
    sender = new_key()
    async with lied_to() as (node, liar):
        for _ in range(3):
            answer = await liar.digest([], total=2, whole=os.urandom(32))
            assert isinstance(answer, Migrated)
            assert answer.next == 1
        assert not (await liar.me.state(liar.me.target)).digest_received
        await arrive(liar)
        await send(node, sender, *letters(sender, liar.me.key, b"one"))
        assert list((await take(node, liar.me.key, 1)).values()) == [True]
        told = await liar.me.state(liar.me.target)
        assert told.awaiting_digests == (liar.key.did,)


async def test_another_relay_than_the_source_can_say_and_bring_nothing() -> None:
    [place] = places(1)
    stranger = new_key()
    async with (
        relay_at(place, federation="open") as node,
        lying_source(node, home_of(place)) as liar,
        peer(node.url, place.did, stranger) as talk,
    ):
        other = Liar(stranger, liar.me, talk)
        # with the order of the agent, and with an id that it made up
        for handoff in (liar.me.id, "no such hand-off"):
            answer = await other.digest([], handoff=handoff)
            assert isinstance(answer, Error)
            assert answer.error is ErrorCode.WRONG_STATE
        assert not (await liar.me.state(liar.me.target)).digest_received


# ---------------------------------------------------------------- orders without right


@contextlib.asynccontextmanager
async def two_relays() -> AsyncIterator[tuple[Traveller, RunningNode, RunningNode]]:
    """An agent at a real relay, and another real relay."""
    first, second = places(2)
    async with relay_at(first) as source, relay_at(second) as target:
        key = new_key()
        newest = endpoint_record.sign(key, [home_of(first)], now=now(-60))
        async with speaker(source.url, key, record=newest):
            pass
        yield Traveller(key, home_of(first), home_of(second), newest), source, target


def now(more: float = 0) -> Timestamp:
    return Timestamp(time.time() + more)


async def code_of(step: Any) -> ErrorCode:
    with pytest.raises(AgentError) as caught:
        await step
    return caught.value.code


async def test_an_order_that_names_others_is_refused_by_who_is_not_named() -> None:
    async with two_relays() as (me, _, _):
        turned = Traveller(me.key, me.target, me.source, me.newest)
        # asked of the target of the other order, and of its source
        turned.source, turned.target = turned.target, turned.source
        assert await code_of(turned.prepare()) is ErrorCode.WRONG_RELAY
        assert await code_of(turned.freeze()) is ErrorCode.WRONG_RELAY


async def test_a_strangers_order_moves_nobody() -> None:
    """Signed by another key, in the agent's name; and of an agent that signs for itself only."""
    async with two_relays() as (me, _, _):
        forged = me.order.rpartition(".")[0] + "." + "A" * 86
        honest, me.order = me.order, forged
        assert await code_of(me.prepare()) is ErrorCode.BAD_SIGNATURE
        assert await code_of(me.freeze()) is ErrorCode.BAD_SIGNATURE
        assert await code_of(me.state(me.source)) is ErrorCode.BAD_SIGNATURE
        me.order = honest
        # nothing has happened to it
        assert (await me.state(me.source)).mode is Mode.ACTIVE
        assert (await me.state(me.target)).mode is Mode.NONE


async def test_an_order_that_was_overtaken_is_over_at_both() -> None:
    async with two_relays() as (me, _, _):
        newer = Traveller(me.key, me.source, me.target, me.newest, order_seq=seq_of(me) + 10)
        await newer.prepare()
        await newer.freeze()
        assert await code_of(me.prepare()) is ErrorCode.STALE_RECORD
        assert await code_of(me.freeze()) is ErrorCode.STALE_RECORD
        told = await newer.state(newer.source)
        assert (told.mode, told.handoff) == (Mode.FROZEN, newer.id)


def seq_of(me: Traveller) -> int:
    return migration_order.parse(me.order).seq


async def test_a_move_that_is_over_cannot_be_ordered_a_second_time() -> None:
    """A replayed order changes nothing when the agent has long moved back."""
    async with two_relays() as (me, source, _):
        await me.move()
        back = Traveller(me.key, me.target, me.source, me.record, order_seq=seq_of(me))
        await back.move()
        assert await code_of(me.freeze()) is ErrorCode.STALE_RECORD
        assert await code_of(me.prepare()) is ErrorCode.STALE_RECORD
        async with speaker(source.url, me.key) as who:
            assert who.ready.welcome.inbox


# ---------------------------------------------------------------- a target that lies


def test_a_statement_that_another_key_signed_is_no_statement() -> None:
    relay, other, agent = new_key(), new_key(), new_key()
    statement = MigrationStatement(
        relay.did, agent.did, "id", Mode.INCOMING, 1, digest_received=True
    )
    lie = migration_statement.sign(other, statement)
    with pytest.raises(ProtocolError) as caught:
        migration_statement.verify(lie, relay.did)
    assert caught.value.code is ErrorCode.BAD_SIGNATURE


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


LIES = ["signs-with-another-key", "names-another-handoff", "names-no-handoff"]


@each("migration under kills and lies", "lie", LIES)
async def test_nothing_is_let_go_for_a_receipt_that_the_target_cannot_sign(
    tmp_path: Path, lie: str
) -> None:
    """Envelopes stay at the source; a target that becomes honest gets all of them."""
    mutant = ("-m", "tests.chaos.kill_points_relay", "relay1", str(tmp_path), lie)
    sender, key = new_key(), new_key()
    async with mesh(2, tmp_path, arguments={1: mutant}) as relays:
        await relays.start()
        a, b = (Home(Did(one.did), one.url) for one in relays.relays)
        newest = endpoint_record.sign(key, [a], now=now(-60))
        async with speaker(a.url, key, record=newest):
            pass
        mine = letters(sender, key, *(b"%d" % number for number in range(20)))
        async with speaker(a.url, sender) as who:
            await who.say(Submit("1", [letter.wire for letter in mine]))
            assert not (await who.hear(Submitted)).rejected
        me = Traveller(key, a, b, newest)
        await me.move()
        claims = relays[1].directory / "lies"
        # the source has received one, and comes again
        await wait_until(lambda: lines_of(claims) >= 2, 40, "the target claims it again and again")
        told = await me.state(a)
        assert (told.counters.was, told.counters.waiting, told.counters.moved) == (20, 20, 0)
        assert told.counters.is_balanced
        relays[1].kill()
        relays[1].arguments = ("-m", "relay", "serve")
        await relays[1].start()

        async def is_empty() -> bool:
            return (await me.state(a)).counters.waiting == 0

        await wait_until(is_empty, 30, "all has gone over")
        seen: set[str] = set()
        async with speaker(b.url, key) as who:
            while len(seen) < 20:
                frame = await who.hear(Deliver)
                seen |= {item.envelope["body"] for item in frame.items}


@pytest.mark.breaks("migration under kills and lies", "says-no-digest")
async def test_a_source_that_stalls_says_so_and_the_agent_gets_its_mail_back(
    tmp_path: Path,
) -> None:
    """It never sends its digest: the agent learns that, cancels, and has lost nothing."""
    mutant = ("-m", "tests.chaos.kill_points_relay", "relay0", str(tmp_path), "says-no-digest")
    sender, key = new_key(), new_key()
    async with mesh(2, tmp_path, arguments={0: mutant}) as relays:
        await relays.start()
        a, b = (Home(Did(one.did), one.url) for one in relays.relays)
        newest = endpoint_record.sign(key, [a], now=now(-60))
        async with speaker(a.url, key, record=newest):
            pass
        async with speaker(a.url, sender) as who:
            mine = letters(sender, key, b"one", b"two")
            await who.say(Submit("1", [letter.wire for letter in mine]))
            await who.hear(Submitted)
        me = Traveller(key, a, b, newest)
        await me.prepare()
        statement = await me.freeze()
        assert (statement.mode, statement.digest_acked) == (Mode.FROZEN, False)
        assert statement.reason
        back = endpoint_record.sign(
            key, [a], now=now(1), newest_seq=endpoint_record.parse(me.record).seq
        )
        await me.publish(a, back)
        await me.publish(b, back)
        async with speaker(a.url, key) as who:
            assert who.ready.welcome.pending.count == 2
            assert all(item.redelivered for item in (await who.hear(Deliver)).items)
