"""The examples and tables of docs/, made by the code that they describe.

Every key, time and nonce is fixed, so the same code makes the same bytes. A block in the docs after
``<!-- example: NAME -->`` is one of these. ``python -m tests.support.doc_examples`` writes them
again, and tests/unit/test_docs.py compares.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import nacl.bindings
from pydantic.fields import FieldInfo

from relay.directory.model import anti_entropy
from relay.directory.model.anti_entropy import TOP_BITS, Index, place
from relay.inbox.bounces import bounce_envelope
from relay.inbox.model.types import InboxLimits, PendingBounce
from relay.inbox.ports import BounceBatch
from relay.node.build import build
from relay.node.open_store import OpenedStore
from relay.protocol import (
    endpoint_record,
    envelope,
    handshake,
    jws,
    migration_order,
    migration_statement,
    relay_info,
)
from relay.protocol import frames as frames_
from relay.protocol.did import SigningKey, parse_did
from relay.protocol.endpoint_record import Home
from relay.protocol.envelope import Draft, SignedEnvelope
from relay.protocol.errors import ErrorCode
from relay.protocol.frames import (
    Ack,
    Acked,
    Auth,
    Bye,
    Deliver,
    DeliverItem,
    Digest,
    Error,
    Frame,
    Gap,
    Gossip,
    Hello,
    Migrate,
    Migrated,
    Publish,
    Published,
    Rejection,
    Resolve,
    Resolved,
    Ruled,
    Rules,
    Status,
    StatusAnswer,
    Statuses,
    StatusItem,
    Submit,
    Submitted,
    View,
    Want,
    Welcome,
    WelcomePending,
)
from relay.protocol.handshake import InboxPosition, LoginClaims
from relay.protocol.ids import Epoch, Fence, NodeId, Seq, Timestamp, new_message_id
from relay.protocol.migration_statement import MigrationCounters, MigrationStatement
from relay.protocol.receipts import BounceItem, ReceiptItem, position, sign_bounce, sign_receipt
from relay.protocol.sealing import CONTENT_TYPE
from relay.protocol.types import Mode, MovedRules, Range, Reason
from relay.reference.memory_store import MemoryStore
from relay.settings import Settings

DOCS: Final = Path(__file__).parents[2] / "docs"
BLOCK: Final = re.compile(r"<!-- example: ([a-z0-9-]+) -->\n(.*?)<!-- end -->\n", re.DOTALL)

ALICE, BOB, RELAY, PEER = (SigningKey(bytes([n]) * 32) for n in (1, 2, 3, 10))
NOW: Final = Timestamp(1_800_000_000)
URL: Final = "http://127.0.0.1:8080"
EPOCH: Final = Epoch("7c0f1a5b9d3e48267f10")
NONCE, CNONCE = (jws.b64encode(bytes([n]) * 32) for n in (4, 5))
EPHEMERAL: Final = bytes([6]) * 32
TOKEN: Final = jws.b64encode(bytes([8]) * 32)
LIMITS: Final = {"jws": 10240, "body": 262144, "frame": 2097152, "envelopes": 256}
CLAIMS: Final = LoginClaims(BOB.did, RELAY.did, URL, NONCE, CNONCE, "agent")
CAST: Final = ("alice", "bob", "relay", "peer")
PEER_CLAIMS: Final = LoginClaims(PEER.did, RELAY.did, URL, NONCE, CNONCE, "peer")


# ---------------------------------------------------------------- things


def message(n: int, body: bytes, content_type: str, **extra: Any) -> SignedEnvelope:
    made = new_message_id(NOW, lambda count: bytes([n]) * count)
    draft = Draft(
        to=BOB.did, id=made, body=body, content_type=content_type, created_at=int(NOW), **extra
    )
    return envelope.sign(draft, ALICE)


PLAIN: Final = message(7, b"hello, bob", "text/plain; charset=utf-8")


def sealed() -> tuple[bytes, SignedEnvelope]:
    """Return the inner part and the envelope: ``crypto_box_seal`` with a fixed ephemeral key."""
    made = new_message_id(NOW, lambda count: bytes([9]) * count)
    inside = jws.dumps(
        {
            "from": ALICE.did,
            "to": BOB.did,
            "id": made,
            "cty": "text/plain; charset=utf-8",
            "body": jws.b64encode(b"only for bob"),
        }
    )
    to = nacl.bindings.crypto_sign_ed25519_pk_to_curve25519(parse_did(BOB.did).public_key)
    ours = nacl.bindings.crypto_scalarmult_base(EPHEMERAL)
    nonce = hashlib.blake2b(ours + to, digest_size=24).digest()
    box = ours + nacl.bindings.crypto_box(inside, nonce, to, EPHEMERAL)
    return inside, message(9, box, CONTENT_TYPE)


SECRET, SEALED = sealed()


def receipt(custody: Literal["inbox", "outbox"] = "inbox") -> str:
    secret = bytes(32)
    items = [
        ReceiptItem(it.eid, it.to, EPOCH, position(secret, EPOCH, Seq(n)), it.expires_at)
        for n, it in ((41, PLAIN), (42, SEALED))
    ]
    kept = [item._replace(custody=custody) for item in items]
    return sign_receipt(RELAY, kept, durability="fsync", now=NOW)


def record() -> str:
    return endpoint_record.sign(BOB, [Home(RELAY.did, URL)], now=NOW)


def bounce() -> BounceBatch:
    intent = PendingBounce(
        ALICE.agent_key, PLAIN.eid, BOB.agent_key, "expired", False, PLAIN.expires_at + 300
    )
    return BounceBatch(ALICE.agent_key, b"token", PLAIN.expires_at + 300, (intent,))


def welcome(*, has_inbox: bool = True) -> Welcome:
    standing = InboxPosition(EPOCH, 40, 42) if has_inbox else InboxPosition(None, 0, 0)
    return Welcome(
        inbox=has_inbox,
        session=Fence(17) if has_inbox else None,
        epoch=EPOCH if has_inbox else None,
        cursor=Seq(standing.cursor),
        head=Seq(standing.head),
        pending=WelcomePending(2, len(PLAIN.wire) + len(SEALED.wire), 12)
        if has_inbox
        else WelcomePending(),
        window_count=64,
        window_bytes=1048576,
        proof=handshake.sign_proof(RELAY, CLAIMS, standing, NOW),
    )


def information() -> str:
    """The self-description of a real node, but for its store's durability."""

    async def described() -> str:
        settings = Settings(public_url=URL, contact="mailto:relay@example.org")
        store = MemoryStore(InboxLimits(), lambda: NOW)
        opened = OpenedStore(RELAY, NodeId("n"), store, None, None)
        return (await build(settings, opened, URL)).exchange.own_info()

    payload = payload_of(asyncio.run(described()))
    payload |= {
        "durability": "fsync",
        "iat": int(NOW),
        "exp": int(NOW) + relay_info.INFO_LIFETIME_S,
    }
    return jws.sign(payload, typ=relay_info.TYP, kid=RELAY.kid, key=RELAY.sign)


def between_relays() -> dict[str, str]:
    """Return what a relay and the relay that it dialled send to each other."""
    index = Index()
    order = endpoint_record.parse(record()).version
    index.put(BOB.agent_key, order)
    bucket = place(BOB.agent_key.encode(), TOP_BITS)
    digest, lists = Digest("p-1", TOP_BITS), Want("p-2", bits=TOP_BITS, bucket=bucket)
    wire = json.loads(PLAIN.wire)
    taken_over = jws.b64encode(hashlib.sha256(receipt().encode()).digest())
    forwarded = StatusAnswer(BOB.did, PLAIN.id, "forwarded", PEER.did, taken_over)
    why = "peer_unreachable: no answer in time"
    return {
        "peer-auth-payload": as_json(payload_of(handshake.sign_auth(PEER, PEER_CLAIMS, NOW))),
        "gossip": frame(Gossip((record(),))),
        "gossip-relays": frame(Gossip(relays=(information(),), ref="p-4")),
        "digest": frame(digest),
        "digests": frame(anti_entropy.answer(index, digest)),
        "want": frame(lists),
        "have": frame(anti_entropy.answer(index, lists)),
        "want-agents": frame(Want("p-3", agents=(BOB.agent_key,))),
        "want-view": frame(Want("p-5", view=True)),
        "view": frame(View("p-5", "suspect", int(NOW) - 90, reason=why)),
        "peer-submit": frame(Submit("p-6", [wire], (PEER.did,), (0,))),
        "peer-status": frame(Status("p-7", (StatusItem(BOB.did, PLAIN.id, ALICE.did),))),
        "statuses-forwarded": frame(Statuses("q-6", (forwarded,))),
    }


def order() -> str:
    """Bob moves from the relay to the peer."""
    source, target = Home(RELAY.did, URL), Home(PEER.did, "http://127.0.0.1:8081")
    newest = int(NOW * 1000)
    following = endpoint_record.sign(BOB, [target], now=NOW, newest_seq=newest)
    return migration_order.sign(
        BOB, source, target, following, now=NOW, entropy=lambda count: bytes([12]) * count
    )


def statement() -> str:
    tally = MigrationCounters(was=3, was_bytes=2883, late=1, waiting=1, moved=2, expired=1)
    said = MigrationStatement(
        RELAY.did,
        BOB.did,
        migration_order.parse(order()).id,
        Mode.FROZEN,
        int(NOW) + 4,
        digest_acked=True,
        record_names_target=True,
        counters=tally,
    )
    return migration_statement.sign(RELAY, said)


def moving() -> dict[str, str]:
    """Return what an agent and two relays say while its inbox moves."""
    handoff = migration_order.parse(order()).id
    key, eid = envelope.dedupe_key(ALICE.did, PLAIN.id), jws.b64decode(PLAIN.eid)
    doubt = (int(NOW) // 3600).to_bytes(4) + key + eid[:16]
    whole = jws.b64encode(hashlib.sha256(doubt).digest())
    known = MovedRules("refuse", (ALICE.agent_key,), (), (ALICE.agent_key,))
    page = Migrate(
        "p-8",
        BOB.did,
        handoff,
        order(),
        whole,
        0,
        1,
        dedup_horizon_hour=499_000,
        maybe_seen=doubt,
        rules=known,
    )
    wire = json.loads(SEALED.wire)
    item = ReceiptItem(SEALED.eid, SEALED.to, EPOCH, position(bytes(32), EPOCH, Seq(1)), 0)
    kept = item._replace(expires=SEALED.expires_at)
    signed = sign_receipt(PEER, [kept], durability="fsync", now=NOW, handoff=handoff)
    return {
        "order-payload": as_json(payload_of(order())),
        "http-migration-request": as_json({"order": order(), "step": "freeze"}),
        "http-migration": as_json({"statement": statement()}),
        "statement-payload": as_json(payload_of(statement())),
        "migrate": frame(page),
        "migrated": frame(Migrated("p-8", handoff, whole, 1)),
        "peer-submit-handoff": frame(Submit("p-9", [wire], (RELAY.did,), handoff=handoff)),
        "receipt-payload-handoff": as_json(payload_of(signed)),
    }


# ---------------------------------------------------------------- blocks


def payload_of(compact: str) -> dict[str, Any]:
    return json.loads(jws.b64decode(compact.split(".")[1]))


def header_of(compact: str) -> dict[str, Any]:
    return json.loads(jws.b64decode(compact.split(".", maxsplit=1)[0]))


def as_json(value: Any) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return f"```json\n{text}\n```\n"


def as_text(*lines: str) -> str:
    return "```text\n" + "\n".join(lines) + "\n```\n"


def frame(value: Frame) -> str:
    return as_json(json.loads(frames_.encode(value)))


def frames() -> dict[str, str]:
    wire, rest = json.loads(PLAIN.wire), json.loads(SEALED.wire)
    too_late = Rejection("s-2", 0, ErrorCode.EXPIRED, "no", "expires_time has passed")
    states = (StatusAnswer(BOB.did, PLAIN.id, "acked"), StatusAnswer(BOB.did, SEALED.id, "stored"))
    return {
        "hello": frame(Hello(RELAY.did, URL, NONCE, LIMITS, int(NOW))),
        "auth": frame(Auth(handshake.sign_auth(BOB, CLAIMS, NOW), record())),
        "welcome": frame(welcome()),
        "welcome-send-only": frame(welcome(has_inbox=False)),
        "submit": frame(Submit("s-1", [wire, rest])),
        "submitted": frame(Submitted(("s-1",), receipt())),
        "submitted-rejected": frame(Submitted(("s-2",), None, (too_late,))),
        "deliver": frame(Deliver(EPOCH, (DeliverItem(Seq(41), False, wire),))),
        "gap": frame(Gap(EPOCH, (Range(Seq(43), Seq(44), Reason.EXPIRED),))),
        "ack": frame(Ack(EPOCH, Seq(41), (Seq(45),), ((Seq(42), "unreadable"),))),
        "acked": frame(Acked(EPOCH, Seq(42), (Seq(45),), (Seq(42),))),
        "status": frame(Status("q-1", tuple(StatusItem(a.to, a.id) for a in states))),
        "statuses": frame(Statuses("q-1", states)),
        "resolve": frame(Resolve("q-2", BOB.did)),
        "resolved": frame(Resolved("q-2", "found", record())),
        "publish": frame(Publish("q-3", record())),
        "published": frame(Published("q-3", True, 1, int(NOW * 1000))),
        "rules": frame(Rules("q-5", "refuse", allow=(ALICE.did,), forget=(RELAY.did,))),
        "ruled": frame(Ruled("q-5", "refuse", (ALICE.did,), (), 12)),
        "error": frame(Error(ErrorCode.BAD_FRAME, "handle: a hostname has a dot", None, "q-4")),
        "bye": frame(Bye(ErrorCode.DRAINING, "the node is shutting down", 1)),
    }


def signed_things() -> dict[str, str]:
    auth = handshake.sign_auth(BOB, CLAIMS, NOW)
    compact = json.loads(PLAIN.wire)["jws"]
    sign_input, _, signature = compact.rpartition(".")
    batch = bounce()
    kept = json.loads(bounce_envelope(RELAY, batch).wire)
    items = [BounceItem(PLAIN.eid, BOB.did, "expired", maybe_delivered=False)]
    return {
        "keys": as_text(*(line for key in CAST for line in identity(key))),
        "envelope-header": as_json(header_of(compact)),
        "envelope-payload": as_json(payload_of(compact)),
        "envelope-bytes": as_text(
            "header bytes:",
            jws.b64decode(compact.split(".")[0]).decode(),
            "payload bytes:",
            jws.b64decode(compact.split(".")[1]).decode(),
            "signing input:",
            sign_input,
            "signature:",
            signature,
            "eid:",
            PLAIN.eid,
        ),
        "envelope": as_json(json.loads(PLAIN.wire)),
        "sealed-inside": as_json(json.loads(SECRET)),
        "sealed": as_json(json.loads(SEALED.wire)),
        "auth-header": as_json(header_of(auth)),
        "auth-payload": as_json(payload_of(auth)),
        "proof-payload": as_json(payload_of(welcome().proof)),
        "receipt-payload": as_json(payload_of(receipt())),
        "receipt-payload-outbox": as_json(payload_of(receipt("outbox"))),
        "record-payload": as_json(payload_of(record())),
        "bounce-payload": as_json(payload_of(sign_bounce(RELAY, items))),
        "bounce-envelope": as_json(payload_of(kept["jws"])),
        "info-payload": as_json(payload_of(information())),
    }


def identity(name: str) -> list[str]:
    key = {"alice": ALICE, "bob": BOB, "relay": RELAY, "peer": PEER}[name]
    return [
        f"{name}",
        f"  seed        {key.seed.hex()}",
        f"  public key  {key.public_key.hex()}",
        f"  DID         {key.did}",
        f"  kid         {key.kid}",
    ]


def over_http() -> dict[str, str]:
    wire = json.loads(PLAIN.wire)
    members = frames_.to_members(welcome())
    no = Rejection("http", 1, ErrorCode.UNKNOWN_INBOX, "no", "no inbox of this recipient is here")
    range_ = frames_.to_members(Range(Seq(42), Seq(42), Reason.EXPIRED))
    return {
        "http-nonce": as_json({"relay": RELAY.did, "url": URL, "nonce": NONCE, "limits": LIMITS}),
        "http-session-request": as_json(
            frames_.to_members(Auth(handshake.sign_auth(BOB, CLAIMS, NOW)))
        ),
        "http-session": as_json({"token": TOKEN, **members}),
        "http-envelopes-request": as_json({"envelopes": [wire]}),
        "http-envelopes": as_json({"receipt": receipt(), "rejected": [frames_.to_members(no)]}),
        "http-inbox": as_json(
            {
                "epoch": EPOCH,
                "items": [{"seq": 41, "redelivered": False, "envelope": wire}],
                "gaps": [range_],
                "upto": 42,
                "head": 42,
            }
        ),
        "http-ack-request": as_json({"epoch": EPOCH, "upto": 42}),
        "http-ack": as_json({"epoch": EPOCH, "upto": 42, "seqs": [], "refused": []}),
        "http-resolve": as_json({"state": "found", "record": record(), "stale": False}),
        "http-publish-request": as_json({"record": record()}),
        "http-publish": as_json({"stored": True, "kv": 1, "seq": int(NOW * 1000)}),
        "http-rules-request": as_json({"deny": [ALICE.did]}),
        "http-rules": as_json(
            {"first_contact": "accept", "allow": [], "deny": [ALICE.did], "contacts": 12}
        ),
        "http-status": as_json(frames_.to_members(StatusAnswer(BOB.did, PLAIN.id, "acked"))),
        "http-info": as_json({"jws": information()}),
        "http-error": as_json(
            {"error": "rate_limited", "detail": "this sender is too fast", "retry_after": 2}
        ),
    }


def settings_table() -> str:
    lines = ["| variable | default | allowed | meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        cells = (shown(field.get_default()), allowed(field), field.description)
        lines.append(f"| `RELAY_{name.upper()}` | {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


def allowed(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(field.annotation))
    rules = [(name, rule) for name in ("ge", "gt", "le") for rule in field.metadata]
    bounds = {name: getattr(rule, name) for name, rule in rules if hasattr(rule, name)}
    if "gt" in bounds:
        return f"> {bounds['gt']}"
    if "le" in bounds:
        return f"{bounds['ge']} … {bounds['le']}"
    return f"≥ {bounds['ge']}" if "ge" in bounds else ""


def examples() -> dict[str, str]:
    """Every block, by name."""
    return {
        **signed_things(),
        **frames(),
        **between_relays(),
        **moving(),
        **over_http(),
        "settings": settings_table(),
    }


def fill(text: str, blocks: dict[str, str]) -> str:
    """Return the text with every marked block made again."""

    def block(found: re.Match[str]) -> str:
        return f"<!-- example: {found[1]} -->\n{blocks[found[1]]}<!-- end -->\n"

    return BLOCK.sub(block, text)


def main() -> None:
    blocks = examples()
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text()
        made = fill(text, blocks)
        if made != text:
            path.write_text(made)


if __name__ == "__main__":
    main()
