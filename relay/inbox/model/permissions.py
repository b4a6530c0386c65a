"""Decide which frames a dialler may send: agents and peers, each their own (PROTOCOL.md §5.10).

:data:`ALLOWED_FRAMES` is the table; :mod:`relay.inbox.model.conversation` acts on it. ``auth`` and
``bye`` are not in it: each dialler may send them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relay.protocol import frames
from relay.protocol.errors import ErrorCode
from relay.protocol.handshake import Role
from relay.protocol.ids import AgentKey, Did, Fence

ALLOWED_FRAMES: Final = frames.SENT_BY_DIALER
"""The frames that a dialler may send once it has logged in."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The dialler that logged in, and its inbox session: none for a peer, or to send only."""

    did: Did
    inbox: AgentKey
    fence: Fence | None
    role: Role = "agent"


def why_forbidden(frame: frames.Frame, role: Role) -> str | None:
    """Return why a dialler of this role may not send this; None = it may."""
    if type(frame) not in ALLOWED_FRAMES[role]:
        is_known = any(type(frame) in allowed for allowed in ALLOWED_FRAMES.values())
        sender = "an agent" if role == "agent" else "a peer"
        return f"{sender} does not send that" if is_known else "a relay sends that, not a dialler"
    if isinstance(frame, frames.Gossip) and frame.ref is not None:
        return "nothing was asked: the side that dialled asks"
    if role == "agent" and _speaks_for_others(frame):
        return "only a peer sends hops, marked, handoff and from"
    return None


def _speaks_for_others(frame: frames.Frame) -> bool:
    match frame:
        case frames.Submit(hops=hops, marked=marked, handoff=handoff):
            return bool(hops or marked or handoff)
        case frames.Status(items=items):
            return any(item.sender is not None for item in items)
        case _:
            return False


def refuse_handoff_peer(frame: frames.Frame) -> frames.Error | None:
    """Return the refusal of what is not part of a hand-off (§5.12); None = it is allowed.

    An error without a ``ref``, where nobody waits for an answer, ends the conversation.
    """
    if isinstance(frame, frames.Migrate | frames.Error):
        return None
    if isinstance(frame, frames.Submit) and frame.handoff:
        return None
    detail = "this relay accepts nothing but a hand-off from that one"
    return frames.Error(ErrorCode.NOT_FEDERATED, detail, None, getattr(frame, "ref", None))


def exceeds_hops(submit: frames.Submit, relay: Did) -> bool:
    """Return True if envelopes went in a circle, or over too many relays (PROTOCOL.md §5.10)."""
    return len(submit.hops) > frames.MAX_HOPS or relay in submit.hops
