"""Laws of gossip: which peers get a record, how much one may push, and which lies count."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.directory import gossip
from relay.directory.gossip import push_allowance
from relay.directory.model.rumors import Rumors, pack_records
from relay.peering.model import reputation
from relay.peering.model.reputation import Reputation, StrikeCounter, is_strike
from relay.protocol import frames, jws
from relay.protocol.endpoint_record import Home, sign
from relay.protocol.errors import ErrorCode
from relay.protocol.frames import MAX_GOSSIP_BYTES, MAX_GOSSIP_RECORDS
from relay.protocol.ids import AgentKey, Did, Timestamp
from tests.unit.builders import ALICE, MALLORY, NOW, RELAY

PEERS = [Did(f"did:key:z{n}") for n in range(9)]
CHANCE = random.Random(4)  # noqa: S311


def pick(peers: Any, count: int) -> list[Did]:
    return CHANCE.sample(list(peers), count)


def agent(n: int) -> AgentKey:
    return AgentKey(f"key:{n}")


def later(seconds: float) -> Timestamp:
    return Timestamp(NOW + seconds)


# ---------------------------------------------------------------- rumors


@given(
    st.lists(st.tuples(st.integers(0, 20), st.sampled_from([None, *PEERS])), max_size=60),
    st.lists(st.sampled_from(PEERS), unique=True, min_size=1),
)
def test_a_received_record_goes_to_three_others_and_a_published_one_to_all_once_and_never_back(
    news, peers
):
    rumors = Rumors()
    newest: dict[str, Did | None] = {}
    for n, (who, not_to) in enumerate(news):
        assert rumors.add(agent(who), f"{who}:{n}", not_to=not_to)
        newest[str(who)] = not_to
        expected = {str(who): f"{who}:{n}"}
    receivers: dict[str, list[Did]] = {who: [] for who in newest}
    for peer, frame in rumors.pop_frames(peers, pick, limit=1000):
        for compact in frame.records:
            receivers[compact.partition(":")[0]].append(peer)
    for who, to in receivers.items():
        able = [peer for peer in peers if peer != newest[who]]
        maximum = 3 if newest[who] else 16
        assert len(to) == len(set(to)) == min(maximum, len(able))
        assert newest[who] not in to
    assert (len(rumors), rumors.pop_frames(peers, pick)) == (0, [])
    assert not news or expected


def test_an_older_record_of_the_same_agent_is_not_passed_on():
    rumors = Rumors()
    rumors.add(agent(1), "old")
    rumors.add(agent(1), "new")
    reply = {compact for _, frame in rumors.pop_frames(PEERS, pick) for compact in frame.records}
    assert reply == {"new"}


@pytest.mark.parametrize("fanout", [1, 3, 5, 20])
def test_the_fanout_decides_how_many_peers_get_a_record(fanout):
    rumors = Rumors(fanout=fanout)
    rumors.add(agent(1), "record", not_to=PEERS[0])
    receivers = [peer for peer, _ in rumors.pop_frames(PEERS, pick)]
    assert len(receivers) == min(fanout, len(PEERS) - 1)
    assert PEERS[0] not in receivers


def test_news_waits_while_there_is_no_link():
    rumors = Rumors()
    rumors.add(agent(1), "record")
    assert rumors.pop_frames([], pick) == []
    assert len(rumors) == 1


def test_what_goes_beyond_the_bound_is_dropped_and_counted():
    rumors = Rumors(limit=2)
    assert [rumors.add(agent(n), "record") for n in range(4)] == [True, True, False, False]
    assert rumors.add(agent(1), "newer")
    assert (len(rumors), rumors.dropped) == (2, 2)


def test_no_more_is_taken_at_once_than_the_other_side_allows():
    rumors = Rumors()
    for n in range(250):
        rumors.add(agent(n), "record")
    allowance = push_allowance()
    received = 0
    for turn in range(3):
        for _, frame in rumors.pop_frames(PEERS[:1], pick):
            receivers = len(frame.records)
            assert allowance.acquire_up_to(PEERS[0], receivers, later(turn / 2)) == receivers
            received += receivers
    assert received == 250


@given(st.lists(st.integers(1, 4096), max_size=1500), st.sampled_from([None, "r"]))
def test_frames_hold_all_in_order_and_stay_within_bounds(sizes, ref):
    records = ["x" * size for size in sizes]
    made = pack_records(records, ref)
    assert [compact for frame in made for compact in frame.records] == records
    for frame in made:
        assert len(frame.records) <= MAX_GOSSIP_RECORDS
        assert len(frames.encode(frame)) <= MAX_GOSSIP_BYTES
        assert frame.ref == ref


def test_records_of_the_largest_size_fill_several_frames():
    made = pack_records(["x" * 4096] * 600)
    assert [len(frame.records) for frame in made] == [255, 255, 90]


# ---------------------------------------------------------------- how much a peer may push


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 2000)), max_size=40))
def test_no_peer_is_listened_to_for_more_than_its_rate_and_one_burst(calls):
    allowance = push_allowance()
    passed, received = 0.0, 0
    for wait, count in calls:
        passed += wait
        allowed = allowance.acquire_up_to(PEERS[0], count, later(passed))
        assert 0 <= allowed <= count
        received += allowed
    assert received <= 400 + 200 * passed + 1


def test_a_peer_that_floods_leaves_the_others_theirs():
    allowance = push_allowance()
    assert allowance.acquire_up_to(PEERS[0], 1_000_000, NOW) == 400
    assert allowance.acquire_up_to(PEERS[0], 1, NOW) == 0
    assert allowance.acquire_up_to(PEERS[1], 300, NOW) == 300
    assert allowance.acquire_up_to(PEERS[0], 1_000, later(1)) == 200


def test_a_clock_that_goes_back_refills_no_allowance():
    allowance = push_allowance()
    allowance.acquire_up_to(PEERS[0], 400, NOW)
    assert allowance.acquire_up_to(PEERS[0], 10, later(-100)) == 0


def test_what_is_known_afterwards_is_paid_back_before_anything_is_taken_again():
    allowance = push_allowance()
    assert allowance.acquire_up_to(PEERS[0], 400, NOW) == 400
    allowance.charge(PEERS[0], 100, NOW)
    assert allowance.acquire_up_to(PEERS[0], 1, later(0.5)) == 0
    assert allowance.acquire_up_to(PEERS[0], 1_000, later(1)) == 100
    allowance.charge(PEERS[0], 1_000_000, later(1))
    assert allowance.acquire_up_to(PEERS[0], 1_000, later(3)) == 0
    assert allowance.acquire_up_to(PEERS[0], 1_000, later(4)) == 200


def test_of_peers_without_end_no_more_is_remembered_than_fits(monkeypatch):
    for module in (reputation, gossip):
        monkeypatch.setattr(module, "MAX_PEERS", 3)
    allowance, strikes = push_allowance(), StrikeCounter()
    for n in range(50):
        stranger = Did(f"did:key:z{n}")
        allowance.acquire_up_to(stranger, 1, later(n))
        for _ in range(n % 4):
            strikes.add(stranger, later(n))
    assert len(allowance) == 3
    assert len(strikes) == 6
    assert allowance.acquire_up_to(Did("did:key:z49"), 1_000, later(49)) == 399
    assert strikes.reputation(Did("did:key:z47"), later(49)).is_banned


# ---------------------------------------------------------------- strikes


def test_three_strikes_within_an_hour_are_an_hour_out():
    strikes = StrikeCounter()
    assert strikes.add(PEERS[0], NOW) == Reputation(1)
    assert strikes.add(PEERS[0], later(10)) == Reputation(2)
    out = strikes.add(PEERS[0], later(20))
    assert (out.strikes, out.is_banned) == (3, True)
    assert strikes.reputation(PEERS[0], later(20 + 3599)).is_banned
    assert strikes.reputation(PEERS[1], later(20)) == Reputation()


def test_afterwards_it_is_listened_to_again_and_strikes_are_forgotten():
    strikes = StrikeCounter()
    for second in (0, 10, 3000):
        strikes.add(PEERS[0], later(second))
    back = later(3000 + 3600)
    assert strikes.reputation(PEERS[0], back) == Reputation()
    assert strikes.add(PEERS[0], back) == Reputation(1)


def test_strikes_that_are_an_hour_apart_never_add_up():
    strikes = StrikeCounter()
    for hour in range(50):
        assert strikes.add(PEERS[0], later(3600 * hour)) == Reputation(1)


@given(st.lists(st.floats(0, 4000), max_size=30))
def test_whoever_is_out_comes_back_within_an_hour_of_the_last_strike(waits):
    strikes, passed = StrikeCounter(), 0.0
    for wait in waits:
        passed += wait
        strikes.add(PEERS[0], later(passed))
    mine = strikes.reputation(PEERS[0], later(passed))
    assert mine.retry_after is None or 0 < mine.retry_after <= 3601
    assert not strikes.reputation(PEERS[0], later(passed + 3600)).is_banned


@pytest.mark.parametrize("code", list(ErrorCode))
def test_only_what_is_plainly_wrong_and_of_the_peers_own_making_is_a_strike(code):
    plain = code in {ErrorCode.BAD_SIGNATURE, ErrorCode.BAD_FRAME, ErrorCode.TOO_LARGE}
    assert is_strike(code) is plain
    assert not is_strike(code, is_edge_case=True)


ORDER = 2**252 + 27742317777372353535851937790883648493


def with_signature(change: Any) -> jws.Jws:
    right = jws.parse(sign(ALICE, [Home(RELAY.did, "https://r.example")], now=NOW),
                      typ="agent-endpoints+jws", max_bytes=4096)  # fmt: skip
    raw = change(right.signature)
    return right._replace(signature=raw)


def shifted(raw: bytes) -> bytes:
    return raw[:32] + (int.from_bytes(raw[32:], "little") + ORDER).to_bytes(32, "little")


@pytest.mark.parametrize(
    ("change", "is_plain"),
    [
        (lambda raw: raw, False),
        (lambda raw: raw[:32] + bytes([raw[32] ^ 1]) + raw[33:], True),
        (lambda _: MALLORY.sign(b"something else"), True),
        (shifted, False),
        (lambda raw: bytes([1]) + bytes(31) + raw[32:], False),
        (lambda raw: b"\xff" * 32 + raw[32:], False),
    ],
    ids=["right", "one bit of S", "of another", "S + L", "small order R", "R is no point"],
)
def test_a_signature_that_verifiers_judge_differently_is_not_plainly_forged(change, is_plain):
    assert jws.is_plainly_forged(with_signature(change), ALICE.public_key) is is_plain
