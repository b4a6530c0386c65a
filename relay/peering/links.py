"""Hold the links of a node: dial relays that are due or needed, one dial at a time per origin.

The DID that the other end has proved identifies a link, never an address. A peer is dialled when
``peering/model/membership.py`` says so. This module only remembers failures, so that a caller of
:meth:`Links.reach` gets the error of the last dial instead of another dial. A network failure
counts for the origin; a failed login counts for the pair of relay and origin. So a record that
names a wrong relay at an origin does not keep the right relay from being dialled there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final

from relay import clock, log, metrics
from relay.peering.dialer import Dialer
from relay.peering.link import Link, log_in
from relay.peering.model.membership import (
    FIRST_BACKOFF_S,
    LOGIN_DIAL_S,
    MAX_BACKOFF_S,
    MAX_DESIRED_BACKOFF_S,
    STABLE_LINK_S,
    backoff_s,
)
from relay.peering.peers import Peers
from relay.protocol.backoff import doubling_pause_s
from relay.protocol.did import SigningKey
from relay.protocol.errors import ErrorCode, RejectedError, RelayError, unreachable
from relay.protocol.ids import Did
from relay.tasks import isolated, side_by_side

REACH_S: Final = 25.0
RECONCILE_S: Final = 1.0
IDLE_S: Final = 300.0
MAX_NODE_LINKS: Final = 1_024
MAX_UNKNOWN_DIALS: Final = 32
"""To relays that only records name: half of what the dialer does at once is left for the others."""
MAX_FAILURES_HELD: Final = 10_000
REFUSALS: Final = frozenset({ErrorCode.NOT_FEDERATED, ErrorCode.BLOCKED})


@dataclass(frozen=True, slots=True)
class _Failure:
    """The last failure at an origin, or of a relay there; times are monotonic seconds."""

    error: RelayError
    count: int
    at: float
    until: float


class Links:
    """The links of this node.

    Args:
        key: of this relay.
        dialer: opens connections.
        peers: the policy, and the relays that are due.
    """

    def __init__(self, key: SigningKey, dialer: Dialer, peers: Peers) -> None:
        self._key = key
        self._dialer = dialer
        self._peers = peers
        self._live: dict[Did, Link] = {}
        self._dials: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, _Failure] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._notify: Callable[[Link], None] = lambda _: None
        self._desired: dict[Did, str] = {}
        self._wakeup = asyncio.Event()

    # ------------------------------------------------------------ life

    async def run(self, on_link_up: Callable[[Link], None]) -> None:
        """Hold the desired links until cancelled; call ``on_link_up`` with each new link."""
        self._notify = on_link_up
        try:
            async with asyncio.TaskGroup() as self._tasks:
                while True:
                    # a bug about one relay must not end the links to others
                    with isolated("links"):
                        self._reconcile()
                    await self._pause()
        finally:
            self._tasks = None

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(RECONCILE_S):
                await self._wakeup.wait()
        except TimeoutError:
            return
        self._wakeup.clear()

    def _reconcile(self) -> None:
        self._desired = dict(self._peers.desired_links())
        for relay, url in self._peers.due_dials(self._live.keys()):
            if url not in self._dials and not self._is_full and not self._is_cooling(url):
                _ = self._begin(relay, url, is_due=True)
        for relay, link in list(self._live.items()):
            is_idle = relay not in self._desired and clock.monotonic() - link.used_at > IDLE_S
            if is_idle or not self._peers.may_contact(relay):
                link.close()
        metrics.LINKS.set(len(self._live))

    def _is_cooling(self, url: str) -> bool:
        """Return True shortly after a failure there, however many relays claim that origin."""
        failure = self._failures.get(url)
        if failure is None:
            return False
        pause_s = doubling_pause_s(failure.count - 1, FIRST_BACKOFF_S, LOGIN_DIAL_S)
        return clock.monotonic() < failure.at + pause_s

    async def drain(self) -> None:
        """Say goodbye to all peers."""
        links = list(self._live.values())
        await side_by_side(link.say_goodbye() for link in links)

    # ------------------------------------------------------------ use

    def live(self) -> Sequence[Link]:
        """Return the links that stand, without those for a hand-off alone."""
        links = (link for link in self._live.values() if link.ended is None)
        return [link for link in links if self._peers.is_federated(link.peer)]

    def wanted(self) -> int:
        """Return the number of links that there should be."""
        return len(self._desired)

    def to(self, relay: Did) -> Link | None:
        """Return the link to a relay, also one for a hand-off alone; None if there is none."""
        link = self._live.get(relay)
        return link if link is not None and link.ended is None else None

    def allows(self, relay: Did) -> bool:
        """Return True if this relay deals with that one, not for a hand-off alone."""
        return self._peers.is_federated(relay)

    async def reach(self, relay: Did, url: str, *, handoff: bool = False) -> Link:
        """Return the link to a relay; dial it if there is none.

        Args:
            relay: the DID that the other end must prove.
            url: its origin.
            handoff: the caller needs the link for a hand-off only.

        Raises:
            RejectedError: ``not_federated`` or ``blocked``, by the policy here or there.
            UnavailableError: ``peer_unreachable``, with the seconds until the next dial.
        """
        (self._peers.require_contact if handoff else self._peers.require_federated)(relay)
        try:
            async with asyncio.timeout(REACH_S):
                while (link := self.to(relay)) is None:
                    await self._attempt(relay, url)
        except TimeoutError as exc:
            detail = "others are being dialled there"
            raise unreachable(detail, FIRST_BACKOFF_S) from exc
        return link

    async def _attempt(self, relay: Did, url: str) -> None:
        """Wait for the dial under way at this origin, whatever its relay, or begin one."""
        dial = self._dials.get(url)
        if dial is None:
            failure = self._failure(relay, url)
            if failure is not None:
                raise _to_error(failure)
            dial = self._begin(relay, url)
        await asyncio.wait([dial])

    def reset_backoff(self, relay: Did, url: str) -> None:
        """Forget the failures there, so that the next use dials."""
        self._failures.pop(url, None)
        self._failures.pop(_pair(relay, url), None)
        self._wakeup.set()

    def reconcile_now(self) -> None:
        """Apply the policy to all links now, not within a second."""
        self._wakeup.set()

    def backoff(self, relay: Did, url: str) -> tuple[float, RelayError] | None:
        """Return the seconds until the next dial and the last error; None without a failure."""
        failure = self._failure(relay, url)
        if failure is None:
            return None
        return max(0.0, failure.until - clock.monotonic()), failure.error

    # ------------------------------------------------------------ dials

    @property
    def _is_full(self) -> bool:
        return len(self._live) + len(self._dials) >= MAX_NODE_LINKS

    def _begin(self, relay: Did, url: str, *, is_due: bool = False) -> asyncio.Task[None]:
        if self._tasks is None:
            raise unreachable("this node dials nobody just now")
        if self._is_full:
            raise unreachable("this node has too many links", IDLE_S)
        is_unknown = not is_due and relay not in self._desired
        if is_unknown and len(self._dials) >= MAX_UNKNOWN_DIALS:
            detail = "this node dials too many others just now"
            raise unreachable(detail, FIRST_BACKOFF_S)
        dial = self._dials[url] = self._tasks.create_task(self._dial(relay, url))
        dial.add_done_callback(lambda _: self._dials.pop(url, None))
        return dial

    async def _dial(self, relay: Did, url: str) -> None:
        try:
            await self._connect(relay, url)
        except Exception:  # noqa: BLE001  a bug about one relay must not end the links to others
            self._on_dial_failed(relay, url, _pair(relay, url), _internal_error())

    async def _connect(self, relay: Did, url: str) -> None:
        try:
            socket = await self._dialer.websocket(url)
        except RelayError as exc:
            self._on_dial_failed(relay, url, url, exc)
            return
        self._failures.pop(url, None)
        try:
            link = await log_in(socket, self._key, url, relay)
        except RelayError as exc:
            self._on_dial_failed(relay, url, _pair(relay, url), exc)
            return
        metrics.DIALS.labels("ok").inc()
        log.event("link_up", peer=relay)
        self._on_link_up(link)

    def _on_link_up(self, link: Link) -> None:
        if self._tasks is None:
            link.close()
            return
        self._live[link.peer] = link
        self._tasks.create_task(self._run_link(link))
        self._notify(link)

    async def _run_link(self, link: Link) -> None:
        began = clock.monotonic()
        try:
            exc = await link.run()
        except Exception:  # noqa: BLE001  as above
            exc = _internal_error()
        finally:
            if self._live.get(link.peer) is link:
                del self._live[link.peer]
        log.event("link_down", peer=link.peer, code=exc.code, detail=exc.detail)
        wait_s = None
        if self.to(link.peer) is None:
            with isolated("links"):
                wait_s = self._peers.on_dial_failed(link.peer, exc)
        pair = _pair(link.peer, link.url)
        if clock.monotonic() - began < STABLE_LINK_S:
            self._put_failure(link.peer, link.url, pair, exc, wait_s)
        else:
            self._failures.pop(pair, None)

    # ------------------------------------------------------------ failures

    def _failure(self, relay: Did, url: str) -> _Failure | None:
        now = clock.monotonic()
        for name in (url, _pair(relay, url)):
            failure = self._failures.get(name)
            if failure is not None and failure.until > now:
                return failure
        return None

    def _on_dial_failed(self, relay: Did, url: str, name: str, exc: RelayError) -> None:
        wait_s = None
        with isolated("links"):
            wait_s = self._peers.on_dial_failed(relay, exc, url)
        self._put_failure(relay, url, name, exc, wait_s)

    def _put_failure(
        self, relay: Did, url: str, name: str, exc: RelayError, wait_s: float | None = None
    ) -> None:
        """Remember a failure; ``wait_s`` until the relay is due, None if it is no peer."""
        before = self._failures.pop(name, None)
        count = before.count + 1 if before else 1
        if wait_s is None:
            max_s = MAX_BACKOFF_S
            asked_s = min(float(exc.retry_after or 0), max_s)
            if self._peers.is_handoff_peer(relay):
                max_s = MAX_DESIRED_BACKOFF_S
            wait_s = max(backoff_s(count, clock.random_fraction(), max_s), asked_s)
        if len(self._failures) >= MAX_FAILURES_HELD:
            del self._failures[next(iter(self._failures))]
        now = clock.monotonic()
        self._failures[name] = _Failure(exc, count, now, now + wait_s)
        metrics.DIALS.labels(exc.code).inc()
        detail = f"{url}: {exc.detail}"
        log.event("dial_failed", peer=relay, code=exc.code, detail=detail, wait_s=wait_s)


def _internal_error() -> RelayError:
    log.internal_error("links")
    metrics.INTERNAL.inc()
    return RelayError(ErrorCode.INTERNAL, "a bug of this relay; it has been logged")


def _pair(relay: Did, url: str) -> str:
    return f"{relay}@{url}"


def _to_error(failure: _Failure) -> RelayError:
    """Return a peer's refusal as such; any other failure as ``peer_unreachable``."""
    wait_s = failure.until - clock.monotonic()
    exc = failure.error
    if exc.code in REFUSALS:
        detail = f"the peer refuses: {exc.detail}"
        return RejectedError(exc.code, detail, retry_after=ceil(wait_s))
    return unreachable(exc.detail, wait_s)
