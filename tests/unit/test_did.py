"""did:key identifiers and signing keys: parsing, printing, refusing."""

from __future__ import annotations

import copy
import pickle

import nacl.bindings
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.protocol import did as identity
from relay.protocol.did import SigningKey, did_of, encode_did, parse_did
from relay.protocol.jws import UnsupportedTypeError
from tests.unit.builders import ALICE, BOB

P = 2**255 - 19
seeds = st.binary(min_size=32, max_size=32)


def did_with(codec: bytes, key: bytes) -> str:
    return "did:key:z" + identity._base58encode(codec + key)


def test_the_did_of_the_rfc_8032_key_is_the_one_that_everybody_makes():
    # RFC 8032 §7.1 test 1; its did:key as other implementations print it
    key = SigningKey(
        bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    )
    assert key.did == "did:key:z6MktwupdmLXVVqTzCw4i46r4uGyosGXRnR3XjN4Zq7oMMsw"
    assert key.kid == f"{key.did}#z6MktwupdmLXVVqTzCw4i46r4uGyosGXRnR3XjN4Zq7oMMsw"


@given(seeds)
def test_a_did_key_round_trips(seed: bytes):
    key = SigningKey(seed)
    found = parse_did(key.did)
    assert found.public_key == key.public_key
    assert found.did == encode_did(found.public_key) == key.did
    assert found.kid == key.kid
    assert found.agent_key == key.agent_key == f"key:{key.did.removeprefix('did:key:')}"
    assert did_of(found.agent_key) == key.did
    assert key.seed == seed


@given(st.binary(min_size=1, max_size=40))
def test_base58_round_trips_and_keeps_leading_zeros(raw: bytes):
    assert identity._base58decode(identity._base58encode(raw)) == raw


SMALL_ORDER = [
    bytes(32),
    bytes([1]) + bytes(31),
    (P - 1).to_bytes(32, "little"),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa"),
]
NON_CANONICAL = [
    P.to_bytes(32, "little"),
    (P + 1).to_bytes(32, "little"),
    (P + 3).to_bytes(32, "little"),
    (2**255 - 1).to_bytes(32, "little"),
    bytes([1]) + bytes(30) + b"\x80",
]


@pytest.mark.parametrize("key", [*SMALL_ORDER, *NON_CANONICAL], ids=lambda key: key.hex()[:16])
def test_small_order_and_non_canonical_keys_are_refused(key: bytes):
    did = encode_did(key)
    # some of these do not even look like an Ed25519 did:key; none may pass
    with pytest.raises(ValueError, match=r"not a valid Ed25519 key|supported"):
        parse_did(did)


def test_a_key_with_a_small_order_part_is_refused():
    order_8 = SMALL_ORDER[3]
    mixed = nacl.bindings.crypto_core_ed25519_add(ALICE.public_key, order_8)
    with pytest.raises(ValueError, match="not a valid Ed25519 key"):
        parse_did(encode_did(mixed))


def test_bytes_that_are_no_point_are_refused():
    with pytest.raises(ValueError, match="not a valid Ed25519 key"):
        parse_did(encode_did((2).to_bytes(32, "little")))


@pytest.mark.parametrize(
    "did",
    [
        did_with(b"\xec\x01", ALICE.public_key),  # X25519
        did_with(b"\x80\x24", ALICE.public_key),  # P-256
        did_with(b"\xed\x01", ALICE.public_key[:31]),
        did_with(b"\xed\x01", ALICE.public_key + b"\0"),
        did_with(b"\xed", ALICE.public_key),
        "did:key:" + ALICE.did.removeprefix("did:key:z"),
        "did:key:m7QE",
        "did:key:z",
        "did:web:example.org",
        "did:webvh:QmX:example.org",
        "did:plc:abc",
        "did:key2:z6Mk",
    ],
)
def test_other_methods_and_key_types_are_unsupported_and_not_wrong(did: str):
    with pytest.raises(UnsupportedTypeError):
        parse_did(did)


@pytest.mark.parametrize(
    "did",
    [
        "", "did", "did:", "did:key", "key:z6Mk", " " + ALICE.did, ALICE.did + " ",
        ALICE.did + "?service=x", ALICE.did + "/path", ALICE.did + "#" + ALICE.did[8:],
        ALICE.did.upper(), ALICE.did.replace("did:key", "did:KEY"),
        ALICE.did.replace("did:key", "DID:key"), ALICE.did.replace("did:key", "did:Key"),
        ALICE.did.replace("did:key", "did:"), "\ud800" + ALICE.did, "did:key:\ud800",
        ALICE.did[:20] + "0" + ALICE.did[21:], ALICE.did[:20] + "l" + ALICE.did[21:],
        ALICE.did[:20] + "é" + ALICE.did[21:],
    ],
    ids=ascii,
)  # fmt: skip
def test_what_is_no_did_is_refused_for_good(did: str):
    with pytest.raises(ValueError, match=r".") as caught:
        parse_did(did)
    assert not isinstance(caught.value, UnsupportedTypeError)


def test_a_did_longer_than_512_bytes_is_refused_before_its_method_is_looked_at():
    fits = "did:web:" + "x" * 504
    with pytest.raises(UnsupportedTypeError):
        parse_did(fits)
    for too_long in (fits + "x", "did:web:" + "é" * 253):
        with pytest.raises(ValueError, match="512"):
            parse_did(too_long)


@given(st.text(max_size=60) | st.text(max_size=50).map(lambda tail: "did:key:z6Mk" + tail))
def test_no_text_raises_anything_but_value_error(text: str):
    try:
        found = parse_did(text)
    except ValueError:
        return
    assert encode_did(found.public_key) == text


def test_a_signing_key_shows_and_gives_away_nothing():
    shown = repr(ALICE) + str(ALICE) + f"{ALICE!r}"
    assert ALICE.did in shown
    assert ALICE.seed.hex() not in shown
    assert "aaaa" not in shown
    for give_away in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            give_away(ALICE)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_seed_has_32_bytes(size: int):
    with pytest.raises(ValueError, match="32 bytes"):
        SigningKey(bytes(size))


def test_a_sealed_box_opens_for_its_key_only():
    curve = nacl.bindings.crypto_sign_ed25519_pk_to_curve25519(ALICE.public_key)
    sealed = nacl.bindings.crypto_box_seal(b"secret", curve)
    assert ALICE.open_sealed(sealed) == b"secret"
    for key, box in [(BOB, sealed), (ALICE, sealed[:-1]), (ALICE, b""), (ALICE, b"x" * 47)]:
        with pytest.raises(ValueError, match="not sealed for this key"):
            key.open_sealed(box)
