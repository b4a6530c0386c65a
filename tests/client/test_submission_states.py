"""The states of a submission: the table, and an outbox that never leaves it."""

from __future__ import annotations

import random

import pytest

from relay.client.errors import make_error
from relay.client.outbox.queue import Outbox
from relay.client.outbox.submission import (
    FINAL,
    TRANSITIONS,
    Submission,
    SubmissionEvent,
    SubmissionState,
    next_state,
)
from relay.protocol import frames
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import Epoch, Timestamp
from relay.protocol.receipts import ReceiptItem, sign_receipt
from tests.client.scripted_relay import envelope_of, new_key

TABLE = """
                  dispatch          undecided    postpone  due     route_direct  take_direct  return
queued            in_flight         -            -         -       for_direct    -            -
in_flight         -                 queued       waiting   -       for_direct    -            -
waiting           -                 -            -         queued  -             -            -
for_direct        -                 -            -         -       -             with_direct  -
with_direct       direct_in_flight  -            waiting   -       -             -            queued
direct_in_flight  -                 with_direct  waiting   -       -             -            -
"""
"""Beside these: each of the six ends with ``answer``, ``abort`` and ``forget``."""
ENDS = {"answer": "answered", "abort": "aborted", "forget": "forgotten"}


def expected() -> dict[tuple[str, str], str]:
    [header, *rows] = [line.split() for line in TABLE.strip().splitlines()]
    legal = {
        (state, event): to
        for state, *row in rows
        for event, to in zip(header, row, strict=True)
        if to != "-"
    }
    legal |= {(state, event): to for state, *_ in rows for event, to in ENDS.items()}
    legal |= {(end, event): end for end in ENDS.values() for event in (*header, *ENDS)}
    return legal


@pytest.mark.parametrize("state", SubmissionState)
@pytest.mark.parametrize("event", SubmissionEvent)
def test_each_event_in_each_state_is_in_the_table_or_a_bug(state, event):
    to = expected().get((str(state), str(event)))
    if to is None:
        with pytest.raises(RuntimeError, match=str(state)):
            next_state(state, event)
    else:
        assert next_state(state, event) == to


def test_the_table_names_every_state_and_the_ends_are_final():
    assert {*TRANSITIONS, *FINAL} == set(SubmissionState)
    assert {str(state) for state in FINAL} == set(ENDS.values())


# ---------------------------------------------------------------- the outbox keeps to it

ME, BOB, CAROL, RELAY = new_key(), new_key(), new_key(), new_key()
CODES = [
    ErrorCode.BLOCKED, ErrorCode.STORAGE_UNAVAILABLE, ErrorCode.UNKNOWN_INBOX,
    ErrorCode.RATE_LIMITED, ErrorCode.PEER_UNREACHABLE,
]  # fmt: skip


class Walk:
    """Calls an outbox at random, as its channels, its program and direct delivery may."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311  reproducible, no secret
        self.now = Timestamp(1000.0)
        self.box = Outbox(on_direct=lambda: None)
        self.all: list[Submission] = []
        self.submits: list[tuple[frames.Submit, str]] = []
        self.direct: list[list[Submission]] = []

    def add(self) -> None:
        to = self.random.choice([BOB, CAROL])
        self.all.append(self.box.add(envelope_of(ME, to.did, b"x")))

    def dispatch(self) -> None:
        channel = self.random.choice(["one", "two"])
        frame = self.box.next_submit(self.now, channel_id=channel)
        if frame is not None:
            self.submits.append((frame, channel))

    def dispatch_direct(self) -> None:
        for items in self.direct[:1]:
            held = [one for one in items if one.state is SubmissionState.WITH_DIRECT]
            if held:
                frame = self.box.submit_direct(held, self.now, "direct")
                self.submits.append((frame, "direct"))

    def answer(self) -> None:
        if not self.submits:
            return
        frame, channel = self.submits.pop(self.random.randrange(len(self.submits)))
        if frame.ref not in self.box._flights:
            return
        items = self.box._flights[frame.ref].items
        refused = {
            i: frames.Rejection(
                frame.ref, i, self.random.choice(CODES), self.random.choice(["no", "unknown"])
            )
            for i in range(len(items))
            if self.random.random() < 0.7
        }
        stored = [one.envelope for i, one in enumerate(items) if i not in refused]
        receipt = sign_receipt(
            RELAY,
            [ReceiptItem(e.eid, e.to, Epoch("e"), "p", e.expires_at, False) for e in stored],
            durability="fsync",
            now=self.now,
        )
        done = frames.Submitted((frame.ref,), receipt if stored else None, tuple(refused.values()))
        self.box.answered(done, RELAY.did, self.now, channel)

    def lose(self) -> None:
        if self.random.random() < 0.3:
            self.box.lost(self.random.choice(["one", "two"]))

    def lose_direct(self) -> None:
        for frame, channel in self.submits:
            if channel == "direct" and frame.ref in self.box._flights:
                self.box.unanswered(frame.ref, maybe_stored=self.random.random() < 0.5)
                return

    def route_direct(self) -> None:
        if self.random.random() < 0.3:
            self.box.route_all_direct(self.now)

    def take_direct(self) -> None:
        for to in self.box.direct_recipients()[:1]:
            self.direct.append(self.box.take_direct(to))

    def return_direct(self) -> None:
        flying = {one for flight in self.box._flights.values() for one in flight.items}
        for items in [one for one in self.direct if flying.isdisjoint(one)][:1]:
            self.direct.remove(items)
            self.box.return_direct(items, self.now, try_again=self.random.random() < 0.5)

    def forget(self) -> None:
        if self.all and self.random.random() < 0.2:
            self.random.choice(self.all).forget()

    def pass_time(self) -> None:
        self.now = Timestamp(self.now + self.random.random() * 4)

    def check(self) -> None:
        """Each submission lies exactly where its state says."""
        for one in self.all:
            state = one.state
            assert one.answer.done() is (state in FINAL)
            if state in FINAL:
                continue
            flights = [f for f in self.box._flights.values() if one in f.items]
            places = {
                SubmissionState.QUEUED: one in self.box._ready,
                SubmissionState.WAITING: one in [item for _, _, item in self.box._later],
                SubmissionState.FOR_DIRECT: any(one in q for q in self.box._for_direct.values()),
                SubmissionState.IN_FLIGHT: any(not f.is_direct for f in flights),
                SubmissionState.DIRECT_IN_FLIGHT: any(f.is_direct for f in flights),
            }
            found = [place for place, is_there in places.items() if is_there]
            if state is SubmissionState.WITH_DIRECT:
                assert (found, any(one in items for items in self.direct)) == ([], True)
            else:
                assert found == [state]


@pytest.mark.parametrize("seed", range(60))
async def test_each_submission_is_always_exactly_where_its_state_says(seed):
    walk = Walk(seed)
    calls = [
        walk.add, walk.dispatch, walk.dispatch_direct, walk.answer, walk.lose, walk.lose_direct,
        walk.route_direct, walk.take_direct, walk.return_direct, walk.forget, walk.pass_time,
    ]  # fmt: skip
    for _ in range(150):
        walk.random.choice(calls)()
        walk.check()
    walk.box.end(make_error(ErrorCode.SUPERSEDED, "gone"))
    for items in walk.direct:
        walk.box.return_direct(items, walk.now, try_again=True)
    assert all(one.state in FINAL for one in walk.all)
    for one in walk.all:
        if not one.answer.cancelled():
            one.answer.exception()
