"""Outcomes of an envelope as words and exit codes."""

from __future__ import annotations

from typing import Final, Literal

from relay.cli.exit_codes import Exit
from relay.cli.output import notify, sync, write_json
from relay.client import SignedEnvelope
from relay.client.outbox.outcomes import OutcomeValues
from relay.protocol import frames
from relay.protocol.errors import ErrorCode

Answer = tuple[Literal["yes", "no", "unknown"], ErrorCode | None]
"""The answer to "was it stored?", and the error code if not."""

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
    """Report the outcome of an envelope whose own command could not; it may be deleted then."""
    stored, error = answer
    if as_json:
        members = {"id": item.id, "eid": item.eid, "to": item.to}
        write_json({"kind": "earlier", **members, "stored": stored, "error": error})
    else:
        outcome = "the relay has it"
        if error is not None:
            was_stored = "it was not stored" if stored == "no" else "it may have been stored"
            outcome = f"{error}; {was_stored}"
        notify(f"Sent before and not answered then: {item.id} to {item.to}: {outcome}.")
    sync()
