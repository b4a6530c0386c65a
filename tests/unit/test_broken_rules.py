"""The matrix of broken rules is complete: each mutant is found by a test that says so."""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import pytest

from tests.chaos import mesh_mutants, migration_mutants, relay_mutants, sdk_mutants
from tests.protocol import migration_world, test_migration_real
from tests.support.broken_rules import PROPERTY, BrokenRule, Matrix, broken_rules

CHAOS = Path(__file__).parents[1] / "chaos"
AGENTS_AGAINST = {"acks-come-to-nothing", "mute"}
"""Relays that lie so that the memory of an agent is put to the test, not the relay."""
HALVES = {"short-leases", "drops-the-digest"}
"""No lie, or half of one: ``test_migration.py`` shows that alone it breaks nothing."""
WITHOUT_A_FILE = {"acks-come-to-nothing", "marks-without-a-state-file"}


@pytest.fixture(scope="module")
def marked() -> set[tuple[str, str]]:
    """(subject, rule) of each kill test that breaks a rule."""
    names = (f"tests.chaos.{path.stem}" for path in sorted(CHAOS.glob("test_*.py")))
    return {rule for name in names for rule in broken_rules(importlib.import_module(name))}


@pytest.mark.parametrize(
    ("subject", "rules"),
    [
        (
            "relay under kills",
            {*relay_mutants.MUTANTS, relay_mutants.NOT_ISOLATED} - AGENTS_AGAINST,
        ),
        ("agents under kills", sdk_mutants.MUTANTS.keys() - {""} | WITHOUT_A_FILE),
        ("mesh under faults", mesh_mutants.MUTANTS.keys()),
        ("migration under kills and lies", migration_mutants.MUTANTS.keys() - HALVES),
    ],
)
def test_each_mutant_of_the_kill_tests_is_found_by_a_test(
    marked: set[tuple[str, str]], subject: str, rules: Collection[str]
) -> None:
    assert {rule for one, rule in marked if one == subject} == set(rules)


def test_no_kill_test_breaks_a_rule_of_an_unknown_subject(marked: set[tuple[str, str]]) -> None:
    assert {subject for subject, _ in marked} == {
        "relay under kills",
        "agents under kills",
        "mesh under faults",
        "migration under kills and lies",
    }


def test_each_rule_that_the_world_of_a_hand_off_can_break_is_broken_by_a_test() -> None:
    source = Path(migration_world.__file__).read_text()
    known = set(re.findall(r'is_mutant\("([^"]+)"\)', source))
    marked = {rule for _, rule in broken_rules(test_migration_real)}
    assert known == marked | {test_migration_real.HARMLESS}


def report(
    outcome: Literal["passed", "failed"], when: Literal["setup", "call"]
) -> pytest.TestReport:
    row = ["subject", "rule", "tests/a.py::test_b"]
    where = ("tests/a.py", 1, "test_a")
    return pytest.TestReport(
        "tests/a.py::test_a", where, {}, outcome, None, when, user_properties=[(PROPERTY, row)]
    )


def test_a_rule_is_in_the_matrix_only_if_the_test_that_broke_it_passed() -> None:
    matrix = Matrix()
    matrix.pytest_runtest_logreport(report("failed", "call"))
    matrix.pytest_runtest_logreport(report("passed", "setup"))
    assert matrix.rows == set()
    matrix.pytest_runtest_logreport(report("passed", "call"))
    assert matrix.rows == {BrokenRule("subject", "rule", "tests/a.py::test_b")}
