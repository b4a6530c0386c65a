"""Accept a relay that is back at its address with a new key.

Entry point: :func:`accept_relay`. An attacker who has taken over an address looks like a relay that
has lost its key. So the agent's user asks the operator, and names the new DID. The agent keeps its
state: eids, outcomes, handles and the outbox. Its envelopes name no relay, so the same bytes are
submitted to the new one.

Invariants: the record is saved before the pin. After a crash in between the agent's own record
leads it to the new relay. A repeated call changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from relay.client.directory.own_record import OwnRecord, Publication, home_at
from relay.client.http import origin as origins
from relay.client.http.origin import Origin
from relay.client.identity import key_file
from relay.client.state.agent_state import AgentState, opened_async
from relay.protocol.did import SigningKey, parse_did
from relay.protocol.endpoint_record import EndpointRecord
from relay.protocol.ids import Did


async def accept_relay(
    key: SigningKey | Path | str,
    url: str,
    relay: str,
    *,
    state: str | os.PathLike[str] | None = None,
    insecure_networks: Sequence[str] = (),
) -> EndpointRecord | None:
    """Pin an address to another relay than before.

    Ask the relay's operator first: an attacker who has taken over the address looks the same. No
    agent with this key may be open. Envelopes that waited at the former relay are lost with its
    store.

    Args:
        key: the agent's, or the path of its file.
        url: the relay's origin.
        relay: the new DID, from its operator.
        state: the agent's state file; None: the pin of this process changes.
        insecure_networks: as for :meth:`relay.client.Agent.open`.

    Returns:
        The endpoint record that now names it; None: the agent has other homes, and only the pin
        changes.

    Raises:
        WrongRelayError: another relay is there: ``.found``.
        AgentError: it cannot be reached or takes no record; ``migrating``: a migration is pending.
        ValueError: ``url`` is no origin, or ``relay`` no DID.
    """
    signing = key if isinstance(key, SigningKey) else key_file.load(Path(key))
    origin = origins.parse(url, insecure_networks=insecure_networks)
    path = None if state is None else Path(state)
    async with opened_async(path, signing.did) as opened:
        done = await accept(signing, origin, parse_did(relay).did, opened)
    return done.record if done is not None else None


async def accept(
    key: SigningKey, origin: Origin, relay: Did, state: AgentState
) -> Publication | None:
    """Accept a relay, as :func:`accept_relay`, with an open state."""
    state.migration.ensure_record_unlocked()
    own = OwnRecord(key, state)
    here = await home_at(origin, state, relay)
    await own.refresh_from(origin)
    if own.newest is not None and here.url not in {home.url for home in own.newest.relays}:
        await state.accept(here.url, relay)
        return None
    return await own.publish_at(origin, accepted=relay)
