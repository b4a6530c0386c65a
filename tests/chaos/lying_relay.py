"""A relay that tells lies: ``python -m tests.chaos.lying_relay URL DID KIND RATE STALE_FILE``.

It prints ``ready``. For each number on stdin it pushes so many records, RATE a second (0: as fast
as they are read), and prints in one line of JSON what it has done so far. It logs in as a peer
under a fresh key, and comes back under another one when it is thrown out.

It yields the processor whenever it can: on a machine of its own it would take nothing from its
victim. KIND ``forged``: records of agents that nobody knows, in perfect form but for the signature.
KIND ``stale``: real ones that were newer once, from STALE_FILE.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from relay.peering.link import log_in
from relay.protocol import endpoint_record, frames
from relay.protocol.did import (
    SigningKey,
    encode_did,
)
from relay.protocol.errors import RelayError
from relay.protocol.frames import (
    SUBPROTOCOL,
    Gossip,
)
from relay.protocol.ids import (
    Did,
    Timestamp,
)

A_FRAME = 1_000
AGENTS = 512
GIVE_UP_S = 600.0


def forged() -> Iterator[str]:
    """Records without end, each of another seq or agent, none of them signed by it."""
    now = int(time.time())
    keys = [SigningKey(os.urandom(32)) for _ in range(AGENTS)]
    home = endpoint_record.Home(encode_did(keys[0].public_key), "https://relay.example")
    parts = []
    for key in keys:
        head, payload, _ = endpoint_record.sign(key, [home], now=Timestamp(now)).split(".")
        parts.append((head, _decoded(payload)))
    for count in itertools.count():
        head, payload = parts[count % AGENTS]
        seq = now * 1000 - count % 100_000
        other = payload.replace(b'"seq":%d' % (now * 1000), b'"seq":%d' % seq)
        lie = base64.urlsafe_b64encode(hashlib.sha512(b"%d" % count).digest()).rstrip(b"=")
        body = base64.urlsafe_b64encode(other).rstrip(b"=")
        yield f"{head}.{body.decode()}.{lie.decode()}"


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@dataclass(slots=True)
class Liar:
    """Pushes lies at one relay; what came of it are its counts."""

    url: str
    relay: Did
    lies: Iterator[str]
    rate: float
    count: int = 0
    pushed: int = 0
    logins: int = 0
    thrown_out: int = 0
    refused: int = 0
    seconds: float = 0.0
    _began: float = 0.0
    _before: int = 0

    async def lie(self, count: int) -> None:
        """Push so many more."""
        self._began, self._before = time.monotonic(), self.pushed
        self.count += count
        async with asyncio.timeout(GIVE_UP_S):
            while self.pushed < self.count:
                try:
                    await self._one_life()
                except (RelayError, OSError):
                    self.refused += 1
                    await asyncio.sleep(0.05)
        self.seconds += time.monotonic() - self._began

    async def _one_life(self) -> None:
        where = f"ws{self.url.removeprefix('http')}/v1/ws"
        protocol = Subprotocol(SUBPROTOCOL)
        async with connect(where, subprotocols=[protocol], compression=None) as socket:
            await log_in(socket, SigningKey(os.urandom(32)), self.url, self.relay)
            self.logins += 1
            try:
                while self.pushed < self.count:
                    await self._push(socket)
            except ConnectionClosed:
                self.thrown_out += 1

    async def _push(self, socket: ClientConnection) -> None:
        if self.rate:
            due = self._began + (self.pushed - self._before) / self.rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        batch = tuple(itertools.islice(self.lies, min(A_FRAME, self.count - self.pushed)))
        await socket.send(frames.encode(Gossip(batch)), text=True)
        self.pushed += len(batch)


def main(words: list[str]) -> None:
    """Lie as the arguments demand."""
    url, relay, kind, rate, stale = words
    lies = forged() if kind == "forged" else itertools.cycle(Path(stale).read_text().split())
    liar = Liar(url, Did(relay), lies, float(rate))
    os.nice(19)
    print("ready", flush=True)
    for line in sys.stdin:
        asyncio.run(liar.lie(int(line)))
        counts = ("pushed", "logins", "thrown_out", "refused", "seconds")
        print(json.dumps({name: round(getattr(liar, name)) for name in counts}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
