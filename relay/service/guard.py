"""A turn of a loop has parts, one a peer or an inbox: what fails in one ends no other."""

from __future__ import annotations

from collections.abc import Awaitable

from relay import log, metrics
from relay.core.errors import RelayError


async def guarded(
    loop: str, part: Awaitable[object], *, but: tuple[type[RelayError], ...] = ()
) -> None:
    """Await one part of a turn; its failure is logged and counted under the name of the loop.

    Args:
        loop: its name.
        part: what concerns one peer, or one inbox.
        but: what concerns them all, and is raised.
    """
    try:
        await part
    except but:
        raise
    except RelayError as exc:
        metrics.LOOP_FAILURES.labels(loop).inc()
        log.loop_failed(loop, exc.code)
    except Exception:  # noqa: BLE001  a bug about one must not end the others
        metrics.INTERNAL.inc()
        log.internal_error(loop)
