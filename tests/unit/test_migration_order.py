"""Migration orders: signing, parsing, and refusals by name."""

from __future__ import annotations

from typing import Any

import pytest

from relay.migration.model.state import OrderRef, RecordRef
from relay.protocol import endpoint_record, migration_order
from relay.protocol.did import parse_did
from relay.protocol.endpoint_record import FormerHome, Home, RecordVersion
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.ids import Timestamp
from relay.protocol.migration_order import MigrationOrder
from tests.unit.builders import ALICE, BOB, MALLORY, NOW, RELAY, numbered_entropy, resigned

DAY = 24 * 3600
HERE = Home(RELAY.did, "https://here.example")
THERE = Home(MALLORY.did, "https://there.example")
KEY = parse_did(ALICE.did)


def next_record(*homes: Home, key: Any = ALICE, newest: int = 0) -> str:
    return endpoint_record.sign(key, homes or [THERE], now=NOW, newest_seq=newest)


def order(**changes: Any) -> str:
    given: dict[str, Any] = {"now": NOW, "entropy": numbered_entropy()}
    record = changes.pop("record", None) or next_record()
    return migration_order.sign(ALICE, HERE, THERE, record, **{**given, **changes})


def changed(**members: object) -> str:
    return resigned(order(), ALICE, **members)


def refused(text: str) -> ErrorCode:
    with pytest.raises(ProtocolError) as caught:
        migration_order.parse(text)
    return caught.value.code


def outcome(read: MigrationOrder, key: Any = KEY, now: float = NOW) -> ErrorCode | None:
    no = migration_order.verify(read, key, Timestamp(now))
    return no.code if no else None


def test_an_order_says_what_the_agent_signed():
    read = migration_order.parse(order())
    assert (read.did, read.source, read.target) == (ALICE.did, HERE, THERE)
    assert (read.issued_at, read.expires_at) == (int(NOW), int(NOW) + DAY)
    assert read.seq == int(NOW) * 1000
    assert read.record.names(THERE.did)
    assert read.concerns(RELAY.did)
    assert read.concerns(MALLORY.did)
    assert not read.concerns(BOB.did)
    assert outcome(read) is None


def test_the_next_order_is_above_every_seq_that_was_seen():
    ahead = int(NOW) * 1000 + 5
    assert migration_order.parse(order(newest_seq=ahead)).seq == ahead + 1


def test_the_short_form_is_what_a_hand_off_needs():
    read = migration_order.parse(order())
    short = OrderRef.of(read)
    assert (short.id, short.seq, short.expires_at) == (read.id, read.seq, read.expires_at)
    assert (short.source, short.target) == (HERE.did, THERE.did)
    assert short.record == RecordRef.of(read.record)


def test_the_first_home_is_the_one_with_the_lowest_prio():
    text = next_record(Home(RELAY.did, HERE.url, 5), Home(MALLORY.did, THERE.url, 1))
    assert RecordRef.of(endpoint_record.parse(text)).homes == (MALLORY.did, RELAY.did)
    assert RecordRef.of(endpoint_record.parse(text)).home == MALLORY.did
    assert RecordRef(RecordVersion(1, 1, b""), ()).home is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"mig_id": "no-uuid"},
        {"mig_id": "00000000-0000-4000-8000-000000000000"},
        {"did": BOB.did},
        {"from": {"did": MALLORY.did, "url": HERE.url}},
        {"to": {"did": BOB.did, "url": THERE.url}},
        {"to": {"did": THERE.did, "url": "https://there.example/path"}},
        {"to": THERE.did},
        {"exp": int(NOW) + DAY + 1},
        {"exp": int(NOW)},
        {"seq": (int(NOW) + 601) * 1000},
        {"record": "a.b.c"},
        {"record": next_record(HERE)},
        {"record": next_record(THERE, HERE)},
        {"record": next_record(key=BOB)},
        {"seq": ...},
    ],
)
def test_an_order_of_another_form_is_refused(wrong: dict[str, object]):
    assert refused(changed(**wrong)) is ErrorCode.BAD_FRAME


def test_what_another_version_may_mean_is_unsupported():
    assert refused(changed(v=2)) is ErrorCode.UNSUPPORTED
    assert refused(changed(must_hurry=True)) is ErrorCode.UNSUPPORTED


def test_only_the_agent_can_order_its_move():
    forged = migration_order.parse(order())
    assert outcome(forged, key=parse_did(BOB.did)) is ErrorCode.BAD_SIGNATURE
    altered = migration_order.parse(
        order().rpartition(".")[0] + "." + order(newest_seq=2**45).rpartition(".")[2]
    )
    assert outcome(altered) is ErrorCode.BAD_SIGNATURE


def test_the_record_in_it_must_be_signed_by_the_same_agent():
    stolen = next_record()
    head, body, _ = stolen.split(".")
    other = next_record(newest=int(NOW) * 1000 + 9).rpartition(".")[2]
    read = migration_order.parse(changed(record=f"{head}.{body}.{other}"))
    assert outcome(read) is ErrorCode.BAD_SIGNATURE


def test_an_order_is_good_for_a_day_and_not_before_it_was_signed():
    read = migration_order.parse(order())
    assert outcome(read, now=NOW + DAY - 1) is None
    assert outcome(read, now=NOW + DAY) is ErrorCode.EXPIRED
    assert outcome(read, now=NOW - 301) is ErrorCode.NOT_YET_VALID


def test_who_may_hand_over_is_named_by_an_order_or_an_earlier_record():
    newest = migration_order.parse(order()).record
    earlier = endpoint_record.parse(endpoint_record.sign(ALICE, [HERE], now=Timestamp(NOW - 10)))
    later = endpoint_record.parse(next_record(HERE, newest=newest.seq))
    theirs = endpoint_record.parse(endpoint_record.sign(BOB, [HERE], now=Timestamp(NOW - 10)))
    assert migration_order.authorizes(RELAY.did, earlier, newest)
    assert migration_order.authorizes(RELAY.did, migration_order.parse(order()), newest)
    assert not migration_order.authorizes(BOB.did, earlier, newest)
    assert not migration_order.authorizes(BOB.did, migration_order.parse(order()), newest)
    assert not migration_order.authorizes(RELAY.did, later, newest)
    assert not migration_order.authorizes(RELAY.did, theirs, newest)
    left = FormerHome(RELAY.did, "https://one.example", int(NOW) + 99)
    leaves = endpoint_record.parse(endpoint_record.sign(ALICE, [HERE], now=NOW, drain=[left]))
    assert migration_order.authorizes(RELAY.did, leaves, leaves)
    assert not migration_order.authorizes(BOB.did, leaves, leaves)
