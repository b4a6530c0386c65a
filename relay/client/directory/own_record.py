"""The agent's own endpoint record: its content, and which relay holds it (PROTOCOL.md §7).

Entry point: :class:`OwnRecord`, which alone signs records of its agent. Invariants: the version of
the record never decreases, whatever a relay answers. Before it signs, it asks each relay that it
can reach for the newest record. It removes no home: that is a migration
(:mod:`relay.client.migration.runner`), and while the record of one waits to be published it signs
none. It adds a home only if the program named all of them (``relays=[…]``), and never one that the
agent has left.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from relay import clock
from relay.client._util import Signal
from relay.client.directory.resolve import ResolveResult, resolve_at, verify
from relay.client.errors import AgentError, from_core, make_error
from relay.client.http import origin as origins
from relay.client.http.origin import Origin
from relay.client.http.relay_api import RelayApi
from relay.client.state.agent_state import AgentState
from relay.protocol import endpoint_record, frames
from relay.protocol.did import SigningKey, parse_did
from relay.protocol.endpoint_record import EndpointRecord, FormerHome, Home
from relay.protocol.errors import ErrorCode, ProtocolError, RelayError
from relay.protocol.ids import Did, Timestamp

RENEW_AFTER_S: Final = endpoint_record.RECORD_LIFETIME_S / 2
MIN_RENEW_S: Final = 60.0
JITTER: Final = 0.1
"""Agents that began together do not publish together for ever."""
PUBLISH_TRIES: Final = 3
"""Another program of this agent may publish at the same time; the newer record wins."""
FORKED: Final = "two records of one seq are signed with this key: is a second copy of it running?"

Change = Callable[[tuple[str, ...]], Sequence[str]]
"""From the handles in the newest record to those in the next one."""

_log: Final = logging.getLogger("relay.client")


def _log_warning(warning: AgentError) -> None:
    _log.warning("%s", warning)


@dataclass(frozen=True, slots=True)
class Publication:
    """A published record, and the other homes that did not take it: URL and reason."""

    record: EndpointRecord
    missed: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class OwnRecord:
    """The agent's record, as its relays hold it and as it should be.

    Args:
        key: the agent.
        state: saves the newest record.
        named: origins of all relays that the program named, best first.
        jitter: how early in its jitter this agent renews, 0 to 1.
        warn: called with warnings for the program.
    """

    key: SigningKey
    state: AgentState
    named: Sequence[str] = ()
    jitter: float = 0.0
    warn: Callable[[AgentError], None] = _log_warning
    changed: Signal = field(default_factory=Signal)
    _members: dict[Did, str] = field(default_factory=dict)
    _held: dict[Did, EndpointRecord] = field(default_factory=dict)

    @property
    def newest(self) -> EndpointRecord | None:
        """The newest record that is known of this agent."""
        return self.state.newest_record

    def sign_next(
        self,
        relays: Sequence[Home],
        now: Timestamp,
        *,
        handles: Sequence[str] | None = None,
        drain: Sequence[FormerHome] | None = None,
        status: endpoint_record.RecordStatus = "active",
        min_seq: int = 0,
    ) -> EndpointRecord:
        """Sign a record above every one that was signed before; it is not saved yet.

        The record in the order of a migration counts, although it may never be published.

        Args:
            relays: its homes.
            now: the wall clock.
            handles: None: those of the newest record.
            drain: homes that were left; None: those of the newest record.
            status: as in :func:`endpoint_record.sign`.
            min_seq: another seq that the record must be above.

        Raises:
            ProtocolError: these values make no record.
        """
        newest = self.newest
        compact = endpoint_record.sign(
            self.key,
            relays,
            now=now,
            newest_seq=max(self.state.record_seq, self.state.migration.record_seq, min_seq),
            handles=handles if handles is not None else newest.handles if newest else (),
            status=status,
            drain=drain if drain is not None else newest.drain if newest else (),
            enc=newest.enc if newest else None,
        )
        try:
            return endpoint_record.parse(compact)
        except RelayError as exc:
            raise from_core(exc) from exc

    async def refresh_from(self, origin: Origin) -> ResolveResult:
        """Ask a relay for the newest record of this agent, and save it.

        Raises:
            AgentError: the relay's refusal, or no answer.
        """
        found = await resolve_at(origin, self.key.did, is_own=True)
        if found.record is not None:
            self._keep(found.record)
        return found

    # ------------------------------------------------------------ answers of relays

    def add_relay(self, relay: Did, url: str) -> None:
        """Record that a relay has proved itself at ``url``."""
        self._members[relay] = url

    def add_resolved(self, relay: Did, answer: frames.Resolved, *, has_inbox: bool) -> None:
        """Process a relay's answer about the own record.

        Args:
            relay: that answers.
            answer: found, absent or unreadable.
            has_inbox: the relay has opened an inbox of this agent, so it is a home.

        Raises:
            UnavailableError: no relay can tell now where the homes of this agent are.
            ProtocolError: the record is not of this agent.
        """
        if answer.state == "unreadable" and self.newest is None and not has_inbox:
            # a relay may be unable to ask others; an agent with an inbox at it need not wait
            detail = "the relay cannot tell which record it holds of this agent"
            raise make_error(ErrorCode.STORAGE_UNAVAILABLE, detail)
        if answer.record is not None:
            self._put_held(relay, answer.record)

    def add_published(self, relay: Did, record: str, answer: frames.Published) -> None:
        """Process the answer to a publish; another record than ours is newer.

        Raises:
            ProtocolError: the record held instead is missing, not newer, or not of this agent.
        """
        if answer.stored:
            self._put_held(relay, record)
            return
        held = self._read(answer.record or "")
        if held.version <= endpoint_record.parse(record).version:
            raise ProtocolError(ErrorCode.BAD_FRAME, "the relay took no record and has none newer")
        self._put_held(relay, held.jws.compact)

    def merge(self, compact: str) -> None:
        """Save a record of this agent that came with an error of a relay, if it is newer.

        Raises:
            ProtocolError: it is not of this agent.
        """
        self._save(self._read(compact))

    def _put_held(self, relay: Did, compact: str) -> None:
        record = self._read(compact)
        self._held[relay] = endpoint_record.merge(self._held.get(relay), record)
        self._save(record)

    def _read(self, compact: str) -> EndpointRecord:
        record = endpoint_record.parse(compact)
        if record.did != self.key.did:
            raise ProtocolError(ErrorCode.BAD_SIGNATURE, "a record of another agent")
        issued_at = Timestamp(record.issued_at)
        refusal = endpoint_record.verify(record, parse_did(record.did), issued_at)
        if refusal is not None:
            raise refusal.to_error()
        return record

    def _save(self, record: EndpointRecord) -> None:
        newest = self.newest
        is_same_seq = newest is not None and newest.version[:2] == record.version[:2]
        if newest is not None and is_same_seq and newest.version != record.version:
            self.warn(make_error(ErrorCode.STALE_RECORD, FORKED))
        self._keep(record)

    def _keep(self, record: EndpointRecord) -> None:
        before = self.newest
        self.state.keep_record(record.jws.compact)
        if self.newest != before:
            self.changed.notify()

    # ------------------------------------------------------------ homes

    def is_home(self, relay: Did) -> bool:
        """Return whether the newest record names ``relay``."""
        newest = self.newest
        return newest is not None and newest.names(relay)

    def not_home_error(self, relay: Did, url: str) -> AgentError:
        """Return the error for a relay without an inbox of this agent.

        The record names other homes, or another key at its address. The latter happens to an agent
        without a pin, whose record the relay has from others.
        """
        newest = self.newest
        detail = f"{relay} holds no inbox of this agent: its record names another home"
        for home in newest.relays if newest else ():
            if home.url == url:
                detail = self.state.wrong_relay(url, relay, home.did).detail
        return make_error(ErrorCode.MOVED, detail, record=self.state.record)

    def is_published(self, relay: Did) -> bool:
        """Return whether ``relay`` is known to hold the newest record."""
        held, newest = self._held.get(relay), self.newest
        return held is not None and newest is not None and held.version >= newest.version

    def rank(self, relay: Did, url: str) -> tuple[int, int]:
        """Return the rank of ``relay`` among those to send through; lower is better."""
        newest = self.newest
        prios = [home.prio for home in newest.relays if home.did == relay] if newest else []
        return (prios[0] if prios else endpoint_record.MAX_HOMES, self._position(url))

    def _is_named(self, relay: Did, url: str) -> bool:
        """Return whether the program names it; a home that was left does not count any more."""
        newest = self.newest
        has_left = any(relay == left.did for left in (newest.drain if newest else ()))
        return url in self.named and not has_left

    def _position(self, url: str) -> int:
        return self.named.index(url) if url in self.named else len(self.named)

    # ------------------------------------------------------------ the next record of a session

    def next_record(self, relay: Did, now: Timestamp) -> str | None:
        """Return the record to publish at ``relay`` now; None: it has it, or is no home."""
        newest = self.newest
        if self.state.migration.locks_record:
            return None
        if newest is None:
            return self._renew((), (), now)
        url = self._members[relay]
        if not newest.names(relay) and not self._may_join(newest, relay, url):
            return None
        is_right = any((home.did, home.url) == (relay, url) for home in newest.relays)
        if is_right and newest.status == "active" and self._age(newest, now) < self._renew_after_s:
            return None if self.is_published(relay) else newest.jws.compact
        return self._renew(newest.relays, None, now)

    def set_handles(self, handles: Sequence[str] | None, now: Timestamp) -> None:
        """Sign the next record, to be published at each home.

        Args:
            handles: None: those of the newest record.
            now: the wall clock.

        Raises:
            ProtocolError: these handles make no record.
            MigratingError: another record is signed already, for a migration.
        """
        self.state.migration.ensure_record_unlocked()
        newest = self.newest
        self._renew(newest.relays if newest else (), handles, now)

    def _may_join(self, newest: EndpointRecord, relay: Did, url: str) -> bool:
        """Return whether a relay becomes another home beside the record's, all named."""
        may_join = self._is_named(relay, url) and newest.status == "active"
        has_room = 0 < len(newest.relays) < endpoint_record.MAX_HOMES
        return may_join and has_room and {h.url for h in newest.relays} <= {*self.named}

    def _renew(
        self, before: tuple[Home, ...], handles: Sequence[str] | None, now: Timestamp
    ) -> str:
        """Sign and save a record of the homes before, at their addresses now, and of new ones."""
        is_open = {home.url for home in before} <= {*self.named}
        homes = {home.did: home for home in before}
        for relay, url in self._members.items():
            if relay in homes or (is_open and self._is_named(relay, url)):
                homes[relay] = Home(relay, url, self._prio(homes.get(relay), url))
        best = sorted(homes.values(), key=lambda home: home.did not in {h.did for h in before})
        best = sorted(best[: endpoint_record.MAX_HOMES], key=lambda home: home.prio)
        record = self.sign_next(best, now, handles=handles)
        self._save(record)
        return record.jws.compact

    def _prio(self, before: Home | None, url: str) -> int:
        is_named = url in self.named
        return self._position(url) if is_named or before is None else before.prio

    @property
    def _renew_after_s(self) -> float:
        return RENEW_AFTER_S * (1 - JITTER * self.jitter)

    def renew_in(self, now: Timestamp) -> float:
        """Return the seconds until the record is due for renewal."""
        newest = self.newest
        age = self._age(newest, now) if newest else 0.0
        return max(MIN_RENEW_S, self._renew_after_s - age)

    @staticmethod
    def _age(record: EndpointRecord, now: Timestamp) -> float:
        return max(0.0, now - record.issued_at)

    # ------------------------------------------------------------ publish over HTTP

    async def publish_at(
        self, origin: Origin, *, change: Change = tuple, accepted: Did | None = None
    ) -> Publication:
        """Sign the next record and publish it at all homes, ``origin`` first, without a login.

        Args:
            origin: one of the homes; the first one if there is no record yet.
            change: of the handles.
            accepted: the relay at ``origin`` from now on, as the agent's user has decided. It
                replaces the home that the record names there, and is pinned once the record is
                saved.

        Raises:
            AgentError: ``origin`` is unreachable, another relay than before (``wrong_relay``), no
                home of this agent (``not_admitted``), or does not take the record. ``migrating``:
                another record is signed already, for a migration.
        """
        self.state.migration.ensure_record_unlocked()
        here = await home_at(origin, self.state, accepted)
        for _ in range(PUBLISH_TRIES):
            record = await self._next_at(origin, here, change, is_accepted=accepted is not None)
            self.state.keep_record(record.jws.compact)
            await self.state.flush_record()
            if accepted is not None:
                await self.state.accept(here.url, accepted)
            newer = await publish(origin, record)
            missed: list[tuple[str, str]] = []
            if newer is None:
                newer = await _publish_elsewhere(record, here, missed)
            if newer is None:
                return Publication(record, tuple(missed))
            self.state.keep_record(newer.jws.compact)
        detail = "another program of this agent keeps publishing newer ones"
        raise make_error(ErrorCode.STALE_RECORD, detail)

    async def _next_at(
        self, origin: Origin, here: Home, change: Change, *, is_accepted: bool
    ) -> EndpointRecord:
        found = await self.refresh_from(origin)
        if found.state == "unreadable":
            detail = f"{origin} cannot tell which record it holds"
            raise make_error(ErrorCode.STORAGE_UNAVAILABLE, detail)
        newest = self.newest
        if newest is None:
            return self.sign_next([here], clock.now(), handles=change(()))
        homes = newest.relays if not is_accepted else _with_new_key(newest.relays, here)
        if here.did not in {home.did for home in homes}:
            others = ", ".join(home.url for home in newest.relays) or "none"
            detail = f"{origin} is no home of this agent; it has {others}"
            raise make_error(ErrorCode.NOT_ADMITTED, detail)
        handles = change(newest.handles)
        return self.sign_next(homes, clock.now(), handles=handles, status=newest.status)


async def home_at(origin: Origin, state: AgentState, accepted: Did | None = None) -> Home:
    """Return the relay at ``origin``, as its signed information names it.

    Raises:
        AgentError: unreachable; ``wrong_relay``: another relay than is pinned, or was accepted.
    """
    info = await RelayApi(origin).info()
    url = info.description.url
    if url != str(origin):
        raise make_error(ErrorCode.WRONG_RELAY, f"{origin} is {info.did}, which calls itself {url}")
    if (accepted or state.relay_at(url)) not in {None, info.did}:
        raise state.wrong_relay(url, info.did, accepted)
    return Home(info.did, url)


async def publish(origin: Origin, record: EndpointRecord) -> EndpointRecord | None:
    """Publish a record at one relay, and return the newer one that it has instead.

    Raises:
        AgentError: the relay's refusal, or no answer; ``bad_frame``: it neither takes it nor has
            a newer one.
    """
    held = await RelayApi(origin).publish(record.did, record.jws.compact)
    if held is None:
        return None
    # only a record that this agent signed may be saved: the next one is signed with its content
    newer = verify(held, record.did, is_own=True)
    if newer is None or newer.version <= record.version:
        raise make_error(ErrorCode.BAD_FRAME, f"{origin} took no record and has none newer")
    return newer


async def _publish_elsewhere(
    record: EndpointRecord, here: Home, missed: list[tuple[str, str]]
) -> EndpointRecord | None:
    """Publish a record at the other homes, and return a newer one that one of them has instead.

    Homes that do not take it are added to ``missed``.
    """
    newer: EndpointRecord | None = None
    for home in record.relays:
        if home.did == here.did:
            continue
        try:
            held = await publish(origins.parse(home.url), record)
        except AgentError as exc:
            missed.append((home.url, f"{exc.code}: {exc.detail}"))
            continue
        if held is not None:
            newer = endpoint_record.merge(newer, held)
    return newer


def _with_new_key(homes: Sequence[Home], here: Home) -> tuple[Home, ...]:
    """Return the homes, with ``here`` in the place of every other relay at its address."""
    renamed = [replace(one, did=here.did) if one.url == here.url else one for one in homes]
    # a relay that is named under both keys keeps the place of the first
    return tuple({home.did: home for home in reversed(renamed)}.values())[::-1]
