"""The part of a node that the HTTP edge needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from relay.directory.local_handles import LocalHandles
from relay.directory.publish import Directory
from relay.directory.remote_handles import RemoteHandles
from relay.inbox.http_sessions import HttpSessions
from relay.inbox.status import StatusQueries
from relay.inbox.submit import Intake
from relay.migration.requests import MigrationRequests
from relay.protocol.dial_allowlist import Networks


@dataclass(frozen=True, slots=True)
class HttpServices:
    """The use cases of the public routes.

    Args:
        trusted_proxies: networks whose forwarding headers count.
        limits: ``hello.limits``.
        describe: returns the signed description of this relay.
        sessions: logins, inboxes, acks and rules without a connection.
        intake: accepts envelopes.
        directory: publishes and resolves records.
        status: answers status queries.
        migrations: steps of agents that move.
        local_handles: names under this relay.
        remote_handles: names of other relays.
    """

    trusted_proxies: Networks
    limits: dict[str, int]
    describe: Callable[[], str]
    sessions: HttpSessions
    intake: Intake
    directory: Directory
    status: StatusQueries
    migrations: MigrationRequests
    local_handles: LocalHandles
    remote_handles: RemoteHandles
