"""The pure parts of the load driver's scenario ``mesh``: records, percentiles, the report."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from loadtest.__main__ import main
from loadtest.fleet import Latencies
from loadtest.ledger import Verdict
from loadtest.mesh import crowd, report, scenario
from loadtest.mesh.heal import Heal
from loadtest.mesh.mail import Mail
from loadtest.mesh.spread import Spread
from loadtest.phases import Open, Slice
from relay.protocol import endpoint_record
from relay.protocol.did import parse_did

KEYS = (
    "local_p99_ms", "cross_p99_ms", "a_cpu_ratio", "c_cpu_ratio", "lost", "records_99_s",
    "heal_s", "rss_100k_mb",
)  # fmt: skip
MACHINE = {
    "cpu": "a CPU", "cores": 2, "kernel": "6", "python": "3", "filesystem": "ext4", "fsync_us": 9,
}  # fmt: skip


def found(latency_ms: float, near_us: float, far_us: float = 0.0) -> Open:
    latencies = Latencies()
    for _ in range(100):
        latencies.delivered.record_value(int(latency_ms * 1000))
    measured = Slice(1.0, 200.0, near_us, 0.0, 0.0, 0.0, 0.0, far_us)
    return Open(200.0, measured, latencies, 1.0)


def mail() -> Mail:
    return Mail(
        200.0,
        local=[found(10, 400), found(10, 500), found(10, 600)],
        cross=[found(20, 480, 440), found(20, 600, 550), found(20, 720, 660)],
    )


# ---------------------------------------------------------------- the crowd


def test_a_record_of_the_crowd_is_its_agents_own_and_a_later_one_is_newer():
    now = time.time()
    older, newer = (endpoint_record.parse(crowd.sign(7, now=at)) for at in (now - 10, now))
    key = parse_did(older.did)
    assert older.did == newer.did == crowd.key_of(7).did
    assert endpoint_record.verify(newer, key, now) is None
    assert endpoint_record.merge(older, newer) is newer
    assert crowd.row_of(newer.jws.compact)[0] == key.agent_key


def test_a_crowd_is_made_once_and_read_from_its_file_afterwards(tmp_path: Path):
    first = crowd.crowd(20, directory=tmp_path)
    assert crowd.crowd(20, directory=tmp_path) == first
    assert len(set(first)) == 20
    [path] = tmp_path.iterdir()
    path.write_text("not what it was")
    assert len(crowd.crowd(20, directory=tmp_path)) == 20


# ---------------------------------------------------------------- figures


def test_a_percentile_is_of_all_pairs_those_that_never_came_included():
    spread = Spread(20, [float(number) for number in range(1, 100)], missing=1)
    assert spread.percentile(0.5) == 50.0
    assert spread.percentile(0.99) == 99.0
    assert spread.percentile(1.0) == math.inf


def test_cpu_is_compared_with_the_single_relay_of_the_same_turn():
    assert mail().ratio("node_cpu_us") == pytest.approx(1.2)
    assert mail().ratio("far_cpu_us") == pytest.approx(1.1)


def test_the_report_has_all_keys_whatever_ran():
    empty = report.as_object(report.Run(MACHINE))
    assert set(KEYS) <= set(empty)
    assert empty["lost"] == 0
    assert [empty[key] for key in KEYS if key != "lost"] == [None] * 7


def test_the_report_says_what_was_found_and_which_aims_were_missed():
    run = report.Run(
        MACHINE,
        mail=mail(),
        spread=Spread(20, [1.0] * 50 + [6.0] * 50),
        heal=Heal(100_000, 10_000, heal_s=30.0, node_mb=120.0, node_cpu_s=[1.0, 1.0]),
    )
    said = report.as_object(run)
    assert said["local_p99_ms"] == pytest.approx(10, rel=0.01)
    assert said["cross_p99_ms"] == pytest.approx(20, rel=0.01)
    assert (said["a_cpu_ratio"], said["c_cpu_ratio"]) == (1.2, 1.1)
    assert (said["records_99_s"], said["heal_s"], said["rss_100k_mb"]) == (6.0, 30.0, 120.0)
    assert [name for name, reached in said["aims"].items() if not reached] == ["records_99"]
    text = report.as_text(run)
    assert "aims missed: records_99" in text
    assert "p99 2.0 times the local one" in text


def test_a_loss_is_not_good():
    run = report.Run(MACHINE, verdict=Verdict(lost=1))
    assert report.as_object(run)["lost"] == 1
    assert not run.is_good()
    assert "NOT GOOD" in report.as_text(run)


# ---------------------------------------------------------------- the command line


def test_the_options_of_a_full_and_of_a_quick_run():
    full, quick = scenario.read([]), scenario.read(["--quick", "--part", "heal"])
    assert (full.relays, full.records) == (20, 100_000)
    assert full.parts == {"mail", "spread", "heal"}
    assert quick.records < full.records
    assert quick.parts == {"heal"}


def test_an_unknown_part_ends_the_driver_with_2():
    with pytest.raises(SystemExit) as ended:
        main(["mesh", "--part", "moon"])
    assert ended.value.code == 2
