"""One server process: started so that it outlives Ctrl-C but not the relay, and waited for.

Rules:

- own process group: a Ctrl-C in the relay's terminal reaches the relay alone, which drains first;
- forked in the thread of the event loop: the kernel's parent-death signal fires when the *thread*
  that forked ends, and that thread lives exactly as long as the supervision;
- signals go to a child that is not yet reaped, so never to a stranger with a recycled pid;
- waiting costs nothing: the kernel reports the end through a pidfd, polling is the fallback.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_LAUNCHER: Final = Path(__file__).with_name("launcher.py").read_text(encoding="utf-8")
"""Read now: a store that is started again later is started by this version."""
_POLL_S: Final = 0.05
_KILL_S: Final = 5.0
"""How long a killed process may take to be gone: one stuck in a dying disk may take for ever."""


def dying_with_us(command: Sequence[str]) -> list[str]:
    """A command that becomes ``command`` and gets SIGTERM when this process dies (Linux only).

    Start it in a thread that lives as long as the child may: the kernel sends the signal when the
    thread ends that forked.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]


class ServerProcess:
    """A running, or just ended, child of ours."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self._ended = asyncio.Event()
        self._pidfd = _watch(child.pid)
        if self._pidfd is not None:
            asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    @classmethod
    def spawn(
        cls, binary: Path, arguments: Sequence[str], *, directory: Path, lock: int, log: int
    ) -> ServerProcess:
        """Start ``binary``; ``lock`` stays open in it for as long as it lives.

        Raises:
            OSError: no process can be made now.
        """
        child = subprocess.Popen(  # noqa: S603  our own argument list, no shell
            dying_with_us([str(binary), *arguments]),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=directory,
            env={"LC_ALL": "C"},  # an odd locale of the operator's must not reach the server
            pass_fds=(lock,),
            process_group=0,
            umask=0o077,
        )
        return cls(child)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._child.poll()

    async def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for its end, at most ``timeout_s`` seconds; returns :attr:`status`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._child.poll() is None:
                    if self._pidfd is None:
                        await asyncio.sleep(_POLL_S)
                    else:
                        await self._ended.wait()
        return self.status

    async def end(self, patience_s: float) -> None:
        """Ask it to end, and after ``patience_s`` seconds make it; returns when it is gone."""
        try:
            self._child.terminate()
            await self.wait(patience_s)
        finally:  # cancelled while waiting, too: nothing of ours may stay behind
            if self._child.poll() is None:
                self._child.kill()
                await self.wait(_KILL_S)
            self._unwatch()

    def _reap(self) -> None:
        if self._child.poll() is not None:
            self._unwatch()

    def _unwatch(self) -> None:
        self._ended.set()
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None


def _watch(pid: int) -> int | None:
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:  # a sandbox that does not know the call
        return None
