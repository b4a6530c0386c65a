"""Queues for another relay: a poison envelope blocks nobody, and an outbox is bounded.

The other relay is out of reach while the queue is made. What counts begins when it is within reach
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from relay.client import Agent, AgentError, Bounce
from relay.protocol.did import SigningKey
from relay.protocol.errors import ErrorCode
from tests.chaos.restarting_relay import SERVE
from tests.support.mesh import Mesh, knows, mesh
from tests.support.nodes import new_key
from tests.support.patience import wait_until, within

pytestmark = pytest.mark.timeout(90)

BODY = 2_048
"""Largest body that relay 1 takes; relay 0 takes more."""
BEHIND = 150
DRAINS_S = 5.0
OUTBOX = 400
SHARE = OUTBOX // 20
"""Of one sender, and of one recipient."""
KNOWN_S = 20.0
BOUNDED = frozenset({ErrorCode.SENDER_QUOTA, ErrorCode.INBOX_FULL, ErrorCode.OVERLOADED})


@dataclass(frozen=True, slots=True)
class Pair:
    """Alice at relay 0, Bob at relay 1; both relays know both."""

    mesh: Mesh
    alice: SigningKey
    bob: SigningKey

    def part(self) -> None:
        """The relays do not hear of each other any more."""
        assert self.mesh.faults is not None
        self.mesh.faults.part(["relay0"], ["relay1"])
        self.mesh.faults.reset("relay0", "relay1")

    def join(self) -> None:
        """They do."""
        assert self.mesh.faults is not None
        self.mesh.faults.heal()


@contextlib.asynccontextmanager
async def pair(
    directory: Path, arguments: Sequence[str] = SERVE, **settings: str
) -> AsyncIterator[Pair]:
    rng = Random(1)  # noqa: S311  whims, no keys
    async with mesh(2, directory, faults=rng, settings=settings, arguments={0: arguments}) as made:
        made[1].tell(RELAY_MAX_BODY_BYTES=str(BODY))
        await made.start()
        alice, bob = new_key(), new_key()
        async with Agent.open(alice, made[0].url), Agent.open(bob, made[1].url):

            async def are_known() -> bool:
                return await knows(made[0], bob.did) and await knows(made[1], alice.did)

            await wait_until(are_known, KNOWN_S, "both relays know both agents")
        yield Pair(made, alice, bob)


async def queue_behind_poison(two: Pair) -> tuple[float, list[Bounce]]:
    """Return the seconds until all behind the poison arrived, and Alice's bounces."""
    two.part()
    async with Agent.open(two.alice, two.mesh[0].url) as alice:
        await alice.send(two.bob.did, b"x" * (2 * BODY), seal=False)
        for number in range(BEHIND):
            await alice.send(two.bob.did, f"{number}", seal=False)
        arrived: list[int] = []
        async with Agent.open(two.bob, two.mesh[1].url) as bob:
            two.join()
            linked = await wait_until(lambda: _link(two), 60, "there is a link again")
            async for message in bob.inbox():
                arrived.append(int(message.text()))
                await message.ack()
                if len(arrived) == BEHIND:
                    break
            took = time.monotonic() - linked
        assert arrived == list(range(BEHIND))
        async with within(20):
            told = await anext(alice.inbox())
        assert isinstance(told, Bounce)
        await told.ack()
        return took, [told]


async def _link(two: Pair) -> float | None:
    """Return when the link is seen to stand."""
    peers = await two.mesh[0].peers()
    return time.monotonic() if all(one["linked"] for one in peers) else None


@pytest.mark.alone
async def test_a_queue_behind_a_poison_envelope_drains_and_its_sender_is_told(
    tmp_path: Path,
) -> None:
    async with pair(tmp_path) as two:
        took, bounces = await queue_behind_poison(two)
        print(f"{BEHIND} behind a poison envelope: {took:.1f} s after the link stood")
        assert took <= DRAINS_S
        [item] = bounces[0].items
        assert item.reason == ErrorCode.TOO_LARGE
        await two.mesh.drained(10)


@pytest.mark.breaks("mesh under faults", "tries-for-ever")
async def test_a_courier_that_tries_for_ever_is_found_to_block_the_queue(tmp_path: Path) -> None:
    """Negative control."""
    mutant = ("-m", "tests.chaos.mesh_mutants", "tries-for-ever")
    async with pair(tmp_path, mutant) as two:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(25):  # five times what the real relay needs
                await queue_behind_poison(two)


async def overfill(two: Pair) -> list[tuple[ErrorCode, str | None]]:
    """Return the refusals of three times as many as an outbox takes from Alice."""
    two.part()
    refusals = []
    async with Agent.open(two.alice, two.mesh[0].url) as alice:
        for number in range(3 * SHARE):
            try:
                await alice.send(two.bob.did, f"{number}", seal=False, deadline_s=0.5)
            except AgentError as exc:
                refusals.append((exc.code, exc.stored))
    return refusals


async def test_an_outbox_takes_its_share_and_no_more_and_all_it_took_arrives(
    tmp_path: Path,
) -> None:
    async with pair(tmp_path, RELAY_OUTBOX_COUNT=str(OUTBOX)) as two:
        refusals = await overfill(two)
        assert len(refusals) == 2 * SHARE
        assert {code for code, _ in refusals} <= BOUNDED
        assert {stored for _, stored in refusals} == {"no"}
        assert await two.mesh.waiting() == SHARE
        two.join()
        async with Agent.open(two.bob, two.mesh[1].url) as bob, within(60):
            inbox = bob.inbox()
            for number in range(SHARE):
                message = await anext(inbox)
                assert message.text() == f"{number}"
                await message.ack()
        await two.mesh.drained(10)


@pytest.mark.breaks("mesh under faults", "no-bound")
async def test_an_outbox_without_a_bound_is_found_to_grow(tmp_path: Path) -> None:
    """Negative control."""
    mutant = ("-m", "tests.chaos.mesh_mutants", "no-bound")
    async with pair(tmp_path, mutant, RELAY_OUTBOX_COUNT=str(OUTBOX)) as two:
        assert await overfill(two) == []
        assert await two.mesh.waiting() == 3 * SHARE
