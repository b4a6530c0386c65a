"""What an agent says of its migration to one of the two relays (PROTOCOL.md §5.12).

Rules of the file: the signed order is the proof, so there is no login; a statement counts only
where the relay that the order names has signed it, and where it speaks of this agent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple, get_args

from relay.client.errors import of, typed
from relay.client.http.origin import Origin
from relay.client.http.transport import REQUEST_TIMEOUT_S, request_json
from relay.protocol import frames, migration_statement
from relay.protocol import jws as jose
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
    RelayError,
)
from relay.protocol.ids import Did, Eid, Seq
from relay.protocol.jws import Members
from relay.protocol.migration_statement import Statement
from relay.protocol.types import Question, Waiting

PATH: Final = "/v1/migrations"
PAGE: Final = 1024
MOST_LISTED: Final = 1_000_000
"""Whoever lists more than any inbox holds goes on for ever."""
FREEZE_S: Final = 15.0
"""A source answers once the target has its digest, or after 10 s."""
KEY_BYTES: Final = 16
_EID: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_STATES: Final = frozenset(get_args(frames.State))


@dataclass(frozen=True, slots=True)
class Room:
    """What an agent brings: envelopes, wire bytes of all, and of the largest."""

    count: int
    bytes: int
    largest: int

    @classmethod
    def of(cls, items: Sequence[Waiting]) -> Room:
        """What these need."""
        sizes = [one.size for one in items]
        return cls(len(sizes), sum(sizes), max(sizes, default=0))


class Said(NamedTuple):
    """A statement, as it was signed and as it reads."""

    compact: str
    statement: Statement


@dataclass(frozen=True, slots=True)
class Office:
    """One of the two relays of a migration.

    Args:
        origin: where it is.
        relay: who signs there.
        did: whose inbox.
        order: signed by that agent.
        seconds: for each request.
    """

    origin: Origin
    relay: Did
    did: Did
    order: str
    seconds: float = REQUEST_TIMEOUT_S

    async def offer(self, room: Room) -> Said:
        """Ask the target whether it would take this; changes nothing.

        Raises:
            AgentError: its no, or no answer, or a statement that is not its own.
        """
        return self._read(await self._ask("offer", asdict(room)))

    async def prepare(self, room: Room, newest: str) -> Said:
        """Ask the target to get ready.

        Args:
            room: what comes.
            newest: the newest record of the agent.

        Raises:
            AgentError: as :meth:`offer`.
        """
        return self._read(await self._ask("prepare", {**asdict(room), "newest": newest}))

    async def freeze(self) -> Said:
        """Ask the source to stop delivering; to be repeated until its target has the digest.

        Raises:
            AgentError: as :meth:`offer`.
        """
        return self._read(await self._ask("freeze", {}, max(self.seconds, FREEZE_S)))

    async def state(self) -> Said:
        """Ask how the hand-off stands there.

        Raises:
            AgentError: as :meth:`offer`.
        """
        return self._read(await self._ask("state", {}))

    async def inventory(self) -> list[Waiting]:
        """All that waits at the source.

        Raises:
            AgentError: its no, or no answer, or one that cannot be.
        """
        items: list[Waiting] = []
        more = True
        while more:
            after = items[-1].seq if items else 0
            answer = await self._ask("inventory", {"after": after})
            try:
                page = [parse_inventory_item(one) for one in answer.array("items", most=PAGE)]
                more = answer.boolean("more")
            except RelayError as exc:
                raise of(exc) from exc
            except ValueError as exc:
                raise self._wrong(str(exc)) from exc
            seqs = [after, *(one.seq for one in page)]
            if any(one >= other for one, other in pairwise(seqs)):
                raise self._wrong("an inventory that goes back")
            if len(items) > MOST_LISTED:
                raise self._wrong("an inventory without an end")
            if more and not page:
                raise self._wrong("an inventory that does not go on")
            items += page
        return items

    async def find(self, items: Sequence[Waiting]) -> list[frames.State]:
        """What became of envelopes there, each.

        Raises:
            AgentError: its no, or no answer, or one that cannot be.
        """
        states: list[frames.State] = []
        for at in range(0, len(items), PAGE):
            page = items[at : at + PAGE]
            answer = await self._ask("find", {"items": [_question(one) for one in page]})
            try:
                found = answer.array("states", least=len(page), most=len(page))
            except ValueError as exc:
                raise self._wrong(str(exc)) from exc
            if not all(isinstance(one, str) and one in _STATES for one in found):
                raise self._wrong("a state that does not exist")
            states += found
        return states

    # ------------------------------------------------------------ below

    async def _ask(self, step: str, more: dict[str, Any], seconds: float | None = None) -> Members:
        body = {"order": self.order, "step": step, **more}
        return await request_json(
            self.origin, "POST", PATH, body=body, timeout_s=seconds or self.seconds
        )

    def _read(self, answer: Members) -> Said:
        try:
            compact = answer.text("statement", most=migration_statement.MAX_BYTES)
            statement = migration_statement.verify(compact, self.relay)
        except RelayError as exc:
            raise typed(exc.code, f"{self.origin}: {exc.detail}") from exc
        except ValueError as exc:
            raise self._wrong(str(exc)) from exc
        if statement.did != self.did:
            raise self._wrong("a statement about another agent")
        return Said(compact, statement)

    def _wrong(self, why: str) -> RelayError:
        return typed(ErrorCode.BAD_FRAME, f"{self.origin} said what cannot be: {why}")


# ---------------------------------------------------------------- what waits, on the wire


def parse_inventory_item(value: object) -> Waiting:
    """One item of an inventory: [seq, eid, hour, key, size, expires].

    Raises:
        ProtocolError: it is none.
    """
    match value:
        case [int(seq), str(eid), int(hour), str(key), int(size), int(expires_at)]:
            if seq < 1 or size < 0 or not _EID.fullmatch(eid):
                # an eid is shown to a person at a terminal
                raise ProtocolError(ErrorCode.BAD_FRAME, "an inventory names what is no envelope")
            question = Question(_key(key), hour)
            return Waiting(Seq(seq), Eid(eid), question, size, expires_at)
        case _:
            raise ProtocolError(ErrorCode.BAD_FRAME, "an inventory says what cannot be")


def _key(text: str) -> bytes:
    try:
        key = jose.b64decode(text)
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_FRAME, f"an inventory: {exc}") from exc
    if len(key) != KEY_BYTES:
        raise ProtocolError(ErrorCode.BAD_FRAME, "an inventory names a key of a wrong length")
    return key


def _question(item: Waiting) -> list[Any]:
    """One item of a ``find``: [hour, key, eid]."""
    return [item.question.hour, jose.b64encode(item.question.dedupe_key), item.eid]
