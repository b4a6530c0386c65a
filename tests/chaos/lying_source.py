"""A relay by hand that claims to hand an inbox over, and sends whatever a test wants.

It proves its identity as any peer does; nothing else that it sends has to be true.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import struct
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from relay.protocol import (
    endpoint_record,
    envelope,
)
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import Home
from relay.protocol.envelope import SignedEnvelope
from relay.protocol.frames import (
    Error,
    Migrate,
    Migrated,
    Submit,
    Submitted,
)
from relay.protocol.ids import (
    Timestamp,
    message_id_hour,
)
from relay.protocol.jws import (
    b64decode,
    b64encode,
)
from tests.federation.linked_nodes import (
    Peer,
    peer,
)
from tests.support.migration_steps import Traveller
from tests.support.nodes import RunningNode, new_key

NOWHERE = "http://127.0.0.1:1"


@dataclass
class Liar:
    """A source that an agent's order names."""

    key: SigningKey
    me: Traveller
    talk: Peer
    _refs: Any = field(default_factory=lambda: map(str, itertools.count(1)))

    async def digest(
        self,
        doubts: Sequence[bytes],
        *,
        handoff: str = "",
        number: int = 0,
        total: int = 1,
        whole: bytes = b"",
        evidence: str = "",
    ) -> Migrated | Error:
        """Say a page of a digest."""
        said = Migrate(
            ref=next(self._refs), agent=self.me.key.did, handoff=handoff or self.me.id,
            authorization=evidence or self.me.order,
            digest_id=b64encode(whole or hashlib.sha256(b"".join(doubts)).digest()),
            number=number, total=total, maybe_seen=b"".join(doubts),
        )  # fmt: skip
        await self.talk.say(said)
        return await self.talk.hear(Migrated, Error)

    async def copy(
        self, letters: Sequence[SignedEnvelope], *, handoff: str = ""
    ) -> Submitted | Error:
        """Bring envelopes as part of a hand-off."""
        wires = [letter.wire for letter in letters]
        ref = next(self._refs)
        await self.talk.say(Submit(ref, wires, hops=(self.key.did,), handoff=handoff or self.me.id))
        return await self.talk.hear(Submitted, Error)


def doubt(letter: SignedEnvelope, sender: SigningKey) -> bytes:
    """The id of an envelope as a digest says it."""
    key = envelope.dedupe_key(sender.did, letter.id)
    return struct.pack(">I", message_id_hour(letter.id)) + key + b64decode(letter.eid)[:16]


@contextlib.asynccontextmanager
async def lying_source(node: RunningNode, target: Home) -> AsyncIterator[Liar]:
    """An agent has ordered a move from the liar to a real relay, which is prepared."""
    key, agent = new_key(), new_key()
    source = Home(key.did, NOWHERE)
    newest = endpoint_record.sign(agent, [source], now=Timestamp(time.time() - 60))
    me = Traveller(agent, source, target, newest)
    await me.prepare()
    async with peer(node.url, target.did, key) as talk:
        yield Liar(key, me, talk)
