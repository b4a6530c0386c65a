"""Structured logs: JSON lines on stderr.

:func:`event` writes every event but the three that have a function of their own. :data:`EVENTS`
decides the level of an event and which fields it may carry: ids, codes, counts, seconds. Thus no
call site can let a secret slip in; no event carries a body or a key. docs/OPERATIONS.md lists the
events, and tests/unit/test_log.py compares the table with its callers.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from logging import INFO, WARNING
from typing import Final, TextIO

import structlog

from relay.protocol.errors import ErrorCode


class _Lines:
    """A stream for lines that may be closed or full: losing a line does no harm."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        if self._stream is None:  # the process started with a closed stderr
            return
        # ValueError: closed meanwhile
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()

    debug = info = warning = error = critical = exception = msg


_log: Final = structlog.get_logger()
_OF_THE_STORE: Final = frozenset({ErrorCode.STORAGE_UNAVAILABLE, ErrorCode.STORAGE_FULL})
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure(level: str) -> None:
    """Write JSON lines of at least ``level`` to stderr; also the warnings of libraries."""
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


EVENTS: Final[dict[str, tuple[int, str]]] = {
    # a variable RELAY_... that is not a setting and not similar to one
    "unknown_variable": (WARNING, "name"),
    "node_started": (INFO, "did url durability"),
    "node_stopped": (INFO, "reason"),
    "draining": (INFO, "connections"),
    # the node asks other relays where the agents of its inboxes live now; logins wait
    "returning": (INFO, "inboxes peers"),
    "returned": (INFO, "peers news seconds"),
    # no relay has answered that, and agents may log in nevertheless
    "let_in_unasked": (WARNING, "seconds"),
    # an agent or a peer logged in; a peer and a send-only session have no fence
    "session_opened": (INFO, "did fence role"),
    "session_ended": (INFO, "did code"),
    # `did` is only claimed unless `proven`; `unsaid` refusals since the last line were not logged
    "login_refused": (INFO, "code detail did proven address unsaid"),
    # a hand-off has taken a step at this relay
    "handoff": (INFO, "step did handoff peer"),
    # both relays of a hand-off log the same digest for a page: the target when it signs the
    # receipt, the source when it has it
    "page_signed": (INFO, "did handoff count digest"),
    "page_handed_over": (INFO, "did handoff count digest"),
    # the target did not accept a digest; the source sends it again
    "digest_failed": (WARNING, "did code detail"),
    "peer_added": (INFO, "peer url"),
    "peer_removed": (INFO, "peer"),
    "peer_blocked": (INFO, "peer"),
    "peer_unblocked": (INFO, "peer"),
    # another relay named this one
    "peer_learned": (INFO, "peer url"),
    # a peer passed on records with a wrong signature or form
    "peer_struck": (WARNING, "peer strikes wait_s"),
    # the directory was compared with that of a peer
    "pulled": (INFO, "peer records kept seconds"),
    "pull_failed": (INFO, "peer code detail"),
    "link_up": (INFO, "peer"),
    "link_down": (INFO, "peer code detail"),
    "dial_failed": (INFO, "peer code detail wait_s"),
    "problem_appeared": (WARNING, "reason detail"),
    "problem_gone": (WARNING, "reason seconds"),
    # the operator confirmed the store's clock
    "clock_confirmed": (WARNING, ""),
    # an agent signed two records with one seq: two programs have its key, or a backup came back
    "equivocation": (WARNING, "owner"),
    # expired envelopes ended
    "swept": (INFO, "ended"),
    # the sender of these bounces has no inbox here
    "bounce_undeliverable": (WARNING, "code count"),
    # another relay refused an envelope for good; its sender gets a bounce
    "dead_letter": (WARNING, "code"),
}
"""Level and fields of each event."""


def event(name: str, /, **fields: object) -> None:
    """Write one event with the fields that :data:`EVENTS` names; seconds are rounded."""
    level, names = EVENTS[name]
    _log.log(level, name, **{field: _short(fields[field]) for field in names.split()})


def store_event(name: str, fields: dict[str, object]) -> None:
    """Write that the store ended, restarted, was rolled back or is full."""
    _log.warning("store", what=name, **fields)


def loop_failed(name: str, code: str) -> None:
    """Write that a background loop failed; it goes on.

    An outage of the store is logged once, as a problem (:mod:`relay.health`): the many loops that
    it stops are logged at level ``debug`` only.
    """
    level = logging.DEBUG if code in _OF_THE_STORE else WARNING
    _log.log(level, "loop_failed", loop=name, code=code)


def internal_error(where: str) -> None:
    """Write that this program has a defect, with the traceback of the current exception."""
    _log.exception("internal", where=where)


def _short(value: object) -> object:
    return round(value, 2) if isinstance(value, float) else value
