"""The frames about what became of envelopes: ``status`` and ``statuses`` (PROTOCOL.md §5.5).

Rules of the file: as in ``protocol/frames/codec.py``, which registers these: ValueError for any
form that is
wrong.
"""

from __future__ import annotations

from typing import Any, Final, get_args

from relay.protocol import jws as jose
from relay.protocol.frames.frames import (
    MAX_REF,
    MAX_STATUS,
    State,
    Status,
    StatusAnswer,
    Statuses,
    StatusItem,
)
from relay.protocol.ids import Did

_STATES: Final = frozenset(get_args(State))


def encode_status(frame: Status) -> dict[str, Any]:
    """Its members; only a peer names the sender."""
    items = [
        {"to": item.to, "id": item.id, **({"from": item.sender} if item.sender else {})}
        for item in frame.items
    ]
    return {"ref": frame.ref, "items": items}


def encode_statuses(frame: Statuses) -> dict[str, Any]:
    """Its members; what is not known is left out."""
    return {"ref": frame.ref, "items": [_answer(item) for item in frame.items]}


def _answer(item: StatusAnswer) -> dict[str, Any]:
    found = ((name, getattr(item, name)) for name in type(item).__slots__)
    return {name: value for name, value in found if value is not None}


def read_status(m: jose.Members) -> Status:
    """Which envelopes."""
    items = [jose.Members(item) for item in m.array("items", least=1, most=MAX_STATUS)]
    return Status(m.text("ref", most=MAX_REF), tuple(_read_status_item(item) for item in items))


def _read_status_item(m: jose.Members) -> StatusItem:
    sender = m.optional_text("from", most=512)
    to, name = Did(m.text("to", most=512)), m.text("id", most=36)
    return StatusItem(to, name, Did(sender) if sender else None)


def read_statuses(m: jose.Members) -> Statuses:
    """What became of each."""
    items = [jose.Members(item) for item in m.array("items", least=1, most=MAX_STATUS)]
    return Statuses(m.text("ref", most=MAX_REF), tuple(_read_answer(item) for item in items))


def _read_answer(m: jose.Members) -> StatusAnswer:
    to, name = Did(m.text("to", most=512)), m.text("id", most=36)
    peer = m.optional_text("peer", most=512)
    receipt = jose.b64encode(m.base64("receipt", size=32)) if m.has("receipt") else None
    return StatusAnswer(to, name, m.one_of("state", _STATES), Did(peer) if peer else None, receipt)
