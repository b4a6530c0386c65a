"""Which process an agent lives in, what does not leave it, and whether its threads are real.

Rules of the file: a forked child has a copy of the agent, whose threads and connections are its
parent's. Every call there ends with an error at once, and closing touches nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from relay.client.errors import WrongStateError
from relay.protocol.errors import ErrorCode


@dataclass(frozen=True, slots=True)
class Owner:
    """The process in which something was made."""

    pid: int = field(default_factory=os.getpid)

    @property
    def is_here(self) -> bool:
        """Whether this is that process."""
        return os.getpid() == self.pid

    def check(self) -> None:
        """Refuse to go on in a forked child.

        Raises:
            WrongStateError: this is another process.
        """
        if not self.is_here:
            detail = f"this agent was opened in process {self.pid}: open one in this process"
            raise WrongStateError(ErrorCode.WRONG_STATE, detail)


def not_pickled(why: str) -> Callable[[object], str]:
    """A ``__reduce__`` that says what to do instead: for what holds connections and keys."""

    def refuse(_: object) -> str:
        raise TypeError(why)

    return refuse


def refuse_green_threads() -> None:
    """An event loop in a green thread would stop all others, and a wait for it would never end.

    Raises:
        RuntimeError: gevent or eventlet has replaced the threads of this process.
    """
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    name = ""
    if gevent is not None and gevent.is_module_patched("threading"):
        name = "gevent"
    elif eventlet is not None and eventlet.is_monkey_patched("thread"):
        name = "eventlet"
    if name:
        detail = f"relay.client.sync needs real threads, and {name} has replaced them"
        raise RuntimeError(f"{detail}: open the agent in a process of its own, without {name}")
