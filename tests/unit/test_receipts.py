"""Receipts: what they prove, and each way in which one is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws as joserfc_jws
from joserfc.jwk import OKPKey

from relay.protocol import jws, receipts
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.ids import Eid, Epoch, Seq
from relay.protocol.receipts import BounceItem, ReceiptItem
from tests.unit.builders import BOB, MALLORY, NOW, RELAY, compact, header_of, payload_of, resigned

EID = Eid(jws.b64encode(bytes(32)))
ITEM = ReceiptItem(EID, BOB.did, Epoch("e1"), "p1", int(NOW) + 60)
BOUNCED = BounceItem(EID, BOB.did, "expired", maybe_delivered=False)


def receipt(*items: ReceiptItem) -> str:
    return receipts.sign_receipt(RELAY, items or [ITEM], durability="fsync", now=NOW)


def refused(text: str, *, bounce: bool = False) -> ErrorCode:
    with pytest.raises(ProtocolError) as caught:
        (receipts.verify_bounce if bounce else receipts.verify_receipt)(text, RELAY.did)
    return caught.value.code


items = st.builds(
    ReceiptItem,
    eid=st.binary(min_size=32, max_size=32).map(lambda raw: Eid(jws.b64encode(raw))),
    to=st.just(BOB.did),
    epoch=st.text("abc", min_size=1, max_size=64).map(Epoch),
    pos=st.text("xyz", min_size=1, max_size=64),
    expires=st.integers(0, 2**40),
    dup=st.booleans(),
    custody=st.sampled_from(["inbox", "outbox"]),
)


@given(st.lists(items, max_size=5), st.sampled_from(["fsync", "unverified", "memory"]))
def test_a_receipt_says_what_the_relay_signed(made: list[ReceiptItem], durability: Any):
    text = receipts.sign_receipt(RELAY, made, durability=durability, now=NOW)
    read = receipts.verify_receipt(text, RELAY.did)
    assert read == receipts.Receipt(RELAY.did, int(NOW), durability, tuple(made))


@pytest.mark.parametrize("handoff", ["m", "0" * 128])
def test_a_receipt_of_a_hand_off_names_it(handoff: str):
    text = receipts.sign_receipt(RELAY, [ITEM], durability="fsync", now=NOW, handoff=handoff)
    assert payload_of(text)["mig_id"] == handoff
    assert receipts.verify_receipt(text, RELAY.did).handoff == handoff
    assert refused(resigned(text, RELAY, mig_id="")) == ErrorCode.BAD_FRAME
    assert refused(resigned(text, RELAY, mig_id="0" * 129)) == ErrorCode.BAD_FRAME
    assert refused(resigned(text, RELAY, mig_id=7)) == ErrorCode.BAD_FRAME


def test_a_receipt_of_no_hand_off_names_none():
    assert "mig_id" not in payload_of(receipt())
    assert not receipts.verify_receipt(receipt(), RELAY.did).handoff


def test_a_receipt_for_the_largest_commit_fits():
    text = receipt(*[ITEM] * 512)
    assert len(receipts.verify_receipt(text, RELAY.did).items) == 512


def test_a_stock_jose_library_verifies_our_receipt():
    public = OKPKey.import_key(
        {"kty": "OKP", "crv": "Ed25519", "x": jws.b64encode(RELAY.public_key)}
    )
    found = joserfc_jws.deserialize_compact(receipt(), public, algorithms=["Ed25519"])
    assert json.loads(found.payload)["items"][0]["eid"] == EID
    assert found.headers() == {"alg": "Ed25519", "kid": RELAY.kid, "typ": "agent-receipt+jws"}


def test_a_receipt_counts_only_from_the_relay_that_is_asked():
    assert refused(resigned(receipt(), MALLORY)) == ErrorCode.BAD_SIGNATURE
    other = receipts.sign_receipt(MALLORY, [ITEM], durability="fsync", now=NOW)
    assert refused(other) == ErrorCode.BAD_SIGNATURE
    assert refused(resigned(receipt(), RELAY, relay=MALLORY.did)) == ErrorCode.BAD_FRAME
    zeros = receipt().rpartition(".")[0] + "." + jws.b64encode(bytes(64))
    assert refused(zeros) == ErrorCode.BAD_SIGNATURE


def test_a_receipt_and_a_bounce_are_never_taken_for_each_other():
    assert refused(receipt(), bounce=True) == ErrorCode.BAD_FRAME
    assert refused(receipts.sign_bounce(RELAY, [BOUNCED])) == ErrorCode.BAD_FRAME


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2}, {"v": ...}, {"at": -1}, {"at": "1"}, {"at": ...}, {"durability": "everysec"},
        {"durability": ...}, {"items": ...}, {"items": {}}, {"items": [1]}, {"items": [{}]},
        {"must_x": 1}, {"items": [{}] * 4097}, {"relay": ...},
    ],
    ids=lambda changes: str(changes)[:40],
)  # fmt: skip
def test_a_receipt_of_another_form_is_refused(changes: dict[str, object]):
    assert refused(resigned(receipt(), RELAY, **changes)) == ErrorCode.BAD_FRAME


@pytest.mark.parametrize(
    "changes",
    [
        {"eid": ""}, {"eid": 1}, {"eid": "e" * 44}, {"to": None}, {"epoch": ""}, {"pos": 7},
        {"expires": "1"}, {"expires": -1}, {"dup": 0}, {"dup": None}, {"custody": "pocket"},
    ],
    ids=str,
)  # fmt: skip
def test_every_item_of_a_receipt_is_checked(changes: dict[str, object]):
    good = payload_of(receipt())["items"][0]
    assert refused(resigned(receipt(), RELAY, items=[good, {**good, **changes}])) == (
        ErrorCode.BAD_FRAME
    )


@given(st.integers(1, 2**40), st.integers(1, 2**40))
def test_a_position_is_the_same_for_a_duplicate_and_tells_nothing(one: int, other: int):
    def at(seq: int, epoch: str = "e1", secret: bytes = b"s" * 32) -> str:
        return receipts.position(secret, Epoch(epoch), Seq(seq))

    assert at(one) == at(one)
    assert len(at(one)) == 22
    assert (at(one) == at(other)) == (one == other)
    assert len({at(one), at(one, epoch="e2"), at(one, secret=b"t" * 32)}) == 3


def test_epoch_and_seq_are_not_confused_in_a_position():
    made = {
        receipts.position(b"s", Epoch(epoch), Seq(seq))
        for epoch, seq in [("e", 11), ("e|1", 1), ("e1", 1), ("e|", 11)]
    }
    assert len(made) == 4


@given(st.lists(st.booleans(), max_size=5))
def test_a_bounce_says_what_the_relay_signed_and_repeats_to_the_byte(flags: list[bool]):
    made = [BounceItem(EID, BOB.did, f"r{n}", flag) for n, flag in enumerate(flags)]
    text = receipts.sign_bounce(RELAY, made)
    assert receipts.verify_bounce(text, RELAY.did) == tuple(made)
    assert receipts.sign_bounce(RELAY, made) == text


@pytest.mark.parametrize(
    "changes",
    [
        {"eid": "short"}, {"eid": EID + "="}, {"eid": None}, {"to": ""}, {"reason": ""},
        {"reason": "r" * 65}, {"maybe_delivered": 1}, {"maybe_delivered": None}, {"must_x": 1},
    ],
    ids=str,
)  # fmt: skip
def test_every_item_of_a_bounce_is_checked(changes: dict[str, object]):
    text = receipts.sign_bounce(RELAY, [BOUNCED])
    good = payload_of(text)["items"][0]
    assert refused(resigned(text, RELAY, items=[{**good, **changes}]), bounce=True) == (
        ErrorCode.BAD_FRAME
    )


def test_a_bounce_names_at_most_256_envelopes():
    text = receipts.sign_bounce(RELAY, [BOUNCED])
    good = payload_of(text)["items"][0]
    most = resigned(text, RELAY, items=[good] * 256)
    assert len(receipts.verify_bounce(most, RELAY.did)) == 256
    assert refused(resigned(text, RELAY, items=[good] * 257), bounce=True) == ErrorCode.BAD_FRAME


@pytest.mark.parametrize("text", ["", "a.b.c", "."])
def test_what_is_no_jws_is_no_receipt(text: str):
    assert refused(text) == refused(text, bounce=True) == ErrorCode.BAD_FRAME


def test_a_relay_did_that_is_none_proves_nothing():
    header, payload = header_of(receipt()), payload_of(receipt())
    with pytest.raises(ProtocolError) as caught:
        receipts.verify_receipt(compact(header, payload, RELAY), "did:web:example.org")
    assert caught.value.code is ErrorCode.BAD_FRAME
