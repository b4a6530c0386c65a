"""What one inbox remembers of the ids it has seen, exact and bounded (GUARANTEES.md R3).

Entries are grouped by the hour of their UUIDv7. An hour goes when everything in it has expired,
or when the memory is over its budget: then the oldest hour is dropped and becomes the floor, and
ids at or below the floor are refused as ``stale_id``, since nobody can tell any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from relay.inbox.model.store_contract import MIN_DEDUP_HOURS
from relay.inbox.model.types import (
    KNOWN_BY,
    Disposition,
    Forwarded,
)
from relay.protocol.ids import (
    Eid,
    Seq,
)


@dataclass(slots=True)
class Seen:
    """One remembered id."""

    eid: Eid
    seq: Seq
    disposition: Disposition
    forwarded: Forwarded | None = None

    def is_of(self, eid: Eid) -> bool:
        """Whether it is the id of this envelope, not of another one."""
        return eid[:KNOWN_BY] == self.eid[:KNOWN_BY]


@dataclass(slots=True)
class _Hour:
    entries: dict[bytes, Seen] = field(default_factory=dict)
    newest_expiry: int = 0


@dataclass(slots=True)
class Dedupe:
    """The memory of one inbox."""

    hours: dict[int, _Hour] = field(default_factory=dict)
    floor: int = -1

    def __len__(self) -> int:
        """How many ids are remembered."""
        return sum(len(hour.entries) for hour in self.hours.values())

    def find(self, hour: int, key: bytes) -> Seen | None:
        """The remembered id, if it is."""
        bucket = self.hours.get(hour)
        return bucket.entries.get(key) if bucket else None

    def remember(self, hour: int, key: bytes, seen: Seen, expires_at: int) -> None:
        """Keep an id at least until ``expires_at`` (Unix seconds) or until its hour is dropped."""
        bucket = self.hours.setdefault(hour, _Hour())
        bucket.entries[key] = seen
        bucket.newest_expiry = max(bucket.newest_expiry, expires_at)

    def conclude(
        self, hour: int, key: bytes, disposition: Disposition, forwarded: Forwarded | None = None
    ) -> None:
        """Write down what became of an id, if it is still remembered."""
        seen = self.find(hour, key)
        if seen is not None:
            seen.disposition, seen.forwarded = disposition, forwarded

    def can_shed(self) -> bool:
        """Whether an hour may be dropped."""
        return len(self.hours) > MIN_DEDUP_HOURS

    def shed(self) -> int:
        """Drop the oldest hour, which becomes the floor; gives how many ids that forgot."""
        oldest = min(self.hours)
        self.floor = max(self.floor, oldest)
        return len(self.hours.pop(oldest).entries)

    def purge(self, before: float) -> None:
        """Drop the hours in which everything expired before ``before``; the floor stays."""
        gone = [hour for hour, bucket in self.hours.items() if bucket.newest_expiry < before]
        for hour in gone:
            del self.hours[hour]
