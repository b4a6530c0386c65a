"""Frames as JSON: each survives a round trip, and a malformed one is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.protocol import frames
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.frames import (
    MAX_AWAITED_DIGESTS,
    MAX_CONTACTS,
    MAX_MAYBE_SEEN_IDS,
    Frame,
    Migrate,
    quick_submit,
)
from relay.protocol.ids import AgentKey
from relay.protocol.jws import b64encode
from relay.protocol.types import MAYBE_SEEN_ID_BYTES, MovedRules
from tests.unit.builders import RELAY
from tests.unit.frame_strategies import from_agent, from_relay

SIDES = {"agent": from_agent, "relay": from_relay}
sides = st.sampled_from(sorted(SIDES))


def refused(data: bytes | dict[str, Any], side: Any) -> ErrorCode:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    with pytest.raises(ProtocolError) as caught:
        frames.parse(raw, side)
    return caught.value.code


def outcome(data: bytes, side: Any) -> ErrorCode | None:
    """Its refusal; None where it is read. Anything but a ProtocolError goes through."""
    try:
        frames.parse(data, side)
    except ProtocolError as exc:
        return exc.code
    return None


@given(from_agent)
def test_every_frame_of_an_agent_round_trips(frame: Frame):
    assert frames.parse(frames.encode(frame), "agent") == frame


@given(from_relay)
def test_every_frame_of_a_relay_round_trips(frame: Frame):
    assert frames.parse(frames.encode(frame), "relay") == frame


def test_every_frame_can_be_written_and_is_read_on_one_side_or_both():
    kinds = {kind.__name__.lower() for kind in get_args(Frame)}
    assert {kind.__name__.lower() for kind in frames.CODECS} == kinds
    assert set(frames.BY_SIDE["agent"]) | set(frames.BY_SIDE["relay"]) == kinds
    assert set(frames.BY_SIDE["agent"]) & set(frames.BY_SIDE["relay"]) == {"error", "bye", "gossip"}


@given(from_agent, from_relay)
def test_what_the_other_side_alone_may_say_is_unsupported(agent: Frame, relay: Frame):
    for frame, side in ((agent, "relay"), (relay, "agent")):
        if not isinstance(frame, frames.Error | frames.Bye | frames.Gossip):
            assert refused(frames.encode(frame), side) == ErrorCode.UNSUPPORTED


def test_wire_bytes_go_out_as_they_are():
    wire = b'{"jws":"a.b.c","body":""}'
    item = frames.DeliverItem(1, False, wire)
    assert wire in frames.encode(frames.Deliver("e", (item,)))
    assert wire in frames.encode(frames.Submit("r", [wire]))


# ---------------------------------------------------------------- garbage

NO = {None, ErrorCode.BAD_FRAME, ErrorCode.UNSUPPORTED, ErrorCode.TOO_LARGE}


@given(st.binary(max_size=200), sides)
@example(b'{"t":"bye","a":' + b"[" * 1010 + b"]" * 1010 + b',"a":1}', "agent")
def test_no_bytes_raise_anything_but_a_protocol_error(data: bytes, side: str):
    assert outcome(data, side) in NO - {None}


@given(st.data(), sides)
def test_a_frame_with_bytes_changed_raises_nothing_but_a_protocol_error(
    data: st.DataObject, side: str
):
    raw = bytearray(frames.encode(data.draw(SIDES[side])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    assert outcome(bytes(raw), side) in NO


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.data(), sides, JUNK)
def test_a_frame_with_any_member_replaced_raises_nothing_but_a_protocol_error(
    data: st.DataObject, side: str, junk: object
):
    value = json.loads(frames.encode(data.draw(SIDES[side])))
    holder: Any = value
    while True:
        where = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict)
                                          else list(range(len(holder)))))  # fmt: skip
        if (
            not isinstance(holder[where], dict | list)
            or not holder[where]
            or data.draw(st.booleans())
        ):
            break
        holder = holder[where]
    if data.draw(st.booleans()) and isinstance(holder, dict):
        del holder[where]
    else:
        holder[where] = junk
    assert outcome(json.dumps(value).encode(), side) in NO


# ---------------------------------------------------------------- bounds


def test_a_frame_is_at_most_2_mib_and_the_size_is_looked_at_first():
    assert refused(b" " * (2 * 1024 * 1024 + 1), "agent") == ErrorCode.TOO_LARGE
    assert refused(b" " * (2 * 1024 * 1024), "agent") == ErrorCode.BAD_FRAME


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"null", b'"auth"', b"{}", b'{"t":1}', b'{"t":""}', b'{"t":null}', b'{"T":"bye"}',
     b'{"t":"bye","t":"bye","error":"moved"}', b'\xef\xbb\xbf{"t":"bye","error":"moved"}',
     b'{"t":"bye","error":"moved","retry_after":1.5}',
     b'{"t":"' + b"x" * 33 + b'"}'],
)  # fmt: skip
def test_what_is_no_frame_is_a_bad_frame(data: bytes):
    assert refused(data, "agent") == refused(data, "relay") == ErrorCode.BAD_FRAME


def test_a_code_that_a_newer_relay_invented_is_taken_as_internal():
    assert frames.parse(b'{"t":"bye","error":"tired"}', "relay").error is ErrorCode.INTERNAL


@pytest.mark.parametrize("kind", ["migration", "AUTH", "__x"])
def test_an_unknown_frame_is_unsupported(kind: str):
    assert refused({"t": kind}, "agent") == refused({"t": kind}, "relay") == ErrorCode.UNSUPPORTED


def test_a_member_that_must_be_understood_makes_a_frame_unsupported():
    assert refused({"t": "bye", "error": "moved", "must_x": 1}, "agent") == ErrorCode.UNSUPPORTED
    assert outcome(b'{"t":"bye","error":"moved","may_x":{}}', "agent") is None


OBJECT = {"jws": "a.b.c", "body": ""}
BAD = {
    "agent": [
        {"t": "auth"},
        {"t": "auth", "jws": "x" * 8193},
        {"t": "auth", "jws": "x", "record": "r" * 4097},
        {"t": "auth", "jws": "x", "invite": "i" * 513},
        {"t": "submit", "ref": "", "envelopes": [OBJECT]},
        {"t": "submit", "ref": "r" * 65, "envelopes": [OBJECT]},
        {"t": "submit", "ref": 1, "envelopes": [OBJECT]},
        {"t": "submit", "ref": "r", "envelopes": []},
        {"t": "submit", "ref": "r", "envelopes": [OBJECT] * 257},
        {"t": "submit", "ref": "r", "envelopes": OBJECT},
        {"t": "ack", "upto": 1},
        {"t": "ack", "epoch": "e", "upto": -1},
        {"t": "ack", "epoch": "e", "upto": "1"},
        {"t": "ack", "epoch": "e", "upto": True},
        {"t": "ack", "epoch": "e", "seqs": [0]},
        {"t": "ack", "epoch": "e", "seqs": [True]},
        {"t": "ack", "epoch": "e", "seqs": ["1"]},
        {"t": "ack", "epoch": "e", "seqs": list(range(1, 1026))},
        {"t": "ack", "epoch": "e", "refuse": [1]},
        {"t": "ack", "epoch": "e", "refuse": [{"seq": 0, "code": "x"}]},
        {"t": "ack", "epoch": "e", "refuse": [{"seq": 1}]},
        {"t": "ack", "epoch": "e", "refuse": [{"seq": 1, "code": "x" * 65}]},
        {"t": "ack", "epoch": "x" * 65},
        {"t": "status", "ref": "r", "items": []},
        {"t": "status", "ref": "r", "items": [{"to": "d"}]},
        {"t": "status", "ref": "r", "items": [{"to": "d", "id": "i"}] * 257},
        {"t": "resolve", "ref": "r"},
        {"t": "resolve", "ref": "r", "did": "d", "handle": "h"},
        {"t": "submit", "ref": "r", "envelopes": [OBJECT], "hops": "d"},
        {"t": "submit", "ref": "r", "envelopes": [OBJECT], "hops": [1]},
        {"t": "submit", "ref": "r", "envelopes": [OBJECT], "hops": [""]},
        {"t": "submit", "ref": "r", "envelopes": [OBJECT], "hops": ["d"] * 17},
        {"t": "submit", "ref": "r", "envelopes": [OBJECT], "marked": [1]},
        {"t": "submit", "ref": "r", "envelopes": [OBJECT], "marked": [-1]},
        {"t": "submit", "ref": "r", "envelopes": [OBJECT], "marked": [True]},
        {"t": "status", "ref": "r", "items": [{"to": "d", "id": "i", "from": 1}]},
        {"t": "gossip", "records": ["x" * 4097]},
        {"t": "gossip", "records": ["x"] * 1025},
        {"t": "gossip", "records": [""]},
        {"t": "gossip", "relays": ["x"] * 65},
        {"t": "gossip", "relays": [1]},
        {"t": "digest", "ref": "r"},
        {"t": "digest", "ref": "r", "bits": 31},
        {"t": "digest", "ref": "r", "bits": 10, "buckets": [1024]},
        {"t": "digest", "ref": "r", "bits": 10, "buckets": [True]},
        {"t": "digest", "ref": "r", "bits": 10, "buckets": [-1]},
        {"t": "digest", "ref": "r", "bits": 10, "buckets": [0] * 1025},
        {"t": "want", "ref": "r"},
        {"t": "want", "ref": "r", "bucket": 1},
        {"t": "want", "ref": "r", "bits": 10, "bucket": 1024},
        {"t": "want", "ref": "r", "relays": False},
        {"t": "want", "ref": "r", "relays": True, "view": True},
        {"t": "want", "ref": "r", "agents": ["k"], "view": True},
        {"t": "want", "ref": "r", "agents": ["k"] * 1025},
        {"t": "want", "ref": "r", "agents": ["k" * 601]},
        {"t": "publish", "ref": "r"},
        {"t": "publish", "ref": "r", "record": "x" * 4097},
        {"t": "error"},
        {"t": "bye", "error": "moved", "retry_after": -1},
    ],
    "relay": [
        {"t": "hello", "relay": "d", "url": "u", "nonce": "n", "limits": {}, "time": 1},
        {"t": "hello", "relay": "d", "url": "u", "nonce": "A" * 43, "time": 1},
        {"t": "hello", "relay": "d", "url": "u", "nonce": "A" * 43, "limits": {"jws": "1"},
         "time": 1},
        {"t": "welcome", "inbox": True},
        {"t": "submitted", "refs": [], "receipt": None, "rejected": []},
        {"t": "submitted", "refs": [1], "receipt": None, "rejected": []},
        {"t": "submitted", "refs": [["r"]], "receipt": None, "rejected": []},
        {"t": "submitted", "refs": ["r" * 65], "receipt": None, "rejected": []},
        {"t": "submitted", "refs": ["r"], "receipt": None, "rejected": [{}]},
        {"t": "submitted", "refs": ["r"], "receipt": None,
         "rejected": [{"ref": "r", "i": 256, "error": "moved", "stored": "no"}]},
        {"t": "submitted", "refs": ["r"], "receipt": None,
         "rejected": [{"ref": "r", "i": 0, "error": "moved", "stored": "yes"}]},
        {"t": "deliver", "epoch": "e", "items": []},
        {"t": "deliver", "epoch": "e", "items": [{"seq": 1, "redelivered": 0, "envelope": OBJECT}]},
        {"t": "deliver", "epoch": "e", "items": [{"seq": 1, "redelivered": False}]},
        {"t": "deliver", "epoch": "e", "items": [{"seq": 0, "redelivered": False,
                                                  "envelope": OBJECT}]},
        {"t": "gap", "epoch": "e", "ranges": []},
        {"t": "gap", "epoch": "e", "ranges": [{"from_seq": 2, "to_seq": 1, "reason": "acked"}]},
        {"t": "gap", "epoch": "e", "ranges": [{"from_seq": 1, "to_seq": 1, "reason": "eaten"}]},
        {"t": "acked", "epoch": "e"},
        {"t": "statuses", "ref": "r", "items": [{"to": "d", "id": "i", "state": "lost"}]},
        {"t": "statuses", "ref": "r", "items": [{"to": "d", "id": "i", "state": "forwarded",
                                                 "receipt": "AA"}]},
        {"t": "resolved", "ref": "r", "state": "perhaps"},
        {"t": "digests", "ref": "r", "bits": 10, "items": [[0, 1]]},
        {"t": "digests", "ref": "r", "bits": 10, "items": [[1024, 1, "A" * 22]]},
        {"t": "digests", "ref": "r", "bits": 10, "items": [[0, -1, "A" * 22]]},
        {"t": "digests", "ref": "r", "bits": 10, "items": [[0, True, "A" * 22]]},
        {"t": "digests", "ref": "r", "bits": 10, "items": [[0, 1, "A" * 21]]},
        {"t": "have", "ref": "r", "bits": 10, "bucket": 0, "items": []},
        {"t": "have", "ref": "r", "bits": 10, "bucket": 0, "items": [["k", 1, 1]], "more": False},
        {"t": "have", "ref": "r", "bits": 10, "bucket": 0, "items": [["", 1, 1, "A" * 22]],
         "more": False},
        {"t": "have", "ref": "r", "bits": 10, "bucket": 0, "items": [["k", 0, 1, "A" * 22]],
         "more": False},
        {"t": "have", "ref": "r", "bits": 10, "bucket": 0, "items": [["k", 1, 1, "A" * 43]],
         "more": False},
        {"t": "view", "ref": "r", "state": "well", "since": 0, "strikes": 0},
        {"t": "view", "ref": "r", "state": "alive", "since": -1, "strikes": 0},
        {"t": "published", "ref": "r", "stored": 1, "kv": 1, "seq": 1},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("side", "frame"),
    [(side, frame) for side, rows in BAD.items() for frame in rows],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value)[:60],
)
def test_every_member_of_a_frame_has_bounds(side: str, frame: dict[str, Any]):
    assert refused(frame, side) == ErrorCode.BAD_FRAME


def test_an_ack_may_leave_out_what_it_does_not_need():
    assert frames.parse(b'{"t":"ack","epoch":"e"}', "agent") == frames.Ack("e")
    assert frames.parse(
        b'{"t":"ack","epoch":"e","upto":null,"seqs":null,"refuse":null}', "agent"
    ) == frames.Ack("e")


# ---------------------------------------------------------------- a hand-off

PAGE = Migrate("m", RELAY.did, "h" * 128, "e" * 8192, b64encode(bytes(32)), 0, 64)


def test_the_largest_page_of_a_digest_fits_into_a_frame():
    keys = tuple(AgentKey(f"{RELAY.agent_key[:-5]}{n:05}") for n in range(MAX_CONTACTS))
    known = MovedRules("refuse", keys[: frames.MAX_RULES], keys[: frames.MAX_RULES], keys)
    doubts = bytes(MAYBE_SEEN_ID_BYTES) * MAX_MAYBE_SEEN_IDS
    page = replace(
        PAGE, awaiting_digests=(RELAY.did,) * MAX_AWAITED_DIGESTS, maybe_seen=doubts, rules=known
    )
    data = frames.encode(page)
    assert len(data) < frames.MAX_FRAME_BYTES
    assert frames.parse(data, "agent") == page


@pytest.mark.parametrize(
    "page",
    [
        replace(PAGE, maybe_seen=bytes(MAYBE_SEEN_ID_BYTES) * (MAX_MAYBE_SEEN_IDS + 1)),
        replace(PAGE, rules=MovedRules(contacts=(RELAY.agent_key,) * (MAX_CONTACTS + 1))),
        replace(PAGE, awaiting_digests=(RELAY.did,) * (MAX_AWAITED_DIGESTS + 1)),
    ],
    ids=["doubts", "contacts", "missing"],
)
def test_a_larger_page_of_a_digest_is_refused(page: Migrate):
    assert refused(frames.encode(page), "agent") == ErrorCode.BAD_FRAME


def test_a_submit_of_a_hand_off_is_never_taken_for_one_of_none():
    submit = frames.Submit("r", [OBJECT], handoff="h")
    data = frames.encode(submit)
    assert quick_submit(data) is None
    assert frames.parse(data, "agent") == submit
    assert "handoff" not in json.loads(frames.encode(replace(submit, handoff="")))
