"""Routes of the public bind; each decodes, calls one use case, encodes."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request, Response

from relay.http import bodies
from relay.inbox.client_ip import (
    peer_of,
    strangers_network,
)
from relay.inbox.http_sessions import (
    MAX_WAIT_S,
    Polling,
)
from relay.inbox.model.types import (
    Ack as InboxAck,
)
from relay.inbox.model.types import (
    Page,
)
from relay.inbox.submit import Submissions
from relay.node.node import Node
from relay.protocol import frames
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
)
from relay.protocol.ids import (
    Did,
    Fence,
)

Wait = Annotated[int, Query(ge=0, le=MAX_WAIT_S, description="Seconds to wait for news")]


def router(node: Node) -> APIRouter:
    """All public routes over one node."""
    api = APIRouter()
    polling = Polling(node)
    _session_routes(api, node, polling)
    _inbox_routes(api, polling)
    _rules_routes(api, polling)
    _agent_routes(api, node, polling)
    return api


def _session_routes(api: APIRouter, node: Node, polling: Polling) -> None:

    @api.post("/v1/session/nonce", summary="A single-use nonce for a login")
    async def nonce() -> Response:
        return bodies.answer(
            {
                "relay": node.key.did,
                "url": node.url,
                "nonce": await polling.nonce(),
                "limits": node.limits(),
            }
        )

    @api.post("/v1/session", summary="Log in and open the inbox without a connection")
    async def session(request: Request) -> Response:
        try:
            auth = frames.read(frames.Auth, await bodies.members(request))
        except ValueError as exc:
            raise ProtocolError(ErrorCode.BAD_FRAME, str(exc)) from exc
        token, welcome = await polling.log_in(auth, _peer(node, request))
        return bodies.answer({"token": token, **frames.to_members(welcome)})


def _inbox_routes(api: APIRouter, polling: Polling) -> None:
    @api.get("/v1/inbox", summary="Take what waits; waits for news up to 30 s")
    async def inbox(request: Request, wait: Wait = 0) -> Response:
        session = await polling.session(bodies.bearer(request))
        page = await polling.inbox(session, wait)
        return bodies.answer({"epoch": session.epoch, **_page(page)})

    @api.post("/v1/inbox/ack", summary="Delete what was durably processed")
    async def ack(request: Request) -> Response:
        session = await polling.session(bodies.bearer(request))
        try:
            frame: frames.Ack = frames.read(frames.Ack, await bodies.members(request))
        except ValueError as exc:
            raise ProtocolError(ErrorCode.BAD_FRAME, str(exc)) from exc
        wanted = InboxAck(
            Fence(session.fence or 0), frame.epoch, frame.seqs, frame.upto, frame.refuse
        )
        acked = await polling.ack(session, wanted)
        return bodies.answer(
            {
                "epoch": frame.epoch,
                "upto": acked.cursor,
                "seqs": [seq for seq in frame.seqs if seq > acked.cursor],
                "refused": acked.refused,
            }
        )


def _rules_routes(api: APIRouter, polling: Polling) -> None:
    @api.get("/v1/inbox/rules", summary="Whom this inbox takes envelopes from")
    async def rules(request: Request) -> Response:
        session = await polling.session(bodies.bearer(request))
        return _ruled(await polling.rules(session, frames.Rules("http")))

    @api.patch("/v1/inbox/rules", summary="Change what is named of it")
    async def change(request: Request) -> Response:
        session = await polling.session(bodies.bearer(request))
        try:
            wish = frames.read(frames.Rules, await bodies.members(request), ref="http")
        except ValueError as exc:
            raise ProtocolError(ErrorCode.BAD_FRAME, str(exc)) from exc
        return _ruled(await polling.rules(session, wish))


def _ruled(found: frames.Ruled) -> Response:
    said = frames.to_members(found)
    del said["ref"]
    return bodies.answer(said)


def _agent_routes(api: APIRouter, node: Node, polling: Polling) -> None:
    @api.post("/v1/envelopes", summary="Submit envelopes; each is its own proof")
    async def submit(request: Request) -> Response:
        try:
            items = (await bodies.members(request)).array("envelopes", least=1, most=256)
        except ValueError as exc:
            raise ProtocolError(ErrorCode.BAD_FRAME, str(exc)) from exc
        frame = await submit_once(node, items, strangers_network(_peer(node, request)))
        return bodies.answer(
            {
                "receipt": frame.receipt,
                "rejected": [frames.to_members(item) for item in frame.rejected],
            }
        )

    @api.get("/v1/agents/{did}", summary="Resolve an agent: found, absent or unreadable")
    async def resolve(did: str) -> Response:
        found = await node.directory.resolve(did)
        status = {"found": 200, "absent": 404, "unreadable": 503}[found.state]
        body = {"state": found.state, "record": found.record, "stale": found.stale}
        return bodies.answer(body, status)

    @api.put("/v1/agents/{did}", summary="Publish an agent's endpoint record")
    async def publish(did: str, request: Request) -> Response:
        try:
            record = (await bodies.members(request)).text("record", most=4096)
        except ValueError as exc:
            raise ProtocolError(ErrorCode.BAD_FRAME, str(exc)) from exc
        published = await node.directory.publish(record, only=Did(did))
        return bodies.answer(frames.to_members(published))

    @api.get("/v1/agents/{to}/envelopes/{message_id}", summary="What became of my envelope")
    async def status(to: str, message_id: str, request: Request) -> Response:
        session = await polling.session(bodies.bearer(request))
        [found] = await node.status.follow(session.did, [frames.StatusItem(Did(to), message_id)])
        return bodies.answer(frames.to_members(found))

    @api.get("/.well-known/agent-relay.json", summary="Who this relay is, signed")
    async def information() -> Response:
        return bodies.answer({"jws": node.exchange.own_info()})


def _peer(node: Node, request: Request) -> str:
    return peer_of(request.scope, node.trusted_proxies)


async def submit_once(node: Node, items: list[Any], network: str) -> frames.Submitted:
    """Submit and wait for the one answer."""
    answered: asyncio.Future[frames.Submitted] = asyncio.get_running_loop().create_future()

    def answer(frame: frames.Submitted) -> None:
        if not answered.done():
            answered.set_result(frame)

    await Submissions(node.intake, answer, network).submit("http", items)
    return await answered


def _page(page: Page) -> dict[str, Any]:
    return {
        "items": [
            {
                "seq": item.seq,
                "redelivered": item.redelivered,
                "envelope": orjson.Fragment(item.wire),
            }
            for item in page.items
        ],
        "gaps": [frames.to_members(item) for item in page.gaps],
        "upto": page.upto,
        "head": page.head,
    }
