"""The kill test of a mesh: partitions, loss, resets and kills between relays, and the truth comes out.

``CHAOS_SEED=... pytest tests/chaos/test_mesh.py`` repeats the choices of a run; what an operating
system makes of them is a matter of chance.
"""  # noqa: E501  a sentence

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.checker import Verdict
from tests.chaos.mesh_run import HEALED_S, MeshPlan, MeshRun
from tests.chaos.network_faults import KINDS
from tests.chaos.sdk_agents import Life
from tests.chaos.test_kill import seed
from tests.support.namespaces import why_missing

OUTBOX = 2_000
BETWEEN_PATHS = {"reordered"}
"""An agent whose home is dead hands in at the recipient's: what it gave its home may come later."""


async def carried_out(plan: MeshPlan, directory: Path) -> tuple[MeshRun, Verdict]:
    run = MeshRun(plan, directory)
    verdict = await run()
    print(run.summary())
    return run, verdict


async def the_truth_comes_out(plan: MeshPlan, directory: Path) -> MeshRun:
    run, verdict = await carried_out(plan, directory)
    report = f"{run.summary()}\n{verdict}\n{run.logs}"
    assert not verdict.kinds - BETWEEN_PATHS, report
    assert run.ledger.receipted >= plan.envelopes, report
    assert 0 <= run.healed_s <= HEALED_S, report
    assert run.most_waiting <= OUTBOX * plan.relays * (plan.relays - 1), report
    # else the run has not looked at what it is about
    assert run.most_waiting, report
    assert (run.node_kills, run.store_kills) == (plan.node_kills, plan.store_kills), report
    assert set(run.weather.seen) == set(KINDS), report
    return run


@pytest.fixture(autouse=True)
def _shown_on_failure(caplog: pytest.LogCaptureFixture) -> None:
    """Show in a failure why the SDK lost its connections."""
    caplog.set_level(logging.INFO, "relay.client")


@pytest.mark.timeout(150)
async def test_nothing_is_lost_misdelivered_or_repeated_unmarked_between_relays(
    tmp_path: Path,
) -> None:
    plan = MeshPlan(seed(), settings={"RELAY_OUTBOX_COUNT": str(OUTBOX)})
    await the_truth_comes_out(plan, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("spaces", [False, True], ids=["proxies", "namespaces"])
async def test_nor_over_many_more_faults_and_kills(tmp_path: Path, *, spaces: bool) -> None:
    missing = why_missing() if spaces else None
    if missing:
        pytest.skip(missing)
    plan = MeshPlan(
        seed(),
        envelopes=20_000,
        agents=3,
        node_kills=10,
        store_kills=5,
        spaces=spaces,
        life=Life(rest_s=0.1),
        lasts_s=(0.5, 8.0),
        deadline_s=600.0,
        settings={"RELAY_OUTBOX_COUNT": str(10 * OUTBOX)},
    )
    await the_truth_comes_out(plan, tmp_path)


# ---------------------------------------------------------------- negative controls


def small(*mutant: str, **values: object) -> MeshPlan:
    """Three relays that tell the same lie."""
    plan = MeshPlan(
        seed(),
        envelopes=300,
        relays=3,
        agents=1,
        node_kills=2,
        store_kills=0,
        poison=0,
        arguments=dict.fromkeys(range(3), ("-m", *mutant)),
    )
    return replace(plan, **values)


@pytest.mark.breaks("mesh under faults", "ack-before-receipt")
@pytest.mark.timeout(150)
async def test_a_courier_that_acks_before_the_receipt_is_found_to_lose_envelopes(
    tmp_path: Path,
) -> None:
    plan = small("tests.chaos.mesh_mutants", "ack-before-receipt", healed_s=8.0)
    _, found = await carried_out(plan, tmp_path)
    assert found.lost
    assert not found.kinds & {"wrong", "phantom", "unmarked", "acked_again"}


@pytest.mark.breaks("mesh under faults", "misfiled")
@pytest.mark.timeout(150)
async def test_envelopes_in_other_inboxes_are_found(tmp_path: Path) -> None:
    plan = small(
        "tests.chaos.mesh_mutants",
        "misfiled",
        agents=2,
        node_kills=0,
        deadline_s=20.0,
        healed_s=8.0,
    )
    _, found = await carried_out(plan, tmp_path)
    # the SDK of who got it refuses what is for another: it is lost, and its sender gets a false
    # bounce; where that is still on its way, the inbox has a seq that nobody explains
    assert found.lost
    assert found.untrue_bounces or found.miscounted


@pytest.mark.timeout(150)
async def test_the_same_small_run_of_real_relays_is_clean(tmp_path: Path) -> None:
    _, found = await carried_out(small("relay", "serve"), tmp_path)
    assert not found.kinds - BETWEEN_PATHS, str(found)
