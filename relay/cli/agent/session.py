"""Sessions of a command over HTTP, unless an agent on this machine has the inbox."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from relay.cli.agent import locks
from relay.cli.agent.key import KeyFile
from relay.cli.agent.outcome_text import refuse_if_listening
from relay.client import SigningKey
from relay.client.http import origin as origins
from relay.client.http.relay_api import ApiSession, RelayApi
from relay.client.sessionless import SessionlessAgent
from relay.client.state import agent_state as states


@asynccontextmanager
async def visiting(
    file: KeyFile, url: str, *, take: bool
) -> AsyncIterator[tuple[ApiSession, states.AgentState]]:
    """Log in with a key file, and open its state; arguments as for :func:`asking`.

    Raises:
        LocalError: as :func:`asking`.
        AgentError: unreachable, or the login does not hold.
    """
    async with asking(file, url, take=take) as (key, agent):
        yield await RelayApi(agent.origin).login(key, agent.state), agent.state


@asynccontextmanager
async def asking(
    file: KeyFile, url: str, *, take: bool
) -> AsyncIterator[tuple[SigningKey, SessionlessAgent]]:
    """Open a key file and its state, for a login on demand.

    Args:
        file: whose inbox.
        url: the relay.
        take: also if this supersedes an agent that runs on this machine.

    Raises:
        LocalError: such an agent is running.
    """
    key = file.load()
    with (
        locks.opened(file.state, look=not take) as mine,
        states.opened(file.state, key.did) as state,
    ):
        if not take:
            refuse_if_listening(mine)
        yield key, SessionlessAgent(origins.parse(url), state)
