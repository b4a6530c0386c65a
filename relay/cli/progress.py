"""Progress of a command that waits: one changing line on a terminal, else sentences."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Final

from relay import clock
from relay.cli.output import printable, say

BAR: Final = 24


def _is_on_terminal() -> bool:
    # the current stream, not that of the import
    return sys.stderr.isatty()


@dataclass(slots=True)
class Progress:
    """Progress on stderr.

    Args:
        quiet: print nothing.
    """

    quiet: bool
    _began: float = field(default_factory=clock.monotonic)
    _last: str = ""
    _on_terminal: bool = field(default_factory=_is_on_terminal)

    def tell(self, words: str) -> None:
        """Show the current step, a sentence without full stop; a repetition updates the time."""
        if self.quiet:
            return
        if self._on_terminal:
            seconds = clock.monotonic() - self._began
            sys.stderr.write(f"\r\x1b[K{printable(words)} ({seconds:.0f} s)")
            sys.stderr.flush()
        elif words != self._last:
            say(f"{printable(words)}.")
        self._last = words

    def count(self, words: str, done: int, total: int) -> None:
        """Show the step with a bar on a terminal; elsewhere print the words once."""
        if not self._on_terminal:
            self.tell(words)
            return
        filled = BAR * done // max(total, 1)
        self.tell(f"{words} [{'#' * filled}{'.' * (BAR - filled)}] {done:,} of {total:,}")

    def end(self) -> None:
        """Clear the line."""
        if self._on_terminal and self._last:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        self._last = ""
