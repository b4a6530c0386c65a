"""SDKs that break one promise each; ``test_agent_controls.py`` says what the checker must find.

A mutant is the real SDK without one promise, as a plausible bug would leave it (see
``relay_mutants.py``).
"""

from __future__ import annotations

import asyncio
import contextlib

from relay.client import AgentError
from relay.client.inbox.inbox import Inbox
from relay.client.message import Message
from relay.client.outbox.sender import Sender
from relay.client.state.journal import Journal
from relay.protocol.envelope import SignedEnvelope


def _outbox_keeps_nothing() -> None:
    """Submits what is not in the outbox."""

    def keep(_: Journal, __: SignedEnvelope) -> asyncio.Future[None]:
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    Journal.add_outgoing = keep  # type: ignore[method-assign]


def _outbox_is_not_resumed() -> None:
    """Keeps what is unanswered, and never looks at it again."""

    async def resume(_: Sender) -> None:
        return

    Sender.resume = resume  # type: ignore[method-assign]


def _acks_what_it_shows() -> None:
    """Answers before the program does: at most once, called at least once."""
    honest = Inbox.next

    async def next_(self: Inbox) -> Message | None:
        message = await honest(self)
        if message is not None:
            with contextlib.suppress(AgentError):
                await self.settle(message.eid, None, wait=True)
        return message

    Inbox.next = next_  # type: ignore[method-assign]


MUTANTS = {
    "": lambda: None,
    "outbox-keeps-nothing": _outbox_keeps_nothing,
    "outbox-is-not-resumed": _outbox_is_not_resumed,
    "acks-what-it-shows": _acks_what_it_shows,
}


def become(mutant: str) -> None:
    """Take a promise out of the SDK of this process."""
    MUTANTS[mutant]()
