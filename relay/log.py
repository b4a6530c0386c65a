"""Structured logs: JSON lines on stderr, one helper per event; never a body, never a key.

Rules of the file: an event has a fixed name and small fields: ids, codes, counts, seconds. What an
event may carry is decided here, so that a secret cannot slip in from a call site.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Final, TextIO

import structlog

from relay.protocol.errors import ErrorCode


class _Lines:
    """Writes lines to a stream that may be gone or full: a lost line ends nothing."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        if self._stream is None:  # started with a closed stderr
            return
        # ValueError: it was closed since
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()

    debug = info = warning = error = critical = exception = msg


_log: Final = structlog.get_logger()
_OF_THE_STORE: Final = frozenset({ErrorCode.STORAGE_UNAVAILABLE, ErrorCode.STORAGE_FULL})
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure(level: str) -> None:
    """Write JSON lines of at least ``level`` to stderr; the libraries' own warnings too."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: _Lines(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(
        level=logging.WARNING,
        stream=sys.stderr,
        force=True,
        format='{"library":"%(name)s","event":"%(message)s"}',
    )


def unknown_variable(name: str) -> None:
    """A RELAY_ variable that is no setting, and not nearly one."""
    _log.warning("unknown_variable", name=name)


def node_started(did: str, url: str, durability: str) -> None:
    """The node listens."""
    _log.info("node_started", did=did, url=url, durability=durability)


def node_stopped(reason: str) -> None:
    """The node drained and is about to exit."""
    _log.info("node_stopped", reason=reason)


def returning(inboxes: int, peers: int) -> None:
    """A node asks other relays where the agents of these inboxes live now; they wait."""
    _log.info("returning", inboxes=inboxes, peers=peers)


def returned(peers: int, news: int, seconds: float) -> None:
    """So many relays have told, so many records were news, and agents are let in."""
    _log.info("returned", peers=peers, news=news, seconds=round(seconds, 2))


def let_in_unasked(seconds: float) -> None:
    """No relay has told where the agents live, and they are let in all the same."""
    _log.warning("let_in_unasked", seconds=round(seconds, 1))


def draining(connections: int) -> None:
    """A shutdown began."""
    _log.info("draining", connections=connections)


def session_opened(did: str, fence: int | None, role: str) -> None:
    """An agent or a peer logged in; no fence for a peer or a send-only session."""
    _log.info("session_opened", did=did, fence=fence, role=role)


def session_ended(did: str | None, code: str | None) -> None:
    """A conversation is over."""
    _log.info("session_ended", did=did, code=code)


def login_refused(
    *, code: str, detail: str, did: str | None, proven: bool, address: str, unsaid: int
) -> None:
    """A login did not hold; ``unsaid`` were refused since the last such line, and not logged.

    Whoever did not prove the DID only claims it: anybody can claim any.
    """
    fields = {"code": code, "detail": detail, "did": did, "proven": proven}
    _log.info("login_refused", **fields, address=address, unsaid=unsaid)


def handoff(step: str, did: str, handoff_id: str, peer: str) -> None:
    """An inbox that changes relays has taken a step here."""
    _log.info("handoff", step=step, did=did, handoff=handoff_id, peer=peer)


def page_signed(did: str, handoff_id: str, count: int, digest: str) -> None:
    """This relay signed for envelopes of a hand-off: the other relay logs the same of its side."""
    _log.info("page_signed", did=did, handoff=handoff_id, count=count, digest=digest)


def page_handed_over(did: str, handoff_id: str, count: int, digest: str) -> None:
    """The target of a hand-off has signed for envelopes."""
    _log.info("page_handed_over", did=did, handoff=handoff_id, count=count, digest=digest)


def digest_failed(did: str, code: str, detail: str) -> None:
    """The target of a hand-off did not take what the agent has seen; it is said again."""
    _log.warning("digest_failed", did=did, code=code, detail=detail)


def peer_added(peer: str, url: str) -> None:
    """The operator added a relay."""
    _log.info("peer_added", peer=peer, url=url)


def peer_removed(peer: str) -> None:
    """The operator removed a relay."""
    _log.info("peer_removed", peer=peer)


def peer_blocked(peer: str) -> None:
    """The operator wants nothing to do with a relay."""
    _log.info("peer_blocked", peer=peer)


def peer_unblocked(peer: str) -> None:
    """The operator has taken that back."""
    _log.info("peer_unblocked", peer=peer)


def peer_learned(peer: str, url: str) -> None:
    """Another relay told of one."""
    _log.info("peer_learned", peer=peer, url=url)


def peer_struck(peer: str, strikes: int, wait_s: int | None) -> None:
    """A peer passed on records that plainly nobody signed."""
    _log.warning("peer_struck", peer=peer, strikes=strikes, wait_s=wait_s)


def pulled(peer: str, records: int, kept: int, seconds: float) -> None:
    """The directory was compared with a peer's, and some of it was fetched."""
    _log.info("pulled", peer=peer, records=records, kept=kept, seconds=round(seconds, 2))


def pull_failed(peer: str, code: str, detail: str) -> None:
    """A pull ended early; another one makes up for it."""
    _log.info("pull_failed", peer=peer, code=code, detail=detail)


def link_up(peer: str) -> None:
    """A peer was dialled and has proved who it is."""
    _log.info("link_up", peer=peer)


def link_down(peer: str, code: str, detail: str) -> None:
    """A link has ended."""
    _log.info("link_down", peer=peer, code=code, detail=detail)


def dial_failed(peer: str, code: str, detail: str, wait_s: float) -> None:
    """A peer could not be reached, or refused this relay."""
    _log.info("dial_failed", peer=peer, code=code, detail=detail, wait_s=round(wait_s, 1))


def store_event(name: str, fields: dict[str, object]) -> None:
    """Something happened to the store: it died, came back, was rolled back, filled up."""
    _log.warning("store", what=name, **fields)


def problem_appeared(reason: str, detail: str) -> None:
    """Something around the node is wrong from now on (relay/health.py)."""
    _log.warning("problem_appeared", reason=reason, detail=detail)


def problem_gone(reason: str, seconds: float) -> None:
    """That is over; so long it lasted."""
    _log.warning("problem_gone", reason=reason, seconds=round(seconds, 1))


def clock_confirmed() -> None:
    """An operator confirmed the clock."""
    _log.warning("clock_confirmed")


def equivocation(owner: str) -> None:
    """An agent has signed two records with one seq: two programs have its key, or a backup."""
    _log.warning("equivocation", owner=owner)


def swept(ended: int) -> None:
    """Expired envelopes were ended."""
    _log.info("swept", ended=ended)


def bounce_undeliverable(code: str, count: int) -> None:
    """Bounces whose sender has no inbox here."""
    _log.warning("bounce_undeliverable", code=code, count=count)


def loop_failed(name: str, code: str) -> None:
    """A background loop could not do its turn; it goes on.

    An outage of the store is told once, as a problem that appears and goes (relay/health.py): the
    many loops that it stops say so at level ``debug`` only.
    """
    level = logging.DEBUG if code in _OF_THE_STORE else logging.WARNING
    _log.log(level, "loop_failed", loop=name, code=code)


def internal_error(where: str) -> None:
    """A bug: the traceback is here and nowhere else."""
    _log.exception("internal", where=where)


def dead_letter(code: str) -> None:
    """Another relay will never take an envelope that waited for it; its sender is told."""
    _log.warning("dead_letter", code=code)
