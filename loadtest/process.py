"""A real relay: `python -m relay serve` with its embedded store, as an operator starts it.

Rules of the file: settings are the defaults but for limits that a load would hit; what RELAY_*
variables say outside is passed on, so that a setting can be tried. It is ended by its process id.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import orjson

from relay.protocol.ids import Did
from relay.store.embedded.process import dying_with_us

ROOT: Final = Path(__file__).parents[1]
START_S: Final = 30
STOP_S: Final = 30
LIMITS: Final = {
    "RELAY_SENDER_RATE": "1000000000",
    "RELAY_STRANGER_RATE": "1000000000",
    "RELAY_SENDER_COUNT": "1000000",
    "RELAY_SENDER_BYTES": str(4 * 1024**3),
    "RELAY_STRANGER_COUNT": "1000000",
    "RELAY_STRANGER_BYTES": str(4 * 1024**3),
    "RELAY_INBOX_COUNT": "1000000",
    "RELAY_INBOX_BYTES": str(4 * 1024**3),
    "RELAY_DEDUPE_ENTRIES": "10000000",  # the default remembers one minute at this speed
    "RELAY_STORE_MAXMEMORY": "1gb",
    "RELAY_MAX_CONNECTIONS_PER_IP": "20000",
}


class RelayFailedError(RuntimeError):
    """The relay did not start, or ended; the text holds what it said."""


@dataclass(frozen=True, slots=True)
class RelayProcess:
    """A relay that said it is ready."""

    process: asyncio.subprocess.Process
    did: Did
    url: str
    admin: str
    store_pid: int

    @property
    def pid(self) -> int:
        """Process id of the node."""
        return self.process.pid

    @property
    def ws_url(self) -> str:
        """Where agents connect."""
        return f"ws{self.url.removeprefix('http')}/v1/ws"

    def metric(self, name: str) -> float:
        """The value of one metric without labels; blocks, so only between measured intervals."""
        with urllib.request.urlopen(f"{self.admin}/metrics", timeout=5) as answer:  # noqa: S310
            text: str = answer.read().decode()
        found = re.search(rf"^{name} ([0-9.e+]+)$", text, re.MULTILINE)
        if found is None:
            raise RelayFailedError(f"/metrics has no {name}")
        return float(found[1])


def environment() -> dict[str, str]:
    """Variables of the relay process."""
    if "RELAY_REDIS_URL" in os.environ:
        raise RelayFailedError("the load driver accounts the embedded store: unset RELAY_REDIS_URL")
    return {**LIMITS, **os.environ, "PYTHONPATH": str(ROOT)}


@contextlib.asynccontextmanager
async def relay_process(
    directory: Path, *, listen: str = "127.0.0.1:0", **settings: str
) -> AsyncIterator[RelayProcess]:
    """Start one in a new ``directory``; stopped at the end, killed if it does not stop.

    Args:
        directory: of its data and its log.
        listen: its public HOST:PORT.
        settings: more ``RELAY_*`` variables.
    """
    said = directory / "relay.log"
    with _new(said) as log:
        process = await asyncio.create_subprocess_exec(
            *dying_with_us(
                [
                    *(sys.executable, "-m", "relay", "serve", "--data", str(directory / "data")),
                    *("--listen", listen, "--admin", "127.0.0.1:0"),
                ]
            ),
            env={**environment(), **settings},
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield await _ready(process, said)
    finally:
        await _stop(process)


def _new(log: Path) -> BinaryIO:
    log.parent.mkdir(exist_ok=True)
    return log.open("wb")


async def _ready(process: asyncio.subprocess.Process, said: Path) -> RelayProcess:
    if process.stdout is None:
        raise RelayFailedError("no pipe from the relay")
    async with asyncio.timeout(START_S):
        line = await process.stdout.readline()
    if not line:
        raise RelayFailedError(f"the relay did not start:\n{_end_of(said)}")
    ready = orjson.loads(line)
    return RelayProcess(
        process, Did(ready["did"]), ready["url"], ready["admin"], _only_child(process.pid)
    )


def _end_of(said: Path) -> str:
    return said.read_text(errors="replace")[-2000:]


def _only_child(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    if len(children) != 1:
        raise RelayFailedError(f"the node should have one child, its store; found {children}")
    return int(children[0])


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
