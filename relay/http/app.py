"""The two ASGI apps: the public one, and the operator's on its own bind (PROTOCOL.md §9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import WebSocketRoute

from relay import __version__, metrics
from relay.health import Health
from relay.http import bodies
from relay.http.admin_routes import peer_routes
from relay.http.errors import on_bug, on_relay_error, on_wrong_parameter, on_wrong_route
from relay.http.migration_routes import migration_router
from relay.http.naming_routes import naming_router
from relay.http.routes import router
from relay.http.services import HttpServices
from relay.inbox.clock_guard import ClockGuard
from relay.peering.admin import PeerAdmin
from relay.protocol.errors import ErrorCode, RejectedError, RelayError
from relay.protocol.jws import dumps


def public_app(services: HttpServices, websocket: Callable[..., Any]) -> FastAPI:
    """Agents' side: REST routes and the raw WebSocket route ``/v1/ws``."""
    app = _app("agent relay")
    app.include_router(router(services))
    app.include_router(naming_router(services))
    app.include_router(migration_router(services.migrations))
    app.router.routes.append(WebSocketRoute("/v1/ws", websocket))
    return app


def admin_app(health: Health) -> FastAPI:
    """The operator's side; never on the public bind. It answers before there is a node."""
    app = _app("agent relay, operations", Depends(_from_no_page))

    @app.get("/livez", summary="The process answers")
    async def livez() -> Response:
        return Response("ok\n", media_type="text/plain")

    @app.get("/readyz", summary="The node takes envelopes; if not, why")
    async def readyz() -> Response:
        return bodies.answer(health.describe(), 200 if health.is_ready else 503)

    @app.get("/metrics", summary="Prometheus metrics")
    async def show_metrics() -> Response:
        health.measure()
        return Response(metrics.render(), media_type="text/plain; version=0.0.4")

    return app


def add_node_routes(
    app: FastAPI, peer_admin: PeerAdmin, guard: ClockGuard, confirm_clock: Callable[[], None]
) -> None:
    """Add the routes of the operator's side that need a node."""
    app.include_router(peer_routes(peer_admin))

    @app.get("/v1/admin/clock", summary="Is the clock believed?")
    async def clock() -> Response:
        return _clock(guard)

    @app.post("/v1/admin/clock", summary="The operator says that the store's clock is right")
    async def confirm() -> Response:
        confirm_clock()
        return _clock(guard)


async def _from_no_page(request: Request) -> None:
    """Refuse what a page sends from a browser on the operator's machine, under whatever name."""
    if "origin" in request.headers:
        raise RejectedError(ErrorCode.NOT_ADMITTED, "this is not for pages in a browser")


def _app(title: str, *checks: Any) -> FastAPI:
    """An app whose every error has the one shape."""
    return FastAPI(
        title=title,
        dependencies=checks,
        version=__version__,
        docs_url=None,
        redoc_url=None,
        # nothing is reported anywhere, whatever OTEL_ variables say
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        exception_handlers={
            RelayError: on_relay_error,
            RequestValidationError: on_wrong_parameter,
            HTTPException: on_wrong_route,
            Exception: on_bug,
        },
    )


def _clock(guard: ClockGuard) -> Response:
    body = {"ok": guard.ok, "doubt": guard.uncertainty}
    return Response(dumps(body), media_type="application/json")
