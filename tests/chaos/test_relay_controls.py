"""Negative controls: the checker of the kill test must find each lie of a relay that tells one.

A control cannot pass by luck: the mutant lies so often, or the kill falls where so much is at risk,
that some of it must show.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.chaos_run import Run
from tests.chaos.checker import Verdict
from tests.chaos.relay_mutants import LATE_RECEIPTS
from tests.chaos.run_plan import Plan
from tests.chaos.traffic_plan import CALM

pytestmark = pytest.mark.timeout(60)


async def verdict_on(mutant: str, directory: Path, **values: object) -> Verdict:
    plan = Plan(
        int.from_bytes(os.urandom(4)),
        **{
            "framed": 600, "through_sdk": 0, "recipients": 2, "sdk_agents": 0,
            "through_mortals": 0, "mortals": 0, "agent_kills": 0,
            "node_kills": 1, "store_kills": 0, "false_starts": 0, "absences": 0,
            "poison": 0, "windows": (16, 16), "habits": CALM, "stall_s": 1.2,
            "arguments": ("-m", "tests.chaos.relay_mutants", mutant), **values,
        },
    )  # fmt: skip
    run = Run(plan, directory)
    verdict = await run()
    print(run.summary(), verdict, sep="\n")
    return verdict


@pytest.mark.breaks("relay under kills", "receipt-before-commit")
async def test_a_receipt_before_the_commit_is_found_to_lose_envelopes(tmp_path: Path) -> None:
    # progress below a half: while receipts are still coming, so that the newest are at risk
    found = await verdict_on("receipt-before-commit", tmp_path, moments=(0.25, 0.45))
    # of what was answered and held back, the answers to at most two windows were still on their way
    assert len(found.lost) >= LATE_RECEIPTS - 2 * 16
    assert not found.kinds & {"wrong", "phantom", "unmarked", "acked_again"}


@pytest.mark.breaks("relay under kills", "nothing-is-redelivered")
async def test_a_relay_that_forgets_what_it_handed_over_is_found_to_repeat_unmarked(
    tmp_path: Path,
) -> None:
    # nobody acks before the kill: a whole window of each recipient must come again
    habits = replace(CALM, first_ack=100)
    found = await verdict_on("nothing-is-redelivered", tmp_path, moments=(0.3, 0.45), habits=habits)
    assert len(found.unmarked) >= 64
    assert found.kinds == {"unmarked"}


@pytest.mark.breaks("relay under kills", "acked-before-commit")
async def test_an_ack_confirmed_before_the_commit_is_found_to_bring_envelopes_back(
    tmp_path: Path,
) -> None:
    # progress above a half: some ends have been confirmed
    found = await verdict_on("acked-before-commit", tmp_path, moments=(0.55, 0.8))
    assert found.acked_again
    assert not found.kinds & {"lost", "wrong", "phantom"}


@pytest.mark.breaks("relay under kills", "misfiled")
async def test_an_envelope_in_another_inbox_is_found(tmp_path: Path) -> None:
    found = await verdict_on("misfiled", tmp_path, node_kills=0)
    assert found.wrong
    assert found.lost
    assert not found.kinds & {"phantom", "unmarked", "acked_again"}


@pytest.mark.breaks("relay under kills", "last-in-first-out")
async def test_a_wrong_order_is_found(tmp_path: Path) -> None:
    found = await verdict_on(
        "last-in-first-out", tmp_path, node_kills=0, recipients=1, absences=1, windows=(1, 2)
    )
    assert found.reordered
    assert not found.kinds & {"lost", "wrong", "phantom", "unmarked", "acked_again"}


async def test_the_same_small_run_of_the_real_relay_is_clean(tmp_path: Path) -> None:
    run_of_the_relay = ("-m", "relay", "serve")
    found = await verdict_on("", tmp_path, moments=(0.3, 0.6), arguments=run_of_the_relay)
    assert not found.kinds
