"""A person at a terminal: sees a prompt, types, sees what is shown."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.cli.terminal import Done, Terminal

# a child becomes the owner of the terminal, as a login shell's would
ON_IT = (
    "import fcntl, os, sys, termios\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'relay', *sys.argv[1:]])\n"
)
PATIENCE_S = 20


@dataclass
class Person:
    """Somebody who runs one command; its stdout and stderr are pipes, its terminal is not."""

    process: subprocess.Popen[bytes]
    screen: int
    keyboard: int
    seen: str = ""
    read_upto: int = field(default=0)

    def reads(self, words: str) -> None:
        """Wait until the words are on the screen, after what was read before."""
        deadline = time.monotonic() + PATIENCE_S
        while words not in self.seen[self.read_upto :]:
            left = deadline - time.monotonic()
            assert left > 0, f"{words!r} was never asked: {self.seen!r}"
            if select.select([self.screen], [], [], min(left, 0.2))[0]:
                self.seen += os.read(self.screen, 4096).decode()
            elif self.process.poll() is not None:
                raise AssertionError(f"it ended: {self.process.communicate()}")
        self.read_upto = self.seen.index(words, self.read_upto) + len(words)

    def types(self, line: str) -> None:
        os.write(self.screen, line.encode())

    def waits(self) -> Done:
        """Wait for the end of the command."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        while select.select([self.screen], [], [], 0)[0]:
            self.seen += os.read(self.screen, 4096).decode()
        assert b"Traceback" not in err, err.decode()
        return Done(self.process.returncode, out.decode(), err.decode())

    def shows_what_is_typed(self) -> bool:
        return bool(termios.tcgetattr(self.keyboard)[3] & termios.ECHO)


@contextmanager
def at_a_terminal(terminal: Terminal, *words: str, **more: str) -> Iterator[Person]:
    screen, keyboard = os.openpty()
    fcntl.fcntl(screen, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    process = subprocess.Popen(  # noqa: S603  our own interpreter
        [sys.executable, "-c", ON_IT, *words],
        stdin=keyboard,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        cwd=terminal.home,
        env=terminal.environment(**more),
    )
    try:
        yield Person(process, screen, keyboard)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
        os.close(screen)
        os.close(keyboard)
