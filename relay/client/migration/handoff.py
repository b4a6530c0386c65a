"""Requests of a moving agent to one of the two relays (PROTOCOL.md §5.12).

Invariants: the signed order is the proof of the agent, so there is no login. A statement counts
only if the relay that the order names has signed it, and if it names this agent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple, get_args

from relay.client.errors import from_core, make_error
from relay.client.http.origin import Origin
from relay.client.http.transport import REQUEST_TIMEOUT_S, request_json
from relay.client.state.migration_log import MigrationState
from relay.protocol import frames, migration_statement
from relay.protocol import jws as jose
from relay.protocol.errors import ErrorCode, ProtocolError, RelayError
from relay.protocol.ids import Did, Eid, Seq
from relay.protocol.migration_statement import MigrationStatement
from relay.protocol.types import DedupKey, Mode, WaitingEnvelope

PATH: Final = "/v1/migrations"
PAGE_SIZE: Final = 1024
MAX_INVENTORY: Final = 1_000_000
"""No inbox holds more; a relay that lists more would never end."""
FREEZE_TIMEOUT_S: Final = 15.0
"""A source answers once the target has its digest, or after 10 s."""
DEDUPE_KEY_BYTES: Final = 16
_EID: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_STATES: Final = frozenset(get_args(frames.State))


@dataclass(frozen=True, slots=True)
class Capacity:
    """The size of an inventory: envelopes, wire bytes of all, wire bytes of the largest."""

    count: int
    bytes: int
    largest: int

    @classmethod
    def of(cls, items: Sequence[WaitingEnvelope]) -> Capacity:
        """Return the size of these envelopes."""
        sizes = [one.size for one in items]
        return cls(len(sizes), sum(sizes), max(sizes, default=0))


class SignedStatement(NamedTuple):
    """A statement, as it was signed and parsed."""

    compact: str
    statement: MigrationStatement


@dataclass(frozen=True, slots=True)
class HandoffClient:
    """Sends requests to one of the two relays of a migration.

    Every request raises an AgentError: a refusal, no answer in time, or a response that is not
    valid.

    Args:
        origin: of the relay.
        relay: the signer of its statements.
        did: the owner of the inbox.
        order: signed by the owner.
        timeout_s: of each request.
    """

    origin: Origin
    relay: Did
    did: Did
    order: str
    timeout_s: float = REQUEST_TIMEOUT_S

    async def offer(self, capacity: Capacity) -> SignedStatement:
        """Ask the target if it would accept this; changes nothing."""
        return await self._statement("offer", asdict(capacity))

    async def prepare(self, capacity: Capacity, newest: str) -> SignedStatement:
        """Ask the target to get ready.

        Args:
            capacity: of the inbox.
            newest: the newest record of the agent.
        """
        return await self._statement("prepare", {**asdict(capacity), "newest": newest})

    async def freeze(self) -> SignedStatement:
        """Ask the source to stop delivering; repeat it until the target has the digest."""
        return await self._statement("freeze", {}, max(self.timeout_s, FREEZE_TIMEOUT_S))

    async def state(self) -> SignedStatement:
        """Ask for the state of the hand-off."""
        return await self._statement("state", {})

    async def inventory(self) -> list[WaitingEnvelope]:
        """List all that waits at the source."""
        items: list[WaitingEnvelope] = []
        more = True
        while more:
            after = items[-1].seq if items else 0
            answer = await self._request("inventory", {"after": after})
            try:
                page = list(map(parse_inventory_item, answer.array("items", limit=PAGE_SIZE)))
                more = answer.boolean("more")
            except RelayError as exc:
                raise from_core(exc) from exc
            except ValueError as exc:
                raise self._invalid(str(exc)) from exc
            seqs = [after, *(one.seq for one in page)]
            if any(one >= other for one, other in pairwise(seqs)):
                raise self._invalid("an inventory that goes back")
            if len(items) > MAX_INVENTORY:
                raise self._invalid("an inventory without an end")
            if more and not page:
                raise self._invalid("an inventory that does not go on")
            items += page
        return items

    async def find(self, items: Sequence[WaitingEnvelope]) -> list[frames.State]:
        """Ask for the state of each of these envelopes."""
        states: list[frames.State] = []
        for at in range(0, len(items), PAGE_SIZE):
            page = items[at : at + PAGE_SIZE]
            questions = [
                [one.dedup_key.hour, jose.b64encode(one.dedup_key.dedupe_key), one.eid]
                for one in page
            ]
            answer = await self._request("find", {"items": questions})
            try:
                found = answer.array("states", minimum=len(page), limit=len(page))
            except ValueError as exc:
                raise self._invalid(str(exc)) from exc
            if not all(isinstance(one, str) and one in _STATES for one in found):
                raise self._invalid("a state that does not exist")
            states += found
        return states

    # ------------------------------------------------------------ statements

    def verified(self, compact: str | None) -> MigrationStatement | None:
        """Parse a saved statement; None: there is none, or another relay signed it."""
        if compact is None:
            return None
        try:
            return migration_statement.verify(compact, self.relay)
        except RelayError:
            return None

    def expect(self, answer: SignedStatement, migration: MigrationState, *modes: Mode) -> None:
        """Check that a statement is about this migration, in one of these modes.

        Raises:
            ProtocolError: it is not.
        """
        found = answer.statement
        if found.mode not in modes or found.handoff != migration.parsed_order.id:
            detail = f"{self.origin} says {found.mode} of hand-off {found.handoff or 'none'}"
            raise make_error(ErrorCode.BAD_FRAME, f"{detail}, and was asked to be {modes[0]}")

    async def _statement(
        self, step: str, fields: dict[str, Any], timeout_s: float | None = None
    ) -> SignedStatement:
        answer = await self._request(step, fields, timeout_s)
        try:
            compact = answer.text("statement", limit=migration_statement.MAX_STATEMENT_BYTES)
            statement = migration_statement.verify(compact, self.relay)
        except RelayError as exc:
            raise make_error(exc.code, f"{self.origin}: {exc.detail}") from exc
        except ValueError as exc:
            raise self._invalid(str(exc)) from exc
        if statement.did != self.did:
            raise self._invalid("a statement about another agent")
        return SignedStatement(compact, statement)

    async def _request(
        self, step: str, fields: dict[str, Any], timeout_s: float | None = None
    ) -> jose.Members:
        body = {"order": self.order, "step": step, **fields}
        timeout_s = timeout_s or self.timeout_s
        return await request_json(self.origin, "POST", PATH, body=body, timeout_s=timeout_s)

    def _invalid(self, reason: str) -> RelayError:
        return make_error(ErrorCode.BAD_FRAME, f"{self.origin} said what cannot be: {reason}")


def parse_inventory_item(value: object) -> WaitingEnvelope:
    """Parse one item of an inventory: [seq, eid, hour, key, size, expires].

    Raises:
        ProtocolError: it is none.
    """
    match value:
        case [int(seq), str(eid), int(hour), str(key), int(size), int(expires_at)]:
            # a person reads an eid at a terminal
            if seq < 1 or size < 0 or not _EID.fullmatch(eid):
                raise ProtocolError(ErrorCode.BAD_FRAME, "an inventory names what is no envelope")
            question = DedupKey(_dedupe_key(key), hour)
            return WaitingEnvelope(Seq(seq), Eid(eid), question, size, expires_at)
        case _:
            raise ProtocolError(ErrorCode.BAD_FRAME, "an inventory says what cannot be")


def _dedupe_key(text: str) -> bytes:
    try:
        key = jose.b64decode(text)
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_FRAME, f"an inventory: {exc}") from exc
    if len(key) != DEDUPE_KEY_BYTES:
        raise ProtocolError(ErrorCode.BAD_FRAME, "an inventory names a key of a wrong length")
    return key
