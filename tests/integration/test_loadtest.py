"""The load driver against a real relay: nothing lost, twice or out of order, and all figures."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FIGURES = (
    "envelopes_per_s", "node_cpu_us", "store_cpu_us", "verify_us", "cpu_ratio", "idle_rss_kb",
)  # fmt: skip


MESH_FIGURES = (
    "local_p99_ms", "cross_p99_ms", "a_cpu_ratio", "c_cpu_ratio", "records_99_s", "heal_s",
    "rss_100k_mb",
)  # fmt: skip


async def driven(*words: str) -> dict[str, Any]:
    """What the load driver finds; it must end well."""
    driver = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtest", *words),
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await driver.communicate()
    finally:
        if driver.returncode is None:
            driver.terminate()  # it ends its relays
            await driver.wait()
    assert driver.returncode == 0, err.decode()
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_the_load_driver_accounts_for_every_envelope_and_has_all_figures(
    tmp_path: Path,
) -> None:
    words = ("--quick", "--json", "--sockets", "200", "--data", str(tmp_path))
    found = await driven(*words)
    counts = {name: found[name] for name in ("lost", "duplicated", "reordered")}
    assert counts == {"lost": 0, "duplicated": 0, "reordered": 0}
    assert found["sent"] > 1_000
    assert found["ok"] is True
    for name in FIGURES:
        assert found[name] > 0, name
    p50, p95, p99 = (found["latency_ms"][name] for name in ("p50", "p95", "p99"))
    assert 0 < p50 <= p95 <= p99


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_the_scenario_of_a_mesh_accounts_for_every_envelope_and_has_all_figures(
    tmp_path: Path,
) -> None:
    found = await driven("mesh", "--quick", "--json", "--data", str(tmp_path))
    assert found["lost"] == 0
    assert found["ok"] is True
    assert found["sent"] > 1_000
    for name in MESH_FIGURES:
        assert found[name] > 0, name
    assert found["records_missing"] == 0


MOVE_FIGURES = ("move_s", "gap_s", "ratio", "per_s", "prepare_s", "freeze_s", "copy_s")


@pytest.mark.timeout(90)
async def test_the_scenario_of_a_move_accounts_for_every_envelope_and_has_all_figures(
    tmp_path: Path,
) -> None:
    found = await driven(
        "migrate", "--waiting", "600", "--acked", "100", "--runs", "1", "--json",
        "--data", str(tmp_path),
    )  # fmt: skip
    assert (found["lost"], found["doubled"], found["ok"]) == (0, 0, True)
    for name in MOVE_FIGURES:
        assert found[name] > 0, name
    assert found["tally"]["moved"] == found["tally"]["was"] == 600
