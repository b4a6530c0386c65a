"""When an agent publishes its endpoint record, and what it says (PROTOCOL.md §5.2, §7).

Rules of the file: a home is never taken out of a record here, that would be a migration; one is
added only where the program itself named all of them (``relays=[…]``); a seq never goes back,
whatever a relay answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relay.client.errors import typed
from relay.client.state import State
from relay.core import records
from relay.core.errors import ErrorCode, ProtocolError
from relay.core.frames import Published, Resolved
from relay.core.identity import SigningKey, parse_did
from relay.core.ids import Did, Timestamp
from relay.core.records import EndpointRecord, Home

RENEW_AFTER_S: Final = records.MAX_LIFETIME_S / 2


@dataclass(slots=True)
class Homes:
    """The agent's record, as one relay holds it and as it should be.

    Args:
        key: the agent.
        relay: the relay at the other end.
        url: its origin.
        state: keeps the newest record.
        named: origins of all relays that the program named.
    """

    key: SigningKey
    relay: Did
    url: str
    state: State
    named: frozenset[str] = frozenset()
    _held: EndpointRecord | None = None

    def learn(self, answer: Resolved) -> None:
        """Take the relay's answer about the own record.

        Raises:
            UnavailableError: it could not be read just now.
            ProtocolError: it is not of this agent.
        """
        if answer.state == "unreadable":
            raise typed(ErrorCode.STORAGE_UNAVAILABLE, "the relay cannot read its directory")
        if answer.record is not None:
            self._hold(answer.record)

    def published(self, record: str, answer: Published) -> None:
        """Take the answer to a publish; another record than ours is newer.

        Raises:
            ProtocolError: the one held instead is missing, not newer, or not of this agent.
        """
        if answer.stored:
            self._hold(record)
            return
        before = self._newest()
        self._hold(answer.record or "")
        if before is not None and self._newest() == before:
            raise ProtocolError(ErrorCode.BAD_FRAME, "the relay took no record and has none newer")

    def _hold(self, compact: str) -> None:
        record = records.parse(compact)
        if record.did != self.key.did:
            raise ProtocolError(ErrorCode.BAD_SIGNATURE, "a record of another agent")
        no = records.verify(record, parse_did(record.did), Timestamp(record.issued_at))
        if no is not None:
            raise no.to_error()
        self._held = records.merge(self._held, record)
        self.state.keep_record(compact)

    def _newest(self) -> EndpointRecord | None:
        return records.parse(self.state.record) if self.state.record else None

    @property
    def is_home(self) -> bool:
        """Whether the newest record names this relay."""
        newest = self._newest()
        return newest is not None and newest.names(self.relay)

    def next_record(self, now: Timestamp) -> str | None:
        """What to publish now; None where the relay holds the right one or is no home."""
        newest = self._newest()
        if newest is None:
            return self._sign((), (), now)
        if not newest.names(self.relay) and not self._may_join(newest):
            return None
        here = Home(self.relay, self.url)
        is_right = any((home.did, home.url) == (here.did, here.url) for home in newest.relays)
        if is_right and newest.status == "active" and self._age(newest, now) < RENEW_AFTER_S:
            is_held = self._held is not None and self._held.order >= newest.order
            return None if is_held else newest.jws.compact
        others = tuple(home for home in newest.relays if home.did != self.relay)
        return self._sign(others, newest.handles, now)

    def _may_join(self, newest: EndpointRecord) -> bool:
        """Whether this relay is one more home beside the record's, all named by the program."""
        is_one_of_ours = self.url in self.named and newest.status == "active"
        has_room = 0 < len(newest.relays) < records.MAX_RELAYS
        return is_one_of_ours and has_room and {h.url for h in newest.relays} <= self.named

    def _sign(self, others: tuple[Home, ...], handles: tuple[str, ...], now: Timestamp) -> str:
        homes = (Home(self.relay, self.url), *others)[: records.MAX_RELAYS]
        seq = self.state.record_seq
        return records.sign(self.key, homes, now=now, newest_seq=seq, handles=handles)

    def renew_in(self, now: Timestamp) -> float:
        """Seconds until the record is due again."""
        newest = self._newest()
        age = self._age(newest, now) if newest else 0.0
        return max(60.0, RENEW_AFTER_S - age)

    @staticmethod
    def _age(record: EndpointRecord, now: Timestamp) -> float:
        return max(0.0, now - record.issued_at)
