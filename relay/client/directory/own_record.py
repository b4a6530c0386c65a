"""The agent's own endpoint record: what it should say, and which relay holds it (PROTOCOL.md §7).

Rules of the file: a home is never taken out of a record here, that is a migration
(:mod:`relay.client.migration.runner`), and as long as one waits for its own record to be
published, no
other is; one is added only where the program itself named all of them (``relays=[…]``), and never
one that the agent has left; a seq never goes back, whatever a relay answers, and nothing is signed
before each relay that can be reached was asked for the newest record that it holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from relay.client.errors import AgentError, typed
from relay.client.state.agent_state import AgentState
from relay.protocol import endpoint_record, frames
from relay.protocol.did import (
    SigningKey,
    parse_did,
)
from relay.protocol.endpoint_record import (
    EndpointRecord,
    Home,
)
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
)
from relay.protocol.ids import (
    Did,
    Timestamp,
)

RENEW_AFTER_S: Final = endpoint_record.RECORD_LIFETIME_S / 2
JITTER: Final = 0.1
"""Agents that began together do not publish together for ever."""
FORKED: Final = "two records of one seq are signed with this key: is a second copy of it running?"


@dataclass(slots=True)
class Homes:
    """The agent's record, as its relays hold it and as it should be.

    Args:
        key: the agent.
        state: keeps the newest record.
        named: origins of all relays that the program named, best first.
        share: how early in its jitter this agent renews, 0 to 1.
        warn: is told what the program should know.
    """

    key: SigningKey
    state: AgentState
    named: Sequence[str]
    share: float
    warn: Callable[[AgentError], None]
    news: asyncio.Event = field(default_factory=asyncio.Event)
    _members: dict[Did, str] = field(default_factory=dict)
    _held: dict[Did, EndpointRecord] = field(default_factory=dict)

    # ------------------------------------------------------------ what relays say

    def joined(self, relay: Did, url: str) -> None:
        """A relay has proved itself at ``url``."""
        self._members[relay] = url

    def learn(self, relay: Did, answer: frames.Resolved, *, has_inbox: bool) -> None:
        """Take a relay's answer about the own record.

        Args:
            relay: whose answer.
            answer: found, absent or unreadable.
            has_inbox: the relay has opened an inbox of this agent, so it is a home.

        Raises:
            UnavailableError: nobody can say now where this agent lives.
            ProtocolError: the record is not of this agent.
        """
        if answer.state == "unreadable" and self.newest is None and not has_inbox:
            # a relay may be unable to ask others; who has an inbox at it need not wait for them
            detail = "the relay cannot tell which record it holds of this agent"
            raise typed(ErrorCode.STORAGE_UNAVAILABLE, detail)
        if answer.record is not None:
            self._hold(relay, answer.record)

    def told(self, record: str) -> None:
        """Take a record that came with a relay's word that the agent has moved."""
        self._keep(self._read(record))

    def published(self, relay: Did, record: str, answer: frames.Published) -> None:
        """Take the answer to a publish; another record than ours is newer.

        Raises:
            ProtocolError: the one held instead is missing, not newer, or not of this agent.
        """
        if answer.stored:
            self._hold(relay, record)
            return
        held = self._read(answer.record or "")
        if held.version > endpoint_record.parse(record).version:
            self._hold(relay, held.jws.compact)
        else:
            raise ProtocolError(ErrorCode.BAD_FRAME, "the relay took no record and has none newer")

    def _hold(self, relay: Did, compact: str) -> None:
        record = self._read(compact)
        self._held[relay] = endpoint_record.merge(self._held.get(relay), record)
        self._keep(record)

    def _read(self, compact: str) -> EndpointRecord:
        record = endpoint_record.parse(compact)
        if record.did != self.key.did:
            raise ProtocolError(ErrorCode.BAD_SIGNATURE, "a record of another agent")
        no = endpoint_record.verify(record, parse_did(record.did), Timestamp(record.issued_at))
        if no is not None:
            raise no.to_error()
        return record

    def _keep(self, record: EndpointRecord) -> None:
        newest = self.newest
        is_seq_of_ours = newest is not None and newest.version[:2] == record.version[:2]
        if newest is not None and is_seq_of_ours and newest.version != record.version:
            self.warn(typed(ErrorCode.STALE_RECORD, FORKED))
        self.state.keep_record(record.jws.compact)
        if self.newest != newest:
            self._tell()

    def announce(self) -> None:
        """The newest record is another one, or is free to be published."""
        self._tell()

    def _tell(self) -> None:
        # each wait has its own event: one that is cleared could be missed by another home
        self.news.set()
        self.news = asyncio.Event()

    # ------------------------------------------------------------ what is so

    @property
    def newest(self) -> EndpointRecord | None:
        """The newest record that is known of this agent."""
        return endpoint_record.parse(self.state.record) if self.state.record else None

    def is_home(self, relay: Did) -> bool:
        """Whether the newest record names ``relay``."""
        newest = self.newest
        return newest is not None and newest.names(relay)

    def no_home(self, relay: Did, url: str) -> AgentError:
        """Why a relay holds no inbox: the record names other homes, or another key at its address.

        So it is for an agent that has no pin, where others told the relay of the record.
        """
        newest = self.newest
        detail = f"{relay} holds no inbox of this agent: its record names another home"
        for home in newest.relays if newest else ():
            if home.url == url:
                detail = self.state.wrong_relay(url, relay, home.did).detail
        return typed(ErrorCode.MOVED, detail, record=self.state.record)

    def is_published(self, relay: Did) -> bool:
        """Whether ``relay`` is known to hold the newest record."""
        held, newest = self._held.get(relay), self.newest
        return held is not None and newest is not None and held.version >= newest.version

    def rank(self, relay: Did, url: str) -> tuple[int, int]:
        """Where ``relay`` stands among those to send through; lower is better."""
        newest = self.newest
        prios = [home.prio for home in newest.relays if home.did == relay] if newest else []
        return (prios[0] if prios else endpoint_record.MAX_HOMES, self._place(url))

    def _is_named(self, relay: Did, url: str) -> bool:
        """Whether the program names it; a home that was left counts no more: it may name it yet."""
        newest = self.newest
        has_left = any(relay == left.did for left in (newest.drain if newest else ()))
        return url in self.named and not has_left

    def _place(self, url: str) -> int:
        return self.named.index(url) if url in self.named else len(self.named)

    # ------------------------------------------------------------ what to say

    def next_record(self, relay: Did, now: Timestamp) -> str | None:
        """What to publish at ``relay`` now; None where it holds the right one or is no home."""
        newest = self.newest
        if self.state.migration.locks_record:
            return None
        if newest is None:
            return self._sign((), (), now)
        url = self._members[relay]
        if not newest.names(relay) and not self._may_join(newest, relay, url):
            return None
        is_right = any((home.did, home.url) == (relay, url) for home in newest.relays)
        if is_right and newest.status == "active" and self._age(newest, now) < self._renew_after_s:
            return None if self.is_published(relay) else newest.jws.compact
        return self._sign(newest.relays, newest.handles, now)

    def renew(self, handles: Sequence[str] | None, now: Timestamp) -> None:
        """Sign the next record, to be published at each home.

        Args:
            handles: what it lists; None: what it did.
            now: the wall clock.

        Raises:
            ProtocolError: these handles make no record.
            MigratingError: another record is signed already, since the agent changes relays.
        """
        self.state.migration.ensure_record_unlocked()
        newest = self.newest
        before = newest.handles if newest else ()
        self._sign(newest.relays if newest else (), handles if handles is not None else before, now)

    def _may_join(self, newest: EndpointRecord, relay: Did, url: str) -> bool:
        """Whether a relay is one more home beside the record's, all named by the program."""
        is_one_of_ours = self._is_named(relay, url) and newest.status == "active"
        has_room = 0 < len(newest.relays) < endpoint_record.MAX_HOMES
        return is_one_of_ours and has_room and {h.url for h in newest.relays} <= {*self.named}

    def _sign(self, before: tuple[Home, ...], handles: Sequence[str], now: Timestamp) -> str:
        """Name those before, where they are now, and all that may join them; it is kept at once."""
        is_open = {home.url for home in before} <= {*self.named}
        homes = {home.did: home for home in before}
        for relay, url in self._members.items():
            if relay in homes or (is_open and self._is_named(relay, url)):
                homes[relay] = Home(relay, url, self._prio(homes.get(relay), url))
        best = sorted(homes.values(), key=lambda home: home.did not in {h.did for h in before})
        best = sorted(best[: endpoint_record.MAX_HOMES], key=lambda home: home.prio)
        newest = self.newest
        compact = endpoint_record.sign(
            self.key,
            best,
            now=now,
            newest_seq=self.state.record_seq,
            handles=handles,
            drain=newest.drain if newest else (),
            enc=newest.enc if newest else None,
        )
        self._keep(endpoint_record.parse(compact))
        return compact

    def _prio(self, before: Home | None, url: str) -> int:
        is_named = url in self.named
        return self._place(url) if is_named or before is None else before.prio

    @property
    def _renew_after_s(self) -> float:
        return RENEW_AFTER_S * (1 - JITTER * self.share)

    def renew_in(self, now: Timestamp) -> float:
        """Seconds until the record is due again."""
        newest = self.newest
        age = self._age(newest, now) if newest else 0.0
        return max(60.0, self._renew_after_s - age)

    @staticmethod
    def _age(record: EndpointRecord, now: Timestamp) -> float:
        return max(0.0, now - record.issued_at)
