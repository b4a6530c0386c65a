"""The route of an agent that moves; each request shows its signed order (PROTOCOL.md §5.12)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from relay.http import bodies
from relay.migration.requests import MAX_ITEMS, MigrationRequests, Room
from relay.protocol import endpoint_record, migration_order
from relay.protocol import jws as jose
from relay.protocol.ids import Eid, Seq
from relay.protocol.migration_order import MigrationOrder
from relay.protocol.types import DedupKey

KEY_BYTES: Final = 16
EID_CHARS: Final = 43

StepHandler = Callable[[MigrationRequests, MigrationOrder, jose.Members], Awaitable[dict[str, Any]]]


def migration_router(migrations: MigrationRequests) -> APIRouter:
    """Return the one route: the body names the step."""
    api = APIRouter()

    @api.post("/v1/migrations", summary="One step of moving an inbox to another relay")
    async def step(request: Request) -> Response:
        with bodies.reading():
            asked = await bodies.members(request)
            name = asked.one_of("step", frozenset(_STEPS))
            order = migration_order.parse(
                asked.text("order", limit=migration_order.MAX_ORDER_BYTES)
            )
            return bodies.answer(await _STEPS[name](migrations, order, asked))

    return api


def _room(asked: jose.Members) -> Room:
    return Room(asked.integer("count"), asked.integer("bytes"), asked.integer("largest"))


async def _offer(
    here: MigrationRequests, order: MigrationOrder, asked: jose.Members
) -> dict[str, Any]:
    return {"statement": await here.offer(order, _room(asked))}


async def _prepare(
    here: MigrationRequests, order: MigrationOrder, asked: jose.Members
) -> dict[str, Any]:
    newest = asked.text("newest", limit=endpoint_record.MAX_RECORD_BYTES)
    return {"statement": await here.prepare(order, _room(asked), newest)}


async def _freeze(
    here: MigrationRequests, order: MigrationOrder, _: jose.Members
) -> dict[str, Any]:
    return {"statement": await here.freeze(order)}


async def _state(here: MigrationRequests, order: MigrationOrder, _: jose.Members) -> dict[str, Any]:
    return {"statement": await here.state(order)}


async def _inventory(
    here: MigrationRequests, order: MigrationOrder, asked: jose.Members
) -> dict[str, Any]:
    after = Seq(asked.integer("after"))
    found = await here.inventory(order, after, MAX_ITEMS + 1)
    items = [
        [
            one.seq,
            one.eid,
            one.dedup_key.hour,
            jose.b64encode(one.dedup_key.dedupe_key),
            one.size,
            one.expires_at,
        ]
        for one in found[:MAX_ITEMS]
    ]
    return {"items": items, "more": len(found) > MAX_ITEMS}


async def _find(
    here: MigrationRequests, order: MigrationOrder, asked: jose.Members
) -> dict[str, Any]:
    items = [_item(value) for value in asked.array("items", limit=MAX_ITEMS)]
    return {"states": list(await here.find(order, items))}


def _item(value: object) -> tuple[DedupKey, Eid]:
    match value:
        case [int(hour), str(key), str(eid)] if (
            type(hour) is int and 0 <= hour < 2**32 and len(eid) == EID_CHARS
        ):
            raw = jose.b64decode(key)
            if len(raw) != KEY_BYTES:
                raise ValueError(f"a key has {KEY_BYTES} bytes")
            return DedupKey(raw, hour), Eid(eid)
        case _:
            raise ValueError("an item is [hour, key, eid]")


_STEPS: Final[dict[str, StepHandler]] = {
    "offer": _offer,
    "prepare": _prepare,
    "freeze": _freeze,
    "state": _state,
    "inventory": _inventory,
    "find": _find,
}
