"""One WebSocket connection: carries out the effects of a ``core.session`` (ARCHITECTURE.md §10).

Rules of the file: no decision is taken here. The reader is one task; reads of the inbox, questions
and closings run in the same task group; every write is direct and never waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

from relay import clock, log, metrics
from relay.inbox.client_ip import strangers_network
from relay.inbox.consumer import Follower
from relay.inbox.model.effects import (
    AckInbox,
    Ask,
    CloseInbox,
    Effect,
    Hear,
    Login,
    Question,
    Read,
    Store,
)
from relay.inbox.model.permissions import Identity
from relay.inbox.model.session import RelaySession
from relay.inbox.model.types import (
    Acked,
)
from relay.inbox.ports import AckRequest
from relay.inbox.submit import (
    Local,
    Peer,
    Submissions,
)
from relay.node.node import Node
from relay.protocol import frames
from relay.protocol.client_session import (
    Close,
    Send,
)
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
    RejectedError,
    RelayError,
    UnavailableError,
    error,
)
from relay.protocol.ids import Fence
from relay.ws.errors import close_code
from relay.ws.protocol import RelaySocket

MAX_IN_FLIGHT: Final = 2048
MAX_IN_FLIGHT_BYTES: Final = 8 * 1024 * 1024
MAX_QUESTIONS: Final = 16
MAX_ASKED: Final = 256
"""Questions that wait or are looked into; an agent that asks more is refused at once."""

AsgiSend = Callable[[dict[str, Any]], Awaitable[None]]
AsgiReceive = Callable[[], Awaitable[dict[str, Any]]]


class Connection(Follower):
    """A socket and its session.

    Args:
        node: what the edges share.
        socket: writes directly.
        send: of ASGI, for the close.
        address: where it was dialled from.
    """

    def __init__(self, node: Node, socket: RelaySocket, send: AsgiSend, address: str) -> None:
        self._node = node
        self._address = address
        self._socket = socket
        self._send = send
        session = RelaySession(node.hello(), node.window, clock.monotonic())
        super().__init__(session, node.store)
        self._submissions = Submissions(node.intake, self._answer, strangers_network(address))
        self._room = asyncio.Event()
        self._questions = asyncio.Semaphore(MAX_QUESTIONS)
        self._asked = 0
        self._closed = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        socket.on_slow = self._too_slow

    # ------------------------------------------------------------ life

    async def run(self, receive: AsgiReceive) -> None:
        """Converse until the socket or the session ends."""
        try:
            await self._converse(receive)
        except* Exception:  # noqa: BLE001  a bug must not take its text to the other side
            log.internal_error("connection")
            metrics.INTERNAL.inc()
            self._write(frames.Bye(ErrorCode.INTERNAL))
            await self._hang_up(ErrorCode.INTERNAL)

    async def _converse(self, receive: AsgiReceive) -> None:
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                self._perform(self._session.start())
                reader = tasks.create_task(self._read_all(receive))
                # however it ends: nobody is served by a connection that is not read
                reader.add_done_callback(lambda _: self._closed.set())
                await self._closed.wait()
            finally:
                self._end()

    def _end(self) -> None:
        """Hear of nothing more and begin nothing more; what is under way goes on to its end."""
        self._tasks = None
        self._session.lost()
        self._submissions.close()
        self._stop_timer()
        self._detach()

    async def _read_all(self, receive: AsgiReceive) -> None:
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                await self._perform_all(self._session.lost())
                return
            if message["type"] == "websocket.receive":
                await self._take(message)

    async def _take(self, message: dict[str, Any]) -> None:
        data = message.get("bytes")
        if data is None or "text" not in message:
            self._perform(self._session.fail(ErrorCode.UNSUPPORTED, "frames are text"))
            return
        try:
            frame = frames.parse(data, "agent")
        except RelayError as exc:
            self._perform(self._session.fail(exc.code, exc.detail))
            return
        if self._is_peer and (no := self._refusal()) is not None:
            self._perform(self._session.refused(no))
            return
        now = clock.monotonic()
        await self._perform_all(
            self._session.receive(frame, now, is_partner=self._is_peer and not self._is_full())
        )
        while self._is_crowded:
            self._room.clear()
            await self._room.wait()
        if not self._socket.writable.is_set():
            # who does not read our answers is not read either
            await self._socket.writable.wait()

    @property
    def _is_peer(self) -> bool:
        return self._session.who is not None and self._session.who.role == "peer"

    def _is_full(self) -> bool:
        """Whether a peer is dealt with in all things, and not for a hand-off alone."""
        who = self._session.who
        return who is not None and self._node.peers.is_full(who.did)

    def _dismiss(self) -> None:
        no = self._refusal()
        if no is not None:
            self._perform(self._session.refused(no))

    def _refusal(self) -> RelayError | None:
        """Why a peer that was let in is not dealt with any more."""
        assert self._session.who is not None  # noqa: S101  only a peer is asked about
        try:
            self._node.peers.admit_login(self._session.who.did)
        except RejectedError as exc:
            return exc
        return None

    @property
    def _is_crowded(self) -> bool:
        """Too much of this connection is undecided: back-pressure by TCP."""
        pending = self._submissions
        return pending.in_flight > MAX_IN_FLIGHT or pending.in_flight_bytes > MAX_IN_FLIGHT_BYTES

    def drain(self) -> None:
        """The node shuts down."""
        self._perform(self._session.drain())

    def _too_slow(self) -> None:
        metrics.SESSION_ENDS.labels(ErrorCode.SLOW_READER).inc()

    # ------------------------------------------------------------ effects

    async def _perform_all(self, effects: Sequence[Effect]) -> None:
        """Carry out effects; submits and logins in the reader's own time (back-pressure).

        So is all that a peer says: one that floods is read no faster than it is answered.
        """
        for effect in effects:
            if isinstance(effect, Store):
                await self._store(effect.submit)
            elif isinstance(effect, Login):
                await self._log_in(effect)
            elif isinstance(effect, Hear):
                await self._hear(effect)
            elif isinstance(effect, Ask) and self._is_peer:
                await self._ask(effect.question)
            else:
                self._perform([effect])

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._write(effect.frame)
            elif isinstance(effect, AckInbox):
                self._node.acks.put(self, [AckRequest(effect.inbox, effect.ack)])
            else:
                self._spawn(self._carry_out(effect))
        self._set_timer()

    async def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Read():
                await self._read(effect)
            case Ask(question):
                await self._ask(question)
            case CloseInbox():
                await self._close_inbox(effect)
            case Close(code):
                await self._close(code)
            case _:
                await self._perform_all([effect])

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._tasks is None:
            # the connection is over: a commit, a hint or a timer came after its end
            work.close()
            return
        self._tasks.create_task(work)

    def _write(self, frame: frames.Frame) -> None:
        if isinstance(frame, frames.Deliver):
            again = sum(item.redelivered for item in frame.items)
            metrics.DELIVERED_FIRST.inc(len(frame.items) - again)
            metrics.DELIVERED_AGAIN.inc(again)
        self._socket.write_text(frames.encode(frame))

    async def _log_in(self, effect: Login) -> None:
        accounts, proven = self._node.accounts, None
        try:
            key, claims = await accounts.authenticate(effect.auth)
            if claims.nonce != effect.nonce:
                raise error(ErrorCode.BAD_SIGNATURE, "auth signs another nonce")
            proven = key.did
            who, welcome = await accounts.open(effect.auth, key, claims)
        except RelayError as exc:
            accounts.refused.note(exc, effect.auth, proven, self._address)
            self._perform(self._session.refused(exc))
            return
        effects = self._session.opened(who, welcome)
        if self._session.who is None:
            # it took longer than the session lasted: the inbox is closed, and nobody is let in
            late = error(ErrorCode.STORAGE_UNAVAILABLE, "the login took too long here")
            accounts.refused.note(late, effect.auth, proven, self._address)
            self._perform(effects)
            return
        metrics.LOGINS.labels("ok").inc()
        metrics.SESSIONS.inc()
        log.event("session_opened", did=who.did, fence=who.fence, role=who.role)
        if who.role == "peer":
            self._submissions.say_who(Peer(who.inbox, who.did, self._is_full))
            self._node.mesh.arrived(who.did, self._dismiss)
        elif who.fence is not None:
            self._submissions.say_who(Local(who.inbox, self._node.routing, self._spawn))
        self._perform(effects)
        if who.fence is not None:
            self._node.delivery.attach(who.inbox, self)
            # what was stored between opening and attaching had nobody to tell
            self.woken()

    async def _store(self, submit: frames.Submit) -> None:
        said = submit.ref, submit.envelopes, submit.marked, submit.handoff
        try:
            await self._submissions.submit(*said)
        except RelayError as exc:
            self._write(frames.Error(exc.code, exc.detail, exc.retry_after, submit.ref))

    async def _hear(self, effect: Hear) -> None:
        who = self._session.who
        assert who is not None  # noqa: S101  the session hears only after a login
        try:
            await self._node.mesh.hear(who.did, effect.gossip)
        except UnavailableError as exc:
            # whatever was not kept comes again with the next pull
            log.loop_failed("hear", exc.code)

    async def _ask(self, question: Question) -> None:
        self._asked += 1
        try:
            if self._asked > MAX_ASKED:
                raise error(ErrorCode.OVERLOADED, "too many questions at once", retry_after=1)
            async with self._questions:
                if self._closed.is_set():
                    return
                frame = await self._reply(question)
        except RelayError as exc:
            frame = frames.Error(exc.code, exc.detail, exc.retry_after, question.ref)
        finally:
            self._asked -= 1
        self._write(frame)

    async def _reply(self, question: Question) -> frames.Frame:
        who = self._session.who
        assert who is not None  # noqa: S101  the session asks only after a login
        node = self._node
        match question:
            case frames.Status(ref, items):
                return frames.Statuses(ref, tuple(await self._statuses(who, items)))
            case frames.Publish(ref, record):
                return await node.directory.publish(record, owner=who.did, ref=ref)
            case frames.Rules():
                return await node.rules(who.inbox, who.fence or Fence(0), question)
            case frames.Digest() | frames.Want():
                return await node.mesh.answer(who.did, question)
            case frames.Migrate():
                return await node.handoffs.hear(who.did, question)
            case frames.Resolve():
                return await self._resolve(who, question)

    async def _resolve(self, who: Identity, question: frames.Resolve) -> frames.Frame:
        # a peer is answered from the own store, else questions would go in circles
        around, resolving = who.fence is not None, self._node.resolving
        if question.did is not None:
            # where the asker itself lives is known here, or by the asker
            is_other = around and question.did != who.did
            found = await resolving(question.did, around=is_other, asker=who.did)
        elif around:
            found = await resolving.by_handle(question.handle or "", who.did)
        else:
            detail = "handles are looked up for the agents of this relay"
            return frames.Error(ErrorCode.NO_RELAYING, detail, None, question.ref)
        return frames.Resolved(question.ref, found.state, found.record, stale=found.stale)

    async def _statuses(
        self, who: Identity, items: Sequence[frames.StatusItem]
    ) -> list[frames.StatusAnswer]:
        if who.role == "peer":
            return await self._node.status(None, items)
        return await self._node.status.follow(who.did, items)

    async def _close_inbox(self, effect: CloseInbox) -> None:
        try:
            await self._node.store.close(effect.inbox, effect.fence, effect.last_handed)
        except RelayError as exc:
            # the next opening then assumes an unclean end, which only marks more
            log.loop_failed("close_inbox", exc.code)

    async def _close(self, code: ErrorCode | None) -> None:
        metrics.SESSION_ENDS.labels(code or "normal").inc()
        log.event(
            "session_ended", did=self._session.who.did if self._session.who else None, code=code
        )
        await self._hang_up(code)

    async def _hang_up(self, code: ErrorCode | None) -> None:
        message = {"type": "websocket.close", "code": close_code(code), "reason": code or ""}
        # the other side may have hung up first, a moment ago
        with contextlib.suppress(OSError):
            await self._send(message)

    # ------------------------------------------------------------ results

    def _answer(self, frame: frames.Submitted) -> None:
        self._room.set()
        self._write(frame)

    def decided(self, results: Sequence[tuple[AckRequest, Acked | Refusal]]) -> None:
        """One commit decided these acks."""
        for _, result in results:
            if isinstance(result, Acked):
                metrics.ACKED.inc(len(result.seqs))
                metrics.REFUSED.inc(len(result.refused))
        super().decided(results)

    def _detach(self) -> None:
        who = self._session.who
        if who is None:
            return
        metrics.SESSIONS.dec()
        self._node.delivery.detach(who.inbox, self)
        if who.role == "peer":
            self._node.peers.left(who.did, self._dismiss)
