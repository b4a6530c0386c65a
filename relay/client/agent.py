"""An agent: it sends, and what is sent to it arrives and is acked.

::

    async with Agent.open(key, relays=["https://relay.example"]) as me:
        await me.send(to, "hello")
        async for message in me.inbox():
            await message.ack()
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from relay import clock
from relay.client._util import beside
from relay.client.directory.resolve import ResolveResult
from relay.client.errors import (
    AgentError,
    clone,
    closed,
    make_error,
)
from relay.client.http import origin as origins
from relay.client.identity import key_file
from relay.client.identity.handles import DID_PREFIX
from relay.client.inbox.inbox import Inbox
from relay.client.inbox.serve import (
    BounceHandler,
    Handler,
    serve,
)
from relay.client.message import Body, Message, Sent
from relay.client.migration.retry import OnProgress
from relay.client.migration.runner import (
    DEADLINE_S,
    MigrationOptions,
    ignore_progress,
)
from relay.client.outbox.outcomes import Outcome, OutcomeIterator
from relay.client.outbox.sender import Wait
from relay.client.outbox.signing import (
    check,
    sign,
)
from relay.client.parts import AgentParts
from relay.client.process import Owner, not_pickled
from relay.client.state.agent_state import opened_async
from relay.client.state.migration_log import MigrationReport
from relay.protocol import frames
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import EndpointRecord
from relay.protocol.envelope import (
    DEFAULT_LIFETIME_S,
    MAX_BODY_BYTES,
    SignedEnvelope,
)
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import (
    Did,
    MessageId,
)
from relay.protocol.types import FirstContact

__all__ = ["Agent", "ResolveResult", "sign"]

OPEN_TIMEOUT_S: Final = 10.0
SEND_TIMEOUT_S: Final = 30.0
FLUSH_TIMEOUT_S: Final = 1.0


class Agent:
    """An identity in conversation with its relays; made by :meth:`open`.

    It lives in one process and one event loop. In a forked child each call raises
    :class:`WrongStateError`.
    """

    def __init__(self, parts: AgentParts) -> None:
        self._owner = Owner()
        self._all_parts = parts

    __reduce__ = not_pickled("an agent is not pickled: open one in the other process")

    @property
    def _parts(self) -> AgentParts:
        self._owner.check()
        return self._all_parts

    # ------------------------------------------------------------ life

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        key: SigningKey | Path | str,
        relays: str | Sequence[str],
        *,
        state: str | os.PathLike[str] | None = None,
        open_timeout_s: float = OPEN_TIMEOUT_S,
        insecure_networks: Sequence[str] = (),
    ) -> AsyncIterator[Agent]:
        """Log in and stay in conversation until the end of the block.

        Args:
            key: a signing key, or the path of its file.
            relays: origins, best first: each a home. There is a conversation with each of them, and
                with each other home that the agent's record names; what is sent goes through the
                best that is connected.
            state: the agent's memory over restarts and crashes: relay pins, record, epochs, outbox
                and eids. With it an acked message is never shown again, by no home, and what was
                sent and not definitely answered is submitted again, the same bytes; what that
                comes to is told by :meth:`outcomes`.
            open_timeout_s: seconds until the first login must hold; later ones have no limit. An
                agent that is in the midst of a :meth:`migrate` goes on with that, and may open
                without a login.
            insecure_networks: CIDRs that may be dialled without TLS; loopback always may.

        Raises:
            AgentError: the first login does not hold.
            KeyFileError: ``key`` cannot be used.
            ValueError: no relay, or not an origin.
        """
        signing = key if isinstance(key, SigningKey) else key_file.load(Path(key))
        named = [relays] if isinstance(relays, str) else list(relays)
        if not named:
            raise ValueError("name at least one relay")
        parsed = [origins.parse(url, insecure_networks=insecure_networks) for url in named]
        path = None if state is None else Path(state)
        async with opened_async(path, signing.did) as opened:
            parts = AgentParts(signing, parsed, opened, insecure_networks)
            await parts.sender.resume()
            async with beside(parts.run()):
                try:
                    await _first_login(parts, open_timeout_s)
                    yield cls(parts)
                finally:
                    await _close(parts)

    @property
    def did(self) -> Did:
        """Who this is."""
        return self._all_parts.key.did

    @property
    def relay(self) -> Did | None:
        """The relay that is sent through, or was the last time; it has proved itself."""
        return self._parts.pool.current.relay

    @property
    def welcome(self) -> frames.Welcome | None:
        """Where the inbox stood at the latest login there."""
        return self._parts.pool.current.welcome

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection just now."""
        return self._parts.pool.active is not None

    @property
    def warnings(self) -> tuple[AgentError, ...]:
        """The latest of what the program should know and what does not end the agent.

        :class:`StaleRecordError`: two different records of one seq are signed with this agent's
        key: there is a second copy of it, or it was restored from a backup.
        """
        return tuple(self._parts.warnings)

    @property
    def refused(self) -> int:
        """Envelopes that could not be verified or opened, and were refused."""
        return self._parts.inbox.refused

    # ------------------------------------------------------------ send

    async def send(
        self,
        to: str,
        body: Body,
        *,
        seal: bool = True,
        content_type: str | None = None,
        type: str | None = None,  # noqa: A002  the envelope's own word
        thid: str | None = None,
        pthid: str | None = None,
        lifetime_s: int = DEFAULT_LIFETIME_S,
        wait: Wait = "stored",
        deadline_s: float = SEND_TIMEOUT_S,
    ) -> Sent:
        """Send ``body`` and wait for the relay's receipt, or for the recipient's ack.

        Args:
            to: the recipient's DID, or its handle: the first envelope pins the DID of that.
            body: text, bytes or JSON: :data:`relay.client.message.Body` says what comes back equal;
                anything else is refused.
            seal: only the recipient can read it; False: everybody on the way can.
            content_type: media type; else that of text, bytes or JSON.
            type: URI that says what kind of content it is.
            thid: thread id.
            pthid: parent thread id.
            lifetime_s: seconds until it expires.
            wait: ``stored``: until the relay has signed that it keeps it; ``acked``: until the
                recipient has acked it, or it has ended otherwise, or the deadline: ``.state`` of
                what is returned says which.
            deadline_s: as for :meth:`submit`; the look-up of a handle is part of it.

        Raises:
            HandleChangedError: the handle leads to another DID than it did.
            AgentError: no receipt; ``.stored`` says what is known (see :meth:`submit`).
            ValueError: ``to`` is neither a DID nor a handle.
        """
        until = clock.monotonic() + deadline_s
        to = await self._parts.handles.resolve_recipient(to, deadline_s)
        envelope = self.sign(
            to,
            body,
            seal=seal,
            content_type=content_type,
            type=type,
            thid=thid,
            pthid=pthid,
            lifetime_s=lifetime_s,
        )
        left_s = max(0.0, until - clock.monotonic())
        if wait == "stored":
            return await self._parts.sender.submit(envelope, deadline_s=left_s)
        return await self._parts.sender.send_until_acked(envelope, self.status, deadline_s=left_s)

    def sign(
        self,
        to: str,
        body: Body,
        *,
        seal: bool = True,
        content_type: str | None = None,
        type: str | None = None,  # noqa: A002  the envelope's own word
        thid: str | None = None,
        pthid: str | None = None,
        lifetime_s: int = DEFAULT_LIFETIME_S,
    ) -> SignedEnvelope:
        """Sign an envelope without submitting it; arguments as for :meth:`send`."""
        return sign(
            self._parts.key,
            to,
            body,
            sealed=seal,
            content_type=content_type,
            type=type,
            thid=thid,
            pthid=pthid,
            lifetime_s=lifetime_s,
            max_body_bytes=self._parts.pool.current.limits.get("body", MAX_BODY_BYTES),
        )

    async def submit(self, envelope: SignedEnvelope, *, deadline_s: float = SEND_TIMEOUT_S) -> Sent:
        """Submit the same bytes until the relay's answer is definite.

        Args:
            envelope: what :meth:`sign` made, or the ``.envelope`` of an earlier failure.
            deadline_s: seconds to go on, over reconnects.

        Raises:
            BadEnvelopeError: no relay could read it; it is not submitted.
            OutcomeUnknownError: the deadline passed and it may be stored: submit it again. With a
                state file that goes on by itself, now and after the next open, and what it comes to
                is one of :meth:`outcomes`.
            AgentError: a definite no, or never sent.
        """
        check(envelope)
        return await self._parts.sender.submit(envelope, deadline_s=deadline_s)

    @property
    def unanswered(self) -> int:
        """Envelopes in the outbox: submitted, or about to be, and not definitely answered."""
        return len(self._parts.sender.unanswered)

    def outcomes(self) -> AsyncIterator[Outcome]:
        """What became of envelopes whose ``send`` could not tell: oldest first, until closed.

        Its deadline had passed, it was cancelled, or its process ended. Each is shown by every
        iteration, in every life, until the program has called its ``done()``. ::

            async for outcome in me.outcomes():
                note(outcome.eid, outcome.stored, outcome.code)
                await outcome.done()

        Nothing is forgotten by itself: where 10,000 unanswered envelopes and outcomes lie in the
        state file, ``send`` raises :class:`OverloadedError`, ``stored`` ``no``.

        Raises:
            ValueError: the agent has no state file, so nothing goes on when ``send`` gives up.
            AgentError: the agent ended otherwise than by being closed; after those that are there.
        """
        if self._parts.state.journal is None:
            raise ValueError("outcomes lie in a state file: open the agent with state=")
        return OutcomeIterator(self._parts.outcomes)

    # ------------------------------------------------------------ receive

    def inbox(self) -> AsyncIterator[Message]:
        """What is delivered, in order; ends when the agent is closed.

        A message that is a :class:`Bounce` tells of envelopes that ended without an ack: look for
        it before the body is read. Several iterators share one inbox.

        Raises:
            SupersededError: a newer session has this inbox; the agent has stopped.
            InboxResetError: once a reset; iterating anew goes on.
            MovedError: this relay is not the agent's home.
            AgentError: the agent ended otherwise.
        """
        return MessageIterator(self._parts.inbox)

    async def serve(
        self, handler: Handler, on_bounce: BounceHandler | None = None, *, at_once: int = 1
    ) -> None:
        """Give every message to ``handler``, ack it when that returns; goes on until closed.

        Where it raises, the message comes again a little later, with ``redelivered``, and those
        behind it go on. After the fifth failure on one eid, counted over crashes where there is a
        state file, it is refused as ``poison``: its sender gets one bounce.

        Args:
            handler: processes one message, durably; it is never given a bounce.
            on_bounce: processes one bounce, durably; where it fails, the bounce comes again until
                it does not, and is never refused. None: each bounce is logged as a warning, and
                acked.
            at_once: how many are under way at most; 1 keeps their order.

        Raises:
            AgentError: as :meth:`inbox`; those under way are cancelled.
        """
        await serve(self.inbox(), handler, on_bounce, at_once=at_once)

    # ------------------------------------------------------------ ask

    async def status(self, to: str, message_id: str) -> frames.State:
        """What became of an envelope that this agent sent to ``to``.

        The relay that gave the receipt is asked; it follows what another one took over from it.

        Raises:
            AgentError: the relay's no, or no answer in time.
        """
        return await self._parts.status.status(Did(to), MessageId(message_id))

    async def resolve(self, name: str) -> ResolveResult:
        """Where an agent lives, as the relay knows it; the signature is checked here.

        Args:
            name: a DID, or a handle: its sources are asked from here, and ``verified`` says
                whether the record lists it.

        Raises:
            AgentError: the relay's no, or no answer in time.
        """
        if name.startswith(DID_PREFIX):
            return await self._parts.router.find(name)
        return await self._parts.handles.resolve(name)

    async def publish(self, *, handles: Sequence[str] | None = None) -> EndpointRecord:
        """Sign the next endpoint record and publish it at each home that is connected.

        That happens by itself, too, before a record expires; a home that is not connected now gets
        it at the next login.

        Args:
            handles: the handles that it lists from now on; None: those that it did.

        Raises:
            ProtocolError: these handles make no record; nothing is changed.
            AgentError: not published everywhere in time.
        """
        return await self._parts.router.publish(handles)

    async def migrate(
        self,
        url: str,
        *,
        on_progress: OnProgress = ignore_progress,
        dead_source: bool = False,
        deadline_s: float = DEADLINE_S,
    ) -> MigrationReport:
        """Change relays: what waits, and whoever writes meanwhile, follows; nothing is lost.

        Iterators of the inbox, handlers and sends go on over it. Called again, with a state file
        also in another life, it goes on where it was, and so it does by itself as long as the agent
        is open; with another ``url`` it leads there instead. When it is over, the record names the
        new home only: with several homes it is the best one that moves, and the others are left.

        Args:
            url: origin of the new home; its relay proves itself, and is pinned.
            on_progress: is told of each step.
            dead_source: go on where the old home does not answer within seconds. What lies there
                comes should it ever return, and everything is marked ``redelivered`` until then.
            deadline_s: seconds to go on. Once the record is published, a report comes at its end,
                with what still waits; before, an error that says what to do.

        Raises:
            MigrationStalledError: the old home has stopped, and it does not go on. Nothing is lost.
            AgentError: one of the two says no; or ``peer_unreachable``: nothing was changed.
            ValueError: ``url`` is not an origin.
        """
        self._owner.check()
        options = MigrationOptions(on_progress, abandon_source=dead_source, deadline_s=deadline_s)
        return await self._parts.migrations.migrate(url, options)

    async def cancel_migration(self, *, deadline_s: float = DEADLINE_S) -> None:
        """Take back a migration that is not published yet: this agent lives where it did.

        Raises:
            WrongStateError: there is none, or it has moved: migrate back.
            AgentError: the old home, which has stopped delivering, cannot be told in time.
        """
        self._owner.check()
        await self._parts.migrations.cancel(MigrationOptions(deadline_s=deadline_s))

    async def rules(
        self,
        *,
        first_contact: FirstContact | None = None,
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        forget: Sequence[str] = (),
    ) -> frames.Ruled:
        """Change whom this agent's inbox takes envelopes from; naming nothing just reads it.

        With several homes it is changed at each that is connected; what one of them does not take
        is one of the :attr:`warnings`.

        Raises:
            AgentError: the relay's no (then nothing is changed), or no answer in time.
        """
        lists = [tuple(map(Did, dids)) for dids in (allow, deny, forget)]
        return await self._parts.router.rules(lambda ref: frames.Rules(ref, first_contact, *lists))


class MessageIterator(AsyncIterator[Message]):
    """Iterates an inbox; no generator, which would hold a message that the program has dropped."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    async def __anext__(self) -> Message:
        message = await self._inbox.next()
        if message is None:
            raise StopAsyncIteration
        return message


async def _first_login(parts: AgentParts, timeout_s: float) -> None:
    """Wait for the first login; an agent that migrates may have none for now.

    Raises:
        AgentError: no login in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            await parts.pool.wait_opened()
    except TimeoutError as exc:
        if parts.state.migration.pending is not None:
            return
        last = parts.pool.last_failure
        if last is not None:
            raise clone(last) from exc
        where = ", ".join(str(one.origin) for one in parts.pool.channels)
        raise make_error(ErrorCode.PEER_UNREACHABLE, f"{where}: no answer in time") from exc


async def _close(parts: AgentParts) -> None:
    """Send the acks that are due, then end the agent."""
    try:
        if parts.pool.active is not None:
            await parts.inbox.flush(FLUSH_TIMEOUT_S)
    finally:
        parts.pool.end(closed())
