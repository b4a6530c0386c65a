"""What a command that waits says meanwhile: on a terminal one line that changes, else sentences."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Final

from relay import clock
from relay.cli.output import printable, say

BAR: Final = 24


def _is_on_terminal() -> bool:
    # the stream of now, not that of the import
    return sys.stderr.isatty()


@dataclass(slots=True)
class Progress:
    """Progress on stderr.

    Args:
        quiet: say nothing.
    """

    quiet: bool
    _began: float = field(default_factory=clock.monotonic)
    _last: str = ""
    _on_terminal: bool = field(default_factory=_is_on_terminal)

    def tell(self, words: str) -> None:
        """Where it stands; a sentence without its full stop. Saying it again updates the time."""
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
        """As :meth:`tell`, with a bar on a terminal; elsewhere the words are said once."""
        if not self._on_terminal:
            self.tell(words)
            return
        filled = BAR * done // max(total, 1)
        self.tell(f"{words} [{'#' * filled}{'.' * (BAR - filled)}] {done:,} of {total:,}")

    def end(self) -> None:
        """Leave the line."""
        if self._on_terminal and self._last:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        self._last = ""
