"""The ports of the inbox. Each store port has an executable specification and one contract suite.

An expected refusal is a :class:`Refusal` in the result. A store that cannot answer raises
``UnavailableError``: ``storage_unavailable`` where the outcome is unknown, ``storage_full`` where
nothing is stored. Every mutation is durable before it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from relay.inbox.model.types import (
    Accepted,
    AckRequest,
    AckResult,
    LiveSession,
    OpenedSession,
    Page,
    PendingBounce,
    RememberedId,
    RulesNow,
    RulesPatch,
)
from relay.protocol.did import VerificationKey
from relay.protocol.envelope import StoredEnvelope
from relay.protocol.errors import Refusal
from relay.protocol.ids import AgentKey, Did, Epoch, Fence, NodeId, Seq, Timestamp
from relay.protocol.receipts import Durability
from relay.protocol.types import DedupKey, Reason, Window


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """A request to open an inbox session.

    Args:
        inbox: the inbox.
        node: the node that will hold the session.
        window: the most it may deliver unacked; stored for the next opening (R1).
        until: 0 for a connection, else when a session without one ends (Unix seconds).
        create: make the inbox if there is none.
        forwards: the session of a forwarder: only while the agent lives elsewhere; never creates.
    """

    inbox: AgentKey
    node: NodeId
    window: Window
    until: int = 0
    create: bool = True
    forwards: bool = False


@dataclass(frozen=True, slots=True)
class InboxHead:
    """The state of an inbox that nodes poll, in case a wake-up was lost.

    ``away``: its agent lives elsewhere, so that a session that ended may be one of the agent's.
    """

    fence: Fence
    epoch: Epoch
    head: Seq
    away: bool = False


@dataclass(frozen=True, slots=True)
class BounceBatch:
    """Pending bounces of one sender, frozen: each claim returns the same (R6).

    ``token`` names it for :meth:`InboxStore.finalize_bounces`.
    """

    sender: AgentKey
    token: bytes
    decided_at: int
    intents: tuple[PendingBounce, ...]


class InboxesPage(NamedTuple):
    """Some agents that have an inbox here; go on from ``cursor``, "" = these were the last."""

    owners: Sequence[AgentKey]
    cursor: str


class InboxStore(Protocol):
    """Durable inboxes. Each step of :class:`relay.reference.inbox.Inbox` is atomic."""

    @property
    def durability(self) -> Durability:
        """The durability that a receipt may promise now."""
        ...

    @property
    def promised(self) -> Durability:
        """The most that a receipt may have promised; the next relay must promise no less."""
        ...

    def trust_clock(self, *, ok: bool) -> None:
        """Let the store's clock expire entries from now on, or not."""
        ...

    async def append(self, items: Sequence[StoredEnvelope]) -> list[Accepted | Refusal]:
        """Store a batch: one durable commit per partition, each item judged alone.

        Where a whole partition fails, its items get a Refusal ``storage_unavailable`` and the other
        partitions' results stand.
        """
        ...

    async def change_rules(
        self, inbox: AgentKey, fence: Fence, patch: RulesPatch
    ) -> RulesNow | Refusal:
        """Change the rules of an inbox, by its session, or just read them; works when full."""
        ...

    async def add_contacts(self, pairs: Sequence[tuple[AgentKey, AgentKey]]) -> list[bool]:
        """Record for each (inbox, other) that the agent has written to the other.

        It is harmless to repeat. Return False where there is no such inbox.
        """
        ...

    async def open(self, request: OpenRequest) -> OpenedSession | Refusal:
        """Open a session; ``unknown_inbox`` where there is no inbox and none may be made.

        There is none, either, where the newest stored record names other homes.
        """
        ...

    async def close(self, inbox: AgentKey, fence: Fence, delivered_upto: Seq) -> bool:
        """End a session cleanly; return False if a newer one has the inbox."""
        ...

    async def read(
        self, inbox: AgentKey, fence: Fence, after: Seq, window: Window
    ) -> Page | Refusal:
        """Read on; end expired and corrupt entries on the way, so that the page has none."""
        ...

    async def take(self, inbox: AgentKey, session: LiveSession, window: Window) -> Page | Refusal:
        """Read from the cursor for a session without a connection."""
        ...

    async def ack(self, requests: Sequence[AckRequest]) -> list[AckResult | Refusal]:
        """Delete what was processed, durably; works when memory or disk is full."""
        ...

    async def conclude(self, inbox: AgentKey, seqs: Sequence[Seq], reason: Reason) -> None:
        """End entries that were never delivered to the live session."""
        ...

    async def status(
        self, inbox: AgentKey, questions: Sequence[DedupKey]
    ) -> list[RememberedId | None]:
        """Return the dispositions of ids; None where nothing is known."""
        ...

    async def heads(self, inboxes: Sequence[AgentKey]) -> list[InboxHead | None]:
        """Return the heads of many inboxes, in one round trip per partition."""
        ...

    async def inboxes(self, after: str, limit: int) -> InboxesPage:
        """Return about ``limit`` agents that have an inbox here, in any role; ``after`` "" begins.

        An inbox that is made or purged meanwhile may be missing; one may come twice.
        """
        ...

    async def sweep(self, node: NodeId, live_nodes: Collection[NodeId]) -> int:
        """End what expired; return how many entries ended. Safe on several nodes at once."""
        ...

    async def claim_bounces(self) -> list[BounceBatch]:
        """Return batches that are due, at most one a sender, each with at most 256 bounces."""
        ...

    async def finalize_bounces(self, batch: BounceBatch) -> None:
        """Forget a batch that was delivered; a repeat does nothing."""
        ...


class NodeStore(Protocol):
    """The state that the nodes of one relay share beside inboxes."""

    async def heartbeat(self, node: NodeId, ttl_s: float) -> frozenset[NodeId]:
        """Report that this node lives; return all nodes that do."""
        ...

    async def leave(self, node: NodeId) -> None:
        """Report that this node is gone, so that no other waits for its heartbeat to lapse."""
        ...

    async def put_once(self, name: bytes, value: bytes, ttl_s: float) -> None:
        """Store a small value (a nonce, a session) until it is popped or ``ttl_s`` has passed."""
        ...

    async def get(self, name: bytes) -> bytes | None:
        """Return the value, if it is still there."""
        ...

    async def pop_once(self, name: bytes) -> bytes | None:
        """Return the value and delete it: exactly once over all nodes."""
        ...

    async def time(self) -> Timestamp:
        """Return the store's own clock, Unix seconds."""
        ...

    async def last_time(self) -> Timestamp | None:
        """Return the store's clock as last written down before this start."""
        ...

    async def clock_ahead_s(self) -> float:
        """Return by how many seconds the store's clock is surely ahead of this node's; < 0: behind.

        A store with several clocks answers for the one that is furthest off.
        """
        ...


class SessionStore(InboxStore, NodeStore, Protocol):
    """Inboxes, and what the nodes of a relay share beside them."""


OnWake = Callable[[Sequence[AgentKey]], None]


class WakeupSource(Protocol):
    """Hints from other nodes that an inbox has changed. A hint may be lost."""

    def on_wake(self, callback: OnWake) -> None:
        """Call ``callback`` with the changed inboxes; with none = look at all of them."""
        ...

    def on_renewal(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when the store went back in time, or lost something.

        The call comes before any other result of that store.
        """
        ...


class Keys(Protocol):
    """Resolves the keys that may act for a DID now (PROTOCOL.md §2.1)."""

    def known(self, claimed: VerificationKey) -> VerificationKey | None:
        """Return the key, where no look-up is needed; None = call :meth:`resolve`.

        Args:
            claimed: the key in the DID itself.
        """
        ...

    async def resolve(self, did: Did) -> VerificationKey:
        """Return the key.

        Raises:
            ProtocolError: ``bad_envelope`` or ``unsupported``: not a DID we can ever resolve.
            UnavailableError: ``identity_unavailable``: try again.
        """
        ...


class Router(Protocol):
    """Finds the relay for which mail may wait here (PROTOCOL.md §5.2)."""

    def known(self, inbox: AgentKey) -> AgentKey | None:
        """Return what :meth:`find` found recently; the store decides whether it still holds."""
        ...

    async def find(self, did: Did) -> AgentKey:
        """Return the key of the relay to which mail for an agent should go first.

        Raises:
            RelayError: ``unknown_inbox``: nobody knows it; ``peer_unreachable``: nobody can tell
                now; ``not_federated``: it lives where this relay sends nothing.
        """
        ...


class LoginGate(Protocol):
    """Keeps agents out while the relay asks others where they live now."""

    async def admit(self) -> None:
        """Wait a little for the gate to open.

        Raises:
            UnavailableError: ``storage_unavailable``: it stays closed; try again.
        """
        ...

    def check(self) -> None:
        """Raise as :meth:`admit` where the gate has closed meanwhile."""
        ...
