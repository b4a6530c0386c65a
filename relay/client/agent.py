"""An agent: it sends messages, and receives and acks those sent to it.

Entry point: :meth:`Agent.open`.

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
from relay.client.errors import AgentError, clone, closed, make_error
from relay.client.http import origin as origins
from relay.client.identity import key_file
from relay.client.identity.handles import DID_PREFIX
from relay.client.inbox.inbox import Inbox
from relay.client.inbox.serve import BounceHandler, Handler, serve
from relay.client.message import Body, Message, Sent
from relay.client.migration.retry import OnProgress
from relay.client.migration.runner import DEADLINE_S, MigrationOptions, ignore_progress
from relay.client.outbox.outcomes import Outcome, OutcomeIterator
from relay.client.outbox.sender import Wait
from relay.client.outbox.signing import check, sign
from relay.client.parts import AgentParts
from relay.client.process import Owner, not_pickled
from relay.client.state.agent_state import opened_async
from relay.client.state.migration_log import MigrationReport
from relay.protocol import frames
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import EndpointRecord
from relay.protocol.envelope import DEFAULT_LIFETIME_S, MAX_BODY_BYTES, SignedEnvelope
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import Did, MessageId
from relay.protocol.types import FirstContact

__all__ = ["Agent", "ResolveResult", "sign"]

OPEN_TIMEOUT_S: Final = 10.0
SEND_TIMEOUT_S: Final = 30.0
FLUSH_TIMEOUT_S: Final = 1.0


class Agent:
    """An agent, logged in at its relays; made by :meth:`open`.

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
        """Log in, and stay connected until the end of the block.

        Args:
            key: a signing key, or the path of its file.
            relays: origins of the agent's homes, best first. The agent connects to each of them,
                and to the other homes in its record. It sends through the best connected one.
            state: file for relay pins, record, epochs, outbox and eids. With it an acked message
                is never shown again, also after a crash. Envelopes without a definite result are
                submitted again, the same bytes; :meth:`outcomes` has the results.
            open_timeout_s: limit of the first login; later ones have none. An agent with a pending
                :meth:`migrate` continues that, and may open without a login.
            insecure_networks: CIDRs that may be dialled without TLS; loopback always may.

        Raises:
            AgentError: the first login fails.
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
        """The agent's DID."""
        return self._all_parts.key.did

    @property
    def relay(self) -> Did | None:
        """The relay that the agent sends through, or did last; it has proved itself."""
        return self._parts.pool.current.relay

    @property
    def welcome(self) -> frames.Welcome | None:
        """The position of the inbox at the latest login there."""
        return self._parts.pool.current.welcome

    @property
    def is_connected(self) -> bool:
        """True if a relay is connected."""
        return self._parts.pool.active is not None

    @property
    def warnings(self) -> tuple[AgentError, ...]:
        """The latest problems that do not end the agent.

        :class:`StaleRecordError`: two different records of one seq are signed with this agent's
        key. A second copy of it is running, or it was restored from a backup.
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
            to: the recipient's DID, or its handle: the first envelope pins the handle's DID.
            body: text, bytes or JSON; see :data:`relay.client.message.Body`.
            seal: encrypt it for the recipient; False: every relay on the way can read it.
            content_type: media type; default: that of text, bytes or JSON.
            type: URI that says what kind of content it is.
            thid: thread id.
            pthid: parent thread id.
            lifetime_s: seconds until it expires.
            wait: ``stored``: return with the relay's signed receipt; ``acked``: return when the
                recipient has acked it, it has ended otherwise, or the deadline has passed. The
                ``.state`` of the result says which.
            deadline_s: as for :meth:`submit`; it includes the lookup of a handle.

        Raises:
            HandleChangedError: the handle leads to another DID than before.
            AgentError: no receipt; see ``.stored`` and :meth:`submit`.
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
                state file the agent does that itself, also after the next open; :meth:`outcomes`
                has the result.
            AgentError: a definite refusal, or it was never sent.
        """
        check(envelope)
        return await self._parts.sender.submit(envelope, deadline_s=deadline_s)

    @property
    def unanswered(self) -> int:
        """Number of envelopes in the outbox, which have no definite result yet."""
        return len(self._parts.sender.unanswered)

    def outcomes(self) -> AsyncIterator[Outcome]:
        """Iterate the results of envelopes whose ``send`` returned none; until closed.

        Its deadline had passed, it was cancelled, or its process ended. The oldest comes first.
        Each is shown by every iteration, in every process, until its ``done()`` was called. ::

            async for outcome in me.outcomes():
                note(outcome.eid, outcome.stored, outcome.code)
                await outcome.done()

        None is deleted otherwise. With 10,000 pending envelopes and outcomes in the state file,
        ``send`` raises :class:`OverloadedError`, ``stored`` ``no``.

        Raises:
            ValueError: the agent has no state file.
            AgentError: the agent ended without being closed; after the outcomes that there are.
        """
        if self._parts.state.journal is None:
            raise ValueError("outcomes lie in a state file: open the agent with state=")
        return OutcomeIterator(self._parts.outcomes)

    # ------------------------------------------------------------ receive

    def inbox(self) -> AsyncIterator[Message]:
        """Iterate delivered messages, in order, until the agent is closed.

        A :class:`Bounce` reports envelopes that ended without an ack: check for it before you read
        the body. Several iterators share one inbox.

        Raises:
            SupersededError: a newer session has this inbox; the agent has stopped.
            InboxResetError: once for each reset; a new iteration continues.
            MovedError: this relay is not the agent's home.
            AgentError: the agent ended otherwise.
        """
        return MessageIterator(self._parts.inbox)

    async def serve(
        self, handler: Handler, on_bounce: BounceHandler | None = None, *, at_once: int = 1
    ) -> None:
        """Call ``handler`` for every message, and ack it when that returns; until closed.

        If it raises, the message comes again a little later, with ``redelivered``; other messages
        do not wait. After the fifth failure on one eid the message is refused as ``poison``, and
        its sender gets one bounce. With a state file, failures are counted over crashes.

        Args:
            handler: processes one message, durably; never a bounce.
            on_bounce: processes one bounce, durably. If it raises, the bounce comes again; a bounce
                is never refused. None: each bounce is logged as a warning, and acked.
            at_once: limit of concurrent handlers; 1 keeps the order.

        Raises:
            AgentError: as :meth:`inbox`; running handlers are cancelled.
        """
        await serve(self.inbox(), handler, on_bounce, at_once=at_once)

    # ------------------------------------------------------------ ask

    async def status(self, to: str, message_id: str) -> frames.State:
        """Return the state of an envelope that this agent sent to ``to``.

        The agent asks the relay that issued the receipt, and the relays that it forwarded to.

        Raises:
            AgentError: the relay's refusal, or no answer in time.
        """
        return await self._parts.status.status(Did(to), MessageId(message_id))

    async def resolve(self, name: str) -> ResolveResult:
        """Return the endpoint record of an agent; its signature is verified here.

        Args:
            name: a DID or a handle. The agent asks the sources of a handle itself; ``verified`` is
                True if the record lists the handle.

        Raises:
            AgentError: the relay's refusal, or no answer in time.
        """
        if name.startswith(DID_PREFIX):
            return await self._parts.router.find(name)
        return await self._parts.handles.resolve(name)

    async def publish(self, *, handles: Sequence[str] | None = None) -> EndpointRecord:
        """Sign the next endpoint record and publish it at each connected home.

        The agent does that itself before a record expires. Other homes get it at the next login.

        Args:
            handles: the handles to list; None: no change.

        Raises:
            ProtocolError: these handles fit in no record; nothing is changed.
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
        """Move to another relay, with all that waits; envelopes sent meanwhile are forwarded.

        Iterators, handlers and sends continue. A second call, with a state file also in another
        process, continues where the first one ended; with another ``url`` it moves there instead.
        An open agent continues by itself, too. At the end the record names only the new home. With
        several homes, the best one moves and the others are left.

        Args:
            url: origin of the new home; its relay proves itself, and is pinned.
            on_progress: called at each step.
            dead_source: continue if the old home does not answer within seconds. Should it return,
                its envelopes follow; until then everything is marked ``redelivered``.
            deadline_s: seconds to go on. After the record is published, the report comes at the
                deadline, with the number that still waits; before, an error that says what to do.

        Raises:
            MigrationStalledError: the old home has stopped delivering, and the migration does not
                continue. Nothing is lost.
            AgentError: one of the two refuses; or ``peer_unreachable``: nothing was changed.
            ValueError: ``url`` is not an origin.
        """
        self._owner.check()
        options = MigrationOptions(on_progress, abandon_source=dead_source, deadline_s=deadline_s)
        return await self._parts.migrations.migrate(url, options)

    async def cancel_migration(self, *, deadline_s: float = DEADLINE_S) -> None:
        """Cancel a migration that is not published yet: the agent stays at its old home.

        Raises:
            WrongStateError: there is none, or it is published: migrate back.
            AgentError: the old home, which has stopped delivering, does not answer in time.
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
        """Change the rules of this agent's inbox for senders; without arguments only read them.

        They are changed at each connected home; the refusal of one of several is one of the
        :attr:`warnings`.

        Raises:
            AgentError: the relay's refusal (nothing is changed), or no answer in time.
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
