"""The load driver against a real relay: nothing lost, twice or out of order, and all figures."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIGURES = (
    "envelopes_per_s", "node_cpu_us", "store_cpu_us", "verify_us", "cpu_ratio", "idle_rss_kb",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_the_load_driver_accounts_for_every_envelope_and_has_all_figures(
    tmp_path: Path,
) -> None:
    words = ("--quick", "--json", "--sockets", "200", "--data", str(tmp_path))
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
            driver.terminate()  # it ends its relay
            await driver.wait()
    assert driver.returncode == 0, err.decode()
    found = json.loads(out)
    counts = {name: found[name] for name in ("lost", "duplicated", "reordered")}
    assert counts == {"lost": 0, "duplicated": 0, "reordered": 0}
    assert found["sent"] > 1_000
    assert found["ok"] is True
    for name in FIGURES:
        assert found[name] > 0, name
    p50, p95, p99 = (found["latency_ms"][name] for name in ("p50", "p95", "p99"))
    assert 0 < p50 <= p95 <= p99
