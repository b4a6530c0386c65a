"""What the use cases need from the world. Each port has a shipped fake and one contract suite.

Rules of the file: a port speaks core types only; an expected no is a :class:`Refusal` in the
result; a store that cannot answer raises ``UnavailableError`` (``storage_unavailable``: outcome
unknown, ``storage_full``: surely not stored). Every mutation is durable before it returns.
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
    """A wish to open an inbox session.

    Args:
        inbox: whose.
        node: the node that will hold it.
        window: how much it may hand over unacked; kept, for the next opening (R1).
        until: 0 for a connection, else when a session without one ends (Unix seconds).
        create: whether an inbox that is not there may be made.
        courier: the session of a courier: only while its agent lives elsewhere; never creates.
    """

    inbox: AgentKey
    node: NodeId
    window: Window
    until: int = 0
    create: bool = True
    courier: bool = False


@dataclass(frozen=True, slots=True)
class InboxHead:
    """What a node polls of its sessions' inboxes, in case a wake-up was lost.

    ``away``: its agent lives elsewhere, so that a session that ended may be one of the agent's.
    """

    fence: Fence
    epoch: Epoch
    head: Seq
    away: bool = False


@dataclass(frozen=True, slots=True)
class BounceBatch:
    """Bounce intents of one sender, frozen: taking it again gives the same (R6).

    ``token`` names it for :meth:`InboxStore.finish_bounces`.
    """

    sender: AgentKey
    token: bytes
    decided_at: int
    intents: tuple[PendingBounce, ...]


class InboxesPage(NamedTuple):
    """Some of those who have an inbox here; go on from ``cursor``, "" = these were the last."""

    owners: Sequence[AgentKey]
    cursor: str


class InboxStore(Protocol):
    """Durable inboxes. Each step of :class:`relay.reference.inbox.Inbox` is atomic."""

    @property
    def durability(self) -> Durability:
        """What a receipt may promise now."""
        ...

    @property
    def promised(self) -> Durability:
        """The most that a receipt may have promised; who takes mail over promises no less."""
        ...

    def trust_clock(self, *, ok: bool) -> None:
        """Whether the store's clock may expire anything from now on."""
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

    async def meet(self, pairs: Sequence[tuple[AgentKey, AgentKey]]) -> list[bool]:
        """Note for each (inbox, other) that the agent has written to the other; harmless to repeat.

        False where there is no such inbox.
        """
        ...

    async def open(self, request: OpenRequest) -> OpenedSession | Refusal:
        """Open a session; ``unknown_inbox`` where there is none and none may be made.

        There is none, either, where the newest record held names other homes.
        """
        ...

    async def close(self, inbox: AgentKey, fence: Fence, last_handed: Seq) -> bool:
        """End a session cleanly; False if a newer one has the inbox."""
        ...

    async def read(
        self, inbox: AgentKey, fence: Fence, after: Seq, window: Window
    ) -> Page | Refusal:
        """Read on; concludes expired and corrupt entries on the way, so the page has none."""
        ...

    async def take(self, inbox: AgentKey, session: LiveSession, window: Window) -> Page | Refusal:
        """Read from the cursor for a session without a connection."""
        ...

    async def ack(self, requests: Sequence[AckRequest]) -> list[AckResult | Refusal]:
        """Delete what was processed, durably; works when memory or disk is full."""
        ...

    async def conclude(self, inbox: AgentKey, seqs: Sequence[Seq], reason: Reason) -> None:
        """End entries that were never handed to the live session."""
        ...

    async def status(
        self, inbox: AgentKey, questions: Sequence[DedupKey]
    ) -> list[RememberedId | None]:
        """What became of ids; None where it is not known."""
        ...

    async def heads(self, inboxes: Sequence[AgentKey]) -> list[InboxHead | None]:
        """Fence, epoch and head of many inboxes, in one round trip per partition."""
        ...

    async def inboxes(self, after: str, most: int) -> InboxesPage:
        """Whose inboxes are here, at home or away; ``after`` "" begins.

        About ``most`` at once. What is made or goes meanwhile may be told or not; one may come
        twice.
        """
        ...

    async def sweep(self, node: NodeId, live_nodes: Collection[NodeId]) -> int:
        """End what expired; gives how many entries ended. Safe on several nodes at once."""
        ...

    async def take_bounces(self) -> list[BounceBatch]:
        """Batches that are due, at most one a sender, each ≤ 256 intents."""
        ...

    async def finish_bounces(self, batch: BounceBatch) -> None:
        """Forget a batch that was delivered; a repeat does nothing."""
        ...


class NodeStore(Protocol):
    """What nodes of one relay share beside inboxes."""

    async def heartbeat(self, node: NodeId, ttl_s: float) -> frozenset[NodeId]:
        """Say that this node lives; gives all nodes that do."""
        ...

    async def leave(self, node: NodeId) -> None:
        """Say that this node is gone, so that nobody waits for its heartbeat to lapse."""
        ...

    async def put_once(self, name: bytes, value: bytes, ttl_s: float) -> None:
        """Keep a small value (a nonce, a session token's hash) until it is taken or ``ttl_s``."""
        ...

    async def get(self, name: bytes) -> bytes | None:
        """The value, if it is still there."""
        ...

    async def take_once(self, name: bytes) -> bytes | None:
        """The value, exactly once over all nodes."""
        ...

    async def time(self) -> Timestamp:
        """The store's own clock, Unix seconds."""
        ...

    async def last_time(self) -> Timestamp | None:
        """The store's clock as last written down before this start."""
        ...

    async def clock_ahead_s(self) -> float:
        """By how many seconds the store's clock is surely ahead of this node's; < 0: behind.

        Of a store with several clocks the one that is furthest off.
        """
        ...


class SessionStore(InboxStore, NodeStore, Protocol):
    """Inboxes, and what the nodes of a relay share beside them."""


OnWake = Callable[[Sequence[AgentKey]], None]


class WakeupSource(Protocol):
    """Hints from other nodes that an inbox has news. A hint may be lost."""

    def on_wake(self, callback: OnWake) -> None:
        """Call ``callback`` with the inboxes that have news; with none: look at all of them."""
        ...

    def on_renewal(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once it is seen that the store went back in time, or lost something.

        Before anything is told of what it holds now.
        """
        ...


class Keys(Protocol):
    """Which keys may act for a DID now (PROTOCOL.md §2.1)."""

    def known(self, claimed: VerificationKey) -> VerificationKey | None:
        """The key, where no question is needed; None means :meth:`resolve`.

        Args:
            claimed: what the DID's own text says.
        """
        ...

    async def resolve(self, did: Did) -> VerificationKey:
        """The key.

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
