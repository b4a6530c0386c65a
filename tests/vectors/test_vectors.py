"""Runs every vector; what the files look like is told in README.md beside them."""

from __future__ import annotations

import base64
import functools
import json
import runpy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relay.inbox.model.admission import AdmissionFacts, refuse_early
from relay.protocol import (
    endpoint_record,
    envelope,
    frames,
    handshake,
    migration_order,
    migration_statement,
    receipts,
    relay_info,
    sealing,
)
from relay.protocol.did import SigningKey, parse_did
from relay.protocol.errors import ErrorCode, ProtocolError, Refusal, RelayError
from relay.protocol.handshake import InboxPosition, LoginClaims
from relay.protocol.ids import Timestamp
from relay.protocol.jws import UnsupportedTypeError

HERE = Path(__file__).parent
FILES = {path.stem: json.loads(path.read_text()) for path in sorted(HERE.glob("*valid_*.json"))}
KINDS = {
    "auth",
    "envelopes",
    "frames",
    "orders",
    "proof",
    "receipts",
    "records",
    "relay_info",
    "statements",
}
Found = dict[str, Any]


def cases(prefix: str) -> list[Any]:
    return [
        pytest.param(file, case, id=f"{name}-{case['name']}")
        for name, file in FILES.items()
        if name.startswith(prefix)
        for case in file["cases"]
    ]


def check(no: Refusal | None) -> None:
    if no is not None:
        raise no.to_error()


def read_envelope(given: Any, file: Found, expect: Found) -> Found:
    if isinstance(given, dict) and isinstance(given.get("body"), dict):
        body = given["body"]
        given = {**given, "body": body["repeat"] * body["times"]}
    read = envelope.parse(given)
    check(refuse_early(read, AdmissionFacts(Timestamp(file["context"]["now"]))))
    envelope.verify(read, parse_did(read.sender.did))
    found: Found = {
        "eid": read.eid,
        "id": read.id,
        "from": read.sender.did,
        "to": read.recipient.did,
        "created_time": read.created_at,
        "expires_time": read.expires_at,
        "body_hex": read.body.hex(),
        "dedupe_key_hex": envelope.dedupe_key(read.sender.did, read.id).hex(),
    }
    if "sealed" in expect:
        opener = expect["sealed"]["opens_with"]
        key = SigningKey(bytes.fromhex(file["keys"][opener]["seed_hex"]))
        content = sealing.open_body(read, key)
        found["sealed"] = {
            "opens_with": opener,
            "cty": content.content_type,
            "body_hex": content.body.hex(),
        }
    return found


def read_auth(given: Any, file: Found, _: Found) -> Found:
    context = file["context"]
    parsed = handshake.parse_auth(given["jws"])
    claims = parsed[1]
    if claims.nonce != context["nonce"]:
        raise ProtocolError(ErrorCode.BAD_SIGNATURE, "auth signs another nonce")
    try:
        key = parse_did(claims.subject)
    except UnsupportedTypeError as exc:
        raise ProtocolError(ErrorCode.UNSUPPORTED) from exc
    handshake.verify_auth(
        parsed, key, relay=context["relay"], url=context["url"], now=Timestamp(context["now"])
    )
    names = {"sub": "subject"}
    return {
        name: getattr(claims, names.get(name, name))
        for name in ("sub", "aud", "url", "nonce", "cnonce", "role")
    }


def read_proof(given: Any, file: Found, _: Found) -> Found:
    auth = dict(file["context"]["auth"])
    claims = LoginClaims(subject=auth.pop("sub"), **auth)
    handshake.verify_proof(given["proof"], claims, InboxPosition(**given["welcome"]))
    return {}


def plain(value: Any) -> Found:
    names = getattr(value, "_fields", None) or type(value).__slots__
    return {name: getattr(value, name) for name in names}


def read_receipt(given: Any, file: Found, _: Found) -> Found:
    relay = file["context"]["relay"]
    if "bounce" in given:
        return {"items": [plain(item) for item in receipts.verify_bounce(given["bounce"], relay)]}
    read = receipts.verify_receipt(given["receipt"], relay)
    items = [plain(item) for item in read.items]
    found = {"at": read.at, "durability": read.durability, "items": items}
    return {**found, "mig_id": read.handoff} if read.handoff else found


def read_record(given: Any, file: Found, _: Found) -> Found:
    read = endpoint_record.parse(given["record"])
    check(endpoint_record.verify(read, parse_did(read.did), Timestamp(file["context"]["now"])))
    kv, seq, digest = read.version
    return {
        "did": read.did,
        "seq": read.seq,
        "status": read.status,
        "relays": [plain(home) for home in read.relays],
        "order": [kv, seq, digest.hex()],
    }


def read_info(given: Any, file: Found, _: Found) -> Found:
    read = relay_info.parse(given["info"])
    check(relay_info.verify(read, Timestamp(file["context"]["now"])))
    issued, digest = read.version
    said = plain(read.description)
    kept = {name: said[name] for name in ("url", "federation", "peers", "limits")}
    return {"did": read.did, **kept, "order": [issued, digest.hex()]}


def read_order(given: Any, file: Found, _: Found) -> Found:
    read = migration_order.parse(given["order"])
    check(migration_order.verify(read, parse_did(read.did), Timestamp(file["context"]["now"])))
    homes = {"from": read.source, "to": read.target}
    return {
        "mig_id": read.id,
        "did": read.did,
        "seq": read.seq,
        **{name: {"did": home.did, "url": home.url} for name, home in homes.items()},
        "record": read.record.jws.compact,
    }


ON_THE_WIRE = {
    "handoff": "mig_id",
    "digest_received": "digested",
    "digest_acked": "handed",
    "record_names_target": "named",
    "awaiting_digests": "missing",
    "counters": "tally",
    "reason": "why",
}


def read_statement(given: Any, file: Found, _: Found) -> Found:
    said = plain(migration_statement.verify(given["statement"], file["context"]["relay"]))
    said = {ON_THE_WIRE.get(name, name): value for name, value in said.items()}
    return {**said, "missing": list(said["missing"]), "tally": said["tally"]._asdict()}


def read_frame(given: Any, _file: Found, _: Found) -> Found:
    said = given.get("text", "").encode()
    if "base64url" in given:
        text = given["base64url"]
        said = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    return {"frame": json.loads(frames.encode(frames.parse(said, given["from"])))}


READERS: dict[str, Callable[[Any, Found, Found], Found]] = {
    "envelopes": read_envelope, "auth": read_auth, "proof": read_proof, "receipts": read_receipt,
    "records": read_record, "relay_info": read_info, "orders": read_order,
    "statements": read_statement, "frames": read_frame,
}  # fmt: skip


@pytest.mark.parametrize(("file", "case"), cases("valid_"))
def test_what_is_valid_is_read_as_it_is_meant(file: Found, case: Found):
    expect = case["expect"]
    assert READERS[file["kind"]](case["input"], file, expect) == expect


@pytest.mark.parametrize(("file", "case"), cases("invalid_"))
def test_what_is_invalid_is_refused_with_its_code(file: Found, case: Found):
    with pytest.raises(RelayError) as caught:
        READERS[file["kind"]](case["input"], file, {})
    assert caught.value.code == case["error"]


def test_any_two_records_merge_to_the_one_of_the_greater_order():
    read = [
        endpoint_record.parse(case["input"]["record"]) for case in FILES["valid_records"]["cases"]
    ]
    expected = max(FILES["valid_records"]["cases"], key=lambda case: case["expect"]["order"])
    for order in (read, read[::-1], read[5:] + read[:5]):
        held = functools.reduce(endpoint_record.merge, order)
        assert held.jws.compact == expected["input"]["record"]


def test_any_two_relay_informations_merge_to_the_one_of_the_greater_order():
    read = [relay_info.parse(case["input"]["info"]) for case in FILES["valid_relay_info"]["cases"]]
    expected = max(FILES["valid_relay_info"]["cases"], key=lambda case: case["expect"]["order"])
    for order in (read, read[::-1], read[5:] + read[:5]):
        held = functools.reduce(relay_info.newest, order)
        assert held.jws.compact == expected["input"]["info"]


def test_the_files_are_what_the_generator_makes(capsys: pytest.CaptureFixture[str]):
    made = runpy.run_path(str(HERE / "make.py"))
    assert (made["main"](["--check"]), capsys.readouterr().err) == (0, "")


def test_there_are_enough_vectors_to_learn_from():
    for kind in KINDS:
        assert FILES[f"valid_{kind}"]["cases"]
    invalid = [case for name, file in FILES.items() if name.startswith("invalid")
               for case in file["cases"]]  # fmt: skip
    assert len(invalid) >= 60
    assert len({case["class"] for case in invalid}) >= 15
    assert {case["error"] for case in invalid} <= set(ErrorCode)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_name_is_used_once_in_a_file(name: str):
    names = Counter(case["name"] for case in FILES[name]["cases"])
    assert names.most_common(1)[0][1] == 1
    assert name.partition("_")[2] == FILES[name]["kind"]
