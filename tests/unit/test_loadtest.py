"""The load driver's pure parts: its ledger, its plan of sending, what it reports."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import plot, report, single
from loadtest.__main__ import main
from loadtest.fleet import Latencies
from loadtest.ledger import Ledger, Verdict
from loadtest.phases import Closed, Idle, Open, Reading, Slice
from loadtest.posts import Stock, checksum
from loadtest.probes import MachineTime, Verifier
from loadtest.schedule import Schedule, ticking
from relay.protocol import envelope, frames
from relay.protocol.frames import Submit
from relay.protocol.ids import Eid
from tests.unit.builders import ALICE, BOB, MALLORY

GOOD = Verdict()
ONE, TWO, THREE = Eid("one"), Eid("two"), Eid("three")


def sent(*eids: Eid, lane: tuple[int, int] = (0, 0)) -> Ledger:
    ledger = Ledger()
    for eid in eids:
        ledger.post(eid, lane, due=0.0, checksum=7)
        ledger.store(eid)
    return ledger


def deliver(ledger: Ledger, *eids: Eid, to: int = 0, sum_: int = 7, marked: bool = False) -> None:
    for eid in eids:
        ledger.deliver(to, eid, sum_, redelivered=marked)


# ---------------------------------------------------------------- ledger


def test_what_is_sent_stored_and_delivered_once_in_order_is_good():
    ledger = sent(ONE, TWO, THREE)
    deliver(ledger, ONE, TWO, THREE)
    assert ledger.verdict() == GOOD
    assert ledger.verdict().is_good()
    assert ledger.count == 3


def test_stored_but_never_delivered_is_lost():
    ledger = sent(ONE, TWO)
    deliver(ledger, ONE)
    assert ledger.verdict() == Verdict(lost=1)
    assert not ledger.verdict().is_good()


def test_each_further_delivery_is_a_duplicate():
    ledger = sent(ONE)
    deliver(ledger, ONE, ONE, ONE)
    assert ledger.verdict() == Verdict(duplicated=2)


def test_a_marked_duplicate_is_still_one_since_nobody_reconnected():
    ledger = sent(ONE)
    deliver(ledger, ONE)
    deliver(ledger, ONE, marked=True)
    assert ledger.verdict() == Verdict(duplicated=1)


def test_a_first_delivery_that_claims_to_be_a_repeat_is_counted():
    ledger = sent(ONE)
    deliver(ledger, ONE, marked=True)
    assert ledger.verdict() == Verdict(marked=1)


def test_one_that_comes_after_a_later_one_of_its_lane_is_reordered():
    ledger = sent(ONE, TWO, THREE)
    deliver(ledger, TWO, ONE, THREE)
    assert ledger.verdict() == Verdict(reordered=1)


def test_a_duplicate_of_an_older_one_is_not_also_reordered():
    ledger = sent(ONE, TWO)
    deliver(ledger, ONE, TWO, ONE)
    assert ledger.verdict() == Verdict(duplicated=1)


def test_between_lanes_there_is_no_order():
    ledger = Ledger()
    for eid, lane in ((ONE, (0, 0)), (TWO, (1, 0)), (THREE, (0, 1))):
        ledger.post(eid, lane, due=0.0, checksum=7)
        ledger.store(eid)
    deliver(ledger, TWO, ONE)
    deliver(ledger, THREE, to=1)
    assert ledger.verdict() == GOOD


def test_what_nobody_sent_is_a_phantom_and_so_is_what_another_was_to_get():
    ledger = sent(ONE)
    deliver(ledger, TWO)
    deliver(ledger, ONE, to=5)
    assert ledger.verdict() == Verdict(phantom=2, lost=1)


def test_other_bytes_under_the_same_eid_are_altered():
    ledger = sent(ONE)
    deliver(ledger, ONE, sum_=8)
    assert ledger.verdict() == Verdict(altered=1)


def test_neither_receipt_nor_rejection_is_unanswered_even_if_it_arrived():
    ledger = Ledger()
    ledger.post(ONE, (0, 0), due=0.0, checksum=7)
    deliver(ledger, ONE)
    assert ledger.verdict() == Verdict(unanswered=1)


def test_a_rejection_is_an_answer_but_not_a_good_one():
    ledger = Ledger()
    ledger.post(ONE, (0, 0), due=0.0, checksum=7)
    ledger.reject(ONE, "rate_limited")
    assert ledger.verdict() == Verdict(rejected=1)
    assert ledger.rejections == {"rate_limited": 1}


def test_a_receipt_for_what_was_not_sent_is_counted():
    ledger = Ledger()
    assert ledger.store(ONE) is None
    ledger.misreceipt()
    assert ledger.verdict() == Verdict(misreceipted=2)


@given(st.permutations(range(6)), st.lists(st.integers(0, 5), max_size=4))
def test_the_ledger_counts_as_the_dumbest_reading_of_the_log_does(order, repeats):
    eids = [Eid(str(number)) for number in range(6)]
    ledger = sent(*eids)
    log = order[:4] + repeats
    deliver(ledger, *(eids[number] for number in log))
    firsts = list(dict.fromkeys(log))
    overtaken = [any(one > number for one in firsts[:at]) for at, number in enumerate(firsts)]
    assert ledger.verdict() == Verdict(
        lost=6 - len(firsts), duplicated=len(log) - len(firsts), reordered=sum(overtaken)
    )


# ---------------------------------------------------------------- schedule


def test_the_first_is_due_at_the_start_and_the_rest_at_a_constant_distance():
    plan = Schedule(start=10.0, rate=4.0, count=9)
    assert [plan.due(number) for number in (0, 1, 8)] == [10.0, 10.25, 12.0]
    assert plan.end == 12.0


def test_nothing_is_due_before_the_start_and_never_more_than_the_plan():
    plan = Schedule(start=10.0, rate=4.0, count=9)
    assert [plan.due_by(now) for now in (9.9, 10.0, 10.24, 10.25, 11.0, 99.0)] == [0, 1, 1, 2, 5, 9]


@given(st.integers(1, 100_000), st.integers(1, 5000), st.floats(0, 20, allow_nan=False))
def test_what_is_due_by_now_is_what_has_its_time_at_or_before_now(rate, count, now):
    plan = Schedule(start=0.0, rate=float(rate), count=count)
    by = plan.due_by(now)
    assert by == 0 or plan.due(by - 1) <= now + 1e-9
    assert by == count or plan.due(by) > now - 1e-9


def test_a_fast_plan_does_not_wake_the_driver_for_each_envelope():
    assert Schedule(0.0, 100.0, 1).tick_s == 0.01
    assert Schedule(0.0, 50_000.0, 1).tick_s == 0.000_25


async def test_ticks_come_until_the_block_ends():
    loop, enough = asyncio.get_running_loop(), asyncio.Event()
    ticks: list[float] = []

    def tick() -> None:
        ticks.append(time.perf_counter())
        if len(ticks) == 5:
            enough.set()

    began = time.perf_counter()
    with ticking(loop, 0.002, tick):
        await enough.wait()
    assert ticks[4] - began >= 0.002 * 5 - 0.001, "not faster than asked"
    seen = len(ticks)
    await asyncio.sleep(0.01)  # five more would come if it went on
    assert len(ticks) == seen


# ---------------------------------------------------------------- posts


async def test_posts_are_valid_envelopes_to_each_recipient_in_turn():
    stock = Stock(ALICE, 1, [BOB.did, MALLORY.did, ALICE.did])
    await stock.fill(4)
    assert [post.recipient for post in stock.posts] == [1, 2, 0, 1]
    for number, post in enumerate(stock.posts):
        frame = frames.parse(post.frame, "agent")
        assert isinstance(frame, Submit)
        assert frame.ref == str(number)
        parsed = envelope.parse(frame.envelopes[0])
        envelope.verify(parsed, parsed.sender)
        assert parsed.eid == post.eid
        assert len(parsed.body) == 512
        assert checksum(parsed.wire) == post.checksum


async def test_refs_go_on_after_what_was_sent_is_dropped():
    stock = Stock(ALICE, 0, [BOB.did])
    await stock.fill(3)
    stock.drop(2)
    await stock.fill(2)
    refs = [frames.parse(post.frame, "agent") for post in stock.posts]
    assert [one.ref for one in refs if isinstance(one, Submit)] == ["2", "3"]
    assert stock.first == 2


# ---------------------------------------------------------------- figures


def reading(at: float, delivered: int, cpu: float, busy: float) -> Reading:
    return Reading(at, delivered, cpu, cpu / 2, 0.0, cpu / 4, MachineTime(busy, 0.0))


def test_a_slice_is_the_difference_of_two_readings_per_envelope():
    found = Slice.between(reading(1.0, 100, 1.0, 10.0), reading(3.0, 300, 1.5, 11.875))
    assert found == Slice(
        seconds=2.0,
        envelopes_per_s=100.0,
        node_cpu_us=2500.0,
        store_cpu_us=1250.0,
        store_children_cpu_us=0.0,
        driver_cpu_us=625.0,
        other_cores=0.5,
    )


def test_warm_up_is_not_in_the_percentiles_and_lateness_of_the_driver_is():
    latencies = Latencies(counted_from=10.0)
    latencies.record(latencies.delivered, due=9.9, now=99.0)
    latencies.record(latencies.delivered, due=10.0, now=10.005)
    assert latencies.delivered.get_total_count() == 1
    assert report.milliseconds(latencies.delivered) == pytest.approx(
        {"p50": 5.0, "p95": 5.0, "p99": 5.0}, rel=0.01
    )


def test_a_signature_check_costs_something():
    assert 1 < Verifier(700).burst_us(4) < 100_000


def full_run() -> report.Run:
    one = Slice(1.0, 1000.0, 80.0, 20.0, 0.0, 10.0, 0.1)
    latencies = Latencies()
    for ms in range(1, 101):
        latencies.record(latencies.delivered, 0.0, ms / 1000)
        latencies.record(latencies.receipted, 0.0, ms / 2000)
        latencies.record(latencies.sent, 0.0, 0.0001)
    slices = [dataclasses.replace(one, node_cpu_us=cpu) for cpu in (70.0, 80.0, 500.0)]
    return report.Run(
        machine={
            "cpu": "a CPU", "cores": 2, "kernel": "6", "python": "3.11", "filesystem": "ext4",
            "fsync_us": 200, "load_average": 0.5, "at": "2026-01-01T00:00:00+00:00",
        },
        sent=1234,
        closed=Closed(slices, [40.0, 39.0, 90.0], [50.0, 40.0, 50.0], 250.0),
        open=Open(500.0, one, latencies, 12.5),
        idle=Idle(2000, 30.0, 1.0, 700.0),
        curve=[Open(rate, one, latencies, 12.5) for rate in (100.0, 900.0)],
    )  # fmt: skip


def test_the_object_has_what_others_compare_by_medians():
    found = report.as_object(full_run())
    assert found["envelopes_per_s"] == 1000
    assert (found["node_cpu_us"], found["store_cpu_us"], found["verify_us"]) == (80.0, 20.0, 40.0)
    assert found["cpu_ratio"] == 2.0
    assert found["cpu_ratio_under_load"] == 2.0, "slice by slice: 70/50, 80/40, 500/50"
    assert found["latency_ms"] == pytest.approx({"p50": 50.0, "p95": 95.0, "p99": 99.0}, rel=0.01)
    assert found["receipt_ms"]["p99"] == pytest.approx(49.5, rel=0.01)
    assert found["idle_rss_kb"] == 30.0
    assert (found["lost"], found["duplicated"], found["reordered"]) == (0, 0, 0)
    assert found["ok"] is True
    assert found["driver_cpu_us"] == 10.0


def test_a_phase_that_did_not_run_is_null_and_the_ledger_never_is():
    found = report.as_object(report.Run(machine={}, verdict=Verdict(lost=2)))
    figures: Any = (
        "envelopes_per_s", "node_cpu_us", "store_cpu_us", "verify_us", "cpu_ratio", "idle_rss_kb",
    )  # fmt: skip
    assert [found[name] for name in figures] == [None] * 6
    assert found["latency_ms"] == {"p50": None, "p95": None, "p99": None}
    assert found["lost"] == 2
    assert found["ok"] is False


def test_a_run_that_ended_early_is_not_good_whatever_the_ledger_says():
    run = full_run()
    assert run.is_good()
    run.trouble = "the node went away"
    assert not run.is_good()
    assert "NOT GOOD" in report.as_text(run)
    assert "the node went away" in report.as_text(run)


def test_the_readable_report_names_each_phase_and_the_verdict():
    text = report.as_text(full_run())
    for said in ("1. closed loop", "2. open loop at 500/s", "3. 2,000 idle", "0 lost", "good"):
        assert said in text


# ---------------------------------------------------------------- plot


@pytest.mark.parametrize("rates", [(500.0,), (100.0, 900.0, 4000.0)])
def test_the_plot_is_well_formed_and_everything_lies_on_the_paper(rates):
    points = [plot.Point(rate, 1.0 + rate / 1000, 3.0, 700.0) for rate in rates]
    root = ET.fromstring(plot.draw(points, "a < b & c"))  # noqa: S314  our own text
    circles = [one for one in root.iter() if one.tag.endswith("circle")]
    assert len(circles) == 3 * len(rates)
    assert all(plot.LEFT <= float(one.attrib["cx"]) <= plot.WIDTH for one in circles)
    assert all(0 <= float(one.attrib["cy"]) <= plot.HEIGHT for one in circles)


def test_more_latency_is_higher_on_the_paper():
    axes = plot.Axes(100.0, 1.0, 100.0)
    assert axes.y(50.0) < axes.y(5.0)
    assert axes.x(10.0) < axes.x(90.0)


# ---------------------------------------------------------------- options


def test_phase_2_alone_needs_a_rate(capsys):
    with pytest.raises(SystemExit) as ended:
        single.read(["--phase", "2"])
    assert ended.value.code == 2
    assert "--rate" in capsys.readouterr().err
    assert single.read(["--phase", "2", "--rate", "500"]).rate == 500.0


def test_quick_is_short_and_seconds_say_otherwise():
    assert single.read([]).seconds == 30.0
    assert single.read(["--quick"]).seconds < 10
    assert single.read(["--quick", "--seconds", "7"]).seconds == 7.0


def test_an_unknown_scenario_is_named(capsys):
    assert main(["nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err
