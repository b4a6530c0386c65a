"""An agent without a session, for a program that comes and goes (PROTOCOL.md §6).

Entry point: :class:`SessionlessAgent`. It takes no inbox, so it does not supersede the session of a
program that receives with the same key. Invariants: a relay does not forward what is submitted over
HTTP, so an envelope that it refuses goes to a relay of the recipient
(:mod:`relay.client.outbox.direct`). With a state file, an envelope is in the outbox before it is
sent, and leaves it only after a definite answer (GUARANTEES.md S2).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from relay import clock
from relay.client._util import beside, wait_for_event
from relay.client.directory.cache import RecordCache
from relay.client.directory.own_record import OwnRecord
from relay.client.directory.resolve import ResolveResult, read_resolved
from relay.client.errors import AgentError, bug_of, from_core, make_error
from relay.client.http.origin import Origin
from relay.client.http.relay_api import ApiSession, RelayApi
from relay.client.http.transport import REQUEST_TIMEOUT_S
from relay.client.identity.handles import HandleResolver
from relay.client.message import Sent
from relay.client.outbox.direct import DirectDelivery
from relay.client.outbox.outcomes import Outcomes
from relay.client.outbox.queue import Outbox
from relay.client.outbox.sender import Report, Sender
from relay.client.outbox.status import CustodyTracker, login_at_holder, origin_of
from relay.client.state.agent_state import AgentState
from relay.protocol import frames, receipts
from relay.protocol import jws as jose
from relay.protocol.did import SigningKey
from relay.protocol.envelope import SignedEnvelope
from relay.protocol.errors import ErrorCode, RelayError
from relay.protocol.ids import Did, MessageId

RETRY_S: Final = 0.5
_FATAL: Final = frozenset({
    ErrorCode.WRONG_RELAY, ErrorCode.BAD_FRAME, ErrorCode.BAD_SIGNATURE, ErrorCode.UNSUPPORTED,
})  # fmt: skip
"""Another server answers there, or its answer is not understood; or the proxy cannot be used."""


class SessionlessAgent:
    """Sends, resolves and asks over HTTP at one relay.

    Args:
        origin: the agent's relay.
        state: knows the expected relay; saves the outbox, records, handles and custody.
    """

    def __init__(self, origin: Origin, state: AgentState) -> None:
        store = state.journal.peers if state.journal is not None else None
        self.origin = origin
        self.state = state
        self._work = asyncio.Event()
        self._finishing = asyncio.Event()
        self.records = RecordCache(store)
        self.custody = CustodyTracker(store, self._is_ours)
        self.outbox = Outbox(self.custody, wake=self._work.set)
        self.direct = DirectDelivery(
            self.outbox,
            self.records,
            RelayApi(origin).resolve,
            is_private_network=origin.is_private_network,
        )
        self.outbox.on_direct = self.direct.wake
        learn, is_local = self.records.add, origin.is_loopback
        self.handles = HandleResolver(self.resolve, learn, store, is_local)
        self._orphans: list[tuple[SignedEnvelope, Sent | AgentError]] = []
        self.sender = Sender(
            self.outbox,
            state.journal,
            Outcomes(state.journal),
            on_stored=lambda _: None,
            last_failure=lambda: self._last_failure,
            stop_transport=self._finish,
            orphan_answered=lambda envelope, answer: self._orphans.append((envelope, answer)),
        )
        self._last_failure: AgentError | None = None
        self._until = 0.0
        self._running: asyncio.Future[None] | None = None

    def _is_ours(self, relay: Did) -> bool:
        return relay == self.state.relay_at(str(self.origin))

    async def resolve(self, did: str) -> ResolveResult:
        """Ask the relay for a record, and verify its signature.

        Raises:
            AgentError: the relay's refusal, or no answer.
        """
        found = read_resolved(await RelayApi(self.origin).resolve(did), did)
        if found.record is not None:
            self.records.add(Did(did), found.record.jws.compact)
        return found

    # ------------------------------------------------------------ send

    async def submit(
        self,
        envelope: SignedEnvelope,
        *,
        deadline_s: float,
        earlier: Sequence[SignedEnvelope] = (),
        report: Report | None = None,
    ) -> Sent:
        """Submit the same bytes over HTTP until the answer is definite.

        Args:
            envelope: what is sent.
            deadline_s: seconds to go on.
            earlier: from the outbox, submitted before it: nobody waits for these any more.
            report: called with the answer of each of them before it leaves the outbox; perhaps
                once more after a crash.

        Raises:
            OutcomeUnknownError: the deadline passed and it may be stored: submit it again. With a
                state file it stays in the outbox.
            AgentError: a definite refusal, or never sent.
        """
        for one in earlier:
            self.sender.adopt(one)
        self._until = clock.monotonic() + deadline_s
        self._finishing.clear()
        self._running = asyncio.ensure_future(self._run())
        try:
            return await self.sender.submit(envelope, deadline_s=deadline_s)
        finally:
            self._running.cancel()
            await asyncio.wait([self._running])
            await self._report_orphans(report)

    async def _finish(self) -> None:
        """Wait for the request that is under way, whose deadline has passed, too.

        One that was cancelled instead could not tell why it had no answer.
        """
        self._finishing.set()
        self._work.set()
        if self._running is not None:
            await asyncio.wait([self._running])

    async def _report_orphans(self, report: Report | None) -> None:
        while self._orphans:
            envelope, answer = self._orphans[0]
            if report is not None:
                report(envelope, answer)
            self._orphans.pop(0)
            if self.state.journal is not None:
                # one that cannot be removed is reported again by the next program
                await asyncio.wait([self.state.journal.remove_outgoing(envelope.eid)])

    async def _run(self) -> None:
        try:
            async with beside(self.direct.run()):
                while self.outbox.ended is None and not self._finishing.is_set():
                    await self._submit_next()
        except Exception as bug:  # noqa: BLE001  raised where its task waits for an answer
            self.outbox.end(bug_of(bug, f"the submits to {self.origin}"))

    async def _submit_next(self) -> None:
        self._work.clear()
        now = clock.monotonic()
        submit = self.outbox.next_submit(now)
        if submit is None:
            due = self.outbox.next_timer()
            await wait_for_event(self._work, None if due is None else max(0.0, due - now))
        elif not await self._exchange(submit):
            await wait_for_event(self._finishing, RETRY_S)

    async def _exchange(self, submit: frames.Submit) -> bool:
        """Submit once; return whether the relay has answered."""
        sent = asyncio.Event()
        try:
            api = RelayApi(self.origin, self._until - clock.monotonic())
            answer = await api.submit(submit, sent.set)
            if isinstance(answer, AgentError):
                self.outbox.failed(submit.ref, answer, clock.monotonic())
            else:
                self._answered(answer)
        except RelayError as exc:
            self._lost(from_core(exc))
            return False
        except asyncio.CancelledError:
            self.outbox.lost(maybe_stored=sent.is_set())
            raise
        self.direct.set_connected(is_connected=True)
        return True

    def _lost(self, exc: AgentError) -> None:
        self._last_failure = exc
        self.outbox.lost(maybe_stored=exc.stored != "no")
        if exc.code in _FATAL:
            self.outbox.end(exc)
        self.direct.set_connected(is_connected=False)
        # each time: what was in flight waits again now
        self.direct.wake()

    def _answered(self, frame: frames.Submitted) -> None:
        url = str(self.origin)
        try:
            signer = _signer(frame)
        except ValueError as exc:
            detail = f"{self.origin} gave no receipt"
            raise make_error(ErrorCode.PEER_UNREACHABLE, detail) from exc
        relay = self.state.relay_at(url) or signer
        if frame.receipt is not None and signer != relay:
            raise self.state.wrong_relay(url, signer)
        self.outbox.answered(frame, relay, clock.monotonic())
        if frame.receipt is not None:
            self.state.pin(url, relay)

    # ------------------------------------------------------------ status

    async def login_at_holder(
        self, key: SigningKey, to: str, message_id: str, *, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> ApiSession:
        """Log in at the relay of the receipt of an envelope, to ask for its state.

        At another relay than the agent's own, the login opens no inbox: it shows the agent's
        record, which is published before if there is none.

        Raises:
            AgentError: unreachable, or the login fails; ``not_admitted``: no record has the address
                of that relay.
        """
        custody = await self.custody.load_by_id(Did(to), MessageId(message_id))
        if custody is None or self._is_ours(custody.chain[0]):
            return await RelayApi(self.origin, timeout_s).login(key, self.state)
        relay, own = custody.chain[0], OwnRecord(key, self.state)
        known = (await self.records.get(custody.to), own.newest)
        homes = [home for record in known if record is not None for home in record.relays]
        origin = origin_of(relay, homes, self.direct.dialable)
        if own.newest is None and origin is not None:
            await own.publish_at(self.origin)
        return await login_at_holder(relay, origin, key, self.state, timeout_s)


def _signer(frame: frames.Submitted) -> Did:
    """Return who signed the receipt, at first contact; its signature is verified after this."""
    if frame.receipt is None:
        return Did("")
    jws = jose.parse(frame.receipt, typ=receipts.RECEIPT_TYP, max_bytes=receipts.MAX_RECEIPT_BYTES)
    return Did(jws.header.kid.partition("#")[0])
