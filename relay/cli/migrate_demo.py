"""``relay demo migrate``: an agent with a full inbox moves house, and nothing is lost on the way.

Rules of the file: as in ``demo.py``: nothing is simulated, and a sentence is said after it was
checked. What is told is in ``migrate_story.py``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from relay.cli.demo import show_log
from relay.cli.exits import Exit
from relay.cli.output import say
from relay.cli.stage import DemoError, Story
from relay.core.errors import RelayError


async def demo() -> int:
    """Run it; gives the exit code."""
    from relay.cli import migrate_story  # noqa: PLC0415  an agent's packages, only where used

    with tempfile.TemporaryDirectory(prefix="relay-demo-") as name:
        story = Story(Path(name))
        try:
            count = await migrate_story.tell(story)
        except (DemoError, RelayError, TimeoutError) as exc:
            reason = "a step took too long" if isinstance(exc, TimeoutError) else exc
            say(f"The demo failed: {reason}")
            for log in sorted(story.home.glob("*/relay.log")):
                say(f"{log.parent.name}:")
                show_log(log)
            return Exit.FAILED
    story.tell(
        f"Accepted {count:,}, delivered {count:,}, lost 0. No process is left, no file is left."
    )
    return Exit.OK
