"""``relay demo``: run a demonstration and report it.

Nothing is simulated. Each relay is a process with its own store, agents use real sockets, and a
kill is SIGKILL. The demo checks each claim before it prints it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from relay.cli.dev.demo.relays import DemoError, Story, relay_process
from relay.cli.exit_codes import Exit
from relay.cli.output import say
from relay.protocol.errors import RelayError

LOG_TAIL: Final = 1_500

Tell = Callable[[Story], Awaitable[int]]
"""Run a demonstration and return the number of envelopes accepted and delivered."""


async def demo() -> int:
    """An envelope survives an offline recipient and a killed relay; return the exit code."""
    return await _show(_one_relay)


async def mesh() -> int:
    """Three relays find each other and forward an envelope; return the exit code."""
    from relay.cli.dev.demo import mesh as mesh_story  # noqa: PLC0415  an agent's packages, only where they are used

    return await _show(mesh_story.tell)


async def migrate() -> int:
    """An agent with a full inbox migrates and loses nothing; return the exit code."""
    from relay.cli.dev.demo import migrate as migrate_story  # noqa: PLC0415  as above

    return await _show(migrate_story.tell)


async def _one_relay(story: Story) -> int:
    async with relay_process(story.home, "127.0.0.1:0") as starting:
        # load the SDK while the relay starts: it saves half a second
        from relay.cli.dev.demo import one_relay  # noqa: PLC0415

        await one_relay.tell(story, await starting.ready())
    return 1


async def _show(tell: Tell) -> int:
    with tempfile.TemporaryDirectory(prefix="relay-demo-") as name:
        story = Story(Path(name))
        try:
            count = await tell(story)
        except (DemoError, RelayError, TimeoutError) as exc:
            reason = "a step took too long" if isinstance(exc, TimeoutError) else exc
            say(f"The demo failed: {reason}")
            for log in sorted(story.home.rglob("relay.log")):
                if log.parent != story.home:
                    say(f"{log.parent.name}:")
                _show_log(log)
            return Exit.FAILED
    story.tell(
        f"Accepted {count:,}, delivered {count:,}, lost 0. No process is left, no file is left."
    )
    return Exit.OK


def _show_log(path: Path) -> None:
    """Show the end of a relay's log, for diagnosis."""
    try:
        tail = path.read_text(errors="replace")[-LOG_TAIL:]
    except OSError:
        return
    if tail:
        say(f"The end of the relay's log:\n{tail}")
