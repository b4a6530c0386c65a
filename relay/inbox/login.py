"""Log in: who may, whether there is an inbox, and what the relay proves about it.

A relay is an agent's home only if the newest record it holds names this relay. Without a record,
the first login makes an inbox, where registration allows it (PROTOCOL.md §5.2).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Final

from relay import clock, log, metrics
from relay.inbox.client_ip import strangers_network
from relay.inbox.model.permissions import Identity
from relay.inbox.model.types import OpenedSession, Pending
from relay.inbox.ports import InboxStore, Keys, LoginGate, OpenRequest
from relay.limits import TokenBuckets
from relay.protocol import frames, handshake
from relay.protocol.did import SigningKey, VerificationKey
from relay.protocol.errors import ErrorCode, Refusal, RejectedError, RelayError
from relay.protocol.ids import AgentKey, Did, NodeId, Seq
from relay.protocol.jws import b64encode
from relay.protocol.types import Window

MAX_LINES_PER_MINUTE: Final = 60
"""Log lines about refused logins."""
MAX_LINES_PER_NETWORK: Final = 10
"""Those from one network: one that floods must not hide the others."""
MAX_DETAIL_CHARS: Final = 200


@dataclass(frozen=True, slots=True)
class Registration:
    """The agents that may have an inbox here. ``allow`` None = any."""

    allow: frozenset[Did] | None
    deny: frozenset[Did]

    def admits(self, did: Did) -> bool:
        """Return True if an agent may have an inbox here."""
        return did not in self.deny and (self.allow is None or did in self.allow)


def _buckets(per_minute: int) -> TokenBuckets[str]:
    return TokenBuckets.per_minute(per_minute)


@dataclass(slots=True)
class RefusedLogins:
    """Counts refused logins, and logs a bounded number of them."""

    _all: TokenBuckets[str] = field(default_factory=lambda: _buckets(MAX_LINES_PER_MINUTE))
    _each: TokenBuckets[str] = field(default_factory=lambda: _buckets(MAX_LINES_PER_NETWORK))
    _unlogged: int = 0

    def record(
        self, refusal: RelayError, auth: frames.Auth, proven: Did | None, address: str
    ) -> None:
        """Record one refused login.

        Args:
            refusal: the reason.
            auth: the frame.
            proven: the DID, if its key signed this very login; None = a claim at most.
            address: where the dialler is.
        """
        metrics.LOGINS.labels(refusal.code).inc()
        network, now = strangers_network(address), clock.monotonic()
        if self._all.wait_s("", now) or self._each.wait_s(network, now):
            self._unlogged += 1
            return
        self._all.charge("", 1, now)
        self._each.charge(network, 1, now)
        log.event(
            "login_refused",
            code=refusal.code,
            detail=refusal.detail[:MAX_DETAIL_CHARS],
            did=proven or _claimed(auth),
            proven=proven is not None,
            address=address,
            unsaid=self._unlogged,
        )
        self._unlogged = 0


def _claimed(auth: frames.Auth) -> Did | None:
    try:
        return handshake.parse_auth(auth.jws)[1].subject
    except RelayError:
        return None


def new_nonce() -> str:
    """Return a fresh nonce, base64url."""
    return b64encode(clock.entropy(handshake.NONCE_BYTES))


@dataclass(frozen=True, slots=True)
class LoginService:
    """Logs an agent in and opens its inbox, or logs a peer in.

    Args:
        key: the relay's key, which proves the login.
        url: the relay's origin.
        node: this node.
        window: of every session.
        store: inboxes.
        keys: which keys may act for a DID.
        publish: stores the record that comes with a login of its owner.
        registration: who may have an inbox.
        require_peer: raises where a relay may not log in.
        gate: keeps agents out while the relay asks others where they live.
        apply_record: acts upon the newest record of an agent.
        lives_elsewhere: True if the newest record of an agent names other relays only.
    """

    key: SigningKey
    url: str
    node: NodeId
    window: Window
    store: InboxStore
    keys: Keys
    publish: Callable[[str, Did], Awaitable[object]]
    registration: Registration
    require_peer: Callable[[Did], None]
    gate: LoginGate
    apply_record: Callable[[AgentKey], Awaitable[object]]
    lives_elsewhere: Callable[[AgentKey], Awaitable[bool]]
    refused: RefusedLogins = field(default_factory=RefusedLogins)

    async def log_in(
        self,
        auth: frames.Auth,
        address: str,
        check_nonce: Callable[[str], Awaitable[None]],
        *,
        until: int = 0,
    ) -> tuple[Identity, frames.Welcome]:
        """Check a login and open its session; record a refusal.

        Args:
            auth: the frame.
            address: where the dialler is.
            check_nonce: raises where the signed nonce is not the right one.
            until: 0 for a connection, else when a session without one ends (Unix seconds).

        Raises:
            RelayError: ``bad_frame``, ``unsupported``, ``bad_signature``, ``wrong_relay``,
                ``expired`` or ``not_yet_valid``: the login; ``auth_required``: its nonce;
                ``not_federated``, ``blocked`` or ``not_admitted``: who it is; ``draining`` or
                ``storage_unavailable``: not now; or what is wrong with the record.
        """
        proven: Did | None = None
        try:
            parsed = handshake.parse_auth(auth.jws)
            key = await self.keys.resolve(parsed[1].subject)
            now = clock.now()
            claims = handshake.verify_auth(parsed, key, relay=self.key.did, url=self.url, now=now)
            # only a login that is right uses its nonce up, so nobody can use up another's
            await check_nonce(claims.nonce)
            proven = key.did
            if claims.role == "peer":
                return self._open_peer(key, claims, is_connected=not until)
            return await self._open_agent(auth, key, claims, until)
        except RelayError as exc:
            self.refused.record(exc, auth, proven, address)
            raise

    def _open_peer(
        self, key: VerificationKey, claims: handshake.LoginClaims, *, is_connected: bool
    ) -> tuple[Identity, frames.Welcome]:
        if not is_connected:
            raise RejectedError(ErrorCode.NOT_FEDERATED, "a relay logs in over a WebSocket")
        self.require_peer(key.did)
        who, welcome = self._welcome(key, claims, None)
        return replace(who, role="peer"), welcome

    async def _open_agent(
        self, auth: frames.Auth, key: VerificationKey, claims: handshake.LoginClaims, until: int
    ) -> tuple[Identity, frames.Welcome]:
        if claims.subject in self.registration.deny:
            raise RejectedError(ErrorCode.BLOCKED, "the operator does not serve this agent")
        await self.gate.admit()
        if auth.record is not None:
            await self.publish(auth.record, key.did)
        opened = await self._open_inbox(key, until)
        # the opening may show that the store went back in time
        self.gate.check()
        return self._welcome(key, claims, opened)

    async def _open_inbox(self, key: VerificationKey, until: int) -> OpenedSession | None:
        allow = self.registration.allow
        may_create = allow is None or key.did in allow
        request = OpenRequest(key.agent_key, self.node, self.window, until, may_create)
        if may_create:
            # an inbox that is new here may have been elsewhere, by the first record
            await self.apply_record(key.agent_key)
        opened = await self.store.open(request)
        if isinstance(opened, Refusal) and opened.code is ErrorCode.MIGRATING:
            # the record that ends the migration may be here and not applied yet
            await self.apply_record(key.agent_key)
            opened = await self.store.open(request)
        if isinstance(opened, OpenedSession):
            if not may_create:
                await self.apply_record(key.agent_key)
            return opened
        if opened.code is not ErrorCode.UNKNOWN_INBOX:
            raise opened.to_error()
        if not await self.lives_elsewhere(key.agent_key):
            raise RejectedError(ErrorCode.NOT_ADMITTED, "registration is not open to this agent")
        return None

    def _welcome(
        self, key: VerificationKey, claims: handshake.LoginClaims, opened: OpenedSession | None
    ) -> tuple[Identity, frames.Welcome]:
        at = (
            handshake.InboxPosition(opened.epoch, opened.cursor, opened.head)
            if opened
            else handshake.InboxPosition(None, 0, 0)
        )
        fence = opened.fence if opened else None
        welcome = frames.Welcome(
            inbox=opened is not None,
            session=fence,
            epoch=opened.epoch if opened else None,
            cursor=Seq(at.cursor),
            head=Seq(at.head),
            pending=_pending(opened.pending) if opened else frames.WelcomePending(),
            window_count=self.window.count,
            window_bytes=self.window.bytes,
            proof=handshake.sign_proof(self.key, claims, at, clock.now()),
        )
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
