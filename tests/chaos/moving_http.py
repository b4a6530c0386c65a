"""What an agent says to a relay over HTTP when it moves, as the protocol has it (PROTOCOL.md §5.11).

Rules of the file: one request is one call; what blocks is in a thread. A relay's no is an error
with its code, what the network says is an ``OSError``.
"""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from relay.core import handoffs
from relay.core.errors import ErrorCode
from relay.core.handoffs import Statement
from relay.core.ids import Did

ANSWER_S = 20.0


class RefusedError(Exception):
    """The relay says no; ``code`` is its reason."""

    def __init__(self, code: ErrorCode, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code


async def step(url: str, order: str, name: str, **more: object) -> dict[str, Any]:
    """One step of a migration.

    Raises:
        RefusedError: the relay's no.
        OSError: it was not reached, or did not answer.
    """
    body = {"order": order, "step": name, **more}
    return await asyncio.to_thread(_ask, "POST", f"{url}/v1/migrations", body)


async def statement(url: str, relay: str, order: str, name: str, **more: object) -> Statement:
    """One step that is answered by a signed statement, which is verified."""
    answer = await step(url, order, name, **more)
    return handoffs.verify(answer["statement"], Did(relay))


async def publish(url: str, did: str, record: str) -> dict[str, Any]:
    """Publish a record."""
    return await asyncio.to_thread(_ask, "PUT", f"{url}/v1/agents/{did}", {"record": record})


async def submit(url: str, envelopes: list[Any]) -> dict[str, Any]:
    """Submit without a session."""
    return await asyncio.to_thread(_ask, "POST", f"{url}/v1/envelopes", {"envelopes": envelopes})


def _ask(method: str, url: str, body: object) -> dict[str, Any]:
    data = json.dumps(body).encode()
    head = {"content-type": "application/json"}
    request = urllib.request.Request(url, data=data, headers=head, method=method)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:  # noqa: S310  our own
            found: dict[str, Any] = json.loads(answer.read())
    except urllib.error.HTTPError as exc:
        with exc:
            said = json.loads(exc.read())
        raise RefusedError(ErrorCode(said["error"]), said.get("detail", "")) from exc
    except HTTPException as exc:
        raise ConnectionError(repr(exc)) from exc
    return found
