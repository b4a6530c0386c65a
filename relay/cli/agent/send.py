"""``relay send``: submit an envelope; with ``--wait acked`` wait until it has ended.

An envelope without a definite answer stays in the agent's outbox, and the command prints its id.
Envelopes that an earlier command left there are submitted first.
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
from relay.cli.agent import locks, session
from relay.cli.agent.key import KeyFile
from relay.cli.agent.locks import Lock
from relay.cli.agent.outcome_text import OUTCOMES, tell_earlier
from relay.cli.exit_codes import Exit, exit_of
from relay.cli.output import Progress, say
from relay.cli.streams import OutputError
from relay.client import AgentError, Sent, SignedEnvelope, SigningKey, UnknownInboxError, errors
from relay.client.agent import sign
from relay.client.http.relay_api import ApiSession
from relay.client.message import MAX_OPENED_BODY_BYTES
from relay.client.outbox.outcomes import MAX_UNREPORTED, OutcomeIterator, Outcomes
from relay.client.outbox.sender import wait_ended
from relay.protocol import frames
from relay.protocol.errors import ErrorCode

PATIENCE_S: Final = 2.0
MAX_EARLIER: Final = 200
SEALING: Final = "sealing makes a body a third larger, and --plain does not"


@dataclass(frozen=True, slots=True)
class MessageDraft:
    """The content of an envelope to send."""

    to: str
    body: bytes
    content_type: str
    seal: bool
    type: str | None
    thid: str | None
    lifetime_s: int


@dataclass(frozen=True, slots=True)
class SendOptions:
    """The options of ``relay send``."""

    wait: Literal["stored", "acked"]
    deadline_s: float
    take: bool
    as_json: bool


@dataclass(frozen=True, slots=True)
class SendContext:
    """One run: the opened session, the options, and the deadline (monotonic seconds)."""

    session: session.CommandSession
    options: SendOptions
    until: float

    @property
    def as_json(self) -> bool:
        """True for a program that reads JSON."""
        return self.options.as_json

    @property
    def left_s(self) -> float:
        """The seconds to the deadline; negative after it."""
        return self.until - clock.monotonic()


async def send(file: KeyFile, url: str, draft: MessageDraft, options: SendOptions) -> Exit:
    """Send one envelope, show the receipt, and return the exit code."""
    _show_warnings(as_json=options.as_json)
    look = options.wait == "acked" and not options.take
    with session.opened(file, url, look=look) as opened:
        await _tell_outcomes(opened, as_json=options.as_json)
        context = SendContext(opened, options, clock.monotonic() + options.deadline_s)
        to = await opened.agent.handles.resolve_recipient(draft.to, options.deadline_s)
        sent = await _submit(context, _signed(opened.key, to, draft))
        if isinstance(sent, Exit):
            return sent
        try:
            if options.wait == "acked":
                return await _send_until_acked(context, sent)
            _tell_sent(sent, "stored", as_json=options.as_json)
        except OutputError as exc:
            exc.detail = f"{exc.detail}; {sent.id} is stored, only that could not be written"
            output.fail(exc, as_json=options.as_json, stored="yes")
            return exc.ends
        return Exit.OK


def _show_warnings(*, as_json: bool) -> None:
    """Show why a home of the recipient cannot be reached; never among JSON lines."""
    if as_json:
        logging.getLogger("relay.client").addHandler(logging.NullHandler())
    else:
        logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="relay: %(message)s")


def _signed(key: SigningKey, to: str, draft: MessageDraft) -> SignedEnvelope:
    try:
        return sign(
            key,
            to,
            draft.body,
            sealed=draft.seal,
            content_type=draft.content_type,
            type=draft.type,
            thid=draft.thid,
            lifetime_s=draft.lifetime_s,
            # each relay has a limit of its own and reports it
            max_body_bytes=MAX_OPENED_BODY_BYTES,
        )
    except errors.TooLargeError as exc:
        exc.detail = f"no relay takes a body of more than {MAX_OPENED_BODY_BYTES} bytes; {SEALING}"
        raise


async def _submit(context: SendContext, envelope: SignedEnvelope) -> Sent | Exit:
    mine = context.session.mine
    is_ours, earlier = await _earlier(context.session)
    try:
        return await context.session.agent.submit(
            envelope,
            deadline_s=max(0.0, context.left_s),
            earlier=earlier,
            report=lambda item, answer: _tell_earlier(item, answer, as_json=context.as_json),
        )
    except AgentError as exc:
        if isinstance(exc, UnknownInboxError) and not context.as_json:
            say("An agent gets its inbox when it first logs in: relay listen, or relay inbox.")
        if exc.stored == "no" and not (is_ours and mine.exclusive(Lock.RESENDING)):
            # another command has claimed it and may still submit it
            exc.stored = "unknown"
        _explain(exc, envelope)
        output.fail(exc, as_json=context.as_json)
        await _report_if_queued(context, envelope)
        return exit_of(exc)
    except asyncio.CancelledError:
        await _report_if_queued(context, envelope)
        raise
    finally:
        mine.release(Lock.SENDING)


def _explain(exc: AgentError, envelope: SignedEnvelope) -> None:
    """Add local knowledge to a refusal: the clock, and the cost of sealing."""
    is_over = envelope.expires_at <= clock.now()
    if exc.code is ErrorCode.NOT_YET_VALID or (exc.code is ErrorCode.EXPIRED and not is_over):
        exc.detail += "; by this machine's clock that is not so: check both clocks"
    elif exc.code is ErrorCode.TOO_LARGE:
        exc.detail += f"; {SEALING}"


async def _earlier(opened: session.CommandSession) -> tuple[bool, Sequence[SignedEnvelope]]:
    """Return unclaimed envelopes of the outbox; False: another command may claim ours."""
    is_alone = opened.mine.exclusive(Lock.SENDING)
    left = await opened.unanswered()
    if len(left) >= MAX_UNREPORTED:
        detail = f"{len(left)} envelopes without an answer are kept: relay listen submits them"
        raise errors.make_error(ErrorCode.OVERLOADED, detail, stored="no")
    is_ours = await locks.wait_for(lambda: opened.mine.shared(Lock.SENDING), PATIENCE_S)
    return is_ours, left[:MAX_EARLIER] if is_alone else []


async def _report_if_queued(context: SendContext, envelope: SignedEnvelope) -> None:
    if envelope.eid not in {item.eid for item in await context.session.unanswered()}:
        return
    if context.as_json:
        members = output.members_of(envelope, "id eid to expires_at")
        output.write_json({"kind": "kept", **members}, sys.stderr)
        return
    say(f"It is kept: the next relay send or relay listen submits the same bytes: {envelope.id}")


def _tell_earlier(envelope: SignedEnvelope, answer: Sent | AgentError, *, as_json: bool) -> None:
    if isinstance(answer, AgentError):
        tell_earlier(envelope, (answer.stored or "unknown", answer.code), as_json=as_json)
    else:
        tell_earlier(envelope, ("yes", None), as_json=as_json)


async def _tell_outcomes(opened: session.CommandSession, *, as_json: bool) -> None:
    """Report outcomes that a listener or a program has recorded and nobody has read."""
    recorded = Outcomes(opened.state.journal)
    # nothing more will come: the iteration ends with the present items
    recorded.end(errors.closed())
    async for item in OutcomeIterator(recorded):
        tell_earlier(item, (item.stored, item.code), as_json=as_json)
        await item.done()


def _tell_sent(sent: Sent, state: frames.State, *, as_json: bool) -> None:
    if as_json:
        names = "id eid to relay at durability custody expires_at dup"
        members = output.members_of(sent, names)
        output.write_json({"kind": "sent", **members, "state": state, "receipt": sent.receipt})
        return
    output.write(sent.id)
    until = output.clock_time(sent.expires_at)
    say(f"{sent.relay} has it ({sent.durability}) and keeps it until it is acked or {until}.")


async def _send_until_acked(context: SendContext, sent: Sent) -> Exit:
    if not context.as_json:
        _tell_sent(sent, "stored", as_json=False)
    progress = Progress(quiet=context.as_json)
    try:
        state = await _until_it_ends(context, sent, progress)
    except asyncio.CancelledError:
        # it has left the outbox: only this command can report the receipt
        if context.as_json:
            _tell_sent(sent, "stored", as_json=True)
        raise
    finally:
        progress.end()
    code, words = OUTCOMES[state]
    if context.as_json:
        _tell_sent(sent, state, as_json=True)
    else:
        say(words)
    return code


async def _until_it_ends(context: SendContext, sent: Sent, progress: Progress) -> frames.State:
    """Poll until it has ended; a failed query must not look like a failed send."""
    login: ApiSession | None = None

    async def status(to: str, message_id: str) -> frames.State:
        nonlocal login
        agent, key, timeout_s = context.session.agent, context.session.key, context.left_s
        login = login or await agent.login_at_holder(key, to, message_id, timeout_s=timeout_s)
        state = await login.status(to, message_id, timeout_s=timeout_s)
        progress.tell(f"It waits for {to}")
        return state

    def is_final(exc: AgentError) -> bool:
        nonlocal login
        if isinstance(exc, errors.AuthRequiredError):
            # the session is over after 15 minutes
            login = None
        elif isinstance(exc, errors.UnavailableError):
            progress.tell(f"No answer about it: {exc.detail}")
        else:
            progress.end()
            exc.detail = f"what became of it cannot be asked: {exc.detail}"
            output.fail(exc, as_json=context.as_json, stored="yes")
            return True
        return False

    return (await wait_ended(sent, status, context.until, is_final)).state
