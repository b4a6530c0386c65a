"""``relay status``: how reliable this agent's inbox is just now, or what became of one envelope.

An answer that is missing is shown as not known, never left out. A login takes the inbox, so the
command leaves an agent that runs on this machine alone unless the user says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from relay import clock
from relay.cli.agent import session
from relay.cli.agent.key import KeyFile
from relay.cli.agent.outcome_text import OUTCOMES
from relay.cli.exit_codes import Exit, exit_of
from relay.cli.output import fail, members_of, say, write, write_json, write_rows
from relay.client import AgentError, SignedEnvelope
from relay.client.directory.resolve import ResolveResult, resolve_at
from relay.client.http.origin import Origin
from relay.client.http.relay_api import ApiSession, RelayApi
from relay.protocol import frames
from relay.protocol.ids import Did
from relay.protocol.relay_info import RelayInfo

DURABILITY: Final = {
    "fsync": "fsync: on disk before a receipt is signed",
    "unverified": "unverified: the operator runs a store whose settings could not be checked",
    "memory": "memory: gone with the relay's process",
}
_UNITS: Final = ((86_400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
MIN_UNITS: Final = 2


@dataclass(slots=True)
class InboxStatus:
    """The status of an agent's inbox; None: not known."""

    did: Did
    origin: Origin
    unanswered: list[SignedEnvelope] = field(default_factory=list)
    untold: int = 0
    moving_to: str | None = None
    listens_here: bool = False
    information: RelayInfo | None = None
    answered_ms: int | None = None
    found: ResolveResult | None = None
    visit: ApiSession | None = None
    failure: AgentError | None = None

    @property
    def welcome(self) -> frames.Welcome | None:
        """The login answer, if there is one and the inbox is here."""
        return self.visit.welcome if self.visit is not None and self.visit.welcome.inbox else None

    @property
    def relay(self) -> Did | None:
        """The DID that the relay has proved."""
        return self.information.did if self.information is not None else None

    @property
    def is_home(self) -> bool | None:
        """True if the record names this relay; None: not known."""
        if self.relay is None or self.found is None or self.found.state == "unreadable":
            return None
        return self.found.record is not None and self.found.record.names(self.relay)


async def show(file: KeyFile, url: str, *, take: bool, as_json: bool) -> Exit:
    """Show the status of the inbox and return the exit code."""
    with session.opened(file, url, look=not take, refuse=False) as opened:
        migration, journal = opened.state.migration.pending, opened.state.journal
        status = InboxStatus(
            opened.key.did,
            opened.agent.origin,
            await opened.unanswered(),
            untold=0 if journal is None else await journal.count_outcomes(),
            moving_to=None if migration is None else migration.parsed_order.target.url,
            listens_here=opened.mine.is_listening(),
        )
        try:
            await _ask(status, opened, may_log_in=take or not status.listens_here)
        except AgentError as exc:
            status.failure = exc
    if as_json:
        write_json(_members(status))
    else:
        write_rows(_rows(status), 12)
    if status.failure is not None:
        fail(status.failure, as_json=as_json)
        return exit_of(status.failure)
    return Exit.OK


async def _ask(status: InboxStatus, opened: session.CommandSession, *, may_log_in: bool) -> None:
    began = clock.monotonic()
    status.information = await RelayApi(status.origin).info()
    status.answered_ms = round((clock.monotonic() - began) * 1000)
    status.found = await resolve_at(status.origin, status.did, is_own=True)
    if may_log_in:
        status.visit = await opened.login()


def _rows(status: InboxStatus) -> Iterator[tuple[str, str]]:
    yield "agent", status.did
    if status.information is None:
        yield "relay", f"{status.origin}: not known"
    else:
        info = status.information.description
        what = f"{info.software} {info.version}, answered in {status.answered_ms} ms"
        yield "relay", f"{status.relay} at {status.origin} ({what})"
        yield "durability", DURABILITY.get(info.durability, info.durability)
    yield "inbox", _inbox(status)
    if status.welcome is not None:
        pending = status.welcome.pending
        yield "turned away", _rejected(pending.refused_count, pending.refused_last_at)
    yield "homes", _homes(status)
    if status.moving_to is not None:
        words = f"a move to {status.moving_to} is under way; relay migrate --to goes on with it"
        yield "moving", words
    yield "unanswered", _unanswered(status.unanswered)
    if status.untold:
        yield "outcomes", f"{status.untold} answered meanwhile; relay send or relay listen says how"


def _inbox(status: InboxStatus) -> str:
    if status.welcome is None:
        if status.visit is not None:
            return "none here: the endpoint record names another home"
        if status.listens_here:
            return "this agent runs on this machine and has it; --take asks, and ends that session"
        return "not known"
    welcome = status.welcome
    pending = welcome.pending
    if pending.count == 0:
        return f"nothing waits; all up to seq {welcome.head} was acked or has ended"
    oldest = f", the oldest for {_ago(pending.oldest_age)}" if pending.oldest_age else ""
    return f"{pending.count} not acked ({pending.bytes} bytes){oldest}"


def _rejected(count: int, last_at: int | None) -> str:
    if count == 0 or last_at is None:
        return "none"
    last = _ago(max(0, int(clock.now()) - last_at))
    return f"{count} for want of room, the last one {last} ago"


def _homes(status: InboxStatus) -> str:
    found = status.found
    if found is None or found.state == "unreadable":
        return "not known"
    if found.record is None:
        return "no endpoint record: relay listen, or relay inbox, publishes one"
    names = ", ".join(home.url for home in found.record.relays)
    stale = "; the record is stale: relay listen renews it" if found.stale else ""
    missing = "" if status.is_home else "; this relay is none of them"
    return f"{names}{missing}{stale}"


def _unanswered(left: list[SignedEnvelope]) -> str:
    if not left:
        return "none"
    ids = ", ".join(item.id for item in left[:3])
    more = ", …" if left[3:] else ""
    return f"{len(left)}, submitted by the next relay send or relay listen: {ids}{more}"


def _ago(seconds: int) -> str:
    """Return a time span in its largest fitting unit."""
    for size, unit in _UNITS:
        if seconds >= MIN_UNITS * size:
            return f"{seconds // size} {unit}"
    return "a moment"


def _members(status: InboxStatus) -> dict[str, Any]:
    info, found, welcome = status.information, status.found, status.welcome
    record = found.record if found is not None else None
    return {
        "did": status.did,
        "url": str(status.origin),
        "relay": status.relay,
        "version": info.description.version if info else None,
        "answered_ms": status.answered_ms,
        "durability": info.description.durability if info else None,
        "listens_here": status.listens_here,
        "inbox": _inbox_members(welcome) if welcome is not None else None,
        "record": found.state if found else None,
        "stale": found.stale if found else None,
        "is_home": status.is_home,
        "homes": [members_of(home, "did url") for home in record.relays] if record else [],
        "moving_to": status.moving_to,
        "unanswered": [members_of(item, "id eid to expires_at") for item in status.unanswered],
        "outcomes": status.untold,
    }


def _inbox_members(welcome: frames.Welcome) -> dict[str, Any]:
    pending = welcome.pending
    return {
        **members_of(welcome, "epoch cursor head"),
        "pending": pending.count,
        "pending_bytes": pending.bytes,
        "oldest_age": pending.oldest_age,
        "turned_away": pending.refused_count,
        "turned_away_last_at": pending.refused_last_at,
    }


async def trace(
    file: KeyFile, url: str, to: str, message_id: str, *, take: bool, as_json: bool
) -> Exit:
    """Show the state of one envelope that this agent sent, and return the exit code."""
    with session.opened(file, url, look=not take) as opened:
        left = await opened.unanswered()
        to = await opened.agent.handles.resolve_recipient(to)
        visit = await opened.agent.login_at_holder(opened.key, to, message_id)
        found = await visit.status(to, message_id)
    is_queued = any((item.id, item.to) == (message_id, to) for item in left)
    code, words = OUTCOMES[found]
    if as_json:
        write_json({"to": to, "id": message_id, "state": found, "unanswered": is_queued})
        return code
    write(found)
    say(words)
    if is_queued:
        say("It lies in the outbox: the next relay send or relay listen submits it again.")
    return code
