"""The part of a node that the WebSocket edge needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from relay.directory.gossip import RecordGossip
from relay.inbox.dispatch import Dispatcher
from relay.inbox.group_commit import GroupCommit
from relay.inbox.login import LoginService
from relay.inbox.model.effects import QuestionFrame
from relay.inbox.model.permissions import Identity
from relay.inbox.model.types import AckRequest, AckResult
from relay.inbox.ports import InboxStore, Router
from relay.inbox.submit import Intake
from relay.peering.exchange import PeerExchange
from relay.peering.peers import Peers
from relay.protocol import frames
from relay.protocol.dial_allowlist import Networks
from relay.settings import Settings


@dataclass(frozen=True, slots=True)
class WsServices:
    """The use cases of connections, and the bounds of their number.

    Args:
        settings: bounds of connections.
        trusted_proxies: networks whose forwarding headers count.
        hello: makes the first frame of a conversation.
        login: checks logins and opens inboxes.
        intake: accepts envelopes.
        acks: the group commit of acks.
        store: inboxes.
        dispatcher: the sessions of this node.
        router: finds where envelopes may wait.
        peers: the relays that may log in.
        exchange: tracks the links of peers.
        gossip: takes in records.
        answer: answers a question.
    """

    settings: Settings
    trusted_proxies: Networks
    hello: Callable[[], frames.Hello]
    login: LoginService
    intake: Intake
    acks: GroupCommit[AckRequest, AckResult]
    store: InboxStore
    dispatcher: Dispatcher
    router: Router
    peers: Peers
    exchange: PeerExchange
    gossip: RecordGossip
    answer: Callable[[Identity, QuestionFrame], Awaitable[frames.Frame]]
