"""The scripts against the specification: the same steps on both, every result compared.

The specification is core.inbox.Inbox, by way of the memory store; the subject is the Redis store on
the server of the embedded one. Fences and epochs are random or clocks there, so each side's are
replaced by numbers in the order in which they were first seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import tempfile
from collections.abc import Coroutine
from operator import attrgetter
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from relay.directory.ports import (
    RecordRow,
)
from relay.inbox.model.types import (
    AckRequest,
    Forwarded,
    InboxAck,
    InboxLimits,
    InboxRole,
    LiveSession,
    OpenedSession,
    OutboxLimits,
    Page,
    RulesPatch,
)
from relay.inbox.ports import OpenRequest
from relay.migration.ports import MigrationChange
from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.envelope import StoredEnvelope
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
)
from relay.protocol.ids import (
    AgentKey,
    NodeId,
    Seq,
)
from relay.protocol.types import (
    DedupKey,
    MovedRules,
    Reason,
    Window,
)
from relay.reference.memory_store import MemoryStore
from relay.store.redis.entries import eid_bytes
from tests.store.worlds import ASK_TIME, HOUR, NOW, READ_TIME, Backend, World, eid, entry

INBOXES = [AgentKey(f"key:i{n}") for n in range(2)]
SENDERS = [AgentKey(f"key:s{n}") for n in range(3)]
PEERS = [AgentKey(f"key:p{n}") for n in range(2)]
NODES = [NodeId("node-a"), NodeId("node-b"), NodeId("node-c")]
LIMITS = InboxLimits(
    max_count=12, max_bytes=2_500, sender_count=7, sender_bytes=1_500, stranger_count=6,
    stranger_bytes=1_200, dedupe_entries=14, rules=2, contacts=2,
)  # fmt: skip
OUTBOX = OutboxLimits(count=8, bytes=2_400, shares=2)
ALL_IDS = 20
"""Less than two inboxes may remember, so that one has to give way to the other."""
WINDOWS = st.builds(Window, st.integers(1, 6), st.sampled_from([1_500, 400, 50]))
SEQS = st.integers(0, 25).map(Seq)
CLOSING = [ErrorCode.INBOX_FULL, ErrorCode.UNKNOWN_INBOX]
PICKS = st.lists(st.integers(0, 11), max_size=6)
"""Live entries, by their place in the inbox."""
LIFETIMES = st.sampled_from([4_000, 20, 350, 9_000, 0])
SIZES = st.sampled_from([0, 0, 0, 150, 400])


class Names:
    """One side's fences and epochs of each inbox, by number."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[AgentKey, object], int] = {}

    def plain(self, value: Any, inbox: AgentKey) -> Any:
        """A result without what may differ between the two."""
        names = getattr(value, "_fields", None)
        if dataclasses.is_dataclass(value):
            names = [part.name for part in dataclasses.fields(value)]
        if names is not None:
            parts = {}
            for name in names:
                inner = getattr(value, name)
                is_name = name in {"fence", "epoch"}
                parts[name] = self.numbers[inbox, inner] if is_name else self.plain(inner, inbox)
            parts.pop("detail", None)
            return (type(value).__name__, parts)
        if isinstance(value, list | tuple):
            return [self.plain(inner, inbox) for inner in value]
        return value


class Machine(RuleBasedStateMachine):
    """Both stores, step by step."""

    backend: Backend
    fuzzed: World

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stack = contextlib.ExitStack()
        self.now = float(NOW)
        self.names = (Names(), Names())
        self.items: dict[tuple[AgentKey, int], StoredEnvelope] = {}
        self.sessions: list[tuple[AgentKey, OpenedSession, OpenedSession]] = []
        self.batches: tuple[list[Any], list[Any]] = ([], [])
        self.has_lost = False
        self.counted: set[AgentKey] = set()
        self.count = 0
        self.moves = 10

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    @initialize()
    def initial_side(self) -> None:
        directory = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        # patient: a busy machine must not look like a difference
        options = {"timeout_s": 30, "outbox": OUTBOX, "dedupe_total": ALL_IDS}
        self.world = World(self.backend, directory, limits=LIMITS, options=options)
        self.world.mutations.edit(ASK_TIME, READ_TIME)
        # the specification knows at each id which inbox remembers most
        self.world.mutations.edit("local MEMORY_STEP = 64", "local MEMORY_STEP = 1")
        self.stack.enter_context(self.world.mutations.installed())
        self.run(self.world.__aenter__())
        self.redis = self.run(self.world.node(NODES[0]))
        now = lambda: self.now  # noqa: E731
        self.memory = MemoryStore(  # type: ignore[call-overload]
            LIMITS,
            now,
            outbox=OUTBOX,
            dedupe_total=ALL_IDS,  # type: ignore[arg-type,return-value]
        )
        for inbox in INBOXES:
            self.open(inbox, NODES[0], Window(3, 1_000), 0)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.run(self.world.__aexit__())
        self.stack.close()
        self.loop.close()

    # ------------------------------------------------------------ comparing

    def both(
        self, method: str, inbox: AgentKey, *arguments: tuple[Any, Any], **named: Any
    ) -> tuple[Any, Any]:
        """The same call on both sides, with each side's own fences and epochs."""
        left = self.call(self.memory, method, [one[0] for one in arguments], named)
        right = self.call(self.redis, method, [one[1] for one in arguments], named)
        if isinstance(left, OpenedSession) and isinstance(right, OpenedSession):
            self.same(inbox, left, right)
        self.same_heads()
        ours, theirs = self.names[0].plain(left, inbox), self.names[1].plain(right, inbox)
        note(f"{method} {inbox} -> {ours}")
        assert ours == theirs, f"{method}: the specification says {ours}, the scripts {theirs}"
        return left, right

    def call(self, store: Any, method: str, arguments: list[Any], named: dict[str, Any]) -> Any:
        return self.run(attrgetter(method)(store)(*arguments, **named))

    def same_heads(self) -> None:
        found = [self.run(store.inboxes.heads(INBOXES)) for store in (self.memory, self.redis)]
        for inbox, mine, other in zip(INBOXES, *found, strict=True):
            assert (mine is None) == (other is None)
            if mine is not None:
                assert (mine.head, mine.away) == (other.head, other.away)
                self.same(inbox, mine, other)
        totals = [sorted(self.run(store.outboxes.totals())) for store in (self.memory, self.redis)]
        assert totals[0] == totals[1]
        for inbox in INBOXES:
            self.same_side(inbox)

    def same_side(self, inbox: AgentKey) -> None:
        """What both sides say of an inbox that changes relays."""
        rows = [self.run(store.migrations.load(inbox)) for store in (self.memory, self.redis)]
        assert rows[0] == rows[1]
        assert inbox not in self.counted or rows[0].counters.is_balanced, rows[0]
        waiting = [
            self.run(store.migrations.waiting(inbox, Seq(0), 99))
            for store in (self.memory, self.redis)
        ]
        assert waiting[0] == waiting[1]
        known = [self.run(store.migrations.known(inbox)) for store in (self.memory, self.redis)]
        assert known[0] == known[1]
        doubts = [self.all_doubts(store, inbox) for store in (self.memory, self.redis)]
        assert doubts[0] == doubts[1]

    def all_doubts(self, store: Any, inbox: AgentKey) -> tuple[set[bytes], int]:
        ids, after, floor = set(), "", -1
        while after or not ids:
            some = self.run(store.migrations.maybe_seen_ids(inbox, after, 7))
            ids |= {some.ids[at : at + 36] for at in range(0, len(some.ids), 36)}
            floor, after = some.floor, some.after
            if not after:
                break
        return ids, floor

    def same(self, inbox: AgentKey, mine: Any, other: Any) -> None:
        """What both sides call a fence, or an epoch, has one number."""
        for name in ("fence", "epoch"):
            pair = [(inbox, getattr(side, name)) for side in (mine, other)]
            known = [names.numbers.get(at) for names, at in zip(self.names, pair, strict=True)]
            assert known[0] == known[1], f"only one side has a new {name}"
            if known[0] is None:
                self.count += 1
                for names, at in zip(self.names, pair, strict=True):
                    names.numbers[at] = self.count

    # ------------------------------------------------------------ steps

    @rule(
        numbers=st.lists(st.integers(0, 30), min_size=1, max_size=5),
        inbox=st.sampled_from(INBOXES),
        life=LIFETIMES,
        age=st.integers(0, 3),
        size=SIZES,
        sender=st.sampled_from(SENDERS),
        kind=st.sampled_from(["plain"] * 6 + ["silent", "marked"]),
        is_other=st.sampled_from([False] * 5 + [True]),
        ways=st.tuples(st.sampled_from([False] * 5 + [True]), st.booleans()),
        peers=st.tuples(st.sampled_from([*PEERS, None]), st.sampled_from([*PEERS, None, None])),
    )
    def append(  # noqa: PLR0917  one argument for each strategy
        self, numbers, inbox, life, age, size, sender, kind, is_other, ways, peers
    ) -> None:
        barred, moving = ways
        if self.has_lost or moving:
            # what is kept anew, or moves and is forgotten, is stored after the rest of its batch
            numbers = numbers[:1]
        made = []
        for n in numbers:
            item = self.items.setdefault(
                (inbox, n),
                entry(
                    n, inbox=inbox, sender=sender, size=size, hour=HOUR - age,
                    created_at=int(self.now) - 10, expires_at=int(self.now) + life,
                    bounces=kind != "silent", marked=kind == "marked", via=peers[1],
                ),
            )  # fmt: skip
            if is_other:  # the same id for another envelope
                other = entry(n + 1_000)
                item = item._replace(eid=other.eid, wire=other.wire)
            is_marked = item.marked or (moving and kind == "marked")
            made.append(
                item._replace(barred=barred, moving=moving, peer=peers[0], marked=is_marked)
            )
        self.both("inboxes.append", inbox, (made, made))

    @rule(
        inbox=st.sampled_from(INBOXES),
        node=st.sampled_from(NODES),
        window=WINDOWS,
        until=st.sampled_from([0, 0, 100]),
    )
    def open(self, inbox, node, window, until) -> None:
        until = int(self.now) + until if until else 0
        wanted = OpenRequest(inbox, node, window, until, create=until == 0)
        left, right = self.both("inboxes.open", inbox, (wanted, wanted))
        if isinstance(left, OpenedSession):
            self.sessions.append((inbox, left, right))

    @rule(
        inbox=st.sampled_from(INBOXES),
        first=st.integers(0, 25),
        life=LIFETIMES,
        size=SIZES,
        peer=st.sampled_from(PEERS),
    )
    def append_some(self, inbox, first, life, size, peer) -> None:
        made = [
            self.items.setdefault(
                (inbox, n),
                entry(
                    n, inbox=inbox, sender=SENDERS[n % 3], size=size, hour=HOUR - n % 4,
                    created_at=int(self.now) - 10, expires_at=int(self.now) + life + n % 2,
                ),
            )._replace(peer=peer)
            for n in range(first, first + (1 if self.has_lost else 5))
        ]  # fmt: skip
        self.both("inboxes.append", inbox, (made, made))

    @rule(
        at=st.integers(0, 7),
        first_contact=st.sampled_from([None, None, "accept", "accept", "refuse"]),
        marks=st.lists(st.sampled_from(["allow", "allow", "deny", "forget", None]), max_size=3),
    )
    def change_rules(self, at, first_contact, marks) -> None:
        inbox, left, right = self.pick(at)
        named: dict[str, list[AgentKey]] = {}
        for sender, mark in zip(SENDERS, marks, strict=False):
            if mark:
                named.setdefault(mark, []).append(sender)
        lists = {mark: tuple(senders) for mark, senders in named.items()}
        patch = RulesPatch(first_contact, **lists)
        fences = (left.fence, right.fence)
        self.both("rules.change", inbox, (inbox, inbox), fences, (patch, patch))

    @rule(inbox=st.sampled_from([*INBOXES, AgentKey("key:none")]), other=st.sampled_from(SENDERS))
    def add_contacts(self, inbox, other) -> None:
        pairs = [(inbox, other), (INBOXES[0], inbox)]
        self.both("rules.add_contacts", inbox, (pairs, pairs))

    @rule(inbox=st.sampled_from(INBOXES), node=st.sampled_from(NODES), window=WINDOWS)
    def come_back(self, inbox, node, window) -> None:
        """A new session that reads all: every mark and every gap is compared."""
        self.open(inbox, node, window, 0)
        self.read_all(inbox)

    @rule(inbox=st.sampled_from(INBOXES), last=SEQS, is_clean=st.booleans())
    def go_on(self, inbox, last, is_clean) -> None:
        """Like an agent: ack the first entries, read the rest, perhaps end cleanly."""
        _, left, right = self.newest()[inbox]
        seqs = tuple(self.live(inbox, [0, 1]))
        wanted = [
            [AckRequest(inbox, InboxAck(one.fence, one.epoch, seqs, last))] for one in (left, right)
        ]
        self.both("inboxes.ack", inbox, tuple(wanted))
        self.read_all(inbox)
        if is_clean:
            fences = (left.fence, right.fence)
            self.both("inboxes.close", inbox, (inbox, inbox), fences, (last, last))

    @rule(inbox=st.sampled_from(INBOXES), window=WINDOWS, node=st.sampled_from(NODES))
    def visit(self, inbox, window, node) -> None:
        """Like an agent without a connection: take, and ack all of it next time."""
        _, *pair = self.newest()[inbox]
        live = tuple(LiveSession(one.fence, node, int(self.now) + 100) for one in pair)
        page, _ = self.both("inboxes.fetch", inbox, (inbox, inbox), live, (window, window))
        if isinstance(page, Page):
            wanted = [
                [AckRequest(inbox, InboxAck(one.fence, one.epoch, (), page.upto), taken=True)]
                for one in pair
            ]
            self.both("inboxes.ack", inbox, tuple(wanted))

    def read_all(self, inbox) -> None:
        _, left, right = self.newest()[inbox]
        cursor = self.memory.state.inboxes[inbox].cursor
        fences, window = (left.fence, right.fence), Window(1_000, 10**9)
        self.both("inboxes.read", inbox, (inbox, inbox), fences, (cursor, cursor), (window, window))

    def newest(self) -> dict[AgentKey, tuple[AgentKey, OpenedSession, OpenedSession]]:
        return {session[0]: session for session in self.sessions}

    def pick(self, at: int) -> tuple[AgentKey, OpenedSession, OpenedSession]:
        # mostly the newest of an inbox: an old one only ever hears that it is over
        choice = [*self.newest().values()] * 3 + self.sessions[-6:]
        return choice[at % len(choice)]

    def live(self, inbox: AgentKey, places: list[int]) -> list[Seq]:
        """Seqs of live entries, and some that are not."""
        seqs = [*self.memory.state.inboxes[inbox].live, Seq(self.head(inbox) + 1), Seq(1)]
        return [seqs[place % len(seqs)] for place in places]

    @precondition(lambda self: self.sessions)
    @rule(at=st.integers(0, 7), last=SEQS)
    def close(self, at, last) -> None:
        inbox, left, right = self.pick(at)
        self.both("inboxes.close", inbox, (inbox, inbox), (left.fence, right.fence), (last, last))

    @precondition(lambda self: self.sessions)
    @rule(at=st.integers(0, 7), after=SEQS, window=WINDOWS)
    def read(self, at, after, window) -> None:
        inbox, left, right = self.pick(at)
        after = Seq(min(after, self.head(inbox)) if at % 2 else left.cursor)
        self.both(
            "inboxes.read",
            inbox,
            (inbox, inbox),
            (left.fence, right.fence),
            (after, after),
            (window, window),
        )

    def head(self, inbox: AgentKey) -> int:
        (found,) = self.run(self.memory.inboxes.heads([inbox]))
        return found.head if found else 0

    @precondition(lambda self: self.sessions)
    @rule(at=st.integers(0, 7), window=WINDOWS, node=st.sampled_from(NODES))
    def take(self, at, window, node) -> None:
        inbox, *pair = self.pick(at)
        live = tuple(LiveSession(one.fence, node, int(self.now) + 100) for one in pair)
        self.both("inboxes.fetch", inbox, (inbox, inbox), live, (window, window))

    @precondition(lambda self: self.sessions)
    @rule(
        at=st.integers(0, 7), seqs=PICKS, upto=SEQS, refuse=PICKS, taken=st.booleans(),
    )  # fmt: skip
    def ack(self, at, seqs, upto, refuse, taken) -> None:
        inbox, *pair = self.pick(at)
        seqs = self.live(inbox, seqs)
        refusals = tuple((seq, "cannot be opened") for seq in self.live(inbox, refuse[:2]))
        wanted = [
            [AckRequest(inbox, InboxAck(one.fence, one.epoch, tuple(seqs), upto, refusals), taken)]
            for one in pair
        ]
        self.both("inboxes.ack", inbox, tuple(wanted))

    @rule(
        inbox=st.sampled_from(INBOXES),
        places=PICKS,
        reason=st.sampled_from([Reason.EXPIRED, Reason.CORRUPT]),
    )
    def conclude(self, inbox, places, reason) -> None:
        seqs = self.live(inbox, places[:2])
        self.both("inboxes.finalize", inbox, (inbox, inbox), (seqs, seqs), (reason, reason))

    @rule(inbox=st.sampled_from(INBOXES))
    def status(self, inbox) -> None:
        asked = [DedupKey(item.dedupe_key, item.hour) for item in self.items.values()]
        self.both("inboxes.status", inbox, (inbox, inbox), (asked, asked))

    @rule(seconds=st.sampled_from([10, 60, 330, 1_000]))
    def advance(self, seconds) -> None:
        self.now += seconds
        self.run(self.world.set_time(self.now))

    @rule(ok=st.sampled_from([True, True, True, False]))
    def trust_clock(self, ok) -> None:
        self.memory.clock.trust(ok=ok)
        self.redis.clock.trust(ok=ok)

    @rule(live=st.sets(st.sampled_from(NODES)))
    def sweep(self, live) -> None:
        self.both("expiry.sweep", INBOXES[0], (NODES[0], NODES[0]), (live, live))

    @rule()
    def claim_bounces(self) -> None:
        left, right = (
            sorted(self.run(store.bounces.claim()), key=lambda batch: batch.sender)
            for store in (self.memory, self.redis)
        )
        assert [(batch.sender, batch.decided_at, set(batch.intents)) for batch in left] == [
            (batch.sender, batch.decided_at, set(batch.intents)) for batch in right
        ]
        self.batches = (left, right)

    @precondition(lambda self: self.batches[0])
    @rule()
    def finalize_bounces(self) -> None:
        for store, batches in zip((self.memory, self.redis), self.batches, strict=True):
            self.run(store.bounces.finalize(batches[0]))

    @rule(
        owner=st.sampled_from(INBOXES),
        seq=st.integers(1, 9),
        names_us=st.sampled_from([1] * 7 + [0]),
    )
    def merge_record(self, owner, seq, names_us) -> None:
        row = RecordRow(
            RecordVersion(1, seq, bytes([seq]) * 32), f"record{seq}", names_us=bool(names_us)
        )
        self.both("records.merge", owner, ([(owner, row)], [(owner, row)]))

    # ------------------------------------------------------------ elsewhere

    @rule(owner=st.sampled_from(INBOXES), home=st.sampled_from([True, True, False]))
    def move(self, owner, home) -> None:
        """A record that is newer than all before."""
        self.moves += 1
        digest = self.moves.to_bytes(2, "big") * 16
        row = RecordRow(RecordVersion(1, self.moves, digest), f"record{self.moves}", names_us=home)
        self.has_lost = True
        self.both("records.merge", owner, ([(owner, row)], [(owner, row)]))

    @rule(owner=st.sampled_from(INBOXES), home=st.booleans(), byte=st.integers(0, 255))
    def fork(self, owner, home, byte) -> None:
        """Another record of the newest one's seq."""
        row = RecordRow(
            RecordVersion(1, self.moves, bytes([byte]) * 32), f"fork{byte}", names_us=home
        )
        self.both("records.merge", owner, ([(owner, row)], [(owner, row)]))

    # ------------------------------------------------------------ hand-offs

    @rule(
        inbox=st.sampled_from([*INBOXES, *INBOXES, AgentKey("key:new")]),
        holding=st.sampled_from(InboxRole),
        flags=st.tuples(*[st.booleans()] * 5),
        named=st.lists(st.integers(0, 30), max_size=12),
        floor=st.sampled_from([-1] * 5 + [HOUR - 4, HOUR - 2]),
        stale=st.sampled_from(["", "", "", "", "", "text", "record"]),
    )
    def step(self, inbox, holding, flags, named, floor, stale) -> None:  # noqa: PLR0917
        self.count += 1
        self.has_lost = True
        doubts = b"".join(self.doubt(inbox, n) for n in sorted(named, key=lambda n: n % 4))
        wanted = MigrationChange(f"side{self.count}", holding, *flags, doubts, floor)
        seen = self.run(self.memory.migrations.load(inbox))
        if stale == "text":
            seen = dataclasses.replace(seen, text="another")
        if stale == "record":
            seen = dataclasses.replace(
                seen, record=RecordRow(RecordVersion(1, 0, bytes(32)), "", names_us=True)
            )
        done, _ = self.both(
            "migrations.change", inbox, (inbox, inbox), (seen, seen), (wanted, wanted)
        )
        if done and wanted.is_new:
            self.counted.add(inbox)
        opened = [
            sorted(self.run(store.migrations.list_open())) for store in (self.memory, self.redis)
        ]
        assert opened[0] == opened[1]

    def doubt(self, inbox: AgentKey, n: int) -> bytes:
        """An id as a digest names it; sometimes of another envelope."""
        item = self.items.get((inbox, n)) or entry(n, hour=HOUR - n % 4)
        of = eid(n + 1_000) if n % 9 == 5 else item.eid
        return item.hour.to_bytes(4, "big") + item.dedupe_key + eid_bytes(of)[:16]

    @rule(
        inbox=st.sampled_from(INBOXES),
        lists=st.tuples(*[st.lists(st.sampled_from(SENDERS), max_size=3)] * 3),
        refuses=st.sampled_from(["accept", "accept", "accept", "refuse"]),
    )
    def learn_known(self, inbox, lists, refuses) -> None:
        known = MovedRules(refuses, *map(tuple, lists))
        self.both("migrations.add_known", inbox, (inbox, inbox), (known, known))

    @rule(
        inbox=st.sampled_from(INBOXES),
        window=WINDOWS,
        peer=st.sampled_from([*PEERS, None]),
        is_forwarded=st.sampled_from([True] * 7 + [False]),
        places=PICKS,
        refuse=PICKS,
        wait_s=st.sampled_from([0, 5, 400]),
        code=st.sampled_from([None, None, None, *CLOSING]),
        end=st.sampled_from(["", "close", "defer", "defer, close"]),
    )
    def carry(  # noqa: PLR0917  one argument for each strategy
        self, inbox, window, peer, is_forwarded, places, refuse, wait_s, code, end
    ) -> None:
        """Like a courier: read, forward some, refuse some, say when it comes again."""
        if self.memory.state.inboxes[inbox].home:
            self.move(inbox, home=False)
            self.append_some(inbox, 1, 4_000, 0, peer or PEERS[0])
        wanted = OpenRequest(inbox, NODES[0], window, forwards=True, create=False)
        left, right = self.both("inboxes.open", inbox, (wanted, wanted))
        if not isinstance(left, OpenedSession):
            return  # a step of a hand-off decides
        self.has_lost = self.has_lost or is_forwarded
        self.sessions.append((inbox, left, right))
        self.read_all(inbox)
        fences, head = (left.fence, right.fence), Seq(self.head(inbox))
        forwarded = Forwarded(PEERS[0], bytes([len(places)]) * 32) if is_forwarded else None
        refusals = tuple((seq, "blocked") for seq in self.live(inbox, refuse[:1]))
        asked = [
            [AckRequest(inbox, InboxAck(one.fence, one.epoch, tuple(self.live(inbox, places)), head,
                                   refusals, forwarded))]
            for one in (left, right)
        ]  # fmt: skip
        self.both("inboxes.ack", inbox, tuple(asked))
        if "defer" in end:
            closed = Refusal(code) if code else None
            self.both("outboxes.defer", inbox, (inbox, inbox), fences, (wait_s, wait_s),
                      peer=peer, closed=closed)  # fmt: skip
            self.append_some(inbox, self.moves * 10, 4_000, 0, PEERS[0])
        if "close" in end:
            self.both("inboxes.close", inbox, (inbox, inbox), fences, (head, head))

    @precondition(lambda self: self.sessions)
    @rule(at=st.integers(0, 7), wait_s=st.sampled_from([0, 45]), peer=st.sampled_from(PEERS))
    def defer(self, at, wait_s, peer) -> None:
        inbox, left, right = self.pick(at)
        fences = (left.fence, right.fence)
        self.both("outboxes.defer", inbox, (inbox, inbox), fences, (wait_s, wait_s), peer=peer)

    @rule(limit=st.integers(1, 2), lease_s=st.sampled_from([5, 30]))
    def due_outboxes(self, limit, lease_s) -> None:
        node = (NODES[0], NODES[0])
        self.both("outboxes.due", INBOXES[0], node, limit=limit, lease_s=lease_s)

    @precondition(lambda self: self.sessions)
    @rule(at=st.integers(0, 5), which=st.integers(0, 30))
    def lose_an_entry(self, at, which) -> None:
        """Both stores lose the same entry, and find out by reading."""
        inbox, left, _ = self.pick(at)
        box = self.memory.state.inboxes[inbox]
        if box.session is None or box.fence != left.fence or not box.live:
            return
        seq = sorted(box.live)[which % len(box.live)]
        box._count(box.live.pop(seq), -1)
        self.run(self.world.raw.xdel(self.world.key("stream", inbox), f"{seq}-0"))
        self.has_lost = True
        self.read_all(inbox)


@pytest.mark.timeout(120)
def test_the_scripts_do_what_the_specification_says(embedded_backend: Backend) -> None:
    Machine.backend = embedded_backend
    run_state_machine_as_test(
        Machine,
        settings=settings(
            stateful_step_count=60, suppress_health_check=list(HealthCheck), deadline=None
        ),
    )


def test_the_fuzz_makes_ids_as_the_store_checks_them() -> None:
    assert entry(5).eid == eid(5)
