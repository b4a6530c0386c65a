"""Traffic and habits of agents: values that the plan of a run is made of."""

from __future__ import annotations

from dataclasses import dataclass

from relay.protocol.ids import Did

POISON = b"poison"


@dataclass(frozen=True, slots=True)
class Letter:
    """An envelope to be sent."""

    to: Did
    body: bytes

    @property
    def is_poison(self) -> bool:
        """True if its recipient will refuse it."""
        return self.body.startswith(POISON)


@dataclass(frozen=True, slots=True)
class Habits:
    """The habits of an agent that speaks frames.

    Args:
        window: envelopes submitted and not yet answered.
        batch: most envelopes of one submit.
        replays: share of receipted envelopes that are submitted once more.
        holds: share of deliveries that are acked later.
        picks: share of acks that name only some of what was delivered.
        takeovers: share of deliveries behind which the agent logs in anew beside its connection.
        drops: share of deliveries, and of acks, behind which the connection is dropped at once.
        first_ack: nothing is acked before so many envelopes have been handed over.
    """

    window: int = 64
    batch: int = 32
    replays: float = 0.01
    holds: float = 0.15
    picks: float = 0.25
    takeovers: float = 0.03
    drops: float = 0.03
    first_ack: int = 0


UNRULY = Habits()
CALM = Habits(replays=0, holds=0, picks=0, takeovers=0, drops=0)
