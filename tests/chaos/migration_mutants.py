"""Relays that break one rule of a migration, as a plausible bug or a lying operator would.

``kill_points_relay.py`` starts them. A mutant may edit a script of the store; the relay does not
start if the script lacks the text to replace.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from relay.forwarding import (
    forwarder,
    scheduler,
)
from relay.inbox import submit
from relay.inbox.model.types import (
    InboxRole,
)
from relay.migration import digest_sender
from relay.migration.digest_sender import (
    DigestSender,
)
from relay.migration.model.state import (
    DigestReceipt,
    MigrationSide,
)
from relay.protocol.did import SigningKey
from relay.protocol.errors import (
    ErrorCode,
    UnavailableError,
)
from relay.protocol.frames import (
    Migrate,
)
from relay.protocol.jws import b64decode
from relay.store.redis import client
from relay.store.redis.scripts import Script
from tests.chaos.mesh_mutants import ack_before_receipt

IS_ANEW = "local is_anew = fate == 'D' or (fate == 'W' and box.home)"
LEASE = "local LEASE_S = 15"
SHORT_S = 3


def edit(name: str, old: str, new: str) -> None:
    """Replace a line in a script; ``name`` is one that certainly has it."""
    honest = client.script
    if honest(name).text.count(old) != 1:
        raise RuntimeError(f"{name}.lua has no line {old!r}")

    @cache
    def edited(asked: str) -> Script:
        found = honest(asked)
        text = found.text.replace(old, new)
        digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        return Script(asked, text, digest)

    client.script = edited  # type: ignore[assignment]


def short_leases() -> None:
    """No lie: leases of a dead node end sooner, so that many cuts fit into a minute."""
    for module in (forwarder, scheduler, digest_sender):
        module.LEASE_S = SHORT_S  # type: ignore[attr-defined,misc]
    edit("append", LEASE, f"local LEASE_S = {SHORT_S}")


# ---------------------------------------------------------------- bugs


def drops_the_digest() -> None:
    """A source believes that its digest arrived, and has not sent it."""

    async def say(_: object, pages: Sequence[Migrate]) -> DigestReceipt:
        first = pages[0]
        return DigestReceipt(first.handoff, b64decode(first.digest_id), first.total)

    digest_sender._send_pages = say


def never_doubts() -> None:
    """A target marks nothing for want of a digest."""
    honest: Any = MigrationSide.role
    assert isinstance(honest, property)
    assert honest.fget is not None
    holding = honest.fget

    def sure(self: MigrationSide) -> InboxRole:
        found: InboxRole = holding(self)
        return InboxRole.HOME if found is InboxRole.UNCERTAIN else found

    MigrationSide.role = property(sure)  # type: ignore[method-assign,assignment]


def publishes_before_the_digest() -> None:
    """Nobody waits for what the agent has seen at the source."""
    drops_the_digest()
    never_doubts()


def remembers_what_it_handed_over() -> None:
    """An id that was handed over is a duplicate when it comes back."""
    edit("append", IS_ANEW, "local is_anew = fate == 'D'")


# ---------------------------------------------------------------- lies


def says_no_digest() -> None:
    """A source freezes, and never says what its agent has seen."""

    async def never(*_: object) -> None:
        raise UnavailableError(ErrorCode.PEER_UNREACHABLE, "the digest is withheld")

    DigestSender._send_digest = never  # type: ignore[assignment,method-assign]


def _lying(lie: Callable[..., str]) -> Callable[[], None]:
    """A target whose receipts of a hand-off are another's; it stores nothing less for that."""

    def become() -> None:
        honest = submit.sign_receipt
        told = Path(os.environ["RELAY_DATA"]).parent / "lies"

        def sign(key: SigningKey, items: Any, *, handoff: str = "", **more: Any) -> str:
            if not handoff:
                return honest(key, items, **more)
            with told.open("a") as file:
                file.write(f"{handoff}\n")
            return lie(honest, key, items, handoff, more)

        submit.sign_receipt = sign

    return become


def _by_another_key(honest: Any, _: SigningKey, items: Any, handoff: str, more: Any) -> str:
    signed: str = honest(SigningKey(os.urandom(32)), items, handoff=handoff, **more)
    return signed


def _of_another_handoff(honest: Any, key: SigningKey, items: Any, _: str, more: Any) -> str:
    signed: str = honest(key, items, handoff="another one", **more)
    return signed


def _of_no_handoff(honest: Any, key: SigningKey, items: Any, _: str, more: Any) -> str:
    signed: str = honest(key, items, **more)
    return signed


MUTANTS: dict[str, Callable[[], None]] = {
    "short-leases": short_leases,
    "drops-the-digest": drops_the_digest,
    "publishes-before-the-digest": publishes_before_the_digest,
    "ack-before-receipt": ack_before_receipt,
    "remembers-what-it-handed-over": remembers_what_it_handed_over,
    "says-no-digest": says_no_digest,
    "signs-with-another-key": _lying(_by_another_key),
    "names-another-handoff": _lying(_of_another_handoff),
    "names-no-handoff": _lying(_of_no_handoff),
}
