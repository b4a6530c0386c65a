"""A link: a connection to a relay that was dialled and has proved who it is (PROTOCOL.md §5.10).

Rules of the file: whatever the network or its library raises leaves as a named error; every wait
has an end; who pushes never waits. When a link ends, all who wait for an answer hear of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import count
from typing import Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from relay import clock, metrics
from relay.peering.ports import Taken
from relay.protocol import frames
from relay.protocol.client_session import (
    Failed,
    Ready,
    Send,
)
from relay.protocol.did import SigningKey
from relay.protocol.envelope import eid_of
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
    RelayError,
    UnavailableError,
    error,
)
from relay.protocol.ids import (
    Did,
    Eid,
)
from relay.protocol.peer_session import (
    Answer,
    Answered,
    PeerSession,
    Question,
)
from relay.protocol.receipts import verify_receipt
from relay.protocol.submit_results import match
from relay.sockets import cut

LOGIN_S: Final = 10.0
ASK_S: Final = 10.0
SUBMIT_S: Final = 30.0
WRITE_S: Final = 30.0
CLOSE_S: Final = 2.0
MAX_SUBMITS: Final = 16
QUEUED_PUSHES: Final = 32
UNASKED_PER_S: Final = 4 * 1024 * 1024
"""So much is read of what nobody asked for: reading costs, too."""


class Link:
    """A proved connection to a peer; :meth:`run` must run as long as it is used.

    Args:
        socket: the connection.
        session: whose login holds.
        ready: who is at the other end.
        url: the origin that was dialled.
    """

    def __init__(
        self, socket: ClientConnection, session: PeerSession, ready: Ready, url: str
    ) -> None:
        self.peer: Did = ready.relay
        self.url = url
        self.limits = ready.hello.limits
        self.used_at = self._heard_at = clock.monotonic()
        self.ended: RelayError | None = None
        self._socket = socket
        self._session = session
        self._refs = count(1)
        self._waiting: dict[str, asyncio.Future[Answer | Taken]] = {}
        self._submitted: dict[str, list[Eid]] = {}
        """What was not answered yet, also where nobody waits for the answer any more."""
        self._handoffs: dict[str, str] = {}
        self._pushes: asyncio.Queue[frames.Gossip] = asyncio.Queue(QUEUED_PUSHES)
        self._room = asyncio.Semaphore(MAX_SUBMITS)
        self._over = asyncio.Event()

    # ------------------------------------------------------------ life

    async def run(self) -> RelayError:
        """Converse until the connection ends; gives why it did."""
        try:
            async with asyncio.TaskGroup() as tasks:
                work = [tasks.create_task(self._read_all()), tasks.create_task(self._push_all())]
                await self._over.wait()
                for task in work:
                    task.cancel()
        finally:
            self._end(_gone("this side has ended the link"))
            await _close(self._socket)
        return self.ended or _gone("the link is over")

    def close(self, why: RelayError | None = None) -> None:
        """End it from this side."""
        self._end(why or _gone("this side has ended the link"))

    async def say_goodbye(self) -> None:
        """The node shuts down: tell the peer, then end."""
        try:
            await self._write(frames.Bye(ErrorCode.DRAINING, "the node is shutting down", 1))
        except RelayError:
            return
        finally:
            self.close()

    def _end(self, why: RelayError) -> None:
        if self.ended is not None:
            return
        self.ended = why
        self._over.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(_gone(why.detail))

    async def _read_all(self) -> None:
        try:
            while self.ended is None:
                await self._read()
        except RelayError as exc:
            self._end(exc)

    async def _read(self) -> None:
        data = await _received(self._socket)
        effects = self._session.receive(frames.parse(data, "relay"), clock.now())
        self._heard_at = clock.monotonic()
        for effect in effects:
            if isinstance(effect, Failed):
                raise effect.error
            if isinstance(effect, Answered) and not self._take(effect.frame):
                # a peer pushes over the links that it dials, so this is passed over
                await asyncio.sleep(len(data) / UNASKED_PER_S)

    # ------------------------------------------------------------ questions and answers

    async def submit(
        self,
        envelopes: Sequence[bytes],
        *,
        hops: Sequence[Did] = (),
        marked: Sequence[int] = (),
        handoff: str = "",
    ) -> Taken:
        """Hand envelopes over; gives the answer to exactly these. See the port.

        Raises:
            UnavailableError: ``peer_unreachable``: nobody knows what became of them.
            RelayError: the peer refuses the submit as a whole.
        """
        ref = str(next(self._refs))
        frame = frames.Submit(ref, envelopes, tuple(hops), tuple(marked), handoff)
        async with self._room:
            self._submitted[ref] = [eid_of(wire) for wire in envelopes]
            if handoff:
                self._handoffs[ref] = handoff
            try:
                answer = await self._exchange(frame, ref, SUBMIT_S)
            except TimeoutError as exc:
                # a new connection asks anew; this one would only add to what is unknown
                self.close(_gone("a submit was not answered in time"))
                raise _gone("a submit was not answered in time") from exc
        if not isinstance(answer, Taken):
            raise ProtocolError(ErrorCode.BAD_FRAME, "a submit is answered by submitted")
        return answer

    async def ask(self, make: Callable[[str], Question]) -> Answer:
        """Ask; ``make`` is given the ref.

        Raises:
            UnavailableError: ``peer_unreachable``.
            RelayError: the peer's refusal.
        """
        ref = str(next(self._refs))
        try:
            answer = await self._exchange(make(ref), ref, ASK_S)
        except TimeoutError as exc:
            if clock.monotonic() - self._heard_at >= ASK_S:
                # half a connection: a new one is sooner there than its death is noticed
                self.close(_gone("asked, and nothing was heard"))
            raise _gone("a question was not answered in time") from exc
        if isinstance(answer, Taken):
            raise ProtocolError(ErrorCode.BAD_FRAME, "a question is not answered by submitted")
        return answer

    async def _exchange(self, frame: frames.Frame, ref: str, seconds: float) -> Answer | Taken:
        self.used_at = clock.monotonic()
        if self.ended is not None:
            raise _gone(self.ended.detail)
        future: asyncio.Future[Answer | Taken] = asyncio.get_running_loop().create_future()
        self._waiting[ref] = future
        try:
            async with asyncio.timeout(seconds):
                await self._write(frame)
                answer = await future
        finally:
            self._waiting.pop(ref, None)
            if future.done() and not future.cancelled():
                future.exception()  # heard of, also where the writing failed first
        if isinstance(answer, frames.Error):
            raise error(answer.error, answer.detail, retry_after=answer.retry_after)
        return answer

    def _take(self, frame: Answer) -> bool:
        """Tell those who wait; False: nobody has asked for this, or nobody waits any more."""
        if isinstance(frame, frames.Submitted):
            compact = frame.receipt
            receipt = None if compact is None else verify_receipt(compact, self.peer)
            # what does not fit wholly is no answer to anything: it ends the link
            for ref, outcomes in match(frame, receipt, self._submitted, self._handoffs).items():
                self._forget(ref)
                self._answer(ref, Taken(receipt, compact, outcomes))
            return True
        if frame.ref is None:
            return False
        self._forget(frame.ref)
        return self._answer(frame.ref, frame)

    def _forget(self, ref: str) -> None:
        self._submitted.pop(ref, None)
        self._handoffs.pop(ref, None)

    def _answer(self, ref: str, frame: Answer | Taken) -> bool:
        future = self._waiting.get(ref)
        if future is None or future.done():
            return False
        future.set_result(frame)
        return True

    # ------------------------------------------------------------ pushes

    def push(self, gossip: frames.Gossip) -> bool:
        """Pass on, at leisure; False: the queue is full, and this was dropped."""
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
                await self._socket.send(frames.encode(frame), text=True)
        except ConnectionClosed as exc:
            raise _gone("the connection is gone") from exc
        except TimeoutError as exc:
            raise _gone("the peer does not read") from exc


async def log_in(socket: ClientConnection, key: SigningKey, url: str, peer: Did) -> Link:
    """Log in over a fresh connection; closes it where that fails.

    Raises:
        RelayError: the peer refuses, is another relay, or does not answer.
    """
    session = PeerSession(key, url, peer, clock.entropy)
    try:
        async with asyncio.timeout(LOGIN_S):
            return Link(socket, session, await _proved(socket, session), url)
    except TimeoutError as exc:
        await _close(socket)
        raise _gone("the relay there does not answer the login") from exc
    except BaseException:
        await _close(socket)
        raise


async def _proved(socket: ClientConnection, session: PeerSession) -> Ready:
    while True:
        for effect in session.receive(await _receive(socket), clock.now()):
            match effect:
                case Failed(why):
                    raise why
                case Ready():
                    return effect
                case Send(frame):
                    await _send(socket, frame)
                case _:
                    pass


async def _send(socket: ClientConnection, frame: frames.Frame) -> None:
    try:
        await socket.send(frames.encode(frame), text=True)
    except ConnectionClosed as exc:
        raise _gone("the connection is gone") from exc


async def _receive(socket: ClientConnection) -> frames.Frame:
    return frames.parse(await _received(socket), "relay")


async def _received(socket: ClientConnection) -> bytes:
    try:
        return await socket.recv(decode=False)
    except ConnectionClosed as exc:
        raise _gone("the connection is gone") from exc


async def _close(socket: ClientConnection) -> None:
    try:
        async with asyncio.timeout(CLOSE_S):
            await socket.close()
    except TimeoutError:
        pass
    finally:
        # a cancellation in mid-close must not leave the socket open
        cut(socket.transport)


def _gone(detail: str) -> UnavailableError:
    return UnavailableError(ErrorCode.PEER_UNREACHABLE, detail)
