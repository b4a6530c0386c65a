"""The matrix of broken rules: which test finds out that a rule of the code is broken.

A negative control takes one rule out of the real code or of its model, and shows that a test then
fails or a checker complains. It says so by a mark::

    @pytest.mark.breaks("store", "the fence is compared", by="tests/store/test_sessions.py::test_x")

``by`` names the test that finds it; without it, that is the marked test itself. ``--matrix`` prints
at the end of a run which rules were broken and found, also under xdist.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import pytest

PROPERTY = "broken rule"


class BrokenRule(NamedTuple):
    """A row of the matrix."""

    subject: str
    rule: str
    found_by: str


def node_id(test: Callable[..., object]) -> str:
    """Return the node id of a test function."""
    return f"{test.__module__.replace('.', '/')}.py::{test.__qualname__}"


def each(subject: str, arguments: str | Sequence[str], rows: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize a test by rows, each of which breaks the rule that its first value names."""
    values = []
    for row in rows:
        cells = row if isinstance(row, tuple) else (row,)
        values.append(pytest.param(*cells, marks=pytest.mark.breaks(subject, rule_of(cells[0]))))
    return pytest.mark.parametrize(arguments, values)


def rule_of(broken: object) -> str:
    """Return the name of a broken rule; of a class or function, the first line of its docstring."""
    if isinstance(broken, str):
        return broken
    text = (getattr(broken, "__doc__", None) or "").partition("\n")[0].strip()
    name: str = broken.__name__  # type: ignore[attr-defined]
    return f"{name}: {text}" if text else name


def broken_rules(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Yield (subject, rule) of each mark ``breaks`` in a test module."""
    for _, test in inspect.getmembers(module, inspect.isfunction):
        if test.__module__ == module.__name__:
            for mark in getattr(test, "pytestmark", []):
                yield from _of_mark(mark)


def _of_mark(mark: pytest.Mark) -> Iterator[tuple[str, str]]:
    if mark.name == "breaks":
        yield mark.args[0], mark.args[1]
    elif mark.name == "parametrize":
        for values in mark.args[1]:
            for inner in getattr(values, "marks", ()):
                yield from _of_mark(getattr(inner, "mark", inner))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--matrix``."""
    parser.addoption("--matrix", action="store_true", help="print which test finds a broken rule")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note what the test breaks; its report carries that to the process that prints."""
    for mark in item.iter_markers("breaks"):
        found_by = mark.kwargs.get("by") or item.nodeid
        item.user_properties.append((PROPERTY, [*mark.args, found_by]))


class Matrix:
    """Collects rows from the reports of tests that passed."""

    def __init__(self) -> None:
        self.rows: set[BrokenRule] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the rows of a test that found what it broke."""
        if report.when == "call" and report.passed:
            for name, value in report.user_properties:
                if name == PROPERTY:
                    self.rows.add(BrokenRule(*value))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print all rows, by subject."""
        terminalreporter.section(f"{len(self.rows)} broken rules, and the tests that find them")
        subject = ""
        for row in sorted(self.rows):
            if row.subject != subject:
                subject = row.subject
                terminalreporter.line(subject)
            terminalreporter.line(f"  {row.rule} -> {row.found_by}")


def pytest_configure(config: pytest.Config) -> None:
    """Collect rows where the reports come together."""
    if config.getoption("--matrix") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Matrix())
