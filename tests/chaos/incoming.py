"""Envelopes that one agent receives, until the relay has confirmed the end of each.

The agent acks only what was handed over. Anything that is not, byte for byte, an envelope of this
run must come from the relay itself, and is verified. Nothing awaits; ``now`` is monotonic seconds.

::

    handed over ──▶ open ──ack or refuse sent──▶ answered ──acked, gap, cursor──▶ over
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from random import Random

from relay.protocol import envelope
from relay.protocol.frames import (
    Ack,
    Acked,
    Deliver,
    DeliverItem,
    Gap,
    Welcome,
)
from relay.protocol.ids import (
    Did,
    Eid,
    Epoch,
    Seq,
)
from relay.protocol.jws import b64encode
from relay.protocol.receipts import (
    BOUNCE_CONTENT_TYPE,
    verify_bounce,
)
from tests.chaos.ledger import Ledger
from tests.chaos.traffic_plan import (
    POISON,
    Habits,
)

NOWHERE = Seq(0)
NO_EPOCH = Epoch("")
AGAIN_S = 0.1
NEVER_S = 3600.0


@dataclass(slots=True)
class _Entry:
    """An envelope at a seq. ``refuse``: it is poison. ``answered``: it was acked or refused."""

    eid: Eid
    refuse: bool
    answered: bool = False


@dataclass(slots=True)
class Incoming:
    """An agent's view of its inbox.

    Args:
        did: who it is.
        ledger: where it is written down.
        rng: draws what is acked, and when.
        habits: how this agent behaves.
    """

    did: Did
    ledger: Ledger
    rng: Random
    habits: Habits
    session: int = 0
    confirmed: Seq = NOWHERE
    due: float = 0.0
    _epoch: Epoch = NO_EPOCH
    _open: dict[Seq, _Entry] = field(default_factory=dict)
    _here: dict[Seq, _Entry] = field(default_factory=dict)
    _unsaid: list[Seq] = field(default_factory=list)
    _handed: int = 0

    def opened(self, welcome: Welcome) -> None:
        """A login holds; what its cursor covers is over."""
        assert welcome.epoch is not None
        self.ledger.see_epoch(self.did, welcome.epoch)
        self._epoch, self.session = welcome.epoch, welcome.session or 0
        self._here, self._unsaid, self.due = {}, [], 0.0
        self._end([seq for seq in self._open if seq <= welcome.cursor], "the cursor")
        self.confirmed = welcome.cursor

    # ------------------------------------------------------------ hear

    def deliver(self, frame: Deliver, relay: Did, now: float) -> None:
        """Enter what is handed over, and decide when to ack it."""
        for item in frame.items:
            self._open_entry(item.seq, *self._enter(item, relay, self.session))
        if self._handed < self.habits.first_ack:
            self.due = now + NEVER_S
        elif self.rng.random() < self.habits.holds:
            self.due = now + self.rng.uniform(0.01, 0.1)
        else:
            self.due = now

    def deliver_late(self, frame: Deliver, relay: Did, session: int) -> None:
        """Enter what an older session was handed; it is not acked here."""
        for item in frame.items:
            self._enter(item, relay, session)

    def _enter(self, item: DeliverItem, relay: Did, session: int) -> tuple[Eid, bool]:
        wire, eid = _wire_of(item.envelope)
        sent = self.ledger.find(eid)
        is_poison = sent is not None and sent.poison
        if sent is None or sent.envelope.wire != wire:
            # not what an agent of this run has signed: of the relay, or a lie
            is_poison = self._look_closely(item.envelope, relay)
        self.ledger.hand_over(
            self.did, eid, redelivered=item.redelivered, session=session, wire=wire
        )
        return eid, is_poison

    def _open_entry(self, seq: Seq, eid: Eid, is_poison: bool) -> None:  # noqa: FBT001
        self._handed += 1
        known = self._open.setdefault(seq, _Entry(eid, is_poison))
        if known.eid != eid or seq in self._here:
            self.ledger.surprise(f"seq {seq} of {self.did} is another one, or came twice")
        self._here[seq] = known
        self._unsaid.append(seq)

    def _look_closely(self, item: object, relay: Did) -> bool:
        opened = envelope.parse(item)
        envelope.verify(opened, opened.sender)
        if opened.sender.did == relay and opened.content_type == BOUNCE_CONTENT_TYPE:
            for told in verify_bounce(opened.body.decode(), relay):
                self.ledger.bounce(self.did, opened.eid, told.eid, told.reason)
        return opened.body.startswith(POISON)

    def gap(self, frame: Gap) -> None:
        """End what a gap explains, if the explanation agrees with this agent's answer."""
        for gap in frame.ranges:
            if gap.reason not in {"acked", "refused"}:
                self.ledger.surprise(f"{gap} of {self.did}: nothing here expires or is corrupt")
            within = [seq for seq in self._open if gap.start <= seq <= gap.end]
            self._end(within, f"a gap ({gap.reason})")

    def acked(self, frame: Acked) -> None:
        """The relay's word that these are gone."""
        named = {*frame.seqs, *frame.refused}
        self._end([seq for seq in self._open if seq <= frame.upto or seq in named], "acked")
        self.confirmed = max(self.confirmed, frame.upto)

    def ack_again(self, now: float, retry_after: int | None) -> None:
        """The store did not take an ack."""
        self._unsaid = sorted(seq for seq in self._here if seq in self._open)
        self.due = now + (retry_after or AGAIN_S)

    def _end(self, seqs: list[Seq], why: str) -> None:
        for seq in seqs:
            entry = self._open.pop(seq)
            if not entry.answered:
                self.ledger.surprise(f"{entry.eid} was ended by {why}, but {self.did} did not ack")
            how = "refused" if entry.refuse else "acked"
            self.ledger.end(self.did, entry.eid, how, session=self.session)

    # ------------------------------------------------------------ speak

    def next_ack(self, now: float) -> Ack | None:
        """The next ack, if one is due: cumulative, or only some of them."""
        if not self._unsaid or now < self.due:
            return None
        if self.rng.random() < self.habits.picks:
            return self._pick(now)
        upto = self._unsaid[-1]
        self._unsaid, self.due = [], 0.0
        still = {seq: entry for seq, entry in self._here.items() if seq in self._open}
        for entry in still.values():
            entry.answered = True
        # refusals are repeated until confirmed: a cumulative ack must not overtake a lost one
        return self._ack(upto, {seq: entry for seq, entry in still.items() if entry.refuse})

    def _pick(self, now: float) -> Ack:
        picked = {seq: self._here[seq] for seq in self._unsaid if self.rng.random() < 0.5}
        self._unsaid = [seq for seq in self._unsaid if seq not in picked]
        self.due = now + self.rng.uniform(0.0, 0.05)
        for entry in picked.values():
            entry.answered = True
        return self._ack(NOWHERE, picked)

    def _ack(self, upto: Seq, named: dict[Seq, _Entry]) -> Ack:
        return Ack(
            self._epoch,
            upto,
            tuple(seq for seq, entry in named.items() if not entry.refuse),
            tuple((seq, POISON.decode()) for seq, entry in named.items() if entry.refuse),
        )


def _wire_of(item: object) -> tuple[bytes, Eid]:
    """The bytes of a delivered envelope, and the eid that follows from them."""
    assert isinstance(item, dict)
    signed = item["jws"].rpartition(".")[0]
    digest = hashlib.sha256(signed.encode()).digest()
    wire = b'{"jws":"%b","body":"%b"}' % (item["jws"].encode(), item["body"].encode())
    return wire, Eid(b64encode(digest))
