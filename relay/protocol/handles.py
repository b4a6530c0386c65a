"""Handles: names for people that lead to a DID (PROTOCOL.md §7.5).

::

    name@relay.example   WebFinger at the relay: a link of rel "self" whose href is the DID
    agent.example        TXT of _agent.agent.example: "did=<did>", and the DID as text at
                         https://agent.example/.well-known/agent-did

Found, absent and unreadable are three answers. A handle has one spelling. What a
source says is judged here, alike for the relay and for the agent that checks it; who asks the
source is elsewhere. A handle is only a claim until the record of its DID lists it, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import quote

from relay.protocol import hosts
from relay.protocol import jws as jose
from relay.protocol.did import parse_did
from relay.protocol.ids import Did
from relay.protocol.jws import UnsupportedTypeError

MAX_HANDLE_CHARS: Final = 320
SELF: Final = "self"
JRD: Final = "application/jrd+json"
WEBFINGER: Final = "/.well-known/webfinger"
WELL_KNOWN: Final = "/.well-known/agent-did"
TEXT_PREFIX: Final = "_agent."
MAX_LINKS: Final = 64
RESERVED: Final = frozenset({
    "abuse", "admin", "administrator", "hostmaster", "noc", "operator", "postmaster", "relay",
    "root", "security", "support", "webmaster",
})  # fmt: skip
"""Names that people take for the operator's (RFC 2142): nobody gets them by asking."""

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_TEXT: Final = "did="
_OK: Final = 200
_NOTHING: Final = frozenset({404, 410})

LookupState = Literal["found", "absent", "unreadable"]


@dataclass(frozen=True, slots=True)
class Handle:
    """A handle in its one spelling; made by :func:`parse`.

    Args:
        name: before the ``@``; None: a hostname of somebody's own.
        host: a DNS name or an address.
        port: where not the usual one; then DNS is not asked.
    """

    name: str | None
    host: str
    port: int | None = None

    def __str__(self) -> str:
        return self.authority if self.name is None else f"{self.name}@{self.authority}"

    @property
    def authority(self) -> str:
        """``host[:port]``."""
        host = hosts.bracketed(self.host)
        return host if self.port is None else f"{host}:{self.port}"

    @property
    def path(self) -> str:
        """The path to ask for over HTTP, at :attr:`authority`."""
        if self.name is None:
            return WELL_KNOWN
        return f"{WEBFINGER}?resource={quote(f'acct:{self}', safe='')}&rel={SELF}"

    @property
    def text_name(self) -> str | None:
        """The name whose TXT records are asked for, where DNS has a say."""
        has_none = self.name is not None or self.port is not None
        if has_none or hosts.literal(self.host) or hosts.is_loopback(self.host):
            return None
        return f"{TEXT_PREFIX}{self.host}"


@dataclass(frozen=True, slots=True)
class LookupResult:
    """The answer of one source about a handle, or of all of them together.

    Args:
        state: one of three answers.
        did: with ``found``.
        why: one sentence for a person, with the other two.
    """

    state: LookupState
    did: Did | None = None
    why: str = ""


def parse(text: str) -> Handle:
    """Read a handle; upper case is taken for lower case.

    Raises:
        ValueError: not ``name@host[:port]``, nor a hostname with a dot (or of this machine).
    """
    if len(text) > MAX_HANDLE_CHARS or not text.isascii():
        raise ValueError("a handle is at most 320 ASCII characters")
    name, at, authority = text.lower().rpartition("@")
    if at and _NAME.fullmatch(name) is None:
        raise ValueError("a name is at most 64 letters, digits, dots, hyphens and underscores")
    found = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]+))?", authority)
    if found is None:
        raise ValueError("not name@host[:port]")
    host = hosts.normal(found[1].strip("[]"))
    port = hosts.port(found[2]) if found[2] is not None else None
    if not at and "." not in host and not hosts.is_loopback(host):
        raise ValueError("a hostname has a dot")
    return Handle(name if at else None, host, port)


def is_listed(handle: Handle, listed: Iterable[str]) -> bool:
    """Return True if a record's handles list this one: the way back from the DID."""
    return any(_parsed(text) == handle for text in listed)


def _parsed(text: str) -> Handle | None:
    try:
        return parse(text)
    except ValueError:
        return None


# ---------------------------------------------------------------- answers of sources


def read_webfinger(status: int, body: bytes) -> LookupResult:
    """Read an answer of WebFinger (RFC 7033): every ``self`` link that is a DID."""
    if status != _OK:
        return _without("WebFinger", status)
    try:
        links = jose.Members(jose.loads(body)).optional_array("links", limit=MAX_LINKS)
        return _one({link for link in map(_self_link, links) if link}, "WebFinger")
    except ValueError as exc:
        return LookupResult("unreadable", why=f"WebFinger: {exc}")


def _self_link(link: object) -> str | None:
    members = jose.Members(link)
    if members.optional_text("rel", limit=1_024) != SELF:
        return None
    href = members.optional_text("href", limit=4_096)
    return href if href and href.startswith("did:") else None


def read_well_known(status: int, body: bytes) -> LookupResult:
    """Read ``/.well-known/agent-did``: one DID, white space around it."""
    if status != _OK:
        return _without("agent-did", status)
    return _one({body.decode("utf-8", errors="replace").strip()}, "agent-did")


def read_txt(texts: Sequence[str]) -> LookupResult:
    """Read TXT records: those that begin with ``did=``."""
    dids = {text.removeprefix(_TEXT).strip() for text in texts if text.startswith(_TEXT)}
    return _one(dids, "TXT")


def _without(source: str, status: int) -> LookupResult:
    if status in _NOTHING:
        return LookupResult("absent", why=f"{source}: there is none")
    return LookupResult("unreadable", why=f"{source}: answered HTTP {status}")


def _one(dids: set[str], source: str) -> LookupResult:
    if not dids:
        return LookupResult("absent", why=f"{source}: names no DID")
    if len(dids) > 1:
        return LookupResult("unreadable", why=f"{source}: names several DIDs")
    [did] = dids
    try:
        return LookupResult("found", parse_did(did).did)
    except (UnsupportedTypeError, ValueError) as exc:
        return LookupResult("unreadable", why=f"{source}: {exc}")


def combine(results: Sequence[LookupResult]) -> LookupResult:
    """Combine the answers of all sources: those that answer must agree.

    One that cannot be read does not outvote one that answers, but where none says a DID, it may
    be the one that knows: then the handle is unreadable, never absent.
    """
    dids = {one.did for one in results if one.did is not None}
    why = "; ".join(one.why for one in results if one.why)
    if len(dids) > 1:
        return LookupResult("unreadable", why="its sources name different DIDs")
    if dids:
        return LookupResult("found", dids.pop())
    if any(one.state == "unreadable" for one in results):
        return LookupResult("unreadable", why=why)
    return LookupResult("absent", why=why)
