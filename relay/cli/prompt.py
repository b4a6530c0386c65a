"""Passphrases: from a file, a variable or a terminal, never from an argument.

A passphrase is never written or echoed.
"""

from __future__ import annotations

import getpass
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import typer

from relay.cli.exit_codes import Exit, LocalError

FILE_VARIABLE: Final = "RELAY_AGENT_PASSPHRASE_FILE"
VARIABLE: Final = "RELAY_AGENT_PASSPHRASE"
_MAX_BYTES: Final = 4096
_INSTEAD: Final = f"--passphrase-file, or set {FILE_VARIABLE}"


def given(named: Path | None) -> str | None:
    """Return the passphrase of a file or a variable, or None; an empty variable counts as unset.

    The file ``named`` by an option overrides both variables. Errors are those of :func:`of_file`.
    """
    mine = os.environ  # noqa: TID251  an agent's: relay.settings reads a node's, with pydantic
    if named is not None:
        return of_file(named)
    if file := mine.get(FILE_VARIABLE):
        return of_file(Path(file))
    return mine.get(VARIABLE) or None


def of_file(file: Path) -> str:
    """Return the one line of a file or a pipe.

    Raises:
        LocalError: it cannot be read, or is not one line of UTF-8.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
    except OSError as exc:
        detail = f"cannot read the passphrase in {file}: {exc.strerror}"
        raise LocalError(detail, Exit.LOCKED) from exc
    # the caller refuses what is not UTF-8; a UnicodeError would contain the passphrase
    text = content.decode(errors="surrogateescape").removesuffix("\n").removesuffix("\r")
    if not text or "\n" in text or len(content) > _MAX_BYTES:
        raise LocalError(f"{file} must hold one line, the passphrase", Exit.LOCKED)
    return text


def ask(prompt: str, instead: str = _INSTEAD) -> str:
    """Ask a person without echo; ``instead`` is the alternative to name without a terminal.

    Raises:
        LocalError: there is no terminal, or the input is empty.
        Exit: interrupted.
    """
    try:
        with _interruptible(), warnings.catch_warnings():
            # getpass would continue and echo the input
            warnings.simplefilter("error", getpass.GetPassWarning)
            typed = getpass.getpass(prompt)
    except (getpass.GetPassWarning, EOFError):
        detail = f"a passphrase is needed, and there is no terminal to ask at: name {instead}"
        raise LocalError(detail, Exit.LOCKED) from None
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None
    if not typed:
        raise LocalError("no passphrase was given", Exit.LOCKED)
    return typed


def ask_new(instead: str = _INSTEAD) -> str:
    """Ask for a new passphrase, twice; arguments and errors as for :func:`ask`."""
    chosen = ask("New passphrase: ", instead)
    if ask("The same again: ", instead) != chosen:
        raise LocalError("these were two different passphrases; nothing was changed", Exit.LOCKED)
    return chosen


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end a prompt at once, even under an event loop."""
    ours = (signal.SIGINT, signal.SIGTERM)
    # the loop's handlers cancel a task, but a terminal read ignores that
    before = [signal.signal(number, signal.default_int_handler) for number in ours]
    try:
        yield
    finally:
        for number, handler in zip(ours, before, strict=True):
            signal.signal(number, handler)
