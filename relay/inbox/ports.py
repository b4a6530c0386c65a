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

    ``token`` names it for :meth:`BounceStore.finalize`.
    """

    sender: AgentKey
    token: bytes
    decided_at: int
    intents: tuple[PendingBounce, ...]


class OwnerPage(NamedTuple):
    """Some owners of inboxes here; go on from ``cursor``, "" = these were the last."""

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
        """The highest durability that a receipt may have promised.

        A relay that takes this mail over must promise at least as much.
        """
        ...

    async def append(self, items: Sequence[StoredEnvelope]) -> list[Accepted | Refusal]:
        """Store a batch: one durable commit per partition, each item judged alone.

        Where a whole partition fails, its items get a Refusal ``storage_unavailable`` and the other
        partitions' results stand.
        """
        ...

    async def open(self, request: OpenRequest) -> OpenedSession | Refusal:
        """Open a session; ``unknown_inbox`` where there is none and none may be made.

        There is none, either, where the newest record names other homes.
        """
        ...

    async def close(self, inbox: AgentKey, fence: Fence, delivered_upto: Seq) -> bool:
        """End a session cleanly; return False if a newer one has the inbox."""
        ...

    async def read(
        self, inbox: AgentKey, fence: Fence, after: Seq, window: Window
    ) -> Page | Refusal:
        """Read on; finalize expired and corrupt entries on the way, so the page has none."""
        ...

    async def fetch(self, inbox: AgentKey, session: LiveSession, window: Window) -> Page | Refusal:
        """Read from the cursor for a session without a connection, and record how far."""
        ...

    async def ack(self, requests: Sequence[AckRequest]) -> list[AckResult | Refusal]:
        """Delete processed entries, durably; works when memory or disk is full."""
        ...

    async def finalize(self, inbox: AgentKey, seqs: Sequence[Seq], reason: Reason) -> None:
        """End entries that were never delivered to the live session."""
        ...

    async def status(
        self, inbox: AgentKey, questions: Sequence[DedupKey]
    ) -> list[RememberedId | None]:
        """Return the outcome of each id; None where the inbox does not know it."""
        ...

    async def heads(self, inboxes: Sequence[AgentKey]) -> list[InboxHead | None]:
        """Return fence, epoch and head of many inboxes, in one round trip per partition."""
        ...

    async def owners(self, after: str, limit: int) -> OwnerPage:
        """List owners of inboxes here, at home or forwarding; ``after`` "" begins.

        A page has about ``limit`` owners. An inbox that is made or removed meanwhile may be
        missing, and one owner may come twice.
        """
        ...


class RuleStore(Protocol):
    """Rules of inboxes, and the contacts that their agents have (GUARANTEES.md R7)."""

    async def change(self, inbox: AgentKey, fence: Fence, patch: RulesPatch) -> RulesNow | Refusal:
        """Change the rules of an inbox, by its session, or just read them; works when full."""
        ...

    async def add_contacts(self, pairs: Sequence[tuple[AgentKey, AgentKey]]) -> list[bool]:
        """Record for each (inbox, other) that the agent has written to the other; repeatable.

        An answer is False where there is no such inbox.
        """
        ...


class ExpiryStore(Protocol):
    """Entries that nobody fetched in time."""

    async def sweep(self, node: NodeId, live_nodes: Collection[NodeId]) -> int:
        """End expired entries; return how many ended. Safe on several nodes at once."""
        ...


class BounceStore(Protocol):
    """Bounces that wait for their senders (GUARANTEES.md R6)."""

    async def claim(self) -> list[BounceBatch]:
        """Return the batches that are due, at most one a sender, each ≤ 256 bounces."""
        ...

    async def finalize(self, batch: BounceBatch) -> None:
        """Forget a batch that was delivered; a repeat does nothing."""
        ...


class TokenStore(Protocol):
    """Small values that lapse: nonces, hashes of session tokens."""

    async def put(self, name: bytes, value: bytes, ttl_s: float) -> None:
        """Store a value until somebody pops it or ``ttl_s`` is over."""
        ...

    async def get(self, name: bytes) -> bytes | None:
        """Return the value, if it is still there."""
        ...

    async def pop(self, name: bytes) -> bytes | None:
        """Return and delete the value: exactly one caller over all nodes gets it."""
        ...


class NodeStore(Protocol):
    """The nodes of one relay."""

    async def heartbeat(self, node: NodeId, ttl_s: float) -> frozenset[NodeId]:
        """Record that this node lives; return all nodes that do."""
        ...

    async def leave(self, node: NodeId) -> None:
        """Record that this node is gone, so that nobody waits for its heartbeat to lapse."""
        ...


class StoreClock(Protocol):
    """The store's own clock, by which entries expire (GUARANTEES.md §2, clocks)."""

    def trust(self, *, ok: bool) -> None:
        """Allow or forbid the store's clock to expire anything from now on."""
        ...

    async def time(self) -> Timestamp:
        """Return the store's time, Unix seconds."""
        ...

    async def last_time(self) -> Timestamp | None:
        """Return the store's time as last written down before this start."""
        ...

    async def ahead_s(self) -> float:
        """Return by how many seconds the store's clock is surely ahead of this node's.

        A negative result: behind. Of several clocks the one that is furthest off counts.
        """
        ...


OnWake = Callable[[Sequence[AgentKey]], None]


class WakeupSource(Protocol):
    """Hints from other nodes that an inbox has changed. A hint may be lost."""

    def on_wake(self, callback: OnWake) -> None:
        """Call ``callback`` with the inboxes that changed; with none: poll all of them."""
        ...

    def on_renewal(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once the store is seen to have gone back in time or lost something.

        The call comes before any answer about its present contents.
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
