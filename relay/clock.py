"""The only reader of time and randomness; everything pure gets them as arguments."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Sequence
from typing import TypeVar

from relay.protocol.ids import Timestamp

T = TypeVar("T")


def now() -> Timestamp:
    """Return the wall clock, Unix seconds: for what is signed or stored."""
    return Timestamp(time.time())


def monotonic() -> Timestamp:
    """Return seconds that never step: for deadlines and timers inside one process."""
    return Timestamp(time.monotonic())


def cpu() -> float:
    """Return the seconds of processor time that this thread has used."""
    return time.thread_time()


def entropy(count: int) -> bytes:
    """Return ``count`` random bytes, fit for keys, nonces and fences."""
    return secrets.token_bytes(count)


def random_fraction() -> float:
    """Return a random number in [0.0, 1.0), for spreading load; it protects nothing."""
    return random.random()  # noqa: S311  not a secret


def sample(things: Sequence[T], count: int) -> list[T]:
    """Return ``count`` random items, or all if there are fewer; it protects nothing."""
    return random.sample(things, min(count, len(things)))


def jitter(seconds: float) -> float:
    """Return ``seconds`` times a random factor in [0.5, 1.0), to spread reconnects."""
    return seconds * (0.5 + random.random() / 2)  # noqa: S311  not a secret
