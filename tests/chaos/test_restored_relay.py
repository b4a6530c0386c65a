"""A relay that was killed, or restored from an old backup, never delivers for an agent that moved.

Real relays, each a process over its embedded store. The agent moves without the old relay, by its
record alone; what that one still holds comes to the new home once it is back.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pytest

from relay.protocol import endpoint_record
from relay.protocol import envelope as envelopes
from relay.protocol.did import SigningKey
from relay.protocol.envelope import SignedEnvelope
from relay.protocol.errors import (
    ErrorCode,
    RelayError,
)
from relay.protocol.frames import (
    Ack,
    Acked,
    Deliver,
    Submit,
    Submitted,
)
from relay.protocol.ids import Timestamp
from tests.support.mesh import MeshRelay, mesh
from tests.support.migration_steps import Traveller
from tests.support.nodes import Speaker, make_envelope, new_key, speaker
from tests.support.patience import within

pytestmark = pytest.mark.timeout(120)
Rollback = Literal["as it is now", "restored, too", "lost"]


def record(agent: SigningKey, home: MeshRelay, ahead_s: int = 0) -> str:
    at = [endpoint_record.Home(home.did, home.url)]
    return endpoint_record.sign(agent, at, now=Timestamp(time.time()), newest_seq=ahead_of(ahead_s))


def ahead_of(seconds: int) -> int:
    return int((time.time() + seconds) * 1000)


async def send(sender: SigningKey, at: MeshRelay, to: SigningKey, count: int) -> list[str]:
    """Send envelopes, each with a receipt; return their ids."""
    made: list[SignedEnvelope] = [make_envelope(sender, to.did) for _ in range(count)]
    async with speaker(at.url, sender, record=record(sender, at)) as one:
        await one.say(Submit("s", [envelope.wire for envelope in made]))
        assert (await one.hear(Submitted)).receipt
    return [envelope.id for envelope in made]


async def take(one: Speaker, count: int) -> dict[str, bool]:
    """The next deliveries: their ids, and whether they are marked; not acked."""
    found: dict[str, bool] = {}
    while len(found) < count:
        frame = await one.hear(Deliver)
        found |= {envelopes.parse(i.envelope).id: i.redelivered for i in frame.items}
    return found


async def ack_all(one: Speaker) -> None:
    delivered = [frame for frame in one.heard if isinstance(frame, Deliver)]
    await one.say(Ack(delivered[-1].epoch, upto=delivered[-1].items[-1].seq))
    await one.hear(Acked)


async def logins_from_the_first_moment(at: MeshRelay, agent: SigningKey) -> list[bool]:
    """Record whether each login opened an inbox, from before the relay listens until it may.

    It brings no record: it is an old copy of the agent.
    """
    opened: list[bool] = []
    async with within(30):
        while len(opened) < 3:
            try:
                async with speaker(at.url, agent) as one:
                    opened.append(one.ready.welcome.inbox)
            except OSError:
                await asyncio.sleep(0.005)
            except RelayError as exc:
                if exc.code is not ErrorCode.DRAINING:
                    raise
    return opened


async def comes_back(at: MeshRelay, agent: SigningKey) -> list[bool]:
    """The relay starts while the agent tries to log in there."""
    async with asyncio.TaskGroup() as tasks:
        logins = tasks.create_task(logins_from_the_first_moment(at, agent))
        await at.start()
    return logins.result()


async def test_a_killed_relay_comes_back_and_its_agent_has_moved(tmp_path: Path) -> None:
    agent, sender = new_key(), new_key()
    async with mesh(2, tmp_path) as relays:
        a, b = relays[0], relays[1]
        await relays.start()
        async with speaker(a.url, agent, record=record(agent, a)) as one:
            handed = await send(sender, a, agent, 2)
            assert await take(one, 2) == dict.fromkeys(handed, False)
            a.kill()
        async with speaker(b.url, agent, record=record(agent, b, 60)) as home:
            assert home.ready.welcome.inbox
            assert await comes_back(a, agent) == [False] * 3
            # unacked, and in the hands of a session that is gone: marked
            assert await take(home, 2) == dict.fromkeys(handed, True)
            late = await send(sender, a, agent, 3)
            assert list(await take(home, 3)) == late


async def copied(relay: MeshRelay, to: Path) -> None:
    """A backup, as docs/OPERATIONS.md says: the relay is stopped meanwhile."""
    await relay.stop()
    shutil.copytree(relay.directory / "data", to, ignore=_sockets)
    await relay.start()


def _sockets(directory: str, names: Iterable[str]) -> set[str]:
    return {name for name in names if (Path(directory) / name).is_socket()}


def restore(relay: MeshRelay, backup: Path, rollback: Rollback) -> None:
    data = relay.directory / "data"
    shutil.rmtree(data / "store")
    shutil.copytree(backup / "store", data / "store")
    match rollback:
        case "restored, too":
            shutil.copy(backup / "rollback", data / "rollback")
        case "lost":
            (data / "rollback").unlink()
        case "as it is now":
            pass


@pytest.mark.parametrize("rollback", ["as it is now", "restored, too", "lost"])
async def test_a_relay_restored_from_before_the_move(tmp_path: Path, rollback: Rollback) -> None:
    agent, sender = new_key(), new_key()
    async with mesh(2, tmp_path) as relays:
        a, b = relays[0], relays[1]
        await relays.start()
        async with speaker(a.url, agent, record=record(agent, a)) as one:
            assert one.ready.welcome.inbox
        old = await send(sender, a, agent, 3)
        await copied(a, tmp_path / "backup")
        async with speaker(a.url, agent) as one:
            assert list(await take(one, 3)) == old
            await ack_all(one)
        await relays.linked()
        async with speaker(b.url, agent, record=record(agent, b, 60)) as home:
            a.kill()
            restore(a, tmp_path / "backup", rollback)
            assert await comes_back(a, agent) == [False] * 3
            came = await take(home, 3)
            assert list(came) == old
            if rollback == "as it is now":
                # it knows that it went back in time
                assert set(came.values()) == {True}


@pytest.mark.parametrize("rollback", ["as it is now", "restored, too", "lost"])
async def test_a_relay_restored_from_before_a_move_by_order(
    tmp_path: Path, rollback: Rollback
) -> None:
    agent, sender = new_key(), new_key()
    async with mesh(2, tmp_path) as relays:
        a, b = relays[0], relays[1]
        await relays.start()
        before = record(agent, a)
        async with speaker(a.url, agent, record=before) as one:
            assert one.ready.welcome.inbox
        old = await send(sender, a, agent, 3)
        await copied(a, tmp_path / "backup")
        async with speaker(a.url, agent) as one:
            assert list(await take(one, 3)) == old
            await ack_all(one)
        waiting = await send(sender, a, agent, 2)
        await relays.linked()
        home_a, home_b = endpoint_record.Home(a.did, a.url), endpoint_record.Home(b.did, b.url)
        traveller = Traveller(agent, home_a, home_b, before)
        await traveller.move()
        async with speaker(b.url, agent, record=traveller.record) as home:
            assert await take(home, 2) == dict.fromkeys(waiting, False)
            await ack_all(home)
            a.kill()
            restore(a, tmp_path / "backup", rollback)
            assert await comes_back(a, agent) == [False] * 3
            # what was acked before the move comes again, and none of it as new
            assert await take(home, 3) == dict.fromkeys(old, True)
