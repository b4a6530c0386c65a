"""The key, state and locks of one command, unless an agent on this machine has the inbox."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from relay.cli.agent import locks
from relay.cli.agent.key import KeyFile
from relay.cli.exit_codes import Exit, LocalError
from relay.client import SignedEnvelope, SigningKey
from relay.client.http import origin as origins
from relay.client.http.relay_api import ApiSession, RelayApi
from relay.client.sessionless import SessionlessAgent
from relay.client.state import agent_state as states


@dataclass(frozen=True, slots=True)
class CommandSession:
    """The key, state and locks of one run of a command; made by :func:`opened`."""

    key: SigningKey
    agent: SessionlessAgent
    mine: locks.AgentLocks

    @property
    def state(self) -> states.AgentState:
        """The state of the agent."""
        return self.agent.state

    async def login(self) -> ApiSession:
        """Log in at the agent's relay."""
        return await RelayApi(self.agent.origin).login(self.key, self.state)

    async def unanswered(self) -> list[SignedEnvelope]:
        """Return the envelopes in the outbox."""
        journal = self.state.journal
        return [] if journal is None else await journal.outgoing()


@contextmanager
def opened(
    file: KeyFile, url: str, *, look: bool, refuse: bool = True, hint: str = ""
) -> Iterator[CommandSession]:
    """Open a key file, its locks and its state.

    Args:
        file: whose inbox.
        url: the relay.
        look: check whether an agent on this machine has the inbox.
        refuse: raise an error if it has: a login would supersede its session.
        hint: a sentence with an alternative, for that error.

    Raises:
        LocalError: such an agent is running.
    """
    key = file.load()
    with locks.opened(file.state, look=look) as mine, states.opened(file.state, key.did) as state:
        if look and refuse and mine.is_listening():
            detail = "this agent runs on this machine (relay listen?), and its session would end. "
            detail += f"Stop it, or say --take. {hint}Nothing was sent or changed."
            raise LocalError(detail, Exit.REFUSED)
        yield CommandSession(key, SessionlessAgent(origins.parse(url), state), mine)
