"""Sessions without a connection: log in, fetch a page, ack, all over HTTP (PROTOCOL.md §6).

A node holds no state of them. The nonce, the token's hash and how far the inbox was delivered are
in the store, so another node may serve the next request.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from relay import clock, metrics
from relay.inbox.dispatch import Dispatcher
from relay.inbox.login import LoginService, new_nonce
from relay.inbox.model.types import AckRequest, AckResult, InboxAck, LiveSession, Page, PageItem
from relay.inbox.ports import InboxHead, InboxStore, TokenStore
from relay.inbox.rules import InboxRules
from relay.protocol import frames
from relay.protocol.errors import ErrorCode, ProtocolError, Refusal, StateError
from relay.protocol.ids import AgentKey, Did, Epoch, Fence, Seq
from relay.protocol.jws import Members, b64decode, b64encode, dumps, loads

NONCE_TTL_S: Final = 60
SESSION_TTL_S: Final = 15 * 60
MAX_WAIT_S: Final = 30
TOKEN_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class HttpSession:
    """The session that a token stands for."""

    did: Did
    inbox: AgentKey
    fence: Fence | None
    epoch: Epoch
    until: int

    def inbox_fence(self) -> Fence:
        """Return the fence of its inbox session.

        Raises:
            StateError: ``unknown_inbox``: it may only send.
        """
        if self.fence is None:
            raise StateError(ErrorCode.UNKNOWN_INBOX, "a send-only session has no inbox here")
        return self.fence


class _LongPoll:
    """A request that waits, as a listener of the dispatcher."""

    def __init__(self, fence: Fence, epoch: Epoch) -> None:
        self.fence = fence
        self.epoch = epoch
        self.seen: Seq | None = None
        self.wakeup = asyncio.Event()

    def is_current(self, head: InboxHead) -> bool:
        """Return True if the inbox is as the last read found it."""
        return (head.fence, head.epoch, head.head) == (self.fence, self.epoch, self.seen)

    def on_stored(self, fence: Fence, items: Sequence[PageItem]) -> None:
        del fence, items
        self.wakeup.set()

    def on_superseded(self) -> None:
        """Let the waiting read look: the store refuses it."""
        self.wakeup.set()

    def on_wakeup(self) -> None:
        self.wakeup.set()


@dataclass(frozen=True, slots=True)
class HttpSessions:
    """The use cases of §6.

    Args:
        inboxes: of the store.
        tokens: nonces and session tokens.
        login: checks logins and opens inboxes.
        dispatcher: wakes a request that waits.
        rules: of inboxes.
    """

    inboxes: InboxStore
    tokens: TokenStore
    login: LoginService
    dispatcher: Dispatcher
    rules: InboxRules

    async def nonce(self) -> str:
        """Return a single-use nonce, good for a minute on every node."""
        nonce = new_nonce()
        await self.tokens.put(_nonce_name(nonce), b"1", NONCE_TTL_S)
        return nonce

    async def log_in(self, auth: frames.Auth, address: str) -> tuple[str, frames.Welcome]:
        """Open the inbox session; return its token and the welcome.

        Args:
            auth: the login.
            address: where the agent is.

        Raises:
            RelayError: as :class:`LoginService`; ``auth_required`` for a nonce used or unknown.
        """
        until = int(clock.now()) + SESSION_TTL_S
        who, welcome = await self.login.log_in(auth, address, self._use_nonce, until=until)
        metrics.LOGINS.labels("ok").inc()
        # a connection that has this inbox on this node looks, and finds itself superseded
        self.dispatcher.wake([who.inbox])
        token = clock.entropy(TOKEN_BYTES)
        value = {
            "did": who.did,
            "inbox": who.inbox,
            "fence": who.fence or 0,
            "epoch": welcome.epoch or "-",
            "until": until,
        }
        await self.tokens.put(token_name(token), dumps(value), SESSION_TTL_S)
        return b64encode(token), welcome

    async def _use_nonce(self, nonce: str) -> None:
        if await self.tokens.pop(_nonce_name(nonce)) is None:
            raise StateError(ErrorCode.AUTH_REQUIRED, "this nonce is unknown, used or too old")

    async def session(self, token: bytes) -> HttpSession:
        """Return the session of a token.

        Raises:
            StateError: ``auth_required``.
        """
        value = await self.tokens.get(token_name(token))
        if value is None:
            raise StateError(ErrorCode.AUTH_REQUIRED, "this token is unknown or too old")
        members = Members(loads(value))
        return HttpSession(
            Did(members.text("did", limit=512)),
            AgentKey(members.text("inbox", limit=600)),
            Fence(members.integer("fence")) or None,
            Epoch(members.text("epoch", limit=64)),
            members.integer("until"),
        )

    async def fetch(self, session: HttpSession, wait_s: int) -> Page:
        """Fetch a page; with nothing there, wait up to ``wait_s`` seconds for it.

        Raises:
            RelayError: ``superseded``, ``inbox_reset``, ``unknown_inbox``, ``storage_unavailable``.
        """
        fence = await self._fence(session)
        poll = _LongPoll(fence, session.epoch)
        live = LiveSession(fence, self.login.node, session.until)
        deadline = clock.monotonic() + min(wait_s, MAX_WAIT_S)
        self.dispatcher.attach(session.inbox, poll)
        try:
            while True:
                poll.wakeup.clear()
                page = await self._fetch(session.inbox, live)
                poll.seen = page.head
                left_s = deadline - clock.monotonic()
                if page.items or left_s <= 0:
                    return page
                try:
                    async with asyncio.timeout(left_s):
                        await poll.wakeup.wait()
                except TimeoutError:
                    continue
        finally:
            self.dispatcher.detach(session.inbox, poll)

    async def _fence(self, session: HttpSession) -> Fence:
        """Return the fence of an inbox session, which may be older than this node."""
        await self.login.gate.admit()
        return session.inbox_fence()

    async def _fetch(self, inbox: AgentKey, live: LiveSession) -> Page:
        page = await self.inboxes.fetch(inbox, live, self.login.window)
        if isinstance(page, Refusal):
            raise page.to_error()
        return page

    async def change_rules(self, session: HttpSession, request: frames.Rules) -> frames.Ruled:
        """Change or read the rules of this session's inbox.

        Raises:
            RelayError: as :class:`relay.inbox.rules.InboxRules`; ``unknown_inbox``.
        """
        return await self.rules(session.inbox, await self._fence(session), request)

    async def ack(self, session: HttpSession, ack: InboxAck) -> AckResult:
        """Ack what this session fetched.

        Raises:
            RelayError: ``inbox_reset``, ``superseded``, ``bad_frame``, ``storage_unavailable``.
        """
        await self._fence(session)
        request = AckRequest(session.inbox, ack, taken=True)
        [result] = await self.inboxes.ack([request])
        if isinstance(result, Refusal):
            raise result.to_error()
        return result


def _nonce_name(nonce: str) -> bytes:
    try:
        return b"n:" + b64decode(nonce)
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_FRAME, f"nonce: {exc}") from exc


def token_name(token: bytes) -> bytes:
    """Return the name of a token's session: only its hash, so the store holds no token."""
    return b"t:" + hashlib.sha256(token).digest()
