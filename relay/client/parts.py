"""The parts of one running agent, connected to each other.

Entry point: :class:`AgentParts`. Each part gets the values and callables that it uses; only this
module knows all of them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from relay import clock
from relay.client.directory.cache import RecordCache
from relay.client.directory.own_record import OwnRecord
from relay.client.errors import AgentError
from relay.client.http.origin import Origin
from relay.client.identity.handles import HandleResolver
from relay.client.inbox.inbox import Inbox
from relay.client.inbox.opener import EnvelopeOpener, Opened
from relay.client.migration.service import MigrationService
from relay.client.outbox.direct import DirectDelivery
from relay.client.outbox.outcomes import Outcomes
from relay.client.outbox.queue import Outbox
from relay.client.outbox.sender import Sender
from relay.client.outbox.status import CustodyTracker, StatusTracker
from relay.client.session.pool import ChannelPool
from relay.client.session.router import RequestRouter
from relay.client.state.agent_state import AgentState
from relay.protocol import frames
from relay.protocol.did import SigningKey
from relay.protocol.errors import ErrorCode, RelayError, error
from relay.protocol.ids import Did, Eid

MAX_WARNINGS: Final = 16

_log: Final = logging.getLogger("relay.client")


class AgentParts:
    """All that an agent consists of.

    Args:
        key: the agent.
        named: the relays that the program names, best first.
        state: pins, record and epochs.
        insecure_networks: CIDRs that may be dialled without TLS.
    """

    def __init__(
        self,
        key: SigningKey,
        named: Sequence[Origin],
        state: AgentState,
        insecure_networks: Sequence[str] = (),
    ) -> None:
        journal = state.journal
        store = journal.peers if journal is not None else None
        self.key = key
        self.state = state
        self.warnings: deque[AgentError] = deque(maxlen=MAX_WARNINGS)
        self.records = RecordCache(store)
        self.custody = CustodyTracker(store, self._is_ours)
        self.outbox = Outbox(self.custody)
        self.outcomes = Outcomes(journal)
        self.own_record = OwnRecord(
            key, state, [str(one) for one in named], clock.random_fraction(), self.warn
        )
        opener = EnvelopeOpener(key, self.custody.relay_of, self._may_be_ours)
        self.inbox = Inbox(opener, journal, self._verify_bounce)
        self.direct = DirectDelivery(
            self.outbox,
            self.records,
            self._resolve,
            insecure_networks,
            is_private_network=any(one.is_private_network for one in named),
            disconnected_since=clock.monotonic(),
        )
        self.pool = ChannelPool(
            key,
            named,
            state,
            outbox=self.outbox,
            inbox=self.inbox,
            own_record=self.own_record,
            direct=self.direct,
            insecure_networks=insecure_networks,
            on_end=self._on_end,
            warn=self.warn,
        )
        self.outbox.on_direct, self.outbox.wake = self.direct.wake, self.pool.wake
        self.router = RequestRouter(self.pool, self.own_record, self.records, self.warn)
        self.status = StatusTracker(
            key,
            state,
            self.custody,
            self.records,
            self.router.status_at,
            self.router.status_anywhere,
            self.router.find,
            self.direct.dialable,
        )
        is_local = any(one.is_loopback for one in named)
        self.handles = HandleResolver(self.router.find, self.records.add, store, is_local)
        self.sender = Sender(
            self.outbox,
            journal,
            self.outcomes,
            self._on_stored,
            lambda: None if self.pool.active is not None else self.pool.last_failure,
        )
        self.migrations = MigrationService(
            self.pool, self.own_record, self.inbox, insecure_networks, self.warn
        )

    async def run(self) -> None:
        """Run the agent until it ends or is cancelled."""
        await self.pool.run(self.migrations.run())

    def warn(self, warning: AgentError) -> None:
        """Show the program something that does not end the agent."""
        _log.warning("%s", warning)
        self.warnings.append(warning)

    def _on_end(self, failure: AgentError) -> None:
        self.outbox.end(failure)
        self.inbox.end(failure)
        self.outcomes.end(failure)

    def _is_ours(self, relay: Did) -> bool:
        return self.pool.is_ours(relay)

    def _on_stored(self, to: Did) -> None:
        """Look for the recipient's record while a relay can resolve it."""
        if to != self.key.did and self.records.schedule_refresh(to):
            self.direct.wake()

    async def _resolve(self, did: Did) -> frames.Resolved:
        return await self.router.resolve(did)

    def _may_be_ours(self, eid: Eid) -> bool:
        """Return whether this agent may have sent it: a journal knows more than this process."""
        return self.state.journal is not None or self.custody.get(eid) is not None

    async def _verify_bounce(self, opened: Opened) -> Opened | RelayError | None:
        """Return a bounce with the items that its sender may report; None: not known now."""
        verified = await self.status.verify_bounce(opened.envelope.sender.did, opened.unverified)
        if verified is None:
            return None
        items = (*(opened.bounced or ()), *verified)
        if not items:
            detail = "a bounce of a relay that no receipt and no record names"
            return error(ErrorCode.BAD_SIGNATURE, detail)
        return replace(opened, bounced=items, unverified=())
