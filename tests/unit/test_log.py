"""Every log event is in one table: its callers give just the fields of the table."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay import log

ROOT = Path(__file__).parents[2]


def calls() -> Iterator[tuple[str, str, frozenset[str | None]]]:
    """File, event and keywords of each call of ``log.event``."""
    for path in sorted((ROOT / "relay").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) != "log.event":
                continue
            [name] = node.args
            assert isinstance(name, ast.Constant), f"{path}: the name of an event is a constant"
            assert isinstance(name.value, str)
            keywords = frozenset(one.arg for one in node.keywords)
            yield str(path.relative_to(ROOT)), name.value, keywords


def test_callers_give_just_the_fields_of_the_table():
    wrong = [
        f"{path}: {name} {sorted(map(str, fields))}"
        for path, name, fields in calls()
        if name not in log.EVENTS or fields != frozenset(log.EVENTS[name][1].split())
    ]
    assert wrong == []


def test_every_event_of_the_table_has_a_caller():
    assert {name for _, name, _ in calls()} == set(log.EVENTS)


def test_the_operations_manual_names_every_event():
    manual = (ROOT / "docs/OPERATIONS.md").read_text()
    assert [name for name in log.EVENTS if f"`{name}`" not in manual] == []


def test_an_event_is_one_line_with_its_fields(capsys: pytest.CaptureFixture[str]):
    log.configure("info")
    log.event("problem_gone", reason="store_away", seconds=1.23456)
    line = json.loads(capsys.readouterr().err)
    assert line.pop("timestamp")
    assert line == {
        "event": "problem_gone",
        "level": "warning",
        "reason": "store_away",
        "seconds": 1.23,
    }


def test_a_field_that_the_table_does_not_name_is_not_written(capsys: pytest.CaptureFixture[str]):
    log.configure("info")
    log.event("clock_confirmed", body="a secret")
    assert "secret" not in capsys.readouterr().err
