"""The problems around a node, in one place: ``/readyz``, ``/metrics`` and the log show them.

Each check reports its result after each run: a sentence, or None. Only a change is logged: once
when a problem appears, once when it is gone. The reason is a stable word for programs. The
sentence is for a person, and may change while the reason stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from relay import clock, log, metrics


class ProblemReason(StrEnum):
    """Every possible problem; the label ``reason`` of the gauge ``relay_problem``."""

    STARTING = "starting"
    DRAINING = "draining"
    RETURNING = "returning"
    STORE_UNREACHABLE = "store_away"
    STORE_REPLICA = "store_replica"
    STORE_FOREIGN = "store_foreign"
    STORE_REFUSES_WRITES = "store_refuses_writes"
    STORE_DENIES = "store_denies"
    STORE_UNSAFE = "store_unsafe"
    STORE_UNVERIFIED = "store_unverified"
    STORE_FULL = "store_full"
    STORE_ROLLED_BACK = "store_rolled_back"
    ROLLBACK_FILE = "rollback_file"
    DISK_FULL = "disk_full"
    DISK_FAILS = "disk_fails"
    CLOCKS_DIFFER = "clocks_differ"
    CLOCK_STEPPED = "clock_stepped"
    CLOCK_GAP = "clock_gap"
    NO_FILES = "no_files"
    FEW_FILES = "few_files"


NOTES: Final = frozenset({
    ProblemReason.STORE_UNVERIFIED, ProblemReason.STORE_ROLLED_BACK,
    ProblemReason.CLOCK_GAP, ProblemReason.FEW_FILES, ProblemReason.NO_FILES,
})  # fmt: skip
"""Problems that an operator should know, while the node accepts and delivers envelopes.

Without files no new connection is possible, not even to ``/readyz``.
"""

CLOCKS: Final = (ProblemReason.CLOCKS_DIFFER, ProblemReason.CLOCK_STEPPED, ProblemReason.CLOCK_GAP)


@dataclass(frozen=True, slots=True)
class Problem:
    """One current problem.

    Args:
        reason: the stable word.
        detail: a sentence for the operator; no secret.
        since: Unix seconds when it was first seen; None for a phase of the node itself.
    """

    reason: ProblemReason
    detail: str
    since: int | None = None

    @property
    def blocks(self) -> bool:
        """True if the node is not ready because of it."""
        return self.reason not in NOTES


def starting() -> Mapping[ProblemReason, str]:
    """Return the phase of a node that does not serve yet."""
    return {ProblemReason.STARTING: "the node is starting"}


class Health:
    """The current problems.

    ``phase`` returns what the node itself does: it starts, asks peers or drains. Phases have log
    events of their own, and are read each time.
    """

    def __init__(self) -> None:
        self.phase: Callable[[], Mapping[ProblemReason, str]] = starting
        self._found: dict[ProblemReason, Problem] = {}

    def found(self, reason: ProblemReason, detail: str | None) -> None:
        """Report the result of a check.

        Args:
            reason: which check.
            detail: the problem in one sentence; None = no problem.
        """
        before = self._found.get(reason)
        if detail is not None:
            since = before.since if before else int(clock.now())
            self._found[reason] = Problem(reason, detail, since)
            if before is None:
                log.event("problem_appeared", reason=reason, detail=detail)
        elif before is not None:
            del self._found[reason]
            log.event("problem_gone", reason=reason, seconds=clock.now() - (before.since or 0))

    def has(self, reason: ProblemReason) -> bool:
        """Return True if the last check found this problem."""
        return reason in self._found

    @property
    def problems(self) -> list[Problem]:
        """All problems, phases of the node first."""
        phases = [Problem(reason, detail) for reason, detail in self.phase().items()]
        return [*phases, *self._found.values()]

    @property
    def is_ready(self) -> bool:
        """True if agents should come here."""
        return not any(problem.blocks for problem in self.problems)

    def describe(self) -> dict[str, Any]:
        """Return the body of ``/readyz``."""
        members = [
            {"reason": one.reason, "detail": one.detail, "since": one.since, "blocks": one.blocks}
            for one in self.problems
        ]
        return {"ready": self.is_ready, "reasons": members}

    def measure(self) -> None:
        """Set the gauges."""
        there = {problem.reason for problem in self.problems}
        for reason in ProblemReason:
            metrics.PROBLEM.labels(reason).set(reason in there)
        metrics.READY.set(self.is_ready)
        metrics.STORE_UP.set(not there & {ProblemReason.STARTING, ProblemReason.STORE_UNREACHABLE})
        metrics.CLOCK_OK.set(not there.intersection(CLOCKS))
