"""The proofs of a login: they bind the relay, the nonce and the purpose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from relay.protocol import handshake
from relay.protocol.did import parse_did
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.handshake import InboxPosition, LoginClaims
from relay.protocol.ids import Timestamp
from relay.protocol.jws import b64encode
from tests.unit.builders import ALICE, MALLORY, NOW, RELAY, compact, header_of, payload_of, resigned

URL = "https://relay.example"
CLAIMS = LoginClaims(ALICE.did, RELAY.did, URL, b64encode(b"n" * 32), b64encode(b"c" * 32), "agent")
STANDING = InboxPosition("e1", 3, 9)
KEY = parse_did(ALICE.did)


def auth(**changes: object) -> str:
    return resigned(handshake.sign_auth(ALICE, CLAIMS, NOW), ALICE, **changes)


def proof(**changes: object) -> str:
    return resigned(handshake.sign_proof(RELAY, CLAIMS, STANDING, NOW), RELAY, **changes)


def verified(text: str, **changes: Any) -> LoginClaims:
    asked: dict[str, Any] = {"key": KEY, "relay": RELAY.did, "url": URL, "now": NOW, **changes}
    return handshake.verify_auth(handshake.parse_auth(text), asked.pop("key"), **asked)


def refused(call: Any, *args: Any, **changes: Any) -> ErrorCode:
    with pytest.raises(ProtocolError) as caught:
        call(*args, **changes)
    return caught.value.code


@pytest.mark.parametrize("role", ["agent", "peer"])
def test_a_login_says_what_was_signed(role: Any):
    claims = replace(CLAIMS, role=role)
    assert verified(handshake.sign_auth(ALICE, claims, NOW)) == claims
    jws, read, issued, expires = handshake.parse_auth(auth())
    assert (read, issued, expires) == (CLAIMS, int(NOW), int(NOW) + 60)
    assert jws.header.typ == "agent-auth+jws"


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ...}, {"aud": ""}, {"url": ...}, {"url": "u" * 513}, {"nonce": ...},
        {"nonce": "n"}, {"nonce": b64encode(bytes(31))}, {"nonce": b64encode(bytes(32)) + "="},
        {"cnonce": ...}, {"cnonce": b64encode(bytes(33))}, {"role": "admin"}, {"role": ...},
        {"iat": ...}, {"iat": -1}, {"iat": "1"}, {"exp": ...}, {"exp": int(NOW)},
        {"exp": int(NOW) + 61},
    ],
    ids=lambda changes: str(changes)[:40],
)  # fmt: skip
def test_every_member_of_a_login_has_bounds(changes: dict[str, object]):
    assert refused(handshake.parse_auth, auth(**changes)) == ErrorCode.BAD_FRAME


def test_a_login_of_another_purpose_or_size_is_refused():
    assert refused(handshake.parse_auth, proof()) == ErrorCode.BAD_FRAME
    assert refused(handshake.parse_auth, "") == ErrorCode.BAD_FRAME
    assert refused(handshake.parse_auth, auth(x="x" * 8192)) == ErrorCode.BAD_FRAME
    assert refused(handshake.parse_auth, auth(must_x=1)) == ErrorCode.UNSUPPORTED


def test_a_login_for_another_relay_or_origin_is_refused():
    assert refused(verified, auth(aud=MALLORY.did)) == ErrorCode.WRONG_RELAY
    assert refused(verified, auth(url="https://evil.example")) == ErrorCode.WRONG_RELAY
    assert refused(verified, auth(url=URL + "/")) == ErrorCode.WRONG_RELAY
    assert refused(verified, auth(), relay=MALLORY.did) == ErrorCode.WRONG_RELAY


def test_a_login_holds_for_the_key_that_it_names_alone():
    header, payload = header_of(auth()), payload_of(auth())
    forged = compact(header, payload, MALLORY)
    assert refused(verified, forged) == ErrorCode.BAD_SIGNATURE
    assert refused(verified, auth(), key=parse_did(MALLORY.did)) == ErrorCode.BAD_SIGNATURE
    # a rightly signed login by somebody else is somebody else's login
    others = compact({**header, "kid": MALLORY.kid}, payload, MALLORY)
    assert handshake.parse_auth(others)[1].subject == MALLORY.did


@pytest.mark.parametrize(
    ("after", "code"),
    [
        (-301, ErrorCode.NOT_YET_VALID), (-300, None), (0, None), (360, None),
        (361, ErrorCode.EXPIRED),
    ],
)  # fmt: skip
def test_a_login_holds_for_a_minute_and_what_clocks_may_differ(after: int, code: ErrorCode | None):
    now = Timestamp(NOW + after)
    if code is None:
        assert verified(auth(), now=now) == CLAIMS
    else:
        assert refused(verified, auth(), now=now) == code


def test_a_proof_answers_this_very_login():
    handshake.verify_proof(proof(), CLAIMS, STANDING)
    handshake.verify_proof(proof(epoch=None), CLAIMS, InboxPosition(None, 3, 9))


@pytest.mark.parametrize(
    "changes",
    [
        {"sub": MALLORY.did}, {"url": "https://evil.example"}, {"nonce": b64encode(bytes(32))},
        {"cnonce": b64encode(bytes(32))}, {"role": "peer"}, {"epoch": "e2"}, {"epoch": None},
        {"cursor": 4}, {"head": 8},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_a_proof_of_another_login_or_standing_is_refused(changes: dict[str, object]):
    assert refused(handshake.verify_proof, proof(**changes), CLAIMS, STANDING) == (
        ErrorCode.WRONG_RELAY
    )


@pytest.mark.parametrize(
    "changes", [{"sub": ...}, {"cursor": -1}, {"cursor": "3"}, {"head": ...}, {"epoch": 1}], ids=str
)
def test_a_proof_of_another_form_is_refused(changes: dict[str, object]):
    assert refused(handshake.verify_proof, proof(**changes), CLAIMS, STANDING) == (
        ErrorCode.BAD_FRAME
    )


def test_a_proof_counts_only_from_the_relay_that_was_expected():
    for text in (
        compact(header_of(proof()), payload_of(proof()), MALLORY),
        handshake.sign_proof(MALLORY, CLAIMS, STANDING, NOW),
    ):
        assert refused(handshake.verify_proof, text, CLAIMS, STANDING) == ErrorCode.BAD_SIGNATURE
    nobody = replace(CLAIMS, aud="nobody")
    assert refused(handshake.verify_proof, proof(), nobody, STANDING) == ErrorCode.BAD_FRAME
    assert refused(handshake.verify_proof, auth(), CLAIMS, STANDING) == ErrorCode.BAD_FRAME
