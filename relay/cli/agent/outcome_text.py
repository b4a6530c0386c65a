"""What became of an envelope, in words and as exit codes; and who may ask without harm."""

from __future__ import annotations

from typing import Final, Literal

from relay.cli.agent.locks import (
    Claims,
    Place,
)
from relay.cli.exit_codes import (
    Exit,
    LocalError,
)
from relay.cli.output import notify, sync, write_json
from relay.client import SignedEnvelope
from relay.client.outbox.outcomes import OutcomeValues
from relay.protocol import frames
from relay.protocol.errors import ErrorCode

Answer = tuple[Literal["yes", "no", "unknown"], ErrorCode | None]
"""Whether it was stored, and why not."""

LASTING: Final = frozenset({"stored", "forwarded", "moved"})
"""States that may still become another one."""

WORDS: Final[dict[frames.State, str]] = {
    "stored": "It waits in the recipient's inbox; it is not acked yet.",
    "forwarded": "It is on its way to another relay; it is not acked yet.",
    "moved": "The recipient's inbox has moved; it is not acked yet.",
    "acked": "The recipient has processed it.",
    "refused": "The recipient refused it; a bounce in your inbox says why.",
    "expired": "Nobody acked it in time.",
    "corrupt": "The relay's store damaged it; a bounce says so.",
    "unknown": "Not known here: never stored, not yours, or so old that it was forgotten.",
}

EXIT_OF: Final[dict[frames.State, Exit]] = {
    "stored": Exit.WAITING,
    "forwarded": Exit.WAITING,
    "moved": Exit.WAITING,
    "acked": Exit.OK,
    "refused": Exit.REFUSED,
    "expired": Exit.REFUSED,
    "corrupt": Exit.REFUSED,
    "unknown": Exit.UNKNOWN,
}


def tell_earlier(item: SignedEnvelope | OutcomeValues, answer: Answer, *, as_json: bool) -> None:
    """Say what became of an envelope whose own command could not say it; it may be forgotten then.

    Raises:
        OutputError: that could not be written.
    """
    stored, error = answer
    if as_json:
        members = {"id": item.id, "eid": item.eid, "to": item.to}
        write_json({"kind": "earlier", **members, "stored": stored, "error": error})
    else:
        notify(f"Sent before and not answered then: {item.id} to {item.to}: {_outcome(answer)}.")
    sync()


def _outcome(answer: Answer) -> str:
    stored, error = answer
    outcome = "the relay has it"
    if error is not None:
        kept = "it was not stored" if stored == "no" else "it may have been stored"
        outcome = f"{error}; {kept}"
    return outcome


def is_listening(mine: Claims) -> bool:
    """Whether an agent on this machine has the inbox: ``relay listen``, or one with the SDK."""
    if mine.has_agent or not mine.alone(Place.LISTENING):
        return True
    mine.let_go(Place.LISTENING)
    return False


def refuse_if_listening(mine: Claims, *, hint: str = "") -> None:
    """Who logs in takes the inbox: leave it to who listens.

    Args:
        mine: says whether somebody does.
        hint: a sentence on what else can be done.

    Raises:
        LocalError: somebody does.
    """
    if is_listening(mine):
        detail = "this agent runs on this machine (relay listen?), and its session would end. "
        detail += f"Stop it, or say --take. {hint}Nothing was sent or changed."
        raise LocalError(detail, Exit.REFUSED)
