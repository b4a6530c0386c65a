"""Many agents and their signed endpoint records, made once and kept in a file.

Rules of the file: agent ``n`` has the key whose seed is the SHA-256 of its number, so any process
can sign its next record. Records are real: parsed, verified and ordered like anybody's.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from relay.directory.ports import RecordRow
from relay.protocol import endpoint_record
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import Home
from relay.protocol.ids import AgentKey, Timestamp
from relay.store.embedded import launcher

SHARE: Final = 2_000
KEPT_S: Final = 24 * 3600
"""A record lives seven days: what is a day old is made anew."""
ELSEWHERE: Final = Home(SigningKey(hashlib.sha256(b"relay").digest()).did, "https://relay.example")
"""Where these agents live: at none of the relays that are measured."""


def key_of(number: int) -> SigningKey:
    """The key of one agent of the crowd."""
    return SigningKey(hashlib.sha256(b"crowd %d" % number).digest())


def sign(number: int, *, now: float, home: Home = ELSEWHERE) -> str:
    """The record of one agent at ``now``; a later one is newer."""
    return endpoint_record.sign(key_of(number), [home], now=Timestamp(now))


def row_of(compact: str) -> tuple[AgentKey, RecordRow]:
    """As a store keeps it, of an agent that lives elsewhere."""
    record = endpoint_record.parse(compact)
    agent = record.jws.header.kid.rpartition("#")[2]
    row = RecordRow(record.version, compact, names_us=False, expires_at=record.expires_at)
    return AgentKey(f"key:{agent}"), row


def _signed(numbers: Sequence[int], now: float) -> list[str]:
    return [sign(number, now=now) for number in numbers]


def _end_with(parent: int) -> None:
    """A worker waits for ever for a pool that was killed, unless it ends with it."""
    if sys.platform == "linux" and not launcher.end_with(parent):
        sys.exit()


def signed(numbers: Sequence[int], *, now: float) -> list[str]:
    """Records of many, signed on all cores."""
    shares = [numbers[at : at + SHARE] for at in range(0, len(numbers), SHARE)]
    if len(shares) == 1:
        return _signed(numbers, now)
    # not forked: whoever asks may have an event loop and threads
    spawn = multiprocessing.get_context("spawn")
    workers = concurrent.futures.ProcessPoolExecutor(
        os.cpu_count(), spawn, initializer=_end_with, initargs=(os.getpid(),)
    )
    with workers as pool:
        done = pool.map(_signed, shares, [now] * len(shares))
        return [compact for share in done for compact in share]


def crowd(count: int, *, directory: Path | None = None) -> list[str]:
    """Records of agents 0 to ``count`` - 1, from the file where it is there and fresh."""
    where = directory or Path(tempfile.gettempdir())
    path = where / f"did-relay-crowd-{os.getuid()}-{count}.records"
    if _is_fresh(path):
        found = path.read_text(encoding="ascii").split()
        if len(found) == count:
            return found
    made = signed(range(count), now=time.time())
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.touch(mode=0o600)
    fresh.write_text("\n".join(made), encoding="ascii")
    fresh.replace(path)
    return made


def _is_fresh(path: Path) -> bool:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return False
    return stat.st_uid == os.getuid() and stat.st_mtime > time.time() - KEPT_S


def rows(compacts: Iterable[str]) -> Iterator[tuple[AgentKey, RecordRow]]:
    """As a store keeps them."""
    return map(row_of, compacts)
