"""The operator's routes about peers (PROTOCOL.md §9); each decodes, calls one use case, encodes.

They are never on the public bind. A change must be ``application/json``: a browser page on the
operator's machine cannot send that without a preflight request, which nothing here answers.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from relay.http import bodies
from relay.peering.admin import PeerAdmin
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.ids import MAX_URL_CHARS, Did
from relay.protocol.jws import Members


def peer_routes(peer_admin: PeerAdmin) -> APIRouter:
    """Routes below ``/v1/admin``."""
    api = APIRouter(prefix="/v1/admin")

    @api.get("/peers", summary="All relays that are known, and how it goes")
    async def peers() -> Response:
        return bodies.answer({"peers": await peer_admin.show()})

    @api.get("/peers/{did}", summary="One of them")
    async def one(did: str) -> Response:
        shown = await peer_admin.show_one(Did(did))
        return _unknown() if shown is None else bodies.answer(shown)

    @api.post("/peers", summary="Deal with a relay from now on")
    async def add(request: Request) -> Response:
        members = await _members(request)
        url, did = _text(members, "url"), members.optional_text("did", limit=MAX_URL_CHARS)
        return bodies.answer(await peer_admin.add(url, did))

    @api.delete("/peers/{did}", summary="Deal with it no more")
    async def remove(did: str) -> Response:
        return bodies.answer({"removed": did}) if await peer_admin.remove(did) else _unknown()

    @api.post("/peers/{did}/block", summary="Refuse it, both ways")
    async def block(did: str, request: Request) -> Response:
        # the body has no members, but must be JSON: see above
        _ = await _members(request)
        return bodies.answer(await peer_admin.block(did))

    @api.delete("/peers/{did}/block", summary="Refuse it no more")
    async def unblock(did: str) -> Response:
        is_done = await peer_admin.unblock(did)
        return bodies.answer({"unblocked": did}) if is_done else _unknown("it is not blocked")

    @api.post("/join", summary="Add one live relay, and learn of others from it")
    async def join(request: Request) -> Response:
        return bodies.answer(await peer_admin.join(_text(await _members(request), "url")))

    return api


async def _members(request: Request) -> Members:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ProtocolError(ErrorCode.UNSUPPORTED, "send application/json")
    return await bodies.members(request)


def _text(members: Members, name: str) -> str:
    with bodies.reading():
        return members.text(name, limit=MAX_URL_CHARS)


def _unknown(detail: str = "no such relay is known") -> Response:
    return bodies.answer(
        {"error": ErrorCode.UNSUPPORTED, "detail": detail, "retry_after": None}, 404
    )
