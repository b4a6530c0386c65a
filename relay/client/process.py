"""Checks that an agent is used in its own process, with real threads.

A forked child has a copy of the agent, but its threads and connections are the parent's. Every call
in the child raises an error at once, and closing changes nothing.
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
        """True if this is that process."""
        return os.getpid() == self.pid

    def check(self) -> None:
        """Refuse a call in a forked child.

        Raises:
            WrongStateError: this is another process.
        """
        if not self.is_here:
            detail = f"this agent was opened in process {self.pid}: open one in this process"
            raise WrongStateError(ErrorCode.WRONG_STATE, detail)


def not_pickled(reason: str) -> Callable[[object], str]:
    """Return a ``__reduce__`` that raises, for objects with connections and keys."""

    def refuse(_: object) -> str:
        raise TypeError(reason)

    return refuse


def refuse_green_threads() -> None:
    """Refuse green threads: an event loop in one stops all others, and a wait for it never ends.

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
