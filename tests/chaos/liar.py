"""A relay that tells lies: ``python -m tests.chaos.liar URL DID KIND COUNT STALE_FILE``.

It logs in as a peer under a fresh key, pushes records as fast as they are read, comes back under
another key when it is thrown out, and ends when it has pushed COUNT of them. In the end it says in
one line of JSON what it did.

Rules of the file: KIND ``forged``: of agents that nobody knows, each another one, in perfect form
but for the signature; ``stale``: real ones that were newer once, from STALE_FILE.
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
from pathlib import Path

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from relay.core import codec, records
from relay.core.errors import RelayError
from relay.core.frames import SUBPROTOCOL, Gossip
from relay.core.identity import SigningKey, encode_did
from relay.core.ids import Did, Timestamp
from relay.federation.link import log_in

A_FRAME = 1_000
AGENTS = 512
GIVE_UP_S = 600.0


def forged() -> Iterator[str]:
    """Records without end, each of another seq or agent, none of them signed by it."""
    now = int(time.time())
    keys = [SigningKey(os.urandom(32)) for _ in range(AGENTS)]
    home = records.Home(encode_did(keys[0].public_key), "https://relay.example")
    parts = []
    for key in keys:
        head, payload, _ = records.sign(key, [home], now=Timestamp(now)).split(".")
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


async def lie(url: str, relay: Did, lies: Iterator[str], count: int) -> dict[str, int]:
    """Push so many; gives what came of it."""
    said = {"pushed": 0, "logins": 0, "thrown_out": 0, "refused": 0}
    async with asyncio.timeout(GIVE_UP_S):
        while said["pushed"] < count:
            try:
                await _one_life(url, relay, lies, count, said)
            except (RelayError, OSError):
                said["refused"] += 1
                await asyncio.sleep(0.05)
    return said


async def _one_life(
    url: str, relay: Did, lies: Iterator[str], count: int, said: dict[str, int]
) -> None:
    where = f"ws{url.removeprefix('http')}/v1/ws"
    async with connect(where, subprotocols=[SUBPROTOCOL], compression=None) as socket:  # type: ignore[list-item]
        await log_in(socket, SigningKey(os.urandom(32)), url, relay)
        said["logins"] += 1
        try:
            while said["pushed"] < count:
                batch = tuple(itertools.islice(lies, min(A_FRAME, count - said["pushed"])))
                await socket.send(codec.encode(Gossip(batch)), text=True)
                said["pushed"] += len(batch)
        except ConnectionClosed:
            said["thrown_out"] += 1


def main(words: list[str]) -> None:
    """Lie as told."""
    url, relay, kind, count, stale = words
    lies = forged() if kind == "forged" else itertools.cycle(Path(stale).read_text().split())
    print(json.dumps(asyncio.run(lie(url, Did(relay), lies, int(count)))))


if __name__ == "__main__":
    main(sys.argv[1:])
