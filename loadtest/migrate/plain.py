"""What it costs to copy the same bytes from one store to the other, and nothing else.

Rules of the file: no relay, no signature, no receipt, no deletion; a page is read, written, and
durable before the next one is read. A store answers a write when that is on its disk
(``appendfsync always``), as it does to a relay. Both streams are gone afterwards.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis

PAGE: Final = 256
KEY: Final = "bench:plain"


async def copied_in(source: Path, target: Path, wires: Sequence[bytes]) -> float:
    """Seconds that a copy takes, page by page, between two stores that have nothing else to do.

    Args:
        source: directory of a relay, whose store holds the entries first.
        target: the same, where they go.
        wires: the entries.
    """
    async with _client(source) as reads, _client(target) as writes:
        await _write(reads, wires)
        began = time.perf_counter()
        after = "-"
        while page := await reads.xrange(KEY, min=after, count=PAGE):
            await _write(writes, [fields[b"e"] for _, fields in page])
            after = f"({page[-1][0].decode()}"
        took = time.perf_counter() - began
        count = await writes.xlen(KEY)
        await reads.delete(KEY)
        await writes.delete(KEY)
    if count != len(wires):
        raise RuntimeError(f"{count} of {len(wires)} entries were copied")
    return took


async def _write(store: Redis, wires: Sequence[bytes]) -> None:
    for at in range(0, len(wires), PAGE):
        pipeline: Any = store.pipeline(transaction=False)
        for wire in wires[at : at + PAGE]:
            pipeline.xadd(KEY, {b"e": wire})
        await pipeline.execute()


@contextlib.asynccontextmanager
async def _client(directory: Path) -> AsyncIterator[Redis]:
    store = directory / "data" / "store"
    elsewhere = store / "store.sock.path"
    path = elsewhere.read_text() if elsewhere.exists() else str(store / "store.sock")
    client = Redis.from_url(f"unix://{path}")
    try:
        yield client
    finally:
        await client.aclose()
