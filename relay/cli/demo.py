"""``relay demo``: an envelope survives an offline recipient and a relay that is killed in between.

Rules of the file: nothing is simulated. The relay is a process of its own with its own store, the
agents speak to it over a real socket, the kill is SIGKILL. Each sentence is said after it was
checked; one that does not hold ends the demo with a plain reason.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from relay import clock
from relay.cli.exits import Exit
from relay.cli.output import say, write
from relay.client import Agent, Message, Sent, SigningKey
from relay.core import jws as jose
from relay.core.errors import RelayError
from relay.core.identity import KEY_BYTES
from relay.core.receipts import verify_receipt

READY_S: Final = 20.0
STOP_S: Final = 10.0
STEP_S: Final = 15.0
TEXT: Final = "The train leaves at 9. Bring the map."
LOG_TAIL: Final = 1_500


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


class Story:
    """Says what happened, and how long after the start."""

    def __init__(self) -> None:
        self._began = clock.monotonic()

    def tell(self, sentence: str) -> None:
        """One line."""
        write(f"{clock.monotonic() - self._began:6.2f} s  {sentence}")

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return clock.monotonic() - self._began


async def demo() -> int:
    """Run it; gives the exit code."""
    with tempfile.TemporaryDirectory(prefix="relay-demo-") as name:
        home = Path(name)
        try:
            await _tell_it(home)
        except (DemoError, RelayError, TimeoutError) as exc:
            reason = f"a step took over {STEP_S:.0f} s" if isinstance(exc, TimeoutError) else exc
            say(f"The demo failed: {reason}")
            _show_log(home / "relay.log")
            return Exit.FAILED
    return Exit.OK


async def _tell_it(home: Path) -> None:
    story = Story()
    alice, bob = (SigningKey(clock.entropy(KEY_BYTES)) for _ in range(2))
    async with _relay(home, "127.0.0.1:0") as first:
        story.tell(f"A relay runs at {first.url} (process {first.process.pid}, its own store).")
        async with asyncio.timeout(STEP_S), Agent.open(bob, first.url):
            story.tell("Bob came once, so that he has an inbox, and went offline.")
        sent = await _send(first, alice, bob)
        story.tell(f"Alice sent Bob a sealed envelope; the relay signed: {sent.durability}.")
        await first.kill()
        story.tell("The relay was killed: kill -9, no goodbye. Bob has still seen nothing.")
    address = first.url.removeprefix("http://")
    async with _relay(home, address) as second:
        _check(second.did == first.did, "another relay came back")
        story.tell(f"The relay was started again (process {second.process.pid}).")
        async with asyncio.timeout(STEP_S), Agent.open(bob, second.url) as agent:
            message = await anext(agent.inbox())
            _check_message(message, alice, sent)
            story.tell(f"Bob came online, got it, and checked Alice's signature: {TEXT!r}")
            await message.ack()
            story.tell("Bob acked it; the relay answered when the ack was on its disk.")
        story.tell(await _second_look(second, alice, bob, sent))
    story.tell("Accepted 1, delivered 1, lost 0. No process is left, no file is left.")


async def _send(relay: RelayProcess, alice: SigningKey, bob: SigningKey) -> Sent:
    async with asyncio.timeout(STEP_S), Agent.open(alice, relay.url) as agent:
        sent = await agent.send(bob.did, TEXT)
    [item] = verify_receipt(sent.receipt, agent.relay or sent.relay).items
    _check(sent.relay == relay.did, "the receipt is another relay's")
    _check(item.eid == sent.eid and item.to == bob.did, "the receipt is of another envelope")
    _check(sent.durability == "fsync", f"the receipt promises only {sent.durability}")
    return sent


def _check_message(message: Message, alice: SigningKey, sent: Sent) -> None:
    _check(message.eid == sent.eid, "another envelope came")
    _check(message.sender == alice.did, "it is not from Alice")
    _check(message.text() == TEXT, "it says something else")
    _check(message.sealed, "it was not sealed")


async def _second_look(relay: RelayProcess, alice: SigningKey, bob: SigningKey, sent: Sent) -> str:
    async with asyncio.timeout(STEP_S), Agent.open(bob, relay.url) as agent:
        welcome = agent.welcome
    async with asyncio.timeout(STEP_S), Agent.open(alice, relay.url) as agent:
        state = await agent.status(bob.did, sent.id)
    if welcome is None:
        raise DemoError("the relay did not say where Bob's inbox stands")
    pending = welcome.pending
    _check(pending.count == 0, f"{pending.count} still wait in Bob's inbox")
    _check(pending.refused_count == 0, f"{pending.refused_count} were turned away")
    _check(welcome.head == 1, f"Bob's inbox was given {welcome.head} envelopes instead of 1")
    _check(welcome.cursor == welcome.head, f"the cursor stands at {welcome.cursor}")
    _check(state == "acked", f"the relay tells Alice that her envelope is {state}")
    return (
        f"Bob looked again: empty, and rightly so: cursor {welcome.cursor} = head {welcome.head} "
        f"(all that was ever stored was acked), 0 wait, 0 turned away; "
        f"and Alice, who asked, was told: {state}."
    )


def _check(holds: bool, otherwise: str) -> None:  # noqa: FBT001  reads as a sentence
    if not holds:
        raise DemoError(otherwise)


@asynccontextmanager
async def _relay(home: Path, listen: str) -> AsyncIterator[RelayProcess]:
    """A relay process on the embedded store; gone at the end of the block, whatever happens."""
    with (home / "relay.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "relay", "serve", "--data", str(home / "data")),
            *("--listen", listen, "--admin", "127.0.0.1:0"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env=_without_settings(),
            # a Ctrl-C is for the demo: it ends its relay itself
            process_group=0,
        )
    try:
        yield await _ready(process)
    finally:
        await _stop(process)


def _without_settings() -> dict[str, str]:
    """The environment of the relay: ours, but without settings meant for another one."""
    mine = os.environ  # noqa: TID251  passed on, not read
    return {name: value for name, value in mine.items() if not name.startswith("RELAY_")}


async def _ready(process: asyncio.subprocess.Process) -> RelayProcess:
    if process.stdout is None:
        raise RuntimeError("started without a pipe")
    try:
        async with asyncio.timeout(READY_S):
            line = await process.stdout.readline()
    except TimeoutError as exc:
        raise DemoError(f"the relay was not ready within {READY_S:.0f} s") from exc
    if not line:
        raise DemoError("the relay ended before it was ready")
    members = jose.Members(jose.loads(line.strip()))
    return RelayProcess(process, members.text("did", most=512), members.text("url", most=512))


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


def _show_log(path: Path) -> None:
    try:
        tail = path.read_text(errors="replace")[-LOG_TAIL:]
    except OSError:
        return
    if tail:
        say(f"The end of the relay's log:\n{tail}")
