"""How a command asks its relay: over HTTP, unless an agent of this machine has the inbox."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from relay.cli import claims
from relay.cli.identity import KeyFile
from relay.cli.states import refuse_if_listening
from relay.client import origin as origins
from relay.client import state as states
from relay.client.visit import Visit, log_in


@asynccontextmanager
async def visiting(
    file: KeyFile, url: str, *, take: bool
) -> AsyncIterator[tuple[Visit, states.State]]:
    """Log in with a key file, and open its state.

    Args:
        file: whose inbox.
        url: the relay.
        take: also where an agent that runs on this machine loses its session by it.

    Raises:
        Exit: such an agent runs.
        AgentError: unreachable, or the login does not hold.
    """
    key = file.load()
    with (
        claims.opened(file.state, look=not take) as mine,
        states.opened(file.state, key.did) as state,
    ):
        if not take:
            refuse_if_listening(mine)
        yield await log_in(key, origins.parse(url), state), state
