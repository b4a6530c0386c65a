"""Relays as child processes that end with the demo, the report, and the checks of its claims."""

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
from relay.client import Message, Sent, SigningKey
from relay.protocol import jws as jose
from relay.protocol.did import KEY_BYTES
from relay.protocol.ids import Did
from relay.protocol.receipts import verify_receipt
from relay.store.embedded.process import dying_with_us

ANY_PORT: Final = "127.0.0.1:0"
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


def new_key() -> SigningKey:
    """Return the key of a new agent."""
    return SigningKey(clock.entropy(KEY_BYTES))


def check(holds: bool, otherwise: str) -> None:  # noqa: FBT001  reads as a sentence
    """End the demo if a claim does not hold."""
    if not holds:
        raise DemoError(otherwise)


def check_receipt(sent: Sent, relay: RelayProcess, to: SigningKey) -> None:
    """Check that ``relay`` has signed that it keeps ``sent`` for ``to`` on its disk."""
    check(sent.relay == relay.did, "the receipt is another relay's")
    [item] = verify_receipt(sent.receipt, sent.relay).items
    check(item.eid == sent.eid and item.to == to.did, "the receipt is of another envelope")
    check(sent.durability == "fsync", f"the receipt promises only {sent.durability}")


def check_message(message: Message, sent: Sent, text: str) -> None:
    """Check that ``message`` is what was sent."""
    check(message.eid == sent.eid, "another envelope came")
    check(message.text() == text, "it says something else")
    check(message.sealed, "it was not sealed")


@dataclass(frozen=True, slots=True)
class RelayProcess:
    """A relay that runs as a child of this process."""

    process: asyncio.subprocess.Process
    did: Did
    url: str

    @property
    def address(self) -> str:
        """HOST:PORT, to start it again there."""
        return self.url.removeprefix("http://")

    async def kill(self) -> None:
        """``kill -9``, and wait until it is gone."""
        self.process.kill()
        await self.process.wait()


async def _ready(process: asyncio.subprocess.Process) -> RelayProcess:
    if process.stdout is None:
        raise RuntimeError("started without a pipe")
    try:
        async with asyncio.timeout(READY_S):
            line = await process.stdout.readline()
    except TimeoutError as exc:
        raise DemoError(f"the relay was not ready within {READY_S:.0f} s") from exc
    check(bool(line), "the relay ended before it was ready")
    members = jose.Members(jose.loads(line.strip()))
    did, url = members.text("did", limit=512), members.text("url", limit=512)
    return RelayProcess(process, Did(did), url)


@asynccontextmanager
async def relay_process(
    home: Path,
    listen: str = ANY_PORT,
    settings: Mapping[str, str] | None = None,
    *,
    knows: RelayProcess | None = None,
) -> AsyncIterator[RelayProcess]:
    """Run a relay on the embedded store to the end of the block, or of this process.

    Args:
        home: directory of its data and log.
        listen: its public HOST:PORT.
        settings: ``RELAY_*`` variables.
        knows: its first peer.
    """
    words = [*(sys.executable, "-m", "relay", "serve", "--data", str(home / "data"))]
    words += ["--listen", listen, "--admin", ANY_PORT]
    # without settings that are meant for another relay
    mine = os.environ  # noqa: TID251  passed on, not read
    env = {name: value for name, value in mine.items() if not name.upper().startswith("RELAY_")}
    peers = {"RELAY_PEERS": f"{knows.did}@{knows.url}"} if knows else {}
    with _log_in(home) as log:
        process = await asyncio.create_subprocess_exec(
            *dying_with_us(words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env={**env, **(settings or {}), **peers},
            # a Ctrl-C is for the demo: it ends its relay itself
            process_group=0,
        )
    try:
        yield await _ready(process)
    finally:
        await _stop(process)


def _log_in(home: Path) -> BinaryIO:
    home.mkdir(exist_ok=True)
    return (home / "relay.log").open("ab")


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
