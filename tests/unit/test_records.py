from __future__ import annotations

import hashlib
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core import records
from relay.core.errors import ErrorCode, ProtocolError
from relay.core.identity import parse_did
from relay.core.ids import Timestamp
from relay.core.records import EndpointRecord, Home, merge
from tests.unit.builders import ALICE, BOB, MALLORY, NOW, RELAY, resigned

WEEK = 7 * 24 * 3600
URL = "https://relay.example"
HOME = Home(RELAY.did, URL, 0)
KEY = parse_did(ALICE.did)


def record(**changes: Any) -> str:
    given: dict[str, Any] = {"now": NOW}
    return records.sign(ALICE, [HOME], **{**given, **changes})


def changed(**members: object) -> str:
    return resigned(record(), ALICE, **members)


def refused(text: str) -> ErrorCode:
    with pytest.raises(ProtocolError) as caught:
        records.parse(text)
    return caught.value.code


def outcome(text: str, key: Any = KEY, now: float = NOW) -> ErrorCode | None:
    no = records.verify(records.parse(text), key, Timestamp(now))
    return no.code if no else None


def test_a_record_says_what_the_agent_signed():
    read = records.parse(record(handles=["bob@relay.example"], status="parked"))
    assert (read.did, read.kv, read.status) == (ALICE.did, 1, "parked")
    assert read.relays == (HOME,)
    assert read.handles == ("bob@relay.example",)
    assert (read.issued_at, read.expires_at) == (int(NOW), int(NOW) + WEEK)
    assert read.seq == int(NOW) * 1000
    assert read.names(RELAY.did)
    assert not read.names(MALLORY.did)
    assert outcome(record()) is None


def test_the_next_record_is_above_every_seq_that_was_seen():
    ahead = int(NOW) * 1000 + 5
    assert records.parse(record(newest_seq=ahead)).seq == ahead + 1
    assert records.parse(record(newest_seq=7)).seq == int(NOW) * 1000


# ---------------------------------------------------------------- order and merge


def test_the_order_is_key_version_then_seq_then_the_hash_of_what_was_signed():
    read = records.parse(record())
    digest = hashlib.sha256(read.jws.signing_input).digest()
    assert read.order == (1, int(NOW) * 1000, digest)


def variants() -> list[EndpointRecord]:
    seqs = [int(NOW) * 1000 + step for step in (0, 0, 0, 1, 2)]
    return [
        records.parse(changed(seq=seq, ttl=300 + n)) for n, seq in enumerate(seqs)
    ]  # fmt: skip


VARIANTS = variants()
any_record = st.sampled_from(VARIANTS)


@given(any_record, any_record, any_record)
def test_merge_is_a_join(a: EndpointRecord, b: EndpointRecord, c: EndpointRecord):
    assert merge(a, b) is merge(b, a) or merge(a, b) == merge(b, a)
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, a) == a
    assert merge(None, a) == a
    assert merge(a, b).order == max(a.order, b.order)


def test_every_order_of_arrival_ends_with_the_same_record():
    ends = set()
    for arrival in itertools.permutations(VARIANTS):
        held = None
        for one in arrival:
            held = merge(held, one)
        assert held is not None
        ends.add(held.jws.compact)
    assert ends == {max(VARIANTS, key=lambda one: one.order).jws.compact}


def test_a_rule_that_keeps_the_first_of_equal_seqs_would_depend_on_arrival():
    """The negative control of the join: what merge must not be."""

    def literal(held: EndpointRecord | None, other: EndpointRecord) -> EndpointRecord:
        return other if held is None or other.seq > held.seq else held

    equal = [one for one in VARIANTS if one.seq == VARIANTS[0].seq]
    ends = set()
    for arrival in itertools.permutations(equal):
        held = None
        for one in arrival:
            held = literal(held, one)
        ends.add(held.jws.compact if held else "")
    assert len(ends) == len(equal)


# ---------------------------------------------------------------- bounds


@pytest.mark.parametrize(
    "seq", [2**53 - 1, (int(NOW) + 600) * 1000 + 1, -1, "1", None, ...], ids=str
)
def test_a_seq_that_would_lock_out_its_own_agent_is_refused(seq: object):
    assert refused(changed(seq=seq)) == ErrorCode.BAD_FRAME


def test_a_seq_up_to_ten_minutes_ahead_of_its_own_time_is_taken():
    assert records.parse(changed(seq=(int(NOW) + 600) * 1000)).seq == (int(NOW) + 600) * 1000


def test_the_clock_enters_through_iat_alone():
    assert outcome(record(), now=NOW - 300) is None
    assert outcome(record(), now=NOW - 301) == ErrorCode.NOT_YET_VALID
    assert outcome(record(), now=NOW + 10 * WEEK) is None  # stale, and still in force
    assert not records.is_stale(records.parse(record()), Timestamp(NOW + WEEK - 1))
    assert records.is_stale(records.parse(record()), Timestamp(NOW + WEEK))


def test_only_the_agent_signs_its_record():
    forged = resigned(record(), MALLORY)
    assert outcome(forged) == ErrorCode.BAD_SIGNATURE
    assert outcome(record(), parse_did(MALLORY.did)) == ErrorCode.BAD_SIGNATURE
    assert refused(changed(did=MALLORY.did)) == ErrorCode.BAD_FRAME


@pytest.mark.parametrize(
    "changes",
    [
        {"v": "1"}, {"did": None}, {"did": "x"}, {"kv": 0}, {"kv": 2}, {"iat": -1}, {"iat": ...},
        {"exp": int(NOW)}, {"exp": int(NOW) + WEEK + 1}, {"exp": ...}, {"ttl": 0}, {"ttl": ...},
        {"ttl": WEEK + 1}, {"status": "asleep"}, {"status": ...}, {"relays": ...}, {"relays": {}},
        {"relays": [{}]}, {"relays": [{"did": RELAY.did, "url": URL, "prio": 0}] * 6},
        {"relays": [{"did": "nobody", "url": URL, "prio": 0}]},
        {"relays": [{"did": RELAY.did, "url": "", "prio": 0}]},
        {"relays": [{"did": RELAY.did, "url": "relay.example", "prio": 0}]},
        {"relays": [{"did": RELAY.did, "url": "ftp://relay.example", "prio": 0}]},
        {"relays": [{"did": RELAY.did, "url": URL + "/path", "prio": 0}]},
        {"relays": [{"did": RELAY.did, "url": "https://me@relay.example", "prio": 0}]},
        {"relays": [{"did": RELAY.did, "url": "https://" + "u" * 505, "prio": 0}]},
        {"relays": [{"did": RELAY.did, "url": URL, "prio": -1}]},
        {"relays": [{"did": RELAY.did, "url": URL, "prio": 1001}]},
        {"handles": [1]}, {"handles": "x"}, {"handles": ["h" * 513]}, {"handles": ["h"] * 9},
        {"enc": "x"}, {"enc": 1}, {"relays": [1]},
    ],
    ids=lambda changes: str(changes)[:50],
)  # fmt: skip
def test_every_member_has_bounds(changes: dict[str, object]):
    assert refused(changed(**changes)) == ErrorCode.BAD_FRAME


def test_no_relays_five_relays_and_a_sealing_key_are_fine():
    assert records.parse(changed(relays=[])).relays == ()
    five = [{"did": RELAY.did, "url": URL, "prio": n} for n in range(5)]
    assert len(records.parse(changed(relays=five)).relays) == 5
    enc = "A" * 43
    assert records.parse(changed(enc=enc)).enc == bytes(32)
    assert records.parse(changed(handles=...)).handles == ()


@pytest.mark.parametrize(
    "changes",
    [{"v": 2}, {"must_x": 1}, {"did": "did:webvh:x:example.org"},
     {"relays": [{"did": "did:web:example.org", "url": URL, "prio": 0}]}],
    ids=str,
)  # fmt: skip
def test_what_a_later_version_may_mean_is_unsupported_and_not_wrong(changes: dict[str, object]):
    assert refused(changed(**changes)) == ErrorCode.UNSUPPORTED


def test_a_record_is_at_most_4_kib():
    assert refused(changed(extra="x" * 4096)) == ErrorCode.BAD_FRAME
    assert refused("x" * 5000) == refused("") == refused("a.b.c") == ErrorCode.BAD_FRAME


def test_a_record_of_another_agent_is_another_agents():
    assert records.parse(records.sign(BOB, [HOME], now=NOW)).did == BOB.did
