"""The plan of a kill test as values; its seed repeats a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.restarting_relay import SERVE
from tests.chaos.traffic_plan import (
    UNRULY,
    Habits,
)

WINDOWS = (1, 16, 64, 128, 256)
"""One sender each: from one envelope at a time to many submits in flight."""
LAST_MOMENT = 0.95


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a run.

    Args:
        seed: of everything that is drawn.
        framed: envelopes of agents that speak frames by hand.
        through_sdk: envelopes of agents over the SDK, in this process, without a state file.
        through_mortals: envelopes of agents over the SDK that are killed.
        recipients: agents that speak frames and only receive.
        sdk_agents: agents over the SDK; they send and receive.
        node_kills: kill -9 of the node.
        store_kills: kill -9 of the store.
        agent_kills: kill -9 of SDK agents; every third is killed once more while it starts.
        false_starts: node kills after which the node is killed again while it starts.
        mortals: agents over the SDK, each in a process of its own with a state file.
        mortal_mutant: which promise their SDK does not keep.
        mortals_remember: whether they have a state file.
        absences: recipients that are offline for a part of the run.
        poison: share of envelopes that their recipient refuses.
        windows: of the agents that speak frames and send, one each.
        habits: of the agents that speak frames.
        moments: between which shares of the run's progress the kills fall.
        arguments: what is started; a mutant, perhaps.
        deadline_s: the longest that the agents may go on.
        stall_s: nothing happened for so long: it is over, whatever is missing.
    """

    seed: int
    framed: int = 16_000
    through_sdk: int = 2_000
    through_mortals: int = 2_000
    recipients: int = 5
    sdk_agents: int = 2
    mortals: int = 2
    node_kills: int = 5
    store_kills: int = 3
    agent_kills: int = 6
    false_starts: int = 1
    absences: int = 2
    poison: float = 0.01
    windows: Sequence[int] = WINDOWS
    habits: Habits = UNRULY
    moments: tuple[float, float] = (0.0, LAST_MOMENT)
    arguments: Sequence[str] = SERVE
    mortal_mutant: str = ""
    mortals_remember: bool = True
    deadline_s: float = 85.0
    stall_s: float = 15.0

    @property
    def envelopes(self) -> int:
        """All of them."""
        return self.framed + self.through_sdk + self.through_mortals


def quick(seed: int) -> Plan:
    """Return what CI runs."""
    return Plan(seed)


def long(seed: int) -> Plan:
    """100,000 envelopes."""
    return Plan(
        seed,
        framed=74_000,
        through_sdk=6_000,
        through_mortals=20_000,
        mortals=3,
        node_kills=10,
        store_kills=5,
        agent_kills=24,
        false_starts=2,
        deadline_s=1_500.0,
        stall_s=40.0,
    )
