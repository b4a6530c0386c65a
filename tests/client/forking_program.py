"""A program that forks while its agent is open: ``-m tests.client.forking_program KIND URL SEED``.

Its child tries each call and prints what became of it; then the parent goes on, and prints that.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any

from relay.client import Agent, SigningKey, WrongStateError, sync

WAIT_S = 20


def say(*words: str) -> None:
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


def of(work: Callable[[], Any]) -> str:
    try:
        return f"{work()}"
    except WrongStateError as exc:
        return "refused" if f"process {os.getppid()}" in exc.detail else exc.detail
    except BaseException as exc:  # noqa: BLE001  told to the test
        return f"{type(exc).__name__}: {exc}"


def in_child(*works: Callable[[], Any]) -> None:
    """Fork, do each work there, and wait for the end of the child."""
    if (pid := os.fork()) == 0:
        said = [of(work) for work in works]
        say("child:", *said)
        os._exit(0)
    os.waitpid(pid, 0)


def without_a_loop(url: str, key: SigningKey) -> None:
    with sync.Agent.open(key, url) as me:
        me.send(me.did, "before")
        inbox = me.inbox(timeout=5)
        message = next(inbox)

        in_child(
            lambda: me.send(me.did, "child", deadline_s=WAIT_S),
            lambda: next(inbox),
            message.ack,
            lambda: me.is_connected,
            lambda: me.sign(me.did, "child"),
            lambda: me.serve(print),
            me._thread.close,
        )
        message.ack()
        me.send(me.did, "after")
        say("parent:", next(inbox).text())


async def with_a_loop(url: str, key: SigningKey) -> None:
    async with Agent.open(key, url) as me:
        await me.send(me.did, "before")
        inbox = me.inbox()
        message = await anext(inbox)
        envelope = me.sign(me.did, "child")

        def run(work: Callable[[], Any]) -> Callable[[], Any]:
            async def waited() -> Any:
                return await work()

            return lambda: asyncio.run(waited())

        await asyncio.to_thread(
            in_child,
            run(lambda: me.send(me.did, "child", deadline_s=WAIT_S)),
            run(lambda: me.submit(envelope)),
            run(lambda: anext(inbox)),
            run(message.ack),
            lambda: me.is_connected,
            run(lambda: me.serve(lambda _: asyncio.sleep(0))),
            run(lambda: me.resolve(me.did)),
        )
        await message.ack()
        await me.send(me.did, "after")
        say("parent:", (await anext(inbox)).text())


def main(kind: str, url: str, seed: str) -> None:
    key = SigningKey(bytes.fromhex(seed))
    if kind == "sync":
        without_a_loop(url, key)
    else:
        asyncio.run(with_a_loop(url, key))


if __name__ == "__main__":
    main(*sys.argv[1:])
