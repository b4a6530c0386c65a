"""The quick readers say yes only where the careful ones do, and then the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.protocol import envelope, frames, jws
from relay.protocol import jws as jose
from relay.protocol.errors import ProtocolError
from relay.protocol.frames import quick_submit
from tests.unit.builders import signed

VECTORS = Path(__file__).parent.parent / "vectors"
SIGNED = signed()
SUBMIT = {"t": "submit", "ref": "r1", "envelopes": [json.loads(SIGNED.wire)]}
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=2), st.none()),
)  # fmt: skip


def careful(data: bytes) -> object:
    """What the careful reader makes of a frame, or its code."""
    try:
        members = jose.Members(jose.loads(data))
        return frames.BY_SIDE["agent"][members.text("t", limit=32)].read(members)
    except (ValueError, KeyError, ProtocolError):
        return None


def read(item: object) -> tuple[jws.Jws, str]:
    """What both readers of an envelope are given."""
    compact, body = envelope._parts(item)
    return jws.parse(compact, typ=envelope.TYP, max_bytes=envelope.MAX_JWS_BYTES), body


def inputs(kind: str) -> list[Any]:
    names = (f"{good}_{kind}.json" for good in ("valid", "invalid"))
    files = [json.loads((VECTORS / name).read_text()) for name in names]
    return [case["input"] for file in files for case in file["cases"]]


def test_the_usual_submit_is_read_quickly():
    assert quick_submit(orjson.dumps(SUBMIT)) == careful(orjson.dumps(SUBMIT)) is not None


def test_the_usual_envelope_is_read_quickly():
    parts = SUBMIT["envelopes"][0]
    assert envelope._quick(*read(parts)) == envelope._parse(*read(parts))


@pytest.mark.parametrize("given_", inputs("frames"))
def test_no_frame_vector_is_read_otherwise(given_: Any):
    data = given_.get("text", "").encode()
    quick = quick_submit(data)
    assert quick is None or quick == careful(data)


@pytest.mark.parametrize("given_", inputs("envelopes"))
def test_no_envelope_vector_is_read_otherwise(given_: Any):
    try:
        parts = read(given_)
    except ValueError:
        return
    quick = envelope._quick(*parts)
    try:
        slow = envelope._parse(*parts)
    except ValueError:
        slow = None
    assert quick is None or quick == slow


@given(st.sampled_from(["t", "ref", "envelopes", "more"]), ODD, st.sampled_from([0, 1]))
def test_a_submit_with_one_odd_member_is_never_read_otherwise(name: str, odd: object, place: int):
    said = orjson.loads(orjson.dumps(SUBMIT))
    (said["envelopes"][0] if place else said)[name] = odd
    try:
        data = orjson.dumps(said)
    except TypeError:
        return
    quick = quick_submit(data)
    assert quick is None or quick == careful(data)


@given(
    st.sampled_from(["v", "id", "from", "to", "created_time", "expires_time", "kv", "body", "type",
                     "must_x", "cty", "len", "sha256"]),
    ODD,
)  # fmt: skip
def test_an_envelope_with_one_odd_member_is_never_read_otherwise(name: str, odd: object):
    compact, body = SUBMIT["envelopes"][0].values()
    head, payload, tail = compact.split(".")
    members = orjson.loads(envelope.jose.b64decode(payload))
    (members["body"] if name in {"cty", "len", "sha256"} else members)[name] = odd
    try:
        changed = f"{head}.{envelope.jose.b64encode(orjson.dumps(members))}.{tail}"
    except TypeError:
        return
    parts = read({"jws": changed, "body": body})
    quick = envelope._quick(*parts)
    try:
        slow = envelope._parse(*parts)
    except ValueError:
        slow = None
    assert quick is None or quick == slow
