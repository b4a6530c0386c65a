"""A port that answers nothing at all, not even to a connection, as behind a firewall that drops."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

FILLERS = 4


@contextlib.contextmanager
def mute_port(host: str, port: int) -> Iterator[None]:
    """Nobody accepts and the queue is full, so the kernel leaves whoever connects waiting."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((host, port), backlog=0))
        for _ in range(FILLERS):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield
