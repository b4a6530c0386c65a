"""The frames of a migration between relays: migrate and migrated (PROTOCOL.md §5.12)."""

from dataclasses import dataclass
from typing import Annotated, Any, Final

from relay.protocol import jws as jose
from relay.protocol.frames.fields import (
    Codec,
    Field,
    SenderField,
    base64,
    integer,
    one_of,
    optional,
    text,
    texts,
    wire,
)
from relay.protocol.frames.mail import MAX_RULES, DidText, Ref
from relay.protocol.ids import MAX_AGENT_KEY_CHARS, MAX_DID_BYTES, MAX_HANDOFF_ID_CHARS, Did
from relay.protocol.migration_order import MAX_ORDER_BYTES
from relay.protocol.types import MAYBE_SEEN_ID_BYTES, FirstContact, MovedRules

MAX_MAYBE_SEEN_IDS: Final = 4_096
MAX_DIGEST_PAGES: Final = 64
MAX_AWAITED_DIGESTS: Final = 64
MAX_CONTACTS: Final = 10_000
"""Contacts that come along; fewer agents are allowed or denied (``MAX_RULES``)."""
DIGEST_ID_BYTES: Final = 32

HandoffId = Annotated[str, text(MAX_HANDOFF_ID_CHARS)]
WireDigestId = Annotated[str, wire("whole", base64(DIGEST_ID_BYTES))]


def _read_ids(m: jose.Members, name: str) -> bytes:
    limit = MAX_MAYBE_SEEN_IDS * MAYBE_SEEN_ID_BYTES * 4 // 3
    ids = jose.b64decode(m.text(name, limit=limit))
    if len(ids) % MAYBE_SEEN_ID_BYTES:
        raise ValueError(f"{name} must be of {MAYBE_SEEN_ID_BYTES} bytes each")
    return ids


def _read_rules(m: jose.Members, name: str) -> MovedRules:
    rules = m.object(name)
    limits = {"allow": MAX_RULES, "deny": MAX_RULES, "contacts": MAX_CONTACTS}
    first_contact = one_of(FirstContact).read(rules, "first_contact")
    lists = (texts(n, MAX_AGENT_KEY_CHARS).read(rules, one) for one, n in limits.items())
    return MovedRules(first_contact, *lists)


@dataclass(frozen=True, slots=True)
class Migrate:
    """A page of the digest that a frozen source sends of an inbox (GUARANTEES.md §3).

    Args:
        ref: named by the answer.
        agent: whose inbox.
        handoff: the hand-off.
        authorization: the order, or the earlier record, in which the agent names this source.
        digest_id: b64url of SHA-256 over the whole digest.
        number: of this page, from 0; pages are sent in order.
        total: the number of pages.
        awaiting_digests: relays whose digests the source itself lacks.
        dedup_horizon_hour: the source has forgotten ids up to this hour; -1 = none.
        maybe_seen: ids, 36 bytes each: hour, dedup key, start of the eid.
        rules: with the first page: the rules of the inbox.
    """

    ref: Ref
    agent: DidText
    handoff: HandoffId
    authorization: Annotated[str, wire("evidence", text(MAX_ORDER_BYTES))]
    digest_id: WireDigestId
    number: Annotated[int, integer()]
    total: Annotated[int, integer(MAX_DIGEST_PAGES, minimum=1)]
    awaiting_digests: Annotated[
        tuple[Did, ...], wire("missing", texts(MAX_AWAITED_DIGESTS, MAX_DID_BYTES))
    ] = ()
    dedup_horizon_hour: Annotated[int, wire("floor", optional(integer(), -1))] = -1
    maybe_seen: Annotated[
        bytes, wire("doubts", optional(Field(_read_ids, jose.b64encode), b""))
    ] = b""
    rules: Annotated[
        MovedRules | None,
        wire("known", optional(Field(_read_rules, lambda rules: rules._asdict()))),
    ] = None


def _check_migrate(frame: Migrate) -> None:
    if frame.number >= frame.total:
        raise ValueError("number must be less than total")


@dataclass(frozen=True, slots=True)
class Migrated:
    """The answer to ``migrate``, durable: the page of that digest that is wanted next.

    ``next`` is the total once all of them are here.
    """

    ref: Ref
    handoff: HandoffId
    digest_id: WireDigestId
    next: Annotated[int, integer(MAX_DIGEST_PAGES)]


CODECS: Final[tuple[Codec[Any], ...]] = (
    Codec(Migrate, SenderField.PEER, is_sparse=True, check=_check_migrate),
    Codec(Migrated, SenderField.HOST_TO_PEER),
)
