"""The last look: drain every inbox, ask for the state of every envelope, log in once more.

The audit speaks frames, so it sees the relay's words and not an SDK's view of them. An inbox whose
agent came to rest by itself is not drained: it must be empty.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from random import Random

from relay.protocol.did import SigningKey
from relay.protocol.errors import RelayError
from relay.protocol.frames import (
    Acked,
    Deliver,
    Gap,
    Status,
    Statuses,
    StatusItem,
)
from relay.protocol.ids import Did
from tests.chaos.incoming import Incoming
from tests.chaos.ledger import Ledger
from tests.chaos.traffic_plan import CALM
from tests.support.nodes import Speaker, speaker

QUESTIONS = 256


async def audit(
    url: str,
    ledger: Ledger,
    keys: Sequence[SigningKey],
    known: Mapping[Did, Incoming],
    at_rest: Sequence[SigningKey],
) -> None:
    """Look at every inbox.

    Args:
        url: the relay.
        ledger: where it is entered.
        keys: agents whose inboxes are drained first.
        known: what those that spoke frames know of theirs.
        at_rest: agents whose inboxes must be empty.
    """
    for key in (*keys, *at_rest):
        incoming = known.get(key.did) or Incoming(key.did, ledger, Random(0), CALM)  # noqa: S311
        incoming.habits = CALM
        try:
            async with speaker(url, key) as who:
                if key not in at_rest:
                    await _drain(who, incoming)
                await _question(who, ledger)
            async with speaker(url, key) as who:
                ledger.stand(key.did, who.ready.welcome)
        except (RelayError, TimeoutError) as exc:
            ledger.surprise(f"the last look at the inbox of {key.did}: {exc!r}")


async def _drain(who: Speaker, incoming: Incoming) -> None:
    """Take whatever there still is."""
    incoming.opened(who.ready.welcome)
    while incoming.confirmed < who.ready.welcome.head:
        now = time.monotonic()
        ack = incoming.next_ack(now)
        if ack is not None:
            await who.say(ack)
        match await who.hear(Deliver, Gap, Acked):
            case Deliver() as frame:
                incoming.deliver(frame, who.ready.relay, now)
            case Gap() as frame:
                incoming.gap(frame)
            case Acked() as frame:
                incoming.acked(frame)


async def _question(who: Speaker, ledger: Ledger) -> None:
    """Ask what became of all that this agent sent."""
    mine = [sent.envelope for sent in ledger.sent.values() if sent.sender == who.key.did]
    for start in range(0, len(mine), QUESTIONS):
        asked = mine[start : start + QUESTIONS]
        items = tuple(StatusItem(envelope.to, envelope.id) for envelope in asked)
        await who.say(Status("what became of these", items))
        answer = await who.hear(Statuses)
        for envelope, item in zip(asked, answer.items, strict=True):
            ledger.states[envelope.eid] = item.state
