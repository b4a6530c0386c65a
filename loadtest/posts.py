"""Envelopes signed ahead, each in its submit frame: sending one costs the driver a write."""

from __future__ import annotations

import asyncio
import os
import time
import zlib
from typing import Final, NamedTuple

from relay.protocol import frames
from relay.protocol.did import SigningKey
from relay.protocol.envelope import Draft, sign
from relay.protocol.ids import Did, Eid, Timestamp, new_message_id

BODY_BYTES: Final = 512
SIGNED_AT_ONCE: Final = 100


class Post(NamedTuple):
    """One submit frame, ready to be written."""

    eid: Eid
    recipient: int
    checksum: int
    frame: bytes


def checksum(wire: bytes) -> int:
    """Tells one envelope's bytes from another's; what is signed is judged by its eid."""
    return zlib.crc32(wire)


class Stock:
    """The posts of one sender, signed in the order in which they will be sent.

    Args:
        key: the sender's.
        sender: its number.
        recipients: everybody it writes to, in turn; it begins with the one of its own number.
    """

    def __init__(self, key: SigningKey, sender: int, recipients: list[Did]) -> None:
        self._key = key
        self._sender = sender
        self._recipients = recipients
        self._made = 0
        self.posts: list[Post] = []
        self.first = 0
        """The ref of ``posts[0]``."""

    async def fill(self, count: int) -> None:
        """Sign until ``count`` are there; the event loop gets a turn now and then (pings)."""
        while len(self.posts) < count:
            for _ in range(min(SIGNED_AT_ONCE, count - len(self.posts))):
                self.posts.append(self._make())
            await asyncio.sleep(0)

    def drop(self, count: int) -> None:
        """Forget the first ``count``: they are in the ledger now."""
        del self.posts[:count]
        self.first += count

    def _make(self) -> Post:
        now = time.time()
        recipient = (self._sender + self._made) % len(self._recipients)
        draft = Draft(
            to=self._recipients[recipient],
            id=new_message_id(Timestamp(now), os.urandom),
            body=os.urandom(BODY_BYTES),
            content_type="application/octet-stream",
            created_at=int(now),
        )
        signed = sign(draft, self._key)
        frame = frames.encode(frames.Submit(str(self._made), [signed.wire]))
        self._made += 1
        return Post(signed.eid, recipient, checksum(signed.wire), frame)
