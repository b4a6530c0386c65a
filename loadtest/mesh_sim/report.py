"""Report the results of the simulation: one JSON object, or a table for a person."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Final

from loadtest.mesh_sim.scenes import TROUBLES, Found

LARGE: Final = 100_000
SMALL: Final = 2_000
BASE: Final = 20
"""This many relays were simulated with both sizes, so the difference is known."""


def extrapolated(runs: Sequence[Found]) -> list[Found]:
    """Return estimates for runs that are missing.

    A trouble in the largest mesh: a smaller mesh with that trouble, plus the extra time of the
    largest mesh without trouble. A large directory on a large mesh: each relay's work grows with
    the records, and the time of news with the relays. So the estimate is the time of many records
    in a small mesh, plus the extra time of the larger mesh with few records.
    """
    known = {(run.trouble, run.relays, run.records): run for run in runs}
    made: list[Found] = []
    wide = sorted({run.relays for run in runs if run.relays > BASE and run.records == SMALL})
    for smaller, relays in zip([BASE, *wide], wide, strict=False):
        for trouble in TROUBLES:
            shift = [("plain", relays, SMALL), (trouble, smaller, SMALL), ("plain", smaller, SMALL)]
            made += _missing(known, (trouble, relays, SMALL), shift)
    for relays in wide:
        for trouble in TROUBLES:
            shift = [(trouble, relays, SMALL), (trouble, BASE, LARGE), (trouble, BASE, SMALL)]
            made += _missing(known, (trouble, relays, LARGE), shift)
    return made


Name = tuple[str, int, int]


def _missing(known: dict[Name, Found], name: Name, shift: Sequence[Name]) -> list[Found]:
    """The run of this name, if it is not known and can be made; then it is known."""
    if name in known or not known.keys() >= set(shift):
        return []
    wide, large, small = (known[one] for one in shift)
    known[name] = _shifted(large, small, wide)
    return [known[name]]


def _shifted(large: Found, small: Found, wide: Found) -> Found:
    return dataclasses.replace(
        large,
        relays=wide.relays,
        seconds=_sum(large.seconds, wide.seconds, small.seconds),
        settled_s=_sum(large.settled_s, wide.settled_s, small.settled_s),
        rounds=large.rounds + wide.rounds - small.rounds,
        frames=0,
        lost=0,
        curve=[],
        wall_s=0.0,
    )


def _sum(large: float | None, wide: float | None, small: float | None) -> float | None:
    if large is None or wide is None or small is None:
        return None
    return large + max(0.0, wide - small)


def as_json(runs: Sequence[Found], machine: dict[str, Any], seed: int) -> dict[str, Any]:
    """Everything, for a program."""
    return {
        "machine": machine,
        "seed": seed,
        "runs": [run.plain() for run in runs],
        "extrapolated": [run.plain() for run in extrapolated(runs)],
    }


def from_json(saved: dict[str, Any]) -> list[Found]:
    """The runs of a saved object."""
    return [
        Found(**{**run, "curve": [(at, share) for at, share in run["curve"]]})
        for run in saved["runs"]
    ]


def table(runs: Sequence[Found]) -> Iterator[str]:
    """Lines of Markdown; what was not simulated has a ≈."""
    yield (
        "| relays | records | trouble | 99 % after s | all after s | pulls a relay "
        "| MB sent a relay | bytes a record learnt |"
    )
    yield "|---:|---:|---|---:|---:|---:|---:|---:|"
    order = list(TROUBLES)
    rows = [(run, "") for run in runs] + [(run, "≈ ") for run in extrapolated(runs)]
    rows.sort(key=lambda row: (row[0].records, row[0].relays, order.index(row[0].trouble)))
    for run, about in rows:
        cells = (
            f"{run.relays:,}", f"{run.records:,}", run.trouble,
            f"{about}{_seconds(run.settled_s)}", f"{about}{_seconds(run.seconds)}",
            f"{about}{run.rounds:.1f}", f"{about}{run.mb_sent:.1f}",
            f"{about}{run.bytes_per_record:,.0f}",
        )  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def _seconds(found: float | None) -> str:
    return "never" if found is None else f"{found:.0f}"
