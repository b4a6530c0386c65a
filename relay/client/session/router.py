"""Requests of the program, sent to one relay or to each: over reconnects and lost relays.

Entry point: :class:`RequestRouter`. A request to the active relay is sent again to the next active
one if that connection is lost. A request that only one relay can answer goes to that one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from relay import clock
from relay.client.directory.cache import RecordCache
from relay.client.directory.own_record import OwnRecord
from relay.client.directory.resolve import ResolveResult, read_resolved
from relay.client.errors import AgentError, clone, from_core, make_error
from relay.client.session.channel import REQUEST_TIMEOUT_S, Channel
from relay.client.session.pool import ChannelPool
from relay.client.session.requests import Request, Response
from relay.protocol import frames
from relay.protocol.endpoint_record import EndpointRecord
from relay.protocol.errors import ErrorCode, RelayError
from relay.protocol.ids import Did

R = TypeVar("R", frames.Resolved, frames.Ruled, frames.Statuses)


@dataclass(frozen=True, slots=True)
class RequestRouter:
    """Sends requests to the relays of one agent.

    Args:
        pool: the channels.
        own_record: of the agent.
        records: of other agents.
        warn: called with warnings for the program.
    """

    pool: ChannelPool
    own_record: OwnRecord
    records: RecordCache
    warn: Callable[[AgentError], None]

    async def request(self, make: Callable[[str], Request]) -> Response:
        """Send a request to the active relay, over reconnects, for at most 15 s.

        Raises:
            AgentError: the relay's refusal, or no answer in time.
        """
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                while True:
                    response = await self._request_once(make)
                    if response is not None:
                        return response
        except TimeoutError as exc:
            raise make_error(ErrorCode.PEER_UNREACHABLE, "no answer from a relay in time") from exc

    async def _request_once(self, make: Callable[[str], Request]) -> Response | None:
        """Send a request once; None: that relay was lost meanwhile."""
        self._ensure_open()
        active = self.pool.active
        if active is None:
            await self.pool.changed.wait()
            return None
        asking = asyncio.ensure_future(active.request(make))
        losing = asyncio.ensure_future(active.lost.wait())
        try:
            await asyncio.wait({asking, losing}, return_when=asyncio.FIRST_COMPLETED)
            return asking.result() if asking.done() else None
        finally:
            asking.cancel()
            losing.cancel()

    def _ensure_open(self) -> None:
        if self.pool.ended is not None:
            raise clone(self.pool.ended)

    # ------------------------------------------------------------ records

    async def resolve(self, did: str) -> frames.Resolved:
        """Ask the active relay for a record; its signature is not verified yet.

        Raises:
            AgentError: the relay's refusal, or no answer in time.
        """
        answer = await self.request(lambda ref: frames.Resolve(ref, Did(did)))
        return _expect(answer, frames.Resolved)

    async def find(self, did: str) -> ResolveResult:
        """Resolve as :meth:`resolve` does, and verify the signature.

        Raises:
            AgentError: the relay's refusal, or no answer in time.
        """
        found = read_resolved(await self.resolve(did), did)
        if found.record is not None:
            self.records.add(Did(did), found.record.jws.compact)
        return found

    async def publish(self, handles: Sequence[str] | None) -> EndpointRecord:
        """Publish the next record; see :meth:`relay.client.Agent.publish`."""
        # another program of this agent may have published meanwhile
        newest = await self.find(self.own_record.key.did)
        try:
            if newest.record is not None:
                self.own_record.merge(newest.record.jws.compact)
            self.own_record.set_handles(handles, clock.now())
        except RelayError as exc:
            raise from_core(exc) from exc
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                while (record := self._published()) is None:
                    await self.pool.changed.wait()
        except TimeoutError as exc:
            raise make_error(ErrorCode.PEER_UNREACHABLE, "not published in time") from exc
        return record

    def _published(self) -> EndpointRecord | None:
        """Return the newest record if each home that is connected holds it."""
        self._ensure_open()
        own = self.own_record
        homes = [relay for relay in self.pool.connected_relays() if own.is_home(relay)]
        is_done = homes and all(own.is_published(relay) for relay in homes)
        return own.newest if is_done else None

    # ------------------------------------------------------------ status

    def status_at(
        self, relay: Did, item: frames.StatusItem
    ) -> Awaitable[frames.StatusAnswer] | None:
        """Ask one relay of the agent for the state of an envelope; None: the relay is none.

        Raises:
            AgentError: the agent is over.
        """
        self._ensure_open()
        channel = self.pool.channel_at(relay)
        return None if channel is None else self._status_of(channel, item)

    async def _status_of(
        self, channel: Channel | None, item: frames.StatusItem
    ) -> frames.StatusAnswer:
        send = self.request if channel is None else channel.request
        answer = _expect(await send(lambda ref: frames.Status(ref, (item,))), frames.Statuses)
        if len(answer.items) != 1:
            raise make_error(ErrorCode.BAD_FRAME, "one question has one answer")
        return answer.items[0]

    async def status_anywhere(self, item: frames.StatusItem) -> frames.State:
        """Ask the active relay for the state of an envelope, then the others until one knows it."""
        state = (await self._status_of(None, item)).state
        active = self.pool.active
        for relay in self.pool.connected_relays():
            channel = self.pool.channel_at(relay)
            if state == "unknown" and channel is not None and channel is not active:
                state = (await self._status_of(channel, item)).state
        return state

    # ------------------------------------------------------------ rules

    async def rules(self, make: Callable[[str], frames.Rules]) -> frames.Ruled:
        """Read or change the rules of the inbox; see :meth:`relay.client.Agent.rules`."""
        ruled = _expect(await self.request(make), frames.Ruled)
        if make("") != frames.Rules(""):
            for channel in [one for one in self.pool.channels if one is not self.pool.active]:
                await self._change_rules_at(channel, make)
        return ruled

    async def _change_rules_at(self, channel: Channel, make: Callable[[str], frames.Rules]) -> None:
        """Change the rules at another home: each home applies its own."""
        if not channel.is_home:
            return
        try:
            if channel.connection is None:
                raise make_error(ErrorCode.PEER_UNREACHABLE, "not connected")
            _expect(await channel.request(make), frames.Ruled)
        except AgentError as exc:
            detail = f"the rules are not changed at {channel.relay}: {exc.detail}"
            self.warn(make_error(exc.code, detail))


def _expect(response: Response, kind: type[R]) -> R:
    if not isinstance(response, kind):
        raise make_error(ErrorCode.BAD_FRAME, "a response to another kind of request")
    return response
