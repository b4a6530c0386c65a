"""The agent's side of a session: what it sends and accepts in each phase."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from relay.protocol import frames, handshake
from relay.protocol.client_session import (
    ClientPhase,
    ClientSession,
    Close,
    Failed,
    FrameReceived,
    LoginOptions,
    Ready,
    Send,
)
from relay.protocol.errors import ErrorCode
from relay.protocol.frames import Auth, Bye, Error, Hello, Welcome, WelcomePending
from relay.protocol.jws import b64encode
from tests.unit.builders import ALICE, BOB, MALLORY, NOW, RELAY, numbered_entropy

URL = "https://relay.example"
HELLO = Hello(RELAY.did, URL, b64encode(b"n" * 32), {}, int(NOW))


def session(**login: Any) -> ClientSession:
    return ClientSession(ALICE, LoginOptions(URL, **login), numbered_entropy())


def said_hello(one: ClientSession, hello: Hello = HELLO) -> Auth:
    (effect,) = one.receive(hello, NOW)
    assert isinstance(effect, Send)
    assert isinstance(effect.frame, Auth)
    return effect.frame


def welcome_for(auth: Auth, **changes: Any) -> Welcome:
    claims = handshake.parse_auth(auth.jws)[1]
    proof = handshake.sign_proof(RELAY, claims, handshake.InboxPosition("e1", 2, 5), NOW)
    made = Welcome(
        inbox=True,
        session=7,
        epoch="e1",
        cursor=2,
        head=5,
        pending=WelcomePending(),
        window_count=64,
        window_bytes=1024,
        proof=proof,
    )
    return replace(made, **changes)


def open_session() -> ClientSession:
    one = session()
    one.receive(welcome_for(said_hello(one)), NOW)
    assert one.phase is ClientPhase.OPEN
    return one


def failure(effects: list[Any]) -> ErrorCode:
    failed, close = effects
    assert isinstance(failed, Failed)
    assert close == Close(None)
    return failed.error.code


def test_hello_auth_welcome_and_the_login_holds():
    one = session(relay=RELAY.did, record="rec", invite="inv")
    auth = said_hello(one)
    assert (auth.record, auth.invite) == ("rec", "inv")
    claims = handshake.parse_auth(auth.jws)[1]
    assert (claims.subject, claims.aud, claims.url, claims.nonce, claims.role) == (
        ALICE.did, RELAY.did, URL, HELLO.nonce, "agent",
    )  # fmt: skip
    welcome = welcome_for(auth)
    assert one.receive(welcome, NOW) == [Ready(RELAY.did, HELLO, welcome)]
    assert one.phase is ClientPhase.OPEN


def test_every_login_has_a_nonce_of_its_own():
    entropy = numbered_entropy()
    nonces = set()
    for _ in range(5):
        auth = said_hello(ClientSession(ALICE, LoginOptions(URL), entropy))
        nonces.add(handshake.parse_auth(auth.jws)[1].cnonce)
    assert len(nonces) == 5


def test_a_relay_at_another_origin_or_of_another_name_is_refused_before_anything_is_signed():
    assert failure(session().receive(replace(HELLO, url=URL + ".evil"), NOW)) == (
        ErrorCode.WRONG_RELAY
    )
    assert failure(session(relay=BOB.did).receive(HELLO, NOW)) == ErrorCode.WRONG_RELAY


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"cursor": 3}, ErrorCode.WRONG_RELAY),
        ({"head": 9}, ErrorCode.WRONG_RELAY),
        ({"epoch": "e2"}, ErrorCode.WRONG_RELAY),
        ({"proof": "x"}, ErrorCode.BAD_FRAME),
    ],
)
def test_a_welcome_whose_proof_does_not_hold_is_refused(changes: dict, code: ErrorCode):
    one = session()
    assert failure(one.receive(welcome_for(said_hello(one), **changes), NOW)) == code
    assert one.phase is ClientPhase.CLOSED


def test_a_proof_by_somebody_else_is_refused():
    one = session()
    auth = said_hello(one, replace(HELLO, relay=MALLORY.did))
    # RELAY answers where MALLORY was expected
    assert failure(one.receive(welcome_for(auth), NOW)) == ErrorCode.BAD_SIGNATURE


def test_a_relay_that_names_itself_with_no_did_proves_nothing():
    one = session()
    auth = said_hello(one, replace(HELLO, relay="nobody"))
    assert failure(one.receive(welcome_for(auth), NOW)) == ErrorCode.BAD_FRAME


HEARD = [
    frames.Submitted(("r",), None),
    frames.Deliver("e", (frames.DeliverItem(1, False, {}),)),
    frames.Gap("e", ()),
    frames.Acked("e", 1),
    frames.Statuses("r", ()),
    frames.Resolved("r", "absent"),
    frames.Published("r", True, 1, 1),
    Error(ErrorCode.INBOX_RESET),
]


@pytest.mark.parametrize("frame", HEARD, ids=lambda frame: type(frame).__name__)
def test_an_open_session_passes_on_what_it_hears(frame: Any):
    assert open_session().receive(frame, NOW) == [FrameReceived(frame)]


@pytest.mark.parametrize(
    "frame", [HELLO, Auth("x"), frames.Submit("r", [{}]), frames.Ack("e")], ids=str
)
def test_what_does_not_belong_into_an_open_session_ends_it(frame: Any):
    one = open_session()
    assert failure(one.receive(frame, NOW)) == ErrorCode.BAD_FRAME
    assert one.receive(HELLO, NOW) == []


@pytest.mark.parametrize("frame", [f for f in HEARD if not isinstance(f, Error)], ids=str)
def test_nothing_is_passed_on_before_the_proof_holds(frame: Any):
    assert failure(session().receive(frame, NOW)) == ErrorCode.BAD_FRAME
    one = session()
    said_hello(one)
    assert failure(one.receive(frame, NOW)) == ErrorCode.BAD_FRAME


def test_hello_twice_and_welcome_without_hello_end_the_conversation():
    one = session()
    auth = said_hello(one)
    assert failure(one.receive(HELLO, NOW)) == ErrorCode.BAD_FRAME
    assert failure(session().receive(welcome_for(auth), NOW)) == ErrorCode.BAD_FRAME


@pytest.mark.parametrize("phase", ["start", "proving", "open"])
def test_bye_ends_every_phase_with_the_relays_reason(phase: str):
    one = open_session() if phase == "open" else session()
    if phase == "proving":
        said_hello(one)
    effects = one.receive(Bye(ErrorCode.MOVED, "gone", 5, "the record"), NOW)
    failed = effects[0]
    assert isinstance(failed, Failed)
    assert failure(effects) == ErrorCode.MOVED
    assert (failed.error.detail, failed.error.retry_after, failed.record) == (
        "gone", 5, "the record",
    )  # fmt: skip


def test_an_error_before_the_login_holds_is_its_end():
    one = session()
    said_hello(one)
    assert failure(one.receive(Error(ErrorCode.NOT_ADMITTED, "no"), NOW)) == (
        ErrorCode.NOT_ADMITTED
    )
