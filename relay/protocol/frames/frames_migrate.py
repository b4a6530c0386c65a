"""The frames of a hand-off, said between relays: ``migrate`` and ``migrated`` (PROTOCOL.md §5.12).

Rules of the file: those of ``protocol/frames/frames.py``, whose ``Frame`` these belong to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relay.protocol.ids import Did
from relay.protocol.types import (
    MovedRules,
)

MAX_DOUBTS: Final = 4_096
MAX_DIGEST_PAGES: Final = 64
MAX_MISSING: Final = 64
MAX_KNOWN: Final = 10_000
"""Contacts that come along; of those allowed and denied there are fewer (``MAX_RULES``)."""


@dataclass(frozen=True, slots=True)
class Migrate:
    """A page of what a frozen source says of an inbox that changes relays (GUARANTEES.md §3).

    Args:
        ref: named by the answer.
        agent: whose inbox.
        handoff: which hand-off.
        evidence: the order, or the earlier record, in which the agent names this source.
        whole: b64url of SHA-256 over the whole digest.
        number: of this page, from 0; they are said in order.
        total: how many pages there are.
        missing: relays whose digests the source itself lacks.
        floor: hours up to this one the source has forgotten; -1 = none.
        doubts: ids that the agent may have seen, 36 bytes each: hour, dedupe key, start of the eid.
        known: with the first page: whom the agent takes envelopes from.
    """

    ref: str
    agent: Did
    handoff: str
    evidence: str
    whole: str
    number: int
    total: int
    missing: tuple[Did, ...] = ()
    floor: int = -1
    doubts: bytes = b""
    known: MovedRules | None = None


@dataclass(frozen=True, slots=True)
class Migrated:
    """The answer to ``migrate``, durable: this page of that digest is wanted next.

    ``next`` is the total once all of them are here.
    """

    ref: str
    handoff: str
    whole: str
    next: int
