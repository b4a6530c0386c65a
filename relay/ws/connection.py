"""One WebSocket connection: carry out the effects of a conversation (ARCHITECTURE.md §10).

No decision is taken here. ``_EFFECTS`` says who carries out which effect, and how. The reader
is one task; spawned work runs in the same task group; every write is direct and never waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from enum import Enum, auto
from typing import Any, ClassVar, Final

from relay import clock, log, metrics
from relay.inbox.client_ip import strangers_network
from relay.inbox.consumer import InboxConsumer
from relay.inbox.model import effects
from relay.inbox.model.conversation import Conversation
from relay.inbox.model.delivery import InboxDelivery
from relay.inbox.model.types import AckRequest, AckResult
from relay.inbox.submit import LocalSource, PeerSource, SubmitStream
from relay.protocol import frames
from relay.protocol.client_session import Close, Send
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
    RejectedError,
    RelayError,
    UnavailableError,
    close_code,
    error,
)
from relay.ws.protocol import RelaySocket
from relay.ws.services import WsServices

MAX_IN_FLIGHT: Final = 2048
MAX_IN_FLIGHT_BYTES: Final = 8 * 1024 * 1024
MAX_QUESTIONS_IN_WORK: Final = 16
MAX_QUESTIONS: Final = 256
"""Questions in work and in the queue; the next one is refused at once."""

AsgiSend = Callable[[dict[str, Any]], Awaitable[None]]
AsgiReceive = Callable[[], Awaitable[dict[str, Any]]]


class Way(Enum):
    """The ways to carry out an effect."""

    INLINE = auto()
    """At once, without waiting."""
    IN_TURN = auto()
    """By the reader, before it reads the next frame (back-pressure)."""
    SPAWNED = auto()
    """In a task of its own."""


class Connection(InboxConsumer):
    """A socket and its conversation.

    Args:
        services: the use cases of connections.
        socket: writes directly.
        send: of ASGI, for the close.
        address: where it was dialled from.
    """

    def __init__(
        self, services: WsServices, socket: RelaySocket, send: AsgiSend, address: str
    ) -> None:
        self._services = services
        self._address = address
        self._socket = socket
        self._send = send
        delivery = InboxDelivery(services.login.window)
        self._conversation = Conversation(services.hello(), delivery, clock.monotonic())
        super().__init__(delivery, self._conversation, services.store)
        self._submissions = SubmitStream(
            services.intake, self._on_submitted, strangers_network(address)
        )
        self._in_turn: list[Coroutine[Any, Any, None]] = []
        self._room = asyncio.Event()
        self._questions = asyncio.Semaphore(MAX_QUESTIONS_IN_WORK)
        self._question_count = 0
        self._closed = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        socket.on_slow = self._on_slow_reader

    # ------------------------------------------------------------ life

    async def run(self, receive: AsgiReceive) -> None:
        """Converse until the socket or the conversation ends."""
        try:
            await self._converse(receive)
        except* Exception:  # noqa: BLE001  a bug must not send its text to the other side
            log.internal_error("connection")
            metrics.INTERNAL.inc()
            self._write(frames.Bye(ErrorCode.INTERNAL))
            await self._hang_up(ErrorCode.INTERNAL)

    async def _converse(self, receive: AsgiReceive) -> None:
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                self._perform(self._conversation.start())
                reader = tasks.create_task(self._read_all(receive))
                # however the reader ends: a connection that is not read serves nobody
                reader.add_done_callback(lambda _: self._closed.set())
                await self._closed.wait()
            finally:
                self._end()

    def _end(self) -> None:
        """Take no more hints and begin nothing more; work in progress goes on to its end."""
        self._tasks = None
        self._conversation.lost()
        self._submissions.close()
        self._stop_timer()
        self._detach()

    def _detach(self) -> None:
        who = self._conversation.who
        if who is None:
            return
        metrics.SESSIONS.dec()
        self._services.dispatcher.detach(who.inbox, self)
        if who.role == "peer":
            self._services.peers.on_inbound_closed(who.did, self._dismiss)

    def drain(self) -> None:
        """End: the node shuts down."""
        self._perform(self._conversation.drain())

    def _on_slow_reader(self) -> None:
        metrics.SESSION_ENDS.labels(ErrorCode.SLOW_READER).inc()

    # ------------------------------------------------------------ reader

    async def _read_all(self, receive: AsgiReceive) -> None:
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self._perform(self._conversation.lost())
                return
            if message["type"] == "websocket.receive":
                self._perform(self._on_message(message))
                while self._in_turn:
                    await self._in_turn.pop(0)
                await self._wait_for_room()

    def _on_message(self, message: dict[str, Any]) -> Sequence[effects.Effect]:
        data = message.get("bytes")
        if data is None or "text" not in message:
            return self._conversation.fail(ErrorCode.UNSUPPORTED, "frames are text")
        try:
            frame = frames.parse(data, "agent")
        except RelayError as exc:
            return self._conversation.fail(exc.code, exc.detail)
        if not self._is_peer:
            return self._conversation.receive(frame)
        refusal = self._peer_refusal()
        if refusal is not None:
            return self._conversation.refused(refusal)
        return self._conversation.receive(frame, is_handoff_peer=not self._is_federated())

    async def _wait_for_room(self) -> None:
        """Stop reading where too much is undecided, or the other side does not read."""
        pending = self._submissions
        while pending.in_flight > MAX_IN_FLIGHT or pending.in_flight_bytes > MAX_IN_FLIGHT_BYTES:
            self._room.clear()
            await self._room.wait()
        if not self._socket.writable.is_set():
            await self._socket.writable.wait()

    # ------------------------------------------------------------ peers

    @property
    def _is_peer(self) -> bool:
        return self._conversation.who is not None and self._conversation.who.role == "peer"

    def _is_federated(self) -> bool:
        """Return True if this relay federates with the peer, beyond a hand-off."""
        who = self._conversation.who
        return who is not None and self._services.peers.is_federated(who.did)

    def _dismiss(self) -> None:
        refusal = self._peer_refusal()
        if refusal is not None:
            self._perform(self._conversation.refused(refusal))

    def _peer_refusal(self) -> RelayError | None:
        """Return why a peer that was let in is now refused."""
        assert self._conversation.who is not None  # noqa: S101  only a peer is asked about
        try:
            self._services.peers.require_login(self._conversation.who.did)
        except RejectedError as exc:
            return exc
        return None

    # ------------------------------------------------------------ effects

    def _perform(self, wanted: Sequence[effects.Effect]) -> None:
        for effect in wanted:
            carry_out, way = self._EFFECTS[type(effect)]
            work = carry_out(self, effect)
            if way is Way.SPAWNED:
                self._spawn(work)
            elif way is Way.IN_TURN:
                self._in_turn.append(work)
        self._set_timer()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._tasks is None:
            # the connection is over: a commit, a hint or a timer came after its end
            work.close()
            return
        self._tasks.create_task(work)

    def _on_send(self, effect: Send) -> None:
        self._write(effect.frame)

    def _write(self, frame: frames.Frame) -> None:
        if isinstance(frame, frames.Deliver):
            redelivered = sum(item.redelivered for item in frame.items)
            metrics.DELIVERED_FIRST.inc(len(frame.items) - redelivered)
            metrics.DELIVERED_AGAIN.inc(redelivered)
        self._socket.write_text(frames.encode(frame))

    def _on_ack(self, effect: AckRequest) -> None:
        self._services.acks.put(self, [effect])

    def on_committed(self, results: Sequence[tuple[AckRequest, AckResult | Refusal]]) -> None:
        """Take what one commit decided about acks."""
        for _, result in results:
            if isinstance(result, AckResult):
                metrics.ACKED.inc(len(result.seqs))
                metrics.REFUSED.inc(len(result.refused))
        super().on_committed(results)

    def _on_end_session(self, effect: effects.EndSession) -> None:
        self._perform(self._conversation.fail(effect.refusal.code, effect.refusal.detail))

    async def _log_in(self, effect: effects.CheckLogin) -> None:
        async def check_nonce(nonce: str) -> None:
            if nonce != effect.nonce:
                raise error(ErrorCode.BAD_SIGNATURE, "auth signs another nonce")

        login = self._services.login
        try:
            who, welcome = await login.log_in(effect.auth, self._address, check_nonce)
        except RelayError as exc:
            self._perform(self._conversation.refused(exc))
            return
        opened = self._conversation.opened(who, welcome)
        if self._conversation.who is None:
            # the conversation ended meanwhile: the inbox is closed again, and nobody is let in
            late = error(ErrorCode.STORAGE_UNAVAILABLE, "the login took too long here")
            login.refused.record(late, effect.auth, who.did, self._address)
            self._perform(opened)
            return
        metrics.LOGINS.labels("ok").inc()
        metrics.SESSIONS.inc()
        log.event("session_opened", did=who.did, fence=who.fence, role=who.role)
        if who.role == "peer":
            self._submissions.bind_source(PeerSource(who.inbox, who.did, self._is_federated))
            self._services.exchange.on_inbound_login(who.did, self._dismiss)
        elif who.fence is not None:
            self._submissions.bind_source(
                LocalSource(who.inbox, self._services.router, self._spawn)
            )
        self._perform(opened)
        if who.fence is not None:
            self._services.dispatcher.attach(who.inbox, self)
            # no hint came for what was stored between opening and attaching
            self.on_wakeup()

    async def _store(self, effect: effects.StoreEnvelopes) -> None:
        submit = effect.submit
        try:
            await self._submissions.submit(
                submit.ref, submit.envelopes, submit.marked, submit.handoff
            )
        except RelayError as exc:
            self._write(frames.Error(exc.code, exc.detail, exc.retry_after, submit.ref))

    def _on_submitted(self, frame: frames.Submitted) -> None:
        self._room.set()
        self._write(frame)

    async def _handle_gossip(self, effect: effects.HandleGossip) -> None:
        who = self._conversation.who
        assert who is not None  # noqa: S101  gossip comes only after a login
        try:
            await self._services.gossip.on_push(who.did, effect.gossip)
        except UnavailableError as exc:
            # what was not stored comes again with the next pull
            log.loop_failed("hear", exc.code)

    async def _close_inbox(self, effect: effects.CloseInbox) -> None:
        try:
            await self._services.store.close(effect.inbox, effect.fence, effect.delivered_upto)
        except RelayError as exc:
            # the next opening then assumes an unclean end, which only flags more as redelivered
            log.loop_failed("close_inbox", exc.code)

    async def _close(self, effect: Close) -> None:
        code = effect.code
        metrics.SESSION_ENDS.labels(code or "normal").inc()
        who = self._conversation.who
        log.event("session_ended", did=who.did if who else None, code=code)
        await self._hang_up(code)

    async def _hang_up(self, code: ErrorCode | None) -> None:
        message = {"type": "websocket.close", "code": close_code(code), "reason": code or ""}
        # the other side may have hung up first, a moment ago
        with contextlib.suppress(OSError):
            await self._send(message)

    # ------------------------------------------------------------ questions

    async def _on_question(self, effect: effects.AnswerQuestion) -> None:
        """Answer a peer in turn, so that one that floods is read no faster than it is answered."""
        if self._is_peer:
            await self._answer(effect.question)
        else:
            self._spawn(self._answer(effect.question))

    async def _answer(self, question: effects.QuestionFrame) -> None:
        who = self._conversation.who
        assert who is not None  # noqa: S101  a question comes only after a login
        self._question_count += 1
        try:
            if self._question_count > MAX_QUESTIONS:
                raise error(ErrorCode.OVERLOADED, "too many questions at once", retry_after=1)
            async with self._questions:
                if self._closed.is_set():
                    return
                frame = await self._services.answer(who, question)
        except RelayError as exc:
            frame = frames.Error(exc.code, exc.detail, exc.retry_after, question.ref)
        finally:
            self._question_count -= 1
        self._write(frame)

    # ------------------------------------------------------------ the table

    _EFFECTS: ClassVar[dict[type, tuple[Callable[[Any, Any], Any], Way]]] = {
        Send: (_on_send, Way.INLINE),
        AckRequest: (_on_ack, Way.INLINE),
        effects.EndSession: (_on_end_session, Way.INLINE),
        effects.CheckLogin: (_log_in, Way.IN_TURN),
        effects.StoreEnvelopes: (_store, Way.IN_TURN),
        effects.HandleGossip: (_handle_gossip, Way.IN_TURN),
        effects.AnswerQuestion: (_on_question, Way.IN_TURN),
        effects.Read: (InboxConsumer.read, Way.SPAWNED),
        effects.CloseInbox: (_close_inbox, Way.SPAWNED),
        Close: (_close, Way.SPAWNED),
    }
