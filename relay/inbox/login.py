"""Accounts: who may log in, whether there is an inbox, and what the relay proves about it.

Rules of the file: a relay is an agent's home only if the newest record it holds names it; without a
record the first login makes an inbox where registration allows it (PROTOCOL.md §5.2).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Final

from relay import clock, log, metrics
from relay.directory.publish import Directory
from relay.directory.startup_gate import StartupGate
from relay.inbox.client_ip import strangers_network
from relay.inbox.model.permissions import Identity
from relay.inbox.model.types import (
    Opened,
    Pending,
)
from relay.inbox.ports import (
    Keys,
    OpenRequest,
    Store,
)
from relay.limits import TokenBuckets
from relay.peering.peers import Peers
from relay.protocol import frames, handshake
from relay.protocol.did import (
    SigningKey,
    VerificationKey,
)
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
    RejectedError,
    RelayError,
)
from relay.protocol.ids import (
    AgentKey,
    Did,
    NodeId,
    Seq,
)
from relay.protocol.types import (
    Window,
)


@dataclass(frozen=True, slots=True)
class Registration:
    """Who may have an inbox here. ``allow`` None = anybody."""

    allow: frozenset[Did] | None
    deny: frozenset[Did]

    def admits(self, did: Did) -> bool:
        """Whether an agent may have an inbox here."""
        return did not in self.deny and (self.allow is None or did in self.allow)


MOST_LINES: Final = 60
"""Lines a minute about refused logins."""
MOST_LINES_EACH: Final = 10
"""Of those, from one network: one that floods must not hide the others."""
MOST_DETAIL: Final = 200


@dataclass(slots=True)
class RefusedLogins:
    """Counts refused logins, and says who and from where, in so many lines."""

    _all: TokenBuckets[str] = field(default_factory=lambda: TokenBuckets.per_minute(MOST_LINES))
    _each: TokenBuckets[str] = field(
        default_factory=lambda: TokenBuckets.per_minute(MOST_LINES_EACH)
    )
    _unsaid: int = 0

    def note(self, why: RelayError, auth: frames.Auth, proven: Did | None, address: str) -> None:
        """One login did not hold.

        Args:
            why: the refusal.
            auth: what was said.
            proven: the DID, if its key has signed this very login; None: it is only claimed.
            address: who dialled.
        """
        metrics.LOGINS.labels(why.code).inc()
        network = strangers_network(address)
        now = clock.monotonic()
        if self._all.wait_s("", now) or self._each.wait_s(network, now):
            self._unsaid += 1
            return
        self._all.charge("", 1, now)
        self._each.charge(network, 1, now)
        log.event(
            "login_refused",
            code=why.code,
            detail=why.detail[:MOST_DETAIL],
            did=proven or _claimed(auth),
            proven=proven is not None,
            address=address,
            unsaid=self._unsaid,
        )
        self._unsaid = 0


def _claimed(auth: frames.Auth) -> Did | None:
    try:
        return handshake.parse_auth(auth.jws)[1].subject
    except RelayError:
        return None


@dataclass(frozen=True, slots=True)
class Accounts:
    """Log an agent in and open its inbox, or log a peer in.

    Args:
        key: the relay's key, which proves the login.
        url: the relay's origin.
        node: this node.
        window: of every session.
        store: inboxes.
        keys: which keys may act for a DID.
        directory: takes the record that comes with a login.
        registration: who may have an inbox.
        peers: which relays may log in.
        returning: whether agents are let in yet.
        settle: acts upon the newest record of an agent.
    """

    key: SigningKey
    url: str
    node: NodeId
    window: Window
    store: Store
    keys: Keys
    directory: Directory
    registration: Registration
    peers: Peers
    returning: StartupGate
    settle: Callable[[AgentKey], Awaitable[object]]
    refused: RefusedLogins = field(default_factory=RefusedLogins)

    async def authenticate(
        self, auth: frames.Auth
    ) -> tuple[VerificationKey, handshake.LoginClaims]:
        """Check who signed a login, and that it is for this relay; the nonce is the caller's.

        Raises:
            RelayError: ``bad_frame``, ``unsupported``, ``bad_signature``, ``wrong_relay``,
                ``expired`` or ``not_yet_valid``.
        """
        parsed = handshake.parse_auth(auth.jws)
        key = await self.keys.resolve(parsed[1].subject)
        claims = handshake.verify_auth(
            parsed, key, relay=self.key.did, url=self.url, now=clock.now()
        )
        return key, claims

    async def open(
        self,
        auth: frames.Auth,
        key: VerificationKey,
        claims: handshake.LoginClaims,
        *,
        until: int = 0,
    ) -> tuple[Identity, frames.Welcome]:
        """Open the session of an authenticated dialler.

        Args:
            auth: what the dialler said.
            key: its key.
            claims: what it signed, the nonce found right.
            until: 0 for a connection, else when a session without one ends (Unix seconds).

        Raises:
            RelayError: ``not_federated``, ``blocked``, ``not_admitted``, ``draining``,
                ``storage_unavailable``,
                or what is wrong with the record.
        """
        if claims.role == "peer":
            return self._open_peer(key, claims, is_connected=not until)
        if claims.subject in self.registration.deny:
            raise RejectedError(ErrorCode.BLOCKED, "the operator does not serve this agent")
        await self.returning.admit()
        if auth.record is not None:
            await self.directory.publish(auth.record, owner=key.did)
        opened = await self._open(key, until)
        # opening may be what shows that the store went back in time
        self.returning.check()
        return self._welcome(key, claims, opened)

    def _open_peer(
        self, key: VerificationKey, claims: handshake.LoginClaims, *, is_connected: bool
    ) -> tuple[Identity, frames.Welcome]:
        if not is_connected:
            raise RejectedError(ErrorCode.NOT_FEDERATED, "relays converse over a WebSocket")
        self.peers.require_login(key.did)
        who, welcome = self._welcome(key, claims, None)
        return replace(who, role="peer"), welcome

    async def _open(self, key: VerificationKey, until: int) -> Opened | None:
        allow = self.registration.allow
        may_create = allow is None or key.did in allow
        request = OpenRequest(key.agent_key, self.node, self.window, until, may_create)
        if may_create:
            # an inbox that is new here may have been elsewhere: as its first record says, perhaps
            await self.settle(key.agent_key)
        opened = await self.store.open(request)
        if isinstance(opened, Refusal) and opened.code is ErrorCode.MIGRATING:
            # the record that ends this may be here, and nobody have acted upon it yet
            await self.settle(key.agent_key)
            opened = await self.store.open(request)
        if isinstance(opened, Opened):
            if not may_create:
                await self.settle(key.agent_key)
            return opened
        if opened.code is not ErrorCode.UNKNOWN_INBOX:
            raise opened.to_error()
        row = await self.store.record(key.agent_key)
        if row is None or row.names_us:
            raise RejectedError(ErrorCode.NOT_ADMITTED, "registration is not open to this agent")
        return None

    def _welcome(
        self, key: VerificationKey, claims: handshake.LoginClaims, opened: Opened | None
    ) -> tuple[Identity, frames.Welcome]:
        standing = (
            handshake.InboxPosition(opened.epoch, opened.cursor, opened.head)
            if opened
            else handshake.InboxPosition(None, 0, 0)
        )
        welcome = frames.Welcome(
            inbox=opened is not None,
            session=opened.fence if opened else None,
            epoch=opened.epoch if opened else None,
            cursor=Seq(standing.cursor),
            head=Seq(standing.head),
            pending=_pending(opened.pending) if opened else frames.WelcomePending(),
            window_count=self.window.count,
            window_bytes=self.window.bytes,
            proof=handshake.sign_proof(self.key, claims, standing, clock.now()),
        )
        fence = opened.fence if opened else None
        return Identity(key.did, key.agent_key, fence), welcome


def _pending(pending: Pending) -> frames.WelcomePending:
    oldest, refused = pending.oldest_at, pending.refused
    return frames.WelcomePending(
        count=pending.count,
        bytes=pending.bytes,
        oldest_age=None if oldest is None else max(0, int(clock.now()) - oldest),
        refused_count=refused.count,
        refused_first_at=refused.first_at or None,
        refused_last_at=refused.last_at or None,
    )
