"""Follows what this agent sent over relays: what became of it, and whose bounce is true (R6).

Rules of the file: the relay that gave the receipt is asked, since it follows what it passed on. A
relay at which this agent has no session is asked over HTTP, and only with the agent's record, so
that the login opens no inbox there. A bounce is believed of a relay in the chain of receipts, of
one that a relay of the chain names, and of one that the recipient's own record names; where no
receipt is remembered, of a home that this agent has left.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from relay.client.directory.cache import Correspondents
from relay.client.errors import AgentError, typed
from relay.client.http.origin import Origin
from relay.client.http.relay_api import HttpSession, RelayApi
from relay.client.inbox.opener import Opened
from relay.client.outbox.custody import Custody
from relay.client.session.request_router import Asking
from relay.client.session.requests import Answer
from relay.client.state.agent_state import AgentState
from relay.client.state.peers import CustodyRecord
from relay.protocol import endpoint_record, frames
from relay.protocol.did import SigningKey
from relay.protocol.errors import (
    ErrorCode,
    RelayError,
    error,
)
from relay.protocol.ids import (
    Did,
    MessageId,
)
from relay.protocol.receipts import BounceItem

JUDGE_S: Final = 5.0
MOST_VISITS: Final = 64


class Company(Protocol):
    """What following needs of the agent."""

    key: SigningKey
    state: AgentState
    custody: Custody
    correspondents: Correspondents
    asking: Asking

    def origin_of(self, url: str) -> Origin | None:
        """Where a stranger's home is; None: not to be dialled."""
        ...


@dataclass(slots=True, eq=False)
class Following:
    """Asks what became of envelopes.

    Args:
        company: the agent's.
    """

    company: Company
    _visits: OrderedDict[Did, HttpSession] = field(default_factory=OrderedDict)

    # ------------------------------------------------------------ status

    async def status(self, to: Did, message_id: MessageId) -> frames.State:
        """What became of an envelope; see :meth:`Agent.status`."""
        holding = await self.company.custody.recall_id(to, message_id)
        if holding is None:
            return await self._status_anywhere(frames.StatusItem(to, message_id))
        return await self._status_of(holding)

    async def _status_of(self, holding: CustodyRecord) -> frames.State:
        relay = holding.chain[0]
        item = frames.StatusItem(holding.to, holding.id)
        asking = self.company.asking.ask_at(relay, lambda ref: frames.Status(ref, (item,)))
        if asking is None:
            return await self._visit(relay, holding)
        answer = _only(await asking)
        if answer.state == "forwarded" and answer.peer is not None:
            self.company.custody.passed_on(holding, answer.peer)
        return answer.state

    async def _status_anywhere(self, item: frames.StatusItem) -> frames.State:
        """No receipt is remembered: whoever of ours knows it tells."""
        state = _only(await self.company.asking.ask(lambda ref: frames.Status(ref, (item,)))).state
        for relay in self.company.asking.others():
            asking = self.company.asking.ask_at(relay, lambda ref: frames.Status(ref, (item,)))
            if state != "unknown" or asking is None:
                break
            state = _only(await asking).state
        return state

    async def _visit(self, relay: Did, holding: CustodyRecord) -> frames.State:
        """Ask the recipient's own home, which has it straight from us."""
        visit = self._visits.get(relay) or await self._log_in(relay, holding.to)
        try:
            return await visit.status(holding.to, holding.id)
        except AgentError as exc:
            if exc.code is not ErrorCode.AUTH_REQUIRED:
                raise
        # its token is used up
        return await (await self._log_in(relay, holding.to)).status(holding.to, holding.id)

    async def _log_in(self, relay: Did, to: Did) -> HttpSession:
        self._visits.pop(relay, None)
        record = await self.company.correspondents.get(to)
        urls = [home.url for home in record.relays if home.did == relay] if record else []
        origin = self.company.origin_of(urls[0]) if urls else None
        if origin is None or self.company.state.record is None:
            detail = f"{relay} keeps it, and cannot be asked what became of it"
            raise typed(ErrorCode.NOT_ADMITTED, detail)
        visit = await RelayApi(origin).login(self.company.key, self.company.state, expected=relay)
        self._visits[relay] = visit
        while len(self._visits) > MOST_VISITS:
            self._visits.popitem(last=False)
        return visit

    # ------------------------------------------------------------ bounces

    async def judge(self, opened: Opened) -> Opened | RelayError | None:
        """What is to be believed of a bounce; None: it cannot be found out now."""
        relay = opened.envelope.sender.did
        believed = list(opened.bounced or ())
        try:
            async with asyncio.timeout(JUDGE_S):
                believed += [item for item in opened.unverified if await self._holds(relay, item)]
        except (RelayError, TimeoutError):
            return None
        if not believed:
            detail = "a bounce of a relay that no receipt and no record names"
            return error(ErrorCode.BAD_SIGNATURE, detail)
        return replace(opened, bounced=tuple(believed), unverified=())

    async def _holds(self, relay: Did, item: BounceItem) -> bool:
        """Whether ``relay`` may say how an envelope ended.

        Raises:
            RelayError, TimeoutError: nobody can tell now.
        """
        holding = await self.company.custody.recall(item.eid)
        if holding is None:
            # what lay at a home of our own is remembered by one process only
            own = self.company.state.record
            return own is not None and any(
                left.did == relay for left in endpoint_record.parse(own).drain
            )
        if holding.to != item.to:
            return False
        failure: RelayError | TimeoutError | None = None
        if relay not in holding.chain:
            try:
                async with asyncio.timeout(JUDGE_S / 2):
                    await self._status_of(holding)
            except (RelayError, TimeoutError) as exc:
                failure = exc
            holding = self.company.custody.get(item.eid) or holding
        if relay in holding.chain or await self._is_home_of(relay, holding.to):
            return True
        if failure is not None:
            # only who holds it could have said no
            raise failure
        return False

    async def _is_home_of(self, relay: Did, to: Did) -> bool:
        """Whether the recipient's own record names ``relay``.

        Raises:
            RelayError: nobody can tell now.
        """
        found = await self.company.asking.find(to)
        record = await self.company.correspondents.get(to)
        is_named = record is not None and record.names(relay)
        if not is_named and found.state == "unreadable":
            raise typed(ErrorCode.IDENTITY_UNAVAILABLE, f"nobody tells where {to} lives")
        return is_named


def _only(answer: Answer) -> frames.StatusAnswer:
    if not isinstance(answer, frames.Statuses) or len(answer.items) != 1:
        raise typed(ErrorCode.BAD_FRAME, "one question has one answer")
    return answer.items[0]
