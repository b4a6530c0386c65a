"""Endpoint records: signing, order, merging, expiry, and refusals by name."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.protocol import endpoint_record
from relay.protocol.did import parse_did
from relay.protocol.endpoint_record import EndpointRecord, FormerHome, Home, compare_versions, merge
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.ids import Timestamp
from tests.unit.builders import ALICE, BOB, MALLORY, NOW, RELAY, resigned

WEEK = 7 * 24 * 3600
URL = "https://relay.example"
HOME = Home(RELAY.did, URL, 0)
KEY = parse_did(ALICE.did)


def record(**changes: Any) -> str:
    given: dict[str, Any] = {"now": NOW}
    return endpoint_record.sign(ALICE, [HOME], **{**given, **changes})


def changed(**members: object) -> str:
    return resigned(record(), ALICE, **members)


def refused(text: str) -> ErrorCode:
    with pytest.raises(ProtocolError) as caught:
        endpoint_record.parse(text)
    return caught.value.code


def outcome(text: str, key: Any = KEY, now: float = NOW) -> ErrorCode | None:
    no = endpoint_record.verify(endpoint_record.parse(text), key, Timestamp(now))
    return no.code if no else None


def test_a_record_says_what_the_agent_signed():
    read = endpoint_record.parse(record(handles=["bob@relay.example"], status="parked"))
    assert (read.did, read.kv, read.status) == (ALICE.did, 1, "parked")
    assert read.relays == (HOME,)
    assert read.handles == ("bob@relay.example",)
    assert (read.issued_at, read.expires_at) == (int(NOW), int(NOW) + WEEK)
    assert read.seq == int(NOW) * 1000
    assert read.names(RELAY.did)
    assert not read.names(MALLORY.did)
    assert outcome(record()) is None


def test_relays_that_were_left_and_a_sealing_key_are_said_where_there_are_any():
    left = FormerHome(RELAY.did, URL, int(NOW) + 600)
    read = endpoint_record.parse(record(drain=[left], enc=bytes(range(32))))
    assert (read.drain, read.enc) == ((left,), bytes(range(32)))
    assert outcome(read.jws.compact) is None
    plain = endpoint_record.parse(record())
    assert (plain.drain, plain.enc) == ((), None)
    assert endpoint_record.parse(changed(drain=...)).drain == ()


def test_the_next_record_is_above_every_seq_that_was_seen():
    ahead = int(NOW) * 1000 + 5
    assert endpoint_record.parse(record(newest_seq=ahead)).seq == ahead + 1
    assert endpoint_record.parse(record(newest_seq=7)).seq == int(NOW) * 1000


# ---------------------------------------------------------------- order and merge


def test_the_order_is_key_version_then_seq_then_the_hash_of_what_was_signed():
    read = endpoint_record.parse(record())
    digest = hashlib.sha256(read.jws.signing_input).digest()
    assert read.version == (1, int(NOW) * 1000, digest)


def variants() -> list[EndpointRecord]:
    seqs = [int(NOW) * 1000 + step for step in (0, 0, 0, 1, 2)]
    return [
        endpoint_record.parse(changed(seq=seq, ttl=300 + n)) for n, seq in enumerate(seqs)
    ]  # fmt: skip


VARIANTS = variants()
any_record = st.sampled_from(VARIANTS)


@given(any_record, any_record, any_record)
def test_merge_is_a_join(a: EndpointRecord, b: EndpointRecord, c: EndpointRecord):
    assert merge(a, b) is merge(b, a) or merge(a, b) == merge(b, a)
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, a) == a
    assert merge(None, a) == a
    assert merge(a, b).version == max(a.version, b.version)


def test_every_order_of_arrival_ends_with_the_same_record():
    ends = set()
    for arrival in itertools.permutations(VARIANTS):
        held = None
        for one in arrival:
            held = merge(held, one)
        assert held is not None
        ends.add(held.jws.compact)
    assert ends == {max(VARIANTS, key=lambda one: one.version).jws.compact}


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


# ---------------------------------------------------------------- laws

AHEAD = (int(NOW) + 900) * 1000
"""The highest seq that is not void at NOW."""


def hostile() -> list[EndpointRecord]:
    """Records of one agent as an attacker, a wrong clock or an old backup would mix them."""
    equivocal = [{"seq": int(NOW) * 1000, "ttl": ttl} for ttl in (300, 301, 302)]
    expired = {
        "seq": (int(NOW) - 2 * WEEK) * 1000,
        "iat": int(NOW) - 2 * WEEK,
        "exp": int(NOW) - WEEK,
    }
    rolled_back = {"seq": 7, "iat": int(NOW), "exp": int(NOW) + 5}
    later = int(NOW) + 300
    forward = [{"seq": seq, "iat": later, "exp": later + 5} for seq in (AHEAD, AHEAD - 1)]
    year = int(NOW) + 365 * 24 * 3600
    void = [{"seq": year * 1000 + n, "iat": year, "exp": year + 5} for n in range(2)]
    void += [{"seq": AHEAD + 1, "iat": later + 1, "exp": later + 5}]
    return [
        endpoint_record.parse(changed(**one))
        for one in (*equivocal, expired, rolled_back, *forward, *void)
    ]


HOSTILE = hostile()
any_hostile = st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=8)


def folded(
    given: Sequence[EndpointRecord], held: EndpointRecord | None = None, rule: Any = merge
) -> EndpointRecord | None:
    for one in given:
        held = rule(held, one, NOW)
    return held


@given(any_hostile, any_hostile, any_hostile)
def test_merging_sets_of_records_is_a_join_whatever_is_among_them(
    a: list[EndpointRecord], b: list[EndpointRecord], c: list[EndpointRecord]
):
    assert folded(a + b) == folded(b + a)
    assert folded(b + c, folded(a)) == folded(c, folded(a + b))
    assert folded(a + a) == folded(a)
    assert folded(a, folded(a + b)) == folded(a + b)


@given(any_hostile)
def test_no_record_from_a_wrong_clock_outranks_one_from_a_right_one(given: list[EndpointRecord]):
    held = folded(given)
    right = [one for one in given if one.seq <= AHEAD]
    if right:
        assert held == max(right, key=lambda one: one.version)


@given(any_hostile)
def test_what_merge_holds_is_what_judge_calls_newer_or_the_greater_of_equivocal_ones(
    given: list[EndpointRecord],
):
    held: EndpointRecord | None = None
    for one in given:
        verdict = compare_versions(held.version if held else None, one.version, NOW)
        takes = verdict == "newer" or (
            verdict == "equivocal" and held is not None and one.version > held.version
        )
        merged = merge(held, one, NOW)
        assert merged == (one if takes else held)
        assert (verdict == "same") == (held == one)
        held = merged


def test_a_rule_that_refuses_what_is_void_now_would_depend_on_arrival():
    """The negative control: voids that are below others, and equal among themselves."""

    def rule(held: EndpointRecord | None, other: EndpointRecord, now: Timestamp):
        if held is None or held.seq > (now + 900) * 1000:
            return other
        return other if other.seq > held.seq and other.seq <= (now + 900) * 1000 else held

    void = [one for one in HOSTILE if one.seq > AHEAD]
    assert len({folded(order, rule=rule).jws.compact for order in itertools.permutations(void)}) > 1
    assert len({folded(order).jws.compact for order in itertools.permutations(void)}) == 1


# ---------------------------------------------------------------- bounds


@pytest.mark.parametrize(
    "seq", [2**53 - 1, (int(NOW) + 600) * 1000 + 1, -1, "1", None, ...], ids=str
)
def test_a_seq_that_would_lock_out_its_own_agent_is_refused(seq: object):
    assert refused(changed(seq=seq)) == ErrorCode.BAD_FRAME


def test_a_seq_up_to_ten_minutes_ahead_of_its_own_time_is_taken():
    assert (
        endpoint_record.parse(changed(seq=(int(NOW) + 600) * 1000)).seq == (int(NOW) + 600) * 1000
    )


def test_the_clock_enters_through_iat_alone():
    assert outcome(record(), now=NOW - 300) is None
    assert outcome(record(), now=NOW - 301) == ErrorCode.NOT_YET_VALID
    over = NOW + WEEK + 90 * 24 * 3600
    assert outcome(record(), now=over - 1) is None  # stale, and still in force
    assert outcome(record(), now=over) == ErrorCode.EXPIRED
    expires_at = endpoint_record.parse(record()).expires_at
    assert not endpoint_record.is_stale(expires_at, Timestamp(NOW + WEEK - 1))
    assert endpoint_record.is_stale(expires_at, Timestamp(NOW + WEEK))


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
        {"enc": "x"}, {"enc": 1}, {"relays": [1]}, {"drain": {}}, {"drain": [1]}, {"drain": [{}]},
        {"drain": [{"did": RELAY.did, "url": URL, "until": 1}] * 6},
        {"drain": [{"did": RELAY.did, "url": URL + "/x", "until": 1}]},
        {"drain": [{"did": "nobody", "url": URL, "until": 1}]},
        {"drain": [{"did": RELAY.did, "url": URL}]},
        {"drain": [{"did": RELAY.did, "url": URL, "until": -1}]},
    ],
    ids=lambda changes: str(changes)[:50],
)  # fmt: skip
def test_every_member_has_bounds(changes: dict[str, object]):
    assert refused(changed(**changes)) == ErrorCode.BAD_FRAME


def test_no_relays_five_relays_and_a_sealing_key_are_fine():
    assert endpoint_record.parse(changed(relays=[])).relays == ()
    five = [{"did": RELAY.did, "url": URL, "prio": n} for n in range(5)]
    assert len(endpoint_record.parse(changed(relays=five)).relays) == 5
    enc = "A" * 43
    assert endpoint_record.parse(changed(enc=enc)).enc == bytes(32)
    assert endpoint_record.parse(changed(handles=...)).handles == ()


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
    assert endpoint_record.parse(endpoint_record.sign(BOB, [HOME], now=NOW)).did == BOB.did


def test_a_clock_that_was_set_back_makes_a_record_that_can_be_read():
    for back_s in (0, endpoint_record.SEQ_SLACK_S, endpoint_record.SEQ_SLACK_S + 1, 86_400):
        newest = int((NOW + back_s) * 1000)
        made = endpoint_record.parse(record(newest_seq=newest))
        assert made.seq == newest + 1
        assert made.issued_at <= NOW + back_s
