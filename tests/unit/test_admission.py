"""Admission: which logins, senders and registrations a relay accepts."""

from __future__ import annotations

import pytest

from relay.inbox.model import admission
from relay.inbox.model.admission import AdmissionFacts, admit, refuse_early
from relay.protocol import envelope
from relay.protocol.did import parse_did
from relay.protocol.envelope import AdmittedEnvelope, VerifiedEnvelope
from relay.protocol.errors import ErrorCode, Refusal
from relay.protocol.ids import Timestamp
from tests.unit.builders import ALICE, BOB, NOW, parsed

ENVELOPE = parsed()
VERIFIED = envelope.verify(ENVELOPE, parse_did(ALICE.did))


def test_an_envelope_that_nobody_objects_to_is_admitted_with_its_wire_bytes():
    assert refuse_early(ENVELOPE, AdmissionFacts(NOW)) is None
    admitted = admit(VERIFIED, AdmissionFacts(NOW))
    assert admitted == AdmittedEnvelope(ENVELOPE, ENVELOPE.wire)
    assert admitted.inbox == BOB.agent_key
    assert admission.admit_own(ENVELOPE) == admitted


def test_a_node_that_drains_takes_nothing_new_and_says_when_to_come_back():
    no = refuse_early(ENVELOPE, AdmissionFacts(NOW, draining=True))
    assert no is not None
    assert (no.code, no.retry_after, no.stored) == (ErrorCode.DRAINING, 1, "no")


@pytest.mark.parametrize(("ahead", "code"), [(300, None), (301, ErrorCode.NOT_YET_VALID)])
def test_an_envelope_from_the_future_is_too_early(ahead: int, code: ErrorCode | None):
    no = refuse_early(ENVELOPE, AdmissionFacts(Timestamp(NOW - ahead)))
    assert (no.code if no else None) == code


def test_a_sender_whom_the_operator_denies_is_blocked():
    denied = admit(VERIFIED, AdmissionFacts(NOW, denied=frozenset({ALICE.did})))
    assert isinstance(denied, Refusal)
    assert denied.code is ErrorCode.BLOCKED
    assert isinstance(
        admit(VERIFIED, AdmissionFacts(NOW, denied=frozenset({BOB.did}))), AdmittedEnvelope
    )


@pytest.mark.parametrize(("wait", "retry"), [(0.01, 1), (1.0, 1), (1.5, 2), (60, 60)])
def test_a_sender_that_is_too_fast_learns_in_whole_seconds_when_it_may_go_on(wait, retry):
    no = admit(VERIFIED, AdmissionFacts(NOW, sender_wait_s=wait))
    assert isinstance(no, Refusal)
    assert (no.code, no.retry_after) == (ErrorCode.RATE_LIMITED, retry)


def test_the_first_objection_counts():
    facts = AdmissionFacts(
        Timestamp(0), draining=True, sender_wait_s=9, denied=frozenset({ALICE.did})
    )
    early, late = refuse_early(ENVELOPE, facts), admit(VERIFIED, facts)
    assert isinstance(early, Refusal)
    assert isinstance(late, Refusal)
    assert (early.code, late.code) == (ErrorCode.DRAINING, ErrorCode.BLOCKED)


def test_before_the_signature_nothing_depends_on_the_claimed_sender_or_its_bucket():
    facts = AdmissionFacts(NOW, sender_wait_s=9, denied=frozenset({ALICE.did, BOB.did}))
    assert refuse_early(ENVELOPE, facts) is None


def test_what_nobody_verified_is_not_admitted():
    with pytest.raises(AttributeError):
        admit(ENVELOPE, AdmissionFacts(NOW))  # type: ignore[arg-type]
    assert isinstance(admit(VerifiedEnvelope(ENVELOPE), AdmissionFacts(NOW)), AdmittedEnvelope)
