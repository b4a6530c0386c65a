"""The pure parts of the load driver's scenario ``migrate``: what is good, what is missed."""

from __future__ import annotations

import pytest

from loadtest.__main__ import main
from loadtest.migrate import scenario
from loadtest.migrate.move import Found
from relay.protocol.migration_statement import MigrationCounters


def found(**values: object) -> Found:
    facts = {
        "waiting": 10, "acked": 5, "wire_bytes": 1_000, "prepare_s": 0.1, "freeze_s": 0.2,
        "copy_s": 2.0, "move_s": 3.0, "gap_s": 0.5, "plain_s": [0.5, 1.0, 1.5],
        "tally": MigrationCounters(was=10, moved=10),
    }  # fmt: skip
    return Found(**{**facts, **values})


def test_the_ratio_is_of_the_copy_alone_and_all_aims_are_reached():
    said = scenario.as_object([found()])
    assert said["ratio"] == 2.0
    assert said["aims"] == {"move": True, "gap": True, "ratio": True}
    assert said["ok"] is True
    assert "all aims reached" in scenario.as_text(said)


def test_of_several_runs_the_middle_one_is_shown():
    said = scenario.as_object([found(move_s=seconds) for seconds in (9.0, 1.0, 4.0)])
    assert said["move_s"] == 4.0
    assert [one["move_s"] for one in said["runs"]] == [9.0, 1.0, 4.0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"lost": 1},
        {"doubled": 1},
        {"tally": MigrationCounters(was=10, moved=9)},
        {"tally": MigrationCounters(was=10, moved=9, expired=1)},
    ],
)
def test_one_envelope_that_is_not_accounted_for_makes_it_not_good(wrong: dict[str, object]):
    said = scenario.as_object([found(), found(**wrong)])
    assert said["ok"] is False
    assert "NOT GOOD" in scenario.as_text(said)


def test_an_aim_that_is_missed_is_named():
    said = scenario.as_object([found(move_s=11.0, copy_s=9.0)])
    assert "aims missed: move, ratio" in scenario.as_text(said)


def test_a_wrong_option_ends_with_2(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["migrate", "--waiting", "many"])
    assert ended.value.code == 2
    assert "invalid int value" in capsys.readouterr().err
