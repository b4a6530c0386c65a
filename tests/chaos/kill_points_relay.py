"""A relay with kill points: ``-m tests.chaos.kill_points_relay NAME DIR MUTANT…``.

It is the real relay. A point is before or after a call of a real method; there the process only
looks into the file of kill points (``kill_points.py``). A digest has small pages here, so that it
has several. For mutants see ``mesh_mutants.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from relay.inbox.model.types import (
    InboxRole,
)
from relay.migration import digest_sender
from relay.migration.model import state_json
from relay.migration.model.state import (
    MigrationSide,
)
from relay.migration.ports import (
    MigrationChange,
    MigrationRow,
)
from relay.node import serve
from relay.peering.link import Link
from relay.protocol.frames import (
    Migrate,
)
from relay.protocol.ids import Did
from relay.protocol.types import (
    Mode,
)
from relay.settings import load
from relay.store.redis.inboxes import RedisInboxes
from relay.store.redis.migrations import RedisMigrations
from tests.chaos.kill_points import Cuts
from tests.chaos.migration_mutants import MUTANTS

SMALL_PAGE = 128
SOURCE = ("freeze", "page", "handed", "turn", "copy", "let go")
TARGET = ("prepare", "import", "named", "keep")
"""What happens at either, in its order; each has a point before and one after."""


def change_names(seen: MigrationRow, change: MigrationChange) -> Iterable[str]:
    """Return which steps a change is, by what becomes of the side."""
    before, after = _side(seen.text), _side(change.text)
    is_frozen = after.mode is Mode.FROZEN
    if is_frozen and before.mode is not Mode.FROZEN and after.pending is not None:
        yield "freeze"
    if is_frozen and after.digest_acked and not before.digest_acked:
        yield "handed"
    if change.role is InboxRole.FORWARDING and seen.role is not InboxRole.FORWARDING:
        yield "turn"
    if after.mode is Mode.INCOMING and before.mode is not Mode.INCOMING:
        yield "prepare"
    if before.partial_digest != after.partial_digest or (
        after.digest_received and not before.digest_received
    ):
        yield "import"
    if after.mode is Mode.ACTIVE and before.mode is Mode.INCOMING:
        yield "named"


def _side(text: str) -> MigrationSide:
    return state_json.decode(Did(""), text).side if text else MigrationSide(Did(""))


def _change(_: object, seen: MigrationRow, wanted: MigrationChange) -> Iterable[str]:
    return change_names(seen, wanted)


def _ask(make: Callable[[str], object]) -> Iterable[str]:
    return ["page"] if isinstance(make(""), Migrate) else []


def _submit(*_: object, handoff: str = "", **__: object) -> Iterable[str]:
    return ["copy"] if handoff else []


def _ack(requests: Sequence[Any]) -> Iterable[str]:
    return ["let go"] if any(one.ack.forwarded is not None for one in requests) else []


def _append(items: Sequence[Any]) -> Iterable[str]:
    return ["keep"] if any(item.moving for item in items) else []


METHODS: tuple[tuple[type, str, Callable[..., Iterable[str]]], ...] = (
    (RedisMigrations, "change", _change),
    (RedisInboxes, "append", _append),
    (RedisInboxes, "ack", _ack),
    (Link, "ask", _ask),
    (Link, "submit", _submit),
)
"""Which points a call has, by its arguments."""


def cut_at(cuts: Cuts, where: str) -> None:
    """Put the points around the methods."""
    for owner, method, names in METHODS:
        setattr(owner, method, _around(cuts, where, getattr(owner, method), names))


def _around(
    cuts: Cuts, where: str, call: Callable[..., Awaitable[Any]], names: Callable[..., Iterable[str]]
) -> Callable[..., Awaitable[Any]]:
    @wraps(call)
    async def wrapped(self: Any, *args: Any, **options: Any) -> Any:
        here = list(names(*args, **options))
        for name in here:
            cuts.reached(where, f"before {name}")
        answer = await call(self, *args, **options)
        for name in here:
            cuts.reached(where, f"after {name}")
        return answer

    return wrapped


def main(words: Sequence[str]) -> int:
    """Serve until killed."""
    name, directory, *mutants = words
    digest_sender.MAX_MAYBE_SEEN_IDS = SMALL_PAGE  # type: ignore[misc]
    for mutant in mutants:
        MUTANTS[mutant]()
    cut_at(Cuts(Path(directory)), name)
    return serve(load())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
