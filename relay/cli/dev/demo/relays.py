"""A relay as a child process that ends with the demo, and a clock for the report."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from relay import clock
from relay.cli.output import write
from relay.protocol import jws as jose
from relay.store.embedded.process import dying_with_us

READY_S: Final = 20.0
STOP_S: Final = 10.0


class Story:
    """Print each step with the time since the start.

    Args:
        home: directory of the relay's data and log.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self._began = clock.monotonic()

    def tell(self, sentence: str) -> None:
        """Print one line."""
        write(f"{clock.monotonic() - self._began:6.2f} s  {sentence}")


class DemoError(Exception):
    """Something was not as the demo says it is; the text is for a person."""


@dataclass(frozen=True, slots=True)
class RelayProcess:
    """A relay that runs as a child of this process."""

    process: asyncio.subprocess.Process
    did: str
    url: str

    async def kill(self) -> None:
        """``kill -9``, and wait until it is gone."""
        self.process.kill()
        await self.process.wait()


@dataclass(frozen=True, slots=True)
class Starting:
    """A relay that was started and is not ready yet."""

    process: asyncio.subprocess.Process

    async def ready(self) -> RelayProcess:
        """Wait until it says that it is ready.

        Raises:
            DemoError: it does not.
        """
        if self.process.stdout is None:
            raise RuntimeError("started without a pipe")
        try:
            async with asyncio.timeout(READY_S):
                line = await self.process.stdout.readline()
        except TimeoutError as exc:
            raise DemoError(f"the relay was not ready within {READY_S:.0f} s") from exc
        if not line:
            raise DemoError("the relay ended before it was ready")
        members = jose.Members(jose.loads(line.strip()))
        did, url = members.text("did", limit=512), members.text("url", limit=512)
        return RelayProcess(self.process, did, url)


@asynccontextmanager
async def relay_process(
    home: Path, listen: str, settings: Mapping[str, str] | None = None
) -> AsyncIterator[Starting]:
    """A relay process on the embedded store; gone at the end of the block, or with this process.

    Args:
        home: directory of its data and log.
        listen: its public HOST:PORT.
        settings: ``RELAY_*`` variables.
    """
    with _log_in(home) as log:
        process = await asyncio.create_subprocess_exec(
            *dying_with_us(
                [
                    *(sys.executable, "-m", "relay", "serve", "--data", str(home / "data")),
                    *("--listen", listen, "--admin", "127.0.0.1:0"),
                ]
            ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env={**_without_settings(), **(settings or {})},
            # a Ctrl-C is for the demo: it ends its relay itself
            process_group=0,
        )
    try:
        yield Starting(process)
    finally:
        await _stop(process)


def _log_in(home: Path) -> BinaryIO:
    home.mkdir(exist_ok=True)
    return (home / "relay.log").open("ab")


def _without_settings() -> dict[str, str]:
    """The environment of the relay: ours, but without settings meant for another one."""
    mine = os.environ  # noqa: TID251  passed on, not read
    return {name: value for name, value in mine.items() if not name.upper().startswith("RELAY_")}


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except (TimeoutError, asyncio.CancelledError):
        process.kill()
        await process.wait()
        raise
