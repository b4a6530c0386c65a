"""``relay demo``: stories that are true when they are told.

Rules of the file: nothing is simulated. Relays are processes of their own with their own stores,
agents speak to them over real sockets, a kill is SIGKILL; a sentence is said after it was checked.
What is told is in ``story.py``, ``mesh_story.py`` and ``migrate_story.py``; the processes are in
``stage.py``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from relay.cli.dev.demo.relays import (
    DemoError,
    Story,
    relay_process,
)
from relay.cli.exit_codes import Exit
from relay.cli.output import say
from relay.protocol.errors import RelayError

LOG_TAIL: Final = 1_500

Tell = Callable[[Story], Awaitable[int]]
"""Tells a story; gives how many envelopes were accepted, and delivered."""


async def demo() -> int:
    """An envelope survives an offline recipient and a relay that is killed; gives the exit code."""
    return await _show(_one_relay)


async def mesh() -> int:
    """Three relays find each other, and an envelope finds its way across; gives the exit code."""
    from relay.cli.dev.demo import mesh as mesh_story  # noqa: PLC0415  an agent's packages, only where they are used

    return await _show(mesh_story.tell)


async def migrate() -> int:
    """An agent with a full inbox moves house, and loses nothing; gives the exit code."""
    from relay.cli.dev.demo import migrate as migrate_story  # noqa: PLC0415  as above

    return await _show(migrate_story.tell)


async def _one_relay(story: Story) -> int:
    async with relay_process(story.home, "127.0.0.1:0") as starting:
        # loads the SDK while the relay starts: half a second that nobody has to wait for
        from relay.cli.dev.demo import one_relay as told  # noqa: PLC0415

        await told.tell(story, await starting.ready())
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
    """The end of what a relay logged, for a person who has to find out why."""
    try:
        tail = path.read_text(errors="replace")[-LOG_TAIL:]
    except OSError:
        return
    if tail:
        say(f"The end of the relay's log:\n{tail}")
