"""The frames about rules, read: ``rules`` and ``ruled`` (PROTOCOL.md §5.5).

Rules of the file: as in ``protocol/frames/codec.py``, which registers these readers: ValueError
for any form
that is wrong. Whether a text is a DID is no question of form: that is answered, not fatal.
"""

from __future__ import annotations

from typing import Final, get_args

from relay.protocol import jws as jose
from relay.protocol.frames.frames import (
    MAX_REF,
    MAX_RULES,
    Ruled,
    Rules,
)
from relay.protocol.ids import (
    MAX_DID_BYTES,
    Did,
)
from relay.protocol.types import FirstContact

_FIRST_CONTACT: Final = frozenset(get_args(FirstContact))


def read_rules(m: jose.Members, ref: str | None = None) -> Rules:
    """A wish to change rules; ``ref`` is given where the edge has none.

    Raises:
        ValueError: its form.
    """
    return Rules(
        ref or m.text("ref", most=MAX_REF),
        m.one_of("first_contact", _FIRST_CONTACT) if m.has("first_contact") else None,
        _dids(m, "allow"),
        _dids(m, "deny"),
        _dids(m, "forget"),
    )


def read_ruled(m: jose.Members, ref: str | None = None) -> Ruled:
    """The rules as they are; ``ref`` is given where the edge has none.

    Raises:
        ValueError: its form.
    """
    return Ruled(
        ref or m.text("ref", most=MAX_REF),
        m.one_of("first_contact", _FIRST_CONTACT),
        _dids(m, "allow"),
        _dids(m, "deny"),
        m.integer("contacts"),
    )


def _dids(m: jose.Members, name: str) -> tuple[Did, ...]:
    values = m.optional_array(name, most=MAX_RULES)
    dids = (did for did in values if isinstance(did, str) and 0 < len(did) <= MAX_DID_BYTES)
    found = tuple(map(Did, dids))
    if len(found) != len(values):
        raise ValueError(f"{name} must be strings of 1 to {MAX_DID_BYTES} characters")
    return found
