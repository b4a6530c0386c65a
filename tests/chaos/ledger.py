"""What happened in a run, in the order in which the agents saw it; ``checker.py`` judges it.

Rules of the file: it only writes down, and asks no relay. Each entry gets the next tick of one
counter, so that "before" and "after" mean the same to all agents, which live in one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from relay.core.envelope import SignedEnvelope
from relay.core.frames import Welcome
from relay.core.ids import Did, Eid, Epoch


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
    """What a fresh login said of an inbox at the very end."""

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
    receipted: int = 0
    settled: int = 0
    _tick: int = 0
    _over: set[tuple[Did, Eid]] = field(default_factory=set)
    _told: set[Eid] = field(default_factory=set)
    _untold: set[Eid] = field(default_factory=set)
    _marks: list[tuple[Callable[[], bool], asyncio.Event]] = field(default_factory=list)

    def _next(self) -> int:
        self._tick += 1
        return self._tick

    # ------------------------------------------------------------ entries

    def submit(self, sender: Did, envelope: SignedEnvelope, body: bytes, *, poison: bool) -> Sent:
        """An envelope is about to be submitted for the first time."""
        entry = Sent(sender, envelope, body, poison, self._next(), time.monotonic())
        self.sent[envelope.eid] = entry
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
            self.receipted += 1
        self._progressed()

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
        self._progressed()

    def end(self, agent: Did, eid: Eid, how: str, *, session: int = 0) -> None:
        """The relay confirmed an ack or a refusal; only the first confirmation counts."""
        if (agent, eid) in self._over:
            return
        self._over.add((agent, eid))
        self.ended.append(Ended(session, self._next(), agent, eid, how))
        self.settled += eid in self.sent
        if how == "refused" and eid not in self._told:
            self._untold.add(eid)
        self._progressed()

    def bounce(self, agent: Did, within: Eid, eid: Eid, reason: str) -> None:
        """A bounce arrived and its signature held."""
        self._told.add(eid)
        self._untold.discard(eid)
        self.bounces.append(Bounced(agent, within, eid, reason))
        self._progressed()

    def surprise(self, what: str) -> None:
        """What no promise allows and no other list has a place for."""
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
        """How much has been entered: grows as long as anything happens."""
        return self._tick

    @property
    def progress(self) -> int:
        """Grows by 2 for each envelope: once for its first receipt, once for its end."""
        return self.receipted + self.settled

    def is_over(self, envelopes: int) -> bool:
        """Whether all have a receipt and an end, all that was refused has bounced."""
        return self.progress == 2 * envelopes and not self._untold

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
