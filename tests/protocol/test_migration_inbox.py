"""The real side and the real inbox of a hand-off, driven together through every order of things.

What ``test_migration_real.py`` does beside a small inbox is done with
:mod:`relay.reference.inbox` here:
what the memory store is, and what the scripts are compared with. It marks more than the small one,
up to a seq and not one by one; whatever is not marked by either is a promise that breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from relay.inbox.model.types import Disposition, InboxRole
from relay.protocol.errors import ErrorCode, Refusal
from relay.reference import handoff
from relay.reference.inbox import Inbox
from relay.reference.quotas import Holdings
from tests.protocol import real_inbox
from tests.protocol.migration_world import DENIED, DUPLICATE, LOST, Rules
from tests.protocol.test_migration_real import LET_GO, SPACES, THERE, search, verdict
from tests.support.broken_rules import each

pytestmark = pytest.mark.timeout(180)  # a busy machine is no bug

Broken = Callable[[pytest.MonkeyPatch], None]
SEEN_AND_UNHEARD = (
    "a session at R0",
    "m0 to R0, no receipt is heard",
    "R0 reads m0",
    "the agent gets m0",
    "order 1: R0 to R1",
    "R1 prepares",
)
IN_A_QUEUE = (
    "R2 hears of the record",
    "m0 to R2",
    "order 1: R0 to R1",
    "R1 prepares",
    "R0 freezes",
)


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    real_inbox.forget_all()
    yield
    real_inbox.forget_all()


@pytest.mark.parametrize(
    "rules",
    [
        Rules(unheard=1),
        Rules(unheard=1, gap=True, queues=True),
        Rules(expiry=True, restarts=1),
        Rules(returns=1),
    ],
)
def test_in_every_world_there_is_nothing_is_lost_or_twice_or_stuck(rules: Rules):
    found = search(replace(rules, is_real=True))
    assert found.whole
    assert verdict(found) is None, found
    assert found.worlds > 4_000  # a world in which nothing happens proves nothing


# With the inbox's one at a time, no story can read two in another order.
STORIES = sorted(SPACES.keys() - {"a digest of two pages"})


@pytest.mark.parametrize("story", STORIES)
def test_nor_in_the_first_worlds_of_every_story(story: str):
    rules, told, _ = SPACES[story]
    found = search(replace(rules, is_real=True), told, 4_000)
    assert verdict(found) is None, found


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("story", STORIES)
def test_so_it_is_far_further_out(story: str):
    rules, told, _ = SPACES[story]
    found = search(replace(rules, is_real=True), told, 150_000)
    assert verdict(found) is None, found


# ---------------------------------------------------------------- with a rule broken


def forgets_no_more(patch: pytest.MonkeyPatch) -> None:
    """The inbox remembers an envelope that it handed over like any other."""
    was = Holdings.answer

    def answer(self: Holdings, item: Any) -> Any:
        seen = self.dedupe.find(item.hour, item.dedupe_key)
        if seen is not None and seen.disposition is Disposition.FORWARDED:
            return real_inbox.dup(seen.seq)
        return was(self, item)

    patch.setattr(Holdings, "answer", answer)


def ends_for_a_word(patch: pytest.MonkeyPatch) -> None:
    """An id that another relay has named is a duplicate."""
    was = Holdings.answer

    def answer(self: Holdings, item: Any) -> Any:
        seen = self.dedupe.find(item.hour, item.dedupe_key)
        if seen is not None and seen.disposition is Disposition.MAYBE_SEEN:
            return real_inbox.dup(seen.seq)
        return was(self, item)

    patch.setattr(Holdings, "answer", answer)


def marks_nothing_at_the_end(patch: pytest.MonkeyPatch) -> None:
    """A session that ends leaves no marks."""
    patch.setattr(Inbox, "_window_end", lambda self: self.cursor)


def refuses_by_anothers_floor(patch: pytest.MonkeyPatch) -> None:
    """The inbox refuses ids that another relay has forgotten, like its own."""

    def learn(box: Inbox, floor: int) -> None:
        box.dedupe.floor = max(box.dedupe.floor, floor)

    patch.setattr(handoff, "learn_floor", learn)


def refuses_other_envelopes(patch: pytest.MonkeyPatch) -> None:
    """An id that another relay has named of another envelope is used up."""
    was = Holdings.answer

    def answer(self: Holdings, item: Any) -> Any:
        seen = self.dedupe.find(item.hour, item.dedupe_key)
        if seen is not None and not seen.is_of(item.eid):
            return Refusal(ErrorCode.REPLAYED, "this id was used for another envelope")
        return was(self, item)

    patch.setattr(Holdings, "answer", answer)


def learns_no_ids(patch: pytest.MonkeyPatch) -> None:
    """A digest is thrown away."""
    patch.setattr(handoff, "learn_doubts", lambda *_: None)


def keeps_what_went(patch: pytest.MonkeyPatch) -> None:
    """An id that went on from here stays so when a digest names it."""
    was = handoff.learn_doubts

    def learn(box: Inbox, doubts: bytes, most: int) -> None:
        went = [
            (seen, seen.disposition, seen.seq, seen.forwarded)
            for hour in box.dedupe.hours.values()
            for seen in hour.entries.values()
            if seen.disposition is Disposition.FORWARDED
        ]
        was(box, doubts, most)
        for seen, *before in went:
            seen.disposition, seen.seq, seen.forwarded = before

    patch.setattr(handoff, "learn_doubts", learn)


def marks_nothing_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A digest marks no envelope whose id this inbox has forgotten."""
    was = handoff.learn_doubts

    def learn(box: Inbox, doubts: bytes, most: int) -> None:
        floor, box.dedupe.floor = box.dedupe.floor, -1
        was(box, doubts, most)
        box.dedupe.floor = floor

    patch.setattr(handoff, "learn_doubts", learn)


def keeps_no_mark_in_doubt(patch: pytest.MonkeyPatch) -> None:
    """A mark that is brought while all is marked is taken for there already."""
    was = Inbox._brought_again

    def brought(self: Inbox, item: Any, known: Any) -> Any:
        here = self.live.get(known.seq)
        if here is not None and self.is_marked(known.seq, here):
            item = item._replace(marked=False)
        return was(self, item, known)

    patch.setattr(Inbox, "_brought_again", brought)


def is_never_in_doubt(patch: pytest.MonkeyPatch) -> None:
    """A home that waits for a digest marks no more than any other."""
    was = Inbox.is_marked

    def is_marked(self: Inbox, seq: Any, item: Any) -> bool:
        holding, self.holding = self.holding, InboxRole.HOME
        marked = was(self, seq, item)
        self.holding = holding
        return marked

    patch.setattr(Inbox, "is_marked", is_marked)


CONTROLS: list[tuple[Broken, str, Rules, tuple[str, ...]]] = [
    (forgets_no_more, LOST, Rules(orders=2), (*THERE, LET_GO)),
    (ends_for_a_word, LOST, Rules(liar=True), ()),
    (marks_nothing_at_the_end, DUPLICATE, Rules(), ()),
    (refuses_by_anothers_floor, DENIED, Rules(relays=3, liar=True, queues=True), IN_A_QUEUE),
    (refuses_other_envelopes, DENIED, Rules(relays=3, liar=True, queues=True), IN_A_QUEUE),
    (learns_no_ids, DUPLICATE, Rules(unheard=1), ()),
    (marks_nothing_forgotten, DUPLICATE, Rules(unheard=1, forgets=1), SEEN_AND_UNHEARD),
    (keeps_what_went, DUPLICATE, Rules(orders=3), (*THERE, LET_GO)),
    (
        keeps_no_mark_in_doubt,
        DUPLICATE,
        Rules(relays=3, orders=2, unreachable=1, unheard=1),
        (*SEEN_AND_UNHEARD, "published, source unreachable: R1"),
    ),
    (is_never_in_doubt, DUPLICATE, Rules(unheard=1, unreachable=1), SEEN_AND_UNHEARD),
]


@each("hand-off, the real inbox", ("broken", "promise", "rules", "told"), CONTROLS)
def test_an_inbox_with_one_rule_broken_breaks_a_promise(
    broken: Broken,
    promise: str,
    rules: Rules,
    told: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
):
    broken(monkeypatch)
    found = search(replace(rules, is_real=True), told)
    assert verdict(found) == promise, found
