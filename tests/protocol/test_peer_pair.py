"""Two relays' state machines: they prove themselves, and neither can be made to do an agent's."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.inbox.model.conversation import ConversationPhase as Phase
from relay.inbox.model.permissions import ALLOWED_FRAMES, exceeds_hops, why_forbidden
from relay.protocol import frames
from relay.protocol.client_session import ClientPhase as DiallerPhase
from relay.protocol.did import SigningKey
from relay.protocol.errors import ErrorCode, RelayError
from relay.protocol.frames import (
    MAX_HOPS,
    Ack,
    Auth,
    Bye,
    Deliver,
    Digest,
    Digests,
    Error,
    Frame,
    Gossip,
    Migrate,
    Migrated,
    Publish,
    Resolve,
    Rules,
    Status,
    StatusItem,
    Submit,
    Submitted,
    Want,
)
from relay.protocol.jws import b64encode
from tests.protocol.peer_pair import DIALLED, DIALLER, PeerPair
from tests.unit.frame_strategies import from_agent, from_relay

WIRE = {"jws": "a.b.c", "body": ""}
PAGE = Migrate("m", SigningKey(b"6" * 32).did, "h", "order", b64encode(bytes(32)), 0, 1)
OTHER = SigningKey(b"5" * 32).did


def open_pair() -> PeerPair:
    pair = PeerPair().settle()
    assert pair.is_open
    return pair


# ---------------------------------------------------------------- login


def test_both_prove_themselves_before_anything_else_is_said():
    pair = PeerPair()
    hello = pair.to_dialler.popleft()
    pair.hear(hello)
    assert [json.loads(data)["t"] for data in pair.to_dialled] == ["auth"]
    pair.settle()
    assert pair.is_open
    assert pair.ready
    assert pair.ready.relay == DIALLED.did
    assert pair.dialled.who
    assert (pair.dialled.who.did, pair.dialled.who.role) == (DIALLER.did, "peer")


def test_another_relay_there_is_told_nothing_but_a_goodbye():
    pair = PeerPair(expected=SigningKey(b"9" * 32)).settle()
    assert pair.failure is ErrorCode.WRONG_RELAY
    assert pair.dialled.phase is Phase.HELLO


def test_a_relay_that_is_not_dealt_with_learns_the_reason():
    pair = PeerPair(admitted=False).settle()
    assert pair.failure is ErrorCode.NOT_FEDERATED


def test_a_proof_of_another_login_opens_nothing():
    """A relay in the middle replays the proof that the real one made for another login."""
    first, second = PeerPair(), PeerPair()
    second.dialler._cnonce = b64encode(b"c" * 32)
    for pair in (first, second):
        pair.hear(pair.to_dialler.popleft())
        pair.tell(pair.to_dialled.popleft())
    second.hear(first.to_dialler.popleft())
    assert second.failure is ErrorCode.WRONG_RELAY
    assert second.dialler.phase is DiallerPhase.CLOSED


@given(st.data())
def test_no_altered_byte_of_a_login_opens_a_conversation(data: st.DataObject):
    pair = PeerPair()
    which = data.draw(st.sampled_from(["hello", "auth", "welcome"]))
    for queue, name in ((pair.to_dialler, "hello"), (pair.to_dialled, "auth"),
                        (pair.to_dialler, "welcome")):  # fmt: skip
        raw = bytearray(queue.popleft())
        if name == which:
            said = json.loads(raw)
            member = {"hello": "nonce", "auth": "jws", "welcome": "proof"}[name]
            text = said[member]
            at = data.draw(st.integers(0, len(text) - 2))
            swapped = "A" if text[at] != "A" else "B"
            said[member] = text[:at] + swapped + text[at + 1 :]
            raw = bytearray(json.dumps(said).encode())
        try:
            (pair.hear if queue is pair.to_dialler else pair.tell)(bytes(raw))
        except RelayError:
            return  # unreadable, or refused by who checks it
        if not pair.to_dialler and not pair.to_dialled:
            break
    assert not pair.is_open


# ---------------------------------------------------------------- who says what


@pytest.mark.parametrize(
    "frame",
    [
        Submit("s", [WIRE], (OTHER,), (0,)),
        Status("q", (StatusItem(OTHER, "i", OTHER),)),
        Resolve("r", OTHER),
        Gossip(("x",)),
        Digest("d", 10),
        Want("w", view=True),
        Submit("s", [WIRE], handoff="h"),
        PAGE,
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_what_a_peer_may_say_reaches_the_relay(frame: Frame):
    pair = open_pair()
    pair.say(frame)
    pair.settle()
    assert pair.is_open
    assert len(pair.gossip) + len(pair.stored) + len(pair.asked) == 1


@pytest.mark.parametrize(
    "frame",
    [Ack("e"), Publish("p", "x"), Rules("r"), Gossip(ref="g"), Auth("x")],
    ids=lambda frame: type(frame).__name__,
)
def test_what_a_peer_may_not_say_ends_the_conversation(frame: Frame):
    pair = open_pair()
    pair.say(frame)
    pair.settle()
    assert pair.failure is ErrorCode.BAD_FRAME
    assert (pair.dialled.phase, pair.dialler.phase) == (Phase.CLOSED, DiallerPhase.CLOSED)


@pytest.mark.parametrize("frame", [Deliver("e", ()), Auth("x"), Ack("e")], ids=str)
def test_what_does_not_belong_between_relays_ends_it_for_the_dialler(frame: Frame):
    pair = open_pair()
    effects = pair.dialler.receive(frame, 0)
    assert pair.dialler.phase is DiallerPhase.CLOSED
    assert effects[0].error.code is ErrorCode.BAD_FRAME


@pytest.mark.parametrize(
    ("hops", "is_far"),
    [((), False), ((OTHER,) * MAX_HOPS, False), ((OTHER,) * (MAX_HOPS + 1), True),
     ((DIALLED.did,), True), ((OTHER, DIALLED.did), True)],
)  # fmt: skip
def test_a_circle_or_a_long_way_is_refused_and_the_conversation_goes_on(hops, is_far):
    pair = open_pair()
    submit = Submit("s", [WIRE], hops)
    assert exceeds_hops(submit, DIALLED.did) is is_far
    pair.say(submit)
    pair.settle()
    assert pair.is_open
    [said] = pair.heard
    if is_far:
        assert (said.error, said.ref) == (ErrorCode.TOO_MANY_HOPS, "s")
    else:
        assert said == Submitted(("s",), None)


@given(st.lists(from_agent, max_size=6))
def test_no_word_of_a_peer_makes_a_relay_do_what_only_agents_may(said: list[Frame]):
    pair = open_pair()
    for frame in said:
        pair.say(frame)
    pair.settle()
    for submit in pair.stored:
        assert not exceeds_hops(submit, DIALLED.did)
    assert all(type(question) in ALLOWED_FRAMES["peer"] for question in pair.asked)
    rude = [
        frame for frame in said if why_forbidden(frame, "peer") or isinstance(frame, Auth | Bye)
    ]
    assert pair.is_open or rude


@given(st.lists(from_relay, max_size=6))
def test_no_word_of_a_relay_raises_at_the_dialler(said: list[Frame]):
    pair = open_pair()
    for frame in said:
        pair.answer(frame)
    while pair.to_dialler:
        pair.hear(pair.to_dialler.popleft())
    assert all(not isinstance(frame, Deliver) for frame in pair.heard)


@given(from_agent)
def test_an_agent_never_speaks_for_others(frame: Frame):
    """Whatever the tables say, hops, marked, handoff and from are a peer's alone."""
    match frame:
        case Submit(hops=hops, marked=marked, handoff=handoff) if hops or marked or handoff:
            assert why_forbidden(frame, "agent")
        case Status(items=items) if any(item.sender for item in items):
            assert why_forbidden(frame, "agent")
        case Gossip() | Digest() | Want() | Migrate():
            assert why_forbidden(frame, "agent")
        case _:
            assert (
                why_forbidden(frame, "agent") is None or type(frame) not in ALLOWED_FRAMES["agent"]
            )


# ---------------------------------------------------------------- a hand-off alone

ELSE = [
    Submit("s", [WIRE], (OTHER,), (0,)),
    Status("q", (StatusItem(OTHER, "i", OTHER),)),
    Resolve("r", OTHER),
    Digest("d", 10),
    Want("w", view=True),
]


@pytest.mark.parametrize("frame", [PAGE, Submit("s", [WIRE], handoff="h")])
def test_a_partner_may_hand_an_inbox_over(frame: Frame):
    pair = PeerPair(partner=True).settle()
    pair.say(frame)
    pair.settle()
    assert pair.is_open
    assert [*pair.asked, *pair.stored] == [frame]


@pytest.mark.parametrize("frame", ELSE, ids=lambda frame: type(frame).__name__)
def test_anything_else_that_a_partner_asks_is_refused_under_its_ref(frame: Frame):
    pair = PeerPair(partner=True).settle()
    pair.say(frame)
    pair.say(PAGE)
    pair.settle()
    assert pair.is_open
    assert (pair.stored, pair.asked) == ([], [PAGE])
    assert isinstance(pair.heard[0], Error)
    assert (pair.heard[0].error, pair.heard[0].ref) == (ErrorCode.NOT_FEDERATED, frame.ref)


def test_a_partner_that_passes_gossip_on_is_told_why_and_cut_off():
    pair = PeerPair(partner=True).settle()
    pair.say(Gossip(("x",)))
    pair.settle()
    assert (pair.failure, pair.gossip) == (ErrorCode.NOT_FEDERATED, [])
    assert pair.dialled.phase is Phase.CLOSED


@given(st.lists(from_agent, max_size=6))
def test_no_word_of_a_partner_makes_a_relay_do_anything_but_take_an_inbox(said: list[Frame]):
    pair = PeerPair(partner=True).settle()
    for frame in said:
        pair.say(frame)
    pair.settle()
    assert not pair.gossip
    assert all(isinstance(question, Migrate) for question in pair.asked)
    assert all(submit.handoff for submit in pair.stored)


def test_where_the_next_page_begins_is_heard():
    pair = open_pair()
    pair.answer(Migrated("m", "h", b64encode(bytes(32)), 1))
    pair.settle()
    assert [frame.next for frame in pair.heard] == [1]


def test_an_answer_to_a_question_is_heard_under_its_name():
    pair = open_pair()
    pair.answer(Digests("d", 10, ()))
    pair.answer(Error(ErrorCode.BAD_FRAME, "", None, "w"))
    pair.settle()
    assert [frame.ref for frame in pair.heard] == ["d", "w"]
    assert frames.encode(pair.heard[0])
