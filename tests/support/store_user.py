"""The user of an external store, as docs/OPERATIONS.md tells an operator to make it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from tests.support.servers import RedisServer, client

DOCUMENT = Path(__file__).parents[2] / "docs" / "OPERATIONS.md"
NAME, PASSWORD = "relay", "secret"


def documented() -> list[str]:
    """The rules of ``ACL SETUSER relay`` on that page, one a word."""
    words = DOCUMENT.read_text().partition("ACL SETUSER relay ")[2].partition("```")[0].split()
    return [word.replace("PASSWORD", PASSWORD) for word in words]


async def make_user(server: RedisServer, *more: str, name: str = NAME) -> None:
    """Make the user with the documented rules, and more."""
    async with client(server.url) as redis:
        await redis.execute_command("ACL", "SETUSER", name, "reset", *documented(), *more)


def url_of(server: RedisServer, name: str = NAME) -> str:
    """The server's URL for that user."""
    parts = urlsplit(server.url)
    at = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{name}:{PASSWORD}@{at}"))
