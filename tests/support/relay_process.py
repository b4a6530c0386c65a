"""Real relay processes, started as an operator would, and ended by process id."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay.store.embedded.process import dying_with_us
from tests.support.patience import within
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
NO_LIMITS = {
    "RELAY_SENDER_RATE": "1000000000",
    "RELAY_STRANGER_RATE": "1000000000",
    "RELAY_STORE_MAXMEMORY": "64mb",
}


@dataclass
class RelayProcess:
    """A `relay serve` that has reported that it is ready."""

    process: asyncio.subprocess.Process
    did: str
    url: str
    admin: str
    said: bytes = b""
    """What it wrote to stderr, once it has ended."""

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.send_signal(signal.SIGKILL)

    def store_pid(self) -> int:
        """Process id of its embedded store."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        [pid] = [int(child) for child in children.read_text().split()]
        return pid

    async def stop(self) -> int:
        """SIGTERM, and the exit code after the drain."""
        if self.process.returncode is None:
            self.process.terminate()
        async with within(20):
            return await self.process.wait()


async def start_relay(
    data: Path,
    *,
    listen: str | None = None,
    cwd: Path = ROOT,
    module: str = "relay",
    **environment: str,
) -> RelayProcess:
    """Start one; raises AssertionError with its stderr if it does not come up."""
    arguments = ["--data", str(data), "--listen", listen or f"127.0.0.1:{free_port()}"]
    process = await asyncio.create_subprocess_exec(
        *dying_with_us(
            [
                *(sys.executable, "-m", module, "serve"),
                *(*arguments, "--admin", "127.0.0.1:0"),
            ]
        ),
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **NO_LIMITS, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        process_group=0,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    async with within(20):
        line = await process.stdout.readline()
    if not line:
        said = (await process.stderr.read()).decode()
        raise AssertionError(f"the relay ended with {await process.wait()}: {said}")
    ready: dict[str, Any] = json.loads(line)
    return RelayProcess(process, ready["did"], ready["url"], ready["admin"])


@contextlib.asynccontextmanager
async def relay_process(data: Path, **options: Any) -> AsyncIterator[RelayProcess]:
    """A relay for a test, as :func:`start_relay`; stopped, or killed if it does not stop."""
    relay = await start_relay(data, **options)
    # stderr is read on, or a talkative relay would stop at a full pipe
    assert relay.process.stderr is not None
    reading = asyncio.ensure_future(relay.process.stderr.read())
    try:
        yield relay
    finally:
        try:
            await relay.stop()
        finally:
            if relay.process.returncode is None:
                relay.kill()
            relay.said = await reading
