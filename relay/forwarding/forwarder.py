"""Couriers: each takes what waits in one away inbox to the relay where its agent lives.

Rules of the file: a courier is the consumer of an inbox in the place of its agent, by the same
delivery (``inbox/model/delivery.py``): backfill, cutover, streaming, window, fence. It acks as
forwarded what another relay gave its receipt for, refuses what that relay never will take, and
leaves the rest where it is. Killed at any instruction, another one goes on.

::

    due ──open──▶ read and follow ──batch──▶ carrier ──answer──▶ ack, refuse, try again
                       └── idle, long pause, fenced off ──▶ closed; due again by the store's word
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from relay import clock, log, metrics
from relay.forwarding.model import (
    LONGEST_ASKED_S,
    ForwardItem,
    ForwardResult,
    ForwardWindow,
)
from relay.forwarding.peer_submitter import (
    MOST_BYTES,
    NotSentError,
    PeerSubmitter,
    Spawn,
)
from relay.inbox.consumer import InboxConsumer
from relay.inbox.dispatch import Delivery
from relay.inbox.group_commit import GroupCommit
from relay.inbox.model.delivery import InboxDelivery
from relay.inbox.model.effects import Effect, EndSession, Read
from relay.inbox.model.store_contract import LEASE_S
from relay.inbox.model.types import (
    Ack,
    Acked,
    AckRequest,
    Forwarded,
    Opened,
)
from relay.inbox.ports import (
    Store,
)
from relay.peering.ports import SubmitResult
from relay.protocol import frames
from relay.protocol.client_session import Send
from relay.protocol.did import (
    did_of,
    parse_did,
)
from relay.protocol.endpoint_record import Home
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
    RelayError,
)
from relay.protocol.ids import (
    AgentKey,
    Did,
    Seq,
)
from relay.protocol.receipts import (
    Receipt,
    digest_of,
)
from relay.protocol.types import (
    Window,
)

IDLE_S: Final = 10.0
SHORT_S: Final = 3.0
"""A pause up to so long is waited for with the inbox open."""
NOWHERE_S: Final = 30.0
HOMES_S: Final = 5.0
ACK_AGAIN_S: Final = 1.0
BATCH: Final = (64, MOST_BYTES)
HANDOFF_BATCH: Final = (256, 1024 * 1024)
"""Envelopes and wire bytes of one submit; one envelope always fits."""
_BUSY: Final = float("inf")
_UNKNOWN_THERE: Final = frozenset({ErrorCode.WRONG_STATE, ErrorCode.NOT_FEDERATED})
"""A relay that was reached knows nothing of a hand-off: so it says to a peer, so to a partner."""
_AGAIN: Final = frozenset({ErrorCode.STORAGE_UNAVAILABLE, ErrorCode.INTERNAL})


@dataclass(frozen=True, slots=True)
class ForwarderDeps:
    """What couriers need of their node.

    Args:
        window: of each courier.
        store: inboxes.
        acks: the node's group commit of acks.
        delivery: tells of news.
        homes: where an agent lives now.
        carrier: takes batches to a home.
        learn: takes a newer record that a relay told.
        spawn: runs work beside.
        batch: envelopes and wire bytes that one submit takes.
        forgotten: of a hand-off: called where its target knows nothing of it.
    """

    window: Window
    store: Store
    acks: GroupCommit[AckRequest, Acked]
    delivery: Delivery
    homes: Callable[[Did], Awaitable[Sequence[Home]]]
    carrier: Callable[[Home], PeerSubmitter]
    learn: Callable[[str, Did], Awaitable[object]]
    spawn: Spawn
    batch: tuple[int, int] = BATCH
    forgotten: Callable[[], Awaitable[None]] | None = None


class ForwarderExit(NamedTuple):
    """How a courier leaves its inbox: when to go on, for which relay it waits, what is told."""

    wait_s: float = 0.0
    peer: AgentKey | None = None
    closed: Refusal | None = None


class InboxForwarder(InboxConsumer):
    """The consumer of one away inbox.

    Args:
        needs: of the node.
        inbox: whose.
        opened: its session, just opened.
        peer: the relay that it waits for; tried first.
    """

    def __init__(
        self, needs: ForwarderDeps, inbox: AgentKey, opened: Opened, peer: AgentKey | None = None
    ) -> None:
        delivery = InboxDelivery(needs.window)
        super().__init__(delivery, delivery, needs.store)
        self._needs = needs
        self._inbox = inbox
        self._to = did_of(inbox)
        self._opened = opened
        self._load = ForwardWindow(needs.store.promised)
        self._work = asyncio.Event()
        self._has_ended = False
        self._forwarded: Forwarded | None = None
        self._unacked = 0
        self._known: Sequence[Home] = ()
        self._known_until = 0.0
        self.idle_since = _BUSY
        self._peer = peer
        self._waits: list[float] = []
        self._lease_until = clock.monotonic() + LEASE_S

    async def run(self) -> None:
        """Carry until nothing is left, it must wait for long, or another session has the inbox."""
        needs = self._needs
        needs.delivery.attach(self._inbox, self, courier=True)
        try:
            opened = self._opened
            self._perform(
                self._delivery.open(
                    self._inbox, opened.fence, opened.epoch, opened.cursor, opened.head
                )
            )
            # no hint came for what was stored between opening and attaching
            self.on_wakeup()
            rest = await self._carry_all()
            # once it is closed, an ack that is on its way comes too late
            await self._acked()
        finally:
            needs.delivery.detach(self._inbox, self)
            self._delivery.close()
            self._stop_timer()
        fence = self._opened.fence
        if await needs.store.defer_outbox(
            self._inbox, fence, rest.wait_s, peer=rest.peer, closed=rest.closed
        ):
            await needs.store.close(self._inbox, fence, self._load.doubtful())

    def stop(self) -> None:
        """Leave the inbox to another node; what is under way is waited for."""
        self._has_ended = True
        self._work.set()

    # ------------------------------------------------------------ carry

    async def _carry_all(self) -> ForwarderExit:
        while not self._has_ended:
            await self._keep_lease()
            items = self._load.take(*self._needs.batch)
            if items:
                rest = await self._carry(items)
                if rest is not None:
                    return rest
            elif not await self._wait(IDLE_S) and not self._unacked:
                break
        return ForwarderExit()

    async def _carry(self, items: Sequence[ForwardItem]) -> ForwarderExit | None:
        """One batch; gives how to leave the inbox where that is better than to go on."""
        try:
            homes = await self._homes()
        except RelayError:
            return ForwarderExit(self._load.unsent())
        if not homes:
            no = Refusal(ErrorCode.NOT_FEDERATED, "no home of the recipient may be dialled")
            return ForwarderExit(max(self._load.unsent(), NOWHERE_S), closed=no)
        home = next((one for one in homes if _key(one) == self._peer), homes[0])
        answer = await self._submit(home, items, homes)
        self._conclude(answer)
        if answer.record is not None:
            await self._needs.learn(answer.record, home.did)
            self._known_until = 0.0
        wait_s = answer.wait_s or 0.0
        if answer.is_anew or wait_s > SHORT_S or answer.closed is not None:
            return ForwarderExit(wait_s, self._peer, answer.closed)
        await self._pause(wait_s)
        return None

    async def _homes(self) -> Sequence[Home]:
        """Where the agent lives; asked of the store every few seconds, and after a failure."""
        now = clock.monotonic()
        if now >= self._known_until:
            self._known = await self._needs.homes(self._to)
            self._known_until = now + HOMES_S
        return self._known

    async def _submit(
        self, home: Home, items: Sequence[ForwardItem], homes: Sequence[Home]
    ) -> ForwardResult:
        load, self._peer = self._load, _key(home)
        try:
            taken = await self._answer(self._needs.carrier(home).submit(items))
        except NotSentError as exc:
            metrics.FORWARD_FAILURES.labels(exc.code).inc()
            failed = ForwardResult((), (), max(load.unsent(), _asked_s(exc)))
            return self._turn(home, homes, failed)
        except RelayError as exc:
            metrics.FORWARD_FAILURES.labels(exc.code).inc()
            if exc.code in _UNKNOWN_THERE and self._needs.forgotten is not None:
                await self._needs.forgotten()
                return ForwardResult((), (), load.unsent(), is_anew=True)
            failed = ForwardResult((), (), max(load.lost(home.did), _asked_s(exc)))
            return self._turn(home, homes, failed)
        self._forwarded = _proof(home, taken)
        load.durability = self._needs.store.promised
        answer = load.answered(home.did, taken.receipt, taken.outcomes)
        metrics.FORWARDED.inc(len(answer.taken))
        if taken.receipt is not None and taken.receipt.handoff:
            _log_page(self._to, taken.receipt)
        if answer.closed is not None:
            return self._turn(home, homes, answer)
        self._waits.clear()
        return answer

    async def _answer(self, answer: asyncio.Future[SubmitResult]) -> SubmitResult:
        """Wait for a relay, which may take its time, and keep what was lent meanwhile."""
        try:
            while not answer.done():
                await asyncio.wait([answer], timeout=LEASE_S / 3)
                # a store that is away will say so when there is something to write down
                with contextlib.suppress(RelayError):
                    await self._keep_lease()
        finally:
            answer.cancel()
        return answer.result()

    def _turn(self, home: Home, homes: Sequence[Home], no: ForwardResult) -> ForwardResult:
        """From a home that takes nothing to the next at once; a pause once none does."""
        self._known_until = 0.0
        self._peer = _key(homes[(homes.index(home) + 1) % len(homes)])
        self._waits.append(no.wait_s or 0.0)
        if len(self._waits) < len(homes):
            return replace(no, wait_s=0.0, closed=None)
        wait_s = min(self._waits)
        self._waits.clear()
        return replace(no, wait_s=wait_s)

    def _conclude(self, answer: ForwardResult) -> None:
        if not (answer.taken or answer.refused) or not self._delivery.is_open:
            return
        for _, code in answer.refused:
            metrics.DEAD_LETTERS.labels(code).inc()
            log.event("dead_letter", code=code)
        ack = Ack(self.fence, self.epoch, answer.taken, Seq(0), answer.refused, self._forwarded)
        self._unacked += 1
        self._needs.acks.put(self, [AckRequest(self._inbox, ack)])

    # ------------------------------------------------------------ wait

    async def _wait(self, seconds: float) -> bool:
        """Wait for news; False when there were none."""
        self._work.clear()
        if self._has_ended or len(self._load):
            return True
        self.idle_since = clock.monotonic()
        try:
            async with asyncio.timeout(seconds):
                await self._work.wait()
        except TimeoutError:
            return False
        finally:
            self.idle_since = _BUSY
        return True

    async def _pause(self, seconds: float) -> None:
        """Let time pass, unless the inbox is taken away meanwhile."""
        until = clock.monotonic() + seconds
        while not self._has_ended and (left := until - clock.monotonic()) > 0:
            self._work.clear()
            try:
                async with asyncio.timeout(left):
                    await self._work.wait()
            except TimeoutError:
                return

    async def _acked(self) -> None:
        """Wait until what was taken over is durably so here."""
        while self._unacked:
            self._work.clear()
            await self._work.wait()

    async def _keep_lease(self) -> None:
        now = clock.monotonic()
        if self._lease_until - now < LEASE_S / 2:
            await self._needs.store.defer_outbox(self._inbox, self.fence, LEASE_S)
            self._lease_until = now + LEASE_S

    # ------------------------------------------------------------ effects

    def _perform(self, wanted: Sequence[Effect]) -> None:
        for effect in wanted:
            match effect:
                case Send(frames.Deliver() as frame):
                    self._load.hand(frame.items)
                    self._work.set()
                case Read():
                    self._needs.spawn(self.read(effect))
                case EndSession():
                    self._delivery.close()
                    self.stop()
                case _:
                    # gaps are no news, a failed ack is repeated, and run() closes the inbox
                    pass
        self._set_timer()

    def on_committed(self, results: Sequence[tuple[AckRequest, Acked | Refusal]]) -> None:
        """One commit decided these acks; one that may not be durable is said again."""
        loop = asyncio.get_running_loop()
        for request, result in results:
            if isinstance(result, Refusal) and result.code in _AGAIN and not self._has_ended:
                loop.call_later(ACK_AGAIN_S, self._needs.acks.put, self, [request])
                continue
            self._unacked -= 1
            if not isinstance(result, Refusal):
                self._load.concluded((*request.ack.seqs, *(seq for seq, _ in request.ack.refuse)))
        super().on_committed(results)
        self._work.set()


def _log_page(did: Did, receipt: Receipt) -> None:
    eids = [item.eid for item in receipt.items]
    log.event(
        "page_handed_over",
        did=did,
        handoff=receipt.handoff,
        count=len(eids),
        digest=digest_of(eids),
    )


def _proof(home: Home, taken: SubmitResult) -> Forwarded | None:
    if taken.compact is None:
        return None
    digest = hashlib.sha256(taken.compact.encode()).digest()
    return Forwarded(_key(home), digest)


def _asked_s(exc: RelayError) -> float:
    """The pause that was asked for, within bounds."""
    return float(min(exc.retry_after or 0, LONGEST_ASKED_S))


def _key(home: Home) -> AgentKey:
    return parse_did(home.did).agent_key
