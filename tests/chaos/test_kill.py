"""The kill test: node and store are killed at random moments, and the truth must come out.

``CHAOS_SEED=... pytest tests/chaos`` repeats the choices of a run; the phases of commits at which
the kills fall are a matter of chance.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from tests.chaos.chaos_run import Plan, Run

SLACK = 5.0
"""A loaded machine may take this many times what GUARANTEES.md §2 promises."""


@pytest.mark.timeout(120)
async def test_nothing_is_lost_misdelivered_or_repeated_unmarked_over_kills(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # shown on failure: why the SDK lost its connections
    caplog.set_level(logging.INFO, "relay.client")
    seed = int(os.environ.get("CHAOS_SEED") or int.from_bytes(os.urandom(4)))
    run = Run(Plan(seed), tmp_path)
    verdict = await run()
    print(run.summary())
    said = f"{run.summary()}\n{verdict}\n{run.relay.log_tail()}"
    assert not verdict.kinds, said
    assert len(run.ledger.sent) == 20_000, said
    assert run.store_kills == 3, said
    assert len(run.relay.killed_at) >= 5, said
    # else the run has not looked at what it is about
    assert any(item.redelivered for item in run.ledger.handed), said
    assert run.ledger.bounces, said
    assert max(run.relay.starting_took) <= 3 * SLACK, said
    assert run.resumed_p99 <= 10 * SLACK, said
    assert run.slowest_answer <= 2 * SLACK, said
