"""What is wrong around a node, kept in one place: ``/readyz``, ``/metrics`` and the log show it.

Rules of the file: whoever looks at something says after each look what it found, a sentence or
None. Only a change is logged: once when it appears, once when it is gone. A reason is a stable
word for programs; its sentence is for a person and may change while the reason stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from relay import clock, log, metrics


class ProblemReason(StrEnum):
    """Each thing that may be wrong; the label ``reason`` of the gauge ``relay_problem``."""

    STARTING = "starting"
    DRAINING = "draining"
    RETURNING = "returning"
    STORE_AWAY = "store_away"
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
"""An operator should know these, but the node takes and delivers envelopes all the same.

Without files nobody new gets in, and nobody gets an answer of ``/readyz``; who gets one is in.
"""

CLOCKS: Final = (ProblemReason.CLOCKS_DIFFER, ProblemReason.CLOCK_STEPPED, ProblemReason.CLOCK_GAP)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong now.

    Args:
        reason: which.
        detail: a sentence for the operator; no secret.
        since: Unix seconds when it was first seen; None for a phase of the node itself.
    """

    reason: ProblemReason
    detail: str
    since: int | None = None

    @property
    def blocks(self) -> bool:
        """Whether the node is not ready because of it."""
        return self.reason not in NOTES


def starting() -> Mapping[ProblemReason, str]:
    """The phase of a node that does not serve yet."""
    return {ProblemReason.STARTING: "the node is starting"}


class Health:
    """All that is wrong now.

    ``phase`` gives what the node itself is busy with: it starts, returns or drains. These have log
    events of their own and are asked at each look.
    """

    def __init__(self) -> None:
        self.phase: Callable[[], Mapping[ProblemReason, str]] = starting
        self._found: dict[ProblemReason, Problem] = {}

    def found(self, reason: ProblemReason, detail: str | None) -> None:
        """Say what a look has found.

        Args:
            reason: what was looked at.
            detail: what is wrong with it, one sentence; None = nothing is.
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
        """Whether this was found at the last look."""
        return reason in self._found

    @property
    def problems(self) -> list[Problem]:
        """All that is wrong, phases of the node first."""
        phases = [Problem(reason, detail) for reason, detail in self.phase().items()]
        return [*phases, *self._found.values()]

    @property
    def is_ready(self) -> bool:
        """Whether agents should come here."""
        return not any(problem.blocks for problem in self.problems)

    def describe(self) -> dict[str, Any]:
        """What ``/readyz`` answers, as JSON."""
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
        metrics.STORE_UP.set(not there & {ProblemReason.STARTING, ProblemReason.STORE_AWAY})
        metrics.CLOCK_OK.set(not there.intersection(CLOCKS))
