"""Mail within one relay and from one relay to another: the same rate, the same run, in turns.

Rules of the file: slices of both kinds take turns, so that a drift of the machine hits both; what
one kind costs is compared with the slice before it. The idle relays of the other kind run on.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from loadtest import phases
from loadtest.fleet import Fleet, Latencies
from loadtest.ledger import Ledger
from loadtest.mesh import relays
from loadtest.phases import Open

TURNS: Final = 3
KNOWN_S: Final = 30.0
FIRST_S: Final = 2.0


@dataclass(slots=True)
class Mail:
    """What was found at one rate.

    Args:
        rate: envelopes a second.
        local: slices within one relay.
        cross: slices from A to C.
    """

    rate: float
    local: list[Open] = field(default_factory=list)
    cross: list[Open] = field(default_factory=list)

    def ratio(self, figure: str) -> float:
        """CPU an envelope of a node of the cross slices, of that of the single relay's node."""
        pairs = zip(self.local, self.cross, strict=True)
        return statistics.median(
            getattr(cross.slice, figure) / local.slice.node_cpu_us for local, cross in pairs
        )


def together(found: list[Open], kind: str) -> Any:
    """One histogram of all slices."""
    whole = getattr(Latencies(), kind)
    for one in found:
        whole.add(getattr(one.latencies, kind))
    return whole


async def measure(directory: Path, ledger: Ledger, rate: float, seconds: float) -> Mail:
    """Run both kinds in turns; ``seconds`` is for all slices together."""
    found = Mail(rate)
    length = seconds / (2 * TURNS)
    async with _fleets(directory, ledger) as (local, cross):
        for fleet in (local, cross):
            await phases.open_loop(fleet, rate, FIRST_S)
        for _ in range(TURNS):
            found.local.append(await phases.open_loop(local, rate, length))
            found.cross.append(await phases.open_loop(cross, rate, length))
    return found


@contextlib.asynccontextmanager
async def _fleets(directory: Path, ledger: Ledger) -> AsyncIterator[tuple[Fleet, Fleet]]:
    single = relays.places(1, directory / "single")
    pair = relays.places(2, directory / "pair")
    async with (
        relays.peered(single) as (alone,),
        relays.peered(pair) as (near, far),
        Fleet(alone, ledger).opened() as local,
        Fleet(near, ledger, far).opened() as cross,
    ):

        async def are_known() -> bool:
            return all([await relays.resolved(near, one.key.did) for one in cross.recipients])

        await relays.until(are_known, KNOWN_S, "A knows where the recipients at C live")
        yield local, cross
