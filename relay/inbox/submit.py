"""Submit: wire → verify → admit → store, and one signed receipt per commit and connection.

Rules of the file: an envelope is answered once, after its fate is known; what was stored is told in
a receipt, anything else in a rejection with ``stored: no|unknown`` (GUARANTEES.md S1-S3).
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
"""Envelopes verified before other connections get a turn; ~1 ms."""

OF_STRANGERS: Final = frozenset({ErrorCode.STRANGER_QUOTA, ErrorCode.NOT_ADMITTED})
"""An inbox's no to a stranger; it counts against its network like a yes."""

ELSEWHERE: Final = frozenset({ErrorCode.MOVED, ErrorCode.UNKNOWN_INBOX})
"""The inbox is not here: what an agent of this relay sends there is forwarded."""

Answer = Callable[[frames.Submitted], None]
MayBring = Callable[[Did, AgentKey], Awaitable[bool]]
"""Whether what a relay brings for an agent is a part of that hand-off."""


@dataclass(frozen=True, slots=True)
class LocalSource:
    """An agent of this relay, whose envelopes are forwarded (PROTOCOL.md §5.2).

    Args:
        sender: only what it signed itself.
        router: says for which relay an envelope may wait here.
        spawn: runs a look-up beside the connection.
    """

    sender: AgentKey
    router: Router
    spawn: Spawn


@dataclass(frozen=True, slots=True)
class PeerSource:
    """Another relay, whose submits go into inboxes here or nowhere.

    Args:
        key: what is counted as brought by it.
        did: who it is.
        is_full: whether it is dealt with in all things, asked anew each time; else only for
            hand-offs.
    """

    key: AgentKey
    did: Did
    is_full: Callable[[], bool]


@dataclass(slots=True)
class RelayIdentity:
    """The relay's key and what is derived from it."""

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
    """What submitting needs of the node.

    Args:
        identity: signs receipts.
        keys: which keys may act for a DID.
        rates: buckets of proven senders.
        strangers: buckets of networks from which strangers write.
        brought: buckets of peers that bring what strangers write.
        may_bring: which hand-offs bring what.
        commits: the group commit of accepts.
        durability: what a receipt may promise, asked at each receipt.
        denied: senders the operator does not serve.
        max_body_bytes: largest body.
        draining: set once the node shuts down.
    """

    identity: RelayIdentity
    keys: Keys
    rates: TokenBuckets[AgentKey]
    strangers: TokenBuckets[str]
    brought: TokenBuckets[str]
    may_bring: MayBring
    commits: GroupCommit[SubmitItem, Accepted]
    durability: Callable[[], Durability]
    denied: frozenset[Did]
    max_body_bytes: int
    draining: bool = field(default=False)


class SubmitStream:
    """The submits of one connection or request: a source of the group commit.

    Args:
        intake: what the node has for all.
        answer: called with each ``submitted`` frame; must not block.
        network: where they come from.
    """

    def __init__(self, intake: Intake, answer: Answer, network: str) -> None:
        self._intake = intake
        self._answer = answer
        self._network = network
        self._strangers = intake.strangers
        self._waiting: deque[_PendingSubmit] = deque()
        self._source: LocalSource | PeerSource | None = None
        self._is_over = False
        self.in_flight = 0
        self.in_flight_bytes = 0

    def bind_source(self, source: LocalSource | PeerSource) -> None:
        """It is known now whose submits these are."""
        self._source = source
        if isinstance(source, PeerSource):
            self._strangers, self._network = self._intake.brought, source.did

    def close(self) -> None:
        """Nobody waits for answers any more: what is undecided is stored or not, and told to none.

        Nothing is looked up, signed or answered from now on.
        """
        self._is_over = True

    async def submit(
        self,
        ref: str,
        items: Sequence[object],
        marked: Collection[int] = (),
        handoff: str = "",
    ) -> None:
        """Take a submit; the answer comes through ``answer`` when all of it is decided.

        Args:
            ref: named by the answer.
            items: raw envelopes.
            marked: places of those that their recipient may have been handed before.
            handoff: of a peer: the hand-off that they are a page of.

        Raises:
            RelayError: nothing of it is taken, and there is no other answer: ``wrong_state`` or
                ``not_federated`` where that hand-off brings nothing here.
        """
        moving = await self._moving(items) if handoff else None
        waiting = _PendingSubmit(ref, len(items), [None] * len(items), handoff)
        self._waiting.append(waiting)
        ready: list[SubmitItem] = []
        intake = self._intake
        facts = admission.AdmissionFacts(
            now=clock.now(), draining=intake.draining, denied=intake.denied
        )
        is_barred = moving is None and self._strangers.wait_s(self._network, clock.monotonic()) > 0
        for index, raw in enumerate(items):
            outcome = await self._admit(raw, facts, moving)
            if isinstance(outcome, Refusal):
                waiting.results[index] = outcome
                waiting.undecided -= 1
            else:
                stored = envelopes.stored(outcome, barred=is_barred)
                if self._source is not None:
                    stored = _of(self._source, stored, outcome, is_marked=index in marked)
                stored = stored._replace(moving=True) if moving is not None else stored
                self.in_flight_bytes += len(stored.wire)
                ready.append(SubmitItem(stored, outcome.envelope.recipient.did, waiting, index))
            if index % YIELD_EVERY == YIELD_EVERY - 1:
                await asyncio.sleep(0)
        self.in_flight += len(ready)
        self._intake.commits.put(self, ready)
        self._flush()

    async def _moving(self, items: Sequence[object]) -> AgentKey | None:
        """Whose inbox it is that a peer hands over; None: not one envelope can be read."""
        source, intake = self._source, self._intake
        if not isinstance(source, PeerSource):
            raise error(ErrorCode.BAD_FRAME, "only a peer hands an inbox over")
        inbox = next(filter(None, (self._recipient(raw) for raw in items)), None)
        if inbox is None or await intake.may_bring(source.did, inbox):
            return inbox
        code = ErrorCode.WRONG_STATE if source.is_full() else ErrorCode.NOT_FEDERATED
        raise error(code, "nothing is handed over here under that id by that relay")

    def _recipient(self, raw: object) -> AgentKey | None:
        try:
            read = envelopes.parse(raw, max_body_bytes=self._intake.max_body_bytes)
        except RelayError:
            return None
        return read.recipient.agent_key

    async def _admit(
        self, raw: object, facts: admission.AdmissionFacts, moving: AgentKey | None
    ) -> envelopes.AdmittedEnvelope | Refusal:
        intake = self._intake
        try:
            envelope = envelopes.parse(raw, max_body_bytes=intake.max_body_bytes)
            no = admission.object_early(envelope, facts)
            if no is not None:
                return no
            if moving is not None and envelope.recipient.agent_key != moving:
                return Refusal(ErrorCode.WRONG_STATE, "that hand-off is of another inbox")
            sender = envelope.sender
            key = intake.keys.known(sender) or await intake.keys.resolve(sender.did)
            verified = envelopes.verify(envelope, key)
        except RelayError as exc:
            return Refusal.of(exc)
        # at another relay it was taken once already, at the rate that held there
        wait_s = (
            0.0
            if moving is not None
            else intake.rates.try_acquire(sender.agent_key, clock.monotonic())
        )
        return admission.admit(verified, admission.with_wait(facts, wait_s))

    def on_committed(self, results: Sequence[tuple[SubmitItem, Accepted | Refusal]]) -> None:
        """One commit decided some of this connection's envelopes."""
        secret = self._intake.identity.position_secret
        accepted = dups = strangers = 0
        away: list[tuple[SubmitItem, Refusal]] = []
        for item, result in results:
            stored, to, submit, place = item
            if isinstance(result, Refusal) and self._may_forward(stored, result):
                away.append((item, result))
                continue
            self.in_flight -= 1
            self.in_flight_bytes -= len(stored.wire)
            submit.undecided -= 1
            if isinstance(result, Refusal):
                submit.results[place] = result if stored.moving else self._refused(result)
                continue
            seq, epoch, dup, _, is_stranger, is_away = result
            strangers += is_stranger and not stored.moving
            accepted, dups = accepted + (not dup), dups + dup
            pos = position(secret, epoch, seq)
            submit.results[place] = ReceiptItem(
                stored.eid, to, epoch, pos, stored.expires_at, dup, "outbox" if is_away else "inbox"
            )
        if away and isinstance(self._source, LocalSource):
            self._source.spawn(self._forward(self._source, away))
        if strangers:
            self._strangers.charge(self._network, strangers, clock.monotonic())
        metrics.ACCEPTED.inc(accepted)
        metrics.DUPLICATES.inc(dups)
        self._flush()

    def _may_forward(self, stored: StoredEnvelope, no: Refusal) -> bool:
        is_known = isinstance(self._source, LocalSource) and stored.peer is None
        return is_known and no.code in ELSEWHERE and not self._is_over

    async def _forward(
        self, local: LocalSource, away: Sequence[tuple[SubmitItem, Refusal]]
    ) -> None:
        """Find out where these may wait, then try again with that."""
        noes = {item.to: no for item, no in away if item.stored.sender == local.sender}
        peers = await side_by_side(_find(local.router, to, noes[to]) for to in noes)
        found = dict(zip(noes, peers, strict=True))
        again: list[SubmitItem] = []
        for item, no in away:
            peer = found[item.to] if item.stored.sender == local.sender else _no_relaying(no)
            if isinstance(peer, Refusal):
                self._decide(item, peer)
            else:
                again.append(item._replace(stored=item.stored._replace(peer=peer)))
        self._intake.commits.put(self, again)
        self._flush()

    def _decide(self, item: SubmitItem, no: Refusal) -> None:
        self.in_flight -= 1
        self.in_flight_bytes -= len(item.stored.wire)
        item.submit.undecided -= 1
        item.submit.results[item.place] = no

    def _refused(self, no: Refusal) -> Refusal:
        strangers, now = self._strangers, clock.monotonic()
        if no.code in OF_STRANGERS:
            strangers.charge(self._network, 1, now)
        if no.code is not ErrorCode.RATE_LIMITED:
            return no
        # the inbox found a stranger of a network that is too fast; only the node knows how long
        return replace(no, retry_after=max(1, ceil(strangers.wait_s(self._network, now))))

    def _flush(self) -> None:
        """Answer, oldest first, every submit that is wholly decided, in as few frames as can be."""
        while self._waiting and not self._waiting[0].undecided and not self._is_over:
            self._answer_alike(self._waiting[0].handoff)

    def _answer_alike(self, handoff: str) -> None:
        """In one frame: a receipt is of one hand-off, or of none."""
        refs: list[str] = []
        stored: list[ReceiptItem] = []
        rejected: list[frames.Rejection] = []
        while self._waiting and not (first := self._waiting[0]).undecided:
            if first.handoff != handoff:
                break
            submit = self._waiting.popleft()
            refs.append(submit.ref)
            for index, result in enumerate(submit.results):
                if isinstance(result, Refusal):
                    metrics.REJECTED.labels(result.code).inc()
                    rejected.append(_rejection(submit.ref, index, result))
                elif result is not None:
                    stored.append(result)
        self._answer(frames.Submitted(tuple(refs), self._receipt(stored, handoff), tuple(rejected)))

    def _receipt(self, items: Sequence[ReceiptItem], handoff: str) -> str | None:
        if not items:
            return None
        intake = self._intake
        key = intake.identity.key
        if handoff:
            digest = digest_of(item.eid for item in items)
            log.event(
                "page_signed", did=items[0].to, handoff=handoff, count=len(items), digest=digest
            )
        return sign_receipt(
            key, items, durability=intake.durability(), now=clock.now(), handoff=handoff
        )


def _of(
    source: LocalSource | PeerSource,
    stored: StoredEnvelope,
    admitted: AdmittedEnvelope,
    *,
    is_marked: bool,
) -> StoredEnvelope:
    """What is kept of an envelope beside, for who brought it."""
    if isinstance(source, LocalSource):
        known = source.router.known(stored.inbox) if stored.sender == source.sender else None
        return stored if known is None else stored._replace(peer=known)
    envelope = admitted.envelope
    is_its_word = envelope.sender.did == source.did and envelope.content_type == BOUNCE_CONTENT_TYPE
    # a bounce never bounces, and is a stranger to nobody
    return stored._replace(via=source.key, marked=is_marked, bounces=not is_its_word)


async def _find(router: Router, to: Did, no: Refusal) -> AgentKey | Refusal:
    try:
        return await router.find(to)
    except RelayError as exc:
        # the record that it was moved with lets the sender go there itself
        return replace(Refusal.of(exc), record=no.record)


def _no_relaying(no: Refusal) -> Refusal:
    if no.code is ErrorCode.MOVED:
        return no
    return Refusal(ErrorCode.NO_RELAYING, "only an agent's own envelopes are forwarded for it")


def _rejection(ref: str, index: int, no: Refusal) -> frames.Rejection:
    return frames.Rejection(ref, index, no.code, no.stored, no.detail, no.retry_after, no.record)


def size_of(item: SubmitItem) -> int:
    """Size of an item for the bound of a commit."""
    return item.stored.size
