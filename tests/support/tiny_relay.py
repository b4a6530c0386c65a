"""A relay reduced to its store: ``python -m tests.support.tiny_relay DIRECTORY BINARY``.

It prints one line when the store serves (``URL PID``). On SIGINT it prints ``interrupted`` and
drains until a line comes on stdin: it then writes once more, prints ``drained``, and stops.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from relay.store.embedded import EmbeddedStore
from tests.support.servers import client


async def main(directory: str, binary: str) -> None:
    store = EmbeddedStore(Path(directory), binary=binary)
    await store.start()
    loop, interrupted = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGINT, interrupted.set)
    async with asyncio.TaskGroup() as group:
        group.create_task(store.run())
        say(f"{store.url} {store.pid}")
        await interrupted.wait()
        say("interrupted")
        await loop.run_in_executor(None, sys.stdin.readline)
        async with client(store.url) as redis:
            await redis.set("drained", "yes")
        say("drained")
        await store.stop()


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
