"""A relay's signed statement about one hand-off, for agents and operators (PROTOCOL.md §5.12).

It holds counts of envelopes only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from relay.protocol import jws as jose
from relay.protocol import signed
from relay.protocol.did import SigningKey, parse_did
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.ids import MAX_DID_BYTES, MAX_HANDOFF_ID_CHARS, Did
from relay.protocol.types import Mode

TYP: Final = "relay-handoff+jws"
MAX_STATEMENT_BYTES: Final = 8192

# ---------------------------------------------------------------- a side as text


# ---------------------------------------------------------------- statements


class MigrationCounters(NamedTuple):
    """Counts of the envelopes of a hand-off at one relay, by their end.

    At the source ``was + late = moved + acked + expired + refused + corrupt + waiting`` always
    holds; ``kept`` and ``dups`` are the target's.

    Args:
        was: what waited when it froze.
        was_bytes: wire bytes of that.
        late: accepted since.
        waiting: what waits now.
        moved: taken over by another relay, with its signed receipt.
        acked: by the agent, since; only where it came back.
        expired: ended so, with a bounce.
        refused: another relay will never take it, or the agent refused it; with a bounce.
        corrupt: damaged in the store; with a bounce.
        kept: brought by another relay, and new here.
        dups: brought by another relay, and here already.
    """

    was: int = 0
    was_bytes: int = 0
    late: int = 0
    waiting: int = 0
    moved: int = 0
    acked: int = 0
    expired: int = 0
    refused: int = 0
    corrupt: int = 0
    kept: int = 0
    dups: int = 0

    @property
    def is_balanced(self) -> bool:
        """True if every envelope that was there is accounted for."""
        ended = self.moved + self.acked + self.expired + self.refused + self.corrupt
        return self.was + self.late == ended + self.waiting


@dataclass(frozen=True, slots=True)
class MigrationStatement:
    """A relay's statement about one hand-off.

    Args:
        relay: the signer.
        did: whose inbox.
        handoff: which hand-off is the current one there; "" = none.
        mode: what the inbox is there.
        at: Unix seconds.
        digest_received: at the target: what the agent has seen at the source is known.
        digest_acked: at the source: the target has confirmed that.
        record_names_target: the newest record there names the target of this hand-off.
        awaiting_digests: relays whose digests are awaited; until then, deliveries are flagged.
        counters: counts of envelopes.
        reason: the obstacle that stops the migration, for a person; "" = nothing.
    """

    relay: Did
    did: Did
    handoff: str
    mode: Mode
    at: int
    digest_received: bool = False
    digest_acked: bool = False
    record_names_target: bool = False
    awaiting_digests: tuple[Did, ...] = ()
    counters: MigrationCounters = field(default_factory=MigrationCounters)
    reason: str = ""


def sign(key: SigningKey, statement: MigrationStatement) -> str:
    """Sign a statement with the relay's key."""
    payload = {
        "v": 1,
        "relay": statement.relay,
        "did": statement.did,
        "mig_id": statement.handoff,
        "mode": statement.mode,
        "at": statement.at,
        "digested": statement.digest_received,
        "handed": statement.digest_acked,
        "named": statement.record_names_target,
        "missing": list(statement.awaiting_digests),
        "tally": statement.counters._asdict(),
        "why": statement.reason,
    }
    return jose.sign(payload, typ=TYP, kid=key.kid, key=key.sign)


def verify(compact: str, relay: Did) -> MigrationStatement:
    """Read a statement and check that ``relay`` signed it.

    Raises:
        ProtocolError: ``bad_frame`` for its form, ``bad_signature`` for its signature or signer.
    """
    try:
        jws = jose.parse(compact, typ=TYP, max_bytes=MAX_STATEMENT_BYTES)
        members = jws.members()
        statement = _read(members)
        key = parse_did(relay)
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_FRAME, f"statement: {exc}") from exc
    if statement.relay != relay or not signed.is_by(jws, key):
        raise ProtocolError(ErrorCode.BAD_SIGNATURE, "the statement is not that relay's")
    return statement


def _read(members: jose.Members) -> MigrationStatement:
    signed.check_version(members)
    counts = members.object("tally")
    return MigrationStatement(
        relay=Did(members.text("relay", limit=MAX_DID_BYTES)),
        did=Did(members.text("did", limit=MAX_DID_BYTES)),
        handoff=members.text("mig_id", minimum=0, limit=MAX_HANDOFF_ID_CHARS),
        mode=Mode(members.text("mode", limit=16)),
        at=members.integer("at"),
        digest_received=members.boolean("digested"),
        digest_acked=members.boolean("handed"),
        record_names_target=members.boolean("named"),
        awaiting_digests=_missing(members),
        counters=MigrationCounters(*(counts.integer(name) for name in MigrationCounters._fields)),
        reason=members.text("why", minimum=0, limit=512),
    )


def _missing(members: jose.Members) -> tuple[Did, ...]:
    values = members.array("missing", limit=64)
    if any(not isinstance(did, str) for did in values):
        raise ValueError("missing must be DIDs")
    return tuple(map(Did, values))
