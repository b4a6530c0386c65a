"""Where no relay of ours carries an envelope on: straight to the recipient's own home (S2).

Rules of the file: the same bytes, so whichever relay has them already answers as a duplicate. A
receipt counts only if the relay signed it that the recipient's own record names: no relay's word
stands in for that. The addresses in a record are a stranger's: TLS or loopback, an inside address
only for agents whose own relay is inside, too, and a home that fails is left alone for a while.

::

    refused as not carried ─┐
    no relay for 2 s ───────┴▶ stray ──record──▶ POST at each home ──▶ receipt, refusal
                                └── no record, no other home, nobody there ──▶ released
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Protocol

from relay import clock
from relay.client._util import task_group
from relay.client.directory.cache import Correspondents
from relay.client.errors import AgentError, bug_of, of
from relay.client.http import origin as origins
from relay.client.http.origin import Origin
from relay.client.http.relay_api import RelayApi
from relay.client.outbox.queue import (
    Outbox,
    is_passing,
)
from relay.client.outbox.submission import Waiting
from relay.client.session.requests import Answer
from relay.protocol import frames
from relay.protocol.backoff import doubling_pause_s
from relay.protocol.endpoint_record import (
    EndpointRecord,
    Home,
)
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
    RelayError,
    Stored,
)
from relay.protocol.ids import Did

PATIENCE_S: Final = 2.0
"""How long no relay of ours may be connected before others are tried."""
LOOK_S: Final = 0.25
RESOLVE_S: Final = 5.0
POST_S: Final = 10.0
MOST_AT_ONCE: Final = 8
MOST_ROUNDS: Final = 3
FIRST_BREAK_S: Final = 0.5
LONGEST_BREAK_S: Final = 60.0
REMEMBERED: Final = 1_024

_log: Final = logging.getLogger("relay.client")


class Asks(Protocol):
    """Puts questions to a relay of ours."""

    async def ask(self, make: Callable[[str], frames.Resolve]) -> Answer:
        """Ask; ``make`` is given the ref.

        Raises:
            AgentError: the relay's no, or no answer in time.
        """
        ...


class Company(Protocol):
    """What a detour needs of the agent."""

    outbox: Outbox
    correspondents: Correspondents
    insecure_networks: Sequence[str]

    @property
    def asking(self) -> Asks:
        """The relays of ours."""
        ...

    @property
    def ended(self) -> AgentError | None:
        """Why the agent is over."""
        ...

    @property
    def alone_since(self) -> float | None:
        """Since when no relay is connected, monotonic seconds; None: one is."""
        ...

    @property
    def is_private_network(self) -> bool:
        """Whether a relay of this agent has an address that is not public."""
        ...


@dataclass(slots=True)
class _Break:
    """A home that failed, and is left alone until ``until``, monotonic seconds."""

    failures: int = 0
    until: float = 0.0


@dataclass(slots=True, eq=False)
class Detours:
    """Takes what strays to the recipients' own homes.

    Args:
        company: the agent's.
    """

    company: Company
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _under_way: set[Did] = field(default_factory=set)
    _breaks: OrderedDict[tuple[Did, str], _Break] = field(default_factory=OrderedDict)
    _looks: bool = False
    _lines: count[int] = field(default_factory=count)

    def wake(self) -> None:
        """Something strays, or no relay is connected."""
        self._news.set()

    async def run(self) -> None:
        """Look after strays until cancelled."""
        async with task_group() as tasks:
            while True:
                self._news.clear()
                if self._is_alone():
                    self.company.outbox.stray_all(clock.monotonic())
                for to in self.company.outbox.strays():
                    if to not in self._under_way and len(self._under_way) < MOST_AT_ONCE:
                        self._under_way.add(to)
                        tasks.create_task(self._take(to))
                wanted = None if self._looks else self.company.correspondents.next_wanted()
                if wanted is not None:
                    self._looks = True
                    tasks.create_task(self._look_in_quiet(wanted))
                await self._wait()

    async def _look_in_quiet(self, to: Did) -> None:
        try:
            if self.company.alone_since is None:
                await self.look_for(to)
        except Exception as bug:  # noqa: BLE001  others are looked for all the same
            bug_of(bug, f"the look for {to}")
        finally:
            self._looks = False
            self.wake()

    def _is_alone(self) -> bool:
        since = self.company.alone_since
        return since is not None and clock.monotonic() - since >= PATIENCE_S

    async def _wait(self) -> None:
        looks = self.company.alone_since is not None and self.company.outbox.is_waiting
        try:
            async with asyncio.timeout(LOOK_S if looks else None):
                await self._news.wait()
        except TimeoutError:
            return

    # ------------------------------------------------------------ one recipient

    async def _take(self, to: Did) -> None:
        outbox = self.company.outbox
        items = outbox.hold_strays(to)
        again = False
        try:
            again = await self._go(to, items)
        except RelayError as exc:
            _log.warning("the way to %s is not known: %s", to, exc)
        except Exception as bug:  # noqa: BLE001  those to other recipients go on
            bug_of(bug, f"the detour to {to}")
        except asyncio.CancelledError:
            # it decides nothing: what a home may have is not refused here
            again = True
            raise
        finally:
            if self.company.ended is not None:
                outbox.cut(items, self.company.ended)
            outbox.release(items, clock.monotonic(), try_again=again)
            self._under_way.discard(to)
            self.wake()

    async def _go(self, to: Did, items: list[Waiting]) -> bool:
        """Try each home; True: what has no answer is worth another try."""
        record = await self._record_of(to, items)
        again = False
        for _ in range(MOST_ROUNDS):
            for home in sorted(record.relays if record else (), key=lambda home: home.prio):
                left = [item for item in _open(items) if item.at != home.did]
                if left:
                    again = await self._submit(home, left) or again
            newer = self._learn(to, items)
            if record is None or newer is None or newer.version <= record.version:
                break
            record = newer
        return again

    async def _record_of(self, to: Did, items: list[Waiting]) -> EndpointRecord | None:
        # first of all: a relay may show one that is older than what an earlier life has seen
        await self.company.correspondents.get(to)
        known = self._learn(to, items)
        if self.company.alone_since is None:
            known = await self.look_for(to) or known
        return known

    def _learn(self, to: Did, items: list[Waiting]) -> EndpointRecord | None:
        """The newest record that came with a refusal, or is known."""
        newest = self.company.correspondents.learn(to, None)
        for item in items:
            for no in (item.not_carried, item.last):
                if no is not None and no.record is not None:
                    newest = self.company.correspondents.learn(to, no.record)
        return newest

    async def look_for(self, to: Did) -> EndpointRecord | None:
        """Ask a relay of ours; its word is not needed, the record is signed by ``to``."""
        answer: Answer | None = None
        try:
            async with asyncio.timeout(RESOLVE_S):
                answer = await self.company.asking.ask(lambda ref: frames.Resolve(ref, to))
        except (AgentError, TimeoutError) as exc:
            _log.info("no relay of ours tells where %s lives: %s", to, exc)
        compact = answer.record if isinstance(answer, frames.Resolved) else None
        return self.company.correspondents.learn(to, compact)

    # ------------------------------------------------------------ one home

    async def _submit(self, home: Home, items: list[Waiting]) -> bool:
        """Submit once; True: nobody knows, or the home could not be reached just now."""
        origin = self.origin_of(home.url)
        if origin is None:
            return False
        pause = self._breaks.get(_key(home))
        if pause is not None and clock.monotonic() < pause.until:
            return True
        line = f"direct {next(self._lines)}"
        submit = self.company.outbox.submit_direct(items, clock.monotonic(), line)
        said = asyncio.Event()
        try:
            answer = await RelayApi(origin, POST_S).submit(submit, said.set)
            now = clock.monotonic()
            if isinstance(answer, AgentError):
                self.company.outbox.failed(submit.ref, answer, now, line)
            else:
                self.company.outbox.answered(answer, home.did, now, line)
        except (AgentError, ProtocolError) as exc:
            self._failed(home, submit.ref, items, of(exc))
            return True
        except asyncio.CancelledError:
            self.company.outbox.land(submit.ref, maybe_stored=said.is_set())
            raise
        self._breaks.pop(_key(home), None)
        return any(item.last is not None and is_passing(item.last) for item in _open(items))

    def _failed(self, home: Home, ref: str, items: list[Waiting], exc: AgentError) -> None:
        _log.warning("%s of the recipient: %s", home.url, exc)
        self.company.outbox.land(ref, maybe_stored=exc.stored != "no")
        for item in items:
            stored: Stored = "unknown" if item.maybe_stored else "no"
            item.last = frames.Rejection(ref, 0, ErrorCode.PEER_UNREACHABLE, stored, exc.detail)
        pause = self._breaks.setdefault(_key(home), _Break())
        pause.failures += 1
        longest = doubling_pause_s(pause.failures, FIRST_BREAK_S, LONGEST_BREAK_S)
        share = int.from_bytes(clock.entropy(4)) / 0xFFFF_FFFF
        pause.until = clock.monotonic() + longest * share
        while len(self._breaks) > REMEMBERED:
            self._breaks.popitem(last=False)

    def origin_of(self, url: str) -> Origin | None:
        """Where that is; None: a stranger's record must not make this agent call there."""
        try:
            origin = origins.parse(url, insecure_networks=self.company.insecure_networks)
        except (ValueError, AgentError) as exc:
            _log.warning("the recipient's record names a home that cannot be dialled: %s", exc)
            return None
        if self.company.is_private_network:
            return origin
        outside = origin.as_public()
        if outside is None:
            _log.warning("the recipient's record names an address inside of here: %s", origin)
        return outside


def _open(items: list[Waiting]) -> list[Waiting]:
    return [item for item in items if item.held and not item.answer.done()]


def _key(home: Home) -> tuple[Did, str]:
    """Not the address alone: a record that names a false relay there must not cost the true one."""
    return home.did, home.url
