"""Keeping what peers bring: each record is judged alone, and blame goes where it belongs."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from relay import clock
from relay.directory.ports import DirectoryLimits
from relay.directory.publish import Directory, RecordMergeResult
from relay.inbox.keys import DidKeys
from relay.inbox.model.types import InboxLimits
from relay.inbox.ports import OpenRequest
from relay.protocol import endpoint_record
from relay.protocol import jws as jose
from relay.protocol.did import SigningKey, parse_did
from relay.protocol.endpoint_record import Home
from relay.protocol.errors import ErrorCode, Refusal, RejectedError
from relay.protocol.ids import NodeId, Timestamp
from relay.protocol.types import Window
from relay.reference.memory_store import MemoryStore
from tests.unit.builders import ALICE, BOB, MALLORY, RELAY, resigned

HERE = Home(RELAY.did, "https://relay.example")
ELSEWHERE = Home(MALLORY.did, "https://other.example")
PEER = SigningKey(b"p" * 32).did
ALICES = parse_did(ALICE.did).agent_key
DAY = 24 * 3600


class Made:
    """A directory over an empty store, and how often a signature was looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        limits = DirectoryLimits(records=8, share=4)
        self.store = MemoryStore(InboxLimits(), clock.now, directory=limits)
        self.directory = Directory(RELAY.did, self.store.records, DidKeys())
        self.checks = 0
        real = jose.is_signed_by

        def counted(jws: jose.Jws, key: bytes) -> bool:
            self.checks += 1
            return real(jws, key)

        monkeypatch.setattr(jose, "is_signed_by", counted)

    async def keep(self, *compacts: str) -> list[RecordMergeResult]:
        return await self.directory.merge_from_peer(compacts, PEER)

    async def open_inbox(self) -> None:
        node = NodeId("node")
        opened = await self.store.inboxes.open(OpenRequest(ALICES, node, Window()))
        assert not isinstance(opened, Refusal)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    return Made(monkeypatch)


def record(key: SigningKey = ALICE, *homes: Home, age: float = 0, **changes: Any) -> str:
    now = Timestamp(clock.now() - age)
    return endpoint_record.sign(key, homes, now=now, **changes)


def codes(merged: list[RecordMergeResult]) -> list[object]:
    return [one.outcome.code if isinstance(one.outcome, Refusal) else one.outcome for one in merged]


async def test_each_record_of_a_batch_gets_its_own_answer_in_its_place(made: Made):
    good, other = record(), record(BOB)
    forged = resigned(record(BOB, age=1), MALLORY)
    gone, ahead = record(BOB, age=98 * DAY), record(BOB, age=-400)
    later = resigned(good, ALICE, v=2)
    given = [good, forged, "a.b.c", later, gone, ahead, other, good]
    merged = await made.keep(*given)
    assert codes(merged) == [
        "newer", ErrorCode.BAD_SIGNATURE, ErrorCode.BAD_FRAME, ErrorCode.UNSUPPORTED,
        ErrorCode.EXPIRED, ErrorCode.NOT_YET_VALID, "newer", "newer",
    ]  # fmt: skip
    assert [one.compact for one in merged] == given
    assert [one.is_strike for one in merged] == [False, True, True] + [False] * 5
    assert [one.is_new for one in merged] == [True] + [False] * 5 + [True] * 2
    assert (merged[0].owner, merged[0].version) == (ALICES, endpoint_record.parse(good).version)
    assert (await made.directory.resolve(ALICE.did)).record == good
    assert (await made.directory.resolve(BOB.did)).record == other


async def test_without_a_check_of_signatures_a_forged_record_would_be_stored(
    made: Made, monkeypatch: pytest.MonkeyPatch
):
    """The negative control."""
    monkeypatch.setattr(jose, "is_signed_by", lambda *_: True)
    with pytest.raises(AssertionError):
        await test_each_record_of_a_batch_gets_its_own_answer_in_its_place(made)


async def test_what_is_held_or_older_costs_no_signature_and_is_no_strike(made: Made):
    old, new = record(age=10), record()
    await made.keep(new)
    made.checks = 0
    merged = await made.keep(new, old, resigned(old, MALLORY), new)
    assert codes(merged) == ["same", "older", "older", "same"]
    assert not any(one.is_strike or one.is_new for one in merged)
    assert {one.version for one in merged} == {endpoint_record.parse(new).version}
    assert made.checks == 0
    # the negative control: what is newer is looked at, and refused
    forged = resigned(new, MALLORY, seq=endpoint_record.parse(new).seq + 1)
    assert codes(await made.keep(forged)) == [ErrorCode.BAD_SIGNATURE]
    assert made.checks == 1
    assert (await made.directory.resolve(ALICE.did)).record == new


async def test_equivocation_is_stored_as_evidence_and_the_greater_one_is_new(made: Made):
    seq = int(clock.now() * 1000)
    two = sorted((resigned(record(), ALICE, seq=seq, ttl=ttl) for ttl in (300, 301)),
                 key=lambda one: endpoint_record.parse(one).version)  # fmt: skip
    assert await made.directory.evidence(ALICE.did) is None
    outcomes = [(await made.keep(one))[0] for one in (two[0], two[1], two[0])]
    assert codes(outcomes) == ["newer", "equivocal", "equivocal"]
    assert [one.is_new for one in outcomes] == [True, True, False]
    assert await made.directory.evidence(ALICE.did) == (two[0], two[1])
    assert (await made.directory.resolve(ALICE.did)).record == two[1]


async def test_a_record_from_a_peer_changes_the_mode_of_an_inbox_as_its_agent_would(
    made: Made,
):
    await made.open_inbox()
    await made.keep(record(ALICE, ELSEWHERE, age=3, status="parked"))
    row = await made.store.records.get(ALICES)
    assert row is not None
    assert row.names_us
    for seen, homes in enumerate([[ELSEWHERE], [HERE, ELSEWHERE], []], 1):
        compact = record(ALICE, *homes, newest_seq=int(clock.now() * 1000) + seen * 1000)
        await made.keep(compact)
        row = await made.store.records.get(ALICES)
        assert row is not None
        assert (row.compact, row.names_us) == (compact, HERE in homes)


async def test_a_peer_that_has_introduced_enough_agents_is_answered_full(made: Made):
    keys = [SigningKey(bytes([number]) * 32) for number in range(1, 4)]
    merged = await made.keep(*(record(key) for key in keys))
    assert codes(merged) == ["newer", "newer", "full"]
    assert not merged[2].is_strike
    assert not merged[2].is_new


async def test_who_publishes_without_a_login_shares_the_room_with_all_such(made: Made):
    strangers = [SigningKey(bytes([n]) * 32) for n in range(1, 4)]
    for key in strangers[:2]:
        await made.directory.publish(record(key, HERE), only=key.did)
    with pytest.raises(RejectedError) as caught:
        await made.directory.publish(record(strangers[2], HERE), only=strangers[2].did)
    assert caught.value.code is ErrorCode.NOT_ADMITTED
    # who has logged in is no stranger, and makes room for one
    assert (await made.directory.publish(record(strangers[0], HERE), owner=strangers[0].did)).stored
    assert (await made.directory.publish(record(strangers[2], HERE), only=strangers[2].did)).stored


async def test_others_have_a_turn_while_a_batch_is_judged(made: Made):
    turns = itertools.count()

    async def count() -> None:
        while True:
            next(turns)
            await asyncio.sleep(0)

    other = asyncio.ensure_future(count())
    seqs = [endpoint_record.parse(record()).seq + number for number in range(64)]
    await made.keep(*(resigned(record(), ALICE, seq=seq) for seq in seqs))
    other.cancel()
    assert next(turns) >= 8
