"""``relay demo``: run a demonstration and report it.

Nothing is simulated. Each relay is a process with its own store, agents use real sockets, and a
kill is SIGKILL. The demo checks each claim before it prints it.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Final, Literal

from relay.cli.dev.demo import mesh, migrate, one_relay
from relay.cli.dev.demo.relays import DemoError, Story
from relay.cli.exit_codes import Exit
from relay.cli.output import say
from relay.protocol.errors import RelayError

LOG_TAIL: Final = 1_500

Demo = Literal["relay", "mesh", "migrate"]

_DEMOS: Final = {"relay": one_relay.tell, "mesh": mesh.tell, "migrate": migrate.tell}
"""Each returns the number of envelopes that were accepted and delivered."""


async def demo(what: Demo) -> int:
    """Run one of the demonstrations and return the exit code."""
    # a killed relay is part of it: the SDK's warnings would stand among the steps
    logging.getLogger("relay.client").addHandler(logging.NullHandler())
    with tempfile.TemporaryDirectory(prefix="relay-demo-") as name:
        story = Story(Path(name))
        try:
            count = await _DEMOS[what](story)
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
