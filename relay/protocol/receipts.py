"""Receipts and bounces: what a relay signs about envelopes it took (PROTOCOL.md §4, GUARANTEES R6).

A receipt says: checked, durable here, stored from now on. It says nothing of delivery.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from relay.protocol import jws as jose
from relay.protocol import signed
from relay.protocol.did import SigningKey, parse_did
from relay.protocol.envelope import SHA256_BYTES
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.ids import (
    MAX_DID_BYTES,
    MAX_EPOCH_CHARS,
    MAX_HANDOFF_ID_CHARS,
    Did,
    Eid,
    Epoch,
    Seq,
    Timestamp,
)

RECEIPT_TYP: Final = "agent-receipt+jws"
BOUNCE_TYP: Final = "agent-bounce+jws"
BOUNCE_CONTENT_TYPE: Final = "application/vnd.agent-relay.bounce"
MAX_RECEIPT_BYTES: Final = 1024 * 1024
MAX_BOUNCED: Final = 256
MAX_REASON: Final = 64

Durability = Literal["fsync", "unverified", "memory"]
Custody = Literal["inbox", "outbox"]


class ReceiptItem(NamedTuple):
    """One envelope of a receipt.

    Args:
        eid: which envelope.
        to: its recipient.
        epoch: the inbox's epoch.
        pos: opaque; the same for a duplicate (:func:`position`).
        expires: its ``expires_time``.
        dup: it had been stored before.
        custody: where it lies now.
    """

    eid: Eid
    to: Did
    epoch: Epoch
    pos: str
    expires: int
    dup: bool = False
    custody: Custody = "inbox"


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt whose signature held; ``handoff``: what it was handed over by, or ""."""

    relay: Did
    at: int
    durability: Durability
    items: tuple[ReceiptItem, ...]
    handoff: str = ""


@dataclass(frozen=True, slots=True)
class BounceItem:
    """An envelope that ended without an ack: expired, or refused by its recipient.

    ``maybe_delivered`` is true where the recipient may have been handed it before.
    """

    eid: Eid
    to: Did
    reason: str
    maybe_delivered: bool


def position(secret: bytes, epoch: Epoch, seq: Seq) -> str:
    """Hide how much mail an inbox gets: a keyed hash of epoch and seq, 22 characters."""
    text = f"{epoch}|{seq}".encode()
    return jose.b64encode(hashlib.blake2b(text, key=secret, digest_size=16).digest())


def sign_receipt(
    key: SigningKey,
    items: Sequence[ReceiptItem],
    *,
    durability: Durability,
    now: Timestamp,
    handoff: str = "",
) -> str:
    """Sign one receipt for what one commit stored for one connection (PROTOCOL.md §4).

    With ``handoff`` it says that these were taken over as a part of that hand-off.
    """
    payload: dict[str, Any] = {
        "v": 1,
        "relay": key.did,
        "at": int(now),
        "durability": durability,
        "items": [
            {
                "eid": item.eid,
                "to": item.to,
                "epoch": item.epoch,
                "pos": item.pos,
                "expires": item.expires,
                "dup": item.dup,
                "custody": item.custody,
            }
            for item in items
        ],
    }
    if handoff:
        payload["mig_id"] = handoff
        payload["count"] = len(items)
        payload["digest"] = digest_of(item.eid for item in items)
    return jose.sign(payload, typ=RECEIPT_TYP, kid=key.kid, key=key.sign)


def verify_receipt(compact: str, relay: Did) -> Receipt:
    """Read a receipt and check that ``relay`` signed it.

    Raises:
        ProtocolError: ``bad_frame`` for its form, ``bad_signature`` for its signature or signer.
    """
    try:
        members = _signed_by(compact, relay, RECEIPT_TYP)
        durability = members.text("durability", limit=16)
        if durability not in {"fsync", "unverified", "memory"}:
            raise ValueError("unknown durability")
        receipt = Receipt(
            relay=Did(members.text("relay", limit=MAX_DID_BYTES)),
            at=members.integer("at"),
            durability=durability,  # type: ignore[arg-type]  # checked above
            items=tuple(_item(jose.Members(item)) for item in members.array("items", limit=4096)),
            handoff=members.optional_text("mig_id", limit=MAX_HANDOFF_ID_CHARS) or "",
        )
        if receipt.handoff:
            _check_sums(receipt, members)
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_FRAME, f"receipt: {exc}") from exc
    return receipt


def _check_sums(receipt: Receipt, members: jose.Members) -> None:
    eids = [item.eid for item in receipt.items]
    claimed = (members.integer("count"), members.text("digest", limit=43))
    if claimed != (len(eids), digest_of(eids)):
        raise ValueError("count and digest are not of its items")


def digest_of(eids: Iterable[Eid]) -> str:
    """b64url of SHA-256 over the sorted eids: what was handed over, in one line."""
    return jose.b64encode(hashlib.sha256("".join(sorted(eids)).encode()).digest())


def _item(item: jose.Members) -> ReceiptItem:
    custody = item.text("custody", limit=16)
    if custody not in {"inbox", "outbox"}:
        raise ValueError("unknown custody")
    return ReceiptItem(
        eid=Eid(item.text("eid", limit=43)),
        to=Did(item.text("to", limit=MAX_DID_BYTES)),
        epoch=Epoch(item.text("epoch", limit=MAX_EPOCH_CHARS)),
        pos=item.text("pos", limit=MAX_EPOCH_CHARS),
        expires=item.integer("expires"),
        dup=item.boolean("dup"),
        custody=custody,  # type: ignore[arg-type]  # checked above
    )


def sign_bounce(key: SigningKey, items: Sequence[BounceItem]) -> str:
    """Sign the bounce of up to 256 envelopes of one sender; no time in it, so a repeat is equal."""
    payload = {
        "v": 1,
        "relay": key.did,
        "items": [
            {
                "eid": item.eid,
                "to": item.to,
                "reason": item.reason,
                "maybe_delivered": item.maybe_delivered,
            }
            for item in items
        ],
    }
    return jose.sign(payload, typ=BOUNCE_TYP, kid=key.kid, key=key.sign)


def verify_bounce(compact: str, relay: Did) -> tuple[BounceItem, ...]:
    """Read a bounce and check that ``relay`` signed it.

    Raises:
        ProtocolError: ``bad_frame`` for its form, ``bad_signature`` for its signature or signer.
    """
    try:
        members = _signed_by(compact, relay, BOUNCE_TYP)
        items = [jose.Members(item) for item in members.array("items", limit=MAX_BOUNCED)]
        return tuple(
            BounceItem(
                eid=Eid(jose.b64encode(item.base64("eid", size=SHA256_BYTES))),
                to=Did(item.text("to", limit=MAX_DID_BYTES)),
                reason=item.text("reason", limit=MAX_REASON),
                maybe_delivered=item.boolean("maybe_delivered"),
            )
            for item in items
        )
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_FRAME, f"bounce: {exc}") from exc


def _signed_by(compact: str, relay: Did, typ: str) -> jose.Members:
    jws = jose.parse(compact, typ=typ, max_bytes=MAX_RECEIPT_BYTES)
    key = parse_did(relay)
    if not signed.is_by(jws, key):
        raise ProtocolError(ErrorCode.BAD_SIGNATURE, f"not signed by {relay}")
    members = jws.members()
    if members.integer("v") != 1 or members.text("relay", limit=MAX_DID_BYTES) != relay:
        raise ValueError("another version or another relay")
    return members
