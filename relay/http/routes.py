"""Routes of the public bind; each decodes, calls one use case, encodes."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request, Response

from relay.http import bodies
from relay.http.services import HttpServices
from relay.inbox.client_ip import client_ip, strangers_network
from relay.inbox.http_sessions import MAX_WAIT_S, HttpSessions
from relay.inbox.model.types import InboxAck, Page
from relay.inbox.submit import Intake, SubmitStream
from relay.protocol import endpoint_record, frames
from relay.protocol.ids import Did, Fence

WaitSeconds = Annotated[int, Query(ge=0, le=MAX_WAIT_S, description="Seconds to wait for news")]


def router(services: HttpServices) -> APIRouter:
    """Return the public routes but those of handles and migrations."""
    api = APIRouter()
    _session_routes(api, services)
    _inbox_routes(api, services.sessions)
    _rules_routes(api, services.sessions)
    _agent_routes(api, services)
    return api


def _session_routes(api: APIRouter, services: HttpServices) -> None:
    login = services.sessions.login

    @api.post("/v1/session/nonce", summary="A single-use nonce for a login")
    async def nonce() -> Response:
        return bodies.answer(
            {
                "relay": login.key.did,
                "url": login.url,
                "nonce": await services.sessions.nonce(),
                "limits": services.limits,
            }
        )

    @api.post("/v1/session", summary="Log in and open the inbox without a connection")
    async def session(request: Request) -> Response:
        with bodies.reading():
            auth = frames.read(frames.Auth, await bodies.members(request))
        token, welcome = await services.sessions.log_in(auth, _client(services, request))
        return bodies.answer({"token": token, **frames.to_members(welcome)})


def _inbox_routes(api: APIRouter, sessions: HttpSessions) -> None:
    @api.get("/v1/inbox", summary="Take what waits; waits for news up to 30 s")
    async def inbox(request: Request, wait: WaitSeconds = 0) -> Response:
        session = await sessions.session(bodies.bearer(request))
        page = await sessions.fetch(session, wait)
        return bodies.answer({"epoch": session.epoch, **_page(page)})

    @api.post("/v1/inbox/ack", summary="Delete what was durably processed")
    async def ack(request: Request) -> Response:
        session = await sessions.session(bodies.bearer(request))
        with bodies.reading():
            frame: frames.Ack = frames.read(frames.Ack, await bodies.members(request))
        wanted = InboxAck(
            Fence(session.fence or 0), frame.epoch, frame.seqs, frame.upto, frame.refuse
        )
        acked = await sessions.ack(session, wanted)
        return bodies.answer(
            {
                "epoch": frame.epoch,
                "upto": acked.cursor,
                "seqs": [seq for seq in frame.seqs if seq > acked.cursor],
                "refused": acked.refused,
            }
        )


def _rules_routes(api: APIRouter, sessions: HttpSessions) -> None:
    @api.get("/v1/inbox/rules", summary="Whom this inbox takes envelopes from")
    async def rules(request: Request) -> Response:
        session = await sessions.session(bodies.bearer(request))
        return _ruled(await sessions.change_rules(session, frames.Rules("http")))

    @api.patch("/v1/inbox/rules", summary="Change what is named of it")
    async def change(request: Request) -> Response:
        session = await sessions.session(bodies.bearer(request))
        with bodies.reading():
            wish = frames.read(frames.Rules, await bodies.members(request), ref="http")
        return _ruled(await sessions.change_rules(session, wish))


def _ruled(found: frames.Ruled) -> Response:
    fields = frames.to_members(found)
    del fields["ref"]
    return bodies.answer(fields)


def _agent_routes(api: APIRouter, services: HttpServices) -> None:
    @api.post("/v1/envelopes", summary="Submit envelopes; each is its own proof")
    async def submit(request: Request) -> Response:
        with bodies.reading():
            items = (await bodies.members(request)).array(
                "envelopes", minimum=1, limit=frames.MAX_ENVELOPES
            )
        frame = await submit_once(
            services.intake, items, strangers_network(_client(services, request))
        )
        return bodies.answer(
            {
                "receipt": frame.receipt,
                "rejected": [frames.to_members(item) for item in frame.rejected],
            }
        )

    @api.get("/v1/agents/{did}", summary="Resolve an agent: found, absent or unreadable")
    async def resolve(did: str) -> Response:
        found = await services.directory.resolve(did)
        status = {"found": 200, "absent": 404, "unreadable": 503}[found.state]
        body = {"state": found.state, "record": found.record, "stale": found.stale}
        return bodies.answer(body, status)

    @api.put("/v1/agents/{did}", summary="Publish an agent's endpoint record")
    async def publish(did: str, request: Request) -> Response:
        with bodies.reading():
            record = (await bodies.members(request)).text(
                "record", limit=endpoint_record.MAX_RECORD_BYTES
            )
        published = await services.directory.publish(record, only=Did(did))
        return bodies.answer(frames.to_members(published))

    @api.get("/v1/agents/{to}/envelopes/{message_id}", summary="What became of my envelope")
    async def status(to: str, message_id: str, request: Request) -> Response:
        session = await services.sessions.session(bodies.bearer(request))
        [found] = await services.status.query_remote(
            session.did, [frames.StatusItem(Did(to), message_id)]
        )
        return bodies.answer(frames.to_members(found))

    @api.get("/.well-known/agent-relay.json", summary="Who this relay is, signed")
    async def information() -> Response:
        return bodies.answer({"jws": services.describe()})


def _client(services: HttpServices, request: Request) -> str:
    return client_ip(request.scope, services.trusted_proxies)


async def submit_once(intake: Intake, items: list[Any], network: str) -> frames.Submitted:
    """Submit and wait for the one answer."""
    answered: asyncio.Future[frames.Submitted] = asyncio.get_running_loop().create_future()

    def answer(frame: frames.Submitted) -> None:
        if not answered.done():
            answered.set_result(frame)

    await SubmitStream(intake, answer, network).submit("http", items)
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
