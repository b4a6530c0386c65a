"""Relays that break one promise between relays: ``python -m tests.chaos.mesh_mutants NAME``.

Rules of the file: as in ``mutants.py``: the real relay with one rule taken out, as a plausible bug
would take it out; the test beside each proof says what must be found.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

from relay.core import records
from relay.core.errors import Refusal
from relay.server import serve
from relay.service import directory
from relay.service.directory import Directory
from relay.settings import load


def no_signatures() -> None:
    """Whoever brings a record is believed."""

    async def believe(*_: Any) -> Refusal | None:
        return None

    Directory._objection = believe  # type: ignore[method-assign]


def any_order() -> None:
    """The last record that comes is the newest."""
    count = itertools.count(1)
    row_of = directory._row

    def as_newest(record: Any, **values: Any) -> Any:
        row = row_of(record, **values)
        kv, seq, digest = row.order
        return type(row)((kv, seq + 120_000 + next(count), digest), row.compact, row.names_us)

    directory._row = as_newest  # type: ignore[assignment]
    records.judge = lambda *_: "newer"  # type: ignore[assignment]


MUTANTS: dict[str, Callable[[], None]] = {
    "no-signatures": no_signatures,
    "any-order": any_order,
}


if __name__ == "__main__":
    MUTANTS[sys.argv[1]]()
    sys.exit(serve(load()))
