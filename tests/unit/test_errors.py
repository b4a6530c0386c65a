"""The error registry: codes, faults and close numbers."""

from __future__ import annotations

import pytest

from relay.protocol import errors
from relay.protocol.errors import ERROR_CLASS, ErrorCode, Refusal, RelayError, error

PUBLISHED = {
    "auth_required", "bad_envelope", "bad_frame", "bad_signature", "blocked", "corrupt", "draining",
    "expired", "identity_unavailable", "inbox_full", "inbox_reset", "internal", "migrating",
    "moved", "no_relaying", "not_admitted", "not_federated", "not_yet_valid", "overloaded",
    "peer_unreachable", "rate_limited", "replayed", "sender_quota", "slow_reader", "stale_id",
    "stale_record", "storage_full", "storage_unavailable", "stranger_quota", "superseded",
    "too_large", "too_many_hops", "unknown_inbox", "unsupported", "wrong_relay", "wrong_state",
}  # fmt: skip
"""Frozen: programs compare with these. A new code is added here; none is renamed or taken away."""


def test_no_published_code_was_renamed_or_taken_away():
    assert {str(code) for code in ErrorCode} == PUBLISHED
    assert all(code.name == code.value.upper() for code in ErrorCode)


def test_every_code_has_exactly_one_class():
    assert set(ERROR_CLASS) == set(ErrorCode)
    groups = [errors._PROTOCOL, errors._REJECTED, errors._STATE, errors._UNAVAILABLE]
    assert sum(map(len, groups)) == len(ErrorCode) - 1  # each once; internal is nobody's
    assert ERROR_CLASS[ErrorCode.INTERNAL] is RelayError


@pytest.mark.parametrize("code", ErrorCode)
def test_an_error_and_a_refusal_say_the_same(code: ErrorCode):
    made = error(code, "why", retry_after=3)
    assert type(made) is ERROR_CLASS[code]
    assert str(made) == f"{code}: why"
    assert str(error(code)) == str(code)
    refusal = Refusal.of(made)
    assert refusal == Refusal(code, "why", 3)
    again = refusal.to_error()
    assert (type(again), again.code, again.detail, again.retry_after) == (
        type(made), code, "why", 3,
    )  # fmt: skip


def test_only_these_codes_leave_open_whether_something_was_stored():
    unknown = {code for code in ErrorCode if Refusal(code).stored == "unknown"}
    assert unknown == {"storage_unavailable", "internal", "stale_id"}
    assert {Refusal(code).stored for code in ErrorCode} == {"no", "unknown"}


def test_their_fault_is_never_worth_a_retry_and_nobodys_fault_always_is():
    protocol = {code for code, kind in ERROR_CLASS.items() if kind is errors.ProtocolError}
    nobodys = {code for code, kind in ERROR_CLASS.items() if kind is errors.UnavailableError}
    assert protocol >= {ErrorCode.BAD_FRAME, ErrorCode.REPLAYED, ErrorCode.EXPIRED}
    assert nobodys >= {ErrorCode.STORAGE_UNAVAILABLE, ErrorCode.DRAINING}
    assert not protocol & nobodys
