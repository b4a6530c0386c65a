"""Outcomes of an envelope as words and exit codes."""

from __future__ import annotations

from typing import Final, Literal

from relay.cli.exit_codes import Exit
from relay.cli.output import members_of, notify, sync, write_json
from relay.client import SignedEnvelope
from relay.client.outbox.outcomes import OutcomeValues
from relay.protocol import frames
from relay.protocol.errors import ErrorCode

Answer = tuple[Literal["yes", "no", "unknown"], ErrorCode | None]
"""The answer to "was it stored?", and the error code if not."""

OUTCOMES: Final[dict[frames.State, tuple[Exit, str]]] = {
    "stored": (Exit.WAITING, "It waits in the recipient's inbox; it is not acked yet."),
    "forwarded": (Exit.WAITING, "It is on its way to another relay; it is not acked yet."),
    "moved": (Exit.WAITING, "The recipient's inbox has moved; it is not acked yet."),
    "acked": (Exit.OK, "The recipient has processed it."),
    "refused": (Exit.REFUSED, "The recipient refused it; a bounce in your inbox says why."),
    "expired": (Exit.REFUSED, "Nobody acked it in time."),
    "corrupt": (Exit.REFUSED, "The relay's store damaged it; a bounce says so."),
    "unknown": (
        Exit.UNKNOWN,
        "Not known here: never stored, not yours, or so old that it was forgotten.",
    ),
}
"""The exit code and the words of each state of an envelope."""


def tell_earlier(item: SignedEnvelope | OutcomeValues, answer: Answer, *, as_json: bool) -> None:
    """Report the outcome of an envelope whose own command could not; it may be deleted then."""
    stored, error = answer
    if as_json:
        members = members_of(item, "id eid to")
        write_json({"kind": "earlier", **members, "stored": stored, "error": error})
    else:
        outcome = "the relay has it"
        if error is not None:
            was_stored = "it was not stored" if stored == "no" else "it may have been stored"
            outcome = f"{error}; {was_stored}"
        notify(f"Sent before and not answered then: {item.id} to {item.to}: {outcome}.")
    sync()
