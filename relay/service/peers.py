"""Peers: which relays this one deals with, and who of them is connected (PROTOCOL.md §5.10).

Rules of the file: closed federation takes only who the operator added, both ways; open takes whom
nobody has blocked; off takes none. A relay is known by its DID, never by its address.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from relay import clock
from relay.core.errors import ErrorCode, RejectedError
from relay.core.ids import Did
from relay.ports_mesh import PeerRow

Federation = Literal["closed", "open", "off"]


class Peers:
    """The relays that this one knows of.

    Args:
        own: this relay.
        federation: which relays may be dealt with.
        given: DID and origin of each that the settings name; they count as added.
        denied: DIDs that the operator does not serve.
    """

    def __init__(
        self,
        own: Did,
        federation: Federation,
        given: Sequence[tuple[Did, str]],
        denied: frozenset[Did],
    ) -> None:
        self.own = own
        self.federation = federation
        now = int(clock.now())
        self.rows = {did: PeerRow(did, url, "added", now) for did, url in given if did != own}
        self.inbound: Counter[Did] = Counter()
        self._denied = denied

    def admit(self, did: Did) -> None:
        """Let a relay log in here, or be dialled.

        Raises:
            RejectedError: ``not_federated`` or ``blocked``.
        """
        row = self.rows.get(did)
        standing = row.standing if row else None
        if did == self.own:
            raise RejectedError(ErrorCode.NOT_FEDERATED, "that is this relay itself")
        if self.federation == "off":
            raise RejectedError(ErrorCode.NOT_FEDERATED, "this relay has no peers")
        if did in self._denied or standing == "blocked":
            raise RejectedError(ErrorCode.BLOCKED, "the operator does not deal with this relay")
        if self.federation == "closed" and standing != "added":
            detail = "this relay deals only with relays that its operator added"
            raise RejectedError(ErrorCode.NOT_FEDERATED, detail)

    def arrived(self, did: Did) -> None:
        """A peer has logged in here."""
        self.inbound[did] += 1

    def left(self, did: Did) -> None:
        """One of its connections is gone."""
        self.inbound[did] -= 1
        if not self.inbound[did]:
            del self.inbound[did]
