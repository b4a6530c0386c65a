"""What holds for every file of the project, whoever wrote it."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from tests.support.sources import ROOT, defined, name, words

MODULES = sorted((ROOT / "relay").rglob("*.py"))
CEILING = 500
OVER: dict[str, str] = {}
"""Files above the ceiling, with the reason. The list may only shrink."""
MAX_MODULES = 20
"""In one folder, ``__init__.py`` included."""
CROWDED = {"relay/store/redis"}
"""Folders with more modules. The list may only shrink."""
TWICE = {
    # the blocking twin of the SDK has the names of the asynchronous one
    "Agent", "Bounce", "Message", "Outcome",
    # the SDK's families of errors, which add the envelope and whether it was stored
    "ProtocolError", "RejectedError", "StateError", "UnavailableError",
    # of the reference
    "Inbox", "Outbox", "Rules",
}  # fmt: skip
"""Class names that are defined more than once. The list may only shrink."""

# Words of the glossary's right column that have no second, honest meaning here.
BANNED = {
    "bot", "broadcast", "homeserver", "mailbox", "neighbor", "neighbour", "packet", "spool",
    "username",
}  # fmt: skip

ARGUMENTS = re.compile(r"Args:\n((?:    .*\n?|\n)+)")

TEXT = {".py", ".md", ".toml", ".yml", ".yaml", ".lua", ".json", ".in", ".lock", ".sh", ".conf", ""}
GENERATED = {"__pycache__", "dist", "build", "node_modules"}
# written in two halves, so that this file does not contain what it looks for
UNFINISHED = re.compile(r"(?:#|--|//|/\*|<!--)\s*(?:TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
FOREIGN = re.compile(
    "|".join(
        re.escape(one + two)
        for one, two in [
            ("pypi", ".org"), ("python", "hosted"), ("/work", "/"), ("arti", "factory"),
            ("docker", ".io"), ("gh", "cr.io"), ("npm", "js"), ("proxy.", "golang"),
        ]
    )
)  # fmt: skip


def files() -> Iterator[Path]:
    """Every file of ours that a person may read; not what tools have made."""
    kept = [path for path in ROOT.iterdir() if not path.name.startswith(".")]
    kept += [path for path in (ROOT / ".ci", ROOT / ".github") if path.exists()]
    for top in kept:
        for path in [top] if top.is_file() else top.rglob("*"):
            if path.suffix in TEXT and path.is_file() and not GENERATED & set(path.parts):
                yield path


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_every_module_says_what_it_is(path: Path):
    said = ast.get_docstring(ast.parse(path.read_text()))
    assert said, "no docstring"
    assert said.splitlines()[0].endswith((".", ":")), "the first line is a sentence"


def test_no_module_is_longer_than_500_lines_and_the_exceptions_only_shrink():
    long = {name(path) for path in MODULES if len(path.read_text().splitlines()) > CEILING}
    assert long - set(OVER) == set(), "split it"
    assert set(OVER) - long == set(), "short enough now: take it off the list"


def test_a_folder_holds_at_most_20_modules():
    folders = Counter(name(path.parent) for path in MODULES)
    assert {folder for folder, count in folders.items() if count > MAX_MODULES} == CROWDED


def test_a_class_name_is_defined_once_and_the_exceptions_only_shrink():
    found: dict[str, set[str]] = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, set()).add(name(path))
    twice = {chosen for chosen, paths in found.items() if len(paths) > 1}
    assert twice - TWICE == set(), "one of them needs a more specific name"
    assert TWICE - twice == set(), "unique now: take it off the list"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_docstring_names_arguments_that_are_there(path: Path):
    gone = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            section = ARGUMENTS.search(ast.get_docstring(node) or "")
            named = set(re.findall(r"(?m)^    (\w+):", section[1])) if section else set()
            if missing := named - arguments(node):
                gone[node.name] = missing
    assert gone == {}


def arguments(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """Return the arguments of a function, or the fields and arguments of a class."""
    if isinstance(node, ast.ClassDef):
        fields = {*chain.from_iterable(map(defined, filter(is_field, node.body)))}
        made = [one for one in node.body if isinstance(one, ast.FunctionDef)]
        return fields.union(*(arguments(one) for one in made if one.name == "__init__"))
    given = node.args
    single = [one for one in (given.vararg, given.kwarg) if one is not None]
    return {one.arg for one in [*given.posonlyargs, *given.args, *given.kwonlyargs, *single]}


def is_field(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign | ast.AnnAssign)


def test_the_search_for_arguments_finds_them():
    source = """class A:
        def __init__(self, one, *two, three=0, **four): pass
    """
    made = ast.parse(source).body[0]
    assert arguments(made) == {"self", "one", "two", "three", "four"}
    assert ARGUMENTS.search("Do it.\n\nArgs:\n    gone: a word.\n")[1] == "    gone: a word.\n"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_nothing_is_gathered_since_a_failure_would_leave_the_rest_running(path: Path):
    used = {one.attr for one in ast.walk(ast.parse(path.read_text())) if is_of_asyncio(one)}
    assert "gather" not in used, "use relay.tasks.side_by_side, or a group"


def is_of_asyncio(node: ast.AST) -> bool:
    is_attribute = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    return is_attribute and node.value.id == "asyncio"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_power_of_two_has_a_bounded_exponent(path: Path):
    """``2.0 ** 1024`` raises: a counter of failures reaches that after some hours."""
    bare = re.findall(r"\b2(?:\.0)? \*\* (?!min\(|\d)\S.*", path.read_text())
    assert bare == [], "min(exponent, 16)"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_identifier_uses_a_word_that_the_glossary_bans(path: Path):
    chosen = set(defined(ast.parse(path.read_text())))
    assert {found for found in chosen if words(found) & BANNED} == set()


def test_the_word_finder_finds_words():
    source = "def old_mailbox(bot): self.spools = 1; shards = 2\nclass PacketQueue: pass"
    assert {word for found in defined(ast.parse(source)) for word in words(found) & BANNED} == {
        "mailbox", "bot", "spool", "packet",
    }  # fmt: skip


def test_nothing_is_left_to_be_done_later():
    assert [name(path) for path in files() if UNFINISHED.search(path.read_text())] == []


def test_no_file_names_a_registry_or_the_place_where_it_was_written():
    assert [name(path) for path in files() if FOREIGN.search(path.read_text())] == []


def test_the_search_sees_code_docs_and_scripts():
    seen = {name(path) for path in files()}
    assert {"relay/protocol/jws.py", "tests/unit/test_shape.py", "pyproject.toml", "run"} <= seen
    assert UNFINISHED.search("# TO" + "DO: later")
    assert FOREIGN.search("https://pypi" + ".org/simple")


def test_the_core_reads_neither_clock_nor_randomness_nor_the_world():
    banned = {"asyncio", "logging", "os", "pathlib", "random", "secrets", "socket", "time"}
    pure = [*(ROOT / "relay/protocol").rglob("*.py"), *(ROOT / "relay").glob("*/model/*.py")]
    assert len(pure) > 30
    for path in pure:
        for node in ast.walk(ast.parse(path.read_text())):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not banned & {one.split(".", maxsplit=1)[0] for one in found}, name(path)
            assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), name(path)
