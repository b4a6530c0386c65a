"""Answers to a submit, matched with what was submitted."""

from __future__ import annotations

import pytest

from relay.protocol.client_session import match
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.frames import Rejection, Submitted
from relay.protocol.ids import Eid, Epoch
from relay.protocol.receipts import Receipt, ReceiptItem
from tests.unit.builders import BOB, RELAY

A, B, C = Eid("a"), Eid("b"), Eid("c")


def receipt(*eids: Eid, handoff: str = "") -> Receipt:
    items = tuple(ReceiptItem(eid, BOB.did, Epoch("e"), "p", 1) for eid in eids)
    return Receipt(RELAY.did, 1, "fsync", items, handoff)


def no(ref: str, i: int) -> Rejection:
    return Rejection(ref, i, ErrorCode.BLOCKED, "no")


def test_each_envelope_has_its_rejection_or_the_next_item_of_the_receipt():
    frame = Submitted(("1", "2"), "x", (no("1", 1),))
    found = match(frame, receipt(A, C), {"1": [A, B], "2": [C], "3": [A]})
    assert [[type(one) for one in found[ref]] for ref in ("1", "2")] == [
        [ReceiptItem, Rejection],
        [ReceiptItem],
    ]


@pytest.mark.parametrize(
    ("frame", "signed"),
    [
        (Submitted(("1",), "x"), receipt(B, A)),
        (Submitted(("1",), "x"), receipt(A)),
        (Submitted(("1",), "x"), receipt(A, B, C)),
        (Submitted(("1",), None), None),
        (Submitted(("1",), "x", (no("1", 0), no("1", 1))), receipt(A)),
        (Submitted(("1",), "x", (no("1", 2),)), receipt(A, B)),
        (Submitted(("1",), "x", (no("2", 0),)), receipt(A, B)),
        (Submitted(("1", "9"), "x"), receipt(A, B)),
        (Submitted(("1", "1"), "x"), receipt(A, B, A, B)),
    ],
    ids=["order", "short", "long", "none", "both", "beyond", "other ref", "unasked", "twice"],
)
def test_an_answer_that_does_not_fit_wholly_is_refused(frame, signed):
    with pytest.raises(ProtocolError) as caught:
        match(frame, signed, {"1": [A, B]})
    assert caught.value.code is ErrorCode.BAD_FRAME


def test_a_receipt_answers_only_submits_of_the_hand_off_that_it_names():
    asked, under = {"1": [A], "2": [B], "3": [C]}, {"1": "m", "2": "m", "3": "n"}
    both = Submitted(("1", "2"), "x")
    assert set(match(both, receipt(A, B, handoff="m"), asked, under)) == {"1", "2"}
    assert set(match(Submitted(("3",), None, (no("3", 0),)), None, asked, under)) == {"3"}
    for frame, signed in [
        (both, receipt(A, B)),
        (both, receipt(A, B, handoff="n")),
        (Submitted(("1", "3"), "x"), receipt(A, C, handoff="m")),
    ]:
        with pytest.raises(ProtocolError) as caught:
            match(frame, signed, asked, under)
        assert caught.value.code is ErrorCode.BAD_FRAME
    with pytest.raises(ProtocolError):
        match(Submitted(("1",), "x"), receipt(A, handoff="m"), {"1": [A]})
