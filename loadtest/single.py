"""Scenario ``node``: one node, its embedded store, sixteen agents, then two thousand idle ones.

Rules of the file: stdout carries the report and nothing else; progress goes to stderr. Exit code 0
where the ledger is good, 1 where it is not, 2 where the run could not be made.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
import uvloop

from loadtest import machine, phases, plot, report
from loadtest.agents import AgentFailedError
from loadtest.fleet import Fleet
from loadtest.ledger import Ledger
from loadtest.process import RelayFailedError, RelayProcess, relay_process
from relay.protocol.errors import RelayError

RESULTS: Final = Path(__file__).parent / "results"
SHARES: Final = (0.1, 0.25, 0.5, 0.65, 0.8, 0.9)
"""Of phase 1's rate, for the plot."""
FILES: Final = 16_384


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for."""

    phases: frozenset[int]
    seconds: float
    rate: float | None
    sockets: int
    data: Path
    json: bool
    save: bool
    plot: Path | None


def main(words: Sequence[str]) -> int:
    """Run, report; gives the exit code."""
    options = read(words)
    _allow_files()
    run = report.Run(machine={})
    began = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="relay-bench-", dir=options.data) as directory:
            run.machine = machine.describe(Path(directory))
            if run.machine["filesystem"] in machine.IN_MEMORY:
                _say(f"{options.data} is in memory: fsync costs nothing there; use --data")
            gc.disable()  # a collection of 100,000 envelopes would look like the relay's latency
            uvloop.run(_run(options, Path(directory), run))
    except (OSError, RelayFailedError, TimeoutError) as exc:
        _say(str(exc) or type(exc).__name__)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    run.seconds = time.perf_counter() - began
    _write(options, run)
    return 0 if run.is_good() else 1


def read(words: Sequence[str]) -> Options:
    """Read the options; what is wrong ends the program with 2 and a sentence."""
    parser = argparse.ArgumentParser(
        prog="./run bench", description="Drive a real relay process and account for every envelope."
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="about 20 s, rough figures")
    parser.add_argument(
        "--phase", type=int, choices=(1, 2, 3), action="append", help="only this one; repeatable"
    )
    parser.add_argument("--seconds", type=float, help="length of phases 1 and 2 (default: 30)")
    parser.add_argument("--rate", type=float, help="of phase 2; default: half of phase 1's")
    parser.add_argument("--sockets", type=int, default=2000, help="of phase 3 (default: 2000)")
    parser.add_argument(
        "--data", type=Path, default=Path("/var/tmp"),  # noqa: S108  a directory of our own in it
        help="where to make the store's directory: a real disk (default: /var/tmp)",
    )  # fmt: skip
    parser.add_argument("--save", action="store_true", help="keep the object in loadtest/results/")
    parser.add_argument("--plot", type=Path, metavar="SVG", help="draw latency against rate")
    given = parser.parse_args(words)
    wanted = frozenset(given.phase or (1, 2, 3))
    if given.rate is None and 1 not in wanted and (2 in wanted or given.plot is not None):
        parser.error("phase 2 without phase 1 needs --rate")
    seconds = given.seconds or (3.0 if given.quick else 30.0)
    return Options(
        phases=wanted,
        seconds=seconds,
        rate=given.rate,
        sockets=given.sockets,
        data=given.data,
        json=given.json,
        save=given.save,
        plot=given.plot,
    )


async def _run(options: Options, directory: Path, run: report.Run) -> None:
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    ledger = Ledger()
    try:
        if options.phases & {1, 2} or options.plot is not None:
            async with relay_process(directory / "load") as relay:
                await _load(options, relay, ledger, run)
        if 3 in options.phases:
            async with relay_process(directory / "idle") as relay:
                _say(f"phase 3: {options.sockets} idle sockets at node {relay.pid}")
                run.idle = await phases.idle_sockets(relay, options.sockets)
    except (phases.RestlessError, AgentFailedError, RelayError) as exc:
        run.trouble = str(exc) or "what was sent did not all come to its end"
    run.verdict, run.sent = ledger.verdict(), ledger.count
    run.rejections = dict(ledger.rejections)


async def _load(options: Options, relay: RelayProcess, ledger: Ledger, run: report.Run) -> None:
    async with Fleet(relay, ledger).opened() as fleet:
        rate = options.rate or 0.0
        if 1 in options.phases:
            _say(f"phase 1: closed loop at node {relay.pid}, store {relay.store_pid}")
            run.closed = await phases.closed_loop(fleet, options.seconds)
            rate = rate or phases.middle(run.closed.slices, "envelopes_per_s") / 2
        if 2 in options.phases:
            _say(f"phase 2: open loop, {rate:,.0f}/s")
            run.open = await phases.open_loop(fleet, rate, options.seconds)
        if options.plot is not None:
            for share in SHARES:
                _say(f"plot: open loop, {share * rate * 2:,.0f}/s")
                seconds = min(options.seconds, 8.0)
                run.curve.append(await phases.open_loop(fleet, share * rate * 2, seconds))


def _write(options: Options, run: report.Run) -> None:
    found = report.as_object(run)
    if options.plot is not None and run.curve:
        points = [
            plot.Point(one.rate, **report.milliseconds(one.latencies.delivered))
            for one in run.curve
        ]
        title = f"Latency to the recipient from the planned time; {run.machine['cpu']}"
        options.plot.write_text(plot.draw(points, title), encoding="utf-8")
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        name = f"{run.machine['at'][:19].replace(':', '')}-node.json"
        pretty = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
        (RESULTS / name).write_bytes(orjson.dumps(found, option=pretty))
        _say(f"saved loadtest/results/{name}")
    print(orjson.dumps(found).decode() if options.json else report.as_text(run))


def _allow_files() -> None:
    """Two thousand sockets need as many files here, and in the relay, which inherits this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr)
