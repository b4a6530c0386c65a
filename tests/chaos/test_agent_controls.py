"""Negative controls of the agents that are killed: the checker finds what their SDK forgets.

Each control stands beside the same story with the real SDK and its state file, which is found to be
clean. Nothing is left to chance: a kill waits until its target is in place.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.chaos.audit import audit
from tests.chaos.checker import Verdict, judge
from tests.chaos.killable_agent import Orders
from tests.chaos.killable_agent_process import (
    MortalAgent,
    Mortals,
)
from tests.chaos.ledger import Ledger
from tests.chaos.restarting_relay import (
    SERVE,
    RelayProcess,
)
from tests.support.broken_rules import each
from tests.support.nodes import new_key, speaker
from tests.support.patience import wait_until

pytestmark = pytest.mark.timeout(60)

LETTERS = 20
FOR_EVER_S = 100_000.0


# Where a control says ">=": some come a third time, if Bob is asked to end while he handles them.


class Pair:
    """Alice sends to Bob; both are killed when a test says so.

    Args:
        directory: all files.
        relay: which relay they have at first.
        alice: how Alice's orders differ.
        bob: how Bob's orders differ.
        remembers: whether both have a state file.
    """

    def __init__(
        self,
        directory: Path,
        *,
        relay: str = "",
        alice: dict[str, object] | None = None,
        bob: dict[str, object] | None = None,
        remembers: bool = True,
    ) -> None:
        self.ledger = Ledger()
        lie = ("-m", "tests.chaos.relay_mutants", relay)
        self.relay = RelayProcess(directory / "relay", lie if relay else SERVE)
        bob_key = new_key()

        def agent(name: str, values: dict[str, object]) -> MortalAgent:
            orders = Orders(
                **{
                    "url": self.relay.url, "name": name, "whims": 0.0, "inboxes": (bob_key.did,),
                    "letters": LETTERS, "hasty": 0.0, **values,
                }
            )  # fmt: skip
            key = bob_key if name == "bob" else new_key()
            return MortalAgent(key, orders, directory / name, self.ledger, remembers=remembers)

        self.alice = agent("alice", alice or {})
        self.bob = agent("bob", {"letters": 0, **(bob or {})})
        self.mortals = Mortals([self.alice, self.bob], self.ledger)

    @contextlib.asynccontextmanager
    async def on_stage(self) -> AsyncIterator[None]:
        """The relay runs, Bob has an inbox; at the end no process is left."""
        try:
            await self.relay.start()
            for agent in self.mortals.agents:
                async with speaker(self.relay.url, agent.key):
                    pass
            yield
        finally:
            self.relay.kill()
            await self.mortals.end_now()

    async def seen(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until the notes say so."""

        def is_seen() -> bool:
            self.ledger.catch_up()
            return condition()

        await wait_until(is_seen, 30, f"{what}\n{self.ledger.surprises}")

    async def all_sent(self) -> None:
        """Wait until Alice has all her receipts."""
        await self.seen(lambda: self.ledger.receipted == LETTERS, "all is sent")

    async def a_better_relay(self) -> None:
        """Kill the relay; over its store an honest one begins."""
        self.relay.kill()
        self.relay.arguments = SERVE
        await self.relay.start()

    async def verdict(self) -> Verdict:
        """Let both come to rest, look at everything, judge."""
        await self.alice.end()
        await self.bob.end()
        keys = [agent.key for agent in self.mortals.agents]
        await audit(self.relay.url, self.ledger, [], {}, keys)
        found = judge(self.ledger)
        print(found)
        return found


async def what_was_left_to_a_killed_agent(pair: Pair) -> Verdict:
    """Alice's outcomes are unknown; she is killed, and comes back to a better relay."""
    async with pair.on_stage():
        await pair.alice.start()
        await pair.seen(lambda: len(pair.ledger.promised) == LETTERS, "all is left to the SDK")
        await pair.alice.kill()
        await pair.a_better_relay()
        await pair.bob.start()
        await pair.alice.start()
        return await pair.verdict()


async def test_the_outbox_of_a_killed_agent_is_sent(tmp_path: Path) -> None:
    found = await what_was_left_to_a_killed_agent(
        Pair(tmp_path, relay="mute", alice={"hasty": 1.0})
    )
    assert found.kinds == set(), str(found)


@each("agents under kills", "mutant", ["outbox-keeps-nothing", "outbox-is-not-resumed"])
async def test_an_outbox_that_forgets_is_found_to_lose_envelopes(
    tmp_path: Path, mutant: str
) -> None:
    orders = {"hasty": 1.0, "mutant": mutant}
    found = await what_was_left_to_a_killed_agent(Pair(tmp_path, relay="mute", alice=orders))
    assert len(found.lost) == LETTERS
    assert not found.kinds & {"wrong", "phantom", "unmarked", "acked_again", "forgotten"}


async def handlers_that_are_cut_off(pair: Pair) -> Verdict:
    """Bob is killed while his handlers run, and comes back with quick ones."""
    async with pair.on_stage():
        await pair.alice.start()
        await pair.all_sent()
        await pair.bob.start()
        # he has a hand for each, and no handler ends
        await pair.seen(lambda: pair.bob.handling == LETTERS, "all is in hand")
        await pair.bob.kill()
        await pair.bob.start(long_s=0.01)
        return await pair.verdict()


SLOW_BOB = {"long_s": FOR_EVER_S, "all_long": True, "hands": LETTERS}


async def test_what_a_killed_agent_had_in_hand_comes_again_marked(tmp_path: Path) -> None:
    pair = Pair(tmp_path, bob=SLOW_BOB)
    found = await handlers_that_are_cut_off(pair)
    assert found.kinds == set(), str(found)
    assert sum(item.redelivered for item in pair.ledger.handed) >= LETTERS


@pytest.mark.breaks("agents under kills", "acks-what-it-shows")
async def test_an_ack_before_the_handler_is_found_to_forget_what_it_had_in_hand(
    tmp_path: Path,
) -> None:
    pair = Pair(tmp_path, bob={**SLOW_BOB, "mutant": "acks-what-it-shows"})
    found = await handlers_that_are_cut_off(pair)
    assert len(found.forgotten) == LETTERS
    assert not found.kinds & {"lost", "wrong", "phantom", "unmarked", "acked_again"}


async def test_over_a_relay_that_marks_nothing_the_state_file_marks(tmp_path: Path) -> None:
    pair = Pair(tmp_path, relay="nothing-is-redelivered", bob=SLOW_BOB)
    found = await handlers_that_are_cut_off(pair)
    assert found.kinds == set(), str(found)


@pytest.mark.breaks("agents under kills", "marks-without-a-state-file")
async def test_without_a_state_file_it_is_found_to_come_again_unmarked(tmp_path: Path) -> None:
    pair = Pair(tmp_path, relay="nothing-is-redelivered", bob=SLOW_BOB, remembers=False)
    found = await handlers_that_are_cut_off(pair)
    assert len(found.unmarked) >= LETTERS
    assert found.kinds == {"unmarked"}


async def acks_that_the_relay_forgets(pair: Pair) -> Verdict:
    """Bob's acks are confirmed and come to nothing; then he and the relay are killed."""
    async with pair.on_stage():
        await pair.alice.start()
        await pair.all_sent()
        await pair.bob.start()
        await pair.seen(lambda: len(pair.ledger.ended) == LETTERS, "all is acked")
        await pair.bob.kill()
        await pair.a_better_relay()
        await pair.bob.start()
        return await pair.verdict()


async def test_what_was_acked_before_a_kill_is_never_shown_again(tmp_path: Path) -> None:
    pair = Pair(tmp_path, relay="acks-come-to-nothing", bob={"long_s": 0.01})
    found = await acks_that_the_relay_forgets(pair)
    assert found.kinds == set(), str(found)


@pytest.mark.breaks("agents under kills", "acks-come-to-nothing")
async def test_without_a_state_file_it_is_found_to_come_again_after_its_ack(
    tmp_path: Path,
) -> None:
    pair = Pair(tmp_path, relay="acks-come-to-nothing", bob={"long_s": 0.01}, remembers=False)
    found = await acks_that_the_relay_forgets(pair)
    assert len(found.acked_again) >= LETTERS
    assert found.kinds == {"acked_again"}
