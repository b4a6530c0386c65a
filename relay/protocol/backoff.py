"""Compute how long to pause after failures in a row."""

from __future__ import annotations

from typing import Final

_MAX_DOUBLINGS: Final = 64
"""Days of failures must not make a number too large for a float."""


def doubling_pause_s(doublings: int, first_s: float, max_s: float) -> float:
    """Return ``first_s``, doubled ``doublings`` times, but at most ``max_s``.

    >>> [doubling_pause_s(failures, 0.5, 3.0) for failures in range(4)]
    [0.5, 1.0, 2.0, 3.0]
    """
    return min(first_s * 2.0 ** min(doublings, _MAX_DOUBLINGS), max_s)
