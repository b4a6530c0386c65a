"""Records without keys: an order, and as many characters as a real one has.

Rules of the file: what a reader of a real record would find is looked up here by its text, so each
is judged once for all relays; what judging costs is a figure of the simulation.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Final

from relay.protocol import frames
from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.ids import AgentKey

RECORD_CHARS: Final = 708
"""A real record with one home."""
FRAME: Final = 60
"""Members, quotes and brackets of a frame, more or less."""
FORGED: Final = "forged"


@dataclass(frozen=True, slots=True)
class Light:
    """One record: whose, which order, and the text that stands for it."""

    agent: AgentKey
    order: RecordVersion
    text: str


def agent_of(number: int) -> AgentKey:
    """An agent key as long as real ones."""
    return AgentKey(f"key:z6Mk{number:044x}")


def light(number: int, seq: int) -> Light:
    """The record of an agent with this ``seq``."""
    digest = hashlib.sha256(f"{number}:{seq}".encode()).digest()[:16]
    text = f"{number}:{seq}:".ljust(RECORD_CHARS, ".")
    return Light(agent_of(number), RecordVersion(1, seq, digest), text)


@dataclass(slots=True)
class Catalogue:
    """All records that exist, which of each agent is the newest, and an older one if any."""

    by_text: dict[str, Light] = field(default_factory=dict)
    by_order: dict[bytes, Light] = field(default_factory=dict)
    newest: dict[AgentKey, Light] = field(default_factory=dict)
    older: dict[AgentKey, Light] = field(default_factory=dict)

    def add(self, record: Light) -> None:
        """An agent has signed it."""
        self.by_text[record.text] = record
        self.by_order[record.order[2]] = record
        held = self.newest.get(record.agent)
        if held is None or record.order > held.order:
            self.newest[record.agent] = record
            if held is not None:
                self.older[record.agent] = held


@singledispatch
def size_of(frame: object) -> int:
    """About how many bytes a frame has on the wire; a test compares."""
    raise TypeError(f"no frame of the mesh: {frame!r}")


@size_of.register
def _(frame: frames.Gossip) -> int:
    return FRAME + sum(map(len, frame.records)) + 3 * len(frame.records)


@size_of.register
def _(frame: frames.Digest) -> int:
    return FRAME + sum(len(str(bucket)) + 1 for bucket in frame.buckets)


@size_of.register
def _(frame: frames.Digests) -> int:
    return FRAME + sum(28 + len(str(it.bucket)) + len(str(it.records)) for it in frame.items)


@size_of.register
def _(frame: frames.Want) -> int:
    return FRAME + sum(len(agent) + 3 for agent in frame.agents)


@size_of.register
def _(frame: frames.Have) -> int:
    return FRAME + sum(37 + len(it.agent) + len(str(it.seq)) for it in frame.items)
