"""``python -m loadtest.mesh_sim [--quick] [--json] [--save] [--plot FILE] [--seed N]``.

``--redraw SAVED`` simulates nothing: it shows a saved result again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from loadtest import machine
from loadtest.mesh_sim import plot, report, scenes
from loadtest.process import ROOT

RESULTS: Final = ROOT / "loadtest" / "results"
TITLE: Final = "Until all relays agree (simulated: real gossip and anti-entropy, virtual clock)"


def main(words: Sequence[str]) -> int:
    """Simulate all troubles in all meshes; 0 if every honest relay came to hold everything."""
    options = _options(words)
    if options.redraw:
        runs = report.from_json(json.loads(Path(options.redraw).read_text()))
    else:
        runs = _simulate(scenes.QUICK if options.quick else scenes.FULL, options.seed)
    if options.plot:
        Path(options.plot).write_text(plot.draw(runs, TITLE))
    if options.json or options.save:
        _keep(runs, options)
    if not options.json:
        print("\n".join(report.table(runs)))
    return 0 if all(run.seconds is not None for run in runs) else 1


def _simulate(meshes: Sequence[scenes.Mesh], seed: int) -> list[scenes.Found]:
    runs = []
    for mesh in meshes:
        for trouble in scenes.TROUBLES:
            run = scenes.run(trouble, mesh, seed)
            runs.append(run)
            print(
                f"{mesh.relays} relays, {mesh.records} records, {trouble}: "
                f"{run.seconds and round(run.seconds)} s, simulated in {run.wall_s:.0f} s",
                file=sys.stderr,
            )
    return runs


def _keep(runs: Sequence[scenes.Found], options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as directory:
        found = report.as_json(runs, machine.describe(Path(directory)), options.seed)
    if options.save:
        name = f"{found['machine']['at'][:19].replace(':', '')}-mesh-sim.json"
        (RESULTS / name).write_text(json.dumps(found, indent=1) + "\n")
        print(f"saved loadtest/results/{name}", file=sys.stderr)
    if options.json:
        print(json.dumps(found))


def _options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("mesh_sim", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small meshes, some seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help="keep the object in loadtest/results/")
    parser.add_argument("--plot", metavar="FILE", help="write the picture, as SVG")
    parser.add_argument("--redraw", metavar="SAVED", help="show a saved result again")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is by chance")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
