"""The frames about endpoint records, read: ``resolve`` and ``publish`` with their answers.

Rules of the file: as in ``protocol/frames/codec.py``, which registers these readers: ValueError
for any form
that is wrong.
"""

from __future__ import annotations

from typing import Final, get_args

from relay.protocol import jws as jose
from relay.protocol.frames.frames import (
    MAX_REF,
    Publish,
    Published,
    Resolution,
    Resolve,
    Resolved,
)
from relay.protocol.ids import Did

_RESOLUTIONS: Final = frozenset(get_args(Resolution))


def read_resolve(m: jose.Members) -> Resolve:
    """Who is asked about."""
    did, handle = m.optional_text("did", most=512), m.optional_text("handle", most=512)
    if (did is None) == (handle is None):
        raise ValueError("resolve names a did or a handle")
    return Resolve(m.text("ref", most=MAX_REF), Did(did) if did else None, handle)


def read_resolved(m: jose.Members) -> Resolved:
    """What is known."""
    return Resolved(
        m.text("ref", most=MAX_REF),
        m.one_of("state", _RESOLUTIONS),
        m.optional_text("record", most=4096),
        stale=m.boolean("stale") if m.has("stale") else False,
    )


def read_publish(m: jose.Members) -> Publish:
    """A record."""
    return Publish(m.text("ref", most=MAX_REF), m.text("record", most=4096))


def read_published(m: jose.Members) -> Published:
    """What became of it."""
    return Published(
        m.text("ref", most=MAX_REF),
        m.boolean("stored"),
        m.integer("kv", least=1),
        m.integer("seq"),
        m.optional_text("record", most=4096),
    )
