"""``relay demo``: an envelope survives an offline recipient and a relay that is killed in between.

Rules of the file: nothing is simulated. The relay is a process of its own with its own store, the
agents speak to it over a real socket, the kill is SIGKILL. What is told, and checked, is in
``story.py``; the processes are in ``stage.py``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from relay.cli.exits import Exit
from relay.cli.output import say
from relay.cli.stage import DemoError, Story, relay_process
from relay.core.errors import RelayError

LOG_TAIL: Final = 1_500


async def demo() -> int:
    """Run it; gives the exit code."""
    with tempfile.TemporaryDirectory(prefix="relay-demo-") as name:
        story = Story(Path(name))
        try:
            async with relay_process(story.home, "127.0.0.1:0") as starting:
                # loads the SDK while the relay starts: half a second that nobody has to wait for
                from relay.cli import story as told  # noqa: PLC0415

                await told.tell(story, await starting.ready())
        except (DemoError, RelayError, TimeoutError) as exc:
            reason = "a step took too long" if isinstance(exc, TimeoutError) else exc
            say(f"The demo failed: {reason}")
            show_log(story.home / "relay.log")
            return Exit.FAILED
    story.tell("Accepted 1, delivered 1, lost 0. No process is left, no file is left.")
    return Exit.OK


def show_log(path: Path) -> None:
    """The end of what a relay logged, for a person who has to find out why."""
    try:
        tail = path.read_text(errors="replace")[-LOG_TAIL:]
    except OSError:
        return
    if tail:
        say(f"The end of the relay's log:\n{tail}")
