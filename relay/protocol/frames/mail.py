"""The frames about envelopes: submit, deliver, ack, status and rules (PROTOCOL.md §5.2 to §5.5).

Envelopes inside ``submit`` and ``deliver`` stay raw here: each is judged alone, later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, NamedTuple

import orjson

from relay.protocol import jws as jose
from relay.protocol.errors import Stored
from relay.protocol.frames.fields import (
    MAX_CODE_CHARS,
    MAX_REF_CHARS,
    Codec,
    Field,
    SenderField,
    array,
    base64,
    integer,
    objects,
    one_of,
    optional,
    text,
    texts,
)
from relay.protocol.frames.session import Code, Detail, OptionalRecord, RetryAfter
from relay.protocol.ids import MAX_DID_BYTES, MAX_EPOCH_CHARS, MAX_HANDOFF_ID_CHARS, Did, Epoch, Seq
from relay.protocol.receipts import MAX_RECEIPT_BYTES
from relay.protocol.types import FirstContact, Range, Reason

MAX_ENVELOPES: Final = 256
MAX_SEQS: Final = 1024
MAX_REFS: Final = 4096
MAX_STATUS_ITEMS: Final = 256
MAX_RULES: Final = 1_000
MAX_HOPS: Final = 3
_MAX_HOPS_READ: Final = 16
"""The session refuses more than :data:`MAX_HOPS` with a code of its own."""

Ref = Annotated[str, text(MAX_REF_CHARS)]
InboxEpoch = Annotated[Epoch, text(MAX_EPOCH_CHARS)]
DidText = Annotated[Did, text(MAX_DID_BYTES)]
Dids = Annotated[tuple[Did, ...], texts(MAX_RULES, MAX_DID_BYTES)]


# ---------------------------------------------------------------- submit


def _raw(envelope: object) -> object:
    return orjson.Fragment(envelope) if isinstance(envelope, bytes) else envelope


def _positions(m: jose.Members, name: str) -> tuple[int, ...]:
    values = m.optional_array(name, limit=MAX_ENVELOPES)
    if any(type(position) is not int or position < 0 for position in values):
        raise ValueError(f"{name} must be positions in envelopes")
    return tuple(values)


@dataclass(frozen=True, slots=True)
class Submit:
    """Envelopes for the relay to store: raw ``{"jws","body"}`` objects or wire bytes.

    Only a peer sends the last three members.

    Args:
        ref: named by the answer.
        envelopes: what to store.
        hops: the relays that had them, the newest last.
        marked: positions of those that their recipient may have received before.
        handoff: the hand-off that they belong to; all are for one recipient.
    """

    ref: Ref
    envelopes: Annotated[
        Sequence[object],
        Field(
            lambda m, name: m.array(name, minimum=1, limit=MAX_ENVELOPES),
            lambda envelopes: [_raw(one) for one in envelopes],
        ),
    ]
    hops: Annotated[tuple[Did, ...], texts(_MAX_HOPS_READ, MAX_DID_BYTES)] = ()
    marked: Annotated[tuple[int, ...], Field(_positions)] = ()
    handoff: Annotated[str, optional(text(MAX_HANDOFF_ID_CHARS), "")] = ""


def _check_submit(frame: Submit) -> None:
    if frame.marked and max(frame.marked) >= len(frame.envelopes):
        raise ValueError("marked must be positions in envelopes")


_SUBMIT_HEAD: Final = b'{"t":"submit","ref":"'
_SUBMIT_MEMBERS: Final = {"t", "ref", "envelopes"}
_ENVELOPE_MEMBERS: Final = {"jws", "body"}


def quick_submit(data: bytes) -> Submit | None:
    """Read the usual ``submit`` in a third of the time of the general reader.

    None means "read it again, slowly": only the general reader refuses.
    """
    if not data.startswith(_SUBMIT_HEAD):
        return None
    try:
        members = jose.loads_own(data)
        ref, envelopes = members["ref"], members["envelopes"]
        is_usual = (
            members.keys() == _SUBMIT_MEMBERS
            and 0 < len(ref) <= MAX_REF_CHARS
            and type(envelopes) is list
            and 0 < len(envelopes) <= MAX_ENVELOPES
            and all(
                type(item) is dict
                and item.keys() == _ENVELOPE_MEMBERS
                and type(item["jws"]) is str
                and type(item["body"]) is str
                for item in envelopes
            )
        )
    except (LookupError, ValueError):
        return None
    return Submit(ref, envelopes) if is_usual else None


@dataclass(frozen=True, slots=True)
class Rejection:
    """One envelope of a submit that was not stored, or whose outcome is unknown."""

    ref: Ref
    i: Annotated[int, integer(MAX_ENVELOPES - 1)]
    error: Code
    stored: Annotated[Stored, one_of(Stored)]
    detail: Detail = ""
    retry_after: RetryAfter = None
    record: OptionalRecord = None


REJECTION: Final = Codec(Rejection)


def _ref(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_REF_CHARS:
        raise ValueError(f"refs must be strings of 1 to {MAX_REF_CHARS} characters")
    return value


@dataclass(frozen=True, slots=True)
class Submitted:
    """The answer to all submits in ``refs``, oldest first."""

    refs: Annotated[tuple[str, ...], array(_ref, MAX_REFS, minimum=1)]
    receipt: Annotated[str | None, optional(text(MAX_RECEIPT_BYTES))._replace(is_null=True)]
    rejected: Annotated[tuple[Rejection, ...], objects(REJECTION, MAX_REFS)] = ()


# ---------------------------------------------------------------- deliver and ack


class DeliverItem(NamedTuple):
    """One delivered envelope: wire bytes when written, the raw object when read."""

    seq: Seq
    redelivered: bool
    envelope: object


def _read_deliver_item(value: Any) -> DeliverItem:
    m = jose.Members(value)
    m.object("envelope")
    return DeliverItem(
        Seq(m.integer("seq", minimum=1)), m.boolean("redelivered"), value["envelope"]
    )


def _write_deliver_items(items: Sequence[DeliverItem]) -> list[dict[str, Any]]:
    return [
        {"seq": seq, "redelivered": redelivered, "envelope": _raw(envelope)}
        for seq, redelivered, envelope in items
    ]


@dataclass(frozen=True, slots=True)
class Deliver:
    """Envelopes in seq order."""

    epoch: InboxEpoch
    items: Annotated[
        tuple[DeliverItem, ...],
        array(_read_deliver_item, MAX_SEQS, minimum=1, write=_write_deliver_items),
    ]


def read_range(value: object) -> Range:
    """Read one range of a gap.

    Raises:
        ValueError: its form is wrong.
    """
    m = jose.Members(value)
    start = m.integer("from_seq", minimum=1)
    end = m.integer("to_seq", minimum=start)
    return Range(Seq(start), Seq(end), Reason(m.text("reason", limit=16)))


def write_range(item: Range) -> dict[str, Any]:
    """Return one range of a gap as JSON shows it."""
    return {"from_seq": item.start, "to_seq": item.end, "reason": item.reason}


@dataclass(frozen=True, slots=True)
class Gap:
    """Seqs that hold no envelope any more, and why."""

    epoch: InboxEpoch
    ranges: Annotated[
        tuple[Range, ...],
        array(read_range, MAX_SEQS, minimum=1, write=lambda items: [*map(write_range, items)]),
    ]


def _seqs(m: jose.Members, name: str) -> tuple[Seq, ...]:
    values = m.optional_array(name, limit=MAX_SEQS)
    if any(type(value) is not int or value < 1 for value in values):
        raise ValueError(f"{name} must be positive integers")
    return tuple(values)


def _read_refuse(m: jose.Members, name: str) -> tuple[tuple[Seq, str], ...]:
    items = map(jose.Members, m.optional_array(name, limit=MAX_SEQS))
    return tuple(
        (Seq(item.integer("seq", minimum=1)), item.text("code", limit=MAX_CODE_CHARS))
        for item in items
    )


Seqs = Annotated[tuple[Seq, ...], Field(_seqs)]


@dataclass(frozen=True, slots=True)
class Ack:
    """Durably processed, delete it; ``refuse`` is for what cannot be processed."""

    epoch: InboxEpoch
    upto: Annotated[Seq, optional(integer(), 0)] = Seq(0)
    seqs: Seqs = ()
    refuse: Annotated[
        tuple[tuple[Seq, str], ...],
        Field(_read_refuse, lambda items: [{"seq": seq, "code": code} for seq, code in items]),
    ] = ()


@dataclass(frozen=True, slots=True)
class Acked:
    """The ack is durable; ``upto`` is the cursor now."""

    epoch: InboxEpoch
    upto: Annotated[Seq, integer()]
    seqs: Seqs = ()
    refused: Seqs = ()


# ---------------------------------------------------------------- status

State = Literal["stored", "forwarded", "acked", "expired", "refused", "corrupt", "moved", "unknown"]
EnvelopeId = Annotated[str, text(36)]
OptionalDid = Annotated[Did | None, optional(text(MAX_DID_BYTES))]


@dataclass(frozen=True, slots=True)
class StatusItem:
    """An envelope by recipient and the sender's own id; a peer names the ``sender``, too."""

    to: DidText
    id: EnvelopeId
    sender: Annotated[Did | None, optional(text(MAX_DID_BYTES))._replace(wire="from")] = None


@dataclass(frozen=True, slots=True)
class StatusAnswer:
    """The state of one envelope, as far as this relay remembers.

    ``peer`` is the relay that took it over from this one; ``receipt`` is b64url(SHA-256) of that
    relay's receipt: the receipt itself names other envelopes.
    """

    to: DidText
    id: EnvelopeId
    state: Annotated[State, one_of(State)]
    peer: OptionalDid = None
    receipt: Annotated[str | None, optional(base64(32))] = None


STATUS_ANSWER: Final = Codec(StatusAnswer)


@dataclass(frozen=True, slots=True)
class Status:
    """Ask what became of these envelopes."""

    ref: Ref
    items: Annotated[
        tuple[StatusItem, ...], objects(Codec(StatusItem), MAX_STATUS_ITEMS, minimum=1)
    ]


@dataclass(frozen=True, slots=True)
class Statuses:
    """The answer to ``status``, in its order."""

    ref: Ref
    items: Annotated[tuple[StatusAnswer, ...], objects(STATUS_ANSWER, MAX_STATUS_ITEMS, minimum=1)]


# ---------------------------------------------------------------- rules


@dataclass(frozen=True, slots=True)
class Rules:
    """Change the rules of the own inbox; what is not named stays, naming nothing only reads.

    Whether a text is a DID is no question of form: it is answered, and ends nothing.
    """

    ref: Ref
    first_contact: Annotated[FirstContact | None, optional(one_of(FirstContact))] = None
    allow: Dids = ()
    deny: Dids = ()
    forget: Dids = ()


@dataclass(frozen=True, slots=True)
class Ruled:
    """The current rules of the own inbox, and the number of its contacts."""

    ref: Ref
    first_contact: Annotated[FirstContact, one_of(FirstContact)]
    allow: Dids
    deny: Dids
    contacts: Annotated[int, integer()]


_ASKED: Final = SenderField.AGENT | SenderField.PEER
_ANSWERED: Final = SenderField.HOST_TO_AGENT | SenderField.HOST_TO_PEER
CODECS: Final[tuple[Codec[Any], ...]] = (
    Codec(Submit, _ASKED, is_sparse=True, check=_check_submit),
    Codec(Submitted, _ANSWERED),
    Codec(Deliver, SenderField.HOST_TO_AGENT),
    Codec(Gap, SenderField.HOST_TO_AGENT),
    Codec(Ack, SenderField.AGENT),
    Codec(Acked, SenderField.HOST_TO_AGENT),
    Codec(Status, _ASKED),
    Codec(Statuses, _ANSWERED),
    Codec(Rules, SenderField.AGENT),
    Codec(Ruled, SenderField.HOST_TO_AGENT),
)
PARTS: Final[tuple[Codec[Any], ...]] = (REJECTION, STATUS_ANSWER)
