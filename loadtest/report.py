"""What a run found: one JSON object, or the same for a person.

Rules of the file: pure. A figure of a phase that did not run is null; a count of the ledger never.
"""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass, field
from typing import Any, Final

from loadtest.fleet import PAIRS
from loadtest.ledger import Verdict
from loadtest.phases import IN_FLIGHT, Closed, Idle, Open, Slice, middle

Object = dict[str, Any]
PERCENTILES: Final = (50, 95, 99)


@dataclass(slots=True)
class Run:
    """Everything that one run found.

    Args:
        machine: where.
        verdict: the ledger's.
        sent: envelopes over all phases.
        rejections: how many for which reason.
        closed: phase 1.
        open: phase 2.
        idle: phase 3.
        curve: latency at several rates, for the plot.
        seconds: how long all of it took.
        trouble: why it ended early.
    """

    machine: Object
    verdict: Verdict = field(default_factory=Verdict)
    sent: int = 0
    rejections: dict[str, int] = field(default_factory=dict)
    closed: Closed | None = None
    open: Open | None = None
    idle: Idle | None = None
    curve: list[Open] = field(default_factory=list)
    seconds: float = 0.0
    trouble: str | None = None

    def is_good(self) -> bool:
        """Whether nothing went wrong."""
        return self.trouble is None and self.verdict.is_good()


def milliseconds(found: Any) -> Object:
    """The percentiles of a histogram of microseconds."""
    return {f"p{at}": round(found.get_value_at_percentile(at) / 1000, 2) for at in PERCENTILES}


_RATE: Final = "envelopes_per_s"
_NOTHING: Final[Object] = {f"p{at}": None for at in PERCENTILES}


def as_object(run: Run) -> Object:
    """One flat object: first what everybody compares, then what explains it."""
    return {
        **_phase_1(run.closed),
        **_phase_2(run.open),
        **_phase_3(run.idle),
        **dataclasses.asdict(run.verdict),
        "sent": run.sent,
        "rejections": run.rejections,
        "ok": run.is_good(),
        "trouble": run.trouble,
        "seconds": round(run.seconds, 1),
        "curve": [{"rate": round(one.rate), **_phase_2(one)} for one in run.curve],
        "machine": run.machine,
    }


def _phase_1(closed: Closed | None) -> Object:
    if closed is None:
        names = ("envelopes_per_s", "node_cpu_us", "store_cpu_us", "verify_us", "cpu_ratio")
        return dict.fromkeys(names)
    slices = closed.slices
    node, verify = middle(slices, "node_cpu_us"), statistics.median(closed.verify_us)
    loaded = closed.verify_under_load_us
    pairs = zip(slices, loaded, strict=True)
    return {
        "envelopes_per_s": round(middle(slices, "envelopes_per_s")),
        "node_cpu_us": round(node, 1),
        "store_cpu_us": round(middle(slices, "store_cpu_us"), 1),
        "store_children_cpu_us": round(middle(slices, "store_children_cpu_us"), 1),
        "driver_cpu_us": round(middle(slices, "driver_cpu_us"), 1),
        "verify_us": round(verify, 1),
        "verify_under_load_us": round(statistics.median(loaded), 1),
        "cpu_ratio": round(node / verify, 2),
        "cpu_ratio_under_load": round(
            statistics.median(one.node_cpu_us / check for one, check in pairs), 2
        ),
        "node_cores": round(_cores(slices), 2),
        "commit_size": round(closed.commit_size, 1),
        "in_flight": PAIRS * IN_FLIGHT,
        "verify_slices_us": [round(one, 1) for one in closed.verify_us],
        "slices": [_rounded(one) for one in slices],
    }


def _cores(slices: list[Slice]) -> float:
    """How much of a core the node uses; well below 1, it waits for something."""
    return statistics.median(one.node_cpu_us * one.envelopes_per_s / 1e6 for one in slices)


def _rounded(one: Slice) -> Object:
    return {name: round(value, 2) for name, value in dataclasses.asdict(one).items()}


def _phase_2(found: Open | None) -> Object:
    if found is None:
        return {"latency_ms": dict(_NOTHING), "receipt_ms": dict(_NOTHING)}
    return {
        "latency_ms": milliseconds(found.latencies.delivered),
        "receipt_ms": milliseconds(found.latencies.receipted),
        "open": {
            "rate": round(found.rate),
            "late_ms": milliseconds(found.latencies.sent),
            "commit_size": round(found.commit_size, 1),
            **_rounded(found.slice),
        },
    }


def _phase_3(idle: Idle | None) -> Object:
    if idle is None:
        return {"idle_rss_kb": None}
    return {
        "idle_rss_kb": round(idle.node_rss_kb, 1),
        "idle_store_rss_kb": round(idle.store_rss_kb, 1),
        "idle_sockets": idle.sockets,
        "logins_per_s": round(idle.logins_per_s),
    }


# ---------------------------------------------------------------- for a person


def as_text(run: Run) -> str:
    """The same, to be read."""
    parts = [_machine_text(run.machine)]
    if run.closed is not None:
        parts.append(_closed_text(run.closed))
    if run.open is not None:
        parts.append(_open_text(run.open))
    if run.idle is not None:
        parts.append(_idle_text(run.idle))
    if run.curve:
        parts.append(_curve_text(run.curve))
    parts.append(_verdict_text(run))
    return "\n\n".join(parts)


def _machine_text(machine: Object) -> str:
    return (
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, "
        f"Python {machine['python']}, {machine['filesystem']} (fsync {machine['fsync_us']} µs), "
        f"load {machine['load_average']:.1f} at the start"
    )


def _spread(slices: list[Slice], figure: str) -> str:
    values = [getattr(one, figure) for one in slices]
    return f"{min(values):,.0f} to {max(values):,.0f}"


def _closed_text(closed: Closed) -> str:
    found, slices = _phase_1(closed), closed.slices
    others, loaded = middle(slices, "other_cores"), found["cpu_ratio_under_load"]
    checks = (
        f"{min(closed.verify_us):.0f} to {max(closed.verify_us):.0f}; "
        f"{found['verify_under_load_us']} while the load runs"
    )
    lines = [
        f"1. closed loop, {found['in_flight']} in flight, {len(slices)} slices, medians",
        f"   envelopes/s     {found['envelopes_per_s']:>8,}     ({_spread(slices, _RATE)})",
        f"   node CPU        {found['node_cpu_us']:>8} µs  ({_spread(slices, 'node_cpu_us')})",
        f"   store CPU       {found['store_cpu_us']:>8} µs  ({_spread(slices, 'store_cpu_us')})",
        f"   driver CPU      {found['driver_cpu_us']:>8} µs",
        f"   one signature   {found['verify_us']:>8} µs  ({checks})",
        f"   node / signature{found['cpu_ratio']:>8}     ({loaded} by checks while the load runs)",
        f"   a commit        {found['commit_size']:>8} envelopes",
        f"   the node uses   {found['node_cores']:>8} cores, other programs {others:.2f}",
    ]
    return "\n".join(lines)


def _percentiles(name: str, found: Any) -> str:
    ms = milliseconds(found)
    return f"   {name:<18}" + "   ".join(f"{at} {value:>7.2f} ms" for at, value in ms.items())


def _open_text(found: Open) -> str:
    measured, latencies = found.slice, found.latencies
    costs = (
        f"   node {measured.node_cpu_us:.0f} µs, store {measured.store_cpu_us:.0f} µs, "
        f"driver {measured.driver_cpu_us:.0f} µs an envelope; {found.commit_size:.1f} a commit; "
        f"other programs {measured.other_cores:.2f} cores"
    )
    lines = [
        f"2. open loop at {found.rate:,.0f}/s, from the planned time of sending",
        _percentiles("to the recipient", latencies.delivered),
        _percentiles("to the receipt", latencies.receipted),
        _percentiles("driver was late", latencies.sent),
        costs,
    ]
    return "\n".join(lines)


def _idle_text(idle: Idle) -> str:
    return (
        f"3. {idle.sockets:,} idle authenticated sockets ({idle.logins_per_s:.0f} logins/s)\n"
        f"   node {idle.node_rss_kb:.1f} kB, store {idle.store_rss_kb:.1f} kB of memory each"
    )


def _curve_text(curve: list[Open]) -> str:
    lines = (_percentiles(f"{one.rate:,.0f}/s", one.latencies.delivered) for one in curve)
    return "\n".join(["latency against rate, to the recipient", *lines])


def _verdict_text(run: Run) -> str:
    counts = dataclasses.asdict(run.verdict)
    said = ", ".join(f"{value} {name}" for name, value in counts.items())
    reasons = ", ".join(f"{count} {code}" for code, count in run.rejections.items())
    said += f" ({reasons})" if reasons else ""
    ended = f"\nended early: {run.trouble}" if run.trouble is not None else ""
    word = "good" if run.is_good() else "NOT GOOD"
    return f"ledger of {run.sent:,} envelopes: {word}: {said}{ended}\n{run.seconds:.0f} s in all"
