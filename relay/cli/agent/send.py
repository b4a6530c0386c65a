"""``relay send``: into the outbox, to the relay, and with ``--wait acked`` until it has ended.

Rules of the file: what may be stored and is not definitely answered stays in the agent's outbox,
and its sender is told so with the id. What an earlier command left there goes first.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from relay import clock
from relay.cli import output
from relay.cli.agent import locks
from relay.cli.agent.key import KeyFile
from relay.cli.agent.locks import (
    Claims,
    Place,
)
from relay.cli.agent.outcome_text import (
    EXIT_OF,
    LASTING,
    WORDS,
    refuse_if_listening,
    tell_earlier,
)
from relay.cli.exit_codes import (
    Exit,
    exit_of,
)
from relay.cli.output import clock_time, say, write, write_json
from relay.cli.progress import Progress
from relay.cli.streams import OutputError
from relay.client import AgentError, Sent, SignedEnvelope, SigningKey, UnknownInboxError
from relay.client.agent import sign
from relay.client.errors import AuthRequiredError, TooLargeError, UnavailableError, closed, typed
from relay.client.http import origin as origins
from relay.client.http.relay_api import HttpSession
from relay.client.outbox.errand import Errand
from relay.client.outbox.outcomes import (
    MOST_KEPT,
    Outcomes,
    Telling,
)
from relay.client.outbox.post import post
from relay.client.state import agent_state as states
from relay.protocol import frames
from relay.protocol.errors import ErrorCode

PATIENCE_S: Final = 2.0
MOST_EARLIER: Final = 200
FIRST_LOOK_S: Final = 0.05
LONGEST_LOOK_S: Final = 2.0
MOST_BODY_BYTES: Final = 1024 * 1024
"""What an operator may set at most (PROTOCOL.md §3.4)."""
SEALING: Final = "sealing makes a body a third larger, and --plain does not"


@dataclass(frozen=True, slots=True)
class Letter:
    """What ``relay send`` is asked to send."""

    to: str
    body: bytes
    content_type: str
    seal: bool
    type: str | None
    thid: str | None
    lifetime_s: int


@dataclass(frozen=True, slots=True)
class Wish:
    """How ``relay send`` is asked to do it."""

    wait: Literal["stored", "acked"]
    deadline_s: float
    take: bool
    as_json: bool


@dataclass(frozen=True, slots=True)
class _Desk:
    """What one run works with."""

    key: SigningKey
    errand: Errand
    state: states.State
    mine: Claims
    wish: Wish


async def send(file: KeyFile, url: str, letter: Letter, wish: Wish) -> Exit:
    """Send one envelope and show the receipt; gives the exit code."""
    key = file.load()
    _show_warnings(as_json=wish.as_json)
    look = wish.wait == "acked" and not wish.take
    with (
        locks.opened(file.state, look=look) as mine,
        states.opened(file.state, key.did) as state,
    ):
        if look:
            refuse_if_listening(mine)
        desk = _Desk(key, Errand(origins.parse(url), state), state, mine, wish)
        await _tell_outcomes(desk)
        until = clock.monotonic() + wish.deadline_s
        to = await desk.errand.handles.did_of(letter.to, wish.deadline_s)
        sent = await _submit(desk, _signed(key, to, letter), until)
        if isinstance(sent, Exit):
            return sent
        try:
            if wish.wait == "acked":
                return await _see_through(desk, sent, until)
            _tell_sent(sent, "stored", as_json=wish.as_json)
        except OutputError as exc:
            exc.detail = f"{exc.detail}; {sent.id} is stored, only that could not be written"
            output.fail(exc, as_json=wish.as_json, stored="yes")
            return exc.ends
        return Exit.OK


def _show_warnings(*, as_json: bool) -> None:
    """Why a home of the recipient is not dialled, or does not answer; never among JSON lines."""
    if as_json:
        logging.getLogger("relay.client").addHandler(logging.NullHandler())
    else:
        logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="relay: %(message)s")


def _signed(key: SigningKey, to: str, letter: Letter) -> SignedEnvelope:
    try:
        return sign(
            key,
            to,
            letter.body,
            sealed=letter.seal,
            content_type=letter.content_type,
            type=letter.type,
            thid=letter.thid,
            lifetime_s=letter.lifetime_s,
            # each relay has a limit of its own, and says so where this is over it
            max_body_bytes=MOST_BODY_BYTES,
        )
    except TooLargeError as exc:
        exc.detail = f"no relay takes a body of more than {MOST_BODY_BYTES} bytes; {SEALING}"
        raise


async def _submit(desk: _Desk, envelope: SignedEnvelope, until: float) -> Sent | Exit:
    as_json = desk.wish.as_json
    is_ours, earlier = await _earlier(desk)
    try:
        return await post(
            envelope,
            desk.errand,
            deadline_s=max(0.0, until - clock.monotonic()),
            earlier=earlier,
            tell=lambda item, answer: _tell_earlier(item, answer, as_json=as_json),
        )
    except AgentError as exc:
        if isinstance(exc, UnknownInboxError) and not as_json:
            say("An agent gets its inbox when it first logs in: relay listen, or relay inbox.")
        if exc.stored == "no" and not (is_ours and desk.mine.alone(Place.RESENDING)):
            # another command took it up meanwhile, and may submit it after this answer
            exc.stored = "unknown"
        _explain(exc, envelope)
        output.fail(exc, as_json=as_json)
        await _tell_if_kept(desk, envelope)
        return exit_of(exc)
    except asyncio.CancelledError:
        await _tell_if_kept(desk, envelope)
        raise
    finally:
        desk.mine.let_go(Place.SENDING)


def _explain(exc: AgentError, envelope: SignedEnvelope) -> None:
    """Add to a refusal what this machine knows, and the relay does not."""
    is_over = envelope.expires_at <= clock.now()
    if exc.code is ErrorCode.NOT_YET_VALID or (exc.code is ErrorCode.EXPIRED and not is_over):
        exc.detail += "; by this machine's clock that is not so: check both clocks"
    elif exc.code is ErrorCode.TOO_LARGE:
        exc.detail += f"; {SEALING}"


async def _earlier(desk: _Desk) -> tuple[bool, Sequence[SignedEnvelope]]:
    """What lies in the outbox and belongs to nobody; False: ours may be taken for such."""
    is_alone = desk.mine.alone(Place.SENDING)
    left = await desk.state.journal.unanswered() if desk.state.journal is not None else []
    if len(left) >= MOST_KEPT:
        detail = f"{len(left)} envelopes without an answer are kept: relay listen submits them"
        raise typed(ErrorCode.OVERLOADED, detail, stored="no")
    earlier = left[:MOST_EARLIER] if is_alone else []
    is_ours = await locks.wait_for(lambda: desk.mine.share(Place.SENDING), PATIENCE_S)
    return is_ours, earlier


async def _tell_if_kept(desk: _Desk, envelope: SignedEnvelope) -> None:
    if desk.state.journal is None:
        return
    if envelope.eid not in {item.eid for item in await desk.state.journal.unanswered()}:
        return
    if desk.wish.as_json:
        members = {"id": envelope.id, "eid": envelope.eid, "to": envelope.to}
        output.say_json({"kind": "kept", **members, "expires_at": envelope.expires_at})
        return
    say(f"It is kept: the next relay send or relay listen submits the same bytes: {envelope.id}")


def _tell_earlier(envelope: SignedEnvelope, answer: Sent | AgentError, *, as_json: bool) -> None:
    if isinstance(answer, AgentError):
        tell_earlier(envelope, (answer.stored or "unknown", answer.code), as_json=as_json)
    else:
        tell_earlier(envelope, ("yes", None), as_json=as_json)


async def _tell_outcomes(desk: _Desk) -> None:
    """What a listener, or a program, has found out and told nobody yet."""
    kept = Outcomes(desk.state.journal)
    # nothing more will come: the iteration ends with what is there
    kept.end(closed())
    async for item in Telling(kept):
        tell_earlier(item, (item.stored, item.code), as_json=desk.wish.as_json)
        await item.done()


def _tell_sent(sent: Sent, state: frames.State, *, as_json: bool) -> None:
    if as_json:
        names = ("id", "eid", "to", "relay", "at", "durability", "custody", "expires_at", "dup")
        members = {name: getattr(sent, name) for name in names}
        write_json({"kind": "sent", **members, "state": state, "receipt": sent.receipt})
        return
    write(sent.id)
    until = clock_time(sent.expires_at)
    say(f"{sent.relay} has it ({sent.durability}) and keeps it until it is acked or {until}.")


# ---------------------------------------------------------------- until it is acked


async def _see_through(desk: _Desk, sent: Sent, until: float) -> Exit:
    as_json = desk.wish.as_json
    if not as_json:
        _tell_sent(sent, "stored", as_json=False)
    progress = Progress(quiet=as_json)
    try:
        state = await _until_it_ends(desk, sent, until, progress)
    except asyncio.CancelledError:
        # it has left the outbox: nobody else says that there is a receipt, and of what
        if as_json:
            _tell_sent(sent, "stored", as_json=True)
        raise
    finally:
        progress.end()
    if as_json:
        _tell_sent(sent, state, as_json=True)
    else:
        say(WORDS[state])
    return EXIT_OF[state]


async def _until_it_ends(desk: _Desk, sent: Sent, until: float, progress: Progress) -> frames.State:
    """Ask until it has ended; no failure of a question may look like a failure of the send."""
    visit: HttpSession | None = None
    state: frames.State = "stored"
    pause = FIRST_LOOK_S
    while True:
        left = until - clock.monotonic()
        try:
            visit = visit or await desk.errand.visit(desk.key, sent.to, sent.id, seconds=left)
            state = await visit.status(sent.to, sent.id, timeout_s=left)
            progress.tell(f"It waits for {sent.to}")
        except UnavailableError as exc:
            progress.tell(f"No answer about it: {exc.detail}")
        except AuthRequiredError:
            # the session is over after 15 minutes
            visit = None
        except AgentError as exc:
            progress.end()
            exc.detail = f"what became of it cannot be asked: {exc.detail}"
            output.fail(exc, as_json=desk.wish.as_json, stored="yes")
            return state
        left = until - clock.monotonic()
        if state not in LASTING or left <= 0:
            return state
        await asyncio.sleep(min(pause, left))
        pause = min(pause * 2, LONGEST_LOOK_S)
