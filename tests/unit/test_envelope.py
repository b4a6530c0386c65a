"""Envelopes: signing, parsing, and each way in which one is refused."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws as joserfc_jws
from joserfc.jwk import OKPKey

from relay.inbox.model import admission
from relay.protocol import envelope, jws
from relay.protocol.did import parse_did
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.ids import Timestamp, message_id_hour
from tests.unit.builders import (
    ALICE,
    BOB,
    MALLORY,
    NOW,
    compact,
    header_of,
    message_id,
    parsed,
    payload_of,
    resigned,
    signed,
    wire_object,
)

DAY = 86_400
KEY = parse_did(ALICE.did)


def refused(item: object, **limits: int) -> ErrorCode:
    with pytest.raises(ProtocolError) as caught:
        envelope.parse(item, **limits)
    return caught.value.code


def outcome(item: object) -> ErrorCode | None:
    """Its refusal; None where it is read. Anything but a ProtocolError goes through."""
    try:
        envelope.parse(item)
    except ProtocolError as exc:
        return exc.code
    return None


def changed(**members: object) -> dict[str, str]:
    """A rightly signed envelope with other payload members."""
    item = wire_object(signed())
    return {**item, "jws": resigned(item["jws"], ALICE, **members)}


def with_body(**members: object) -> dict[str, str]:
    body = {**payload_of(wire_object(signed())["jws"])["body"], **members}
    return changed(body={name: value for name, value in body.items() if value is not ...})


# ---------------------------------------------------------------- the right way through


@given(
    st.binary(max_size=300),
    st.integers(1, 30 * DAY),
    st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64),
)
def test_what_a_sender_signs_is_what_the_relay_reads(body: bytes, lifetime: int, thid: str | None):
    made = signed(body=body, lifetime_s=lifetime, thid=thid, pthid=thid, type="urn:x")
    read = envelope.parse(json.loads(made.wire))
    assert (read.body, read.thid, read.pthid, read.type) == (body, thid, thid, "urn:x")
    assert (read.eid, read.id, read.expires_at) == (made.eid, made.id, made.expires_at)
    assert (read.sender.did, read.recipient.did) == (ALICE.did, BOB.did)
    assert read.expires_at - read.created_at == lifetime
    assert read.wire == made.wire
    assert envelope.verify(read, KEY) == envelope.VerifiedEnvelope(read)


def test_what_is_stored_repeats_what_was_signed():
    read = parsed(body=b"xyz")
    admitted = admission.admit(envelope.verify(read, KEY), admission.AdmissionFacts(NOW))
    assert isinstance(admitted, envelope.AdmittedEnvelope)
    kept = envelope.stored(admitted, bounces=False)
    assert (kept.inbox, kept.sender) == (BOB.agent_key, ALICE.agent_key)
    assert (kept.eid, kept.wire, kept.size) == (read.eid, read.wire, len(read.wire))
    assert (kept.created_at, kept.expires_at) == (read.created_at, read.expires_at)
    assert kept.hour == message_id_hour(read.id) == int(NOW) // 3600
    assert kept.dedupe_key == hashlib.sha256(f"{ALICE.did}|{read.id}".encode()).digest()[:16]
    assert (kept.bounces, kept.marked) == (False, False)


def test_a_sender_and_an_id_together_make_the_dedupe_key():
    keys = {
        envelope.dedupe_key(who.did, message_id(n)) for who in (ALICE, BOB) for n in range(5)
    }  # fmt: skip
    assert len(keys) == 10


def test_signing_the_same_draft_again_gives_the_same_bytes():
    assert signed().wire == signed().wire
    assert signed().eid != signed(body=b"other").eid != signed(id=message_id(1)).eid


def test_an_agent_may_write_to_itself():
    assert parsed(to=ALICE.did).recipient == KEY


# ---------------------------------------------------------------- the outer object


@pytest.mark.parametrize(
    "item",
    [
        None, 1, "x", [], {}, {"jws": "x"}, {"body": ""}, {"jws": 1, "body": ""},
        {"jws": "", "body": ""}, {"jws": None, "body": ""}, {"jws": "a.b.c", "body": None},
        {"jws": "a.b.c", "body": ""}, {"jws": "..", "body": ""},
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_envelope_object_is_a_bad_envelope(item: object):
    assert refused(item) == ErrorCode.BAD_ENVELOPE


def test_unknown_members_are_ignored_unless_they_must_be_understood():
    item = wire_object(signed())
    assert envelope.parse({**item, "note": {"any": [1]}}).eid == signed().eid
    assert refused({**item, "must_note": 1}) == ErrorCode.UNSUPPORTED
    assert envelope.parse(changed(extra=[{"deep": 1}])).eid != signed().eid
    assert refused(changed(must_extra=False)) == ErrorCode.UNSUPPORTED
    assert refused(with_body(must_zip=1)) == ErrorCode.UNSUPPORTED


def test_sizes_are_capped_before_anything_is_parsed():
    item = wire_object(signed())
    assert refused({**item, "jws": "!" * (10 * 1024 + 1)}) == ErrorCode.TOO_LARGE
    assert refused({**item, "jws": "!" * (10 * 1024)}) == ErrorCode.BAD_ENVELOPE
    assert refused({**item, "body": "!" * 349_527}) == ErrorCode.TOO_LARGE
    assert refused({**item, "body": "!" * 349_526}) == ErrorCode.BAD_ENVELOPE


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 100])
def test_a_body_of_exactly_the_limit_is_taken_and_one_byte_more_is_not(size: int):
    assert len(envelope.parse(wire_object(signed(body=b"x" * size)), max_body_bytes=size).body) == (
        size
    )
    bigger = wire_object(signed(body=b"x" * (size + 1)))
    assert refused(bigger, max_body_bytes=size) == ErrorCode.TOO_LARGE


def test_the_default_body_limit_is_256_kib():
    assert parsed(body=bytes(256 * 1024)).body_base64
    assert refused(wire_object(signed(body=bytes(256 * 1024 + 1)))) == ErrorCode.TOO_LARGE


# ---------------------------------------------------------------- the payload, field by field


@pytest.mark.parametrize(
    ("member", "wrong"),
    [
        ("v", [0, "1", None, True, ...]),
        (
            "id",
            ["", "x", message_id().upper(), 7, None, ..., str(message_id()).replace("-7", "-4")],
        ),
        ("from", ["", "x", None, ..., 1, ALICE.did.upper(), ALICE.did + "#k", "did:key:z" * 60]),
        ("to", ["", "x", None, ..., [BOB.did], BOB.did + "?q", BOB.did + "/p", " " + BOB.did]),
        ("created_time", [-1, "1", None, ..., True, int(NOW) + 301, int(NOW) - 301]),
        ("expires_time", [-1, "1", None, ..., int(NOW), int(NOW) - 1, int(NOW) + 30 * DAY + 1]),
        ("kv", [0, 2, "1", None, ...]),
        ("type", ["", "u" * 257, 1, []]),
        ("thid", ["", "t" * 65, 1]),
        ("pthid", ["", "t" * 65, {}]),
        ("body", [None, ..., [], "x", 1, {}]),
    ],
)
def test_every_member_has_bounds(member: str, wrong: list[object]):
    version = ErrorCode.UNSUPPORTED if member == "v" else ErrorCode.BAD_ENVELOPE
    for value in wrong:
        expected = version if value == 0 and member == "v" else ErrorCode.BAD_ENVELOPE
        assert refused(changed(**{member: value})) == expected, value


@pytest.mark.parametrize(
    ("member", "right"),
    [
        ("created_time", [int(NOW) + 300, int(NOW) - 300]),
        ("expires_time", [int(NOW) + 1, int(NOW) + 30 * DAY]),
        ("type", ["u" * 256, None, ...]),
        ("thid", ["t" * 64, None, ...]),
        ("pthid", ["é", None, ...]),
        ("from", [ALICE.did]),
        ("to", [ALICE.did]),
    ],
)
def test_the_edges_of_the_bounds_are_inside(member: str, right: list[object]):
    for value in right:
        assert envelope.parse(changed(**{member: value})).sender == KEY


@pytest.mark.parametrize(
    ("member", "wrong"),
    [
        ("cty", ["", "c" * 257, None, ..., 1]),
        ("len", [4, 6, -1, "5", None, ..., True]),
        ("sha256", ["", None, ..., "x", jws.b64encode(bytes(31)), jws.b64encode(bytes(33)),
                    jws.b64encode(bytes(32)) + "="]),
    ],
)  # fmt: skip
def test_the_body_description_has_bounds(member: str, wrong: list[object]):
    for value in wrong:
        assert refused(with_body(**{member: value})) == ErrorCode.BAD_ENVELOPE, value


def test_another_version_or_did_method_is_unsupported_and_not_wrong():
    assert refused(changed(v=2)) == ErrorCode.UNSUPPORTED
    assert refused(changed(to="did:webvh:x:example.org")) == ErrorCode.UNSUPPORTED
    assert refused(changed(**{"from": "did:web:example.org"})) == ErrorCode.UNSUPPORTED


@pytest.mark.parametrize("payload", [b"", b"[]", b"1", b"{", b'{"v":1,"v":1}', b'{"v":1.0}'])
def test_a_payload_that_is_no_strict_object_is_a_bad_envelope(payload: bytes):
    item = wire_object(signed())
    bad = compact(header_of(item["jws"]), payload, ALICE)
    assert refused({**item, "jws": bad}) == ErrorCode.BAD_ENVELOPE


@pytest.mark.parametrize(
    "header",
    [
        {"typ": "agent-auth+jws"},
        {"typ": "JWT"},
        {"kid": MALLORY.kid},
        {"kid": BOB.kid},
        {"kid": ALICE.did},
        {"kid": f"{ALICE.did}#{BOB.did[8:]}"},
        {"alg": "none"},
        {"jwk": {}},
    ],
    ids=repr,
)
def test_the_header_says_purpose_and_a_key_of_the_sender(header: dict[str, Any]):
    item = wire_object(signed())
    bad = compact({**header_of(item["jws"]), **header}, payload_of(item["jws"]), ALICE)
    assert refused({**item, "jws": bad}) == ErrorCode.BAD_ENVELOPE


# ---------------------------------------------------------------- verify


def fails(item: dict[str, str], key: Any = KEY) -> ErrorCode:
    with pytest.raises(ProtocolError) as caught:
        envelope.verify(envelope.parse(item), key)
    return caught.value.code


def test_a_signature_by_somebody_else_does_not_hold():
    item = wire_object(signed())
    forged = compact(header_of(item["jws"]), payload_of(item["jws"]), MALLORY)
    assert fails({**item, "jws": forged}) == ErrorCode.BAD_SIGNATURE
    assert fails(item, parse_did(MALLORY.did)) == ErrorCode.BAD_SIGNATURE
    zeros = item["jws"].rpartition(".")[0] + "." + jws.b64encode(bytes(64))
    assert fails({**item, "jws": zeros}) == ErrorCode.BAD_SIGNATURE


def test_a_changed_payload_does_not_hold():
    item = wire_object(signed())
    head, _, tail = item["jws"].split(".")
    other = jws.b64encode(json.dumps({**payload_of(item["jws"]), "to": MALLORY.did}).encode())
    assert fails({**item, "jws": f"{head}.{other}.{tail}"}) == ErrorCode.BAD_SIGNATURE


def test_a_body_of_another_length_or_content_is_not_the_signed_one():
    item = wire_object(signed(body=b"hello"))
    assert fails({**item, "body": jws.b64encode(b"jello")}) == ErrorCode.BAD_ENVELOPE
    assert refused({**item, "body": jws.b64encode(b"hell")}) == ErrorCode.BAD_ENVELOPE
    assert refused({**item, "body": item["body"] + "="}) == ErrorCode.BAD_ENVELOPE


def test_a_wrong_signature_is_said_before_a_wrong_body():
    item = wire_object(signed())
    forged = compact(header_of(item["jws"]), payload_of(item["jws"]), MALLORY)
    assert fails({"jws": forged, "body": jws.b64encode(b"jello")}) == ErrorCode.BAD_SIGNATURE


def test_more_than_300_seconds_ahead_is_too_early():
    read = parsed()
    assert not envelope.is_too_early(read, NOW)
    assert not envelope.is_too_early(read, Timestamp(NOW - 300))
    assert envelope.is_too_early(read, Timestamp(NOW - 301))


# ---------------------------------------------------------------- a stranger's library


def test_an_envelope_made_by_a_stock_jose_library_is_accepted():
    public = {"kty": "OKP", "crv": "Ed25519", "x": jws.b64encode(ALICE.public_key)}
    key = OKPKey.import_key({**public, "d": jws.b64encode(ALICE.seed)})
    body = b"from a stranger"
    payload = {
        "body": {
            "sha256": jws.b64encode(hashlib.sha256(body).digest()),
            "len": len(body),
            "cty": "text/plain",
        },
        "to": BOB.did,
        "from": ALICE.did,
        "expires_time": int(NOW) + 60,
        "created_time": int(NOW),
        "kv": 1,
        "id": message_id(),
        "v": 1,
    }
    header = {"typ": "agent-envelope+jws", "kid": ALICE.kid, "alg": "Ed25519"}
    text = joserfc_jws.serialize_compact(
        header, json.dumps(payload, indent=2), key, algorithms=["Ed25519"]
    )
    read = envelope.parse({"jws": text, "body": jws.b64encode(body)})
    assert envelope.verify(read, KEY).envelope.body == body


def test_a_stock_jose_library_verifies_our_envelope():
    public = {"kty": "OKP", "crv": "Ed25519", "x": jws.b64encode(ALICE.public_key)}
    found = joserfc_jws.deserialize_compact(
        wire_object(signed())["jws"], OKPKey.import_key(public), algorithms=["Ed25519"]
    )
    assert json.loads(found.payload)["to"] == BOB.did
    assert found.headers()["typ"] == "agent-envelope+jws"


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["jws", "body", "cty", "len", "sha256"]), inner, max_size=3
        )
    ),
)
NO = {None, ErrorCode.BAD_ENVELOPE, ErrorCode.UNSUPPORTED}


@given(JUNK)
def test_no_object_at_all_raises_anything_but_a_protocol_error(item: object):
    assert outcome(item) in NO - {None}


@given(st.sampled_from(sorted(payload_of(wire_object(signed(type="x", thid="t"))["jws"]))), JUNK)
def test_no_signed_member_at_all_raises_anything_but_a_protocol_error(member: str, value: object):
    assert outcome(changed(**{member: value})) in NO
