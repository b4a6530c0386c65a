"""Keep agents out after a start until peers have answered where these agents live now.

A relay that was offline for long, or whose store was restored from an old backup, takes agents for
its own that have moved. Their newest records show it, and peers hold them (GUARANTEES.md §3).

::

    closed ── one peer answered, and two more did or had GRACE_S ──▶ open
    closed ── nobody answered within wait_s ──▶ open, and the gate goes on asking
    open   ── the store may have gone back in time ──▶ closed

While it is closed no agent gets a session. Submits are accepted: mail for an agent that has moved
follows it. A peer can only withhold or be slow, since records are signed and the wait is bounded.

Example: a node with 3 inboxes starts and links with one peer. Their top-level digests differ in one
bucket, which holds 2 of the agents. The node asks for these 2 records; one is newer and names
another relay. After :data:`GRACE_S` without a second peer the gate opens, and that agent gets
``moved`` with its new relay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from relay import clock, log, metrics
from relay.directory.gossip import RecordGossip
from relay.directory.model.anti_entropy import differing
from relay.directory.model.index import TOP_BITS, bad_frame, place
from relay.directory.ports import RecordStore
from relay.inbox.ports import InboxStore
from relay.peering.link import Link
from relay.protocol import frames
from relay.protocol.client_session import PeerAnswer
from relay.protocol.errors import ErrorCode, RelayError, UnavailableError
from relay.protocol.ids import AgentKey, Did
from relay.tasks import guarded

MAX_PEERS_ASKED: Final = 3
"""One honest peer is enough, unless it was offline, too, or cut off from the rest."""
GRACE_S: Final = 2.0
"""How long the others have after the first answer."""
MAX_LOGIN_WAIT_S: Final = 3.0
"""How long a login waits for the gate; mostly it opens before."""
POLL_INTERVAL_S: Final = 0.05
RETRY_S: Final = 1.0
MAX_ASK_S: Final = 60.0
RECORDS_PER_QUESTION: Final = 250
"""So many records of the largest size fit into one answer."""
PAGE: Final = 1_000


class StartupGate:
    """The gate before agents' sessions.

    Args:
        gossip: asks peers, and merges their records.
        inboxes: knows the inboxes that are here.
        records: the records of their agents.
        wait_s: without an answer the gate opens after so many seconds.
    """

    def __init__(
        self, gossip: RecordGossip, inboxes: InboxStore, records: RecordStore, wait_s: float
    ) -> None:
        self._gossip = gossip
        self._inboxes = inboxes
        self._records = records
        self._wait_s = wait_s
        self._is_open = asyncio.Event()
        self._is_asking = asyncio.Event()
        self._is_open.set()
        self._owners: dict[int, list[AgentKey]] | None = None
        self._busy_until: dict[Did, float] = {}
        """End of the question under way, or of the pause after a failed one."""
        self._answered: dict[Did, int] = {}
        """New records by peer."""
        self._closed_at = self._answered_at = 0.0

    # ------------------------------------------------------------ the gate

    @property
    def is_open(self) -> bool:
        """True while agents may log in."""
        return self._is_open.is_set()

    async def admit(self) -> None:
        """Wait for the gate for a moment.

        Raises:
            UnavailableError: ``draining``.
        """
        try:
            async with asyncio.timeout(MAX_LOGIN_WAIT_S):
                await self._is_open.wait()
        except TimeoutError:
            self.check()

    def check(self) -> None:
        """Raise if the gate is closed.

        Raises:
            UnavailableError: ``draining``.
        """
        if not self.is_open:
            detail = "this node has just started and asks other relays where its agents live now"
            raise UnavailableError(ErrorCode.DRAINING, detail, retry_after=1)

    # ------------------------------------------------------------ closing

    async def begin(self) -> None:
        """Close the gate of a starting node if it has inboxes and peers.

        Raises:
            UnavailableError: the store.
        """
        self.close()
        if not self.is_open:
            await self._load_owners()

    def close(self) -> None:
        """Close the gate if there are peers: the store, and its records, may have gone back."""
        if not self._peer_count():
            return
        self._owners, self._busy_until, self._answered = None, {}, {}
        self._closed_at = clock.monotonic()
        self._is_open.clear()
        self._is_asking.set()
        metrics.RETURNING.set(1)

    def _peer_count(self) -> int:
        return len(self._gossip.exchange.peers.desired_links())

    async def _load_owners(self) -> None:
        """Read the agents whose inboxes are here, by buckets of the directory."""
        owners: dict[int, list[AgentKey]] = {}
        cursor, is_last = "", False
        while not is_last:
            page = await self._inboxes.owners(cursor, PAGE)
            for owner in page.owners:
                owners.setdefault(place(owner.encode(), TOP_BITS), []).append(owner)
            cursor, is_last = page.cursor, not page.cursor
        self._owners = owners
        if owners:
            inboxes = sum(map(len, owners.values()))
            log.event("returning", inboxes=inboxes, peers=self._peer_count())
        else:
            self._finish()

    # ------------------------------------------------------------ asking

    async def run(self) -> None:
        """Wait until the gate closes; then ask until a peer has answered.

        Raises:
            UnavailableError: the store; to be repeated.
        """
        await self._is_asking.wait()
        if self._owners is None:
            await self._load_owners()
        async with asyncio.TaskGroup() as tasks:
            asking: list[asyncio.Task[None]] = []
            # a new close() resets the owners, so the next run reads them again
            while self._is_asking.is_set() and self._owners is not None:
                for link in self._next_peers():
                    self._busy_until[link.peer] = clock.monotonic() + MAX_ASK_S
                    asking.append(tasks.create_task(guarded("return", self._ask(link))))
                await asyncio.sleep(POLL_INTERVAL_S)
                self._decide()
            for task in asking:
                # the next pull compares with the slower peers
                task.cancel()

    def _next_peers(self) -> list[Link]:
        now = clock.monotonic()
        free = [
            link
            for link in self._gossip.trusted_links()
            if link.peer not in self._answered and now >= self._busy_until.get(link.peer, 0.0)
        ]
        under_way = sum(at > now for at in self._busy_until.values())
        return free[: max(0, MAX_PEERS_ASKED - len(self._answered) - under_way)]

    async def _ask(self, link: Link) -> None:
        closed_at = self._closed_at
        code, detail = ErrorCode.PEER_UNREACHABLE, "it took too long"
        try:
            async with asyncio.timeout(MAX_ASK_S):
                new = await self._compare(link)
        except (TimeoutError, RelayError) as exc:
            if isinstance(exc, RelayError):
                code, detail = exc.code, exc.detail
            log.event("pull_failed", peer=link.peer, code=code, detail=detail)
        else:
            if closed_at == self._closed_at:
                self._answered_at = self._answered_at if self._answered else clock.monotonic()
                self._answered[link.peer] = new
        finally:
            self._busy_until[link.peer] = clock.monotonic() + RETRY_S

    async def _compare(self, link: Link) -> int:
        """Fetch what a peer knows of the agents here; return the number of new records.

        Raises:
            RelayError: the link, a wrong answer, or the store.
        """
        await self._gossip.changes.read()
        index = self._gossip.changes.index
        digests = await link.ask(lambda ref: frames.Digest(ref, TOP_BITS))
        if not isinstance(digests, frames.Digests) or digests.bits != TOP_BITS:
            raise bad_frame("an answer to another question")
        for _ in index.prepare(TOP_BITS):
            await asyncio.sleep(0)
        new = 0
        concerned = [
            owner
            for bucket in differing(index, digests)
            for owner in (self._owners or {}).get(bucket, ())
        ]
        for start in range(0, len(concerned), RECORDS_PER_QUESTION):
            agents = tuple(concerned[start : start + RECORDS_PER_QUESTION])
            answer = await link.ask(partial(frames.Want, agents=agents))
            new += await self._merge(link.peer, answer, agents)
        return new

    async def _merge(self, peer: Did, answer: PeerAnswer, asked: Sequence[AgentKey]) -> int:
        if not isinstance(answer, frames.Gossip) or len(answer.records) > len(asked):
            raise bad_frame("an answer to another question")
        # most records are known word for word, and need no parsing
        rows = await self._records.get_many(asked)
        known = {row.compact for row in rows if row is not None}
        others = tuple(record for record in answer.records if record not in known)
        if not others:
            return 0
        return await self._gossip.merge_fetched(peer, replace(answer, records=others), asked)

    # ------------------------------------------------------------ opening

    def _decide(self) -> None:
        now = clock.monotonic()
        if self._answered:
            enough = min(MAX_PEERS_ASKED, max(1, self._peer_count()))
            if len(self._answered) >= enough or now >= self._answered_at + GRACE_S:
                self._finish()
        elif not self.is_open and now >= self._closed_at + self._wait_s:
            log.event("let_in_unasked", seconds=now - self._closed_at)
            metrics.UNASKED.set(1)
            self._open()

    def _finish(self) -> None:
        if self._answered:
            peers, news = len(self._answered), sum(self._answered.values())
            seconds = clock.monotonic() - self._closed_at
            log.event("returned", peers=peers, news=news, seconds=seconds)
        metrics.UNASKED.set(0)
        self._owners = None
        self._is_asking.clear()
        self._open()

    def _open(self) -> None:
        metrics.RETURNING.set(0)
        self._is_open.set()
