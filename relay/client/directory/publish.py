"""Publishing the own endpoint record over HTTP, without a login: the record is its own proof.

Rules of the file: what the newest record says stays, but for what the caller changes; homes are
never changed here, that would be a migration. A seq never goes back: before anything is signed the
relay is asked for the newest record that it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from relay import clock
from relay.client.directory.resolve import resolve_at, verify
from relay.client.errors import AgentError, typed
from relay.client.http import origin as origins
from relay.client.http.origin import Origin
from relay.client.http.relay_api import RelayApi
from relay.client.state.agent_state import AgentState
from relay.protocol import endpoint_record
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import (
    EndpointRecord,
    Home,
)
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import Did

TRIES: Final = 3
"""Another program of this agent may publish at the same time; the newer record wins."""

Change = Callable[[tuple[str, ...]], tuple[str, ...]]
"""From the handles that the newest record lists to those that the next one is to list."""


@dataclass(frozen=True, slots=True)
class Publication:
    """What was published, and which of the agent's other homes did not take it, and why."""

    record: EndpointRecord
    missed: tuple[tuple[str, str], ...] = ()


async def publish(
    key: SigningKey,
    origin: Origin,
    state: AgentState,
    *,
    change: Change = tuple,
    accepted: Did | None = None,
) -> Publication:
    """Sign the next record and give it to all homes, ``origin`` first.

    Args:
        key: the agent.
        origin: one of its homes; its first one, where it has no record yet.
        state: knows the newest record, and keeps the new one.
        change: of the handles.
        accepted: who is at ``origin`` from now on, as the agent's user says: it takes the place of
            the home that the record names there, and is pinned once the record is noted.

    Raises:
        AgentError: ``origin`` cannot be reached, is another relay than before (``wrong_relay``),
            is no home of this agent (``not_admitted``), or does not take the record; ``migrating``:
            another one is signed already, since the agent changes relays.
    """
    state.migration.ensure_record_unlocked()
    here = await home_at(origin, state, accepted)
    for _ in range(TRIES):
        record = await _next(key, origin, here, state, change, is_accepted=accepted is not None)
        state.keep_record(record.jws.compact)
        await state.flush_record()
        if accepted is not None:
            await state.accept(here.url, accepted)
        newer = await put(origin, record)
        missed: list[tuple[str, str]] = []
        if newer is None:
            newer = await _put_elsewhere(record, here, missed)
        if newer is None:
            return Publication(record, tuple(missed))
        state.keep_record(newer.jws.compact)
    raise typed(ErrorCode.STALE_RECORD, "another program of this agent keeps publishing newer ones")


async def home_at(origin: Origin, state: AgentState, accepted: Did | None = None) -> Home:
    """Who is there, as it signs itself.

    Raises:
        AgentError: unreachable; ``wrong_relay``: another relay than is pinned, or was accepted.
    """
    info = await RelayApi(origin).info()
    url = info.description.url
    if url != str(origin):
        raise typed(ErrorCode.WRONG_RELAY, f"{origin} is {info.did}, which calls itself {url}")
    if (accepted or state.relay_at(url)) not in {None, info.did}:
        raise state.wrong_relay(url, info.did, accepted)
    return Home(info.did, url)


async def _next(
    key: SigningKey,
    origin: Origin,
    here: Home,
    state: AgentState,
    change: Change,
    *,
    is_accepted: bool,
) -> EndpointRecord:
    found = await resolve_at(origin, key.did, is_own=True)
    if found.state == "unreadable":
        detail = f"{origin} cannot say which record it holds"
        raise typed(ErrorCode.STORAGE_UNAVAILABLE, detail)
    newest = endpoint_record.parse(state.record) if state.record else None
    if found.record is not None:
        newest = endpoint_record.merge(newest, found.record)
    if newest is None:
        compact = endpoint_record.sign(key, [here], now=clock.now(), handles=change(()))
        return endpoint_record.parse(compact)
    homes = newest.relays if not is_accepted else _with_new_key(newest.relays, here)
    if here.did not in {home.did for home in homes}:
        others = ", ".join(home.url for home in newest.relays) or "none"
        raise typed(ErrorCode.NOT_ADMITTED, f"{origin} is no home of this agent; it has {others}")
    compact = endpoint_record.sign(
        key,
        homes,
        now=clock.now(),
        newest_seq=newest.seq,
        handles=change(newest.handles),
        status=newest.status,
        drain=newest.drain,
        enc=newest.enc,
    )
    return endpoint_record.parse(compact)


def _with_new_key(homes: Sequence[Home], here: Home) -> tuple[Home, ...]:
    """The homes of a record, with ``here`` in the place of every other relay at its address."""
    renamed = [replace(one, did=here.did) if one.url == here.url else one for one in homes]
    # where it is named under both keys, the place of the first is its own
    return tuple({home.did: home for home in reversed(renamed)}.values())[::-1]


async def put(origin: Origin, record: EndpointRecord) -> EndpointRecord | None:
    """Give a relay a record; gives the newer one that it holds instead.

    Raises:
        AgentError: the relay's no, or no answer; ``bad_frame``: it neither takes it nor has one.
    """
    held = await RelayApi(origin).publish(record.did, record.jws.compact)
    if held is None:
        return None
    # not signed by this agent, it must not be kept: the next one would be signed after its words
    newer = verify(held, record.did, is_own=True)
    if newer is None or newer.version <= record.version:
        raise typed(ErrorCode.BAD_FRAME, f"{origin} took no record and has none newer")
    return newer


async def _put_elsewhere(
    record: EndpointRecord, here: Home, missed: list[tuple[str, str]]
) -> EndpointRecord | None:
    """Give the other homes a record; gives a newer one that one of them holds instead.

    Who does not take it goes to ``missed``.
    """
    newer: EndpointRecord | None = None
    for home in record.relays:
        if home.did == here.did:
            continue
        try:
            held = await put(origins.parse(home.url), record)
        except AgentError as exc:
            missed.append((home.url, f"{exc.code}: {exc.detail}"))
            continue
        if held is not None:
            newer = endpoint_record.merge(newer, held)
    return newer
