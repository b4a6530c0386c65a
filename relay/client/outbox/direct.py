"""Direct delivery to a relay of the recipient, if no own relay forwards (GUARANTEES.md S2).

Entry point: :class:`DirectDelivery`. Invariants: the bytes are the same, so a relay that has them
already answers with a duplicate. A receipt counts only if it is signed by the relay that the
recipient's own record names. A stranger chose the addresses in that record. So they need TLS or
loopback, and a private address is dialled only for agents whose own relay has one, too. A relay
that fails is not tried again for a while.

::

    not forwarded ─────────────────┐
    no relay connected for 2 s ────┴▶ take ──record──▶ submit at each home ──▶ receipt, refusal
                                       └── no record, no other home, none answers ──▶ return
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from relay import clock
from relay.client._util import Backoff, BoundedDict, task_group, wait_for_event
from relay.client.directory.cache import RecordCache
from relay.client.errors import AgentError, bug_of, from_core
from relay.client.http import origin as origins
from relay.client.http.origin import Origin
from relay.client.http.relay_api import RelayApi
from relay.client.outbox.queue import Outbox, is_retried
from relay.client.outbox.submission import Submission, SubmissionState
from relay.protocol import frames
from relay.protocol.endpoint_record import EndpointRecord, Home
from relay.protocol.errors import ErrorCode, ProtocolError, RelayError, Stored
from relay.protocol.ids import Did

DIRECT_AFTER_S: Final = 2.0
"""How long no relay of the agent may be connected before direct delivery begins."""
CHECK_S: Final = 0.25
RESOLVE_S: Final = 5.0
SUBMIT_S: Final = 10.0
MAX_RECIPIENTS: Final = 8
"""Recipients that are served at once."""
MAX_ROUNDS: Final = 3
MIN_BREAK_S: Final = 1.0
MAX_BREAK_S: Final = 60.0
CACHE_SIZE: Final = 1_024

_log: Final = logging.getLogger("relay.client")


@dataclass(slots=True)
class CircuitBreaker:
    """Keeps a relay that has failed from being dialled for a while."""

    backoff: Backoff = field(default_factory=lambda: Backoff(MIN_BREAK_S, MAX_BREAK_S))
    until: float = 0.0

    @property
    def is_open(self) -> bool:
        """True while the relay is not to be dialled."""
        return clock.monotonic() < self.until

    def trip(self) -> None:
        """Record a failure."""
        self.until = clock.monotonic() + self.backoff.next_s()


@dataclass(slots=True, eq=False)
class DirectDelivery:
    """Delivers to the relays of the recipients themselves.

    Args:
        outbox: what waits for direct delivery.
        records: of the recipients.
        resolve: asks a relay of the agent for a record.
        insecure_networks: CIDRs that may be dialled without TLS.
        is_private_network: a relay of the agent has a private address, so others may, too.
        disconnected_since: monotonic seconds; None: a relay of the agent is connected.
    """

    outbox: Outbox
    records: RecordCache
    resolve: Callable[[Did], Awaitable[frames.Resolved]]
    insecure_networks: Sequence[str] = ()
    is_private_network: bool = False
    disconnected_since: float | None = None
    _work: asyncio.Event = field(default_factory=asyncio.Event)
    _under_way: set[Did] = field(default_factory=set)
    _breakers: BoundedDict[tuple[Did, str], CircuitBreaker] = field(
        default_factory=lambda: BoundedDict(CACHE_SIZE)
    )
    _is_refreshing: bool = False
    _channels: count[int] = field(default_factory=count)

    def wake(self) -> None:
        """Look for work: there may be some, or no relay is connected."""
        self._work.set()

    def set_connected(self, *, is_connected: bool) -> None:
        """Record whether a relay of the agent is connected."""
        if is_connected:
            self.disconnected_since = None
        elif self.disconnected_since is None:
            self.disconnected_since = clock.monotonic()

    async def run(self) -> None:
        """Deliver until cancelled."""
        async with task_group() as tasks:
            while True:
                self._work.clear()
                if self._is_disconnected():
                    self.outbox.route_all_direct(clock.monotonic())
                for to in self.outbox.direct_recipients():
                    if to not in self._under_way and len(self._under_way) < MAX_RECIPIENTS:
                        self._under_way.add(to)
                        tasks.create_task(self._deliver_to(to))
                due = None if self._is_refreshing else self.records.next_refresh()
                if due is not None:
                    self._is_refreshing = True
                    tasks.create_task(self._refresh_quietly(due))
                looks = self.disconnected_since is not None and self.outbox.is_waiting
                await wait_for_event(self._work, CHECK_S if looks else None)

    async def _refresh_quietly(self, to: Did) -> None:
        try:
            if self.disconnected_since is None:
                await self.refresh_record(to)
        except Exception as bug:  # noqa: BLE001  the records of others are refreshed all the same
            bug_of(bug, f"the look for {to}")
        finally:
            self._is_refreshing = False
            self.wake()

    def _is_disconnected(self) -> bool:
        since = self.disconnected_since
        return since is not None and clock.monotonic() - since >= DIRECT_AFTER_S

    # ------------------------------------------------------------ one recipient

    async def _deliver_to(self, to: Did) -> None:
        items = self.outbox.take_direct(to)
        try_again = False
        try:
            try_again = await self._try_homes(to, items)
        except RelayError as exc:
            _log.warning("no record leads to %s: %s", to, exc)
        except Exception as bug:  # noqa: BLE001  other recipients are served all the same
            bug_of(bug, f"the direct delivery to {to}")
        except asyncio.CancelledError:
            # a cancellation decides nothing: a relay may have it, so it is not refused here
            try_again = True
            raise
        finally:
            self.outbox.return_direct(items, clock.monotonic(), try_again=try_again)
            self._under_way.discard(to)
            self.wake()

    async def _try_homes(self, to: Did, items: list[Submission]) -> bool:
        """Submit at each home; return whether what has no answer is worth another try."""
        record = await self._record_of(to, items)
        try_again = False
        for _ in range(MAX_ROUNDS):
            for home in sorted(record.relays if record else (), key=lambda home: home.prio):
                left = [item for item in _undecided(items) if item.refused_by != home.did]
                if left:
                    try_again = await self._submit(home, left) or try_again
            newer = self._known_record(to, items)
            if record is None or newer is None or newer.version <= record.version:
                break
            record = newer
        return try_again

    async def _record_of(self, to: Did, items: list[Submission]) -> EndpointRecord | None:
        # first the saved record: a relay may show an older one
        await self.records.get(to)
        known = self._known_record(to, items)
        if self.disconnected_since is None:
            known = await self.refresh_record(to) or known
        return known

    def _known_record(self, to: Did, items: list[Submission]) -> EndpointRecord | None:
        """Return the newest record that is known, or that came with a refusal."""
        newest = self.records.add(to, None)
        for item in items:
            for refusal in (item.forward_refusal, item.last):
                if refusal is not None and refusal.record is not None:
                    newest = self.records.add(to, refusal.record)
        return newest

    async def refresh_record(self, to: Did) -> EndpointRecord | None:
        """Ask a relay of the agent for the recipient's record, which the recipient has signed."""
        compact: str | None = None
        try:
            async with asyncio.timeout(RESOLVE_S):
                compact = (await self.resolve(to)).record
        except (AgentError, TimeoutError) as exc:
            _log.info("no relay of this agent resolves %s: %s", to, exc)
        return self.records.add(to, compact)

    # ------------------------------------------------------------ one home

    async def _submit(self, home: Home, items: list[Submission]) -> bool:
        """Submit once; return whether another try may help."""
        origin = self.dialable(home.url)
        if origin is None:
            return False
        # not by address alone: a record that names a false relay there must not block the true one
        name = (home.did, home.url)
        breaker = self._breakers.get(name) or CircuitBreaker()
        if breaker.is_open:
            return True
        channel_id = f"direct {next(self._channels)}"
        submit = self.outbox.submit_direct(items, clock.monotonic(), channel_id)
        sent = asyncio.Event()
        try:
            answer = await RelayApi(origin, SUBMIT_S).submit(submit, sent.set)
            now = clock.monotonic()
            if isinstance(answer, AgentError):
                self.outbox.failed(submit.ref, answer, now, channel_id)
            else:
                self.outbox.answered(answer, home.did, now, channel_id)
        except (AgentError, ProtocolError) as exc:
            self._failed(home, submit.ref, items, from_core(exc))
            breaker.trip()
            self._breakers[name] = breaker
            return True
        except asyncio.CancelledError:
            self.outbox.unanswered(submit.ref, maybe_stored=sent.is_set())
            raise
        self._breakers.pop(name, None)
        return any(item.last is not None and is_retried(item.last) for item in _undecided(items))

    def _failed(self, home: Home, ref: str, items: list[Submission], exc: AgentError) -> None:
        _log.warning("%s of the recipient: %s", home.url, exc)
        self.outbox.unanswered(ref, maybe_stored=exc.stored != "no")
        for item in items:
            stored: Stored = "unknown" if item.maybe_stored else "no"
            item.last = frames.Rejection(ref, 0, ErrorCode.PEER_UNREACHABLE, stored, exc.detail)

    def dialable(self, url: str) -> Origin | None:
        """Return the origin of a URL that a stranger chose; None: it must not be dialled."""
        try:
            origin = origins.parse(url, insecure_networks=self.insecure_networks)
        except (ValueError, AgentError) as exc:
            _log.warning("the recipient's record names a home that cannot be dialled: %s", exc)
            return None
        if self.is_private_network:
            return origin
        public = origin.as_public()
        if public is None:
            _log.warning("the recipient's record names a private address: %s", origin)
        return public


def _undecided(items: list[Submission]) -> list[Submission]:
    return [item for item in items if item.state is SubmissionState.WITH_DIRECT]
