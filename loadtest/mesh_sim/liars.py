"""Relays that lie: they cannot forge, but they can withhold, repeat what is old, and flood."""

from __future__ import annotations

import itertools
from typing import Final

from loadtest.mesh_sim.light import FORGED, RECORD_CHARS, Light
from loadtest.mesh_sim.relays import Relay
from relay.protocol import frames
from relay.protocol.ids import Did
from relay.protocol.jws import b64encode

FLOOD: Final = 500
"""Records pushed at each linked peer a second: more than it listens to."""


class Withholder(Relay):
    """Takes everything and passes nothing on: it pushes no news and says that it holds nothing."""

    def tell(self, record: Light, not_to: Did | None) -> None:
        """Keep it secret."""

    def answers(
        self, question: frames.Digest | frames.Want
    ) -> list[frames.Digests | frames.Have | frames.Gossip]:
        """Nothing is here."""
        match question:
            case frames.Digest():
                return [frames.Digests(question.ref, question.bits, ())]
            case frames.Want(bits=int(bits), bucket=int(bucket)):
                return [frames.Have(question.ref, bits, bucket, ())]
            case _:
                return [frames.Gossip(ref=question.ref)]


class Replayer(Relay):
    """Claim newer versions of all records, and send old ones."""

    def tell(self, record: Light, not_to: Did | None) -> None:
        """Push an old record instead of the new one."""
        old = self.world.catalogue.older.get(record.agent)
        if old:
            super().tell(old, not_to)

    def answers(
        self, question: frames.Digest | frames.Want
    ) -> list[frames.Digests | frames.Have | frames.Gossip]:
        """The right answers, with other numbers in them."""
        return [self._changed(frame) for frame in super().answers(question)]

    def _changed(
        self, frame: frames.Digests | frames.Have | frames.Gossip
    ) -> frames.Digests | frames.Have | frames.Gossip:
        match frame:
            case frames.Digests(ref, bits, items):
                other = b64encode(bytes(16))
                return frames.Digests(ref, bits, tuple(it._replace(digest=other) for it in items))
            case frames.Have(ref, bits, bucket, items, more):
                reply = tuple(it._replace(seq=it.seq + 1) for it in items)
                return frames.Have(ref, bits, bucket, reply, more)
            case _:
                found = [self.world.catalogue.by_text[text] for text in frame.records]
                olds = [self.world.catalogue.older.get(record.agent) or record for record in found]
                return frames.Gossip(tuple(record.text for record in olds), ref=frame.ref)


class Flooder(Relay):
    """Pushes forged and stale records at every peer, as fast as it can."""

    def start_pulling(self) -> None:
        """Flood instead."""
        self._numbers = itertools.count()
        self.world.clock.later(self.world.chance.random(), self._flood)

    def _flood(self) -> None:
        made = (f"{FORGED}:{self.did}:{next(self._numbers)}:" for _ in range(FLOOD))
        frame = frames.Gossip(tuple(text.ljust(RECORD_CHARS, ".") for text in made))
        for peer in sorted(self.links):
            self.world.send(self, peer, frame, lambda to: to.pushed(self.did, frame))
        self.world.clock.later(1.0, self._flood)


KINDS: Final[tuple[type[Relay], ...]] = (Withholder, Replayer, Flooder)


def every_fifth(number: int) -> type[Relay]:
    """A liar is every fifth relay, each of another kind."""
    return KINDS[(number // 5 + 1) % len(KINDS)] if number % 5 == 4 else Relay
