"""Migration orders: an agent's signed word that its inbox is to change relays (GUARANTEES.md §3).

An order is a value. It carries the record that will be published at the end,
signed beforehand, so that nobody can finish a move otherwise than it was begun. Orders of one agent
are ordered by ``seq``; a newer one replaces an older one, whatever had been done under that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relay.protocol import endpoint_record, signed
from relay.protocol import jws as jose
from relay.protocol.did import SigningKey, VerificationKey
from relay.protocol.endpoint_record import EndpointRecord, Home
from relay.protocol.errors import ErrorCode, Refusal
from relay.protocol.ids import UUID7, Did, Entropy, Timestamp, new_message_id

TYP: Final = "agent-migrate+jws"
MAX_ORDER_BYTES: Final = 8192
ORDER_LIFETIME_S: Final = 24 * 3600


@dataclass(frozen=True, slots=True)
class MigrationOrder:
    """An order whose form is right; :func:`verify` tells whether it is the agent's.

    Args:
        jws: as it was signed.
        id: of this hand-off, a UUIDv7.
        did: whose inbox.
        seq: a higher one replaces this order.
        source: the relay that has the inbox.
        target: the relay that will have it.
        record: what will be published; it names the target alone.
        expires_at: Unix seconds; PREPARE and FREEZE are refused from then on.
    """

    jws: jose.Jws
    id: str
    did: Did
    seq: int
    source: Home
    target: Home
    record: EndpointRecord
    issued_at: int
    expires_at: int

    def concerns(self, relay: Did) -> bool:
        """Return True if it lets ``relay`` talk with the other relay of this hand-off."""
        return relay in {self.source.did, self.target.did}


def parse(compact: str) -> MigrationOrder:
    """Read an order's form, and that of the record in it.

    Raises:
        ProtocolError: ``bad_frame``, or ``unsupported`` for another DID method or version.
    """
    return signed.read("order", _parse, compact)


def _parse(compact: str) -> MigrationOrder:
    jws, members = signed.own_members(compact, typ=TYP, max_bytes=MAX_ORDER_BYTES)
    did = signed.read_signer(jws, members).did
    issued, expires = signed.read_lifetime(members, ORDER_LIFETIME_S)
    order = MigrationOrder(
        jws=jws,
        id=members.text("mig_id", limit=36),
        did=did,
        seq=members.integer("seq", limit=(issued + endpoint_record.SEQ_SLACK_S) * 1000),
        source=Home(*endpoint_record.read_relay(members.object("from"))),
        target=Home(*endpoint_record.read_relay(members.object("to"))),
        record=endpoint_record.parse(
            members.text("record", limit=endpoint_record.MAX_RECORD_BYTES)
        ),
        issued_at=issued,
        expires_at=expires,
    )
    _check(order)
    return order


def _check(order: MigrationOrder) -> None:
    if UUID7.fullmatch(order.id) is None:
        raise ValueError("mig_id must be a lower-case UUIDv7")
    if order.source.did == order.target.did:
        raise ValueError("from and to are one relay")
    named = [(home.did, home.url) for home in order.record.relays]
    if order.record.did != order.did or named != [(order.target.did, order.target.url)]:
        raise ValueError("record must be the agent's own and name the target alone")


def verify(order: MigrationOrder, key: VerificationKey, now: Timestamp) -> Refusal | None:
    """Refuse an order that another signed, that has expired, or that is from the future."""
    if not signed.is_by(order.jws, key):
        return Refusal(ErrorCode.BAD_SIGNATURE, "the order is not signed by a key of its did")
    if refusal := signed.refuse_future("the order", order.issued_at, now):
        return refusal
    if order.expires_at <= now:
        return Refusal(ErrorCode.EXPIRED, "the order has expired")
    return endpoint_record.verify(order.record, key, now)


def authorizes(
    relay: Did, evidence: MigrationOrder | EndpointRecord, newest: EndpointRecord
) -> bool:
    """Return True if ``relay`` may hand something over to the home that ``newest`` names.

    It may if the agent itself signed that mail lay there: an order names it, or an earlier
    record, or the newest lists it as left.
    The caller has verified all three.
    """
    if evidence.did != newest.did:
        return False
    if isinstance(evidence, MigrationOrder):
        return evidence.concerns(relay)
    if any(left.did == relay for left in newest.drain):
        return True
    return evidence.names(relay) and evidence.version < newest.version


def sign(
    key: SigningKey,
    source: Home,
    target: Home,
    record: str,
    *,
    now: Timestamp,
    entropy: Entropy,
    newest_seq: int = 0,
) -> str:
    """Sign an order of ``key``'s agent, good for 24 h.

    Args:
        key: the agent.
        source: where its inbox is.
        target: where it shall be.
        record: signed by the same agent, names ``target`` alone; published at the end.
        now: Unix seconds.
        entropy: for its id.
        newest_seq: the highest seq of this agent's orders; the new one is above it.
    """
    payload = {
        "v": 1,
        "mig_id": new_message_id(now, entropy),
        "did": key.did,
        "seq": max(newest_seq + 1, int(now * 1000)),
        "from": {"did": source.did, "url": source.url},
        "to": {"did": target.did, "url": target.url},
        "record": record,
        "iat": int(now),
        "exp": int(now) + ORDER_LIFETIME_S,
    }
    return jose.sign(payload, typ=TYP, kid=key.kid, key=key.sign)
