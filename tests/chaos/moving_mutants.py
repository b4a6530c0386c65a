"""Relays that break one rule of moving house, each as a plausible bug would.

Rules of the file: as in ``mesh_mutants.py``; they are started by ``cut_relay.py``.
"""

from __future__ import annotations

from collections.abc import Callable

from relay.core.errors import ErrorCode, UnavailableError
from relay.core.migration_values import Holding, Side
from relay.service.movers import Mover
from tests.chaos.mesh_mutants import ack_before_receipt


def says_no_digest() -> None:
    """A source never says what its agent has seen."""

    async def never(*_: object) -> None:
        raise UnavailableError(ErrorCode.PEER_UNREACHABLE, "it is not said")

    Mover._hand = never  # type: ignore[assignment,method-assign]


def never_doubts() -> None:
    """A target marks nothing for want of a digest."""
    honest = Side.holding.fget
    assert honest is not None

    def sure(self: Side) -> Holding:
        found = honest(self)
        return Holding.HOME if found is Holding.DOUBTFUL else found

    Side.holding = property(sure)  # type: ignore[method-assign,assignment]


MUTANTS: dict[str, Callable[[], None]] = {
    "says-no-digest": says_no_digest,
    "never-doubts": never_doubts,
    "ack-before-receipt": ack_before_receipt,
}
