"""Several pieces of work side by side, none of which is left running."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def side_by_side(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Do all of them, whatever becomes of one; gives the results in the order of the works.

    It returns or raises only when all are over. A cancellation ends them all.

    Raises:
        Exception: what the first of those that failed has raised, as it was.
    """
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_outcome(work)) for work in works]
    outcomes = [task.result() for task in running]
    for _, failure in outcomes:
        if failure is not None:
            raise failure
    return [result for results, _ in outcomes for result in results]


async def _outcome(work: Coroutine[Any, Any, T]) -> tuple[list[T], Exception | None]:
    """The result, or the failure; a group would end the others for a failure."""
    try:
        return [await work], None
    except Exception as exc:  # noqa: BLE001  raised where all are waited for
        return [], exc
