"""Scenario ``migrate``: 10,000 waiting envelopes move from one relay to another.

Rules of the file: as in ``loadtest/single.py``: stdout carries the report and nothing else. Exit
code 0 where nothing was lost or doubled, 1 where it was, 2 where the run could not be made.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import uvloop

from loadtest import machine
from loadtest.migrate import move
from loadtest.migrate.move import Found
from loadtest.process import RelayFailedError
from relay.protocol.errors import RelayError
from relay.protocol.migration_statement import MigrationCounters

RESULTS: Final = Path(__file__).parents[1] / "results"
MOST_S: Final = 10.0
MOST_GAP_S: Final = 1.0
MOST_RATIO: Final = 5.0
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for."""

    waiting: int
    acked: int
    runs: int
    data: Path
    json: bool
    save: bool


def main(words: Sequence[str]) -> int:
    """Run, report; gives the exit code."""
    options = read(words)
    began = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="relay-migrate-", dir=options.data) as directory:
            where = machine.describe(Path(directory))
            found = uvloop.run(_run(options, Path(directory)))
    except (OSError, RelayError, RelayFailedError, TimeoutError) as exc:
        _say(str(exc) or type(exc).__name__)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    said = as_object(found) | {"seconds": round(time.perf_counter() - began, 1), "machine": where}
    _write(options, said)
    return 0 if said["ok"] else 1


def read(words: Sequence[str]) -> Options:
    """Read the options; what is wrong ends the program with 2 and a sentence."""
    parser = argparse.ArgumentParser(
        prog="./run bench migrate",
        description="An inbox full of mail moves from one real relay to another.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--waiting", type=int, default=move.WAITING, help="(default: 10,000)")
    parser.add_argument(
        "--acked", type=int, default=move.ACKED, help="before, at the old relay (default: 10,000)"
    )
    parser.add_argument("--runs", type=int, default=3, help="the median is shown (default: 3)")
    parser.add_argument(
        "--data", type=Path, default=Path("/var/tmp"),  # noqa: S108  a directory of our own in it
        help="where to make the stores' directories: a real disk (default: /var/tmp)",
    )  # fmt: skip
    parser.add_argument("--save", action="store_true", help="keep the object in loadtest/results/")
    given = parser.parse_args(words)
    return Options(given.waiting, given.acked, given.runs, given.data, given.json, given.save)


async def _run(options: Options, directory: Path) -> list[Found]:
    found = []
    for number in range(options.runs):
        _say(f"run {number + 1} of {options.runs}: {options.waiting:,} envelopes from A to B")
        where = directory / str(number)
        where.mkdir()
        found.append(await move.measure(where, options.waiting, options.acked))
    return found


# ---------------------------------------------------------------- report


def as_object(found: Sequence[Found]) -> Object:
    """One flat object: first what everybody compares, then what explains it."""
    ratios = [one.copy_s / statistics.median(one.plain_s) for one in found]
    middle = sorted(found, key=lambda one: one.move_s)[len(found) // 2]
    said: Object = {
        "move_s": round(middle.move_s, 2),
        "gap_s": round(statistics.median(one.gap_s for one in found), 3),
        "ratio": round(statistics.median(ratios), 2),
        "lost": sum(one.lost for one in found),
        "doubled": sum(one.doubled for one in found),
        "waiting": middle.waiting,
        "wire_bytes": middle.wire_bytes,
        "per_s": round(middle.waiting / middle.copy_s),
        "prepare_s": round(middle.prepare_s, 3),
        "freeze_s": round(middle.freeze_s, 3),
        "digest_pages": middle.digest_pages,
        "acked_before": middle.acked,
        "copy_s": round(middle.copy_s, 2),
        "plain_s": [round(one, 2) for one in middle.plain_s],
        "cpu_s": {name: round(cpu, 2) for name, cpu in middle.cpu_s.items()},
        "tally": middle.tally._asdict(),
        "runs": [_run_object(one) for one in found],
    }
    said["aims"] = {
        "move": said["move_s"] <= MOST_S,
        "gap": said["gap_s"] <= MOST_GAP_S,
        "ratio": said["ratio"] <= MOST_RATIO,
    }
    said["ok"] = _is_good(found)
    return said


def _is_good(found: Sequence[Found]) -> bool:
    """Whether every envelope came once, and A accounts for all that it had."""
    return all(
        not one.lost
        and not one.doubled
        and one.tally.is_balanced
        and one.tally.moved == one.waiting
        for one in found
    )


def _run_object(one: Found) -> Object:
    facts = dataclasses.asdict(dataclasses.replace(one, tally=MigrationCounters()))
    return {name: _rounded(value) for name, value in facts.items() if name != "tally"}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return value


def as_text(said: Object) -> str:
    """The same, to be read."""
    cpu = ", ".join(f"{name} {value} s" for name, value in said["cpu_s"].items())
    missed = [name for name, reached in said["aims"].items() if not reached]
    rows = (
        ("all of it", said["move_s"], f"aim {MOST_S:g}"),
        ("without delivery", said["gap_s"], f"aim {MOST_GAP_S:g}"),
        ("prepare", said["prepare_s"], ""),
        (
            "freeze and digest",
            said["freeze_s"],
            f"{said['digest_pages']} pages, {said['acked_before']:,} acked before",
        ),
        ("copy", said["copy_s"], f"{said['per_s']:,}/s"),
        ("a plain copy", said["plain_s"][0], f"the move's: {said['ratio']} times"),
    )
    lines = [f"{said['waiting']:,} envelopes ({said['wire_bytes'] / 2**20:.1f} MiB) from A to B"]
    lines += [f"   {what:<18}{value:>7} s   {more}".rstrip() for what, value, more in rows]
    lines += [
        f"   CPU: {cpu}",
        f"{said['lost']} lost, {said['doubled']} doubled: {'good' if said['ok'] else 'NOT GOOD'}",
        f"aims missed: {', '.join(missed)}" if missed else "all aims reached",
    ]
    return "\n".join(lines)


def _write(options: Options, said: Object) -> None:
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        name = f"{said['machine']['at'][:19].replace(':', '')}-migrate.json"
        pretty = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
        (RESULTS / name).write_bytes(orjson.dumps(said, option=pretty))
        _say(f"saved loadtest/results/{name}")
    print(orjson.dumps(said).decode() if options.json else as_text(said))


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr)
