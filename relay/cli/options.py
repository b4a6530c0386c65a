"""Options of several commands, and the runner for asynchronous commands."""

from __future__ import annotations

import signal
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer

from relay.cli.exit_codes import Exit

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


def option(name: str, words: str, **settings: Any) -> Any:
    """Declare an option that shows no default: a flag, or one that may be left out."""
    return typer.Option(name, help=words, show_default=False, **settings)


Key = Annotated[Path | None, option("--key", "Key file of the agent.", envvar="RELAY_AGENT_KEY")]
_UNLOCK_HELP: Final = (
    "File with the passphrase of the key; else RELAY_AGENT_PASSPHRASE_FILE, else asked."
)
Passphrase = Annotated[Path | None, option("--passphrase-file", _UNLOCK_HELP)]
NewPassphrase = Annotated[
    Path | None, option("--new-passphrase-file", "File with the new passphrase.")
]
Url = Annotated[
    str, typer.Option("--relay", envvar="RELAY_URL", callback=checked, help="Origin of the relay.")
]
Json = Annotated[bool, option("--json", "One JSON object a line, for programs.")]
Take = Annotated[bool, option("--take", "Take the inbox from a relay listen on this machine.")]


def run_async(work: Coroutine[Any, Any, int | None]) -> NoReturn:
    """Run ``work`` and end the command with its exit code; SIGTERM acts as Ctrl-C."""
    import asyncio  # noqa: PLC0415  a script that asks for the version asks often

    async def guarded() -> int | None:
        task = asyncio.current_task()
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        code = asyncio.run(guarded())
    except (KeyboardInterrupt, asyncio.CancelledError):
        # typer would print "Aborted!" after Ctrl-C
        code = Exit.INTERRUPTED
    raise typer.Exit(code or Exit.OK)
