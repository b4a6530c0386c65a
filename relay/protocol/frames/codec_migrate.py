"""The frames of a hand-off, written and read: ``migrate`` and ``migrated`` (PROTOCOL.md §5.12).

Rules of the file: as in ``protocol/frames/codec.py``, which registers these: ValueError for any
form that is
wrong. What is signed inside, and whether a digest is right, is judged by who takes it.
"""

from __future__ import annotations

from typing import Any, Final, get_args

from relay.protocol import jws as jose
from relay.protocol.frames.codec_mesh import (
    MAX_AGENT_KEY,
    read_texts,
)
from relay.protocol.frames.frames import (
    MAX_REF,
    MAX_RULES,
)
from relay.protocol.frames.frames_migrate import (
    MAX_DIGEST_PAGES,
    MAX_DOUBTS,
    MAX_KNOWN,
    MAX_MISSING,
    Migrate,
    Migrated,
)
from relay.protocol.ids import (
    MAX_DID_BYTES,
    MAX_HANDOFF_ID_CHARS,
    AgentKey,
    Did,
)
from relay.protocol.migration_order import (
    MAX_ORDER_BYTES as MAX_EVIDENCE,
)
from relay.protocol.types import (
    MAYBE_SEEN_ID_BYTES,
    FirstContact,
    MovedRules,
)

WHOLE_BYTES: Final = 32
_FIRST_CONTACT: Final = frozenset(get_args(FirstContact))


def encode_migrate(frame: Migrate) -> dict[str, Any]:
    """Its members; what is empty is left out."""
    said: dict[str, Any] = {
        "ref": frame.ref,
        "agent": frame.agent,
        "handoff": frame.handoff,
        "evidence": frame.evidence,
        "whole": frame.whole,
        "number": frame.number,
        "total": frame.total,
    }
    if frame.missing:
        said["missing"] = frame.missing
    if frame.floor >= 0:
        said["floor"] = frame.floor
    if frame.doubts:
        said["doubts"] = jose.b64encode(frame.doubts)
    if frame.known is not None:
        said["known"] = frame.known._asdict()
    return said


def read_migrate(m: jose.Members) -> Migrate:
    """A page of a digest."""
    total = m.integer("total", least=1, most=MAX_DIGEST_PAGES)
    return Migrate(
        ref=m.text("ref", most=MAX_REF),
        agent=Did(m.text("agent", most=MAX_DID_BYTES)),
        handoff=m.text("handoff", most=MAX_HANDOFF_ID_CHARS),
        evidence=m.text("evidence", most=MAX_EVIDENCE),
        whole=_whole(m),
        number=m.integer("number", most=total - 1),
        total=total,
        missing=tuple(map(Did, read_texts(m, "missing", most=MAX_MISSING, longest=MAX_DID_BYTES))),
        floor=m.integer("floor") if m.has("floor") else -1,
        doubts=_doubts(m),
        known=_known(m.object("known")) if m.has("known") else None,
    )


def read_migrated(m: jose.Members) -> Migrated:
    """Which page is wanted next."""
    return Migrated(
        m.text("ref", most=MAX_REF),
        m.text("handoff", most=MAX_HANDOFF_ID_CHARS),
        _whole(m),
        m.integer("next", most=MAX_DIGEST_PAGES),
    )


def _whole(m: jose.Members) -> str:
    return jose.b64encode(m.base64("whole", size=WHOLE_BYTES))


def _doubts(m: jose.Members) -> bytes:
    if not m.has("doubts"):
        return b""
    doubts = jose.b64decode(m.text("doubts", most=MAX_DOUBTS * MAYBE_SEEN_ID_BYTES * 4 // 3))
    if len(doubts) % MAYBE_SEEN_ID_BYTES:
        raise ValueError(f"doubts are of {MAYBE_SEEN_ID_BYTES} bytes each")
    return doubts


def _known(m: jose.Members) -> MovedRules:
    return MovedRules(
        m.one_of("first_contact", _FIRST_CONTACT),
        _agents(m, "allow", MAX_RULES),
        _agents(m, "deny", MAX_RULES),
        _agents(m, "contacts", MAX_KNOWN),
    )


def _agents(m: jose.Members, name: str, most: int) -> tuple[AgentKey, ...]:
    return tuple(map(AgentKey, read_texts(m, name, most=most, longest=MAX_AGENT_KEY)))
