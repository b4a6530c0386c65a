"""Submit: parse, verify, admit and store; one signed receipt per commit and connection.

Each envelope has one answer, after its outcome is known. What was stored stands in a receipt,
anything else in a rejection with ``stored: no|unknown`` (GUARANTEES.md S1-S3).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Final, NamedTuple

from relay import clock, log, metrics
from relay.inbox.group_commit import GroupCommit
from relay.inbox.model import admission
from relay.inbox.model.types import Accepted
from relay.inbox.ports import Keys, Router
from relay.limits import TokenBuckets
from relay.protocol import envelope as envelopes
from relay.protocol import frames
from relay.protocol.did import SigningKey
from relay.protocol.envelope import AdmittedEnvelope, StoredEnvelope
from relay.protocol.errors import ErrorCode, Refusal, RelayError, error
from relay.protocol.ids import AgentKey, Did
from relay.protocol.receipts import (
    BOUNCE_CONTENT_TYPE,
    Durability,
    ReceiptItem,
    digest_of,
    position,
    sign_receipt,
)
from relay.tasks import Spawn, side_by_side

YIELD_EVERY: Final = 16
"""Envelopes verified before other connections have a turn; ~1 ms."""

OF_STRANGERS: Final = frozenset({ErrorCode.STRANGER_QUOTA, ErrorCode.NOT_ADMITTED})
"""An inbox's refusals of a stranger; they count against its network like an acceptance."""

ELSEWHERE: Final = frozenset({ErrorCode.MOVED, ErrorCode.UNKNOWN_INBOX})
"""The inbox is not here: what an agent of this relay sends there is forwarded."""


@dataclass(frozen=True, slots=True)
class LocalSource:
    """An agent of this relay, whose envelopes are forwarded (PROTOCOL.md §5.2).

    Args:
        sender: only the envelopes that it signed itself.
        router: finds the relay for which an envelope may wait here.
        spawn: runs a look-up beside the connection.
    """

    sender: AgentKey
    router: Router
    spawn: Spawn


@dataclass(frozen=True, slots=True)
class PeerSource:
    """Another relay, whose submits go into inboxes here or nowhere.

    Args:
        key: counts what it submits.
        did: the relay.
        is_federated: asked for each submit; False = it may bring hand-offs only.
    """

    key: AgentKey
    did: Did
    is_federated: Callable[[], bool]


@dataclass(slots=True)
class RelayIdentity:
    """The relay's key, and the secret from which ``pos`` is derived."""

    key: SigningKey
    position_secret: bytes


@dataclass(slots=True)
class _PendingSubmit:
    """A submit whose envelopes are not all decided."""

    ref: str
    undecided: int
    results: list[ReceiptItem | Refusal | None]
    handoff: str = ""


class SubmitItem(NamedTuple):
    """One envelope on its way to the store."""

    stored: StoredEnvelope
    to: Did
    submit: _PendingSubmit
    place: int


@dataclass(slots=True)
class Intake:
    """The part of a node that all submits share.

    Args:
        identity: signs receipts.
        keys: which keys may act for a DID.
        sender_rates: buckets of proven senders.
        stranger_rates: buckets of networks from which strangers write.
        peer_rates: buckets of peers that bring what strangers write.
        accepts_handoff_from: True if a peer may hand over an agent's inbox.
        commits: the group commit of accepts.
        durability: the promise of a receipt, asked for each one.
        denied: senders that the operator does not serve.
        max_body_bytes: largest body.
        draining: set once the node shuts down.
    """

    identity: RelayIdentity
    keys: Keys
    sender_rates: TokenBuckets[AgentKey]
    stranger_rates: TokenBuckets[str]
    peer_rates: TokenBuckets[str]
    accepts_handoff_from: Callable[[Did, AgentKey], Awaitable[bool]]
    commits: GroupCommit[SubmitItem, Accepted]
    durability: Callable[[], Durability]
    denied: frozenset[Did]
    max_body_bytes: int
    draining: bool = field(default=False)


class SubmitStream:
    """The submits of one connection or request: a source of the group commit.

    Args:
        intake: shared by all.
        answer: called with each ``submitted`` frame; must not block.
        network: where they come from.
    """

    def __init__(
        self, intake: Intake, answer: Callable[[frames.Submitted], None], network: str
    ) -> None:
        self._intake = intake
        self._answer = answer
        self._network = network
        self._strangers = intake.stranger_rates
        self._pending: deque[_PendingSubmit] = deque()
        self._source: LocalSource | PeerSource | None = None
        self._is_closed = False
        self.in_flight = 0
        self.in_flight_bytes = 0

    def bind_source(self, source: LocalSource | PeerSource) -> None:
        """Bind the stream to the authenticated agent or peer."""
        self._source = source
        if isinstance(source, PeerSource):
            self._strangers, self._network = self._intake.peer_rates, source.did

    def close(self) -> None:
        """Answer, sign and look up nothing from now on; what is queued is still stored."""
        self._is_closed = True

    async def submit(
        self,
        ref: str,
        items: Sequence[object],
        marked: Collection[int] = (),
        handoff: str = "",
    ) -> None:
        """Take a submit; the answer follows through ``answer`` when all of it is decided.

        Args:
            ref: named by the answer.
            items: raw envelopes.
            marked: places of those that their recipient may have seen before.
            handoff: of a peer: the hand-off that they are a page of.

        Raises:
            RelayError: nothing of it is accepted, and there is no other answer: ``wrong_state`` or
                ``not_federated`` where the hand-off is not expected here.
        """
        inbox = await self._handoff_inbox(items) if handoff else None
        pending = _PendingSubmit(ref, len(items), [None] * len(items), handoff)
        self._pending.append(pending)
        ready: list[SubmitItem] = []
        intake, now = self._intake, clock.monotonic()
        facts = admission.AdmissionFacts(clock.now(), intake.draining, denied=intake.denied)
        is_barred = inbox is None and self._strangers.wait_s(self._network, now) > 0
        for place, raw in enumerate(items):
            outcome = await self._admit(raw, facts, inbox)
            if isinstance(outcome, Refusal):
                pending.results[place] = outcome
                pending.undecided -= 1
            else:
                stored = envelopes.stored(outcome, barred=is_barred)
                if self._source is not None:
                    stored = _from_source(self._source, stored, outcome, is_marked=place in marked)
                stored = stored._replace(moving=True) if inbox is not None else stored
                self.in_flight_bytes += len(stored.wire)
                ready.append(SubmitItem(stored, outcome.envelope.recipient.did, pending, place))
            if place % YIELD_EVERY == YIELD_EVERY - 1:
                await asyncio.sleep(0)
        self.in_flight += len(ready)
        self._intake.commits.put(self, ready)
        self._flush()

    async def _handoff_inbox(self, items: Sequence[object]) -> AgentKey | None:
        """Return the inbox that a peer hands over; None = no envelope can be read."""
        source, intake = self._source, self._intake
        if not isinstance(source, PeerSource):
            raise error(ErrorCode.BAD_FRAME, "only a peer hands an inbox over")
        inbox = next(filter(None, map(self._recipient, items)), None)
        if inbox is None or await intake.accepts_handoff_from(source.did, inbox):
            return inbox
        code = ErrorCode.WRONG_STATE if source.is_federated() else ErrorCode.NOT_FEDERATED
        raise error(code, "this relay expects no hand-off under that id from that relay")

    def _recipient(self, raw: object) -> AgentKey | None:
        try:
            read = envelopes.parse(raw, max_body_bytes=self._intake.max_body_bytes)
        except RelayError:
            return None
        return read.recipient.agent_key

    async def _admit(
        self, raw: object, facts: admission.AdmissionFacts, inbox: AgentKey | None
    ) -> AdmittedEnvelope | Refusal:
        """Admit one envelope; ``inbox``: the one that a hand-off is of."""
        intake = self._intake
        try:
            envelope = envelopes.parse(raw, max_body_bytes=intake.max_body_bytes)
            refusal = admission.refuse_early(envelope, facts)
            if refusal is not None:
                return refusal
            if inbox is not None and envelope.recipient.agent_key != inbox:
                return Refusal(ErrorCode.WRONG_STATE, "that hand-off is of another inbox")
            sender = envelope.sender
            key = intake.keys.known(sender) or await intake.keys.resolve(sender.did)
            verified = envelopes.verify(envelope, key)
        except RelayError as exc:
            return Refusal.of(exc)
        wait_s = 0.0
        if inbox is None:
            # another relay accepted what moves, at the rate that held there
            wait_s = intake.sender_rates.try_acquire(sender.agent_key, clock.monotonic())
        return admission.admit(verified, admission.with_wait(facts, wait_s))

    def on_committed(self, results: Sequence[tuple[SubmitItem, Accepted | Refusal]]) -> None:
        """Take what one commit decided about this connection's envelopes."""
        secret = self._intake.identity.position_secret
        accepted = dups = strangers = 0
        elsewhere: list[tuple[SubmitItem, Refusal]] = []
        for item, result in results:
            stored, to, submit, place = item
            if isinstance(result, Refusal) and self._may_forward(stored, result):
                elsewhere.append((item, result))
                continue
            self.in_flight -= 1
            self.in_flight_bytes -= len(stored.wire)
            submit.undecided -= 1
            if isinstance(result, Refusal):
                submit.results[place] = result if stored.moving else self._charged(result)
                continue
            seq, epoch, dup, _, is_stranger, is_forwarded = result
            strangers += is_stranger and not stored.moving
            accepted, dups = accepted + (not dup), dups + dup
            pos = position(secret, epoch, seq)
            submit.results[place] = ReceiptItem(
                stored.eid,
                to,
                epoch,
                pos,
                stored.expires_at,
                dup,
                "outbox" if is_forwarded else "inbox",
            )
        if elsewhere and isinstance(self._source, LocalSource):
            self._source.spawn(self._forward(self._source, elsewhere))
        if strangers:
            self._strangers.charge(self._network, strangers, clock.monotonic())
        metrics.ACCEPTED.inc(accepted)
        metrics.DUPLICATES.inc(dups)
        self._flush()

    def _may_forward(self, stored: StoredEnvelope, refusal: Refusal) -> bool:
        is_new = isinstance(self._source, LocalSource) and stored.peer is None
        return is_new and refusal.code in ELSEWHERE and not self._is_closed

    async def _forward(
        self, local: LocalSource, refused: Sequence[tuple[SubmitItem, Refusal]]
    ) -> None:
        """Find the relays for which these may wait here, then try again with that."""
        own = {item.to: refusal for item, refusal in refused if item.stored.sender == local.sender}
        peers = await side_by_side(_find(local.router, to, own[to]) for to in own)
        found = dict(zip(own, peers, strict=True))
        again: list[SubmitItem] = []
        for item, refusal in refused:
            is_own = item.stored.sender == local.sender
            peer = found[item.to] if is_own else _no_relaying(refusal)
            if isinstance(peer, Refusal):
                self.in_flight -= 1
                self.in_flight_bytes -= len(item.stored.wire)
                item.submit.undecided -= 1
                item.submit.results[item.place] = peer
            else:
                again.append(item._replace(stored=item.stored._replace(peer=peer)))
        self._intake.commits.put(self, again)
        self._flush()

    def _charged(self, refusal: Refusal) -> Refusal:
        """Charge the network of a refused stranger; fill in how long it has to wait."""
        strangers, now = self._strangers, clock.monotonic()
        if refusal.code in OF_STRANGERS:
            strangers.charge(self._network, 1, now)
        if refusal.code is not ErrorCode.RATE_LIMITED:
            return refusal
        # only the inbox knows who is a stranger, and only the node knows the rate of its network
        return replace(refusal, retry_after=max(1, ceil(strangers.wait_s(self._network, now))))

    # ------------------------------------------------------------ answers

    def _flush(self) -> None:
        """Answer every decided submit, oldest first, in as few frames as possible."""
        while self._pending and not self._pending[0].undecided and not self._is_closed:
            self._answer_decided(self._pending[0].handoff)

    def _answer_decided(self, handoff: str) -> None:
        """Answer submits of one hand-off, or of none, in one frame: a receipt names at most one."""
        refs: list[str] = []
        stored: list[ReceiptItem] = []
        rejected: list[frames.Rejection] = []
        while self._pending and not (first := self._pending[0]).undecided:
            if first.handoff != handoff:
                break
            submit = self._pending.popleft()
            refs.append(submit.ref)
            for place, result in enumerate(submit.results):
                if isinstance(result, Refusal):
                    metrics.REJECTED.labels(result.code).inc()
                    rejected.append(_rejection(submit.ref, place, result))
                elif result is not None:
                    stored.append(result)
        self._answer(frames.Submitted(tuple(refs), self._receipt(stored, handoff), tuple(rejected)))

    def _receipt(self, items: Sequence[ReceiptItem], handoff: str) -> str | None:
        if not items:
            return None
        intake = self._intake
        if handoff:
            digest = digest_of(item.eid for item in items)
            log.event(
                "page_signed", did=items[0].to, handoff=handoff, count=len(items), digest=digest
            )
        return sign_receipt(
            intake.identity.key,
            items,
            durability=intake.durability(),
            now=clock.now(),
            handoff=handoff,
        )


def _from_source(
    source: LocalSource | PeerSource,
    stored: StoredEnvelope,
    admitted: AdmittedEnvelope,
    *,
    is_marked: bool,
) -> StoredEnvelope:
    """Add what is stored because of who submits it."""
    if isinstance(source, LocalSource):
        known = source.router.known(stored.inbox) if stored.sender == source.sender else None
        return stored if known is None else stored._replace(peer=known)
    envelope = admitted.envelope
    is_bounce = envelope.sender.did == source.did and envelope.content_type == BOUNCE_CONTENT_TYPE
    # a bounce never bounces, and is a stranger to nobody
    return stored._replace(via=source.key, marked=is_marked, bounces=not is_bounce)


async def _find(router: Router, to: Did, refusal: Refusal) -> AgentKey | Refusal:
    try:
        return await router.find(to)
    except RelayError as exc:
        # the record lets the sender go to the new home itself
        return replace(Refusal.of(exc), record=refusal.record)


def _no_relaying(refusal: Refusal) -> Refusal:
    if refusal.code is ErrorCode.MOVED:
        return refusal
    return Refusal(ErrorCode.NO_RELAYING, "only an agent's own envelopes are forwarded for it")


def _rejection(ref: str, place: int, refusal: Refusal) -> frames.Rejection:
    return frames.Rejection(
        ref,
        place,
        refusal.code,
        refusal.stored,
        refusal.detail,
        refusal.retry_after,
        refusal.record,
    )


def size_of(item: SubmitItem) -> int:
    """Return the size of an item for the bound of a commit."""
    return item.stored.size
