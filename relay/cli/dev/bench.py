"""``relay bench``: the load driver, which only a checkout has."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from relay.cli.exit_codes import Exit
from relay.cli.output import say

ROOT: Final = Path(__file__).parents[3]


def bench(words: Sequence[str]) -> int:
    """Run it with these words and return its exit code."""
    if not (ROOT / "loadtest" / "__main__.py").is_file():
        say("relay: the load driver is not installed: it comes with a checkout. There: ./run bench")
        return Exit.FAILED
    sys.path.insert(0, str(ROOT))
    try:
        driver = importlib.import_module("loadtest.__main__")
    except ModuleNotFoundError as exc:
        say(f"relay: the load driver needs {exc.name}, which is not installed; use ./run bench")
        return Exit.FAILED
    code: int = driver.main(words)
    return code
