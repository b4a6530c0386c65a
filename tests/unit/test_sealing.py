"""Sealed bodies: only the recipient opens them, and altered ones not at all."""

from __future__ import annotations

import json

import nacl.bindings
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.protocol import envelope, jws, sealing
from relay.protocol.did import SigningKey, parse_did
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.sealing import CONTENT_TYPE, Content
from tests.unit.builders import ALICE, BOB, MALLORY, message_id, parsed

CONTENT = Content("text/plain", b"the secret")
FOR_BOB = parse_did(BOB.did)


def sealed_for(key: SigningKey = BOB, content: Content = CONTENT, n: int = 0) -> bytes:
    return sealing.seal(
        content, sender=ALICE.did, recipient=parse_did(key.did), message_id=message_id(n)
    )


def around(body: bytes) -> envelope.Envelope:
    return parsed(body=body, content_type=CONTENT_TYPE)


def refused(body: bytes) -> ErrorCode:
    with pytest.raises(ProtocolError) as caught:
        sealing.open_body(around(body), BOB)
    return caught.value.code


def sealed_json(plain: bytes) -> bytes:
    return nacl.bindings.crypto_box_seal(
        plain, nacl.bindings.crypto_sign_ed25519_pk_to_curve25519(BOB.public_key)
    )


@given(st.binary(max_size=200), st.text("ab/+", min_size=1, max_size=256))
def test_what_is_sealed_opens_for_its_recipient(body: bytes, content_type: str):
    content = Content(content_type, body)
    sealed = sealed_for(content=content)
    assert body not in sealed or len(body) < 4
    assert sealing.open_body(around(sealed), BOB) == content


def test_two_seals_of_one_content_differ():
    assert sealed_for() != sealed_for()


def test_a_body_that_is_not_sealed_passes_through():
    assert sealing.open_body(parsed(), BOB) == Content("text/plain", b"hello")


def test_a_body_sealed_for_another_key_does_not_open():
    assert refused(sealed_for(MALLORY)) == ErrorCode.BAD_ENVELOPE
    sealed = sealed_for()
    for altered in (b"", b"x" * 10, sealed[:-1], sealed + b"x", sealed[:40] + b"!" + sealed[41:]):
        assert refused(altered) == ErrorCode.BAD_ENVELOPE


def test_a_key_of_its_own_may_be_sealed_for():
    public, secret = nacl.bindings.crypto_box_seed_keypair(b"e" * 32)
    sealed = sealing.seal(
        CONTENT, sender=ALICE.did, recipient=FOR_BOB, message_id=message_id(), enc=public
    )
    assert b"the secret" not in nacl.bindings.crypto_box_seal_open(sealed, public, secret)[:9]
    assert refused(sealed) == ErrorCode.BAD_ENVELOPE  # not the did:key's own form


@pytest.mark.parametrize(
    "changes",
    [{"from": MALLORY.did}, {"to": MALLORY.did}, {"id": message_id(1)}],
    ids=lambda changes: next(iter(changes)),
)
def test_an_inside_that_belongs_to_another_envelope_is_refused(changes: dict[str, str]):
    inside = {
        "from": ALICE.did,
        "to": BOB.did,
        "id": message_id(),
        "cty": "text/plain",
        "body": jws.b64encode(b"x"),
    }
    good = sealed_json(json.dumps(inside).encode())
    assert sealing.open_body(around(good), BOB).body == b"x"
    assert refused(sealed_json(json.dumps({**inside, **changes}).encode())) == (
        ErrorCode.BAD_ENVELOPE
    )


@pytest.mark.parametrize(
    "plain",
    [b"", b"[]", b"{", b"{}", b'{"from":1}', b'{"from":"a","from":"a"}', b"\xff", b'{"must_x":1}'],
)
def test_an_inside_that_is_no_strict_json_is_refused(plain: bytes):
    assert refused(sealed_json(plain)) == ErrorCode.BAD_ENVELOPE
