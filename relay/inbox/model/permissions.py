"""Who may say what to a relay: an agent and a peer, each its own frames (PROTOCOL.md §5.10).

Rules of the file: tables and questions about one frame; ``inbox/model/session.py`` acts on the
answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relay.protocol import frames
from relay.protocol.errors import ErrorCode
from relay.protocol.handshake import Role
from relay.protocol.ids import (
    AgentKey,
    Did,
    Fence,
)

CLOSES: Final = frozenset({
    ErrorCode.INTERNAL, ErrorCode.SUPERSEDED, ErrorCode.MIGRATING, ErrorCode.AUTH_REQUIRED,
    ErrorCode.BAD_FRAME, ErrorCode.BAD_SIGNATURE, ErrorCode.WRONG_RELAY, ErrorCode.NOT_ADMITTED,
    ErrorCode.NOT_FEDERATED, ErrorCode.RATE_LIMITED, ErrorCode.OVERLOADED, ErrorCode.DRAINING,
    ErrorCode.STORAGE_UNAVAILABLE, ErrorCode.SLOW_READER, ErrorCode.TOO_LARGE,
    ErrorCode.UNSUPPORTED, ErrorCode.BLOCKED, ErrorCode.MOVED,
})  # fmt: skip
"""Codes that a ``bye`` may carry, since each has a close code (PROTOCOL.md §5.5)."""

SAYS: Final[dict[Role, frozenset[type[frames.Frame]]]] = {
    "agent": frozenset(
        {
            frames.Submit,
            frames.Ack,
            frames.Status,
            frames.Resolve,
            frames.Publish,
            frames.Rules,
            frames.Error,
        }
    ),
    "peer": frozenset(
        {
            frames.Submit,
            frames.Status,
            frames.Resolve,
            frames.Gossip,
            frames.Digest,
            frames.Want,
            frames.Migrate,
            frames.Error,
        }
    ),
}
"""What a dialler may say once its login holds; ``auth`` and ``bye`` aside."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who logged in, and which inbox session it got; no fence for a peer or a send-only session."""

    did: Did
    inbox: AgentKey
    fence: Fence | None
    role: Role = "agent"


def objection(frame: frames.Frame, role: Role) -> str | None:
    """Why a dialler of this role may not say this, in words; None: it may."""
    if type(frame) not in SAYS[role]:
        said = any(type(frame) in kinds for kinds in SAYS.values())
        return f"{_a(role)} does not say that" if said else "a relay says that, not a dialler"
    if isinstance(frame, frames.Gossip) and frame.ref is not None:
        return "nothing was asked: the side that dialled asks"
    if role == "agent" and _speaks_for_others(frame):
        return "only a peer says hops, marked, handoff and from"
    return None


def _a(role: Role) -> str:
    return "an agent" if role == "agent" else "a peer"


def _speaks_for_others(frame: frames.Frame) -> bool:
    match frame:
        case frames.Submit(hops=hops, marked=marked, handoff=handoff):
            return bool(hops or marked or handoff)
        case frames.Status(items=items):
            return any(item.sender is not None for item in items)
        case _:
            return False


def no_to_partner(frame: frames.Frame) -> frames.Error | None:
    """The no to a relay that is dealt with for a hand-off alone (§5.12); None: it may say this.

    Without a ``ref``, where nobody waits for an answer, it is the end of the conversation.
    """
    if isinstance(frame, frames.Migrate | frames.Error) or (
        isinstance(frame, frames.Submit) and frame.handoff
    ):
        return None
    detail = "this relay deals with that one for a hand-off alone"
    return frames.Error(ErrorCode.NOT_FEDERATED, detail, None, getattr(frame, "ref", None))


def is_too_far(submit: frames.Submit, relay: Did) -> bool:
    """Whether its envelopes have gone in a circle, or over too many relays (PROTOCOL.md §5.10)."""
    return len(submit.hops) > frames.MAX_HOPS or relay in submit.hops
