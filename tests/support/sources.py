"""The source files of the project, and the names that they define."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def name(path: Path) -> str:
    """Return the path below the root, for test ids and messages."""
    return path.relative_to(ROOT).as_posix()


def defined(tree: ast.AST) -> Iterator[str]:
    """Yield the names that we chose: what is defined, assigned or taken as an argument."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=found) | ast.AsyncFunctionDef(name=found):
                yield found
            case ast.ClassDef(name=found) | ast.arg(arg=found):
                yield found
            case ast.Name(id=found, ctx=ast.Store()) | ast.Attribute(attr=found, ctx=ast.Store()):
                yield found
            case _:
                pass


def words(identifier: str) -> set[str]:
    """Return the words of a name, also without a plural's s."""
    found = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", identifier)
    return {word.lower() for word in found} | {word.lower().removesuffix("s") for word in found}
