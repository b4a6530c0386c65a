"""The endpoint record of another agent, as a relay resolves it; the signature is verified here.

A relay can withhold a record, but it cannot make one: a record that its agent did not sign counts
as unreadable.
"""

from __future__ import annotations

from dataclasses import dataclass

from relay import clock
from relay.client.http.origin import Origin
from relay.client.http.relay_api import RelayApi
from relay.protocol import endpoint_record, frames
from relay.protocol.did import parse_did
from relay.protocol.endpoint_record import EndpointRecord
from relay.protocol.errors import RelayError
from relay.protocol.ids import Did, Timestamp


@dataclass(frozen=True, slots=True)
class ResolveResult:
    """The result of resolving a DID or a handle.

    Args:
        state: ``found``, ``absent`` and ``unreadable`` are three different answers.
        record: verified, with ``found``.
        stale: past its ``exp``: good for routing, shown as stale.
        did: of a handle: the agent that it names.
        verified: of a handle: the record lists it, too.
        reason: of a handle: why it names no agent.
    """

    state: frames.Resolution
    record: EndpointRecord | None = None
    stale: bool = False
    did: Did | None = None
    verified: bool = False
    reason: str = ""


async def resolve_at(origin: Origin, did: str, *, is_own: bool = False) -> ResolveResult:
    """Ask the relay at ``origin`` for a record, without a login; ``is_own`` as for :func:`verify`.

    Raises:
        AgentError: the relay's refusal, or no answer.
    """
    return read_resolved(await RelayApi(origin).resolve(did), did, is_own=is_own)


def read_resolved(answer: frames.Resolved, did: str, *, is_own: bool = False) -> ResolveResult:
    """Verify the answer to a question about ``did``; ``is_own`` as for :func:`verify`."""
    if answer.record is None:
        return ResolveResult(answer.state)
    record = verify(answer.record, did, is_own=is_own)
    if record is None:
        return ResolveResult("unreadable")
    return ResolveResult(answer.state, record, stale=answer.stale)


def verify(compact: str, did: str, *, is_own: bool = False) -> EndpointRecord | None:
    """Return a record if ``did`` has signed it; None: it has not.

    Args:
        compact: the record.
        did: the agent.
        is_own: the caller signs for ``did``. A record from the future is valid too: the clock was
            set back, and the version of the next record must be above it.
    """
    now = clock.now()
    try:
        record = endpoint_record.parse(compact)
        judged_at = Timestamp(max(now, record.issued_at)) if is_own else now
        refusal = endpoint_record.verify(record, parse_did(did), judged_at)
    except RelayError:
        return None
    return record if record.did == did and refusal is None else None
