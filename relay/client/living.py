"""The beginning and the end of an agent's life in a program, and how its inbox is iterated."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from relay.client._util import in_thread
from relay.client.errors import again, closed, typed
from relay.client.http.origin import parse
from relay.client.identity import key_file
from relay.client.inbox.inbox import Inbox
from relay.client.message import Message
from relay.client.outbox.sender import Submissions
from relay.client.session.pool import Sessions
from relay.client.state import agent_state as states
from relay.protocol.did import SigningKey
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import Did

FLUSH_S: Final = 1.0


class Messages(AsyncIterator[Message]):
    """Iterates an inbox. No generator: that would hold the message which the program let go."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    async def __anext__(self) -> Message:
        message = await self._inbox.next()
        if message is None:
            raise StopAsyncIteration
        return message


@asynccontextmanager
async def living(
    key: SigningKey | Path | str,
    relays: str | Sequence[str],
    state: str | os.PathLike[str] | None,
    insecure_networks: Sequence[str],
    seconds: float,
) -> AsyncIterator[tuple[Sessions, Submissions]]:
    """The life of an agent; arguments and errors as for :meth:`relay.client.Agent.open`."""
    signing = key if isinstance(key, SigningKey) else key_file.load(Path(key))
    named = [relays] if isinstance(relays, str) else list(relays)
    if not named:
        raise ValueError("name at least one relay")
    origins = [parse(url, insecure_networks=insecure_networks) for url in named]
    failure: BaseException | None = None
    path = None if state is None else Path(state)
    async with remembering(path, signing.did) as kept, asyncio.TaskGroup() as tasks:
        sessions = Sessions(signing, origins, kept, insecure_networks)
        submissions = Submissions(sessions)
        await submissions.resume()
        runner = tasks.create_task(sessions.run(), name=f"conversations of {signing.did}")
        try:
            await first_login(sessions, seconds)
            yield sessions, submissions
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001
            # raised again below: from here it would come out wrapped in an exception group
            failure = exc
        finally:
            await close(sessions, runner)
    if failure is not None:
        raise failure


@asynccontextmanager
async def remembering(path: Path | None, did: Did) -> AsyncIterator[states.AgentState]:
    """The state of an agent; a file is opened and closed in a thread, since both touch the disk."""
    if path is None:
        yield states.in_memory()
        return
    state = await asyncio.wrap_future(in_thread(partial(states.load, path, did)))
    try:
        yield state
    finally:
        # what was asked for must be noted, even if the program is being cancelled
        await asyncio.shield(asyncio.wrap_future(in_thread(state.close, must_end=True)))


async def first_login(sessions: Sessions, seconds: float) -> None:
    """Wait for it; while the agent changes relays there may be none for now.

    Raises:
        AgentError: it does not hold in time.
    """
    try:
        async with asyncio.timeout(seconds):
            await sessions.opened()
    except TimeoutError as exc:
        if sessions.migrations.pending is not None:
            return
        last = sessions.last_failure
        if last is not None:
            raise again(last) from exc
        where = ", ".join(str(one.origin) for one in sessions.conversations)
        raise typed(ErrorCode.PEER_UNREACHABLE, f"{where}: no answer in time") from exc


async def close(sessions: Sessions, runner: asyncio.Task[None]) -> None:
    """Say what is answered, then end."""
    try:
        if sessions.sender is not None:
            await sessions.inbox.flush(FLUSH_S)
    finally:
        sessions.end(closed())
        runner.cancel()
