"""Sessions: fences, marks, acks, reading (GUARANTEES.md R1, R2, R4, R5)."""

from __future__ import annotations

from typing import Any

import pytest

from relay.directory.ports import (
    RecordRow,
)
from relay.inbox.model.types import (
    AckRequest,
    AckResult,
    InboxAck,
    LiveSession,
    OpenedSession,
    Page,
)
from relay.inbox.ports import (
    InboxHead,
)
from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
)
from relay.protocol.ids import (
    AgentKey,
    Epoch,
    Fence,
    Seq,
)
from relay.protocol.types import (
    Range,
    Reason,
    Window,
)
from tests.store.worlds import ALL, ME, NODE, NOW, OTHER, World, code, entry, opened, request, wire

pytestmark = pytest.mark.timeout(60)


def seqs(*numbers: int) -> tuple[Seq, ...]:
    return tuple(Seq(number) for number in numbers)


async def fill(store: Any, count: int, **changes: Any) -> None:
    results = await store.inboxes.append([entry(n, **changes) for n in range(1, count + 1)])
    assert [result.seq for result in results] == list(range(1, count + 1))


async def read(store: Any, session: OpenedSession, after: int = 0, window: Window = ALL) -> Page:
    page = await store.inboxes.read(ME, session.fence, Seq(after), window)
    assert isinstance(page, Page), page
    return page


async def ack(
    store: Any, session: OpenedSession, *numbers: int, **more: Any
) -> AckResult | Refusal:
    wanted = InboxAck(session.fence, session.epoch, seqs(*numbers), **more)
    (result,) = await store.inboxes.ack([AckRequest(ME, wanted)])
    return result


def marks(page: Page) -> list[int]:
    return [item.seq for item in page.items if item.redelivered]


# ---------------------------------------------------------------- open and close


async def test_a_new_inbox_is_empty_and_says_so(world: World) -> None:
    session = await opened(world.store)
    assert (session.cursor, session.head, session.previous) == (0, 0, None)
    assert session.pending.count == 0
    assert session.pending.oldest_at is None
    assert await read(world.store, session) == Page((), (), Seq(0), Seq(0))


async def test_an_inbox_is_not_made_where_that_was_not_allowed(world: World) -> None:
    result = await world.inboxes.open(request(create=False))
    assert code(result) is ErrorCode.UNKNOWN_INBOX
    await opened(world.store)
    assert isinstance(await world.inboxes.open(request(create=False)), OpenedSession)


async def test_an_agent_whose_record_names_other_homes_has_no_inbox_here(world: World) -> None:
    await opened(world.store)
    await world.inboxes.append([entry(1)])
    away = RecordRow(RecordVersion(1, 5, b"\x01" * 32), "their.record.jws", names_us=False)
    await world.records.merge([(ME, away)])
    assert code(await world.inboxes.open(request())) is ErrorCode.UNKNOWN_INBOX
    known, new = await world.inboxes.append([entry(1), entry(2)])
    assert known.dup
    assert (new.code, new.record) == (ErrorCode.MOVED, "their.record.jws")
    stranger = AgentKey("key:stranger")
    await world.records.merge([(stranger, away)])
    (other,) = await world.inboxes.append([entry(3, inbox=stranger)])
    assert (other.code, other.record) == (ErrorCode.MOVED, "their.record.jws")
    back = RecordRow(RecordVersion(1, 6, b"\x00" * 32), "our.record.jws", names_us=True)
    await world.records.merge([(ME, back)])
    session = await opened(world.store)
    assert [item.seq for item in (await read(world.store, session)).items] == [1]


async def test_what_waits_is_told_at_the_opening(world: World) -> None:
    session = await opened(world.store)
    await fill(world.store, 3, created_at=NOW - 50)
    await ack(world.store, session, 1)
    again = await opened(world.store)
    size = len(wire(2)) + len(wire(3))
    assert (again.cursor, again.head) == (1, 3)
    assert (again.pending.count, again.pending.bytes, again.pending.oldest_at) == (
        2, size, NOW - 50,
    )  # fmt: skip


async def test_a_newer_session_supersedes_the_older_in_everything(world: World) -> None:
    old = await opened(world.store)
    await fill(world.store, 2)
    new = await opened(world.store, node=OTHER)
    assert new.previous == LiveSession(old.fence, NODE)
    assert new.fence > old.fence
    assert new.epoch == old.epoch
    assert code(await world.inboxes.read(ME, old.fence, Seq(0), ALL)) is ErrorCode.SUPERSEDED
    assert code(await ack(world.store, old, 1)) is ErrorCode.SUPERSEDED
    assert not await world.inboxes.close(ME, old.fence, Seq(2))
    taken = await world.inboxes.fetch(ME, LiveSession(old.fence, NODE, NOW + 9), ALL)
    assert code(taken) is ErrorCode.SUPERSEDED
    assert len((await read(world.store, new)).items) == 2


async def test_a_closed_session_is_over(world: World) -> None:
    session = await opened(world.store)
    assert await world.inboxes.close(ME, session.fence, Seq(0))
    assert not await world.inboxes.close(ME, session.fence, Seq(0))
    assert code(await world.inboxes.read(ME, session.fence, Seq(0), ALL)) is ErrorCode.SUPERSEDED
    assert code(await ack(world.store, session, 1)) is ErrorCode.SUPERSEDED


async def test_a_session_of_an_inbox_that_is_gone_is_told_that_it_was_lost(world: World) -> None:
    ghost = OpenedSession(Fence(3), Epoch("gone"), Seq(0), Seq(0), None, None)  # type: ignore[arg-type]
    assert code(await world.inboxes.read(ME, ghost.fence, Seq(0), ALL)) is ErrorCode.INBOX_RESET
    assert code(await ack(world.store, ghost, 1)) is ErrorCode.INBOX_RESET
    taken = await world.inboxes.fetch(ME, LiveSession(ghost.fence, NODE), ALL)
    assert code(taken) is ErrorCode.INBOX_RESET
    assert not await world.inboxes.close(ME, ghost.fence, Seq(0))


# ---------------------------------------------------------------- marks: R1


async def test_after_a_clean_close_exactly_what_was_handed_over_is_marked(world: World) -> None:
    session = await opened(world.store)
    await fill(world.store, 5)
    await world.inboxes.close(ME, session.fence, Seq(3))
    again = await opened(world.store)
    assert marks(await read(world.store, again)) == [1, 2, 3]


async def test_after_an_unclean_end_the_whole_window_is_marked(world: World) -> None:
    session = await opened(world.store, window=Window(3, 1_000))
    await fill(world.store, 6)
    await ack(world.store, session, 2)
    again = await opened(world.store)
    assert marks(await read(world.store, again)) == [1, 3, 4]


async def test_the_window_of_an_unclean_end_is_one_of_bytes_too(world: World) -> None:
    await opened(world.store, window=Window(10, 1_000))
    await fill(world.store, 4, size=450)
    again = await opened(world.store)
    assert marks(await read(world.store, again)) == [1, 2]


async def test_one_envelope_always_fits_into_a_window(world: World) -> None:
    session = await opened(world.store, window=Window(10, 100))
    await fill(world.store, 2, size=450)
    page = await read(world.store, session, window=Window(10, 100))
    assert ([item.seq for item in page.items], page.upto, page.head) == ([1], 1, 2)
    again = await opened(world.store)
    assert marks(await read(world.store, again)) == [1]


async def test_what_came_after_a_clean_close_is_not_marked(world: World) -> None:
    session = await opened(world.store)
    await world.inboxes.close(ME, session.fence, Seq(0))
    await fill(world.store, 3)
    again = await opened(world.store)
    assert marks(await read(world.store, again)) == []


# ---------------------------------------------------------------- read


async def test_a_page_is_as_long_as_the_window(world: World) -> None:
    session = await opened(world.store)
    await fill(world.store, 10)
    page = await read(world.store, session, after=2, window=Window(3, 10_000))
    assert [item.seq for item in page.items] == [3, 4, 5]
    assert (page.upto, page.head) == (5, 10)
    page = await read(world.store, session, after=0, window=Window(9, len(wire(1)) * 2))
    assert [item.seq for item in page.items] == [1, 2]


async def test_a_page_explains_what_is_not_in_it(world: World) -> None:
    session = await opened(world.store)
    await fill(world.store, 9)
    await ack(world.store, session, 2, 3, 7, refuse=((Seq(5), "no"), (Seq(9), "no")))
    page = await read(world.store, session)
    assert [item.seq for item in page.items] == [1, 4, 6, 8]
    assert page.gaps == (
        Range(Seq(2), Seq(3), Reason.ACKED),
        Range(Seq(5), Seq(5), Reason.REFUSED),
        Range(Seq(7), Seq(7), Reason.ACKED),
        Range(Seq(9), Seq(9), Reason.REFUSED),
    )
    assert page.upto == 9
    page = await read(world.store, session, after=2, window=Window(1, 10_000))
    assert page.gaps == (
        Range(Seq(3), Seq(3), Reason.ACKED),
        Range(Seq(5), Seq(5), Reason.REFUSED),
    )
    assert (page.items[0].seq, page.upto) == (4, 5)


async def test_reading_from_before_the_cursor_is_no_loss(world: World) -> None:
    session = await opened(world.store)
    await fill(world.store, 4)
    await ack(world.store, session, 1, 2)
    page = await read(world.store, session, after=0)
    assert [item.seq for item in page.items] == [3, 4]
    assert page.gaps == ()


async def test_what_expired_is_concluded_on_the_way(world: World) -> None:
    session = await opened(world.store)
    times = [NOW + 50, NOW + 5, NOW + 5, NOW + 50, NOW + 7]
    made = [entry(n, expires_at=times[n - 1]) for n in range(1, 6)]
    await world.inboxes.append(made)
    await world.advance(10)
    page = await read(world.store, session)
    assert [item.seq for item in page.items] == [1, 4]
    assert page.gaps == (
        Range(Seq(2), Seq(3), Reason.EXPIRED), Range(Seq(5), Seq(5), Reason.EXPIRED),
    )  # fmt: skip
    assert page.expired == ()


async def test_many_expired_entries_end_in_bounded_steps(world: World) -> None:
    world.limits = type(world.limits)(max_count=2_000, sender_count=2_000, dedupe_entries=5_000)
    store = await world.restart()
    session = await opened(store)
    for start in range(1, 901, 100):
        made = [entry(n, expires_at=NOW + 5) for n in range(start, start + 100)]
        await store.inboxes.append(made)
    await store.inboxes.append([entry(1_000)])
    await world.advance(10)
    page = await read(store, session)
    assert [item.seq for item in page.items] == [901]
    assert page.gaps == (Range(Seq(1), Seq(900), Reason.EXPIRED),)


async def test_a_clock_in_doubt_hands_over_what_seems_expired(world: World) -> None:
    session = await opened(world.store)
    await world.inboxes.append([entry(1, expires_at=NOW + 5)])
    await world.advance(1_000)
    world.store.clock.trust(ok=False)
    assert len((await read(world.store, session)).items) == 1
    await world.inboxes.finalize(ME, seqs(1), Reason.EXPIRED)
    assert await world.store.expiry.sweep(NODE, []) == 0
    assert len((await read(world.store, session)).items) == 1
    world.store.clock.trust(ok=True)
    assert (await read(world.store, session)).gaps == (Range(Seq(1), Seq(1), Reason.EXPIRED),)


async def test_only_what_has_expired_can_be_concluded_as_expired(world: World) -> None:
    session = await opened(world.store)
    await world.inboxes.append([entry(1), entry(2, expires_at=NOW + 5)])
    await world.advance(10)
    await world.inboxes.finalize(ME, seqs(1, 2, 3), Reason.EXPIRED)
    page = await read(world.store, session)
    assert [item.seq for item in page.items] == [1]
    await world.inboxes.finalize(ME, seqs(1), Reason.CORRUPT)
    page = await read(world.store, session)
    assert page.gaps == (
        Range(Seq(1), Seq(1), Reason.CORRUPT), Range(Seq(2), Seq(2), Reason.EXPIRED),
    )  # fmt: skip


# ---------------------------------------------------------------- ack: R2


async def test_an_ack_deletes_and_moves_the_cursor_over_what_the_agent_ended(world: World) -> None:
    session = await opened(world.store)
    await fill(world.store, 6)
    assert await ack(world.store, session, 2, 3) == AckResult(Seq(0), seqs(2, 3), ())
    assert await ack(world.store, session, 1) == AckResult(Seq(3), seqs(1), ())
    assert await ack(world.store, session, 5, 4) == AckResult(Seq(5), seqs(5, 4), ())
    assert (await opened(world.store)).pending.count == 1


async def test_an_ack_can_be_repeated(world: World) -> None:
    session = await opened(world.store)
    await fill(world.store, 3)
    first = await ack(world.store, session, 1, 1, 2, refuse=((Seq(3), "no"), (Seq(2), "no")))
    again = await ack(world.store, session, 1, 1, 2, refuse=((Seq(3), "no"), (Seq(2), "no")))
    assert first == again == AckResult(Seq(3), seqs(1, 1, 2), seqs(3, 2))
    assert (await opened(world.store)).pending.count == 0


async def test_what_others_ended_is_passed_only_by_a_cumulative_ack(world: World) -> None:
    session = await opened(world.store)
    await world.inboxes.append(
        [entry(1, expires_at=NOW + 5), entry(2), entry(3, expires_at=NOW + 5)]
    )
    await world.advance(10)
    await read(world.store, session)
    assert await ack(world.store, session, 2) == AckResult(Seq(0), seqs(2), ())
    assert await ack(world.store, session, upto=Seq(2)) == AckResult(Seq(2), (), ())
    assert await ack(world.store, session, upto=Seq(3)) == AckResult(Seq(3), (), ())


async def test_a_cumulative_ack_deletes_nothing_that_is_live(world: World) -> None:
    session = await opened(world.store)
    await fill(world.store, 3)
    assert await ack(world.store, session, upto=Seq(3)) == AckResult(Seq(0), (), ())
    assert len((await read(world.store, session)).items) == 3


async def test_an_ack_of_another_epoch_changes_nothing(world: World) -> None:
    session = await opened(world.store)
    await fill(world.store, 1)
    wanted = InboxAck(session.fence, Epoch("other"), seqs(1))
    (result,) = await world.inboxes.ack([AckRequest(ME, wanted)])
    assert code(result) is ErrorCode.INBOX_RESET
    assert len((await read(world.store, session)).items) == 1


async def test_acks_of_many_inboxes_are_judged_one_by_one(world: World) -> None:
    inboxes = [AgentKey(f"key:i{n}") for n in range(20)]
    sessions = [await opened(world.store, inbox) for inbox in inboxes[:15]]
    await world.inboxes.append([entry(n, inbox=inboxes[n]) for n in range(15)])
    wanted = [
        AckRequest(inbox, InboxAck(sessions[n % 15].fence, sessions[n % 15].epoch, seqs(1)))
        for n, inbox in enumerate(inboxes)
    ]
    results = await world.inboxes.ack(wanted)
    assert [code(result) for result in results] == [None] * 15 + [ErrorCode.INBOX_RESET] * 5
    assert await world.inboxes.ack([]) == []


async def test_seqs_go_on_after_an_inbox_was_emptied(world: World) -> None:
    session = await opened(world.store)
    await fill(world.store, 3)
    await ack(world.store, session, 1, 2, 3)
    (result,) = await world.inboxes.append([entry(9)])
    assert result.seq == 4
    page = await read(world.store, session, after=3)
    assert ([item.seq for item in page.items], page.gaps) == ([4], ())


# ---------------------------------------------------------------- heads


async def test_heads_tell_fence_epoch_and_last_seq(world: World) -> None:
    inboxes = [AgentKey(f"key:i{n}") for n in range(12)]
    sessions = [await opened(world.store, inbox) for inbox in inboxes]
    await world.inboxes.append([entry(n, inbox=inboxes[n % 3]) for n in range(6)])
    found = await world.inboxes.heads([*inboxes, AgentKey("key:nobody")])
    assert found == [
        *(
            InboxHead(session.fence, session.epoch, Seq(2 if n < 3 else 0))
            for n, session in enumerate(sessions)
        ),
        None,
    ]
    assert await world.inboxes.heads([]) == []
