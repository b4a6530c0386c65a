"""The kill test: node, store and agents are killed at random moments, and the truth must come out.

``CHAOS_SEED=... pytest tests/chaos`` repeats the choices of a run; the phases of commits at which
the kills fall are a matter of chance.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from tests.chaos.chaos_run import Run
from tests.chaos.run_plan import (
    Plan,
    long,
    quick,
)

SLACK = 5.0
"""A loaded machine may take this many times what GUARANTEES.md §2 promises."""


def seed() -> int:
    return int(os.environ.get("CHAOS_SEED") or int.from_bytes(os.urandom(4)))


async def the_truth_comes_out(plan: Plan, directory: Path) -> None:
    run = Run(plan, directory)
    verdict = await run()
    print(run.summary())
    report = f"{run.summary()}\n{verdict}\n{run.relay.log_tail()}"
    assert not verdict.kinds, report
    assert run.ledger.receipted >= plan.envelopes, report
    assert run.store_kills == plan.store_kills, report
    assert len(run.relay.killed_at) >= plan.node_kills, report
    assert run.agent_kills >= plan.agent_kills, report
    # else the run has not looked at what it is about
    assert any(item.redelivered for item in run.ledger.handed), report
    assert run.ledger.bounces, report
    assert any(agent.cut_handlers for agent in run.mortals.agents), report
    assert any(agent.kept for agent in run.mortals.agents), report
    assert max(run.relay.starting_took) <= 3 * SLACK, report
    assert run.resumed_p99 <= 10 * SLACK, report
    assert run.slowest_answer <= 2 * SLACK, report


@pytest.fixture(autouse=True)
def _shown_on_failure(caplog: pytest.LogCaptureFixture) -> None:
    """Show in a failure why the SDK lost its connections."""
    caplog.set_level(logging.INFO, "relay.client")


@pytest.mark.alone  # it judges how soon a killed relay is ready again
@pytest.mark.timeout(150)
async def test_nothing_is_lost_misdelivered_or_repeated_unmarked_over_kills(
    tmp_path: Path,
) -> None:
    plan = quick(seed())
    assert plan.envelopes == 20_000
    await the_truth_comes_out(plan, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
async def test_nor_over_many_more_kills_of_100_000_envelopes(tmp_path: Path) -> None:
    plan = long(seed())
    assert plan.envelopes == 100_000
    assert (plan.node_kills, plan.store_kills) == (10, 5)
    assert plan.agent_kills >= 20
    await the_truth_comes_out(plan, tmp_path)
