"""What is kept of a peer, and what its newer signed information changes in that."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Final, NamedTuple

from relay import clock
from relay.peering.ports import PeerRow
from relay.protocol import relay_info
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import Timestamp
from relay.protocol.relay_info import RelayInfo


class Refused(NamedTuple):
    """A relay would not deal with this one."""

    code: ErrorCode
    detail: str
    at: int


FRESH_S: Final = 60
"""News only once a minute: who signs anew all the time makes work for all."""
_REMEMBERED: Final = 2_000


def is_newer(row: PeerRow, info: RelayInfo) -> bool:
    """Whether ``info`` is news of this relay."""
    if row.info is None:
        return True
    return info.issued_at >= _times(row.info)[0] + FRESH_S


def is_over(row: PeerRow, now: Timestamp) -> bool:
    """Whether nothing that holds now is known of this relay."""
    return row.info is None or _times(row.info)[1] < now


@lru_cache(maxsize=_REMEMBERED)
def _times(compact: str) -> tuple[int, int]:
    """``iat`` and ``exp``: room for one more is sought among all that are known."""
    info = relay_info.parse(compact)
    return info.issued_at, info.expires_at


def with_info(row: PeerRow | None, info: RelayInfo) -> PeerRow:
    """The row with newer information; the operator's word on where a relay is stands over its own.

    Args:
        row: what is known; None: the relay is learned of now.
        info: verified.
    """
    compact, url = info.jws.compact, info.said.url
    if row is None:
        return PeerRow(info.did, url, "learned", int(clock.now()), compact)
    is_said = row.url and row.standing != "learned"
    return replace(row, info=compact, url=row.url if is_said else url)
