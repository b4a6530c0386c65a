"""Sessions without a connection: what was taken, and acks of it (PROTOCOL.md §6)."""

from __future__ import annotations

import pytest

from relay.inbox.model.types import (
    AckRequest,
    AckResult,
    InboxAck,
    LiveSession,
)
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import (
    Epoch,
    Seq,
)
from relay.protocol.types import (
    Range,
    Reason,
    Window,
)
from tests.store.test_sessions import ALL, code, fill, marks, read, seqs
from tests.store.worlds import ME, NODE, NOW, OTHER, World, entry, opened

pytestmark = pytest.mark.timeout(60)


async def test_a_session_without_a_connection_takes_from_the_cursor(world: World) -> None:
    session = await opened(world.store, until=NOW + 900)
    await fill(world.store, 4)
    live = LiveSession(session.fence, OTHER, NOW + 900)
    first = await world.inboxes.fetch(ME, live, Window(2, 10_000))
    assert ([item.seq for item in first.items], marks(first)) == ([1, 2], [])
    again = await world.inboxes.fetch(ME, live, Window(3, 10_000))
    assert ([item.seq for item in again.items], marks(again)) == ([1, 2, 3], [1, 2])
    (stored,) = await world.inboxes.append([entry(9)])
    assert stored.session == live
    wanted = InboxAck(session.fence, session.epoch, (), upto=Seq(2))
    (acked,) = await world.inboxes.ack([AckRequest(ME, wanted, taken=True)])
    assert acked == AckResult(Seq(2), seqs(1, 2), ())
    third = await world.inboxes.fetch(ME, live, ALL)
    assert marks(third) == [3]


async def test_a_taken_ack_covers_only_what_was_given(world: World) -> None:
    session = await opened(world.store, until=NOW + 900)
    await fill(world.store, 4)
    await world.inboxes.fetch(ME, LiveSession(session.fence, NODE, NOW + 900), Window(2, 10_000))
    beyond = InboxAck(session.fence, session.epoch, (), upto=Seq(3))
    (result,) = await world.inboxes.ack([AckRequest(ME, beyond, taken=True)])
    assert code(result) is ErrorCode.BAD_FRAME
    both = InboxAck(session.fence, session.epoch, seqs(2, 4), upto=Seq(2))
    (result,) = await world.inboxes.ack([AckRequest(ME, both, taken=True)])
    assert result == AckResult(Seq(2), seqs(2, 4, 1, 2), ())
    other = InboxAck(session.fence, Epoch("other"), (), upto=Seq(3))
    (result,) = await world.inboxes.ack([AckRequest(ME, other, taken=True)])
    assert code(result) is ErrorCode.INBOX_RESET


async def test_what_was_taken_is_marked_for_the_next_session(world: World) -> None:
    session = await opened(world.store, window=Window(1, 1_000), until=NOW + 900)
    await fill(world.store, 4)
    await world.inboxes.fetch(ME, LiveSession(session.fence, NODE, NOW + 900), Window(3, 10_000))
    again = await opened(world.store)
    assert marks(await read(world.store, again)) == [1, 2, 3]


async def test_taking_hands_over_what_precedes_an_expired_entry_unmarked(world: World) -> None:
    session = await opened(world.store, until=NOW + 900)
    await world.inboxes.append([entry(1), entry(2, expires_at=NOW + 5), entry(3)])
    await world.advance(10)
    live = LiveSession(session.fence, NODE, NOW + 900)
    page = await world.inboxes.fetch(ME, live, ALL)
    assert ([item.seq for item in page.items], marks(page), page.upto) == ([1], [], 1)
    assert page.expired == ()
    page = await world.inboxes.fetch(ME, live, ALL)
    assert ([item.seq for item in page.items], marks(page)) == ([1, 3], [1])
    assert page.gaps == (Range(Seq(2), Seq(2), Reason.EXPIRED),)


async def commits(world: World) -> int:
    """How often the partition of the inbox was changed, as the store counts."""
    return int(await world.raw.hget(world.key("state", ""), "commits"))


async def test_asking_again_where_nothing_is_new_commits_nothing(server_world: World) -> None:
    world = server_world
    world.options["partitions"] = 1
    store = await world.node()
    session = await opened(store, until=NOW + 900)
    live = LiveSession(session.fence, NODE, NOW + 900)
    before = await commits(world)
    for _ in range(5):
        assert (await store.inboxes.fetch(ME, live, ALL)).items == ()
    assert await commits(world) == before
    await fill(store, 2)
    assert len((await store.inboxes.fetch(ME, live, ALL)).items) == 2
    wanted = AckRequest(ME, InboxAck(session.fence, session.epoch, (), upto=Seq(2)), taken=True)
    first = await store.inboxes.ack([wanted])
    after = await commits(world)
    assert after == before + 3
    assert [result.cursor for result in await store.inboxes.ack([wanted, wanted])] == [2, 2]
    assert [result.cursor for result in first] == [2]
    assert (await store.inboxes.fetch(ME, live, ALL)).items == ()
    assert await commits(world) == after
    # another node, or a later end of the session, is news to the store
    await store.inboxes.fetch(ME, LiveSession(session.fence, OTHER, NOW + 900), ALL)
    await store.inboxes.fetch(ME, LiveSession(session.fence, OTHER, NOW + 950), ALL)
    assert await commits(world) == after + 2
