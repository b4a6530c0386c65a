"""Two relays between which an agent moves, and that lie, stall or hang up when they are told to.

An honest move is tested with real relays. What is here exists because no honest relay does these
things on demand: each of the two answers ``POST /v1/migrations`` after the real state machine
(:mod:`relay.migration.model.machine`), unless ``lies`` has something else to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from relay.client.migration.runner import Host, MigrationOptions
from relay.client.state.agent_state import AgentState
from relay.migration.model import machine
from relay.migration.model.state import (
    DigestPage,
    DigestReceipt,
    Freeze,
    MigrationSide,
    OrderRef,
    PeerMessage,
    Prepare,
    RecordObserved,
    RecordRef,
    Transition,
)
from relay.protocol import endpoint_record, migration_order, migration_statement, relay_info
from relay.protocol import jws as jose
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import Home
from relay.protocol.errors import ErrorCode, Refusal
from relay.protocol.ids import Did, Eid, Seq, Timestamp
from relay.protocol.migration_statement import MigrationCounters, MigrationStatement
from relay.protocol.relay_info import RelayDescription
from relay.protocol.types import DedupKey, Mode, WaitingEnvelope

Lie = Callable[[str, dict[str, Any]], dict[str, Any] | None]


def new_key() -> SigningKey:
    return SigningKey(os.urandom(32))


def now() -> Timestamp:
    return Timestamp(time.time())


def waiting(count: int, *, size: int = 700, lives_s: int = 3600) -> list[WaitingEnvelope]:
    """Envelopes that wait, without their content."""
    return [
        WaitingEnvelope(
            Seq(n + 1),
            Eid(jose.b64encode(os.urandom(32))),
            DedupKey(os.urandom(16), int(time.time()) // 3600),
            size,
            int(time.time()) + lives_s,
        )
        for n in range(count)
    ]


@dataclass
class Relay:
    """One of the two.

    Args:
        name: for the tests.
        agent: whose inbox.
        lies: asked before each answer with the step; None: the truth.
    """

    name: str
    agent: SigningKey
    key: SigningKey = field(default_factory=new_key)
    lies: Lie = lambda _, __: None
    url: str = ""
    limits: dict[str, int] = field(default_factory=lambda: {"body": 262_144})
    side: MigrationSide = field(init=False)
    other: Relay | None = None
    items: list[WaitingEnvelope] = field(default_factory=list)
    has: dict[Eid, str] = field(default_factory=dict)
    tally: MigrationCounters = field(default_factory=MigrationCounters)
    record: str | None = None
    asked: list[str] = field(default_factory=list)
    is_down: bool = False

    def __post_init__(self) -> None:
        self.side = MigrationSide(self.key.did)

    @property
    def home(self) -> Home:
        return Home(self.key.did, self.url)

    # ------------------------------------------------------------ HTTP

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, path, _ = head.split(" ", 2)
            _, _, length = head.lower().partition("content-length: ")
            body = await reader.readexactly(int(length.partition("\r")[0] or 0))
            if not self.is_down:
                said = jose.loads(body) if body else {}
                answer = jose.dumps(self.answer(method, path, said))
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer)}\r\n\r\n"
                writer.write(head.encode() + answer)
                await writer.drain()
        writer.close()

    def answer(self, method: str, path: str, said: dict[str, Any]) -> dict[str, Any]:
        if path == "/.well-known/agent-relay.json":
            return {"jws": relay_info.sign(self.key, self._description(), now())}
        if path.startswith("/v1/agents/"):
            step = "publish" if method == "PUT" else "resolve"
        else:
            step = said["step"]
        self.asked.append(step)
        lie = self.lies(step, said)
        if lie is not None:
            return lie
        done: dict[str, Any] | Refusal = getattr(self, step)(said)
        if isinstance(done, Refusal):
            return {"error": done.code, "detail": done.detail, "retry_after": None}
        return done

    def _description(self) -> RelayDescription:
        return RelayDescription(
            self.url, "a liar", "0", self.limits, 1, "open", "open", durability="fsync"
        )

    # ------------------------------------------------------------ the truth

    def resolve(self, _: dict[str, Any]) -> dict[str, Any]:
        state = "absent" if self.record is None else "found"
        return {"state": state, "record": self.record, "stale": False}

    def publish(self, said: dict[str, Any]) -> dict[str, Any]:
        record = endpoint_record.parse(said["record"])
        held = endpoint_record.parse(self.record) if self.record else None
        if held is not None and held.version > record.version:
            return {"stored": False, "kv": 1, "seq": held.seq, "record": self.record}
        self.learn(said["record"])
        if self.other is not None and not self.other.is_down:
            self.other.learn(said["record"])
        return {"stored": True, "kv": 1, "seq": record.seq, "record": None}

    def learn(self, record: str) -> None:
        self.record = record
        ref = RecordRef.of(endpoint_record.parse(record))
        before = self.side
        self._take(machine.step(before, RecordObserved(ref), now()))
        if self.side.mode is Mode.FROZEN and before.mode is not Mode.FROZEN:
            self.tally = MigrationCounters(was=len(self.items), waiting=len(self.items))

    def offer(self, said: dict[str, Any]) -> dict[str, Any] | Refusal:
        side = self.side
        done = self._take(machine.step(side, Prepare(self._order(said)), now()))
        self.side = side
        return done or self.state(said)

    def prepare(self, said: dict[str, Any]) -> dict[str, Any] | Refusal:
        self.record = self.record or said["newest"]
        no = self._take(machine.step(self.side, Prepare(self._order(said)), now()))
        return no or self.state(said)

    def freeze(self, said: dict[str, Any]) -> dict[str, Any] | Refusal:
        was_frozen = self.side.mode is Mode.FROZEN
        no = self._take(machine.step(self.side, Freeze(self._order(said)), now()))
        if no is None and not was_frozen:
            self.tally = MigrationCounters(was=len(self.items), waiting=len(self.items))
        if no is None and self.other is not None and not self.other.is_down:
            self._tell_digest(self.other)
        return no or self.state(said)

    def _tell_digest(self, other: Relay) -> None:
        if self.side.handoff is None:
            return
        whole = hashlib.sha256(self.side.handoff.id.encode()).digest()
        page = DigestPage(self.side.handoff.id, whole, 0, 1)
        done = machine.step(other.side, PeerMessage(self.key.did, page), now())
        if other._take(done) is None:
            receipt = DigestReceipt(page.handoff, whole, 1)
            self._take(machine.step(self.side, PeerMessage(other.key.did, receipt), now()))

    def state(self, _: dict[str, Any]) -> dict[str, Any]:
        if self.other is not None and not self.other.is_down and self.side.names_target:
            self.copy(self.other)
        return {"statement": migration_statement.sign(self.key, self.statement())}

    def copy(self, other: Relay, most: int = 4) -> None:
        """Hand some over."""
        page, self.items = self.items[:most], self.items[most:]
        for one in page:
            other.has[one.eid] = "stored"
        self.tally = self.tally._replace(
            moved=self.tally.moved + len(page), waiting=len(self.items)
        )
        other.tally = other.tally._replace(kept=other.tally.kept + len(page))

    def statement(self) -> MigrationStatement:
        side = self.side
        return MigrationStatement(
            relay=self.key.did,
            did=self.agent.did,
            handoff=side.handoff.id if side.handoff else "",
            mode=side.mode,
            at=int(now()),
            digest_received=side.digest_received,
            digest_acked=side.digest_acked,
            record_names_target=side.names_target if side.mode is Mode.FROZEN else side.is_home,
            awaiting_digests=tuple(side.awaiting_digests),
            counters=self.tally,
        )

    def inventory(self, said: dict[str, Any]) -> dict[str, Any]:
        left = [one for one in self.items if one.seq > said["after"]]
        page = [
            [
                one.seq,
                one.eid,
                one.dedup_key.hour,
                jose.b64encode(one.dedup_key.dedupe_key),
                one.size,
                one.expires_at,
            ]
            for one in left[:5]
        ]
        return {"items": page, "more": len(left) > len(page)}

    def find(self, said: dict[str, Any]) -> dict[str, Any]:
        return {"states": [self.has.get(eid, "unknown") for _, _, eid in said["items"]]}

    # ------------------------------------------------------------ below

    @staticmethod
    def _order(said: dict[str, Any]) -> OrderRef:
        return OrderRef.of(migration_order.parse(said["order"]))

    def _take(self, done: Transition | Refusal) -> Refusal | None:
        if isinstance(done, Refusal):
            return done
        self.side = done.side
        return None

    def signing(self, **values: Any) -> dict[str, Any]:
        """A statement that says something else than is so."""
        said = self.statement()
        names = MigrationStatement.__slots__
        members = {name: getattr(said, name) for name in names}
        return {
            "statement": migration_statement.sign(
                self.key, MigrationStatement(**{**members, **values})
            )
        }


def refusing(code: ErrorCode, *steps: str) -> Lie:
    """Refuse some steps."""
    no = {"error": code, "detail": "so says the liar", "retry_after": None}
    return lambda step, _: no if step in steps else None


@dataclass(eq=False)
class Alone(Host):
    """An agent without a session."""

    did_what: list[str] = field(default_factory=list)

    async def on_freeze(self, source: Did) -> None:
        self.did_what.append(f"leave {source[-4:]}")

    def on_cancelled(self) -> None:
        self.did_what.append("stay")

    async def on_published(self) -> None:
        self.did_what.append("arrive")

    def on_manifest(self, eids: frozenset[Eid] | None) -> None:
        self.did_what.append("expect" if eids is not None else "expect nothing")


@dataclass
class World:
    """An agent at its source, and its target."""

    agent: SigningKey
    source: Relay
    target: Relay

    def alone(self, state: AgentState | None = None) -> Alone:
        """The agent, as a new process would find it."""
        state = state or AgentState()
        if state.record is None:
            state.keep_record(self.source.record or "")
        return Alone(self.agent, state)


@contextlib.asynccontextmanager
async def world(count: int = 12) -> AsyncIterator[World]:
    """An agent with so many envelopes at its source."""
    agent = new_key()
    source, target = Relay("source", agent), Relay("target", agent)
    async with contextlib.AsyncExitStack() as stack:
        for relay in (source, target):
            server = await asyncio.start_server(relay.handle, "127.0.0.1", 0)
            stack.push_async_callback(server.wait_closed)
            stack.callback(server.close)
            relay.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        source.other, target.other = target, source
        source.items = waiting(count)
        source.learn(endpoint_record.sign(agent, [source.home], now=now()))
        yield World(agent, source, target)


SHORT = MigrationOptions(deadline_s=3.0)
