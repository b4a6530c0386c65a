"""``python -m loadtest [SCENARIO] [OPTIONS]``: each scenario reads its own options.

Without a first word the scenario is ``node``: one node, its embedded store, this driver.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Final

from loadtest import single
from loadtest.mesh import scenario as mesh
from loadtest.migrate import scenario as migrate
from relay.cli import streams

SCENARIOS: Final[dict[str, Callable[[Sequence[str]], int]]] = {
    "node": single.main,
    "mesh": mesh.main,
    "migrate": migrate.main,
}


def main(words: Sequence[str]) -> int:
    """Run the scenario that the first word names; gives the exit code."""
    first = words[0] if words else ""
    if not first or first.startswith("-"):
        return SCENARIOS["node"](words)
    scenario = SCENARIOS.get(first)
    if scenario is None:
        print(f"loadtest: {first!r} is none of {', '.join(sorted(SCENARIOS))}", file=sys.stderr)
        return 2
    return scenario(words[1:])


if __name__ == "__main__":
    streams.install()
    try:
        sys.exit(main(sys.argv[1:]))
    except streams.OutputError as exc:
        sys.exit(f"bench: {exc.detail}")
