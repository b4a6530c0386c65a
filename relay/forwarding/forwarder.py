"""Forwarders: each sends the mail of one inbox to the relay where its agent lives.

A forwarder consumes an inbox in the place of its agent, through the same delivery: backfill,
cutover, streaming, window, fence. It acks what another relay has given its receipt for, refuses
what that relay refuses for good, and leaves the rest (GUARANTEES.md S1, §4). After a crash at any
instruction another forwarder goes on.

::

    due ──open──▶ read ──batch──▶ submitter ──result──▶ ack, refuse, try again
                    └── idle, long pause, fenced off ──▶ closed; the store says when it is due
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from relay import clock, log, metrics
from relay.forwarding.model import MAX_ASKED_PAUSE_S, ForwardItem, ForwardResult, ForwardWindow
from relay.forwarding.peer_submitter import MAX_SUBMIT_BYTES, NotSentError, SubmitterPool
from relay.forwarding.ports import HandoffGate, OutboxStore
from relay.forwarding.routing import Routing
from relay.inbox.consumer import InboxConsumer
from relay.inbox.dispatch import Dispatcher
from relay.inbox.group_commit import GroupCommit
from relay.inbox.model import types
from relay.inbox.model.delivery import InboxDelivery
from relay.inbox.model.effects import Effect, EndSession, Read
from relay.inbox.model.store_contract import LEASE_S
from relay.inbox.ports import InboxStore
from relay.peering.link import SubmitResult
from relay.protocol import frames
from relay.protocol.client_session import Send
from relay.protocol.did import did_of, parse_did
from relay.protocol.endpoint_record import Home
from relay.protocol.errors import ErrorCode, Refusal, RelayError
from relay.protocol.ids import AgentKey, Did, Seq
from relay.protocol.receipts import Receipt, digest_of
from relay.protocol.types import Window
from relay.tasks import Spawn

IDLE_S: Final = 10.0
MAX_OPEN_PAUSE_S: Final = 3.0
"""The inbox stays open during a pause up to this long."""
NO_HOME_PAUSE_S: Final = 30.0
HOMES_S: Final = 5.0
"""How long the homes of the agent are not read again."""
ACK_RETRY_S: Final = 1.0
BATCH: Final = (64, MAX_SUBMIT_BYTES)
HANDOFF_BATCH: Final = (256, 1024 * 1024)
"""Envelopes and wire bytes of one submit; one envelope always fits."""
WINDOW: Final = Window(256, 4 * 1024 * 1024)
HANDOFF_WINDOW: Final = Window(2 * HANDOFF_BATCH[0], 4 * 1024 * 1024)
"""While the target looks at one page, the next one is read and the last one acked."""
_BUSY: Final = float("inf")
_UNKNOWN_HANDOFF: Final = frozenset({ErrorCode.WRONG_STATE, ErrorCode.NOT_FEDERATED})
"""How a relay that does not know a hand-off answers a peer, and a hand-off peer."""
_RETRIED: Final = frozenset({ErrorCode.STORAGE_UNAVAILABLE, ErrorCode.INTERNAL})


@dataclass(frozen=True, slots=True)
class ForwarderDeps:
    """The dependencies of every forwarder of a node.

    Args:
        inboxes: their sessions.
        outboxes: when they are due.
        acks: the node's group commit of acks.
        dispatcher: the listeners of this node.
        routing: finds the homes of agents.
        submitters: send batches to homes.
        handoffs: decides about inboxes that move.
        merge_record: verifies and merges a newer record that a relay sent.
        spawn: runs work in the background.
    """

    inboxes: InboxStore
    outboxes: OutboxStore
    acks: GroupCommit[types.AckRequest, types.AckResult]
    dispatcher: Dispatcher
    routing: Routing
    submitters: SubmitterPool
    handoffs: HandoffGate
    merge_record: Callable[[str, Did], Awaitable[object]]
    spawn: Spawn


class ForwarderExit(NamedTuple):
    """The state in which a forwarder leaves its inbox.

    Args:
        wait_s: when the inbox is due again.
        peer: the relay that its mail waits for.
        closed: how new mail for it is refused until then.
    """

    wait_s: float = 0.0
    peer: AgentKey | None = None
    closed: Refusal | None = None


class InboxForwarder(InboxConsumer):
    """The consumer of one inbox whose agent lives elsewhere.

    Args:
        deps: of the node.
        inbox: which inbox.
        opened: its session, just opened.
        peer: the relay that the mail waits for; tried first.
        handoff: the hand-off that the mail belongs to; "" = none.
    """

    def __init__(
        self,
        deps: ForwarderDeps,
        inbox: AgentKey,
        opened: types.OpenedSession,
        peer: AgentKey | None = None,
        handoff: str = "",
    ) -> None:
        delivery = InboxDelivery(HANDOFF_WINDOW if handoff else WINDOW)
        super().__init__(delivery, delivery, deps.inboxes)
        self._deps = deps
        self._inbox = inbox
        self._did = did_of(inbox)
        self._opened = opened
        self._handoff = handoff
        self._batch = HANDOFF_BATCH if handoff else BATCH
        self._window = ForwardWindow(deps.inboxes.promised)
        self._work = asyncio.Event()
        self._is_stopped = False
        self._proof: types.Forwarded | None = None
        self._unacked = 0
        self._homes: Sequence[Home] = ()
        self._homes_until = 0.0
        self.idle_since = _BUSY
        self._peer = peer
        self._waits: list[float] = []
        self._lease_until = clock.monotonic() + LEASE_S

    async def run(self) -> None:
        """Forward until nothing is left, a long pause is due, or another session has the inbox."""
        deps, opened = self._deps, self._opened
        deps.dispatcher.attach(self._inbox, self, forwards=True)
        try:
            self._perform(
                self._delivery.open(
                    self._inbox, opened.fence, opened.epoch, opened.cursor, opened.head
                )
            )
            # no hint came for what was stored between opening and attaching
            self.on_wakeup()
            left = await self._forward_all()
            # an ack that reaches the store after the close has no effect
            await self._wait_for_acks()
        finally:
            deps.dispatcher.detach(self._inbox, self)
            self._delivery.close()
            self._stop_timer()
        if await deps.outboxes.defer(
            self._inbox, opened.fence, left.wait_s, peer=left.peer, closed=left.closed
        ):
            await deps.inboxes.close(self._inbox, opened.fence, self._window.maybe_sent_upto())

    def stop(self) -> None:
        """Leave the inbox to another node, after the batch in flight."""
        self._is_stopped = True
        self._work.set()

    # ------------------------------------------------------------ forward

    async def _forward_all(self) -> ForwarderExit:
        while not self._is_stopped:
            await self._renew_lease()
            items = self._window.next_batch(*self._batch)
            if items:
                left = await self._forward(items)
                if left is not None:
                    return left
            elif not await self._wait(IDLE_S) and not self._unacked:
                break
        return ForwarderExit()

    async def _forward(self, items: Sequence[ForwardItem]) -> ForwarderExit | None:
        """Forward one batch; return how to leave the inbox, or None to go on."""
        try:
            homes = await self._find_homes()
        except RelayError:
            return ForwarderExit(self._window.on_not_sent())
        if not homes:
            refusal = Refusal(ErrorCode.NOT_FEDERATED, "no home of the recipient may be dialled")
            pause_s = max(self._window.on_not_sent(), NO_HOME_PAUSE_S)
            return ForwarderExit(pause_s, closed=refusal)
        home = next((one for one in homes if _key(one) == self._peer), homes[0])
        result = await self._submit(home, items, homes)
        self._ack(result)
        if result.record is not None:
            await self._deps.merge_record(result.record, home.did)
            self._homes_until = 0.0
        wait_s = result.wait_s or 0.0
        if result.must_reopen or wait_s > MAX_OPEN_PAUSE_S or result.closed is not None:
            return ForwarderExit(wait_s, self._peer, result.closed)
        await self._pause(wait_s)
        return None

    async def _find_homes(self) -> Sequence[Home]:
        """Return the agent's homes; read them every few seconds, and after a failure."""
        now = clock.monotonic()
        if now >= self._homes_until:
            if self._handoff:
                self._homes = await self._deps.handoffs.homes(self._inbox, self._handoff)
            else:
                self._homes = await self._deps.routing.all(self._did)
            self._homes_until = now + HOMES_S
        return self._homes

    async def _submit(
        self, home: Home, items: Sequence[ForwardItem], homes: Sequence[Home]
    ) -> ForwardResult:
        deps, window, self._peer = self._deps, self._window, _key(home)
        try:
            submitter = deps.submitters.get(home, self._handoff, self._inbox)
            taken = await self._answer(submitter.submit(items))
        except NotSentError as exc:
            metrics.FORWARD_FAILURES.labels(exc.code).inc()
            failed = ForwardResult((), (), max(window.on_not_sent(), _asked_s(exc)))
            return self._next_home(home, homes, failed)
        except RelayError as exc:
            metrics.FORWARD_FAILURES.labels(exc.code).inc()
            if self._handoff and exc.code in _UNKNOWN_HANDOFF:
                await deps.handoffs.on_unknown_handoff(self._inbox, self._handoff)
                return ForwardResult((), (), window.on_not_sent(), must_reopen=True)
            failed = ForwardResult((), (), max(window.on_no_answer(home.did), _asked_s(exc)))
            return self._next_home(home, homes, failed)
        self._proof = _proof(home, taken)
        window.durability = deps.inboxes.promised
        result = window.on_answer(home.did, taken.receipt, taken.outcomes)
        metrics.FORWARDED.inc(len(result.forwarded))
        if taken.receipt is not None and taken.receipt.handoff:
            _log_page(self._did, taken.receipt)
        if result.closed is not None:
            return self._next_home(home, homes, result)
        self._waits.clear()
        return result

    async def _answer(self, answer: asyncio.Future[SubmitResult]) -> SubmitResult:
        """Wait for the relay, however long, and renew the lease meanwhile."""
        try:
            while not answer.done():
                await asyncio.wait([answer], timeout=LEASE_S / 3)
                # if the store is away, the next write says so
                with contextlib.suppress(RelayError):
                    await self._renew_lease()
        finally:
            answer.cancel()
        return answer.result()

    def _next_home(self, home: Home, homes: Sequence[Home], result: ForwardResult) -> ForwardResult:
        """Go on with the next home at once; pause when every home has failed."""
        self._homes_until = 0.0
        self._peer = _key(homes[(homes.index(home) + 1) % len(homes)])
        self._waits.append(result.wait_s or 0.0)
        if len(self._waits) < len(homes):
            return replace(result, wait_s=0.0, closed=None)
        wait_s = min(self._waits)
        self._waits.clear()
        return replace(result, wait_s=wait_s)

    def _ack(self, result: ForwardResult) -> None:
        if not (result.forwarded or result.refused) or not self._delivery.is_open:
            return
        for _, code in result.refused:
            metrics.DEAD_LETTERS.labels(code).inc()
            log.event("dead_letter", code=code)
        ack = types.InboxAck(
            self.fence, self.epoch, result.forwarded, Seq(0), result.refused, self._proof
        )
        self._unacked += 1
        self._deps.acks.put(self, [types.AckRequest(self._inbox, ack)])

    # ------------------------------------------------------------ wait

    async def _wait(self, seconds: float) -> bool:
        """Wait for work; return False if none came."""
        self._work.clear()
        if self._is_stopped or len(self._window):
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
        """Pause, or return early when the inbox is to be left."""
        until = clock.monotonic() + seconds
        while not self._is_stopped and (left := until - clock.monotonic()) > 0:
            self._work.clear()
            try:
                async with asyncio.timeout(left):
                    await self._work.wait()
            except TimeoutError:
                return

    async def _wait_for_acks(self) -> None:
        """Wait until every ack is durable, or refused."""
        while self._unacked:
            self._work.clear()
            await self._work.wait()

    async def _renew_lease(self) -> None:
        now = clock.monotonic()
        if self._lease_until - now < LEASE_S / 2:
            await self._deps.outboxes.defer(self._inbox, self.fence, LEASE_S)
            self._lease_until = now + LEASE_S

    # ------------------------------------------------------------ effects

    def _perform(self, wanted: Sequence[Effect]) -> None:
        for effect in wanted:
            match effect:
                case Send(frames.Deliver() as frame):
                    self._window.add(frame.items)
                    self._work.set()
                case Read():
                    self._deps.spawn(self.read(effect))
                case EndSession():
                    self._delivery.close()
                    self.stop()
                case _:
                    # a gap needs no answer, a failed ack is repeated, and run() closes the inbox
                    pass
        self._set_timer()

    def on_committed(
        self, results: Sequence[tuple[types.AckRequest, types.AckResult | Refusal]]
    ) -> None:
        """Take the results of acks from one commit; repeat those that may not be durable."""
        loop = asyncio.get_running_loop()
        try:
            for request, result in results:
                if isinstance(result, Refusal) and result.code in _RETRIED and not self._is_stopped:
                    loop.call_later(ACK_RETRY_S, self._deps.acks.put, self, [request])
                    continue
                self._unacked -= 1
                if not isinstance(result, Refusal):
                    ended = (*request.ack.seqs, *(seq for seq, _ in request.ack.refuse))
                    self._window.on_acked(ended)
            super().on_committed(results)
        finally:
            # whatever failed above: run() waits for this count, and must be able to end
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


def _proof(home: Home, taken: SubmitResult) -> types.Forwarded | None:
    if taken.compact is None:
        return None
    digest = hashlib.sha256(taken.compact.encode()).digest()
    return types.Forwarded(_key(home), digest)


def _asked_s(exc: RelayError) -> float:
    """Return the pause that the relay asked for, within bounds."""
    return float(min(exc.retry_after or 0, MAX_ASKED_PAUSE_S))


def _key(home: Home) -> AgentKey:
    return parse_did(home.did).agent_key
