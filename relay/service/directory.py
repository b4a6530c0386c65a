"""Directory: an agent's endpoint record is published and resolved (PROTOCOL.md §7).

Rules of the file: check, then persist, then answer; found, absent and unreadable are three answers.
"""

from __future__ import annotations

from dataclasses import dataclass

from relay import clock
from relay.core import records
from relay.core.errors import ErrorCode, ProtocolError, RejectedError, UnavailableError, error
from relay.core.frames import Published, Resolution
from relay.core.identity import parse_did
from relay.core.ids import Did
from relay.core.jws import UnsupportedError
from relay.ports import InboxStore, Keys
from relay.ports_mesh import RecordRow


@dataclass(frozen=True, slots=True)
class Found:
    """What resolving came to."""

    state: Resolution
    record: str | None = None
    stale: bool = False


@dataclass(frozen=True, slots=True)
class Directory:
    """Records of the agents that have, or had, an inbox here."""

    relay: Did
    store: InboxStore
    keys: Keys

    async def publish(
        self, compact: str, *, owner: Did | None = None, only: Did | None = None, ref: str = ""
    ) -> Published:
        """Keep a record if it is newer than the one held.

        Args:
            compact: the signed record.
            owner: the agent that logged in; only its own record is taken.
            only: without a login, the DID it must be of; it must name this relay or be known here.
            ref: goes into the answer.

        Raises:
            RelayError: ``bad_frame``, ``bad_signature``, ``not_yet_valid``, ``unsupported``,
                ``not_admitted`` or ``storage_unavailable``.
        """
        record = records.parse(compact)
        if record.did != (owner or only):
            raise ProtocolError(ErrorCode.BAD_SIGNATURE, "a record is published by its own agent")
        key = await self.keys.resolve(record.did)
        no = records.verify(record, key, clock.now())
        if no is not None:
            raise no.to_error()
        names_us = record.names(self.relay) and record.status == "active"
        if owner is None and not names_us and await self.store.record(key.agent_key) is None:
            detail = "the record names other relays and this one does not know the agent"
            raise RejectedError(ErrorCode.NOT_ADMITTED, detail)
        # with "parked" the last home keeps the inbox and queues (PROTOCOL.md §7.3)
        keeps = names_us or (record.status == "parked" and await self._is_home(record.did))
        row = RecordRow(record.order, compact, keeps)
        kept = await self.store.merge_record(key.agent_key, row)
        kv, seq, _ = kept.order
        stored = kept.order == record.order
        return Published(ref, stored, kv, seq, None if stored else kept.compact)

    async def _is_home(self, did: Did) -> bool:
        row = await self.store.record(parse_did(did).agent_key)
        return row is None or row.names_us

    async def resolve(self, did: str) -> Found:
        """The newest record held of an agent.

        Raises:
            ProtocolError: ``bad_frame`` or ``unsupported``: not a DID that can be resolved.
        """
        try:
            owner = parse_did(did)
        except UnsupportedError as exc:
            raise error(ErrorCode.UNSUPPORTED, f"did: {exc}") from exc
        except ValueError as exc:
            raise error(ErrorCode.BAD_FRAME, f"did: {exc}") from exc
        try:
            row = await self.store.record(owner.agent_key)
        except UnavailableError:
            return Found("unreadable")
        if row is None:
            return Found("absent")
        stale = records.is_stale(records.parse(row.compact), clock.now())
        return Found("found", row.compact, stale)
