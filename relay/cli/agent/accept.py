"""``relay accept``: the user confirms a relay's new key, or a handle's new DID.

The command accepts only the named DID. It keeps all of the agent's state.
"""

from __future__ import annotations

from relay.cli.agent.key import KeyFile
from relay.cli.exit_codes import Exit
from relay.cli.output import members_of, say, show
from relay.client import SigningKey
from relay.client.accept import accept
from relay.client.errors import make_error
from relay.client.http import origin as origins
from relay.client.identity import handles as names
from relay.client.sessionless import SessionlessAgent
from relay.client.state import agent_state as states
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import Did


async def relay(file: KeyFile, url: str, did: str, *, as_json: bool) -> Exit:
    """Accept a relay's new key and return the exit code."""
    key, origin = file.load(), origins.parse(url)
    with states.opened(file.state, key.did) as state:
        await accept_and_tell(key, origin, Did(did), state, as_json=as_json)
    return Exit.OK


async def accept_and_tell(
    key: SigningKey, origin: origins.Origin, did: Did, state: states.AgentState, *, as_json: bool
) -> bool:
    """Accept a relay, report it, and return True if it is a home of this agent."""
    done = await accept(key, origin, did, state)
    unanswered = [] if state.journal is None else await state.journal.outgoing()
    members = {
        "url": str(origin),
        "accepted": did,
        "home": done is not None,
        "seq": done.record.seq if done is not None else None,
        "unanswered": [members_of(one, "id eid to") for one in unanswered],
    }
    show(members, f"{did}  is accepted at {origin}", as_json=as_json)
    if as_json:
        return done is not None
    if done is not None:
        say("Your endpoint record names it. What waited for you at the relay before, and what it")
        say("had not passed on, is lost with its store. What you were shown is not shown again.")
    if unanswered:
        say(f"{len(unanswered)} not answered: relay send or relay listen submits the same bytes.")
    for url, why in done.missed if done is not None else ():
        say(f"relay: {url} has not taken the record: {why}")
    return done is not None


async def handle(file: KeyFile, url: str, text: str, did: str, *, as_json: bool) -> Exit:
    """Accept the DID that a handle resolves to now, and return the exit code."""
    try:
        name = str(names.parse(text))
    except ValueError as exc:
        detail = f"{text!r} is neither an address nor a handle"
        raise make_error(ErrorCode.BAD_FRAME, detail) from exc
    key = file.load()
    with states.opened(file.state, key.did) as state:
        await SessionlessAgent(origins.parse(url), state).handles.accept(name, Did(did))
    line = f"{did}  is written to as {name} from now on"
    show({"handle": name, "accepted": did}, line, as_json=as_json)
    return Exit.OK
