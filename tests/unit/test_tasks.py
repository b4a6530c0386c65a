"""Work side by side: one failure ends nothing else, and nothing is left running."""

from __future__ import annotations

import asyncio

import pytest

from relay.tasks import side_by_side


class Work:
    """Waits until it may go on; notes how it ended."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.ended = ""

    async def __call__(self, result: str, failure: Exception | None = None) -> str:
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise
        self.ended = "done"
        if failure is not None:
            raise failure
        return result


async def test_results_come_in_the_order_of_the_works():
    first, second = Work(), Work()
    doing = asyncio.ensure_future(side_by_side([first("a"), second("b")]))
    second.go.set()
    await asyncio.sleep(0)
    first.go.set()
    assert await doing == ["a", "b"]
    assert await side_by_side([]) == []


async def test_a_failure_comes_out_as_it_was_and_only_when_the_others_are_over():
    first, second, third = Work(), Work(), Work()
    works = [first("a"), second("b", KeyError("mine")), third("c", OSError("later"))]
    doing = asyncio.ensure_future(side_by_side(works))
    second.go.set()
    third.go.set()
    await asyncio.wait([doing], timeout=0.01)
    assert not doing.done()
    first.go.set()
    with pytest.raises(KeyError, match="mine"):
        await doing
    assert first.ended == "done"


async def test_a_cancellation_ends_them_all():
    works = [Work(), Work()]
    doing = asyncio.ensure_future(side_by_side(work("x") for work in works))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    doing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doing
    assert [work.ended for work in works] == ["cancelled"] * 2
