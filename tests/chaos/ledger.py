"""The record of a run, in the order in which the agents saw it; ``checker.py`` judges it.

The ledger only records, and asks no relay. Each entry gets the next tick of one counter, so that
"before" and "after" mean the same to all agents of one event loop. The journal of an agent in
another process is entered later, in its order: only ticks of one agent are ever compared.

::

    submit ──▶ open ──accepted and ended──▶ over
                │ ▲
          void, deny, unless it is handed over all the same
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from relay.protocol.envelope import SignedEnvelope
from relay.protocol.frames import (
    Welcome,
)
from relay.protocol.ids import (
    Did,
    Eid,
    Epoch,
)


@dataclass(slots=True)
class Sent:
    """One envelope as its sender knows it.

    Args:
        sender: who signed it.
        envelope: the bytes that are submitted, again and again, and for whom.
        body: what its recipient finds in it, sealed or not.
        poison: its recipient will refuse it.
        submitted: tick just before the first submit; ``submitted_at`` in seconds.
        receipted: tick of the first receipt; ``waited_s``: how long its sender waited for it.
        maybe_stored: an earlier submit of it had no definite answer.
        is_mortal: its sender may be killed before it can note an answer: its arrival stands for
            the receipt, too.
    """

    sender: Did
    envelope: SignedEnvelope
    body: bytes
    poison: bool
    submitted: int
    submitted_at: float
    receipted: int | None = None
    waited_s: float = 0.0
    maybe_stored: bool = False
    is_mortal: bool = False


@dataclass(frozen=True, slots=True)
class Receipted:
    """A receipt item whose signature held. ``place``: its epoch and pos, where they are shown.

    ``had_reason``: a ``dup`` would be true, since the envelope may have been stored before.
    """

    tick: int
    eid: Eid
    to: Did
    durability: str
    dup: bool
    had_reason: bool
    place: tuple[Epoch, str] | None


@dataclass(frozen=True, slots=True)
class Handed:
    """An envelope reached an agent, which compares what it can see: the wire, or the body.

    ``session``: the fence under which it came; 0 where an SDK hides it.
    """

    session: int
    tick: int
    agent: Did
    eid: Eid
    redelivered: bool
    wire: bytes | None
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Ended:
    """The relay confirmed that an envelope left an inbox; ``how``: acked or refused."""

    session: int
    tick: int
    agent: Did
    eid: Eid
    how: str


@dataclass(frozen=True, slots=True)
class Death:
    """An agent was killed, and this was the tick of the last note that it had written."""

    tick: int
    agent: Did


@dataclass(frozen=True, slots=True)
class Bounced:
    """The relay's signed word, in the inbox of ``agent``, on the end of an envelope.

    ``within``: eid of the bounce itself.
    """

    agent: Did
    within: Eid
    eid: Eid
    reason: str


@dataclass(frozen=True, slots=True)
class Standing:
    """The position of an inbox, as a fresh login reports it at the very end."""

    agent: Did
    pending: int
    cursor: int
    head: int


@dataclass(slots=True)
class Ledger:
    """All entries of one run."""

    sent: dict[Eid, Sent] = field(default_factory=dict)
    receipts: list[Receipted] = field(default_factory=list)
    handed: list[Handed] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    bounces: list[Bounced] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    standings: list[Standing] = field(default_factory=list)
    states: dict[Eid, str] = field(default_factory=dict)
    epochs: dict[Did, set[Epoch]] = field(default_factory=dict)
    answers: list[Ended] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)
    promised: dict[Eid, str] = field(default_factory=dict)
    denied: set[Eid] = field(default_factory=set)
    void: set[Eid] = field(default_factory=set)
    catch_up: Callable[[], None] = field(default=lambda: None)
    _tick: int = 0
    _over: set[tuple[Did, Eid]] = field(default_factory=set)
    _arrived: set[Eid] = field(default_factory=set)
    _accepted: set[Eid] = field(default_factory=set)
    _settled: set[Eid] = field(default_factory=set)
    _nothing: set[Eid] = field(default_factory=set)
    _unconfirmed: dict[tuple[Did, Eid], str] = field(default_factory=dict)
    _told: set[Eid] = field(default_factory=set)
    _untold: set[Eid] = field(default_factory=set)
    _marks: list[tuple[Callable[[], bool], asyncio.Event]] = field(default_factory=list)

    def _next(self) -> int:
        self._tick += 1
        return self._tick

    def find(self, eid: Eid) -> Sent | None:
        """Return its sender's entry; journals of other processes are entered first."""
        if eid not in self.sent:
            self.catch_up()
        return self.sent.get(eid)

    # ------------------------------------------------------------ entries

    def submit(
        self,
        sender: Did,
        envelope: SignedEnvelope,
        body: bytes,
        *,
        poison: bool,
        is_mortal: bool = False,
    ) -> Sent:
        """An envelope is about to be submitted for the first time."""
        entry = Sent(sender, envelope, body, poison, self._next(), time.monotonic())
        # the SDK of an agent in another process resends unseen
        entry.is_mortal = entry.maybe_stored = is_mortal
        eid = envelope.eid
        self.sent[eid] = entry
        # its recipient's notes may have been read before its sender's
        if is_mortal and eid in self._arrived:
            self._accept(eid)
        if (envelope.to, eid) in self._over:
            self._settled.add(eid)
        return entry

    def receipt(
        self,
        eid: Eid,
        to: Did,
        *,
        durability: str,
        dup: bool,
        place: tuple[Epoch, str] | None = None,
    ) -> None:
        """A receipt arrived and its signature held."""
        entry, tick = self.sent.get(eid), self._next()
        reason = entry is not None and (entry.maybe_stored or entry.receipted is not None)
        self.receipts.append(Receipted(tick, eid, to, durability, dup, reason, place))
        if place is not None:
            self.see_epoch(to, place[0])
        if entry is not None and entry.receipted is None:
            entry.receipted, entry.waited_s = tick, time.monotonic() - entry.submitted_at
            self._accept(eid)
        self._progressed()

    def promise(self, eid: Eid, why: str) -> None:
        """No receipt was seen, but it must arrive all the same."""
        self.promised.setdefault(eid, why)

    def deny(self, eid: Eid) -> None:
        """Record that the relay denied it: it is not stored and never will be."""
        self.denied.add(eid)
        self._came_to_nothing(eid)

    def annul(self, eid: Eid) -> None:
        """Its sender was killed before anybody promised anything; it should not arrive."""
        self.void.add(eid)
        self._came_to_nothing(eid)

    def _came_to_nothing(self, eid: Eid) -> None:
        if eid not in self._accepted:
            self._nothing.add(eid)
        self._progressed()

    def _accept(self, eid: Eid) -> None:
        self._accepted.add(eid)
        self._nothing.discard(eid)

    def hand_over(
        self,
        agent: Did,
        eid: Eid,
        *,
        redelivered: bool,
        session: int = 0,
        wire: bytes | None = None,
        body: bytes | None = None,
    ) -> None:
        """An envelope reached an agent and its signature held."""
        self.handed.append(Handed(session, self._next(), agent, eid, redelivered, wire, body))
        self._arrived.add(eid)
        sent = self.sent.get(eid)
        if sent is not None and sent.is_mortal:
            self._accept(eid)
        self._progressed()

    def answering(self, agent: Did, eid: Eid, how: str) -> None:
        """An agent that may be killed is about to ack or refuse."""
        self.answers.append(Ended(0, self._next(), agent, eid, how))
        if (agent, eid) not in self._over:
            self._unconfirmed[agent, eid] = how

    def end(self, agent: Did, eid: Eid, how: str, *, session: int = 0) -> None:
        """The relay confirmed an ack or a refusal; only the first confirmation counts."""
        if (agent, eid) in self._over:
            return
        self._over.add((agent, eid))
        self._unconfirmed.pop((agent, eid), None)
        self.ended.append(Ended(session, self._next(), agent, eid, how))
        self._answered(eid, how)
        self._progressed()

    def die(self, agent: Did) -> None:
        """An agent was killed; what it had answered and not seen confirmed may come again."""
        self.deaths.append(Death(self._tick, agent))
        for who, eid in [key for key in self._unconfirmed if key[0] == agent]:
            self._answered(eid, self._unconfirmed.pop((who, eid)))
        self._progressed()

    def _answered(self, eid: Eid, how: str) -> None:
        if self.find(eid) is not None:
            self._settled.add(eid)
        if how == "refused" and eid not in self._told:
            self._untold.add(eid)

    def bounce(self, agent: Did, within: Eid, eid: Eid, reason: str) -> None:
        """A bounce arrived and its signature held."""
        self._told.add(eid)
        self._untold.discard(eid)
        self.bounces.append(Bounced(agent, within, eid, reason))
        self._progressed()

    def surprise(self, what: str) -> None:
        """Events that no promise allows and no other list has a place for."""
        self.surprises.append(what)

    def see_epoch(self, inbox: Did, epoch: Epoch | None) -> None:
        """An epoch was named for an inbox; a kill must not begin a new one."""
        if epoch is not None:
            self.epochs.setdefault(inbox, set()).add(epoch)

    def stand(self, agent: Did, welcome: Welcome) -> None:
        """A last login."""
        self.see_epoch(agent, welcome.epoch)
        pending, cursor, head = welcome.pending.count, welcome.cursor, welcome.head
        self.standings.append(Standing(agent, pending, cursor, head))

    # ------------------------------------------------------------ how far it is

    @property
    def entries(self) -> int:
        """The number of entries: it grows as long as anything happens."""
        return self._tick

    @property
    def receipted(self) -> int:
        """The number of accepted envelopes: by a receipt or, of a killed sender, by arrival."""
        return len(self._accepted)

    @property
    def progress(self) -> int:
        """Grows by 2 for each envelope: once for its first receipt, once for its end."""
        return len(self._accepted) + len(self._settled)

    @property
    def counted(self) -> int:
        """All that was to be sent, except what came to nothing."""
        return len(self.sent) - len(self._nothing)

    def is_over(self, envelopes: int) -> bool:
        """Return True if ``count`` have a receipt and an end, none is open, refusals bounced."""
        counted = self.counted
        return counted >= envelopes and self.progress == 2 * counted and not self._untold

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` is true; it is asked after each entry that is progress."""
        if condition():
            return
        event = asyncio.Event()
        self._marks.append((condition, event))
        await event.wait()

    def _progressed(self) -> None:
        for mark in [mark for mark in self._marks if mark[0]()]:
            self._marks.remove(mark)
            mark[1].set()
