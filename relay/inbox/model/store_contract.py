"""Constants and refusals that every implementation of the store shares.

The scripts of the Redis store name a refusal by its key in :data:`REFUSALS`. The executable
specification (``relay.reference``) returns the same values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from relay.inbox.model.types import InboxLimits
from relay.protocol.errors import ErrorCode, Refusal

LEASE_S: Final = 15
"""A forwarder that does not renew its lease for so long loses it (visibility timeout)."""
OUTBOX_RETRY_S: Final = 60
"""Pause before a submit to a full outbox is repeated."""
BOUNCE_GRACE_S: Final = 300
"""A bounce waits so long after the expiry of its envelope, for clocks that differ (R6)."""
MIN_DEDUP_HOURS: Final = 2
"""The newest hours of ids that an inbox never forgets to make room (R3)."""
PEER_SHARE: Final = 4
"""One relay may fill 1/4 of the quota that all unknown senders share."""
CONTACT_FRESH_S: Final = 600
"""A contact recorded within this time is not recorded again."""
CONTACT_EVICTION_SHARE: Final = 10
"""A full list of contacts drops its oldest 1/10, so that not each new contact costs a search."""

REFUSALS: Final[Mapping[str, Refusal]] = {
    "replayed": Refusal(ErrorCode.REPLAYED, "this id was used for another envelope"),
    "expired": Refusal(
        ErrorCode.EXPIRED, "expires_time has passed by the clock of the relay's store"
    ),
    # instead of the former: a clock in doubt must never expire mail (GUARANTEES.md §2)
    "clock_in_doubt": Refusal(ErrorCode.STORAGE_UNAVAILABLE, "the relay's clock is in doubt"),
    "stale_id": Refusal(ErrorCode.STALE_ID, "the inbox no longer remembers ids this old"),
    "inbox_full": Refusal(ErrorCode.INBOX_FULL, "the recipient's inbox is full"),
    "sender_quota": Refusal(ErrorCode.SENDER_QUOTA, "too much of this sender waits in the inbox"),
    "stranger_quota": Refusal(
        ErrorCode.STRANGER_QUOTA, "the inbox's quota for unknown senders is used up"
    ),
    "blocked": Refusal(ErrorCode.BLOCKED, "the recipient accepts nothing from this sender"),
    "not_admitted": Refusal(
        ErrorCode.NOT_ADMITTED, "the recipient accepts envelopes only from senders it knows"
    ),
    "rate_limited": Refusal(
        ErrorCode.RATE_LIMITED, "unknown senders write too fast from this address"
    ),
    "overloaded": Refusal(ErrorCode.OVERLOADED, "the inbox's memory of ids is full"),
    "unknown_inbox": Refusal(ErrorCode.UNKNOWN_INBOX, "no inbox of this recipient is here"),
    "outbox_full": Refusal(
        ErrorCode.OVERLOADED, "too much waits for the recipient's relay", OUTBOX_RETRY_S
    ),
    "outbox_sender": Refusal(
        ErrorCode.SENDER_QUOTA, "too much of this sender waits for that relay"
    ),
    "outbox_inbox": Refusal(ErrorCode.INBOX_FULL, "too much waits here for this recipient"),
    "migrating": Refusal(ErrorCode.MIGRATING, "this inbox is being moved", 5),
    "superseded": Refusal(ErrorCode.SUPERSEDED, "a newer session has this inbox"),
    "inbox_reset": Refusal(ErrorCode.INBOX_RESET, "this inbox began a new epoch"),
    "bad_frame": Refusal(ErrorCode.BAD_FRAME, "the ack names a seq that was never delivered"),
}


def too_many_rules(limits: InboxLimits) -> Refusal:
    """Return the refusal of a patch that leaves more rules than fit."""
    return Refusal(ErrorCode.TOO_LARGE, f"at most {limits.rules} allowed and as many denied")


def max_imported_ids(limits: InboxLimits) -> int:
    """Return how many ids an inbox may hold when it imports some.

    Strangers fill half of the memory of ids, and must have room beside the imported ones.
    """
    return limits.dedupe_entries * 3 // 8
