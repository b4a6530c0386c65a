"""Give each edge of a node what it needs of it."""

from __future__ import annotations

from relay import log
from relay.http.services import HttpServices
from relay.inbox.http_sessions import HttpSessions
from relay.node.node import Node
from relay.ws.answers import Answers
from relay.ws.services import WsServices


def ws_services(node: Node) -> WsServices:
    """Return what the WebSocket edge needs."""
    return WsServices(
        settings=node.settings,
        trusted_proxies=node.trusted_proxies,
        hello=node.hello,
        login=node.login,
        intake=node.intake,
        acks=node.acks,
        store=node.store.inboxes,
        dispatcher=node.dispatcher,
        router=node.routing,
        peers=node.peers,
        exchange=node.exchange,
        gossip=node.gossip,
        answer=Answers(
            node.directory,
            node.resolver,
            node.status,
            node.rules,
            node.questions,
            node.handoffs,
        ),
    )


def http_services(node: Node) -> HttpServices:
    """Return what the public routes need."""
    return HttpServices(
        trusted_proxies=node.trusted_proxies,
        limits=node.limits(),
        describe=node.exchange.own_info,
        sessions=HttpSessions(
            node.store.inboxes, node.store.tokens, node.login, node.dispatcher, node.rules
        ),
        intake=node.intake,
        directory=node.directory,
        status=node.status,
        migrations=node.migrations,
        local_handles=node.handles,
        remote_handles=node.remote_handles,
    )


def confirm_clock(node: Node) -> None:
    """Believe the store's clock, as the operator says."""
    guard = node.clock_guard
    guard.confirm()
    node.store.clock.trust(ok=guard.ok)
    guard.tell(node.store.health)
    log.event("clock_confirmed")
