"""Scenario ``mesh``: mail between relays, 20 relays that share records, two that part and heal.

Rules of the file: as in ``loadtest/single.py``: stdout carries the report and nothing else. Exit
code 0 where the ledger is good, 1 where it is not, 2 where the run could not be made.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
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

from loadtest import machine, phases
from loadtest.agents import AgentFailedError
from loadtest.ledger import Ledger
from loadtest.mesh import heal, mail, report, spread
from loadtest.process import RelayFailedError
from relay.protocol.errors import RelayError

RESULTS: Final = Path(__file__).parents[1] / "results"
PARTS: Final = ("mail", "spread", "heal")
RATE: Final = 200.0
MAIL_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for."""

    parts: frozenset[str]
    rate: float
    seconds: float
    relays: int
    records: int
    data: Path
    json: bool
    save: bool


def main(words: Sequence[str]) -> int:
    """Run, report; gives the exit code."""
    options = read(words)
    run = report.Run(machine={})
    began = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="relay-mesh-", dir=options.data) as directory:
            run.machine = machine.describe(Path(directory))
            gc.disable()  # a collection would look like the relay's latency
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
        prog="./run bench mesh",
        description="Mail between relays and the records they share, with real relays.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="about a minute, rough figures")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this one; repeatable")
    parser.add_argument("--rate", type=float, default=RATE, help=f"of the mail (default: {RATE:g})")
    parser.add_argument("--seconds", type=float, help=f"of the mail (default: {MAIL_S:g})")
    parser.add_argument("--relays", type=int, help="that share records (default: 20)")
    parser.add_argument("--records", type=int, help="of two relays that part (default: 100,000)")
    parser.add_argument(
        "--data", type=Path, default=Path("/var/tmp"),  # noqa: S108  a directory of our own in it
        help="where to make the stores' directories: a real disk (default: /var/tmp)",
    )  # fmt: skip
    parser.add_argument("--save", action="store_true", help="keep the object in loadtest/results/")
    given = parser.parse_args(words)
    quick = given.quick
    return Options(
        parts=frozenset(given.part or PARTS),
        rate=given.rate,
        seconds=given.seconds or (12.0 if quick else MAIL_S),
        relays=given.relays or (5 if quick else spread.RELAYS),
        records=given.records or (10_000 if quick else heal.RECORDS),
        data=given.data,
        json=given.json,
        save=given.save,
    )


async def _run(options: Options, directory: Path, run: report.Run) -> None:
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    ledger = Ledger()
    try:
        await _parts(options, directory, ledger, run)
    except* (phases.RestlessError, AgentFailedError, RelayError, RelayFailedError) as exc:
        said = "; ".join(str(one) for one in exc.exceptions)
        run.trouble = said or "what was sent did not all come to its end"
    run.verdict, run.sent = ledger.verdict(), ledger.count
    run.rejections = dict(ledger.rejections)


async def _parts(options: Options, directory: Path, ledger: Ledger, run: report.Run) -> None:
    if "mail" in options.parts:
        _say(f"mail: {options.rate:g}/s within one relay and from A to C, in turns")
        run.mail = await mail.measure(directory / "mail", ledger, options.rate, options.seconds)
    if "spread" in options.parts:
        _say(f"records: starting {options.relays} relays")
        run.spread = await spread.measure(directory / "spread", options.relays)
    if "heal" in options.parts:
        _say(f"records: {options.records:,} at two relays that part")
        changed = options.records // 10
        run.heal = await heal.measure(directory / "heal", options.records, changed)


def _write(options: Options, run: report.Run) -> None:
    found = report.as_object(run)
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        name = f"{run.machine['at'][:19].replace(':', '')}-mesh.json"
        pretty = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
        (RESULTS / name).write_bytes(orjson.dumps(found, option=pretty))
        _say(f"saved loadtest/results/{name}")
    print(orjson.dumps(found).decode() if options.json else report.as_text(run))


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr)
