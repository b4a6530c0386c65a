"""The only reader of time and randomness."""

from __future__ import annotations

import random
import secrets
import time

from relay.core.ids import Timestamp


def now() -> Timestamp:
    """Wall clock, Unix seconds: for what is signed or stored."""
    return Timestamp(time.time())


def monotonic() -> Timestamp:
    """Seconds that never step: for deadlines and timers inside one process."""
    return Timestamp(time.monotonic())


def entropy(count: int) -> bytes:
    """``count`` bytes fit for keys, nonces and fences."""
    return secrets.token_bytes(count)


def jitter(seconds: float) -> float:
    """A random share of ``seconds`` in [0.5, 1.0): spreads reconnects, guards nothing."""
    return seconds * (0.5 + random.random() / 2)  # noqa: S311  not a secret
