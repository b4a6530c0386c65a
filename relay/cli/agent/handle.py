"""``relay publish``, ``relay resolve`` and ``relay handle``: homes of agents, and their names.

The command resolves a handle itself and trusts no relay for it. A handle is verified only if it
resolves to a DID whose record lists it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from relay.cli.agent.key import KeyFile
from relay.cli.exit_codes import Exit
from relay.cli.output import clock_time, members_of, say, write_json, write_rows
from relay.client import ResolveResult, SigningKey
from relay.client.directory.own_record import Change, OwnRecord, Publication
from relay.client.directory.resolve import resolve_at
from relay.client.errors import make_error
from relay.client.http import origin as origins
from relay.client.identity import handles as names
from relay.client.state import agent_state as states
from relay.protocol import handles
from relay.protocol.endpoint_record import MAX_HANDLES, EndpointRecord
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import Did

_EXIT: Final = {"found": Exit.OK, "absent": Exit.REFUSED, "unreadable": Exit.UNAVAILABLE}

Action = Literal["set", "remove"]


@dataclass(frozen=True, slots=True)
class HandleLookup:
    """An agent, looked up.

    Args:
        asked: a handle or a DID, as given.
        lookup: the result of resolving the handle.
        found: the record of that DID; None if the handle does not resolve.
        verified: the record lists the handle; None if the caller passed a DID.
    """

    asked: str
    lookup: handles.LookupResult
    found: ResolveResult | None = None
    verified: bool | None = None

    @property
    def state(self) -> str:
        """Found, absent or unreadable: of the whole lookup."""
        return self.found.state if self.found is not None else self.lookup.state

    @property
    def record(self) -> EndpointRecord | None:
        """The record, if it was found."""
        return self.found.record if self.found is not None else None


async def resolve(asked: str, url: str, *, as_json: bool) -> Exit:
    """Show the homes of an agent and return the exit code."""
    done = await _resolve(asked, origins.parse(url))
    _tell(done, as_json=as_json)
    return _EXIT[done.state]


async def check(asked: str, url: str, *, as_json: bool) -> Exit:
    """Verify a handle both ways and return the exit code."""
    done = await _resolve(str(names.parse(asked)), origins.parse(url))
    _tell(done, as_json=as_json)
    return _EXIT[done.state] if done.state != "found" or done.verified else Exit.REFUSED


async def _resolve(asked: str, origin: origins.Origin) -> HandleLookup:
    if asked.startswith("did:"):
        lookup = handles.LookupResult("found", Did(asked))
        return HandleLookup(asked, lookup, await resolve_at(origin, asked))
    handle = names.parse(asked)
    lookup = await names.lookup(handle, is_local=origin.is_loopback)
    if lookup.did is None:
        return HandleLookup(str(handle), lookup)
    resolver = names.HandleResolver(
        partial(resolve_at, origin), _no_matter, is_local=origin.is_loopback
    )
    found = await resolver.record_of(str(handle), lookup.did)
    listed = found.record.handles if found.record is not None else ()
    return HandleLookup(str(handle), lookup, found, handles.is_listed(handle, listed))


def _no_matter(_: Did, __: str | None) -> None:
    """Store nothing: this lookup is read-only."""


def _tell(done: HandleLookup, *, as_json: bool) -> None:
    if as_json:
        write_json(_members(done))
        return
    write_rows(_rows(done), 8)
    if done.lookup.did is None:
        say(f"{done.asked} is {done.state}: {done.lookup.why or 'nothing more is known'}.")
    elif done.record is None:
        say(f"{done.lookup.did} is {done.state}: no endpoint record of it was found.")
    elif done.verified is False:
        say(f"Not verified: the record of that agent does not list {done.asked}.")


def _rows(done: HandleLookup) -> Iterator[tuple[str, str]]:
    if done.lookup.did is None:
        return
    if done.verified is not None:
        sure = "verified, both ways" if done.verified else "NOT verified"
        yield "handle", f"{done.asked}: {sure}"
    yield "agent", str(done.lookup.did)
    if done.found is None or done.found.record is None:
        return
    for home in done.found.record.relays:
        yield "home", f"{home.url} ({home.did})"
    for text in done.found.record.handles:
        yield "lists", text
    stale = " (stale)" if done.found.stale else ""
    yield "until", f"{clock_time(done.found.record.expires_at)}{stale}"


def _members(done: HandleLookup) -> dict[str, Any]:
    record = done.record
    homes = record.relays if record else ()
    return {
        **members_of(done, "asked state"),
        "did": done.lookup.did,
        "verified": done.verified,
        "homes": [members_of(home, "did url prio") for home in homes],
        "handles": list(record.handles) if record else [],
        "status": record.status if record else None,
        "seq": record.seq if record else None,
        "expires_at": record.expires_at if record else None,
        "stale": done.found.stale if done.found else False,
        "detail": done.lookup.why,
    }


async def publish(file: KeyFile, url: str, *, as_json: bool) -> Exit:
    """Sign and publish this agent's next record, and show it."""
    done = await _publish(file.load(), file, origins.parse(url), tuple)
    _tell_published(done, as_json=as_json)
    return Exit.OK


async def change(file: KeyFile, url: str, action: Action, text: str, *, as_json: bool) -> Exit:
    """Add a handle to this agent's record or remove it, and return the exit code."""
    origin = origins.parse(url)
    handle = _wanted(text, origin)
    key = file.load()
    if action == "remove":
        done = await _publish(key, file, origin, lambda old: _without(old, handle))
        _tell_published(done, as_json=as_json)
        return Exit.OK
    if handle.name in handles.RESERVED:
        detail = f"{handle} is the operator's: a relay gives that name to nobody who asks"
        raise make_error(ErrorCode.NOT_ADMITTED, detail)
    lookup = await names.lookup(handle, is_local=origin.is_loopback)
    if lookup.did not in {None, key.did}:
        raise make_error(ErrorCode.NOT_ADMITTED, f"{handle} belongs to {lookup.did}")
    done = await _publish(key, file, origin, lambda old: _with(old, handle))
    lookup = await names.lookup(handle, is_local=origin.is_loopback)
    _tell_published(done, as_json=as_json, lookup=lookup)
    if lookup.did == key.did:
        return Exit.OK
    if not as_json:
        _advise(handle, key.did, lookup)
    return Exit.REFUSED if lookup.state != "unreadable" else Exit.UNAVAILABLE


def _wanted(text: str, origin: origins.Origin) -> handles.Handle:
    """Return the handle that a person means: ``name`` alone is one under their relay."""
    if "@" not in text and "." not in text and ":" not in text:
        text = f"{text}@{str(origin).partition('://')[2]}"
    return names.parse(text)


def _with(old: tuple[str, ...], handle: handles.Handle) -> tuple[str, ...]:
    listed = (str(handle), *_without(old, handle))
    if len(listed) > MAX_HANDLES:
        detail = f"a record lists at most {MAX_HANDLES} handles; take one out with handle remove"
        raise make_error(ErrorCode.TOO_LARGE, detail)
    return listed


def _without(old: tuple[str, ...], handle: handles.Handle) -> tuple[str, ...]:
    return tuple(text for text in old if not handles.is_listed(handle, [text]))


async def _publish(
    key: SigningKey, file: KeyFile, origin: origins.Origin, new: Change
) -> Publication:
    with states.opened(file.state, key.did) as state:
        return await OwnRecord(key, state).publish_at(origin, change=new)


def _tell_published(
    done: Publication, *, as_json: bool, lookup: handles.LookupResult | None = None
) -> None:
    record = done.record
    # the record that this command has just signed is found by definition
    shown = HandleLookup(
        record.did, handles.LookupResult("found", record.did), ResolveResult("found", record)
    )
    if as_json:
        missed = [{"url": url, "detail": why} for url, why in done.missed]
        leads_to = {} if lookup is None else {"leads": lookup.state, "leads_to": lookup.did}
        write_json({**_members(shown), **leads_to, "missed": missed})
        return
    _tell(shown, as_json=False)
    for url, why in done.missed:
        say(f"{url} did not take the record: {why}. It is published again by relay listen.")


def _advise(handle: handles.Handle, did: Did, lookup: handles.LookupResult) -> None:
    if handle.name is not None:
        say(f"Your record lists {handle}, but it does not lead to you: {lookup.why}.")
        say("Only the relay behind the @ gives the name, to agents whose home it is.")
        return
    say(f"Your record lists {handle}, but it does not lead to you yet: {lookup.why}.")
    if handle.text_name is not None:
        say(f'Publish the DNS record   {handle.text_name}. TXT "did={did}"')
    say(f"or serve the DID as text at   https://{handle.authority}{handles.WELL_KNOWN}")
