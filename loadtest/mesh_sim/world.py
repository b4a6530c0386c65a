"""The World: relays, their records and the network between them, and when all of them agree."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

from loadtest.mesh_sim.light import Catalogue, Light, size_of
from loadtest.mesh_sim.network import Clock, Network
from loadtest.mesh_sim.relays import Habits, Relay
from relay.protocol import frames
from relay.protocol.ids import Did, Timestamp

BEGIN: Final = 1_750_000_000.0
RECORD_CPU_S: Final = 0.0002
"""One core's time to read, verify and keep a record; docs/SCALE.md has the measurement."""
SHARE_OF_CORE: Final = 0.25
"""Records that were asked for may use so much of one core."""


class World:
    """All relays.

    Args:
        count: how many.
        seed: of everything that happens by chance.
        loss: share of frames that get lost.
        repeats: share of frames that arrive twice.
        habits: of the relays.
        kinds: what makes each relay, by its number; else honest ones.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        *,
        loss: float = 0.0,
        repeats: float = 0.0,
        habits: Habits = Habits(),  # noqa: B008  frozen
        kinds: Callable[[int], type[Relay]] = lambda _: Relay,
    ) -> None:
        self.chance = random.Random(seed)  # noqa: S311  a simulation
        self.clock = Clock(BEGIN)
        self.network = Network(self.clock, self.chance, loss=loss, repeats=repeats)
        self.catalogue = Catalogue()
        self.record_s = RECORD_CPU_S / SHARE_OF_CORE
        self.relays = [kinds(n)(Did(f"did:key:z{n:047d}"), self, habits) for n in range(count)]
        self._by_did = {relay.did: relay for relay in self.relays}
        self._honest = {relay.did for relay in self.relays if type(relay) is Relay}
        self._missing = 0

    # ------------------------------------------------------------ what a relay needs

    def relay(self, did: Did) -> Relay:
        """By its DID."""
        return self._by_did[did]

    def pick(self, dids: Sequence[Did], count: int) -> list[Did]:
        """Some at random."""
        return self.chance.sample(dids, min(count, len(dids)))

    def send(
        self,
        here: Relay,
        there: Did,
        frame: frames.Digest | frames.Digests | frames.Want | frames.Have | frames.Gossip,
        arrive: Callable[[Relay], None],
    ) -> None:
        """Carry a frame to another relay."""
        other = self._by_did[there]
        self.network.send(here.did, there, size_of(frame), lambda: arrive(other))

    def held(self, relay: Relay, record: Light) -> None:
        """A relay holds a record that it did not hold before."""
        if relay.did in self._honest and self.catalogue.newest[record.agent] is record:
            self._missing -= 1

    # ------------------------------------------------------------ what happens

    def know_each_other(self) -> None:
        """Every relay knows every other, and will dial those it keeps links to."""
        for relay in self.relays:
            for other in self.relays:
                relay.members.add(other.did)
            relay.dial_in(0)
            relay.start_pulling()

    def exist(self, records: Sequence[Light]) -> None:
        """Agents have signed these; the honest relays should come to hold the newest of each."""
        agents = {record.agent for record in records}
        before = {agent: self.catalogue.newest.get(agent) for agent in agents}
        for record in records:
            self.catalogue.add(record)
        for agent in agents:
            newest = self.catalogue.newest[agent]
            if newest is not before[agent]:
                held = sum(
                    relay.index.version(agent) == before[agent].order
                    for relay in self.relays
                    if before[agent] and relay.did in self._honest
                )
                self._missing += held if before[agent] else len(self._honest)

    def part(self, groups: Callable[[int], int]) -> None:
        """A partition begins: links across it break."""
        self.network.apart = {relay.did: groups(n) for n, relay in enumerate(self.relays)}
        for relay in self.relays:
            for did in sorted(relay.links):
                if self.network.is_parted(relay.did, did):
                    relay.links.discard(did)
                    relay.members.on_dial_failed(
                        did, Timestamp(self.clock.now), self.chance.random()
                    )
            relay.dial_in(0)

    def sample(self, into: list[tuple[float, float]], every_s: float = 1.0) -> None:
        """Note the share that is held, again and again: (seconds from now, share)."""
        begin = self.clock.now

        def note() -> None:
            into.append((self.clock.now - begin, self.share))
            self.clock.later(every_s, note)

        note()

    def pass_an_hour(self) -> None:
        """Skip to the end of a long partition: whoever is beyond it has been missed for an hour."""
        self.clock.now += 3600
        now = Timestamp(self.clock.now)
        for relay in self.relays:
            for peer in relay.members:
                if self.network.is_parted(relay.did, peer.did):
                    for _ in range(20):
                        relay.members.on_dial_failed(peer.did, now, 0.0)
            for peer in relay.members:
                if self.network.is_parted(relay.did, peer.did):
                    # somewhere within its back-off
                    wait = self.chance.uniform(0, relay.members.max_backoff_s(peer.did, now))
                    peer.dial_at = Timestamp(now + wait)

    def heal(self) -> None:
        """The partition ends; who notices is a matter of the next dial."""
        self.network.apart = {}

    # ------------------------------------------------------------ what came of it

    @property
    def missing(self) -> int:
        """Newest records that honest relays lack, over all of them."""
        return self._missing

    @property
    def share(self) -> float:
        """The part that honest relays hold of all that they should hold."""
        whole = len(self._honest) * len(self.catalogue.newest)
        return 1 - self._missing / whole if whole else 1.0

    def run(self, seconds: float, *, until_agreed: bool = True) -> float | None:
        """Go on; return the seconds until all honest relays agreed, or None if they did not."""
        begin = self.clock.now
        self.clock.run(begin + seconds, lambda: until_agreed and self._missing == 0)
        return self.clock.now - begin if self._missing == 0 else None

    def honest(self) -> list[Relay]:
        """Those that do not lie."""
        return [relay for relay in self.relays if relay.did in self._honest]
