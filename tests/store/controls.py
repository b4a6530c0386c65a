"""Negative controls of the store: a guard is taken out of a script, and a named test must fail.

A proof that cannot fail proves nothing. Each guard is a row: the rule in words, its text in a
script, the text instead, and the test that stands for the rule.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from tests.store.worlds import World
from tests.support.broken_rules import node_id

Test = Callable[..., Awaitable[None]]
Guard = tuple[str, str, str, Test]
SUBJECT = "store scripts"


def each(guards: Sequence[Guard]) -> pytest.MarkDecorator:
    """Parametrize a test by ``old``, ``new`` and ``test`` of each guard."""
    return pytest.mark.parametrize(
        ("old", "new", "test"),
        [
            pytest.param(
                old, new, test, id=rule, marks=pytest.mark.breaks(SUBJECT, rule, by=node_id(test))
            )
            for rule, old, new, test in guards
        ],
    )


async def must_fail(world: World, old: str, new: str, test: Test, **given: Any) -> None:
    """Run the test over the edited scripts; it must find the guard gone."""
    world.mutations.edit(old, new)
    with pytest.raises(AssertionError):
        await test(world, **given)
