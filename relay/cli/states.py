"""What became of an envelope, in words and as exit codes; and who may ask without harm."""

from __future__ import annotations

from typing import Final

import typer

from relay.cli.claims import Claims, Place
from relay.cli.exits import Exit
from relay.cli.output import say
from relay.core.frames import State

LASTING: Final = frozenset({"stored", "forwarded", "moved"})
"""States that may still become another one."""

WORDS: Final[dict[State, str]] = {
    "stored": "It waits in the recipient's inbox; it is not acked yet.",
    "forwarded": "It is on its way to another relay; it is not acked yet.",
    "moved": "The recipient's inbox has moved; it is not acked yet.",
    "acked": "The recipient has processed it.",
    "refused": "The recipient refused it; a bounce in your inbox says why.",
    "expired": "Nobody acked it in time.",
    "corrupt": "The relay's store damaged it; a bounce says so.",
    "unknown": "Not known here: never stored, not yours, or so old that it was forgotten.",
}

EXIT_OF: Final[dict[State, Exit]] = {
    "stored": Exit.WAITING,
    "forwarded": Exit.WAITING,
    "moved": Exit.WAITING,
    "acked": Exit.OK,
    "refused": Exit.REFUSED,
    "expired": Exit.REFUSED,
    "corrupt": Exit.REFUSED,
    "unknown": Exit.UNKNOWN,
}


def is_listening(mine: Claims) -> bool:
    """Whether a ``relay listen`` on this machine has the inbox."""
    if not mine.alone(Place.LISTENING):
        return True
    mine.let_go(Place.LISTENING)
    return False


def refuse_if_listening(mine: Claims) -> None:
    """Who logs in takes the inbox: leave it to who listens.

    Raises:
        Exit: somebody does.
    """
    if is_listening(mine):
        say(
            "relay: a relay listen on this machine has this agent's inbox, and asking would end it."
        )
        say("Stop it, or say --take. Nothing was sent or changed.")
        raise typer.Exit(Exit.REFUSED)
