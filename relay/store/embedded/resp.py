"""One question to a server over its unix socket, without a client library.

Rules: one connection per question, one deadline over all of it; replies of the first level only
(no arrays). The supervisor must not depend on the client that serves inboxes: it asks a server
that is loading, dying, or not ours.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

LOADING: Final = "-LOADING"
PONG: Final = "+PONG"


async def ask(socket: Path, *words: str, timeout_s: float) -> str | None:
    """Send one command and return its reply; a status or error keeps its first character.

    Returns:
        The reply, or None if nobody answered within ``timeout_s`` seconds.
    """
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                writer.write(_encode(words))
                return await _reply(reader)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return None


def _encode(words: tuple[str, ...]) -> bytes:
    encoded = [word.encode() for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in encoded)


async def _reply(reader: asyncio.StreamReader) -> str:
    line = (await reader.readuntil(b"\r\n"))[:-2]
    if line.startswith(b"$"):
        bulk = await reader.readexactly(int(line[1:]) + 2)
        return bulk[:-2].decode()
    return line.decode()
