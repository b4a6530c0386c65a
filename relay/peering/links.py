"""The links of a node: dialled when needed or due, one dial at a time to a host.

Rules of the file: a link is found by the DID that its other end has proved, never by an address.
When a peer is dialled is the listener's schedule (``peering/model/membership.py``), and no
other. What is
remembered here is why an address failed, for those who want a relay at once: what the network says
by host; what a relay says of itself or of us by relay and host. So a record that names a wrong
relay at a host does not keep the right one from being dialled there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final, Protocol

from websockets.asyncio.client import ClientConnection

from relay import clock, log, metrics
from relay.isolation import isolated
from relay.peering.link import (
    Link,
    log_in,
)
from relay.peering.model.membership import (
    FIRST_BACKOFF_S,
    HURRY_S,
    KEPT_BACKOFF_S,
    MAX_BACKOFF_S,
    STEADY_S,
    backoff_s,
)
from relay.peering.ports import LinkListener
from relay.protocol.backoff import doubling_pause_s
from relay.protocol.did import SigningKey
from relay.protocol.errors import (
    ErrorCode,
    RejectedError,
    RelayError,
    UnavailableError,
)
from relay.protocol.ids import Did
from relay.tasks import side_by_side

REACH_S: Final = 25.0
TURN_S: Final = 1.0
IDLE_S: Final = 300.0
MAX_LINKS: Final = 1_024
MAX_STRANGE_DIALS: Final = 32
"""To relays that only records name: half of what the dialer does at once is left for the others."""
MAX_REMEMBERED: Final = 10_000
REFUSALS: Final = frozenset({ErrorCode.NOT_FEDERATED, ErrorCode.BLOCKED})


class Dialling(Protocol):
    """Opens connections to addresses that may be dialled."""

    async def websocket(self, origin: str) -> ClientConnection:
        """Connect to a relay's WebSocket.

        Raises:
            RelayError: ``peer_unreachable``, or ``unsupported``: not to be dialled.
        """
        ...


class Policy(Protocol):
    """Which relays this one deals with."""

    def admit(self, did: Did) -> None:
        """Raise a RejectedError for one that it does not, not even for a hand-off."""
        ...

    def admit_fully(self, did: Did) -> None:
        """Raise a RejectedError for one that it does not, or for a hand-off alone."""
        ...

    def is_admitted(self, did: Did) -> bool:
        """Whether it is dealt with, and be it for a hand-off alone."""
        ...

    def is_full(self, did: Did) -> bool:
        """Whether it is dealt with in all things."""
        ...

    def is_partner(self, did: Did) -> bool:
        """Whether some hand-off waits for it."""
        ...


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why an address is not dialled just now; points in time are monotonic seconds."""

    error: RelayError
    times: int
    at: float
    until: float


class Links:
    """Meets the port ``PeerLinks``.

    Args:
        key: of this relay.
        dialler: opens connections.
        policy: which relays are dealt with.
    """

    def __init__(self, key: SigningKey, dialler: Dialling, policy: Policy) -> None:
        self._key = key
        self._dialler = dialler
        self._policy = policy
        self._live: dict[Did, Link] = {}
        self._dials: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, _Failure] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._listener: LinkListener | None = None
        self._chosen: dict[Did, str] = {}
        self._hurry = asyncio.Event()

    # ------------------------------------------------------------ life

    async def run(self, listener: LinkListener) -> None:
        """Keep links to those that are chosen, until cancelled."""
        self._listener = listener
        try:
            async with asyncio.TaskGroup() as self._tasks:
                while True:
                    # a bug about one relay must not end the links to others
                    with isolated("links"):
                        self._turn(listener)
                    await self._rest()
        finally:
            self._tasks = None

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(TURN_S):
                await self._hurry.wait()
        except TimeoutError:
            return
        self._hurry.clear()

    def _turn(self, listener: LinkListener) -> None:
        chosen = self._chosen = dict(listener.chosen())
        for relay, url in listener.due(self._live.keys()):
            if url not in self._dials and not self._is_full and not self._rests(url):
                _ = self._begin(relay, url, is_due=True)
        for relay, link in list(self._live.items()):
            is_idle = relay not in chosen and clock.monotonic() - link.used_at > IDLE_S
            if is_idle or not self._policy.is_admitted(relay):
                link.close()
        metrics.LINKS.set(len(self._live))

    def _rests(self, url: str) -> bool:
        """Whether a host that failed has a rest, however many relays are said to be there."""
        failure = self._failures.get(url)
        if failure is None:
            return False
        rest_s = doubling_pause_s(failure.times - 1, FIRST_BACKOFF_S, HURRY_S)
        return clock.monotonic() < failure.at + rest_s

    async def drain(self) -> None:
        """Say goodbye to all peers."""
        links = list(self._live.values())
        await side_by_side(link.say_goodbye() for link in links)

    # ------------------------------------------------------------ the port

    def live(self) -> Sequence[Link]:
        """All links that stand, but for those of a hand-off alone."""
        standing = (link for link in self._live.values() if link.ended is None)
        return [link for link in standing if self._policy.is_full(link.peer)]

    def wanted(self) -> int:
        """How many links there should be."""
        return len(self._chosen)

    def to(self, relay: Did) -> Link | None:
        """The link to a relay, if it stands."""
        link = self._live.get(relay)
        return link if link is not None and link.ended is None else None

    def allows(self, relay: Did) -> bool:
        """Whether this relay deals with that one in all things, not for a hand-off alone."""
        return self._policy.is_full(relay)

    async def reach(self, relay: Did, url: str, *, handoff: bool = False) -> Link:
        """The link to a relay; dialled if there is none. See the port."""
        (self._policy.admit if handoff else self._policy.admit_fully)(relay)
        try:
            async with asyncio.timeout(REACH_S):
                while (link := self.to(relay)) is None:
                    await self._attempt(relay, url)
        except TimeoutError as exc:
            raise _unreachable("others are being dialled there", FIRST_BACKOFF_S) from exc
        return link

    async def _attempt(self, relay: Did, url: str) -> None:
        """Wait for the dial that is under way there, whomever it is for, or begin one."""
        dial = self._dials.get(url)
        if dial is None:
            failure = self._failure(relay, url)
            if failure is not None:
                raise _as_seen_from_here(failure)
            dial = self._begin(relay, url)
        await asyncio.wait([dial])

    def retry(self, relay: Did, url: str) -> None:
        """Forget what failed there. See the port."""
        self._failures.pop(url, None)
        self._failures.pop(_name(relay, url), None)
        self._hurry.set()

    def review(self) -> None:
        """Look now which links the policy still allows."""
        self._hurry.set()

    # ------------------------------------------------------------ dialling

    @property
    def _is_full(self) -> bool:
        return len(self._live) + len(self._dials) >= MAX_LINKS

    def _begin(self, relay: Did, url: str, *, is_due: bool = False) -> asyncio.Task[None]:
        if self._tasks is None:
            raise UnavailableError(ErrorCode.PEER_UNREACHABLE, "this node dials nobody just now")
        if self._is_full:
            raise _unreachable("this node has too many links", IDLE_S)
        is_strange = not is_due and relay not in self._chosen
        if is_strange and len(self._dials) >= MAX_STRANGE_DIALS:
            raise _unreachable("this node dials too many others just now", FIRST_BACKOFF_S)
        dial = self._dials[url] = self._tasks.create_task(self._dial(relay, url))
        dial.add_done_callback(lambda _: self._dials.pop(url, None))
        return dial

    async def _dial(self, relay: Did, url: str) -> None:
        try:
            await self._connect(relay, url)
        except Exception:  # noqa: BLE001  a bug about one relay must not end the links to others
            self._failed(relay, url, _name(relay, url), _bug())

    async def _connect(self, relay: Did, url: str) -> None:
        try:
            socket = await self._dialler.websocket(url)
        except RelayError as exc:
            self._failed(relay, url, url, exc)
            return
        self._failures.pop(url, None)
        try:
            link = await log_in(socket, self._key, url, relay)
        except RelayError as exc:
            self._failed(relay, url, _name(relay, url), exc)
            return
        metrics.DIALS.labels("ok").inc()
        log.event("link_up", peer=relay)
        self._stands(link)

    def _stands(self, link: Link) -> None:
        if self._tasks is None:
            link.close()
            return
        self._live[link.peer] = link
        self._tasks.create_task(self._keep(link))
        if self._listener is not None:
            self._listener.came(link)

    async def _keep(self, link: Link) -> None:
        began = clock.monotonic()
        try:
            why = await link.run()
        except Exception:  # noqa: BLE001  as above
            why = _bug()
        finally:
            if self._live.get(link.peer) is link:
                del self._live[link.peer]
        log.event("link_down", peer=link.peer, code=why.code, detail=why.detail)
        wait_s = None
        if self._listener is not None and self.to(link.peer) is None:
            with isolated("links"):
                wait_s = self._listener.went(link.peer, why)
        name = _name(link.peer, link.url)
        if clock.monotonic() - began < STEADY_S:
            self._remember(link.peer, link.url, name, why, wait_s)
        else:
            self._failures.pop(name, None)

    # ------------------------------------------------------------ what failed

    def _failure(self, relay: Did, url: str) -> _Failure | None:
        now = clock.monotonic()
        for name in (url, _name(relay, url)):
            failure = self._failures.get(name)
            if failure is not None and failure.until > now:
                return failure
        return None

    def _failed(self, relay: Did, url: str, name: str, exc: RelayError) -> None:
        wait_s = None
        if self._listener is not None:
            with isolated("links"):
                wait_s = self._listener.missed(relay, url, exc)
        self._remember(relay, url, name, exc, wait_s)

    def _remember(
        self, relay: Did, url: str, name: str, exc: RelayError, wait_s: float | None = None
    ) -> None:
        """Note a failure; ``wait_s``: until the relay is due again, None where it is no peer."""
        before = self._failures.pop(name, None)
        times = before.times + 1 if before else 1
        if wait_s is None:
            longest_s = KEPT_BACKOFF_S if self._policy.is_partner(relay) else MAX_BACKOFF_S
            asked_s = min(float(exc.retry_after or 0), MAX_BACKOFF_S)
            wait_s = max(backoff_s(times, clock.share(), longest_s), asked_s)
        if len(self._failures) >= MAX_REMEMBERED:
            del self._failures[next(iter(self._failures))]
        now = clock.monotonic()
        self._failures[name] = _Failure(exc, times, now, now + wait_s)
        metrics.DIALS.labels(exc.code).inc()
        log.event(
            "dial_failed", peer=relay, code=exc.code, detail=f"{url}: {exc.detail}", wait_s=wait_s
        )

    def waits(self, relay: Did, url: str) -> tuple[float, RelayError] | None:
        """Seconds until a relay is dialled again, and why; None: nothing is known against it."""
        failure = self._failure(relay, url)
        if failure is None:
            return None
        return max(0.0, failure.until - clock.monotonic()), failure.error


def _bug() -> RelayError:
    log.internal_error("links")
    metrics.INTERNAL.inc()
    return RelayError(ErrorCode.INTERNAL, "a bug of this relay; it has been logged")


def _name(relay: Did, url: str) -> str:
    return f"{relay}@{url}"


def _as_seen_from_here(failure: _Failure) -> RelayError:
    """A peer's refusal stays one; anything else is: not reachable just now."""
    wait_s = failure.until - clock.monotonic()
    if failure.error.code in REFUSALS:
        no = failure.error
        return RejectedError(no.code, f"the peer refuses: {no.detail}", retry_after=ceil(wait_s))
    return _unreachable(failure.error.detail, wait_s)


def _unreachable(detail: str, wait_s: float) -> UnavailableError:
    return UnavailableError(ErrorCode.PEER_UNREACHABLE, detail, retry_after=max(1, ceil(wait_s)))
