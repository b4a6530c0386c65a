"""Lives that end by kill -9 at the nth line of the SDK's own code, one for each n.

python kill_at_each_line.py STEP DIRECTORY SEED URL

Each life begins with the same files. After it, what must not be lost is looked for in them; the
first life that reaches its end is the last, and how many there were is said on stdout.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import sqlite3
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from relay.client import Agent, SigningKey
from relay.client.state.journal import Journal
from tests.client.scripted_relay import envelope_of, new_key

Say = Callable[[str], None]
Life = Callable[[Path, Say], None]
Check = Callable[[Path, str], None]
MOST_LIVES = 2_000


def fall_at(line: int, files: tuple[str, ...]) -> None:
    """Kill this process at a line of these files, in whichever thread it runs."""
    count = itertools.count(1)

    def at_line(_: FrameType, event: str, __: Any) -> Any:
        if event == "line" and next(count) == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return at_line

    def tracer(frame: FrameType, _: str, __: Any) -> Any:
        return at_line if frame.f_code.co_filename.endswith(files) else None

    threading.settrace(tracer)
    sys.settrace(tracer)


def live(life: Life, state: Path, line: int, files: tuple[str, ...]) -> tuple[str, bool]:
    """One life in a process of its own; gives what it said, and whether it was killed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            fall_at(line, files)
            life(state, lambda word: os.write(writing, f"{word} ".encode()))
            sys.settrace(None)
            code = 0
        except BaseException:  # noqa: BLE001  said, and told by the exit code
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return said, True
    assert os.WEXITSTATUS(status) == 0, said
    return said, False


def fall_at_every_line(
    life: Life, check: Check, prepared: Path, files: tuple[str, ...], step: int
) -> int:
    """Live until a life comes to its end; gives how many lives that took."""
    for lives in range(1, MOST_LIVES):
        place = prepared.parent / f"life-{lives}"
        shutil.copytree(prepared, place)
        said, was_killed = live(life, place / "state", lives * step, files)
        check(place / "state", said)
        if not was_killed:
            return lives
        shutil.rmtree(place)
    raise AssertionError("no life comes to its end")


# ---------------------------------------------------------------- outcomes


def outcomes(step: int, directory: Path, seed: str, url: str) -> int:
    """An envelope of a former life is in the outbox or an outcome until the program was told."""
    key = SigningKey(bytes.fromhex(seed))
    envelope = envelope_of(key, new_key().did)

    async def prepare(path: Path) -> None:
        journal = Journal.open(path, key.did)
        await journal.add_outgoing(envelope)
        journal.close()

    async def converse(path: Path, say: Say) -> None:
        async with Agent.open(key, url, state=path) as me:
            outcome = await anext(me.outcomes())
            assert (outcome.eid, outcome.stored) == (envelope.eid, "yes")
            say("told")
            await outcome.done()
            say("done")

    def check(path: Path, said: str) -> None:
        database = sqlite3.connect(path)
        found = [
            eid
            for table in ("outbox", "outcomes")
            for (eid,) in database.execute(f"SELECT eid FROM {table}")  # noqa: S608  our own names
        ]
        database.close()
        if "told" not in said:
            assert found == [envelope.eid], said
        elif "done" in said:
            assert found == [], said
        else:
            assert found in ([], [envelope.eid]), said

    prepared = directory / "prepared"
    asyncio.run(prepare(prepared / "state"))
    files = (
        "client/outbox/sender.py",
        "client/outbox/outcomes.py",
        "client/state/journal.py",
        "client/state/database.py",
    )
    return fall_at_every_line(
        lambda path, say: asyncio.run(converse(path, say)), check, prepared, files, step
    )


if __name__ == "__main__":
    lives = outcomes(int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
    sys.stdout.write(f"{lives}\n")
