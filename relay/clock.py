"""The only reader of time and randomness."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Sequence
from typing import TypeVar

from relay.protocol.ids import Timestamp

T = TypeVar("T")


def now() -> Timestamp:
    """Wall clock, Unix seconds: for what is signed or stored."""
    return Timestamp(time.time())


def monotonic() -> Timestamp:
    """Seconds that never step: for deadlines and timers inside one process."""
    return Timestamp(time.monotonic())


def cpu() -> float:
    """Seconds of processor time that this thread has used."""
    return time.thread_time()


def entropy(count: int) -> bytes:
    """``count`` bytes fit for keys, nonces and fences."""
    return secrets.token_bytes(count)


def share() -> float:
    """A random number in [0.0, 1.0): spreads, guards nothing."""
    return random.random()  # noqa: S311  not a secret


def pick(things: Sequence[T], count: int) -> list[T]:
    """So many of them at random, all if they are fewer: spreads, guards nothing."""
    return random.sample(things, min(count, len(things)))


def jitter(seconds: float) -> float:
    """A random share of ``seconds`` in [0.5, 1.0): spreads reconnects, guards nothing."""
    return seconds * (0.5 + random.random() / 2)  # noqa: S311  not a secret
