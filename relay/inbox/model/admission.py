"""Admit envelopes: an ordered list of rules judges each by facts gathered outside.

A rule is a pure function that returns a refusal or None; the first refusal counts. Only the inbox
can judge duplicates, expiry and quotas (:mod:`relay.inbox.model.store_contract`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Final

from relay.protocol.envelope import AdmittedEnvelope, Envelope, VerifiedEnvelope, is_too_early
from relay.protocol.errors import ErrorCode, Refusal
from relay.protocol.ids import Did, Timestamp, in_utc


@dataclass(frozen=True, slots=True)
class AdmissionFacts:
    """All that a rule may look at beside the envelope.

    Args:
        now: Unix seconds.
        draining: this node is shutting down.
        sender_wait_s: seconds until the sender's bucket has a token; 0 = now.
        denied: senders that the operator does not serve.
    """

    now: Timestamp
    draining: bool = False
    sender_wait_s: float = 0.0
    denied: frozenset[Did] = frozenset()


def with_wait(facts: AdmissionFacts, sender_wait_s: float) -> AdmissionFacts:
    """Return the facts for a sender that is proven, with the wait that its bucket asks for."""
    return replace(facts, sender_wait_s=sender_wait_s) if sender_wait_s else facts


Rule = Callable[[Envelope, AdmissionFacts], Refusal | None]


def not_draining(_: Envelope, facts: AdmissionFacts) -> Refusal | None:
    """Refuse everything on a node that shuts down."""
    if facts.draining:
        return Refusal(ErrorCode.DRAINING, "this node is shutting down", retry_after=1)
    return None


def not_from_the_future(envelope: Envelope, facts: AdmissionFacts) -> Refusal | None:
    """Refuse a ``created_time`` more than 300 s ahead (PROTOCOL.md §3.3)."""
    if is_too_early(envelope, facts.now):
        clock = f"the relay's clock, which says {in_utc(facts.now)}"
        return Refusal(ErrorCode.NOT_YET_VALID, f"created_time is in the future by {clock}")
    return None


def sender_is_served(envelope: Envelope, facts: AdmissionFacts) -> Refusal | None:
    """Refuse a sender that the operator denies."""
    if envelope.sender.did in facts.denied:
        return Refusal(ErrorCode.BLOCKED, "the operator does not serve this sender")
    return None


def sender_is_slow_enough(_: Envelope, facts: AdmissionFacts) -> Refusal | None:
    """Refuse what exceeds one sender's rate (R7)."""
    if facts.sender_wait_s > 0:
        wait_s = ceil(facts.sender_wait_s)
        return Refusal(ErrorCode.RATE_LIMITED, "this sender is too fast", retry_after=wait_s)
    return None


BEFORE_SIGNATURE: Final[Sequence[Rule]] = (not_draining, not_from_the_future)
"""Cheap, and reveals nothing about the recipient or the claimed sender."""

AFTER_SIGNATURE: Final[Sequence[Rule]] = (sender_is_served, sender_is_slow_enough)
"""Only a proven sender's bucket counts, else anybody could empty it."""


def refuse_early(envelope: Envelope, facts: AdmissionFacts) -> Refusal | None:
    """Return the first refusal that needs no signature."""
    return _first(BEFORE_SIGNATURE, envelope, facts)


def admit(verified: VerifiedEnvelope, facts: AdmissionFacts) -> AdmittedEnvelope | Refusal:
    """Admit a verified envelope, or return the first refusal."""
    envelope = verified.envelope
    refusal = _first(AFTER_SIGNATURE, envelope, facts)
    return refusal or AdmittedEnvelope(envelope, envelope.wire)


def admit_own(envelope: Envelope) -> AdmittedEnvelope:
    """Admit an envelope that this relay itself has just signed."""
    return AdmittedEnvelope(envelope, envelope.wire)


def _first(rules: Sequence[Rule], envelope: Envelope, facts: AdmissionFacts) -> Refusal | None:
    for rule in rules:
        refusal = rule(envelope, facts)
        if refusal is not None:
            return refusal
    return None
