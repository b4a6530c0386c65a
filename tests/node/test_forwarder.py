"""Couriers and the answers of relays that fail, lie or go: custody ends by the rules, or not."""

from __future__ import annotations

import asyncio

import pytest

from relay import clock
from relay.forwarding import peer_submitter, scheduler
from relay.forwarding.model import CLOSED_S
from relay.inbox.model.types import Disposition, InboxLimits
from relay.peering.link import SubmitResult
from relay.protocol.envelope import eid_of, signer_of
from relay.protocol.errors import ErrorCode, error
from relay.protocol.frames import Rejection
from relay.reference.memory_store import MemoryStore
from tests.node.scripted_peers import Far, fails, hangs, here, no_answer, refuses, takes, until
from tests.support.broken_rules import node_id
from tests.support.nodes import new_key

pytestmark = pytest.mark.timeout(30)


class Fsynced(MemoryStore):
    """A store whose receipts promise more than this one keeps: for what it asks of others."""

    def __init__(self) -> None:
        super().__init__(InboxLimits(), clock.now)
        self.inboxes.durability = self.inboxes.promised = "fsync"


class Garbled(MemoryStore):
    """A store that acks when it is released, and whose answer makes no sense."""

    def __init__(self) -> None:
        super().__init__(InboxLimits(), clock.now)
        self.asked, self.released = asyncio.Event(), asyncio.Event()
        self._ack, self.inboxes.ack = self.inboxes.ack, self.ack

    async def ack(self, requests):
        await self._ack(requests)
        self.asked.set()
        await self.released.wait()
        return [object()] * len(requests)


# ---------------------------------------------------------------- when custody ends


async def test_custody_ends_with_the_receipt_of_the_agents_home():
    far = Far([takes()])
    async with here() as one:
        await one.lives_at(far)
        await one.accepts(b"1", b"2")
        await one.until_empty()
        assert far.bodies == [b"1", b"2"]
        found = await one.disposition(far.got[0][0])
        assert found.disposition is Disposition.FORWARDED
        assert found.forwarded.peer == far.agent_key
        assert await one.bounces() == []


async def test_an_answer_without_a_receipt_that_counts_ends_nothing():
    weak = [no_answer(), takes(durability="memory"), takes(custody="outbox")]
    weak += [refuses(ErrorCode.STORAGE_UNAVAILABLE), fails(error(ErrorCode.BAD_FRAME, "lies"))]
    for answer in weak:
        far = Far([answer])
        async with here(Fsynced()) as one:
            await one.lives_at(far)
            await one.accepts(b"1")
            await until(lambda far=far: len(far.got) > 1)
            assert await one.waiting() == 1
            assert await one.bounces() == []


async def test_an_exchange_that_was_cancelled_by_nobody_leaves_no_courier_waiting():
    far = Far([fails(asyncio.CancelledError()), takes()])
    async with here() as one:
        await one.lives_at(far)
        await one.accepts(b"1")
        await one.until_empty(20)
        assert far.bodies == [b"1", b"1"]


async def test_what_was_promised_is_demanded_though_less_is_promised_now():
    store = Fsynced()
    store.inboxes.durability = "unverified"  # as while its settings cannot be asked
    far = Far([takes(durability="unverified")])
    async with here(store) as one:
        await one.lives_at(far)
        await one.accepts(b"1")
        await until(lambda: len(far.got) > 1)
        assert await one.waiting() == 1


async def test_what_one_relay_may_have_is_marked_for_another():
    first, second = Far([no_answer()]), Far([takes()])
    async with here() as one:
        await one.lives_at(first)
        await one.accepts(b"1")
        await until(lambda: first.got)
        await one.lives_at(second)
        await one.until_empty()
        assert [marked for _, marked in second.got] == [True]
        assert not first.got[0][1]


@pytest.mark.breaks(
    "forwarding",
    "what an agent may have been handed is forwarded with a mark",
    by=node_id(test_what_one_relay_may_have_is_marked_for_another),
)
async def test_without_marks_it_is_found_to_be_forwarded_as_new(monkeypatch):
    monkeypatch.setattr(peer_submitter, "is_redelivered", lambda *_: False)
    with pytest.RaisesGroup(AssertionError, allow_unwrapped=True, flatten_subgroups=True):
        await test_what_one_relay_may_have_is_marked_for_another()


async def test_what_was_never_sent_is_marked_for_nobody():
    first, second = Far([takes()], down=error(ErrorCode.PEER_UNREACHABLE, "away")), Far([takes()])
    async with here() as one:
        await one.lives_at(first)
        await one.accepts(b"1")
        await one.lives_at(second)
        await one.until_empty()
        assert first.got == []
        assert [marked for _, marked in second.got] == [False]


async def test_a_bounce_of_what_a_relay_may_have_had_says_so():
    far = Far([no_answer(), refuses(ErrorCode.STALE_ID)])
    async with here() as one:
        await one.lives_at(far)
        [eid] = await one.accepts(b"1")
        await one.until_empty()
        assert await one.bounces() == [(eid, "stale_id", True)]


async def test_a_bounce_of_what_was_refused_at_once_says_so():
    far = Far([refuses(ErrorCode.BLOCKED)])
    async with here() as one:
        await one.lives_at(far)
        [eid] = await one.accepts(b"1")
        await one.until_empty()
        assert await one.bounces() == [(eid, "blocked", False)]


# ---------------------------------------------------------------- nothing stands still


async def test_a_home_that_is_away_for_long_does_not_keep_the_other_from_getting_mail():
    away = error(ErrorCode.PEER_UNREACHABLE, "away", retry_after=300)
    first, second = Far([takes()], down=away), Far([takes()])
    async with here() as one:
        await one.lives_at(first, second)
        await one.accepts(b"1")
        await one.until_empty()
        assert second.bodies == [b"1"]


async def test_a_sender_who_is_refused_for_now_keeps_nobody_else_waiting():
    carol = new_key()

    async def of_alice_nothing(far, wires):
        of_alice = [wire for wire in wires if signer_of(wire).startswith(one.alice.did)]
        others = [wire for wire in wires if wire not in of_alice]
        taken = await takes()(far, others) if others else SubmitResult(None, None, [])
        items = {item.eid: item for item in taken.outcomes}
        no = Rejection("r", 0, ErrorCode.SENDER_QUOTA, "no")
        outcomes = [items.get(eid_of(wire), no) for wire in wires]
        return SubmitResult(taken.receipt, taken.compact, outcomes)

    far = Far([of_alice_nothing])
    async with here() as one:
        await one.lives_at(far)
        await one.accepts(*(b"%d" % n for n in range(100)))
        await one.accepts(b"other", sender=carol)
        await until(lambda: b"other" in far.bodies, seconds=2)
        far.answers = [takes()]
        await one.until_empty()
        assert far.bodies[-100:] == [b"%d" % n for n in range(100)]


async def test_a_relay_that_never_answers_keeps_no_courier_from_the_others(monkeypatch):
    monkeypatch.setattr(scheduler, "MAX_FORWARDERS", 4)

    async def silence(far, wires):
        assert far.got
        assert wires
        await asyncio.sleep(0.3)  # as long as a submit may take, only shorter
        raise error(ErrorCode.PEER_UNREACHABLE, "no answer")

    mute, sound = Far([silence]), Far([takes()])
    others = [new_key() for _ in range(12)]
    async with here() as one:
        for other in others:
            await one.lives_at(mute, agent=other)
            await one.accepts(b"1", to=other)
        await until(lambda: mute.got)
        await one.lives_at(sound)
        await one.accepts(b"2")
        await until(lambda: sound.got, seconds=3.5)
        mute.answers = [takes()]
        await until(lambda: len({wire for wire, _ in mute.got}) == 12, seconds=15)
        for other in others:
            await one.until_empty(15, of=other)


async def test_a_full_inbox_at_one_home_is_no_reason_to_try_no_other():
    first, second = Far([refuses(ErrorCode.INBOX_FULL)]), Far([takes()])
    async with here() as one:
        await one.lives_at(first, second)
        await one.accepts(b"1")
        await one.until_empty()
        assert second.bodies == [b"1"]


async def test_a_full_inbox_is_not_tried_again_before_new_mail_is_taken_again():
    far = Far([refuses(ErrorCode.INBOX_FULL)])
    async with here() as one:
        await one.lives_at(far)
        await one.accepts(b"1")
        away = one.store.state.inboxes[one.bob.agent_key].away
        await until(lambda: away.closed)
        assert away.closed is ErrorCode.INBOX_FULL
        assert away.due_at >= away.closed_until - 1
        assert away.due_at > clock.now() + CLOSED_S - 2
        assert len(far.got) == 1


async def test_a_directory_that_cannot_be_read_closes_nothing():
    class Unreadable(MemoryStore):
        is_away = False

        def __init__(self) -> None:
            super().__init__(InboxLimits(), clock.now)
            self._get, self.records.get = self.records.get, self.get

        async def get(self, owner):
            if self.is_away:
                raise error(ErrorCode.STORAGE_UNAVAILABLE, "away")
            return await self._get(owner)

    far, store = Far([takes()]), Unreadable()
    async with here(store) as one:
        await one.lives_at(far)
        store.is_away = True
        await one.accepts(b"1")
        await until(lambda: store.state.inboxes[one.bob.agent_key].away.deferred_until)
        await one.accepts(b"2")
        store.is_away = False
        await one.until_empty()
        assert far.bodies == [b"1", b"2"]


async def test_where_no_home_may_be_dialled_new_mail_is_refused_until_one_may():
    far = Far([takes()])
    async with here() as one:
        await one.lives_at(far)
        one.links.barred.add(far.peer)
        await one.accepts(b"1")
        away = one.store.state.inboxes[one.bob.agent_key].away
        await until(lambda: away.closed is ErrorCode.NOT_FEDERATED)
        one.links.barred.clear()
        await one.lives_at(far)
        await one.until_empty()
        assert far.bodies == [b"1"]


async def test_who_says_moved_and_shows_what_is_known_is_not_asked_without_pause():
    far = Far([takes()])
    async with here() as one:
        record = await one.lives_at(far)
        far.answers = [refuses(ErrorCode.MOVED, record=record)]
        await one.accepts(b"1")
        await until(lambda: len(far.times) == 3)
        assert far.times[2] - far.times[1] > 0.4


async def test_a_bug_in_talking_to_one_relay_ends_no_other_courier():
    broken, sound = Far([fails(ZeroDivisionError("a bug")), takes()]), Far([takes()])
    async with here() as one:
        await one.lives_at(broken)
        await one.accepts(b"1")
        await until(lambda: broken.got)
        await one.lives_at(sound)
        await one.accepts(b"2")
        await one.until_empty()
        assert sound.bodies == [b"1", b"2"]


async def test_a_drain_does_not_wait_for_a_courier_that_is_only_opening():
    class Opening(MemoryStore):
        def __init__(self) -> None:
            super().__init__(InboxLimits(), clock.now)
            self.asked, self.may_open = asyncio.Event(), asyncio.Event()
            self._open, self.inboxes.open = self.inboxes.open, self.open

        async def open(self, request):
            self.asked.set()
            await self.may_open.wait()
            return await self._open(request)

    far, store = Far([takes()]), Opening()
    async with here(store) as one:
        await one.lives_at(far)
        await one.accepts(b"1")
        await store.asked.wait()
        draining = asyncio.create_task(one.forwarding.drain())
        await asyncio.wait({draining}, timeout=0.05)
        store.may_open.set()
        async with asyncio.timeout(3):
            await draining


async def test_a_courier_that_waits_for_an_answer_takes_it_before_a_drain_ends():
    answer = asyncio.Event()
    far = Far([hangs(answer, takes())])
    async with here() as one:
        await one.lives_at(far)
        await one.accepts(b"1")
        await until(lambda: far.got)
        draining = asyncio.create_task(one.forwarding.drain())
        done, _ = await asyncio.wait({draining}, timeout=0.05)
        assert not done
        answer.set()
        await draining
        assert await one.waiting() == 0


async def test_a_forwarder_leaves_although_the_result_of_its_ack_makes_no_sense():
    store, far = Garbled(), Far([takes()])
    async with here(store) as one:
        await one.lives_at(far)
        await one.accepts(b"1")
        await until(store.asked.is_set)
        draining = asyncio.create_task(one.forwarding.drain())
        await until(lambda: one.forwarding._is_draining)
        store.released.set()
        async with asyncio.timeout(5):
            await draining
