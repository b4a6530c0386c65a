"""What the program asks and changes, at one relay or at each: over reconnects and lost relays.

Rules of the file: what is asked of the relay that is sent through is asked again of the next one
where that is lost; what only one relay can know is asked of that one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from relay import clock
from relay.client.directory.cache import Correspondents
from relay.client.directory.own_record import Homes
from relay.client.directory.resolve import ResolveResult, read_resolved
from relay.client.errors import AgentError, again, of, typed
from relay.client.session.channel import (
    QUESTION_S,
    Conversation,
)
from relay.client.session.requests import (
    Answer,
    Question,
)
from relay.protocol import frames
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import EndpointRecord
from relay.protocol.errors import (
    ErrorCode,
    RelayError,
)
from relay.protocol.frames import (
    Resolve,
    Resolved,
    Ruled,
    Rules,
)
from relay.protocol.ids import Did


class Company(Protocol):
    """What asking needs of the agent."""

    key: SigningKey
    conversations: list[Conversation]
    sender: Conversation | None
    homes: Homes
    correspondents: Correspondents

    @property
    def ended(self) -> AgentError | None:
        """Why the agent is over."""
        ...

    async def changed(self) -> None:
        """Wait until a connection comes or goes, or the agent is over."""
        ...

    def warn(self, warning: AgentError) -> None:
        """Tell the program something that does not end the agent."""
        ...


@dataclass(frozen=True, slots=True)
class Asking:
    """Questions to the relays of one agent.

    Args:
        company: the agent's.
    """

    company: Company

    def others(self) -> list[Did]:
        """Connected relays, but for the one that is sent through."""
        connected = [one for one in self.company.conversations if one.line is not None]
        return [one.relay for one in connected if one is not self.company.sender and one.relay]

    async def find(self, did: str) -> ResolveResult:
        """Where an agent lives, as the relay that is sent through knows it.

        Raises:
            AgentError: the relay's no, or no answer in time.
        """
        answer = await self.ask(lambda ref: Resolve(ref, Did(did)))
        if not isinstance(answer, Resolved):
            raise typed(ErrorCode.BAD_FRAME, "an answer to another question")
        seen = read_resolved(answer, did)
        if seen.record is not None:
            self.company.correspondents.learn(Did(did), seen.record.jws.compact)
        return seen

    async def ask(self, make: Callable[[str], Question]) -> Answer:
        """Ask the relay that is sent through, over reconnects, for at most 15 s.

        Raises:
            AgentError: the relay's no, or no answer in time.
        """
        try:
            async with asyncio.timeout(QUESTION_S):
                while True:
                    answer = await self._ask_once(make)
                    if answer is not None:
                        return answer
        except TimeoutError as exc:
            raise typed(ErrorCode.PEER_UNREACHABLE, "no answer from a relay in time") from exc

    async def rules(self, make: Callable[[str], frames.Rules]) -> frames.Ruled:
        """See :meth:`relay.client.Agent.rules`."""
        said = _ruled(await self.ask(make))
        if make("") != Rules(""):
            for one in [
                one for one in self.company.conversations if one is not self.company.sender
            ]:
                await self._rule_at(one, make)
        return said

    async def _rule_at(self, one: Conversation, make: Callable[[str], frames.Rules]) -> None:
        """Each home judges for itself whom its inbox takes envelopes from."""
        if one.welcome is None or not one.welcome.inbox:
            return
        try:
            if one.line is None:
                raise typed(ErrorCode.PEER_UNREACHABLE, "not connected")
            _ruled(await one.ask(make))
        except AgentError as exc:
            self.company.warn(
                typed(exc.code, f"the rules are not changed at {one.relay}: {exc.detail}")
            )

    async def publish(self, handles: Sequence[str] | None) -> EndpointRecord:
        """See :meth:`relay.client.Agent.publish`."""
        # another program of this agent may have published meanwhile
        newest = await self.find(self.company.key.did)
        try:
            if newest.record is not None:
                self.company.homes.told(newest.record.jws.compact)
            self.company.homes.renew(handles, clock.now())
        except RelayError as exc:
            raise of(exc) from exc
        try:
            async with asyncio.timeout(QUESTION_S):
                while (record := self._published()) is None:
                    await self.company.changed()
        except TimeoutError as exc:
            raise typed(ErrorCode.PEER_UNREACHABLE, "not published in time") from exc
        return record

    def _published(self) -> EndpointRecord | None:
        """The newest record, if each home that is connected holds it."""
        if self.company.ended is not None:
            raise again(self.company.ended)
        connected = [
            one.relay for one in self.company.conversations if one.line is not None and one.relay
        ]
        held = [
            self.company.homes.is_published(one)
            for one in connected
            if self.company.homes.is_home(one)
        ]
        return self.company.homes.newest if held and all(held) else None

    def ask_at(self, relay: Did, make: Callable[[str], Question]) -> Awaitable[Answer] | None:
        """Ask one relay of ours, over reconnects, for at most 15 s; None: it is none.

        Raises:
            AgentError: the agent is over.
        """
        if self.company.ended is not None:
            raise again(self.company.ended)
        known = [one for one in self.company.conversations if one.relay == relay]
        return known[0].ask(make) if known else None

    async def _ask_once(self, make: Callable[[str], Question]) -> Answer | None:
        """None: that relay was lost meanwhile."""
        if self.company.ended is not None:
            raise again(self.company.ended)
        sender = self.company.sender
        if sender is None:
            await self.company.changed()
            return None
        asking = asyncio.ensure_future(sender.ask(make))
        losing = asyncio.ensure_future(sender.lost.wait())
        try:
            await asyncio.wait({asking, losing}, return_when=asyncio.FIRST_COMPLETED)
            return asking.result() if asking.done() else None
        finally:
            asking.cancel()
            losing.cancel()


def _ruled(answer: Answer) -> Ruled:
    if not isinstance(answer, Ruled):
        raise typed(ErrorCode.BAD_FRAME, "an answer to another question")
    return answer
