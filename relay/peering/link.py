"""Talk to a relay over a connection that this relay dialled and the other end has proved (§5.10).

Whatever the network or its library raises leaves as a named error, every wait has an end, and
:meth:`Link.push` never waits. When a link ends, every waiting caller gets ``peer_unreachable``.

Entry points: :func:`log_in` returns a :class:`Link`, whose :meth:`Link.run` must run while it is
used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import count
from typing import Final, NamedTuple

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from relay import clock, metrics
from relay.protocol import frames
from relay.protocol.client_session import (
    ClientSession,
    Failed,
    FrameReceived,
    LoginOptions,
    PeerAnswer,
    PeerQuestion,
    Ready,
    Send,
    match,
)
from relay.protocol.did import SigningKey
from relay.protocol.envelope import eid_of
from relay.protocol.errors import ErrorCode, ProtocolError, RelayError, error, unreachable
from relay.protocol.ids import Did, Eid
from relay.protocol.receipts import Receipt, ReceiptItem, verify_receipt
from relay.sockets import cut

LOGIN_S: Final = 10.0
ASK_S: Final = 10.0
SUBMIT_S: Final = 30.0
WRITE_S: Final = 30.0
CLOSE_S: Final = 2.0
MAX_SUBMITS: Final = 16
MAX_QUEUED_PUSHES: Final = 32
MAX_UNASKED_BYTES_PER_S: Final = 4 * 1024 * 1024
"""Bound of unsolicited data: reading costs, too."""


class SubmitResult(NamedTuple):
    """The answer of a peer to one submit: its receipt, and an item or rejection per envelope."""

    receipt: Receipt | None
    compact: str | None
    outcomes: Sequence[ReceiptItem | frames.Rejection]


class Link:
    """A proved connection to a peer.

    Args:
        socket: the connection.
        session: the login and its frames.
        ready: the proof of the other end.
        url: the origin that was dialled.
    """

    def __init__(
        self, socket: ClientConnection, session: ClientSession, ready: Ready, url: str
    ) -> None:
        self.peer: Did = ready.relay
        self.url = url
        self.limits = ready.hello.limits
        self.used_at = self._received_at = clock.monotonic()
        self.ended: RelayError | None = None
        self._socket = socket
        self._session = session
        self._refs = count(1)
        self._waiting: dict[str, asyncio.Future[PeerAnswer | SubmitResult]] = {}
        self._submitted: dict[str, list[Eid]] = {}
        """Submits without an answer, also those whose caller no longer waits."""
        self._handoffs: dict[str, str] = {}
        self._pushes: asyncio.Queue[frames.Gossip] = asyncio.Queue(MAX_QUEUED_PUSHES)
        self._submit_slots = asyncio.Semaphore(MAX_SUBMITS)
        self._over = asyncio.Event()

    # ------------------------------------------------------------ life

    async def run(self) -> RelayError:
        """Read and push until the connection ends; return the reason."""
        try:
            async with asyncio.TaskGroup() as tasks:
                work = [tasks.create_task(self._read_all()), tasks.create_task(self._push_all())]
                await self._over.wait()
                for task in work:
                    task.cancel()
        finally:
            self._end(unreachable("this side has ended the link"))
            await _close(self._socket)
        return self.ended or unreachable("the link is over")

    def close(self, exc: RelayError | None = None) -> None:
        """End the link from this side."""
        self._end(exc or unreachable("this side has ended the link"))

    async def say_goodbye(self) -> None:
        """Tell the peer that the node shuts down, then end the link."""
        try:
            await self._write(frames.Bye(ErrorCode.DRAINING, "the node is shutting down", 1))
        except RelayError:
            return
        finally:
            self.close()

    def _end(self, exc: RelayError) -> None:
        if self.ended is not None:
            return
        self.ended = exc
        self._over.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(unreachable(exc.detail))

    async def _read_all(self) -> None:
        try:
            while self.ended is None:
                await self._read()
        except RelayError as exc:
            self._end(exc)

    async def _read(self) -> None:
        data = await _receive(self._socket)
        effects = self._session.receive(frames.parse(data, "relay"), clock.now())
        self._received_at = clock.monotonic()
        for effect in effects:
            if isinstance(effect, Failed):
                raise effect.error
            if isinstance(effect, FrameReceived) and not self._on_frame(effect.frame):
                # ignored: a peer pushes over the links that it dials itself
                await asyncio.sleep(len(data) / MAX_UNASKED_BYTES_PER_S)

    # ------------------------------------------------------------ questions and answers

    async def submit(
        self,
        envelopes: Sequence[bytes],
        *,
        hops: Sequence[Did] = (),
        marked: Sequence[int] = (),
        handoff: str = "",
    ) -> SubmitResult:
        """Submit at most 256 envelopes; several submits may be under way.

        Args:
            envelopes: the wire bytes.
            hops: the relays that they passed.
            marked: indices of those that may have been delivered before.
            handoff: the hand-off that they are a page of; the receipt must name it, too.

        Raises:
            UnavailableError: ``peer_unreachable``: no answer; the peer may have stored them.
            RelayError: the peer refuses the submit as a whole.
        """
        ref = str(next(self._refs))
        frame = frames.Submit(ref, envelopes, tuple(hops), tuple(marked), handoff)
        async with self._submit_slots:
            self._submitted[ref] = [eid_of(wire) for wire in envelopes]
            if handoff:
                self._handoffs[ref] = handoff
            try:
                answer = await self._exchange(frame, ref, SUBMIT_S)
            except TimeoutError as exc:
                # a new connection submits again; this one would only leave more submits uncertain
                self.close(unreachable("a submit was not answered in time"))
                raise unreachable("a submit was not answered in time") from exc
        if not isinstance(answer, SubmitResult):
            raise ProtocolError(ErrorCode.BAD_FRAME, "a submit is answered by submitted")
        return answer

    async def ask(self, make: Callable[[str], PeerQuestion]) -> PeerAnswer:
        """Ask the question that ``make`` returns for a ref.

        Raises:
            UnavailableError: ``peer_unreachable``.
            RelayError: the peer's refusal.
        """
        ref = str(next(self._refs))
        try:
            answer = await self._exchange(make(ref), ref, ASK_S)
        except TimeoutError as exc:
            if clock.monotonic() - self._received_at >= ASK_S:
                # half-open connection: dialling again is quicker than waiting for its timeout
                self.close(unreachable("asked, and received nothing"))
            raise unreachable("a question was not answered in time") from exc
        if isinstance(answer, SubmitResult):
            raise ProtocolError(ErrorCode.BAD_FRAME, "a question is not answered by submitted")
        return answer

    async def _exchange(
        self, frame: frames.Frame, ref: str, seconds: float
    ) -> PeerAnswer | SubmitResult:
        self.used_at = clock.monotonic()
        if self.ended is not None:
            raise unreachable(self.ended.detail)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[PeerAnswer | SubmitResult] = loop.create_future()
        self._waiting[ref] = future
        try:
            async with asyncio.timeout(seconds):
                await self._write(frame)
                answer = await future
        finally:
            self._waiting.pop(ref, None)
            if future.done() and not future.cancelled():
                future.exception()  # retrieve it, also if the write failed first
        if isinstance(answer, frames.Error):
            raise error(answer.error, answer.detail, retry_after=answer.retry_after)
        return answer

    def _on_frame(self, frame: PeerAnswer) -> bool:
        """Give an answer to its caller; return False if no caller waits for it."""
        if isinstance(frame, frames.Submitted):
            compact = frame.receipt
            receipt = None if compact is None else verify_receipt(compact, self.peer)
            # an answer that fits no submit as a whole ends the link
            for ref, outcomes in match(frame, receipt, self._submitted, self._handoffs).items():
                self._forget(ref)
                self._resolve(ref, SubmitResult(receipt, compact, outcomes))
            return True
        if frame.ref is None:
            return False
        self._forget(frame.ref)
        return self._resolve(frame.ref, frame)

    def _forget(self, ref: str) -> None:
        self._submitted.pop(ref, None)
        self._handoffs.pop(ref, None)

    def _resolve(self, ref: str, answer: PeerAnswer | SubmitResult) -> bool:
        future = self._waiting.get(ref)
        if future is None or future.done():
            return False
        future.set_result(answer)
        return True

    # ------------------------------------------------------------ pushes

    def push(self, gossip: frames.Gossip) -> bool:
        """Queue gossip for the peer; return False if the queue is full and it was dropped."""
        try:
            self._pushes.put_nowait(gossip)
        except asyncio.QueueFull:
            metrics.GOSSIP_DROPPED.labels("link").inc()
            return False
        return True

    async def _push_all(self) -> None:
        try:
            while True:
                await self._write(await self._pushes.get())
        except RelayError as exc:
            self._end(exc)

    async def _write(self, frame: frames.Frame) -> None:
        try:
            async with asyncio.timeout(WRITE_S):
                await _send(self._socket, frame)
        except TimeoutError as exc:
            raise unreachable("the peer does not read") from exc


async def log_in(socket: ClientConnection, key: SigningKey, url: str, peer: Did) -> Link:
    """Log in over a fresh connection, and close it on failure.

    Raises:
        RelayError: the peer refuses, is another relay, or does not answer.
    """
    session = ClientSession(key, LoginOptions(url, peer), clock.entropy, "peer")
    try:
        async with asyncio.timeout(LOGIN_S):
            return Link(socket, session, await _prove(socket, session), url)
    except TimeoutError as exc:
        await _close(socket)
        raise unreachable("the relay there does not answer the login") from exc
    except BaseException:
        await _close(socket)
        raise


async def _prove(socket: ClientConnection, session: ClientSession) -> Ready:
    while True:
        frame = frames.parse(await _receive(socket), "relay")
        for effect in session.receive(frame, clock.now()):
            match effect:
                case Failed(exc):
                    raise exc
                case Ready():
                    return effect
                case Send(reply):
                    await _send(socket, reply)
                case _:
                    pass


async def _send(socket: ClientConnection, frame: frames.Frame) -> None:
    try:
        await socket.send(frames.encode(frame), text=True)
    except ConnectionClosed as exc:
        raise unreachable("the connection is gone") from exc


async def _receive(socket: ClientConnection) -> bytes:
    try:
        return await socket.recv(decode=False)
    except ConnectionClosed as exc:
        raise unreachable("the connection is gone") from exc


async def _close(socket: ClientConnection) -> None:
    try:
        async with asyncio.timeout(CLOSE_S):
            await socket.close()
    except TimeoutError:
        pass
    finally:
        # a cancellation during the close must not leave the socket open
        cut(socket.transport)
