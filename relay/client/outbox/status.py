"""Custody and state of the envelopes of this agent, and the truth of their bounces.

Entry points: :class:`CustodyTracker` records the chain of relays that took an envelope over.
:class:`StatusTracker` asks them (GUARANTEES.md R6). Invariants: a relay is in a chain because of a
verified receipt, or because a relay of the chain has named it. A bounce is accepted from a relay of
the chain, and from one that the recipient's own record names. Without a chain it is accepted from a
home that this agent has left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from relay.client._util import BoundedDict, log_failure
from relay.client.directory.cache import RecordCache
from relay.client.directory.resolve import ResolveResult
from relay.client.errors import make_error
from relay.client.http.origin import Origin
from relay.client.http.relay_api import ApiSession, RelayApi
from relay.client.http.transport import REQUEST_TIMEOUT_S
from relay.client.message import Sent
from relay.client.state.agent_state import AgentState
from relay.client.state.peers import CustodyRecord, PeerStore
from relay.protocol import endpoint_record, frames
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import Home
from relay.protocol.errors import ErrorCode, RelayError
from relay.protocol.ids import Did, Eid, MessageId
from relay.protocol.receipts import BounceItem

CACHE_SIZE: Final = 4_096
MAX_CHAIN: Final = 4
VERIFY_TIMEOUT_S: Final = 5.0
MAX_SESSIONS: Final = 64


def _all_are_ours(_: Did) -> bool:
    return True


class CustodyTracker:
    """The chains of relays that hold one agent's envelopes.

    A chain of only a relay of the agent is remembered by this process. Any other chain is saved,
    too: its envelope may end after a crash.

    Args:
        store: saves chains; None: they end with this process.
        is_ours: tells whether the agent logs in at a relay.
    """

    def __init__(
        self, store: PeerStore | None = None, is_ours: Callable[[Did], bool] = _all_are_ours
    ) -> None:
        self._store = store
        self._is_ours = is_ours
        self._eids: dict[MessageId, Eid] = {}
        self._by_eid: BoundedDict[Eid, CustodyRecord] = BoundedDict(
            CACHE_SIZE, lambda _, record: self._eids.pop(record.id, None)
        )

    def add_receipt(self, sent: Sent) -> None:
        """Record the relay of a receipt."""
        before = self._by_eid.get(sent.eid)
        chain = _extended(before.chain if before is not None else (), sent.relay)
        record = CustodyRecord(sent.eid, sent.id, sent.to, sent.expires_at, chain)
        self._put(record, is_saved=sent.custody == "outbox" or not self._is_ours(sent.relay))

    def record_forward(self, record: CustodyRecord, peer: Did) -> None:
        """Record that ``peer`` has taken an envelope over from a relay of its chain."""
        if peer not in record.chain:
            self._put(replace(record, chain=_extended(record.chain, peer)), is_saved=True)

    def _put(self, record: CustodyRecord, *, is_saved: bool) -> None:
        self._by_eid[record.eid] = record
        self._eids[record.id] = record.eid
        if is_saved and self._store is not None:
            saving = self._store.save_custody(record)
            saving.add_done_callback(log_failure("the relays of an envelope could not be noted"))

    def relay_of(self, eid: Eid) -> Did | None:
        """Return the relay of the first receipt, as far as this process remembers."""
        record = self._by_eid.get(eid)
        return record.chain[0] if record else None

    def get(self, eid: Eid) -> CustodyRecord | None:
        """Return the chain of an envelope, as far as this process remembers."""
        return self._by_eid.get(eid)

    async def load(self, eid: Eid) -> CustodyRecord | None:
        """Return the chain of an envelope, also of one that an earlier process has sent.

        Raises:
            AgentError: the journal cannot be read.
        """
        found = self._by_eid.get(eid)
        if found is None and self._store is not None:
            found = await self._store.custody(eid)
        return found

    async def load_by_id(self, to: Did, message_id: MessageId) -> CustodyRecord | None:
        """Return the chain as :meth:`load` does, by recipient and the sender's own id."""
        eid = self._eids.get(message_id)
        found = self._by_eid.get(eid) if eid else None
        if found is None and self._store is not None:
            found = await self._store.custody_by_id(message_id)
        return found if found is not None and found.to == to else None


def _extended(chain: tuple[Did, ...], relay: Did) -> tuple[Did, ...]:
    return chain if relay in chain else (*chain, relay)[:MAX_CHAIN]


def origin_of(
    relay: Did, homes: Iterable[Home], dialable: Callable[[str], Origin | None]
) -> Origin | None:
    """Return the origin of a relay that is one of ``homes``; None: it is not, or not dialable."""
    url = next((home.url for home in homes if home.did == relay), None)
    return dialable(url) if url is not None else None


async def login_at_holder(
    relay: Did,
    origin: Origin | None,
    key: SigningKey,
    state: AgentState,
    timeout_s: float = REQUEST_TIMEOUT_S,
) -> ApiSession:
    """Log in at a relay that holds an envelope; with the agent's record that opens no inbox there.

    Raises:
        AgentError: unreachable, or the login fails; ``not_admitted``: no origin is known, or the
            agent has no record yet.
    """
    if origin is None or state.record is None:
        detail = f"{relay} keeps it, and cannot be asked what became of it"
        raise make_error(ErrorCode.NOT_ADMITTED, detail)
    return await RelayApi(origin, timeout_s).login(key, state, expected=relay)


@dataclass(slots=True, eq=False)
class StatusTracker:
    """Asks relays for the state of envelopes.

    Args:
        key: the agent.
        state: has the agent's record.
        custody: the chains.
        records: of recipients.
        ask_at: asks a relay at which the agent has a session; None: it has none there.
        ask_all: asks the relays of the agent until one knows the envelope.
        resolve: asks a relay for a record.
        dialable: the origin of a URL that a stranger chose; None: it must not be dialled.
    """

    key: SigningKey
    state: AgentState
    custody: CustodyTracker
    records: RecordCache
    ask_at: Callable[[Did, frames.StatusItem], Awaitable[frames.StatusAnswer] | None]
    ask_all: Callable[[frames.StatusItem], Awaitable[frames.State]]
    resolve: Callable[[str], Awaitable[ResolveResult]]
    dialable: Callable[[str], Origin | None]
    _sessions: BoundedDict[Did, ApiSession] = field(
        default_factory=lambda: BoundedDict(MAX_SESSIONS)
    )

    # ------------------------------------------------------------ status

    async def status(self, to: Did, message_id: MessageId) -> frames.State:
        """Return the state of an envelope; see :meth:`Agent.status`."""
        record = await self.custody.load_by_id(to, message_id)
        if record is None:
            return await self.ask_all(frames.StatusItem(to, message_id))
        return await self._status_of(record)

    async def _status_of(self, record: CustodyRecord) -> frames.State:
        """Ask the relay of the receipt: it follows an envelope that it forwarded."""
        relay = record.chain[0]
        asking = self.ask_at(relay, frames.StatusItem(record.to, record.id))
        if asking is None:
            return await self._status_over_http(relay, record)
        answer = await asking
        if answer.state == "forwarded" and answer.peer is not None:
            self.custody.record_forward(record, answer.peer)
        return answer.state

    async def _status_over_http(self, relay: Did, record: CustodyRecord) -> frames.State:
        """Ask the recipient's own relay, which has it by direct delivery."""
        session = self._sessions.get(relay) or await self._login(relay, record.to)
        try:
            return await session.status(record.to, record.id)
        except RelayError as exc:
            if exc.code is not ErrorCode.AUTH_REQUIRED:
                raise
        # its token has expired
        return await (await self._login(relay, record.to)).status(record.to, record.id)

    async def _login(self, relay: Did, to: Did) -> ApiSession:
        self._sessions.pop(relay, None)
        record = await self.records.get(to)
        homes = record.relays if record is not None else ()
        origin = origin_of(relay, homes, self.dialable)
        session = await login_at_holder(relay, origin, self.key, self.state)
        self._sessions[relay] = session
        return session

    # ------------------------------------------------------------ bounces

    async def verify_bounce(
        self, relay: Did, items: Sequence[BounceItem]
    ) -> list[BounceItem] | None:
        """Return the items of a bounce that ``relay`` may report; None: that is not known now."""
        try:
            async with asyncio.timeout(VERIFY_TIMEOUT_S):
                return [item for item in items if await self._may_report(relay, item)]
        except (RelayError, TimeoutError):
            return None

    async def _may_report(self, relay: Did, item: BounceItem) -> bool:
        """Return whether ``relay`` may report the end of an envelope.

        Raises:
            RelayError, TimeoutError: that is not known now.
        """
        record = await self.custody.load(item.eid)
        if record is None:
            # an envelope at a home of the agent is remembered by one process only
            own = self.state.record
            return own is not None and any(
                left.did == relay for left in endpoint_record.parse(own).drain
            )
        if record.to != item.to:
            return False
        failure: RelayError | TimeoutError | None = None
        if relay not in record.chain:
            try:
                async with asyncio.timeout(VERIFY_TIMEOUT_S / 2):
                    await self._status_of(record)
            except (RelayError, TimeoutError) as exc:
                failure = exc
            record = self.custody.get(item.eid) or record
        if relay in record.chain or await self._is_home_of(relay, record.to):
            return True
        if failure is not None:
            # only a relay of the chain could have named this one
            raise failure
        return False

    async def _is_home_of(self, relay: Did, to: Did) -> bool:
        """Return whether the recipient's own record names ``relay``.

        Raises:
            RelayError: that is not known now.
        """
        found = await self.resolve(to)
        record = await self.records.get(to)
        is_named = record is not None and record.names(relay)
        if not is_named and found.state == "unreadable":
            raise make_error(ErrorCode.IDENTITY_UNAVAILABLE, f"no relay can resolve {to}")
        return is_named
