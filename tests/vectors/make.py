"""Makes the vectors: ``python tests/vectors/make.py`` writes them, ``--check`` only compares.

Rules of the file: everything is fixed, so a second run gives the same bytes. Nothing of ``relay``
is used here: keys, DIDs, base64url, JWS and sealed boxes are made a second time, from libsodium and
the standard library alone, so that the vectors are not the code's own opinion of itself.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nacl.bindings as sodium

HERE = Path(__file__).parent
NOW = 1_750_000_000
DAY = 86_400
URL = "https://relay.example"
Case = dict[str, Any]


# ---------------------------------------------------------------- a second implementation


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def base58(raw: bytes) -> str:
    alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    number, text = int.from_bytes(raw, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = alphabet[digit] + text
    return "1" * (len(raw) - len(raw.lstrip(b"\0"))) + text


def did_key(public: bytes, codec: bytes = b"\xed\x01") -> str:
    return "did:key:z" + base58(codec + public)


class Key:
    """An Ed25519 key pair of a fixed seed."""

    def __init__(self, letter: str) -> None:
        self.seed = letter.encode() * 32
        self.public, self.secret = sodium.crypto_sign_seed_keypair(self.seed)
        self.did = did_key(self.public)
        self.multibase = self.did.removeprefix("did:key:")
        self.kid = f"{self.did}#{self.multibase}"

    def sign(self, message: bytes) -> bytes:
        return sodium.crypto_sign(message, self.secret)[:64]


ALICE, BOB, MALLORY, RELAY = Key("a"), Key("b"), Key("m"), Key("r")
KEYS = {
    name: {"seed_hex": key.seed.hex(), "public_hex": key.public.hex(), "did": key.did,
           "kid": key.kid}
    for name, key in [("alice", ALICE), ("bob", BOB), ("mallory", MALLORY), ("relay", RELAY)]
}  # fmt: skip


def compact(header: object, payload: object, key: Key) -> str:
    """A JWS over any header and payload; bytes are taken as they are."""
    head, body = (
        b64(part if isinstance(part, bytes) else json.dumps(part, separators=(",", ":")).encode())
        for part in (header, payload)
    )
    return f"{head}.{body}.{b64(key.sign(f'{head}.{body}'.encode()))}"


def changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """With other members; ``...`` takes one away."""
    return {name: value for name, value in {**base, **changes}.items() if value is not ...}


def eid_of(jws: str) -> str:
    return b64(hashlib.sha256(jws.rpartition(".")[0].encode()).digest())


def uuid7(ms: int, noise: str = "x") -> str:
    raw = bytearray(ms.to_bytes(6, "big") + hashlib.sha256(noise.encode()).digest()[:10])
    raw[6], raw[8] = 0x70 | raw[6] & 0x0F, 0x80 | raw[8] & 0x3F
    text = raw.hex()
    return "-".join([text[:8], text[8:12], text[12:16], text[16:20], text[20:]])


def sealed_for(public: bytes, plain: bytes) -> bytes:
    """A libsodium sealed box whose ephemeral key is fixed; never do this outside a test."""
    theirs = sodium.crypto_sign_ed25519_pk_to_curve25519(public)
    ephemeral, secret = sodium.crypto_box_seed_keypair(b"e" * 32)
    nonce = hashlib.blake2b(ephemeral + theirs, digest_size=24).digest()
    return ephemeral + sodium.crypto_box(plain, nonce, theirs, secret)


class Signed:
    """A kind of signed object: what a right one looks like, and how to make a wrong one."""

    def __init__(self, typ: str, payload: dict[str, Any], key: Key, wrap: Callable[[str], Any]):
        self.typ, self.payload, self.key, self.wrap = typ, payload, key, wrap

    def jws(
        self, header: dict[str, Any] | None = None, key: Key | None = None, **changes: Any
    ) -> str:
        head = {"alg": "Ed25519", "kid": self.key.kid, "typ": self.typ}
        return compact(changed(head, header or {}), changed(self.payload, changes), key or self.key)

    def make(self, **changes: Any) -> Any:
        return self.wrap(self.jws(**changes))

    def raw(self, payload: bytes) -> Any:
        head = {"alg": "Ed25519", "kid": self.key.kid, "typ": self.typ}
        return self.wrap(compact(head, payload, self.key))


def bad(name: str, kind: str, error: str, given: Any) -> Case:
    return {"name": name, "class": kind, "input": given, "error": error}


def good(name: str, given: Any, expect: dict[str, Any]) -> Case:
    return {"name": name, "input": given, "expect": expect}


def broken_jws(one: Signed, form: str, *, typ: str = "agent-auth+jws") -> list[Case]:
    """What is wrong with any signed object; ``form`` is the code for its form."""
    right = one.jws()
    head, body, tail = right.split(".")
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    other_bits = tail[:-1] + last[last.index(tail[-1]) + 1]
    plain = json.dumps(one.payload)
    bom = b"\xef\xbb\xbf" + plain.encode()
    return [
        bad("jwk in the header", "header", form, one.make(header={"jwk": {"kty": "OKP"}})),
        bad("crit in the header", "header", form, one.make(header={"crit": ["exp"]})),
        bad("b64 in the header", "header", form, one.make(header={"b64": True})),
        bad("no kid", "header", form, one.make(header={"kid": ...})),
        bad("alg none", "algorithm", form, one.make(header={"alg": "none"})),
        bad("alg ES256", "algorithm", form, one.make(header={"alg": "ES256"})),
        bad("another purpose", "purpose", form, one.make(header={"typ": typ})),
        bad("two segments", "jws form", form, one.wrap(f"{head}.{body}")),
        bad("four segments", "jws form", form, one.wrap(f"{right}.{tail}")),
        bad("JSON serialization", "jws form", form, one.wrap(
            json.dumps({"protected": head, "payload": body, "signature": tail}))),
        bad("padding", "base64url", form, one.wrap(f"{right}==")),
        bad("white space", "base64url", form, one.wrap(f"{head}.{body}\n.{tail}")),
        bad("standard alphabet", "base64url", form, one.wrap(f"{head}+/.{body}.{tail}")),
        bad("trailing bits", "base64url", form, one.wrap(f"{head}.{body}.{other_bits}")),
        bad("short signature", "jws form", form, one.wrap(f"{head}.{body}.{b64(bytes(63))}")),
        bad("payload is an array", "json", form, one.raw(b"[]")),
        bad("payload is empty", "json", form, one.raw(b"")),
        bad("duplicate member", "json", form, one.raw(plain[:-1].encode() + b',"iat":1,"iat":1}')),
        bad("duplicate member, escaped", "json", form,
            one.raw(plain[:-1].encode() + b',"x":1,"\\u0078":2}')),
        bad("float", "json", form, one.make(x=1.0)),
        bad("exponent", "json", form, one.raw(plain[:-1].encode() + b',"x":1e3}')),
        bad("integer beyond 2^53-1", "json", form, one.make(x=2**53)),
        bad("NaN", "json", form, one.raw(plain[:-1].encode() + b',"x":NaN}')),
        bad("nine levels", "json", form, one.make(x=[[[[[[[[1]]]]]]]])),
        bad("byte order mark", "json", form, one.raw(bom)),
        bad("lone surrogate", "json", form, one.raw(plain[:-1].encode() + b',"x":"\\ud800"}')),
        bad("invalid UTF-8", "json", form, one.raw(plain[:-1].encode() + b',"x":"\xff"}')),
        bad("deep behind a duplicate", "json", form,
            one.raw(plain[:-1].encode() + b',"x":' + b"[" * 1010 + b"]" * 1010 + b',"x":1}')),
    ]  # fmt: skip


def foreign_signatures(one: Signed) -> list[Case]:
    head, body, tail = one.jws().split(".")
    scalar = int.from_bytes(one.key.sign(f"{head}.{body}".encode())[32:], "little")
    order = 2**252 + 27742317777372353535851937790883648493
    raw = one.key.sign(f"{head}.{body}".encode())
    malleable = raw[:32] + (scalar + order).to_bytes(32, "little")
    return [
        bad("signed by somebody else", "signature", "bad_signature", one.make(key=MALLORY)),
        bad("all zeros", "signature", "bad_signature", one.wrap(f"{head}.{body}.{b64(bytes(64))}")),
        bad("S is not canonical", "signature", "bad_signature",
            one.wrap(f"{head}.{body}.{b64(malleable)}")),
        bad("one bit changed", "signature", "bad_signature",
            one.wrap(f"{head}.{body}.{b64(raw[:-1] + bytes([raw[-1] ^ 1]))}")),
        bad("signature of another payload", "signature", "bad_signature",
            one.wrap(f"{head}.{b64(json.dumps({**one.payload, 'x': 1}).encode())}.{tail}")),
    ]  # fmt: skip


# ---------------------------------------------------------------- envelopes

BODY = b"hello"
ID = uuid7(NOW * 1000)


def described(body: bytes, cty: str = "text/plain") -> dict[str, Any]:
    return {"cty": cty, "len": len(body), "sha256": b64(hashlib.sha256(body).digest())}


ENVELOPE = Signed(
    "agent-envelope+jws",
    {"v": 1, "id": ID, "from": ALICE.did, "to": BOB.did, "created_time": NOW,
     "expires_time": NOW + DAY, "kv": 1, "body": described(BODY)},
    ALICE,
    lambda jws: {"jws": jws, "body": b64(BODY)},
)  # fmt: skip


def good_envelope(name: str, given: dict[str, str], body: bytes = BODY, **more: Any) -> Case:
    payload = json.loads(base64.urlsafe_b64decode(given["jws"].split(".")[1] + "=="))
    kept = {member: payload[member] for member in ("id", "from", "to", "created_time",
                                                   "expires_time")}  # fmt: skip
    key = hashlib.sha256(f"{payload['from']}|{payload['id']}".encode()).digest()[:16]
    meant = {
        "eid": eid_of(given["jws"]),
        **kept,
        "body_hex": body.hex(),
        "dedupe_key_hex": key.hex(),
    }
    return good(name, given, {**meant, **more})


def valid_envelopes() -> list[Case]:
    loose = json.dumps(dict(reversed(ENVELOPE.payload.items())), indent=2).encode()
    inside = {"from": ALICE.did, "to": BOB.did, "id": ID, "cty": "text/plain", "body": b64(BODY)}
    box = sealed_for(BOB.public, json.dumps(inside).encode())
    sealed = ENVELOPE.jws(body=described(box, "application/vnd.agent-relay.sealed"))
    return [
        good_envelope("plain", ENVELOPE.make()),
        good_envelope("alg EdDSA", ENVELOPE.make(header={"alg": "EdDSA"})),
        good_envelope("other member order and white space", ENVELOPE.raw(loose)),
        good_envelope("header in another order", {
            "jws": compact({"typ": ENVELOPE.typ, "kid": ALICE.kid, "alg": "Ed25519"},
                           ENVELOPE.payload, ALICE), "body": b64(BODY)}),
        good_envelope("type, thid and pthid", ENVELOPE.make(
            type="https://example.org/note", thid="t" * 64, pthid="p")),
        good_envelope("null where a member may be absent", ENVELOPE.make(type=None, thid=None)),
        good_envelope("unknown members are ignored", ENVELOPE.make(x={"any": [1, True, None]})),
        good_envelope("non-ASCII", ENVELOPE.make(thid="Grüße ✓ 😀")),
        good_envelope("the longest lifetime", ENVELOPE.make(expires_time=NOW + 30 * DAY)),
        good_envelope("the shortest lifetime", ENVELOPE.make(expires_time=NOW + 1)),
        good_envelope("300 s ahead", ENVELOPE.make(
            created_time=NOW + 300, id=uuid7((NOW + 300) * 1000))),
        good_envelope("id 300 s before created_time", ENVELOPE.make(id=uuid7((NOW - 300) * 1000))),
        good_envelope("to itself", ENVELOPE.make(to=ALICE.did)),
        good_envelope("no body", {"jws": ENVELOPE.jws(body=described(b"")), "body": ""}, b""),
        good_envelope("sealed", {"jws": sealed, "body": b64(box)}, box,
                      sealed={"opens_with": "bob", "cty": "text/plain", "body_hex": BODY.hex()}),
    ]  # fmt: skip


SMALL_ORDER = did_key(bytes.fromhex(
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"))  # fmt: skip
NO_POINT = did_key((2).to_bytes(32, "little"))
MIXED_ORDER = did_key(sodium.crypto_core_ed25519_add(ALICE.public, bytes.fromhex(
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")))  # fmt: skip


def invalid_envelopes() -> list[Case]:
    form = "bad_envelope"
    big = b"x" * (256 * 1024 + 1)
    whole = ENVELOPE.make()

    def body(**changes: Any) -> Any:
        return ENVELOPE.make(body=changed(described(BODY), changes))

    return [
        *broken_jws(ENVELOPE, form),
        *foreign_signatures(ENVELOPE),
        bad("no object", "object", form, []),
        bad("no jws", "object", form, {"body": ""}),
        bad("no body", "object", form, {"jws": whole["jws"]}),
        bad("jws is a number", "object", form, {"jws": 1, "body": ""}),
        bad("version 2", "version", "unsupported", ENVELOPE.make(v=2)),
        bad("a member that must be understood", "version", "unsupported", ENVELOPE.make(must_x=1)),
        bad("the same, in body", "version", "unsupported", body(must_x=1)),
        bad("the same, beside the JWS", "version", "unsupported", {**whole, "must_x": 1}),
        bad("another DID method", "did", "unsupported", ENVELOPE.make(to="did:web:example.org")),
        bad("an X25519 did:key", "did", "unsupported",
            ENVELOPE.make(to=did_key(BOB.public, b"\xec\x01"))),
        bad("DID URL with a fragment", "did", form, ENVELOPE.make(to=BOB.kid)),
        bad("DID URL with a query", "did", form, ENVELOPE.make(to=BOB.did + "?x=1")),
        bad("upper-case method", "did", form, ENVELOPE.make(to=BOB.did.replace("key", "KEY", 1))),
        bad("DID of 513 bytes", "did", form, ENVELOPE.make(to="did:web:" + "x" * 505)),
        bad("small-order key", "did", form, ENVELOPE.make(to=SMALL_ORDER)),
        bad("key with a small-order part", "did", form, ENVELOPE.make(to=MIXED_ORDER)),
        bad("key that is no point", "did", form, ENVELOPE.make(to=NO_POINT)),
        bad("two recipients", "did", form, ENVELOPE.make(to=[BOB.did, ALICE.did])),
        bad("kid of somebody else", "kid", form, ENVELOPE.make(header={"kid": MALLORY.kid})),
        bad("kid without a fragment", "kid", form, ENVELOPE.make(header={"kid": ALICE.did})),
        bad("from somebody else", "kid", form, ENVELOPE.make(**{"from": MALLORY.did})),
        bad("key version 2", "kid", form, ENVELOPE.make(kv=2)),
        bad("UUIDv4", "id", form, ENVELOPE.make(id="f81d4fae-7dec-4d0a-a765-00a0c91e6bf6")),
        bad("upper-case UUID", "id", form, ENVELOPE.make(id=ID.upper())),
        bad("id 301 s too early", "id", form, ENVELOPE.make(id=uuid7((NOW - 301) * 1000))),
        bad("id 301 s too late", "id", form, ENVELOPE.make(id=uuid7((NOW + 301) * 1000))),
        bad("no id", "id", form, ENVELOPE.make(id=...)),
        bad("no lifetime", "lifetime", form, ENVELOPE.make(expires_time=NOW)),
        bad("negative lifetime", "lifetime", form, ENVELOPE.make(expires_time=NOW - 1)),
        bad("30 days and 1 s", "lifetime", form, ENVELOPE.make(expires_time=NOW + 30 * DAY + 1)),
        bad("time as text", "lifetime", form, ENVELOPE.make(created_time=str(NOW))),
        bad("301 s ahead", "clock", "not_yet_valid",
            ENVELOPE.make(created_time=NOW + 301, id=uuid7((NOW + 301) * 1000))),
        bad("thid of 65 characters", "bounds", form, ENVELOPE.make(thid="t" * 65)),
        bad("type of 257 characters", "bounds", form, ENVELOPE.make(type="t" * 257)),
        bad("empty type", "bounds", form, ENVELOPE.make(type="")),
        bad("another length", "body", form, body(len=4)),
        bad("length as text", "body", form, body(len="5")),
        bad("no hash", "body", form, body(sha256=...)),
        bad("hash of 31 bytes", "body", form, body(sha256=b64(bytes(31)))),
        bad("another body of this length", "body", form, {**whole, "body": b64(b"jello")}),
        bad("body with padding", "body", form, {**whole, "body": b64(BODY) + "="}),
        bad("no media type", "body", form, body(cty=...)),
        bad("JWS of more than 10 KiB", "size", "too_large", ENVELOPE.make(x="x" * 10_000)),
        bad("body of more than 256 KiB", "size", "too_large",
            {"jws": ENVELOPE.jws(body=described(big)),
             "body": {"repeat": "eHh4", "times": 87_382}}),
    ]  # fmt: skip


# ---------------------------------------------------------------- logins

NONCE, CNONCE = b64(b"n" * 32), b64(b"c" * 32)
AUTH = Signed(
    "agent-auth+jws",
    {"aud": RELAY.did, "url": URL, "nonce": NONCE, "cnonce": CNONCE, "role": "agent", "iat": NOW,
     "exp": NOW + 60},
    ALICE,
    lambda jws: {"jws": jws},
)  # fmt: skip
CLAIMS = {"sub": ALICE.did, "aud": RELAY.did, "url": URL, "nonce": NONCE, "cnonce": CNONCE,
          "role": "agent"}  # fmt: skip


def valid_auth() -> list[Case]:
    return [
        good("agent", AUTH.make(), CLAIMS),
        good("peer", AUTH.make(role="peer"), {**CLAIMS, "role": "peer"}),
        good("alg EdDSA", AUTH.make(header={"alg": "EdDSA"}), CLAIMS),
        good("one second", AUTH.make(exp=NOW + 1), CLAIMS),
        good("a clock 300 s ahead", AUTH.make(iat=NOW + 300, exp=NOW + 360), CLAIMS),
        good("a clock 300 s behind", AUTH.make(iat=NOW - 360, exp=NOW - 300), CLAIMS),
        good("unknown members are ignored", AUTH.make(x=[1]), CLAIMS),
    ]


def invalid_auth() -> list[Case]:
    form = "bad_frame"
    return [
        *broken_jws(AUTH, form, typ="agent-envelope+jws"),
        *foreign_signatures(AUTH),
        bad("for another relay", "audience", "wrong_relay", AUTH.make(aud=MALLORY.did)),
        bad("for another origin", "audience", "wrong_relay", AUTH.make(url="https://evil.example")),
        bad("origin with a path", "audience", "wrong_relay", AUTH.make(url=URL + "/")),
        bad("another nonce", "nonce", "bad_signature", AUTH.make(nonce=b64(b"o" * 32))),
        bad("nonce of 31 bytes", "nonce", form, AUTH.make(nonce=b64(bytes(31)))),
        bad("no cnonce", "nonce", form, AUTH.make(cnonce=...)),
        bad("another role", "bounds", form, AUTH.make(role="admin")),
        bad("61 seconds", "lifetime", form, AUTH.make(exp=NOW + 61)),
        bad("no time at all", "lifetime", form, AUTH.make(exp=NOW)),
        bad("301 s ahead", "clock", "not_yet_valid", AUTH.make(iat=NOW + 301, exp=NOW + 302)),
        bad("too old", "clock", "expired", AUTH.make(iat=NOW - 361, exp=NOW - 301)),
        bad("must be understood", "version", "unsupported", AUTH.make(must_x=1)),
        bad("another DID method", "did", "unsupported",
            AUTH.make(header={"kid": "did:web:example.org#key"})),
    ]  # fmt: skip


STANDING = {"epoch": "e1", "cursor": 3, "head": 9}
PROOF = Signed(
    "relay-proof+jws",
    {**{name: value for name, value in CLAIMS.items() if name != "aud"}, **STANDING, "iat": NOW,
     "exp": NOW + 60},
    RELAY,
    lambda jws: {"proof": jws, "welcome": STANDING},
)  # fmt: skip


def valid_proof() -> list[Case]:
    nothing = {"epoch": None, "cursor": 0, "head": 0}
    return [
        good("an inbox", PROOF.make(), {}),
        good("send-only", {"proof": PROOF.jws(**nothing), "welcome": nothing}, {}),
        good("unknown members are ignored", PROOF.make(x="y"), {}),
    ]


def invalid_proof() -> list[Case]:
    wrong = "wrong_relay"
    return [
        *broken_jws(PROOF, "bad_frame"),
        *foreign_signatures(PROOF),
        bad("of another agent", "login", wrong, PROOF.make(sub=MALLORY.did)),
        bad("of another nonce", "login", wrong, PROOF.make(nonce=CNONCE)),
        bad("of another cnonce", "login", wrong, PROOF.make(cnonce=NONCE)),
        bad("of another origin", "login", wrong, PROOF.make(url="https://evil.example")),
        bad("of another role", "login", wrong, PROOF.make(role="peer")),
        bad("another epoch than welcome", "standing", wrong, PROOF.make(epoch="e2")),
        bad("another cursor than welcome", "standing", wrong, PROOF.make(cursor=4)),
        bad("another head than welcome", "standing", wrong, PROOF.make(head=8)),
        bad("by another relay", "signature", "bad_signature",
            PROOF.make(header={"kid": MALLORY.kid}, key=MALLORY)),
    ]  # fmt: skip


# ---------------------------------------------------------------- receipts and bounces

EID = eid_of(ENVELOPE.jws())
ITEM = {"eid": EID, "to": BOB.did, "epoch": "e1", "pos": "opaque", "expires": NOW + DAY,
        "dup": False, "custody": "inbox"}  # fmt: skip
RECEIPT = Signed(
    "agent-receipt+jws",
    {"v": 1, "relay": RELAY.did, "at": NOW, "durability": "fsync", "items": [ITEM]},
    RELAY,
    lambda jws: {"receipt": jws},
)
BOUNCED = {"eid": EID, "to": BOB.did, "reason": "expired", "maybe_delivered": False}
BOUNCE = Signed(
    "agent-bounce+jws",
    {"v": 1, "relay": RELAY.did, "items": [BOUNCED]},
    RELAY,
    lambda jws: {"bounce": jws},
)


def digest_of(*eids: str) -> str:
    return b64(hashlib.sha256("".join(sorted(eids)).encode()).digest())


def valid_receipts() -> list[Case]:
    two = [ITEM, {**ITEM, "dup": True, "custody": "outbox"}]
    said = {"at": NOW, "durability": "fsync", "items": [ITEM]}
    handed = {"mig_id": "m", "count": 1, "digest": digest_of(ITEM["eid"])}
    return [
        good("receipt", RECEIPT.make(), said),
        good("duplicate, and an outbox", RECEIPT.make(items=two), {**said, "items": two}),
        good("a store that cannot promise", RECEIPT.make(durability="unverified"),
             {**said, "durability": "unverified"}),
        good("memory", RECEIPT.make(durability="memory"), {**said, "durability": "memory"}),
        good("unknown members are ignored", RECEIPT.make(x=1), said),
        good("of a hand-off", RECEIPT.make(**handed), {**said, "mig_id": "m"}),
        good("bounce", BOUNCE.make(), {"items": [BOUNCED]}),
        good("bounce of what may have arrived", BOUNCE.make(
            items=[{**BOUNCED, "maybe_delivered": True}]),
            {"items": [{**BOUNCED, "maybe_delivered": True}]}),
    ]  # fmt: skip


def invalid_receipts() -> list[Case]:
    form = "bad_frame"

    def item(**changes: Any) -> Any:
        return RECEIPT.make(items=[changed(ITEM, changes)])

    def bounced(**changes: Any) -> Any:
        return BOUNCE.make(items=[changed(BOUNCED, changes)])

    return [
        *broken_jws(RECEIPT, form),
        *foreign_signatures(RECEIPT),
        bad("by another relay", "signature", "bad_signature",
            RECEIPT.make(header={"kid": MALLORY.kid}, key=MALLORY)),
        bad("names another relay", "relay", form, RECEIPT.make(relay=MALLORY.did)),
        bad("version 2", "version", form, RECEIPT.make(v=2)),
        bad("a durability that nobody knows", "bounds", form, RECEIPT.make(durability="everysec")),
        bad("no items", "bounds", form, RECEIPT.make(items=...)),
        bad("a custody that nobody knows", "bounds", form, item(custody="pocket")),
        bad("dup is a number", "bounds", form, item(dup=0)),
        bad("no position", "bounds", form, item(pos=...)),
        bad("of a hand-off without a name", "bounds", form, RECEIPT.make(mig_id="")),
        bad("of a hand-off without sums", "bounds", form, RECEIPT.make(mig_id="m")),
        bad("of a hand-off with another count", "bounds", form,
            RECEIPT.make(mig_id="m", count=2, digest=digest_of(ITEM["eid"]))),
        bad("of a hand-off with another digest", "bounds", form,
            RECEIPT.make(mig_id="m", count=1, digest=digest_of())),
        bad("of a hand-off that is a number", "bounds", form, RECEIPT.make(mig_id=7)),
        bad("a bounce as a receipt", "purpose", form, {"receipt": BOUNCE.jws()}),
        bad("a receipt as a bounce", "purpose", form, {"bounce": RECEIPT.jws()}),
        bad("257 bounces", "bounds", form, BOUNCE.make(items=[BOUNCED] * 257)),
        bad("bounce without a reason", "bounds", form, bounced(reason="")),
        bad("bounce of half an eid", "bounds", form, bounced(eid=EID[:22])),
        bad("bounce that does not say", "bounds", form, bounced(maybe_delivered=...)),
        bad("forged bounce", "signature", "bad_signature", BOUNCE.make(key=MALLORY)),
    ]  # fmt: skip


# ---------------------------------------------------------------- endpoint records

HOME = {"did": RELAY.did, "url": URL, "prio": 0}
LEFT = {"did": RELAY.did, "url": URL, "until": NOW + DAY}
RECORD = Signed(
    "agent-endpoints+jws",
    {"v": 1, "did": ALICE.did, "kv": 1, "seq": NOW * 1000, "iat": NOW, "exp": NOW + 7 * DAY,
     "ttl": 300, "status": "active", "relays": [HOME], "drain": [], "handles": []},
    ALICE,
    lambda jws: {"record": jws},
)  # fmt: skip


def good_record(name: str, **changes: Any) -> Case:
    payload, jws = changed(RECORD.payload, changes), RECORD.jws(**changes)
    digest = hashlib.sha256(jws.rpartition(".")[0].encode()).hexdigest()
    kept = {member: payload[member] for member in ("did", "seq", "status", "relays")}
    return good(name, {"record": jws}, {**kept, "order": [payload["kv"], payload["seq"], digest]})


def valid_records() -> list[Case]:
    """Any two of them merge to the one whose order is greater."""
    five = [{**HOME, "prio": n} for n in range(5)]
    return [
        good_record("active"),
        good_record("the same seq, other bytes", ttl=301),
        good_record("the same seq, other bytes again", ttl=302),
        good_record("parked", status="parked", seq=NOW * 1000 + 1),
        good_record("no home", relays=[]),
        good_record("five homes", relays=five),
        good_record("handles", handles=["alice@relay.example", "alice.example"]),
        good_record("a key to seal for", enc=b64(bytes(range(32)))),
        good_record("the highest seq of its time", seq=(NOW + 600) * 1000),
        good_record("issued 300 s ahead", iat=NOW + 300, exp=NOW + 301),
        good_record("expired, and still in force", iat=NOW - 9 * DAY, exp=NOW - 2 * DAY,
                    seq=(NOW - 9 * DAY) * 1000),
        good_record("unknown members are ignored", x={"y": 1}),
        good_record("relays that were left", drain=[LEFT] * 5),
        good_record("nothing is said of relays that were left", drain=...),
        good_record("stale for not quite 90 days", iat=NOW - 97 * DAY + 1, exp=NOW - 90 * DAY + 1,
                    seq=(NOW - 97 * DAY) * 1000),
    ]  # fmt: skip


def invalid_records() -> list[Case]:
    form = "bad_frame"
    web = {**HOME, "did": "did:web:example.org"}
    return [
        *broken_jws(RECORD, form),
        *foreign_signatures(RECORD),
        bad("a seq that locks its agent out", "seq", form, RECORD.make(seq=2**53 - 1)),
        bad("a seq too far ahead", "seq", form, RECORD.make(seq=(NOW + 600) * 1000 + 1)),
        bad("a negative seq", "seq", form, RECORD.make(seq=-1)),
        bad("issued 301 s ahead", "clock", "not_yet_valid", RECORD.make(iat=NOW + 301)),
        bad("more than 7 days", "lifetime", form, RECORD.make(exp=NOW + 7 * DAY + 1)),
        bad("no time at all", "lifetime", form, RECORD.make(exp=NOW)),
        bad("kid of somebody else", "kid", form, RECORD.make(header={"kid": MALLORY.kid})),
        bad("of somebody else", "kid", form, RECORD.make(did=MALLORY.did)),
        bad("key version 2", "kid", form, RECORD.make(kv=2)),
        bad("version 2", "version", "unsupported", RECORD.make(v=2)),
        bad("must be understood", "version", "unsupported", RECORD.make(must_x=1)),
        bad("another DID method", "did", "unsupported", RECORD.make(did="did:web:example.org")),
        bad("a home of another DID method", "did", "unsupported", RECORD.make(relays=[web])),
        bad("a home that is no DID", "did", form, RECORD.make(relays=[{**HOME, "did": "relay"}])),
        bad("six homes", "bounds", form, RECORD.make(relays=[HOME] * 6)),
        bad("a home without a url", "bounds", form,
            RECORD.make(relays=[changed(HOME, {"url": ...})])),
        bad("a url with a path", "url", form, RECORD.make(relays=[{**HOME, "url": URL + "/x"}])),
        bad("a url of no scheme", "url", form, RECORD.make(relays=[{**HOME, "url": URL[8:]}])),
        bad("asleep", "bounds", form, RECORD.make(status="asleep")),
        bad("nine handles", "bounds", form, RECORD.make(handles=["h"] * 9)),
        bad("handle that is a number", "bounds", form, RECORD.make(handles=[1])),
        bad("half a key", "bounds", form, RECORD.make(enc=b64(bytes(16)))),
        bad("more than 4 KiB", "size", form, RECORD.make(x="x" * 4096)),
        bad("six relays that were left", "bounds", form, RECORD.make(drain=[LEFT] * 6)),
        bad("a relay that was left, for ever", "bounds", form,
            RECORD.make(drain=[changed(LEFT, {"until": ...})])),
        bad("a relay that was left, of no url", "url", form,
            RECORD.make(drain=[{**LEFT, "url": "relay"}])),
        bad("stale for 90 days", "clock", "expired",
            RECORD.make(iat=NOW - 97 * DAY, exp=NOW - 90 * DAY, seq=(NOW - 97 * DAY) * 1000)),
    ]  # fmt: skip


# ---------------------------------------------------------------- relay information

INFO = Signed(
    "agent-relay-info+jws",
    {"v": 1, "did": RELAY.did, "iat": NOW, "exp": NOW + 7 * DAY, "url": URL,
     "software": "did-relay", "version": "1.0.0",
     "limits": {"jws": 10240, "body": 262144, "frame": 2097152, "envelopes": 256},
     "retention_s": 30 * DAY, "registration": "open", "federation": "closed",
     "durability": "fsync", "peers": 3, "contact": "mailto:relay@example.org"},
    RELAY,
    lambda jws: {"info": jws},
)  # fmt: skip


def good_info(name: str, **changes: Any) -> Case:
    payload, jws = changed(INFO.payload, changes), INFO.jws(**changes)
    digest = hashlib.sha256(jws.rpartition(".")[0].encode()).hexdigest()
    kept = {member: payload[member] for member in ("did", "url", "federation", "peers", "limits")}
    return good(name, {"info": jws}, {**kept, "order": [payload["iat"], digest]})


def valid_relay_info() -> list[Case]:
    """Any two of them merge to the one whose order is greater."""
    return [
        good_info("federates with those that were added"),
        good_info("the same iat, other bytes", peers=4),
        good_info("federates with any", federation="open"),
        good_info("federates with none", federation="off", peers=0),
        good_info("nobody to ask", contact=None),
        good_info("without a contact", contact=...),
        good_info("issued 300 s ahead", iat=NOW + 300, exp=NOW + 301),
        good_info("expired 299 s ago", iat=NOW - DAY, exp=NOW - 299),
        good_info("on a port", url="http://127.0.0.1:8080"),
        good_info("unknown members are ignored", x={"y": 1}),
    ]


def invalid_relay_info() -> list[Case]:
    form = "bad_frame"
    return [
        *broken_jws(INFO, form),
        *foreign_signatures(INFO),
        bad("issued 301 s ahead", "clock", "not_yet_valid", INFO.make(iat=NOW + 301)),
        bad("expired 300 s ago", "clock", "expired", INFO.make(iat=NOW - DAY, exp=NOW - 300)),
        bad("more than 7 days", "lifetime", form, INFO.make(exp=NOW + 7 * DAY + 1)),
        bad("no time at all", "lifetime", form, INFO.make(exp=NOW)),
        bad("without iat", "lifetime", form, INFO.make(iat=...)),
        bad("without exp", "lifetime", form, INFO.make(exp=...)),
        bad("kid of somebody else", "kid", form, INFO.make(header={"kid": MALLORY.kid})),
        bad("of somebody else", "kid", form, INFO.make(did=MALLORY.did)),
        bad("version 2", "version", "unsupported", INFO.make(v=2)),
        bad("must be understood", "version", "unsupported", INFO.make(must_x=1)),
        bad("another DID method", "did", "unsupported", INFO.make(did="did:web:example.org")),
        bad("without a url", "url", form, INFO.make(url=...)),
        bad("a url with a path", "url", form, INFO.make(url=URL + "/x")),
        bad("a url with a name in it", "url", form, INFO.make(url="https://a@relay.example")),
        bad("federates with some", "bounds", form, INFO.make(federation="some")),
        bad("fewer than no peers", "bounds", form, INFO.make(peers=-1)),
        bad("limits that are none", "bounds", form, INFO.make(limits=[])),
        bad("more than 4 KiB", "size", form, INFO.make(x="x" * 4096)),
    ]


# ---------------------------------------------------------------- moving an inbox

MIG_ID = uuid7(NOW * 1000, "move")
OTHER_URL = "https://other.example"
SOURCE, TARGET = {"did": RELAY.did, "url": URL}, {"did": MALLORY.did, "url": OTHER_URL}
NEXT = {"seq": NOW * 1000 + 1, "relays": [{**TARGET, "prio": 0}]}
ORDER = Signed(
    "agent-migrate+jws",
    {"v": 1, "mig_id": MIG_ID, "did": ALICE.did, "seq": NOW * 1000, "from": SOURCE, "to": TARGET,
     "record": RECORD.jws(**NEXT), "iat": NOW, "exp": NOW + DAY},
    ALICE,
    lambda jws: {"order": jws},
)  # fmt: skip


def good_order(name: str, **changes: Any) -> Case:
    payload = changed(ORDER.payload, changes)
    kept = {member: payload[member] for member in ("mig_id", "did", "seq", "from", "to", "record")}
    return good(name, ORDER.make(**changes), kept)


def valid_orders() -> list[Case]:
    return [
        good_order("from one relay to another"),
        good_order("for one second", exp=NOW + 1),
        good_order("the highest seq of its time", seq=(NOW + 600) * 1000),
        good_order("issued 300 s ahead", iat=NOW + 300, exp=NOW + 301),
        good_order("to a port", to={**TARGET, "url": "http://127.0.0.1:8080"},
                   record=RECORD.jws(**{**NEXT, "relays": [
                       {**TARGET, "url": "http://127.0.0.1:8080", "prio": 0}]})),
        good_order("unknown members are ignored", x={"y": 1}),
    ]  # fmt: skip


def invalid_orders() -> list[Case]:
    form = "bad_frame"
    both = [{**TARGET, "prio": 0}, {**HOME, "prio": 1}]

    def record(key: Key | None = None, **changes: Any) -> Any:
        return ORDER.make(record=RECORD.jws(key=key, **{**NEXT, **changes}))

    return [
        *broken_jws(ORDER, form),
        *foreign_signatures(ORDER),
        bad("more than 24 hours", "lifetime", form, ORDER.make(exp=NOW + DAY + 1)),
        bad("no time at all", "lifetime", form, ORDER.make(exp=NOW)),
        bad("over", "clock", "expired", ORDER.make(iat=NOW - 60, exp=NOW)),
        bad("issued 301 s ahead", "clock", "not_yet_valid",
            ORDER.make(iat=NOW + 301, exp=NOW + 302)),
        bad("a seq too far ahead", "seq", form, ORDER.make(seq=(NOW + 600) * 1000 + 1)),
        bad("no seq", "seq", form, ORDER.make(seq=...)),
        bad("UUIDv4", "id", form, ORDER.make(mig_id="f81d4fae-7dec-4d0a-a765-00a0c91e6bf6")),
        bad("upper-case UUID", "id", form, ORDER.make(mig_id=MIG_ID.upper())),
        bad("to where it is", "relay", form, ORDER.make(**{"from": TARGET})),
        bad("a relay of another DID method", "did", "unsupported",
            ORDER.make(**{"from": {**SOURCE, "did": "did:web:example.org"}})),
        bad("a url with a path", "url", form, ORDER.make(**{"from": {**SOURCE, "url": URL + "/"}})),
        bad("no url", "url", form, ORDER.make(to=changed(TARGET, {"url": ...}))),
        bad("of somebody else", "kid", form, ORDER.make(did=BOB.did)),
        bad("version 2", "version", "unsupported", ORDER.make(v=2)),
        bad("must be understood", "version", "unsupported", ORDER.make(must_x=1)),
        bad("no record", "record", form, ORDER.make(record=...)),
        bad("a record that names the old relay, too", "record", form, record(relays=both)),
        bad("a record that names nobody", "record", form, record(relays=[])),
        bad("a record that names the old relay", "record", form, record(relays=[HOME])),
        bad("a record with another url", "record", form,
            record(relays=[{**TARGET, "url": URL, "prio": 0}])),
        bad("a record of somebody else", "record", form, ORDER.make(record=compact(
            {"alg": "Ed25519", "kid": BOB.kid, "typ": RECORD.typ},
            {**RECORD.payload, **NEXT, "did": BOB.did}, BOB))),
        bad("a record that somebody else signed", "signature", "bad_signature", record(MALLORY)),
        bad("a login as a record", "record", form, ORDER.make(record=AUTH.jws())),
        bad("more than 8 KiB", "size", form, ORDER.make(x="x" * 8192)),
    ]  # fmt: skip


TALLY = {"was": 5, "was_bytes": 4000, "late": 1, "waiting": 2, "moved": 3, "acked": 0, "expired": 1,
         "refused": 0, "corrupt": 0, "kept": 0, "dups": 0}  # fmt: skip
STATEMENT = Signed(
    "relay-handoff+jws",
    {"v": 1, "relay": RELAY.did, "did": ALICE.did, "mig_id": MIG_ID, "mode": "frozen", "at": NOW,
     "digested": False, "handed": True, "named": True, "missing": [], "tally": TALLY, "why": ""},
    RELAY,
    lambda jws: {"statement": jws},
)  # fmt: skip


def good_statement(name: str, **changes: Any) -> Case:
    return good(name, STATEMENT.make(**changes), changed(STATEMENT.payload, {"v": ..., **changes}))


def valid_statements() -> list[Case]:
    kept = {**dict.fromkeys(TALLY, 0), "kept": 3, "dups": 1}
    plain = changed(STATEMENT.payload, {"v": ...})
    return [
        good_statement("of a source that hands over"),
        good_statement("of a source that cannot", handed=False, why="peer_unreachable: no answer"),
        good_statement("of a target", mode="incoming", handed=False, digested=True, tally=kept),
        good_statement("of a home that waits for a digest", mode="active", missing=[MALLORY.did]),
        good_statement("of no hand-off", mode="none", mig_id="", handed=False, named=False,
                       tally=dict.fromkeys(TALLY, 0)),
        good("unknown members are ignored", STATEMENT.make(x=1), plain),
    ]  # fmt: skip


def invalid_statements() -> list[Case]:
    form = "bad_frame"
    return [
        *broken_jws(STATEMENT, form),
        *foreign_signatures(STATEMENT),
        bad("by another relay", "signature", "bad_signature",
            STATEMENT.make(header={"kid": MALLORY.kid}, key=MALLORY)),
        bad("names another relay", "relay", "bad_signature", STATEMENT.make(relay=MALLORY.did)),
        bad("version 2", "version", form, STATEMENT.make(v=2)),
        bad("a mode that nobody knows", "bounds", form, STATEMENT.make(mode="asleep")),
        bad("handed is a number", "bounds", form, STATEMENT.make(handed=1)),
        bad("no tally", "bounds", form, STATEMENT.make(tally=...)),
        bad("a tally without what waits", "bounds", form,
            STATEMENT.make(tally=changed(TALLY, {"waiting": ...}))),
        bad("fewer than none", "bounds", form, STATEMENT.make(tally={**TALLY, "moved": -1})),
        bad("missing relays that are none", "bounds", form, STATEMENT.make(missing=[1])),
        bad("65 missing relays", "bounds", form, STATEMENT.make(missing=[RELAY.did] * 65)),
        bad("a receipt as a statement", "purpose", form, {"statement": RECEIPT.jws()}),
    ]  # fmt: skip


# ---------------------------------------------------------------- frames


def frame(side: str, said: Any) -> dict[str, Any]:
    """Said by ``side``: JSON as text, or any bytes as base64url."""
    if isinstance(said, bytes):
        return {"from": side, "base64url": b64(said)}
    text = said if isinstance(said, str) else json.dumps(said, separators=(",", ":"))
    return {"from": side, "text": text}


def spoken(side: str, said: dict[str, Any], text: str | None = None, name: str = "") -> Case:
    return good(name or f"{said['t']} of {side}", frame(side, text or said), {"frame": said})


def valid_frames() -> list[Case]:
    wire = ENVELOPE.make()
    pending = {"count": 1, "bytes": 900, "oldest_age": 5,
               "refused": {"count": 2, "first_at": NOW, "last_at": NOW}}  # fmt: skip
    welcome = {"t": "welcome", "inbox": True, "session": 7, **STANDING, "pending": pending,
               "window": {"count": 64, "bytes": 1_048_576}, "proof": PROOF.jws()}  # fmt: skip
    rejected = {"ref": "r2", "i": 0, "error": "inbox_full", "stored": "no", "detail": "full",
                "retry_after": 30}  # fmt: skip
    ack = {"t": "ack", "epoch": "e1", "upto": 3, "seqs": [5, 7],
           "refuse": [{"seq": 6, "code": "cannot_open"}]}  # fmt: skip
    bye = {"t": "bye", "error": "draining", "detail": "the node is shutting down", "retry_after": 1}
    return [
        spoken("relay", {"t": "hello", "relay": RELAY.did, "url": URL, "nonce": NONCE,
                         "limits": {"jws": 10_240, "body": 262_144, "frame": 2_097_152,
                                    "envelopes": 256}, "time": NOW}),
        spoken("agent", {"t": "auth", "jws": AUTH.jws(), "record": RECORD.jws()}),
        spoken("relay", welcome),
        spoken("agent", {"t": "submit", "ref": "r1", "envelopes": [wire]}),
        spoken("relay", {"t": "submitted", "refs": ["r1", "r2"], "receipt": RECEIPT.jws(),
                         "rejected": [rejected]}),
        spoken("relay", {"t": "deliver", "epoch": "e1", "items": [
            {"seq": 4, "redelivered": False, "envelope": wire}]}),
        spoken("relay", {"t": "gap", "epoch": "e1", "ranges": [
            {"from_seq": 5, "to_seq": 9, "reason": "expired"}]}),
        spoken("agent", ack),
        spoken("agent", {"t": "ack", "epoch": "e1", "upto": 0, "seqs": [], "refuse": []},
               '{"t":"ack","epoch":"e1"}', "an ack that leaves out what it can"),
        spoken("relay", {"t": "acked", "epoch": "e1", "upto": 3, "seqs": [5, 7], "refused": [6]}),
        spoken("agent", {"t": "status", "ref": "s", "items": [{"to": BOB.did, "id": ID}]}),
        spoken("relay", {"t": "statuses", "ref": "s", "items": [
            {"to": BOB.did, "id": ID, "state": "acked"}]}),
        spoken("agent", {"t": "resolve", "ref": "q", "did": BOB.did}),
        spoken("relay", {"t": "resolved", "ref": "q", "state": "found", "record": RECORD.jws(),
                         "stale": False}),
        spoken("agent", {"t": "publish", "ref": "p", "record": RECORD.jws()}),
        spoken("relay", {"t": "published", "ref": "p", "stored": True, "kv": 1, "seq": NOW * 1000}),
        spoken("agent", {"t": "rules", "ref": "w", "first_contact": "refuse",
                         "allow": [ALICE.did], "deny": [MALLORY.did], "forget": []}),
        spoken("agent", {"t": "rules", "ref": "w", "allow": [], "deny": [], "forget": []},
               '{"t":"rules","ref":"w"}', "rules that only asks"),
        spoken("relay", {"t": "ruled", "ref": "w", "first_contact": "refuse",
                         "allow": [ALICE.did], "deny": [MALLORY.did], "contacts": 3}),
        spoken("relay", {"t": "error", "error": "inbox_reset", "detail": "new epoch", "ref": "r1"}),
        *valid_peer_frames(wire),
        spoken("agent", bye),
        spoken("relay", bye),
        spoken("relay", bye, json.dumps({**bye, "x": [1], "record": None}, indent=1),
               "unknown and null members, white space"),
    ]  # fmt: skip


def valid_peer_frames(wire: Any) -> list[Case]:
    """What relays say to each other: the one that dialled reads and speaks as an agent does."""
    record, info, hash16 = RECORD.jws(), INFO.jws(), b64(bytes(range(16)))
    key = "key:" + BOB.did.removeprefix("did:key:")
    hops, status = [MALLORY.did, ALICE.did], {"to": BOB.did, "id": ID, "from": ALICE.did}
    answer = {"to": BOB.did, "id": ID, "state": "forwarded", "peer": MALLORY.did,
              "receipt": b64(bytes(32))}  # fmt: skip
    view = {"t": "view", "ref": "v", "state": "suspect", "since": NOW, "strikes": 2,
            "retry_after": 60, "reason": "no answer"}  # fmt: skip
    return [
        spoken("agent", {"t": "submit", "ref": "r1", "envelopes": [wire], "hops": hops,
                         "marked": [0]}, name="submit of a peer"),
        spoken("agent", {"t": "status", "ref": "s", "items": [status]}, name="status of a peer"),
        spoken("relay", {"t": "statuses", "ref": "s", "items": [answer]},
               name="statuses of what was forwarded"),
        spoken("agent", {"t": "gossip", "records": [record], "relays": [info]}),
        spoken("relay", {"t": "gossip", "ref": "w", "records": [record]}),
        spoken("relay", {"t": "gossip", "ref": "w"}, name="gossip of nothing"),
        spoken("agent", {"t": "digest", "ref": "d", "bits": 10, "buckets": []}),
        spoken("agent", {"t": "digest", "ref": "d", "bits": 16, "buckets": [0, 65_535]},
               name="digest of parts"),
        spoken("relay", {"t": "digests", "ref": "d", "bits": 10, "items": [[7, 1, hash16]]}),
        spoken("agent", {"t": "want", "ref": "w", "bits": 10, "bucket": 7}),
        spoken("agent", {"t": "want", "ref": "w", "bits": 10, "bucket": 7, "after": key},
               name="want the rest of a list"),
        spoken("agent", {"t": "want", "ref": "w", "agents": [key]}, name="want records"),
        spoken("agent", {"t": "want", "ref": "w", "relays": True}, name="want relays"),
        spoken("agent", {"t": "want", "ref": "w", "view": True}, name="want a view"),
        spoken("relay", {"t": "have", "ref": "w", "bits": 10, "bucket": 7,
                         "items": [[key, 1, NOW * 1000, hash16]], "more": False}),
        spoken("relay", view),
        *valid_handoff_frames(wire, key),
    ]  # fmt: skip


MIGRATE = {"t": "migrate", "ref": "m", "agent": ALICE.did, "handoff": MIG_ID,
           "evidence": ORDER.jws(), "whole": b64(bytes(range(32))), "number": 0,
           "total": 2}  # fmt: skip


def valid_handoff_frames(wire: Any, key: str) -> list[Case]:
    known = {"first_contact": "refuse", "allow": [key], "deny": [], "contacts": [key]}
    first = {**MIGRATE, "missing": [MALLORY.did], "floor": NOW // 3600, "doubts": b64(bytes(72)),
             "known": known}  # fmt: skip
    return [
        spoken("agent", {"t": "submit", "ref": "r1", "envelopes": [wire], "hops": [RELAY.did],
                         "marked": [0], "handoff": MIG_ID}, name="submit of a hand-off"),
        spoken("agent", first),
        spoken("agent", {**MIGRATE, "number": 1}, name="migrate with nothing more to say"),
        spoken("relay", {"t": "migrated", "ref": "m", "handoff": MIG_ID,
                         "whole": MIGRATE["whole"], "next": 1}),
    ]  # fmt: skip


def invalid_handoff_frames(no: Callable[..., Case], wire: Any) -> list[Case]:
    submit = {"t": "submit", "ref": "r", "envelopes": [wire]}
    known = {"first_contact": "accept", "allow": [], "deny": [], "contacts": []}
    done = {"t": "migrated", "ref": "m", "handoff": MIG_ID, "whole": MIGRATE["whole"], "next": 1}
    return [
        no("a hand-off without a name", "bounds", "agent", {**submit, "handoff": ""}),
        no("a hand-off that is a number", "bounds", "agent", {**submit, "handoff": 7}),
        no("a hand-off of 129 characters", "bounds", "agent", {**submit, "handoff": "h" * 129}),
        no("migrate of no agent", "bounds", "agent", changed(MIGRATE, {"agent": ...})),
        no("migrate without evidence", "bounds", "agent", changed(MIGRATE, {"evidence": ...})),
        no("evidence of 8,193 characters", "bounds", "agent", {**MIGRATE, "evidence": "e" * 8193}),
        no("half a hash of a digest", "bounds", "agent", {**MIGRATE, "whole": b64(bytes(16))}),
        no("page 2 of 2", "bounds", "agent", {**MIGRATE, "number": 2}),
        no("a digest of no pages", "bounds", "agent", {**MIGRATE, "total": 0}),
        no("a digest of 65 pages", "bounds", "agent", {**MIGRATE, "total": 65}),
        no("65 missing relays", "bounds", "agent", {**MIGRATE, "missing": [RELAY.did] * 65}),
        no("a floor below all hours", "bounds", "agent", {**MIGRATE, "floor": -1}),
        no("a doubt of 35 bytes", "bounds", "agent", {**MIGRATE, "doubts": b64(bytes(35))}),
        no("doubts with padding", "base64url", "agent",
           {**MIGRATE, "doubts": b64(bytes(36)) + "="}),
        no("known without first contact", "bounds", "agent",
           {**MIGRATE, "known": changed(known, {"first_contact": ...})}),
        no("known that is a list", "bounds", "agent", {**MIGRATE, "known": []}),
        no("known of 1,001 that are denied", "bounds", "agent",
           {**MIGRATE, "known": {**known, "deny": ["k"] * 1001}}),
        no("migrated without the next page", "bounds", "relay", changed(done, {"next": ...})),
        no("migrated beyond all pages", "bounds", "relay", {**done, "next": 65}),
        no("migrate of who is asked", "purpose", "relay", MIGRATE, "unsupported"),
    ]  # fmt: skip


def invalid_peer_frames(no: Callable[..., Case], wire: Any) -> list[Case]:
    submit = {"t": "submit", "ref": "r", "envelopes": [wire]}
    want, digest = {"t": "want", "ref": "w"}, {"t": "digest", "ref": "d"}
    have = {"t": "have", "ref": "w", "bits": 10, "bucket": 7, "more": False}
    return [
        no("hops that are no DIDs", "bounds", "agent", {**submit, "hops": [1]}),
        no("marked beyond the envelopes", "bounds", "agent", {**submit, "marked": [1]}),
        no("gossip of 1,025 records", "bounds", "agent", {"t": "gossip", "records": ["r"] * 1025}),
        no("a record of 4,097 characters", "bounds", "agent",
           {"t": "gossip", "records": ["r" * 4097]}),
        no("gossip of 65 relays", "bounds", "agent", {"t": "gossip", "relays": ["r"] * 65}),
        no("digest without bits", "bounds", "agent", digest),
        no("digest of a bucket that is not there", "bounds", "agent",
           {**digest, "bits": 10, "buckets": [1024]}),
        no("want nothing", "bounds", "agent", want),
        no("want two things", "bounds", "agent", {**want, "relays": True, "view": True}),
        no("want a bucket without bits", "bounds", "agent", {**want, "bucket": 1}),
        no("want 1,025 agents", "bounds", "agent", {**want, "agents": ["k"] * 1025}),
        no("a digest of 15 bytes", "bounds", "relay",
           {"t": "digests", "ref": "d", "bits": 10, "items": [[7, 1, b64(bytes(15))]]}),
        no("a row of three", "bounds", "relay", {**have, "items": [["k", 1, 1]]}),
        no("kv 0", "bounds", "relay", {**have, "items": [["k", 0, 1, b64(bytes(16))]]}),
        no("a membership that nobody knows", "bounds", "relay",
           {"t": "view", "ref": "v", "state": "well", "since": 0, "strikes": 0}),
        no("what only a peer says", "purpose", "relay", {**want, "view": True}, "unsupported"),
    ]  # fmt: skip


def invalid_frames() -> list[Case]:
    form, wire = "bad_frame", ENVELOPE.make()
    ack = {"t": "ack", "epoch": "e1", "upto": 1}

    def no(name: str, kind: str, side: str, said: Any, error: str = form) -> Case:
        return bad(name, kind, error, frame(side, said))

    return [
        no("empty", "json", "agent", ""),
        no("not an object", "json", "agent", "[]"),
        no("cut short", "json", "agent", '{"t":"ack"'),
        no("duplicate member", "json", "agent", '{"t":"ack","epoch":"a","epoch":"b"}'),
        no("float", "json", "agent", '{"t":"ack","epoch":"a","upto":1.0}'),
        no("integer beyond 2^53-1", "json", "agent",
           '{"t":"ack","epoch":"a","upto":9007199254740992}'),
        no("byte order mark", "json", "agent", b'\xef\xbb\xbf{"t":"ack","epoch":"a"}'),
        no("invalid UTF-8", "json", "agent", b'{"t":"ack","epoch":"\xff"}'),
        no("lone surrogate", "json", "agent", '{"t":"ack","epoch":"\\ud800"}'),
        no("nine levels", "json", "agent", {**ack, "x": [[[[[[[[1]]]]]]]]}),
        no("no t", "purpose", "agent", {"epoch": "e1"}),
        no("t is a number", "purpose", "agent", {"t": 1}),
        no("a frame that nobody knows", "purpose", "agent", {"t": "sing"}, "unsupported"),
        no("what only a relay says", "purpose", "agent", {"t": "hello"}, "unsupported"),
        no("what only an agent says", "purpose", "relay", ack, "unsupported"),
        no("must be understood", "version", "agent", {**ack, "must_x": 1}, "unsupported"),
        no("no envelopes", "bounds", "agent", {"t": "submit", "ref": "r", "envelopes": []}),
        no("257 envelopes", "bounds", "agent",
           {"t": "submit", "ref": "r", "envelopes": [{}] * 257}),
        no("ref of 65 characters", "bounds", "agent",
           {"t": "submit", "ref": "r" * 65, "envelopes": [wire]}),
        no("no ref", "bounds", "agent", {"t": "submit", "envelopes": [wire]}),
        no("ack without an epoch", "bounds", "agent", {"t": "ack", "upto": 1}),
        no("ack of seq 0", "bounds", "agent", {**ack, "seqs": [0]}),
        no("ack of true", "bounds", "agent", {**ack, "seqs": [True]}),
        no("ack of 1,025 seqs", "bounds", "agent", {**ack, "seqs": list(range(1, 1026))}),
        no("refuse without a code", "bounds", "agent", {**ack, "refuse": [{"seq": 1}]}),
        no("resolve nothing", "bounds", "agent", {"t": "resolve", "ref": "q"}),
        no("resolve two things", "bounds", "agent",
           {"t": "resolve", "ref": "q", "did": BOB.did, "handle": "bob@relay.example"}),
        no("rules without a ref", "bounds", "agent", {"t": "rules"}),
        no("a first contact that nobody knows", "bounds", "agent",
           {"t": "rules", "ref": "w", "first_contact": "perhaps"}),
        no("rules about a number", "bounds", "agent", {"t": "rules", "ref": "w", "deny": [1]}),
        no("rules about 1,001 agents", "bounds", "agent",
           {"t": "rules", "ref": "w", "allow": [BOB.did] * 1001}),
        no("a rule is no list", "bounds", "agent", {"t": "rules", "ref": "w", "allow": BOB.did}),
        no("ruled without a number of contacts", "bounds", "relay",
           {"t": "ruled", "ref": "w", "first_contact": "accept", "allow": [], "deny": []}),
        no("negative retry_after", "bounds", "agent",
           {"t": "bye", "error": "draining", "retry_after": -1}),
        no("an error that is no text", "bounds", "relay", {"t": "bye", "error": 7}),
        no("short nonce", "bounds", "relay", {"t": "hello", "relay": RELAY.did, "url": URL,
                                              "nonce": "bg", "limits": {}, "time": NOW}),
        no("a gap that runs backwards", "bounds", "relay", {"t": "gap", "epoch": "e1", "ranges": [
            {"from_seq": 9, "to_seq": 5, "reason": "expired"}]}),
        no("a gap without a reason", "bounds", "relay", {"t": "gap", "epoch": "e1", "ranges": [
            {"from_seq": 5, "to_seq": 9, "reason": "eaten"}]}),
        no("redelivered is a number", "bounds", "relay", {"t": "deliver", "epoch": "e1", "items": [
            {"seq": 1, "redelivered": 0, "envelope": wire}]}),
        no("stored: yes", "bounds", "relay", {"t": "submitted", "refs": ["r"], "receipt": None,
           "rejected": [{"ref": "r", "i": 0, "error": "moved", "stored": "yes"}]}),
        no("refs that are no strings", "bounds", "relay",
           {"t": "submitted", "refs": [1], "receipt": None, "rejected": []}),
        no("a state that nobody knows", "bounds", "relay",
           {"t": "statuses", "ref": "s", "items": [{"to": BOB.did, "id": ID, "state": "lost"}]}),
        *invalid_peer_frames(no, wire),
        *invalid_handoff_frames(no, wire),
    ]  # fmt: skip


# ---------------------------------------------------------------- files

CONTEXT: dict[str, dict[str, Any]] = {
    "envelopes": {"now": NOW},
    "auth": {"now": NOW, "relay": RELAY.did, "url": URL, "nonce": NONCE},
    "proof": {"auth": CLAIMS},
    "receipts": {"relay": RELAY.did},
    "records": {"now": NOW},
    "relay_info": {"now": NOW},
    "orders": {"now": NOW},
    "statements": {"relay": RELAY.did},
    "frames": {},
}
CASES: dict[str, Callable[[], list[Case]]] = {
    "valid_envelopes": valid_envelopes, "invalid_envelopes": invalid_envelopes,
    "valid_auth": valid_auth, "invalid_auth": invalid_auth,
    "valid_proof": valid_proof, "invalid_proof": invalid_proof,
    "valid_receipts": valid_receipts, "invalid_receipts": invalid_receipts,
    "valid_records": valid_records, "invalid_records": invalid_records,
    "valid_relay_info": valid_relay_info, "invalid_relay_info": invalid_relay_info,
    "valid_orders": valid_orders, "invalid_orders": invalid_orders,
    "valid_statements": valid_statements, "invalid_statements": invalid_statements,
    "valid_frames": valid_frames, "invalid_frames": invalid_frames,
}  # fmt: skip


def contents() -> dict[Path, str]:
    """Every file and what is to be in it."""
    made = {}
    for name, cases in CASES.items():
        kind = name.partition("_")[2]
        whole = {"version": 1, "kind": kind, "keys": KEYS, "context": CONTEXT[kind],
                 "cases": cases()}  # fmt: skip
        made[HERE / f"{name}.json"] = json.dumps(whole, indent=1) + "\n"
    return made


def main(arguments: list[str]) -> int:
    made = contents()
    if "--check" not in arguments:
        for path, text in made.items():
            path.write_text(text)
        return 0
    known = set(HERE.glob("*valid_*.json"))
    old = [path for path, text in made.items() if path not in known or path.read_text() != text]
    for path in sorted({*old, *(known - set(made))}):
        sys.stderr.write(f"{path.name} is not what make.py makes\n")
    return 1 if old or known - set(made) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
