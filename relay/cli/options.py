"""Options of several commands, and the runner for asynchronous commands."""

from __future__ import annotations

import signal
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer

from relay.cli.exit_codes import Exit

T = TypeVar("T")

DEFAULT_URL: Final = "http://127.0.0.1:8080"
EVERYWHERE: Final = ("0.0.0.0/0", "::/0")
"""All networks: the admin side has no TLS and is on loopback or a private network."""


def checked(url: str) -> str:
    """Return ``url`` if it is the origin of a relay, else raise BadParameter."""
    return _checked(url)


def checked_admin(url: str) -> str:
    """Return ``url`` if it can be a node's admin side, which speaks plain HTTP."""
    return _checked(url, EVERYWHERE)


def _checked(url: str, insecure_networks: Sequence[str] = ()) -> str:
    from relay.client.http import origin  # noqa: PLC0415  takes a quarter of a second to import

    try:
        origin.parse(url, insecure_networks=insecure_networks)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc
    return url


Key = Annotated[
    Path | None,
    typer.Option(
        "--key", envvar="RELAY_AGENT_KEY", help="Key file of the agent.", show_default=False
    ),
]
Passphrase = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        help="File with the passphrase of the key; else RELAY_AGENT_PASSPHRASE_FILE, else asked.",
        show_default=False,
    ),
]
NewPassphrase = Annotated[
    Path | None,
    typer.Option("--new-passphrase-file", help="File with the new passphrase.", show_default=False),
]
Url = Annotated[
    str, typer.Option("--relay", envvar="RELAY_URL", callback=checked, help="Origin of the relay.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]
Take = Annotated[
    bool, typer.Option("--take", help="Take the inbox from a relay listen on this machine.")
]


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` until it ends or is interrupted; SIGTERM acts as Ctrl-C."""
    import asyncio  # noqa: PLC0415  a script that asks for the version asks often

    async def guarded() -> T:
        task = asyncio.current_task()
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        return asyncio.run(guarded())
    except (KeyboardInterrupt, asyncio.CancelledError):
        # typer would print "Aborted!" after Ctrl-C
        raise typer.Exit(Exit.INTERRUPTED) from None
