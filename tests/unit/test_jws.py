"""The strict JSON and JWS reader against hostile input and foreign implementations."""

from __future__ import annotations

import base64
import hashlib
import json
import string
from pathlib import Path

import cryptography_vectors
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws as joserfc_jws
from joserfc.errors import SecurityWarning
from joserfc.jwk import OKPKey

from relay.protocol import jws
from tests.unit.builders import ALICE, BOB, compact

TYP = "test+jws"
HEADER = {"alg": "Ed25519", "kid": "k", "typ": TYP}
ALPHABET = string.ascii_letters + string.digits + "-_"
WYCHEPROOF = Path(__file__).parents[2] / "../shared/vectors/wycheproof_ed25519.json"
safe_integers = st.integers(-jws.MAX_SAFE_INTEGER, jws.MAX_SAFE_INTEGER)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | safe_integers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=12,
)


def parse(text: str) -> jws.Jws:
    return jws.parse(text, typ=TYP, max_bytes=10_000)


# ---------------------------------------------------------------- base64url


@given(st.binary(max_size=100))
def test_what_is_encoded_decodes_to_itself(raw: bytes):
    text = jws.b64encode(raw)
    assert "=" not in text
    assert jws.b64decode(text) == raw


@given(st.text(st.sampled_from(ALPHABET + "=+/ \n.é"), max_size=12))
def test_a_text_either_round_trips_exactly_or_is_refused(text: str):
    try:
        raw = jws.b64decode(text)
    except ValueError:
        return
    assert jws.b64encode(raw) == text


@given(st.binary(min_size=1, max_size=40), st.data())
def test_every_other_spelling_of_the_same_bytes_is_refused(raw: bytes, data: st.DataObject):
    text = jws.b64encode(raw)
    at = data.draw(st.integers(0, len(text)))
    spellings = {
        text + "=" * (-len(text) % 4 or 1),
        text[:at] + data.draw(st.sampled_from(" \n\t\r=!.~é")) + text[at:],
        text.replace("-", "+"),
        text.replace("_", "/"),
    }
    if len(raw) % 3:
        last = ALPHABET_ORDER.index(text[-1])
        spellings.add(text[:-1] + ALPHABET_ORDER[last + 1])  # a trailing bit that says nothing
    for spelling in spellings - {text}:
        with pytest.raises(ValueError, match="base64url"):
            jws.b64decode(spelling)


ALPHABET_ORDER = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"


@pytest.mark.parametrize("text", ["QR", "QQ==", "!!QQ", "Q", "QQ\n", "QQ QQ", "+A", "/w", "Q=Q="])
def test_what_lenient_decoders_let_through_is_refused(text: str):
    with pytest.raises(ValueError, match="base64url"):
        jws.b64decode(text)


# ---------------------------------------------------------------- JSON


@given(values)
def test_json_in_any_spelling_is_read_as_the_same_value(value: object):
    for spelling in (
        jws.dumps(value),
        json.dumps(value, ensure_ascii=True).encode(),
        json.dumps(value, ensure_ascii=False, indent=3).encode(),
        b" \n\t" + json.dumps(value, separators=(" , ", " : ")).encode() + b"\r\n",
    ):
        if _depth(value) <= jws.MAX_DEPTH:
            assert jws.loads(spelling) == value


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


@given(st.dictionaries(texts, safe_integers, min_size=1, max_size=4), st.data())
def test_a_duplicate_key_is_refused_wherever_and_however_it_is_spelled(
    members: dict[str, int], data: st.DataObject
):
    name = data.draw(st.sampled_from(sorted(members)))
    again = '"' + "".join(f"\\u{ord(char):04x}" for char in name if ord(char) < 0x10000) + '"'
    if any(ord(char) >= 0x10000 for char in name):
        again = json.dumps(name)
    body = json.dumps(members)[:-1]
    for text in (f"{body}, {again}: 1}}", f"[{body}, {again}: null}}]"):
        with pytest.raises(ValueError, match="duplicate key"):
            jws.loads(text.encode())


@pytest.mark.parametrize(
    "data",
    [
        b"1.0", b"[0.5]", b'{"a":1e3}', b"-0.0", b"1E400", b"NaN", b"Infinity", b"-Infinity",
        b"9007199254740992", b"-9007199254740992", b"18446744073709551616", b"9" * 5000,
        b"", b"{", b"{}{}", b"{'a':1}", b'{"a":1,}', b"[1,]", b"01", b"+1", b"//\n1", b"tru",
        b"\xef\xbb\xbf{}", b'"\xff"', b'"\xed\xa0\x80"', b'"\\ud800"', b'"\\udc00\\ud800"',
        b'"\x01"', b'"\t"', b"\x00", "{}".encode("utf-16"),
    ],
    ids=lambda data: repr(data[:24]),
)  # fmt: skip
def test_json_that_parsers_disagree_about_is_refused(data: bytes):
    with pytest.raises(ValueError, match=r"not JSON|float|range"):
        jws.loads(data)


@pytest.mark.parametrize("edge", [2**53 - 1, -(2**53) + 1, 0])
def test_integers_up_to_the_safe_edge_are_read(edge: int):
    assert jws.loads(str(edge).encode()) == edge


def test_eight_levels_are_read_and_nine_are_refused():
    assert jws.loads(b"[" * 8 + b"]" * 8)
    assert jws.loads(b'{"a":' * 8 + b"1" + b"}" * 8)
    for nine in (b"[" * 9 + b"]" * 9, b'{"a":' * 9 + b"1" + b"}" * 9, b"[" * 5000 + b"]" * 5000):
        with pytest.raises(ValueError, match=r"nested|not JSON"):
            jws.loads(nine)


@pytest.mark.parametrize("depth", [100, 990, 1000, 1010, 1022])
def test_depth_hidden_behind_a_duplicate_key_is_a_refusal_and_no_crash(depth: int):
    with pytest.raises(ValueError, match=r"duplicate|nested|not JSON"):
        jws.loads(b'{"a":' + b"[" * depth + b"]" * depth + b',"a":1}')


@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_but_value_error(data: bytes):
    try:
        jws.loads(data)
    except ValueError:
        return


# ---------------------------------------------------------------- members


def test_members_that_must_be_understood_and_are_not_are_unsupported():
    with pytest.raises(jws.UnsupportedTypeError, match="must_sing"):
        jws.Members({"must_sing": 1})
    with pytest.raises(jws.UnsupportedTypeError, match="must_dance"):
        jws.Members({"a": {"must_dance": None}}).object("a")
    assert jws.Members({"may_sing": 1, "mustang": 2}).integer("mustang") == 2


@pytest.mark.parametrize("value", [None, [], "x", 1, True])
def test_what_is_no_object_has_no_members(value: object):
    with pytest.raises(ValueError, match="not a JSON object"):
        jws.Members(value)


def test_a_member_of_the_wrong_type_is_named():
    members = jws.Members({"n": 1, "s": "x", "b": True, "a": [], "o": {}, "e": "", "none": None})
    wrong = [
        lambda: members.text("n", limit=9),
        lambda: members.text("e", limit=9),
        lambda: members.text("none", limit=9),
        lambda: members.text("s", limit=0),
        lambda: members.integer("s"),
        lambda: members.integer("b"),
        lambda: members.integer("n", minimum=2),
        lambda: members.integer("n", limit=0),
        lambda: members.boolean("n"),
        lambda: members.array("o", limit=1),
        lambda: members.array("a", minimum=1, limit=1),
        lambda: members.object("a"),
        lambda: members.object("none"),
        lambda: members.base64("s", size=1),
    ]
    for read in wrong:
        with pytest.raises(ValueError, match=r"must be|base64url"):
            read()
    assert (
        members.optional_text("none", limit=1) is members.optional_text("absent", limit=1) is None
    )
    assert members.optional_array("none", limit=1) == []
    assert members.boolean("b") is True


@pytest.mark.parametrize("size", [1, 2, 3, 32, 64])
def test_base64_members_have_exactly_their_size(size: int):
    assert jws.Members({"x": jws.b64encode(b"q" * size)}).base64("x", size=size) == b"q" * size
    for other in (size - 1, size + 1):
        with pytest.raises(ValueError, match="must be"):
            jws.Members({"x": jws.b64encode(b"q" * other)}).base64("x", size=size)


# ---------------------------------------------------------------- JWS


@given(st.dictionaries(texts, values, max_size=4))
def test_what_is_signed_parses_back_and_holds_for_its_key_alone(payload: dict[str, object]):
    made = parse(jws.sign(payload, typ=TYP, kid=ALICE.kid, key=ALICE.sign))
    assert json.loads(made.payload) == payload
    assert made.header == jws.Header("Ed25519", ALICE.kid, TYP)
    assert jws.is_signed_by(made, ALICE.public_key)
    assert not jws.is_signed_by(made, BOB.public_key)


@given(st.data())
def test_a_jws_with_one_character_changed_never_holds(data: st.DataObject):
    text = jws.sign({"a": 1}, typ=TYP, kid=ALICE.kid, key=ALICE.sign)
    at = data.draw(st.integers(0, len(text) - 1))
    char = data.draw(st.sampled_from(ALPHABET + ".=").filter(lambda char: char != text[at]))
    try:
        altered = parse(text[:at] + char + text[at + 1 :])
    except ValueError:
        return
    assert not jws.is_signed_by(altered, ALICE.public_key)


def test_member_order_and_white_space_of_other_writers_are_kept_and_accepted():
    header = b'{ "typ" : "test+jws",\n "kid":"k", "alg":"EdDSA" }'
    made = parse(compact(header, b'{"z" : 1 , "a":[ ]}\n', ALICE))
    assert jws.is_signed_by(made, ALICE.public_key)
    assert made.header.alg == "EdDSA"
    assert made.members().integer("z") == 1
    expected = hashlib.sha256(made.signing_input).digest()
    assert made.eid == base64.urlsafe_b64encode(expected).rstrip(b"=").decode()


def test_the_signature_is_no_part_of_the_eid():
    text = jws.sign({"a": 1}, typ=TYP, kid="k", key=ALICE.sign)
    other = text.rpartition(".")[0] + "." + jws.b64encode(bytes(64))
    assert parse(text).eid == parse(other).eid
    assert parse(text).eid != parse(jws.sign({"a": 2}, typ=TYP, kid="k", key=ALICE.sign)).eid


@pytest.mark.parametrize(
    "header",
    [
        {**HEADER, "jwk": {}},
        {**HEADER, "x5c": []},
        {**HEADER, "crit": []},
        {**HEADER, "b64": False},
        {**HEADER, "cty": "text/plain"},
        {**HEADER, "must_x": 1},
        {"alg": "Ed25519", "kid": "k"},
        {"alg": "Ed25519", "typ": TYP},
        {"kid": "k", "typ": TYP},
        {**HEADER, "alg": "none"},
        {**HEADER, "alg": "HS256"},
        {**HEADER, "alg": "ES256"},
        {**HEADER, "alg": "ed25519"},
        {**HEADER, "alg": None},
        {**HEADER, "kid": ""},
        {**HEADER, "kid": 7},
        {**HEADER, "kid": "k" * 1101},
        {**HEADER, "typ": "other+jws"},
        {**HEADER, "typ": TYP.upper()},
        {**HEADER, "typ": None},
        [],
        "Ed25519",
        b"",
        b"{",
        b'{"alg":"Ed25519","kid":"k","typ":"test+jws","alg":"Ed25519"}',
        b'\xef\xbb\xbf{"alg":"Ed25519","kid":"k","typ":"test+jws"}',
    ],
    ids=repr,
)
def test_a_header_has_exactly_alg_kid_and_typ_with_their_values(header: object):
    with pytest.raises(ValueError, match=r"header|alg|kid|typ|JSON|object|duplicate"):
        parse(compact(header, {}, ALICE))


GOOD = compact(HEADER, {"a": 1}, ALICE)
HEAD, BODY, TAIL = GOOD.split(".")


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", "...", HEAD, f"{HEAD}.{BODY}", f"{HEAD}.{BODY}.", f".{BODY}.{TAIL}",
        f"{HEAD}..{TAIL[:-2]}", f"{GOOD}.", f"{GOOD}.{TAIL}", f" {GOOD}", f"{GOOD}\n",
        f"{HEAD}.{BODY}.{TAIL[:-3]}", f"{HEAD}.{BODY}.{TAIL}A", f"{HEAD}=.{BODY}.{TAIL}",
        f"{HEAD}.{BODY}=.{TAIL}", f"{HEAD}.{BODY}.{TAIL}==", f"{HEAD}.é.{TAIL}",
        f"{'A' * 2049}.{BODY}.{TAIL}", json.dumps({"payload": BODY, "signatures": []}),
    ],
)  # fmt: skip
def test_what_is_no_compact_jws_is_refused(text: str):
    with pytest.raises(ValueError, match=r"."):
        parse(text)


def test_the_size_is_capped_before_anything_is_parsed():
    assert jws.parse(GOOD, typ=TYP, max_bytes=len(GOOD))
    with pytest.raises(ValueError, match="larger than"):
        jws.parse(GOOD, typ=TYP, max_bytes=len(GOOD) - 1)


def test_a_foreign_jose_library_accepts_what_we_sign_and_we_what_it_signs():
    public = {"kty": "OKP", "crv": "Ed25519", "x": jws.b64encode(ALICE.public_key)}
    key = OKPKey.import_key({**public, "d": jws.b64encode(ALICE.seed)})
    ours = jws.sign({"a": 1}, typ=TYP, kid="k", key=ALICE.sign)
    theirs = OKPKey.import_key(public)
    assert joserfc_jws.deserialize_compact(ours, theirs, algorithms=["Ed25519"]).payload
    text = joserfc_jws.serialize_compact(HEADER, b'{"a": 1}', key, algorithms=["Ed25519"])
    assert jws.is_signed_by(parse(text), ALICE.public_key)
    with pytest.warns(SecurityWarning, match="RFC 9864"):
        older = joserfc_jws.serialize_compact(
            {**HEADER, "alg": "EdDSA"}, b"{}", key, algorithms=["EdDSA"]
        )
    assert jws.is_signed_by(parse(older), ALICE.public_key)


# ---------------------------------------------------------------- vectors that are not ours


def bare(message: bytes, signature: bytes) -> jws.Jws:
    return jws.Jws("", jws.Header("Ed25519", "k", TYP), b"", signature, message)


def test_every_published_sign_vector_verifies():
    found = Path(cryptography_vectors.__file__).parent / "asymmetric/Ed25519/sign.input"
    lines = found.read_text().splitlines()
    assert len(lines) == 1024
    for line in lines:
        secret, public, message, tail = (bytes.fromhex(part) for part in line.split(":")[:4])
        assert secret[32:] == public
        assert jws.is_signed_by(bare(message, tail[:64]), public)
        assert not jws.is_signed_by(bare(message + b"!", tail[:64]), public)


@pytest.mark.skipif(not WYCHEPROOF.exists(), reason=f"no {WYCHEPROOF.name} beside the repository")
def test_every_wycheproof_verdict_is_ours_too():
    found = json.loads(WYCHEPROOF.read_text())
    wrong, seen = [], 0
    for group in found["testGroups"]:
        public = bytes.fromhex(group["publicKey"]["pk"])
        for case in group["tests"]:
            seen += 1
            signature = bytes.fromhex(case["sig"])
            # the length is judged by parse, the rest by libsodium
            held = len(signature) == jws.SIGNATURE_BYTES and jws.is_signed_by(
                bare(bytes.fromhex(case["msg"]), signature), public
            )
            if held != (case["result"] == "valid"):
                wrong.append(case["tcId"])
    assert (seen, wrong) == (found["numberOfTests"], [])
    assert seen == 151
