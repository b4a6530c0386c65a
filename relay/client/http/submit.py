"""A submit over HTTP (PROTOCOL.md §6): no login, the envelope is its own proof."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

from relay.client.errors import AgentError
from relay.client.http.origin import Origin
from relay.client.http.transport import (
    Request,
    error_of,
    exchange,
    not_a_relay,
    read,
    unnoticed,
)
from relay.protocol import frames, receipts
from relay.protocol import jws as jose

PATH: Final = "/v1/envelopes"


async def submit_over_http(
    origin: Origin, submit: frames.Submit, seconds: float, begin: Callable[[], None] = unnoticed
) -> frames.Submitted | AgentError:
    """Submit once; gives the relay's answer, not verified yet, or its error for all of it.

    Args:
        origin: where.
        submit: what.
        seconds: what is left for it.
        begin: is called just before anything is said.

    Raises:
        AgentError: no answer, or none that a relay gives; ``stored`` says what is known.
    """
    items = b",".join(cast("list[bytes]", list(submit.envelopes)))
    body = b'{"envelopes":[%b]}' % items
    status, answer = await exchange(origin, Request("POST", PATH, body, begin=begin), seconds)
    members = read(origin, status, answer)
    if members.has("error"):
        return error_of(origin, status, members)
    try:
        return _submitted(members, submit.ref)
    except ValueError as exc:
        raise not_a_relay(origin, status) from exc


def _submitted(members: jose.Members, ref: str) -> frames.Submitted:
    rejected = [frames.read(frames.Rejection, item) for item in members.array("rejected", most=256)]
    return frames.Submitted(
        refs=(ref,),
        receipt=members.optional_text("receipt", most=receipts.MAX_RECEIPT_BYTES),
        rejected=tuple(
            frames.Rejection(ref, no.i, no.error, no.stored, no.detail, no.retry_after, no.record)
            for no in rejected
        ),
    )
