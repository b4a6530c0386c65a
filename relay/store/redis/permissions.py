"""Whether the store lets this relay run what it needs: asked again and again, for the whole list.

Rules of the file: a script that is denied one of its commands stops in the middle, and what it had
done stays done. So a relay that lacks one does not start, and says which. What scripts call is read
out of their texts; docs/OPERATIONS.md names the same commands, and a test compares.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final

from relay.health import Health, ProblemReason
from relay.protocol.errors import (
    ErrorCode,
    UnavailableError,
)
from relay.protocol.ids import (
    NodeId,
    Partition,
)
from relay.store.redis import keys
from relay.store.redis.client import Client
from relay.store.redis.scripts import all_scripts, script

_CALL: Final = re.compile(r"redis\.p?call\(([^,)]+)")
_NAME: Final = re.compile("'([A-Z]+)'")
_DIRECT: Final = frozenset({
    "EVAL", "EVALSHA", "GET", "GETDEL", "HDEL", "HGET", "HSET", "HVALS", "INFO", "PING", "SCAN",
    "SET", "SSUBSCRIBE", "TIME", "ZREM",
})  # fmt: skip
"""What is sent outside scripts. ``CONFIG GET`` may be denied: receipts then say ``unverified``."""
_IN_CLUSTER: Final = "CLUSTER SLOTS"
_KEY: Final = keys.state(Partition(0))
_CHANNEL: Final = keys.wake(Partition(0), NodeId("node"))
_ARGUMENTS: Final = {
    "EVAL": f"x 1 {_KEY}",
    "EVALSHA": f"x 1 {_KEY}",
    "INFO": "",
    "PING": "",
    "SCAN": "0",
    "SPUBLISH": f"{_CHANNEL} x",
    "SSUBSCRIBE": _CHANNEL,
    "TIME": "",
}
"""Arguments by which the store finds the keys and channels; of others, a key is the first."""


@cache
def needed(*, cluster: bool) -> frozenset[str]:
    """Names of all commands that a relay runs, in scripts and outside."""
    calls = (call for one in all_scripts() for call in _CALL.findall(one.text))
    inside = {name for call in calls for name in _NAME.findall(call)}
    return _DIRECT | inside | ({_IN_CLUSTER} if cluster else set())


async def check(client: Client, *, cluster: bool) -> None:
    """Refuse a store whose user may not run everything.

    Raises:
        UnavailableError: the commands that are denied; not reachable.
        RelayError: as :meth:`Client.ask_all`.
    """
    names = sorted(needed(cluster=cluster))
    lines = [f"{name} {_ARGUMENTS.get(name, _KEY)}" for name in names]
    found = await client.ask_all("EVAL", script("permitted").text, 0, *lines)
    denied = sorted({names[at - 1] for _, places in found for at in places})
    if denied:
        detail = (
            f"the store's user may not run {', '.join(denied)} on keys and channels relay:*; "
            "the ACL SETUSER that lets it is in docs/OPERATIONS.md"
        )
        raise UnavailableError(ErrorCode.STORAGE_UNAVAILABLE, detail)


async def look(client: Client, health: Health, *, cluster: bool) -> None:
    """See whether something was taken away since the start, and say so.

    Raises:
        RelayError: the store does not answer.
    """
    detail = None
    try:
        await check(client, cluster=cluster)
    except UnavailableError as exc:
        if exc.retry_after is not None:
            raise
        detail = exc.detail
    health.found(ProblemReason.STORE_DENIES, detail)
