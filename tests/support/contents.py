"""The table of contents of tests/: ``python -m tests.support.contents`` writes tests/README.md.

A line is the first line of a file's docstring. ``tests/unit/test_contents.py`` compares the files.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
README = TESTS / "README.md"
FOLDERS = {
    "unit": "Single functions, values and state machines; no socket, no process.",
    "vectors": "Signed values and hostile URLs as JSON, for other implementations, too.",
    "protocol": "State machines together: exhaustive searches, long random walks, broken rules.",
    "store": "The store's contract over memory, Valkey, Redis and a cluster.",
    "node": "One node in this process or as a process, over real sockets.",
    "federation": "Relays that talk to each other over real sockets.",
    "client": "The SDK against real nodes and against relays that lie.",
    "cli": "The command line, as processes.",
    "integration": "The embedded store, a full disk, the load driver.",
    "deploy": "Dockerfile, compose file, wheel and ./run.",
    "interop": "A client in another language, written from the documents alone.",
    "chaos": "Kill tests: real processes are killed, and a checker judges what agents saw.",
    "support": "Parts that tests of several folders share.",
}
HEAD = """# Tests

`./run test` runs all tests but the slow ones, `./run test --slow` those. `./run test -n 4 --dist
loadgroup` is what CI runs: see [support/lanes.py](support/lanes.py). `--matrix` prints which test
finds which broken rule: see [support/broken_rules.py](support/broken_rules.py).

`python -m tests.support.contents` writes this page from the first line of each docstring.
"""


def files(folder: str) -> Iterator[Path]:
    """Yield the Python files of a folder of tests, helpers first."""
    found = (path for path in (TESTS / folder).glob("*.py") if path.name != "__init__.py")
    yield from sorted(found, key=lambda path: (path.name.startswith("test_"), path.name))


def line_of(path: Path) -> str:
    """Return the first line of a file's docstring, without code in double backticks."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.partition("\n\n")[0].replace("\n", " ").replace("``", "`").replace("|", "\\|")


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for folder, purpose in FOLDERS.items():
        parts.append(f"\n## {folder}/\n\n{purpose}\n\n")
        parts += [f"- `{path.name}`: {line_of(path)}\n" for path in files(folder)]
    return "".join(parts)


if __name__ == "__main__":
    README.write_text(page())
