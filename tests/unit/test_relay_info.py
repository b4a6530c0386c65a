"""The signed self-description of a relay."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import pytest

from relay.protocol import relay_info
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.ids import Timestamp
from relay.protocol.relay_info import RelayDescription, RelayInfo
from tests.unit.builders import MALLORY, NOW, RELAY, resigned

SAID = RelayDescription(
    url="https://relay.example",
    software="did-relay",
    version="1",
    limits={"jws": 10240, "body": 262144, "frame": 2097152, "envelopes": 256},
    retention_s=30,
    registration="open",
    federation="closed",
    durability="fsync",
    peers=2,
    contact=None,
)
WEEK = 7 * 24 * 3600


def made(at: float = NOW, **changes: object) -> RelayInfo:
    said = replace(SAID, **changes)  # type: ignore[arg-type]
    return relay_info.parse(relay_info.sign(RELAY, said, Timestamp(at)))


def outcome(info: RelayInfo, now: float = NOW) -> ErrorCode | None:
    no = relay_info.verify(info, Timestamp(now))
    return no.code if no else None


def test_it_says_what_the_relay_signed_for_seven_days():
    info = made()
    assert (info.did, info.description) == (RELAY.did, SAID)
    assert (info.issued_at, info.expires_at) == (NOW, NOW + WEEK)
    assert outcome(info) is None


@pytest.mark.parametrize(
    ("now", "code"),
    [(-301, "not_yet_valid"), (-300, None), (WEEK + 299, None), (WEEK + 300, "expired")],
)
def test_it_holds_from_then_on_and_no_longer_than_it_says(now, code):
    assert outcome(made(), NOW + now) == code


def test_what_another_signed_is_refused():
    info = relay_info.parse(resigned(made().jws.compact, MALLORY, kid=RELAY.kid))
    assert outcome(info) is ErrorCode.BAD_SIGNATURE


def test_the_newer_one_wins_whoever_brings_it_in_whatever_order():
    some = [made(), made(NOW + 1), made(NOW + 1, peers=9), made(NOW - 5)]
    newest = max(some, key=lambda info: info.version)
    for order in itertools.permutations(some):
        assert functools.reduce(relay_info.newest, order, order[0]) == newest
    assert newest.issued_at == NOW + 1
    assert relay_info.newest(None, some[0]) == some[0]


def test_another_form_is_refused_with_its_code():
    with pytest.raises(ProtocolError) as caught:
        relay_info.parse("a.b.c")
    assert caught.value.code is ErrorCode.BAD_FRAME
