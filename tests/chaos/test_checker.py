"""The checker itself: a true story is found to be true, and each lie is found as what it is."""

from __future__ import annotations

import pytest

from relay.protocol.envelope import SignedEnvelope
from relay.protocol.frames import (
    Welcome,
    WelcomePending,
)
from relay.protocol.ids import (
    Did,
    Eid,
    Epoch,
    Fence,
    MessageId,
    Seq,
)
from tests.chaos.checker import judge
from tests.chaos.ledger import Ledger, Sent

ALICE, BOB, CAROL = (Did(f"did:key:{name}") for name in ("alice", "bob", "carol"))
EPOCH = Epoch("e")
BODY = b"a body"


class Story:
    """A ledger in which one thing after another happens to envelopes of Alice to Bob."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.heads = {ALICE: 0, BOB: 0}

    def submit(self, name: str, *, poison: bool = False, is_mortal: bool = False) -> Sent:
        signed = SignedEnvelope(Eid(name), MessageId(name), BOB, 0, b"wire of " + name.encode())
        return self.ledger.submit(ALICE, signed, BODY, poison=poison, is_mortal=is_mortal)

    def receipt(self, name: str, *, to: Did = BOB, pos: str = "", dup: bool = False) -> None:
        place = (EPOCH, pos or name)
        self.ledger.receipt(Eid(name), to, durability="fsync", dup=dup, place=place)
        self.heads[BOB] += not dup

    def hand(
        self, name: str, *, to: Did = BOB, redelivered: bool = False, session: int = 1
    ) -> None:
        wire = b"wire of " + name.encode()
        self.ledger.hand_over(to, Eid(name), redelivered=redelivered, session=session, wire=wire)

    def end(self, name: str, how: str = "acked", *, session: int = 1) -> None:
        self.ledger.end(BOB, Eid(name), how, session=session)
        self.ledger.states[Eid(name)] = how

    def bounce(self, name: str, *, within: str = "bounce", to: Did = ALICE) -> None:
        self.ledger.bounce(to, Eid(within), Eid(name), "poison")
        self.ledger.hand_over(to, Eid(within), redelivered=False, wire=b"a bounce")
        self.heads[ALICE] += 1

    def whole(self, name: str) -> None:
        """All that should happen to an envelope."""
        self.submit(name)
        self.receipt(name)
        self.hand(name)
        self.end(name)

    def kinds(self, pending: int = 0) -> set[str]:
        for agent, head in self.heads.items():
            welcome = Welcome(
                True, Fence(9), EPOCH, Seq(head - pending), Seq(head), WelcomePending(pending),
                64, 1024, "",
            )  # fmt: skip
            self.ledger.stand(agent, welcome)
        return judge(self.ledger).kinds


@pytest.fixture
def story() -> Story:
    """A first envelope that went as it should."""
    made = Story()
    made.whole("first")
    return made


def test_a_true_story_breaks_no_promise(story: Story) -> None:
    story.submit("refused", poison=True)
    story.receipt("refused")
    story.hand("refused")
    story.hand("refused", redelivered=True)
    story.end("refused", "refused")
    story.bounce("refused")
    assert story.kinds() == set()
    assert story.ledger.is_over(2)


def test_a_receipted_envelope_that_nobody_got_is_lost(story: Story) -> None:
    story.submit("m")
    story.receipt("m")
    story.end("m")
    assert story.kinds() == {"lost"}


def test_an_envelope_at_another_agent_is_wrong_and_does_not_count_as_delivered(
    story: Story,
) -> None:
    story.submit("m")
    story.receipt("m")
    story.hand("m", to=CAROL)
    story.end("m")
    assert story.kinds() == {"lost", "wrong"}


def test_what_nobody_sent_is_a_phantom(story: Story) -> None:
    story.hand("unheard of")
    assert story.kinds() == {"phantom"}


def test_other_bytes_under_a_known_eid_are_a_phantom(story: Story) -> None:
    story.ledger.hand_over(BOB, Eid("first"), redelivered=True, wire=b"other bytes")
    assert "phantom" in story.kinds()


def test_another_body_out_of_the_sdk_is_a_phantom(story: Story) -> None:
    story.submit("m")
    story.receipt("m")
    story.ledger.hand_over(BOB, Eid("m"), redelivered=False, body=BODY + b"!")
    story.end("m")
    assert story.kinds() == {"phantom"}


def test_a_second_time_without_a_mark_is_unmarked(story: Story) -> None:
    story.submit("m")
    story.receipt("m")
    story.hand("m")
    story.hand("m")
    story.end("m")
    assert story.kinds() == {"unmarked"}


@pytest.mark.parametrize("older_is_read_first", [True, False])
def test_of_two_sessions_the_newer_one_marks_what_the_older_one_had(
    story: Story, *, older_is_read_first: bool
) -> None:
    story.submit("m")
    story.receipt("m")
    for session in (1, 2) if older_is_read_first else (2, 1):
        story.hand("m", session=session, redelivered=session == 2)
    story.end("m", session=2)
    assert story.kinds() == set()


@pytest.mark.parametrize("older_is_read_first", [True, False])
def test_of_two_sessions_the_newer_one_must_not_claim_to_be_the_first(
    story: Story, *, older_is_read_first: bool
) -> None:
    story.submit("m")
    story.receipt("m")
    for session in (1, 2) if older_is_read_first else (2, 1):
        story.hand("m", session=session)
    story.end("m", session=2)
    assert story.kinds() == {"unmarked"}


def test_what_an_older_session_had_may_be_read_after_the_newer_one_acked_it(story: Story) -> None:
    story.submit("m")
    story.receipt("m")
    story.hand("m", session=2, redelivered=True)
    story.end("m", session=2)
    story.hand("m", session=1)
    assert story.kinds() == set()


def test_a_newer_session_must_not_have_what_an_older_one_acked(story: Story) -> None:
    story.submit("m")
    story.receipt("m")
    story.hand("m")
    story.end("m")
    story.hand("m", session=2, redelivered=True)
    assert story.kinds() == {"acked_again"}


def test_a_mark_does_not_excuse_what_was_acked(story: Story) -> None:
    story.hand("first", redelivered=True)
    assert story.kinds() == {"acked_again"}


def test_what_was_receipted_before_another_was_submitted_must_arrive_before_it(
    story: Story,
) -> None:
    for name in ("m1", "m2", "m3"):
        story.submit(name)
        story.receipt(name)
    for name in ("m1", "m3", "m2"):
        story.hand(name)
        story.end(name)
    assert story.kinds() == {"reordered"}


def test_what_was_under_way_together_may_arrive_in_any_order(story: Story) -> None:
    for name in ("m1", "m2"):
        story.submit(name)
    for name in ("m1", "m2"):
        story.receipt(name)
    for name in ("m2", "m1"):
        story.hand(name)
        story.end(name)
    assert story.kinds() == set()


def test_a_duplicate_must_have_been_submitted_before(story: Story) -> None:
    story.submit("m")
    story.receipt("m", dup=True)
    story.hand("m")
    story.end("m")
    story.heads[BOB] += 1
    assert story.kinds() == {"untrue_receipts"}


def test_a_duplicate_after_a_lost_answer_is_true(story: Story) -> None:
    story.submit("m").maybe_stored = True
    story.receipt("m", dup=True)
    story.hand("m")
    story.end("m")
    story.heads[BOB] += 1
    assert story.kinds() == set()


@pytest.mark.parametrize("pos", ["elsewhere", "second"])
def test_an_envelope_has_one_place_and_a_place_one_envelope(story: Story, pos: str) -> None:
    story.whole("second")
    story.receipt("first", pos=pos, dup=True)
    assert story.kinds() == {"untrue_receipts"}


def test_a_receipt_names_the_recipient(story: Story) -> None:
    story.submit("m")
    story.receipt("m", to=CAROL)
    story.hand("m")
    story.end("m")
    assert story.kinds() == {"untrue_receipts"}


def test_a_receipt_without_fsync_is_not_what_was_promised(story: Story) -> None:
    story.submit("m")
    story.ledger.receipt(Eid("m"), BOB, durability="unverified", dup=False)
    story.heads[BOB] += 1
    story.hand("m")
    story.end("m")
    assert story.kinds() == {"untrue_receipts"}


def test_a_kill_must_not_begin_a_new_epoch(story: Story) -> None:
    story.ledger.see_epoch(BOB, Epoch("another"))
    assert story.kinds() == {"untrue_receipts"}


def test_a_refusal_bounces(story: Story) -> None:
    story.submit("m", poison=True)
    story.receipt("m")
    story.hand("m")
    story.end("m", "refused")
    assert not story.ledger.is_over(2)
    assert story.kinds() == {"untrue_bounces"}


def test_a_refusal_bounces_once(story: Story) -> None:
    story.submit("m", poison=True)
    story.receipt("m")
    story.hand("m")
    story.end("m", "refused")
    story.bounce("m")
    story.bounce("m", within="another bounce")
    assert story.kinds() == {"untrue_bounces"}


def test_what_was_not_refused_does_not_bounce(story: Story) -> None:
    story.bounce("first")
    assert story.kinds() == {"untrue_bounces"}


def test_a_bounce_is_for_the_sender_alone(story: Story) -> None:
    story.submit("m", poison=True)
    story.receipt("m")
    story.hand("m")
    story.end("m", "refused")
    story.bounce("m", to=CAROL)
    story.heads[ALICE] = 0
    assert story.kinds() == {"wrong"}


def test_an_envelope_without_an_answer_is_unsettled(story: Story) -> None:
    story.submit("m")
    assert story.kinds() == {"unsettled"}


def test_an_envelope_without_an_end_is_unsettled(story: Story) -> None:
    story.submit("m")
    story.receipt("m")
    story.hand("m")
    assert story.kinds() == {"unsettled"}


def test_an_inbox_that_is_not_empty_is_unsettled(story: Story) -> None:
    assert story.kinds(pending=1) == {"unsettled"}


def test_the_relay_must_tell_the_sender_the_same_end(story: Story) -> None:
    story.ledger.states[Eid("first")] = "stored"
    assert story.kinds() == {"unsettled"}


def test_a_seq_too_many_is_miscounted(story: Story) -> None:
    story.heads[BOB] += 1
    assert story.kinds() == {"miscounted"}


def test_what_was_left_to_the_sdk_must_arrive_without_a_receipt(story: Story) -> None:
    story.submit("m", is_mortal=True)
    story.ledger.promise(Eid("m"), "left")
    assert "lost" in story.kinds()


def test_the_arrival_of_what_a_killed_sender_meant_to_send_stands_for_its_receipt(
    story: Story,
) -> None:
    story.submit("m", is_mortal=True)
    story.hand("m")
    story.end("m")
    story.heads[BOB] += 1
    assert story.kinds() == set()
    assert story.ledger.is_over(2)


@pytest.mark.parametrize("recipient_is_read_first", [True, False])
def test_the_notes_of_two_agents_may_be_read_in_any_order(
    story: Story, *, recipient_is_read_first: bool
) -> None:
    if not recipient_is_read_first:
        story.submit("m", is_mortal=True)
    story.hand("m")
    story.end("m")
    if recipient_is_read_first:
        story.submit("m", is_mortal=True)
    story.heads[BOB] += 1
    assert story.ledger.is_over(2)
    assert story.kinds() == set()


def test_what_came_to_nothing_is_not_waited_for(story: Story) -> None:
    story.submit("void", is_mortal=True)
    assert not story.ledger.is_over(1)
    story.ledger.annul(Eid("void"))
    story.submit("withdrawn", is_mortal=True)
    story.ledger.deny(Eid("withdrawn"))
    assert story.ledger.is_over(1)
    assert story.kinds() == set()


def test_what_was_definitely_not_stored_must_not_arrive(story: Story) -> None:
    story.submit("m", is_mortal=True)
    story.ledger.deny(Eid("m"))
    story.hand("m")
    story.end("m")
    story.heads[BOB] += 1
    assert story.kinds() == {"phantom"}


@pytest.mark.parametrize(("comes_again", "kinds"), [(True, set()), (False, {"forgotten"})])
def test_what_an_agent_had_in_hand_when_it_was_killed_must_come_again(
    story: Story, *, comes_again: bool, kinds: set[str]
) -> None:
    story.submit("m")
    story.receipt("m")
    story.hand("m")
    story.ledger.die(BOB)
    if comes_again:
        story.hand("m", redelivered=True)
    story.end("m")
    assert story.kinds() == kinds


@pytest.mark.parametrize(("state", "kinds"), [("acked", set()), ("stored", {"unsettled"})])
def test_what_an_agent_was_answering_when_it_was_killed_may_come_again_or_not(
    story: Story, *, state: str, kinds: set[str]
) -> None:
    story.submit("m")
    story.receipt("m")
    story.hand("m")
    story.ledger.answering(BOB, Eid("m"), "acked")
    story.ledger.die(BOB)
    story.ledger.states[Eid("m")] = state
    assert story.kinds() == kinds
