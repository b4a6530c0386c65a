"""Sessions without a connection: log in, take a page, ack, all over HTTP (PROTOCOL.md §6).

Rules of the file: no state on this node: the nonce, the token's hash and how far the inbox was
handed over are in the store, so the next request may come to another node.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from relay import clock, metrics
from relay.inbox.model.types import (
    Ack,
    Acked,
    AckRequest,
    LiveSession,
    Page,
    PageItem,
)
from relay.inbox.ports import (
    Head,
)
from relay.node.node import (
    Node,
    new_nonce,
)
from relay.protocol import frames
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
    Refusal,
    RelayError,
    StateError,
)
from relay.protocol.ids import (
    AgentKey,
    Did,
    Epoch,
    Fence,
    Seq,
)
from relay.protocol.jws import (
    Members,
    b64decode,
    b64encode,
    dumps,
    loads,
)

NONCE_TTL_S: Final = 60
SESSION_TTL_S: Final = 15 * 60
MAX_WAIT_S: Final = 30
TOKEN_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Session:
    """What a token stands for."""

    did: Did
    inbox: AgentKey
    fence: Fence | None
    epoch: Epoch
    until: int

    def inbox_fence(self) -> Fence:
        """The fence of its inbox session.

        Raises:
            StateError: ``unknown_inbox``: it may only send.
        """
        if self.fence is None:
            raise StateError(ErrorCode.UNKNOWN_INBOX, "a send-only session has no inbox here")
        return self.fence


class _Waiter:
    """A long poll, as a listener of the node's deliveries."""

    def __init__(self, fence: Fence, epoch: Epoch) -> None:
        self.fence = fence
        self.epoch = epoch
        self.seen: Seq | None = None
        self.news = asyncio.Event()

    def is_current(self, head: Head) -> bool:
        """Whether the inbox is as the last read found it."""
        return (head.fence, head.epoch, head.head) == (self.fence, self.epoch, self.seen)

    def on_stored(self, fence: Fence, items: Sequence[PageItem]) -> None:
        del fence, items
        self.news.set()

    def on_superseded(self) -> None:
        """The waiting read looks, and is refused."""
        self.on_wakeup()

    def on_wakeup(self) -> None:
        self.news.set()


@dataclass(frozen=True, slots=True)
class Polling:
    """The use cases of §6 over a node."""

    node: Node

    async def nonce(self) -> str:
        """A single-use nonce, good for a minute on every node."""
        nonce = new_nonce()
        await self.node.store.put_once(_nonce_name(nonce), b"1", NONCE_TTL_S)
        return nonce

    async def log_in(self, auth: frames.Auth, address: str) -> tuple[str, frames.Welcome]:
        """Open the inbox session; gives the token and the welcome.

        Args:
            auth: what the agent said.
            address: where it said so from.

        Raises:
            RelayError: as :class:`Accounts`; ``auth_required`` for a nonce used or unknown.
        """
        accounts, proven = self.node.accounts, None
        until = int(clock.now()) + SESSION_TTL_S
        try:
            # the nonce is used up only by a login that is right, so nobody can use up another's
            key, claims = await accounts.authenticate(auth)
            if await self.node.store.take_once(_nonce_name(claims.nonce)) is None:
                raise StateError(ErrorCode.AUTH_REQUIRED, "this nonce is unknown, used or too old")
            proven = key.did
            who, welcome = await accounts.open(auth, key, claims, until=until)
        except RelayError as exc:
            accounts.refused.note(exc, auth, proven, address)
            raise
        metrics.LOGINS.labels("ok").inc()
        # a conversation that had this inbox on this node looks, and finds itself superseded
        self.node.delivery.wake([who.inbox])
        token = clock.entropy(TOKEN_BYTES)
        value = {
            "did": who.did,
            "inbox": who.inbox,
            "fence": who.fence or 0,
            "epoch": welcome.epoch or "-",
            "until": until,
        }
        await self.node.store.put_once(token_name(token), dumps(value), SESSION_TTL_S)
        return b64encode(token), welcome

    async def session(self, token: bytes) -> Session:
        """The session of a token.

        Raises:
            StateError: ``auth_required``.
        """
        value = await self.node.store.get(token_name(token))
        if value is None:
            raise StateError(ErrorCode.AUTH_REQUIRED, "this token is unknown or too old")
        members = Members(loads(value))
        return Session(
            Did(members.text("did", most=512)),
            AgentKey(members.text("inbox", most=600)),
            Fence(members.integer("fence")) or None,
            Epoch(members.text("epoch", most=64)),
            members.integer("until"),
        )

    async def inbox(self, session: Session, wait_s: int) -> Page:
        """Take a page; with nothing there, wait up to ``wait_s`` seconds for it.

        Raises:
            RelayError: ``superseded``, ``inbox_reset``, ``unknown_inbox``, ``storage_unavailable``.
        """
        fence = await self._fence(session)
        waiter = _Waiter(fence, session.epoch)
        live = LiveSession(fence, self.node.node_id, session.until)
        deadline = clock.monotonic() + min(wait_s, MAX_WAIT_S)
        self.node.delivery.attach(session.inbox, waiter)
        try:
            while True:
                waiter.news.clear()
                page = await self._take(session.inbox, live)
                waiter.seen = page.head
                left = deadline - clock.monotonic()
                if page.items or left <= 0:
                    return page
                try:
                    async with asyncio.timeout(left):
                        await waiter.news.wait()
                except TimeoutError:
                    continue
        finally:
            self.node.delivery.detach(session.inbox, waiter)

    async def _fence(self, session: Session) -> Fence:
        """Of its inbox session, which may be older than this node."""
        await self.node.startup_gate.admit()
        return session.inbox_fence()

    async def _take(self, inbox: AgentKey, live: LiveSession) -> Page:
        page = await self.node.store.take(inbox, live, self.node.window)
        if isinstance(page, Refusal):
            raise page.to_error()
        return page

    async def rules(self, session: Session, wish: frames.Rules) -> frames.Ruled:
        """Change or read the rules of this session's inbox.

        Raises:
            RelayError: as :class:`relay.inbox.rules.RulesOf`; ``unknown_inbox``.
        """
        return await self.node.rules(session.inbox, await self._fence(session), wish)

    async def ack(self, session: Session, ack: Ack) -> Acked:
        """Ack what this session took.

        Raises:
            RelayError: ``inbox_reset``, ``superseded``, ``bad_frame``, ``storage_unavailable``.
        """
        await self._fence(session)
        request = AckRequest(session.inbox, ack, taken=True)
        [result] = await self.node.store.ack([request])
        if isinstance(result, Refusal):
            raise result.to_error()
        return result


def _nonce_name(nonce: str) -> bytes:
    try:
        return b"n:" + b64decode(nonce)
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_FRAME, f"nonce: {exc}") from exc


def token_name(token: bytes) -> bytes:
    """Under which name a token's session is kept: only its hash, so the store holds no token."""
    return b"t:" + hashlib.sha256(token).digest()
