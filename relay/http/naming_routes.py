"""Routes of handles: WebFinger for the names under this relay, and resolving any (§7.5).

Without a session, the answer comes from the relay's own store. The relay asks others only for a
session of its own, else strangers could make it send requests.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response

from relay.directory.publish import Directory
from relay.http import bodies
from relay.http.services import HttpServices
from relay.protocol import endpoint_record, handles
from relay.protocol import jws as jose
from relay.protocol.errors import ErrorCode, ProtocolError, UnavailableError
from relay.protocol.handles import Handle, LookupResult

_ACCT: Final = "acct:"
_STATUS: Final = {"found": 200, "absent": 404, "unreadable": 503}

Resource = Annotated[str, Query(max_length=handles.MAX_HANDLE_CHARS + len(_ACCT))]


def naming_router(services: HttpServices) -> APIRouter:
    """Return the routes of handles."""
    api = APIRouter()
    local = services.local_handles

    @api.get(handles.WEBFINGER, summary="The DID of a name under this relay (RFC 7033)")
    async def webfinger(resource: Resource) -> Response:
        handle = _read(resource.removeprefix(_ACCT))
        if not local.is_ours(handle):
            return _finger(404, {"subject": resource, "links": []})
        lookup = await local.resolve(handle)
        if lookup.state == "unreadable":
            raise UnavailableError(ErrorCode.STORAGE_UNAVAILABLE, lookup.why)
        links = [{"rel": handles.SELF, "href": lookup.did}] if lookup.did else []
        subject = f"{_ACCT}{handle}"
        return _finger(_STATUS[lookup.state], {"subject": subject, "links": links})

    @api.get("/v1/handles/{handle}", summary="Where a handle leads: found, absent or unreadable")
    async def resolve(handle: str, request: Request) -> Response:
        asked = _read(handle)
        if local.is_ours(asked):
            lookup = await local.resolve(asked)
        else:
            await services.sessions.session(bodies.bearer(request))
            lookup = await services.remote_handles.resolve(asked)
        return bodies.answer(await _whole(services.directory, asked, lookup), _STATUS[lookup.state])

    return api


def _read(text: str) -> Handle:
    try:
        return handles.parse(text)
    except ValueError as exc:
        raise ProtocolError(ErrorCode.BAD_FRAME, f"handle: {exc}") from exc


def _finger(status: int, jrd: dict[str, Any]) -> Response:
    # RFC 7033 §5: any page may ask
    headers = {"Access-Control-Allow-Origin": "*"}
    return Response(jose.dumps(jrd), status, headers, media_type=handles.JRD)


async def _whole(directory: Directory, handle: Handle, lookup: LookupResult) -> dict[str, Any]:
    """The answer with the way back: the record, and whether it lists the handle."""
    found = await directory.resolve(lookup.did) if lookup.did else None
    record = found.record if found else None
    listed = endpoint_record.parse(record).handles if record else ()
    return {
        "handle": str(handle),
        "state": lookup.state,
        "did": lookup.did,
        "verified": handles.is_listed(handle, listed),
        "record": record,
        "stale": found.stale if found else False,
        "detail": lookup.why,
    }
