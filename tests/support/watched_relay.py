"""A ``relay`` process that writes down what Python opens and imports: LATE lines on stderr.

Run with ``python -m tests.support.watched_relay serve …``. What is written before the log says
``node_started`` belongs to the start; any later line is a read of an installed package by a node
that runs.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OURS = str(ROOT / "relay")
INSTALLED = (
    OURS,
    *(str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "purelib", "platlib")),
)


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Write down an import, a file of a package that is opened, or a file of ours that is run."""
    if event == "import":
        os.write(2, f"LATE import {arguments[0]}\n".encode())
    if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(INSTALLED):
        os.write(2, f"LATE open {arguments[0]}\n".encode())
    if event == "subprocess.Popen":
        for word in arguments[1]:
            if str(word).startswith(OURS):
                os.write(2, f"LATE run {word}\n".encode())


if __name__ == "__main__":
    from relay.cli import main

    sys.addaudithook(watch)
    sys.argv[0] = "relay"
    sys.exit(main())
