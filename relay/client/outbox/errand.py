"""A program that comes and goes, without a session: what it sends finds its way all the same.

Rules of the file: it takes no inbox. Its relay is asked over HTTP, and what that one does not carry
goes straight to a home that the recipient's own record names
(:mod:`relay.client.outbox.direct`). Who gave
a receipt is kept in the state file, so that a later program asks there what became of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from relay import clock
from relay.client.directory.cache import Correspondents
from relay.client.directory.publish import publish
from relay.client.directory.resolve import ResolveResult, read_resolved
from relay.client.errors import AgentError, typed
from relay.client.http.origin import Origin
from relay.client.http.relay_api import HttpSession, RelayApi
from relay.client.http.transport import REQUEST_TIMEOUT_S
from relay.client.identity.handle_lookup import Naming
from relay.client.identity.handles import Handles
from relay.client.outbox.custody import Custody
from relay.client.outbox.direct import Detours
from relay.client.outbox.queue import Outbox
from relay.client.session.requests import Answer
from relay.client.state.agent_state import AgentState
from relay.protocol import endpoint_record, frames
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import Home
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import (
    Did,
    MessageId,
)

REF: Final = "http"


@dataclass(frozen=True, slots=True)
class _OverHttp:
    """Asks one relay, a request a question."""

    origin: Origin

    async def ask(self, make: Callable[[str], frames.Resolve]) -> Answer:
        """See :class:`relay.client.outbox.direct.Asks`."""
        return await RelayApi(self.origin).resolve(make(REF).did or "")


class Errand:
    """What one run of such a program has in hand.

    Args:
        origin: the agent's relay.
        state: knows which relay is expected there; keeps records, handles, and who holds what.
    """

    def __init__(self, origin: Origin, state: AgentState) -> None:
        knowledge = state.journal.peers if state.journal is not None else None
        self.origin = origin
        self.state = state
        self.insecure_networks: Sequence[str] = ()
        self.ended: AgentError | None = None
        self.alone_since: float | None = None
        self.asking = _OverHttp(origin)
        self.correspondents = Correspondents(knowledge)
        self.custody = Custody(knowledge, self._is_ours)
        self.detours = Detours(self)
        self.outbox = Outbox(self.custody, self.detours.wake)
        naming = Naming(self.find, self.correspondents.learn, origin.is_loopback)
        self.handles = Handles(naming.record, naming.forward, knowledge)

    def _is_ours(self, relay: Did) -> bool:
        return relay == self.state.relay_at(str(self.origin))

    @property
    def is_private_network(self) -> bool:
        """Whether the relay has an address that is not public."""
        return self.origin.is_private_network

    def heard(self, *, answer: bool) -> None:
        """The relay has answered, or it has not."""
        if answer:
            self.alone_since = None
            return
        if self.alone_since is None:
            self.alone_since = clock.monotonic()
        # each time: what was in flight waits again now
        self.detours.wake()

    async def find(self, did: str) -> ResolveResult:
        """Where an agent lives, as the relay knows it; the signature is checked here.

        Raises:
            AgentError: the relay's no, or no answer.
        """
        seen = read_resolved(await RelayApi(self.origin).resolve(did), did)
        if seen.record is not None:
            self.correspondents.learn(Did(did), seen.record.jws.compact)
        return seen

    # ------------------------------------------------------------ what became of it

    async def visit(
        self, key: SigningKey, to: str, message_id: str, *, seconds: float = REQUEST_TIMEOUT_S
    ) -> HttpSession:
        """Log in where the receipt of an envelope came from, to ask what became of it.

        At another relay than the own one that opens no inbox: the login shows the agent's record,
        which is published before, should there be none.

        Raises:
            AgentError: unreachable, or the login does not hold; ``not_admitted``: that relay is in
                nobody's record, so its address is not known.
        """
        holding = await self.custody.recall_id(Did(to), MessageId(message_id))
        if holding is None or self._is_ours(holding.chain[0]):
            return await RelayApi(self.origin, seconds).login(key, self.state)
        relay = holding.chain[0]
        origin = await self._origin_of(relay, holding.to)
        if origin is None:
            detail = f"{relay} keeps it, and cannot be asked what became of it"
            raise typed(ErrorCode.NOT_ADMITTED, detail)
        if self.state.record is None:
            await publish(key, self.origin, self.state)
        return await RelayApi(origin, seconds).login(key, self.state, expected=relay)

    async def _origin_of(self, relay: Did, to: Did) -> Origin | None:
        theirs = await self.correspondents.get(to)
        ours = endpoint_record.parse(self.state.record) if self.state.record else None
        homes: Iterator[Home] = (
            home for one in (theirs, ours) if one is not None for home in one.relays
        )
        url = next((home.url for home in homes if home.did == relay), None)
        return None if url is None else self.detours.origin_of(url)
