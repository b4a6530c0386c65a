"""The bounded doubling pause that the node and the SDK share."""

from __future__ import annotations

import doctest

import pytest

from relay.protocol import backoff
from relay.protocol.backoff import doubling_pause_s


def test_the_example_of_the_module_holds() -> None:
    """The example in the docstring runs as printed."""
    result = doctest.testmod(backoff)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize(
    ("doublings", "pause_s"), [(0, 0.2), (1, 0.4), (4, 3.2), (5, 5.0), (10, 5.0)]
)
def test_the_pause_doubles_up_to_its_maximum(doublings: int, pause_s: float) -> None:
    """The pause starts at its first value and never exceeds its maximum."""
    assert doubling_pause_s(doublings, 0.2, 5.0) == pytest.approx(pause_s)


def test_a_year_of_failures_neither_overflows_nor_exceeds_the_maximum() -> None:
    """A huge count of failures is no huge number."""
    assert doubling_pause_s(10**9, 0.2, 5.0) == 5.0


def test_a_first_pause_above_the_maximum_is_cut() -> None:
    """The maximum wins over the first pause."""
    assert doubling_pause_s(0, 9.0, 5.0) == 5.0
