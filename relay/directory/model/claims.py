"""Who gets a name under this relay: one rule for every store.

Rules of the file: pure; a name that an agent has left is nobody else's for a year, so that mail for
it does not reach a stranger.
"""

from __future__ import annotations

from typing import Final

from relay.peering.ports import HandleRow
from relay.protocol.ids import Did

HELD_BACK_S: Final = 365 * 24 * 3600
"""How long a name that was left is not given to another."""


def claimed(held: HandleRow | None, name: str, did: Did, now: int) -> HandleRow:
    """Who holds a name after ``did`` has asked for it; ``held`` itself where nothing changes."""
    if held is None:
        return HandleRow(name, did, now)
    if held.did == did:
        return held if held.left_at is None else HandleRow(name, did, held.since)
    if held.left_at is not None and held.left_at + HELD_BACK_S <= now:
        return HandleRow(name, did, now)
    return held
